"""`encsearch serve`."""

import ipaddress
import re
import threading
from contextlib import ExitStack

import click

from encsearch.cli.console import say
from encsearch.errors import UserError
from encsearch.text import format_count, format_given

UNITS = {"": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9}


def num_bytes(context: click.Context, parameter: click.Parameter, value: str) -> int:
    """A click callback: parse a number of bytes, such as 20MB."""
    found = re.fullmatch(r"(\d+)(kB|MB|GB|)", value)
    if not found or int(found[1]) == 0:
        raise click.BadParameter(f"{value} is no number of bytes; write it as 500kB or 20MB")
    return int(found[1]) * UNITS[found[2]]


def num_pixels(context: click.Context, parameter: click.Parameter, value: float | None) -> int | None:
    """A click callback: parse a whole number, such as 40e6, if one is given."""
    if value is None:
        return None
    if not 1 <= value < float("inf"):
        raise click.BadParameter(f"{format_given(value)} is no number of pixels; write it as 40e6")
    return int(value)


@click.command()
@click.argument("model")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8000, show_default=True, type=click.IntRange(1, 65535))
@click.option(
    "--replicas", default=1, show_default=True, type=click.IntRange(min=1), help="Copies of the model."
)
@click.option("--device", default="cpu", show_default=True, help="cpu, or cuda: a GPU for each replica.")
@click.option(
    "--max-batch", default=8, show_default=True, type=click.IntRange(1, 256), help="Images at once."
)
@click.option(
    "--batch-wait-ms",
    default=10.0,
    show_default=True,
    type=click.FloatRange(0, 10_000),
    help="How long an image waits for others.",
)
@click.option(
    "--max-bytes", default="20MB", show_default=True, callback=num_bytes, help="Limit for a request's body."
)
@click.option(
    "--max-pixels",
    type=float,
    callback=num_pixels,
    help="Limit for an image; by default what goes through the model in one pass.",
)
@click.option(
    "--timeout-s",
    default=60.0,
    show_default=True,
    type=click.FloatRange(0.1, 86_400),
    help="Limit for a body to come, and again for its answer.",
)
def serve(
    model: str,
    host: str,
    port: int,
    replicas: int,
    device: str,
    max_batch: int,
    batch_wait_ms: float,
    max_bytes: int,
    max_pixels: int | None,
    timeout_s: float,
) -> None:
    """Serve MODEL (a job's folder, a bundle, or models:/NAME@ALIAS) over HTTP until Ctrl-C.

    POST /predict takes an image and answers with its label map; GET /model and /healthz describe the model;
    GET / is a page to drop a picture on.
    The model runs on Ray Serve: on the cluster that RAY_ADDRESS names, or here.
    """
    from encsearch.cli.progress import progress
    from encsearch.serving.cluster import Serving, serve_model

    if device not in ("cpu", "cuda"):
        raise UserError(f"device={device}: a replica runs on cpu or on a GPU of Ray's choice, cuda")
    how = Serving(host, port, replicas, device, max_batch, batch_wait_ms, max_bytes, max_pixels, timeout_s)
    if not _is_loopback(host):
        say(
            f"warning: {host} is open to other machines without a password; put a proxy that asks for one "
            "in front of it"
        )
    with ExitStack() as stack:
        with progress("loading the model, starting Ray and the server"):
            served = stack.enter_context(serve_model(model, how))
        largest = format_count(served.limits.max_pixels, "pixel")
        base = f"http://{host}:{port}"
        say(
            f"{served.name} version {served.version} answers at {base}/predict "
            f"(images of up to {largest}); Ctrl-C ends it"
        )
        say(f"drop a picture on {base}/, or: curl -F image=@picture.jpg {base}/predict")
        threading.Event().wait()


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
