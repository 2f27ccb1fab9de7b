"""Write a trained model as files for other programs: torch.export's archive, ONNX, and the bundle itself.

model.pt2          the graph and its weights for PyTorch, from Python or C++; nothing in it is pickled
model.onnx         the same for ONNX Runtime and other programs that read ONNX
model.json         inputs, outputs, classes, palette, and how exact the two graphs are
model.safetensors  and the other files of bundle.py, which make the folder a bundle as well

A graph takes float32 RGB in 0..1 and normalises it itself: the caller only divides by 255. It makes one pass
over whole images. Scales, flips and windows of the recipe's `eval` section are not in it.
"""

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from encsearch.data.transforms import MEAN, STD
from encsearch.errors import PreflightError, UserError
from encsearch.files import beside
from encsearch.inference.bundle import Bundle, write_bundle
from encsearch.inference.graph import EXAMPLE_SIZE, INPUT, OPSET, InferenceGraph, save_onnx, trace
from encsearch.text import format_number

Format = Literal["torch", "onnx", "safetensors"]
FORMATS: tuple[Format, ...] = ("torch", "onnx", "safetensors")
Run = Callable[[Tensor], Mapping[str, Tensor]]

TORCH_FILE = "model.pt2"
ONNX_FILE = "model.onnx"
INTERFACE_FILE = "model.json"

TOLERANCE = 1e-4
"""Largest allowed difference relative to the largest output. Another order of sums costs 1e-6."""

MAX_SIDE_PX = 2048
"""Largest side of a fixed size: the check runs three such images at once."""

_SHAPES = ((1, 97, 131), (3, 160, 97), (2, *EXAMPLE_SIZE))  # batch, height, width


@dataclass(frozen=True)
class ParityCheck:
    """A file's difference from the model on images (B, 3, H, W), divided by the largest output."""

    file: str
    shape: tuple[int, ...]
    difference: float


@dataclass(frozen=True)
class Export:
    """The files written, how exact they are, and why some could not be checked."""

    files: tuple[str, ...]
    checks: tuple[ParityCheck, ...]
    unchecked: Mapping[str, str]


def export_bundle(
    bundle: Bundle, out: Path, formats: Collection[Format], size: tuple[int, int] | None = None
) -> Export:
    """Write the model to the new folder `out`, whole or not at all.

    Height and width are free, from one pixel above the output stride on, unless `size` fixes them; the batch
    is always free. Each graph is read back and compared with the model on noise of several shapes.

    Raises UserError if `out` exists or cannot be written, for a size that the model cannot have, and for a
    graph that cannot be made or differs from the model; PreflightError if the packages for ONNX are missing.
    """
    least_side = bundle.config.model.output_stride + 1
    if size and not all(least_side <= side <= MAX_SIDE_PX for side in size):
        raise UserError(
            f"size={size[0]}x{size[1]}: this model takes sides of {least_side} to {MAX_SIDE_PX} px here"
        )
    missing = [name for name in ("onnx", "onnxscript") if "onnx" in formats and not find_spec(name)]
    if missing:
        raise PreflightError(
            f"format=onnx needs {' and '.join(missing)}: pip install 'encsearch[onnx]', or --format torch"
        )
    if out.exists():
        raise UserError(f"{out}: exists already; name a new folder with --out")
    try:
        with beside(out) as scratch:
            scratch.mkdir(parents=True)
            export = _write(bundle, scratch, formats, size, least_side)
    except OSError as error:
        raise UserError(
            f"{out}: cannot be written ({error.strerror or error}); choose another --out"
        ) from None
    return export


