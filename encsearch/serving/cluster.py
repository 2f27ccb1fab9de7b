"""Serve a model on Ray Serve while a block runs: on the cluster that RAY_ADDRESS names, or here."""

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from encsearch.config import ScalingConfig
from encsearch.errors import PreflightError, last_line, one_line
from encsearch.inference.bundle import CARD_FILE, find_device, read_bundle, read_files, weights_digest
from encsearch.inference.segment import pixels_at_once
from encsearch.runner.ray_session import describe_shortage, ray_session
from encsearch.serving.answers import ServedModel
from encsearch.serving.requests import Limits
from encsearch.tracking.registry.fetch import bundle_folder
from encsearch.tracking.uris import existing_store

# More than a replica receives and holds, which refuses the next in JSON: here Ray refuses, in plain text.
MAX_REQUESTS = 1000
APP_NAME = "encsearch"


@dataclass(frozen=True)
class Serving:
    """How a model is served: address, replicas, device, batches and limits.

    `max_pixels` is the limit for an image; None is what goes through the model in one pass.
    """

    host: str
    port: int
    replicas: int
    device: str
    max_batch: int
    batch_wait_ms: float
    max_bytes: int
    max_pixels: int | None
    timeout_s: float


@contextmanager
def serve_model(source: str, how: Serving) -> Iterator[ServedModel]:
    """Serve a model over HTTP inside the block; `source` is a source that `load` takes.

    No process of it is left after the block. Raises UserError for a source that is no model, and
    PreflightError for a port that is taken or a cluster that is too small or runs Ray Serve already.
    """
    if "RAY_ADDRESS" not in os.environ:
        if how.device.startswith("cuda"):
            find_device(how.device)
        _check_port(how.host, how.port)
    model, files = _read(source, how)
    with ray_session(needs=ScalingConfig()):
        _check_cluster(how)
        with _deploy(model, files, how):
            yield model


def _read(source: str, how: Serving) -> tuple[ServedModel, dict[str, bytes]]:
    """Read the model's files, which travel with the deployment: no node needs the folder or the registry."""
    registered = _find_version(source)
    # The version's number is used from here on: the alias may move meanwhile.
    with bundle_folder("models:/{}/{}".format(*registered) if registered else source) as folder:
        bundle = read_bundle(folder)
        digest = weights_digest(folder)
        files = read_files(folder)
        card = (folder / CARD_FILE).read_text(encoding="utf-8")
    name, version = registered or (bundle.config.name, digest[:12])
    info = bundle.info
    max_pixels = how.max_pixels or pixels_at_once(len(info.classes), bundle.config.eval)
    limits = Limits(how.max_bytes, max_pixels, how.timeout_s)
    model = ServedModel(name, version, info.classes, info.palette, bundle.fingerprint, digest, card, limits)
    return model, files


def _find_version(source: str) -> tuple[str, str] | None:
    """Find name and version of a "models:/" source; None for other sources and for an unknown alias."""
    if not source.startswith("models:/"):
        return None
    name, at, alias = source.removeprefix("models:/").partition("@")
    if not at:
        name, _, version = name.partition("/")
        return name, version
    from encsearch.tracking.mlflow import connect
    from encsearch.tracking.registry.versions import find_champion

    found = find_champion(connect(existing_store(), experiment="Default"), name, alias)
    return (found.name, found.version) if found else None


def _check_port(host: str, port: int) -> None:
    try:
        socket.create_server((host, port)).close()
    except OSError as error:
        raise PreflightError(
            f"cannot listen on {host}:{port} ({error.strerror}); choose another --port"
        ) from None


def _check_cluster(how: Serving) -> None:
    import ray

    if any(actor["name"] == "SERVE_CONTROLLER_ACTOR" for actor in ray.util.list_named_actors(True)):
        raise PreflightError(
            "Ray Serve runs on this cluster already, with a host and port of its own; end it with `serve "
            "shutdown`, or take another cluster"
        )
    gpus = 1 if how.device.startswith("cuda") else 0
    needs = ScalingConfig(num_workers=how.replicas, gpus_per_worker=gpus)
    if lacking := describe_shortage(needs, ray.cluster_resources()):
        raise PreflightError(f"{how.replicas} replicas need {lacking}; lower --replicas or add nodes")


@contextmanager
def _deploy(model: ServedModel, files: dict[str, bytes], how: Serving) -> Iterator[None]:
    import ray
    from ray import serve

    from encsearch.serving.app import ImageServer

    # After the import, which sets up this logger: otherwise Serve reports each of its steps on stderr.
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    serve.start(
        http_options={"host": how.host, "port": how.port},
        proxy_location="HeadOnly",
    )
    deployment = serve.deployment(ImageServer).options(
        num_replicas=how.replicas,
        ray_actor_options={"num_cpus": 1, "num_gpus": 1 if how.device.startswith("cuda") else 0},
        max_ongoing_requests=MAX_REQUESTS,
        max_queued_requests=MAX_REQUESTS * how.replicas,
        max_constructor_retry_count=1,
        graceful_shutdown_timeout_s=5,
    )
    try:
        application = deployment.bind(
            [ray.put(files)], model, how.device, how.max_batch, how.batch_wait_ms / 1000
        )
        _run(application)
        yield
    finally:
        serve.delete(APP_NAME)  # this answers the requests that it holds first
        if "RAY_ADDRESS" in os.environ:
            serve.shutdown()  # a local Ray ends with everything on it


def _run(application: Any) -> None:
    """Return when every replica has loaded the model."""
    from ray import serve

    try:
        serve.run(application, name=APP_NAME)
    except RuntimeError as error:
        found = serve.status().applications.get(APP_NAME)
        # What a replica raised is the last line of its traceback there.
        told = [one.message for one in found.deployments.values() if one.message] if found else []
        why = one_line(last_line(told[0] if told else error))
        raise PreflightError(f"the replicas did not start ({why}); the logs of Ray say more") from None
