"""`encsearch export` and `encsearch import-weights`."""

import re
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from encsearch.cli.console import emit, json_option, say, table
from encsearch.cli.models import model_argument
from encsearch.errors import UserError
from encsearch.files import check_free
from encsearch.text import format_count

if TYPE_CHECKING:
    from encsearch.data.datasets import DatasetInfo

# A published file does not say which data it was trained on; its bundle has these values instead.
UNKNOWN_STORE = "unknown"
UNKNOWN_FINGERPRINT = "unknown"


@click.command()
@model_argument
@click.option(
    "--format",
    "format_",
    type=click.Choice(["torch", "onnx", "safetensors", "all"]),
    default="all",
    show_default=True,
    help="torch: model.pt2; safetensors: the bundle.",
)
@click.option("--out", required=True, type=click.Path(path_type=Path), help="New folder for the files.")
@click.option("--size", metavar="HxW", help="Fix height and width, px; default: any size.")
@json_option
def export(model: str, format_: str, out: Path, size: str | None, as_json: bool) -> None:
    """Write MODEL (a run's folder, a bundle, or models:/NAME@ALIAS) for other programs, and check the files.

    The graphs take RGB in 0..1; model.json describes the rest.
    """
    from encsearch.cli.progress import progress
    from encsearch.inference.export import FORMATS, export_bundle
    from encsearch.tracking.registry.fetch import describe_unfinished, fetch_bundle

    fixed = _size(size) if size else None
    formats = [name for name in FORMATS if format_ in (name, "all")]
    if note := describe_unfinished(model):
        say(note)
    with progress("writing the files, and comparing what they compute with the model"):
        done = export_bundle(fetch_bundle(model), out, formats, fixed)
    for file, reason in done.unchecked.items():
        say(f"warning: {file} was not compared with the model: {reason}")
    rows = [(check.file, "x".join(map(str, check.shape)), check.difference) for check in done.checks]
    compared = f"{table(['file', 'images', 'difference'], rows)}\n" if rows else ""
    emit({"out": str(out), **asdict(done)}, as_json, f"{compared}{out}: {', '.join(done.files)}")


@click.command("import-weights")
@click.argument("file", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--store", type=click.Path(path_type=Path), help="Store whose classes the model has.")
@click.option(
    "--classes", type=click.Path(path_type=Path), help="Text file of class names, one a line, in their order."
)
@json_option
def import_weights(file: Path, out: Path, store: Path | None, classes: Path | None, as_json: bool) -> None:
    """Make the model OUT, for `eval` and `predict`, from the EncNet in FILE.

    FILE (.pth or .safetensors) is a checkpoint of the authors' code (PyTorch-Encoding) or of mmsegmentation.
    The shape of the network is read from its tensors. Without --store and --classes the classes are called
    class0, class1, ...
    """
    if store and classes:
        raise click.UsageError("--store and --classes both name the classes; give one of them")
    from encsearch.config import Config, DataConfig, TrainConfig
    from encsearch.inference.bundle import Bundle, write_bundle
    from encsearch.model.published import read_published

    check_free(out)  # a bundle would replace what is there, and the path may be a mistake
    published = read_published(file)
    info = _dataset_info(file, published.num_classes, store, classes)
    data = DataConfig(store=str(store.absolute()) if store else UNKNOWN_STORE)
    # As its authors computed it: bfloat16 would change labels where two classes are close.
    config = Config(data=data, model=published.config, train=TrainConfig(precision="fp32"))
    try:
        write_bundle(Bundle(published.model, config, info, UNKNOWN_FINGERPRINT, metrics={}), out)
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror}); choose another OUT") from None
    model = published.config
    result = {
        "model": str(out),
        "origin": published.origin,
        "num_classes": published.num_classes,
        **model.model_dump(include={"backbone", "num_codewords", "channels", "lateral", "auxiliary"}),
    }
    text = (
        f"wrote {out}: EncNet ({published.origin}), {model.backbone}, K={model.num_codewords}, "
        f"C={model.channels}, {format_count(published.num_classes, 'class')}, lateral {model.lateral}, "
        f"auxiliary {model.auxiliary}"
    )
    emit(result, as_json, text)


def _size(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d{1,5})x(\d{1,5})", text)
    if not found:
        raise UserError(f"size={text} is not of the form HEIGHTxWIDTH in px, as in 480x640")
    height, width = map(int, found.groups())
    return height, width


def _dataset_info(file: Path, num_classes: int, store: Path | None, classes: Path | None) -> "DatasetInfo":
    """Find the names of the classes. Raises UserError if they cannot be read or their number is wrong."""
    from encsearch.data.datasets import DatasetInfo, default_palette

    if store:
        from encsearch.data.store import Store

        info = Store(store).info
    else:
        names = _read_names(classes) if classes else tuple(f"class{i}" for i in range(num_classes))
        info = DatasetInfo("imported", names, default_palette(len(names)))
    if len(info.classes) != num_classes:
        raise UserError(
            f"{store or classes}: {format_count(len(info.classes), 'class')}, but {file} has {num_classes}"
        )
    return info


def _read_names(classes: Path) -> tuple[str, ...]:
    try:
        lines = classes.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UserError(f"{classes}: cannot read the class names ({error.strerror})") from None
    except UnicodeDecodeError:
        raise UserError(f"{classes}: the class names are not UTF-8 text; one name a line") from None
    return tuple(line.strip() for line in lines if line.strip())