def compare(
    file: str, run: Run, graph: InferenceGraph, shapes: Sequence[tuple[int, int, int]]
) -> list[ParityCheck]:
    """Compare the outputs of a file, computed by `run`, with the graph on noise (batch, height, width).

    Raises UserError when they differ by more than TOLERANCE.
    """
    generator = torch.Generator().manual_seed(0)
    checks = []
    for batch, height, width in shapes:
        images = torch.rand(batch, 3, height, width, generator=generator)
        with torch.inference_mode():
            wanted = graph(images)
            found = run(images)
        difference = max(_difference(found[name], wanted[name]) for name in wanted)
        if not difference <= TOLERANCE:
            raise UserError(
                f"{file} differs from the model by {format_number(difference)} on "
                f"{batch}x3x{height}x{width}, more than {format_number(TOLERANCE)}; try a fixed --size, or "
                "--format safetensors"
            )
        checks.append(ParityCheck(file, tuple(images.shape), difference))
    return checks


def _write(
    bundle: Bundle, folder: Path, formats: Collection[Format], size: tuple[int, int] | None, least_side: int
) -> Export:
    if "safetensors" in formats:
        write_bundle(bundle, folder)
    graph = InferenceGraph(bundle.model)
    interface = _interface(bundle, graph, size, least_side)
    shapes = [(1, *size), (3, *size)] if size else _SHAPES
    checks: list[ParityCheck] = []
    unchecked: dict[str, str] = {}
    if "torch" in formats or "onnx" in formats:
        program = trace(graph, least_side, size)
    if "torch" in formats:
        torch.export.save(program, folder / TORCH_FILE)
        checks += compare(TORCH_FILE, _torch_runner(folder / TORCH_FILE), graph, shapes)
    if "onnx" in formats:
        metadata = {key: json.dumps(value) for key, value in interface.items()}
        save_onnx(program, folder / ONNX_FILE, output_names=graph.output_names, size=size, metadata=metadata)
        if find_spec("onnxruntime"):
            checks += compare(ONNX_FILE, _onnx_runner(folder / ONNX_FILE), graph, shapes)
        else:
            unchecked[ONNX_FILE] = "onnxruntime is not installed"
    parity = {"tolerance": TOLERANCE, "checks": [asdict(check) for check in checks], "unchecked": unchecked}
    text = json.dumps({**interface, "parity": parity}, indent=2)
    (folder / INTERFACE_FILE).write_text(text + "\n", encoding="utf-8")
    return Export(tuple(sorted(path.name for path in folder.iterdir())), tuple(checks), unchecked)


def _interface(
    bundle: Bundle, graph: InferenceGraph, size: tuple[int, int] | None, least_side: int
) -> dict[str, Any]:
    """The interface of a graph for its callers, as plain JSON types."""
    height, width = size or ("height", "width")
    num_classes = len(bundle.info.classes)
    shapes = {"logits": ["batch", num_classes, height, width], "presence_logits": ["batch", num_classes]}
    return {
        "name": bundle.config.name,
        "input": {
            "name": INPUT,
            "shape": ["batch", 3, height, width],
            "dtype": "float32",
            "channels": "RGB",
            "range": [0, 1],
            "least_side_px": least_side,
        },
        "normalisation": {"inside_the_graph": True, "mean": MEAN, "std": STD},
        "outputs": {name: shapes[name] for name in graph.output_names},
        "classes": bundle.info.classes,
        "palette": bundle.info.palette,
        "fingerprint": bundle.fingerprint,
        "opset": OPSET,
        "torch": torch.__version__,
    }


def _torch_runner(path: Path) -> Run:
    """Only for a file of this process: torch.export.load (2.15) unpickles whatever a file asks it to."""
    module = torch.export.load(path).module()
    return lambda images: module(images)


def _onnx_runner(path: Path) -> Run:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def run(images: Tensor) -> dict[str, Tensor]:
        arrays = session.run(names, {INPUT: images.numpy()})
        return {name: torch.from_numpy(array) for name, array in zip(names, arrays, strict=True)}

    return run


def _difference(found: Tensor, wanted: Tensor) -> float:
    return ((found - wanted).abs().max() / wanted.abs().max().clamp(min=1)).item()
