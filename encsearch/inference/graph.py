"""A trained model as one graph without Python: traced by torch.export, and the same graph as ONNX."""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.fx import GraphModule

from encsearch.data.transforms import MEAN, STD
from encsearch.errors import UserError, first_line
from encsearch.model.encnet import EncNet

INPUT = "images"
OPSET = 20
"""ONNX operator set; ONNX Runtime reads it since 1.17."""

EXAMPLE_SIZE = (256, 320)
"""Height and width for tracing free sizes; no two sides of stages or pooled maps are equal."""


class InferenceGraph(nn.Module):
    """The computation of an exported file: images (B, 3, H, W), RGB in 0..1 -> outputs by name.

    `logits` (B, num_classes, H, W), and `presence_logits` (B, num_classes) if there is a context module. The
    auxiliary branches are left out with their weights where only training uses them.
    """

    image_mean: Tensor
    image_std: Tensor

    def __init__(self, model: EncNet) -> None:
        super().__init__()
        self.model = copy.deepcopy(model).eval()
        self.model.aux_head = None
        if not self.model.scales_stage3:
            self.model.aux_context = None
        elif self.model.aux_context is not None:
            self.model.aux_context.presence = None
        self.output_names = ("logits",) if model.context is None else ("logits", "presence_logits")
        # Not named `mean`: onnx_ir 1.1 confuses a buffer with a folded constant of the same name.
        self.register_buffer("image_mean", torch.tensor(MEAN)[:, None, None])
        self.register_buffer("image_std", torch.tensor(STD)[:, None, None])

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        output = self.model((images - self.image_mean) / self.image_std)
        return {name: getattr(output, name) for name in self.output_names}


def trace(graph: InferenceGraph, least_side: int, size: tuple[int, int] | None = None) -> ExportedProgram:
    """The program of the graph for any batch, and for any sides from `least_side` px on or for one (H, W).

    Raises UserError when torch.export cannot follow the model.
    """
    images = torch.zeros(2, 3, *(size or EXAMPLE_SIZE))
    free = {axis: Dim(name, min=least_side if axis else 1) for axis, name in _free_axes(size).items()}
    try:
        with torch.no_grad():
            program = torch.export.export(
                graph,
                (images,),
                dynamic_shapes={INPUT: free},
                # Facts true of every size, such as ceil(H/4) > ceil(H/8), are then tested in the graph;
                # otherwise torch.export would ask for a proof that it cannot find.
                prefer_deferred_runtime_asserts_over_guards=True,
            )
    except RuntimeError as error:
        raise UserError(
            f"torch.export cannot follow this model ({first_line(error)}); try a fixed --size, or --format "
            "safetensors"
        ) from None
    # Removed, since stack traces name paths of this machine, and example images would be stored as a pickle.
    for module in program.graph_module.modules():
        if isinstance(module, GraphModule):
            for node in module.graph.nodes:
                node.meta.pop("stack_trace", None)
    program.example_inputs = None
    return program


def save_onnx(
    program: ExportedProgram,
    path: Path,
    *,
    output_names: Sequence[str],
    size: tuple[int, int] | None,
    metadata: Mapping[str, str],
) -> None:
    """Write a traced program as one ONNX file, with axes named `batch`, `height` and `width` where free.

    Raises UserError when the exporter lacks one of its operators.
    """
    try:
        onnx_program = torch.onnx.export(
            program.run_decompositions({torch.ops.aten.adaptive_avg_pool2d.default: adaptive_avg_pool2d}),
            input_names=[INPUT],
            output_names=output_names,
            dynamic_shapes={INPUT: _free_axes(size)},
            opset_version=OPSET,
            verbose=False,
        )
    except RuntimeError as error:
        raise UserError(
            f"torch.onnx cannot write this model ({first_line(error)}); try --format torch"
        ) from None
    assert onnx_program is not None  # only the old exporter returns None
    onnx_program.model.metadata_props.update(metadata)
    onnx_program.save(path)


def adaptive_avg_pool2d(features: Tensor, output_size: Sequence[int]) -> Tensor:
    """F.adaptive_avg_pool2d as two matrix products: (B, C, H, W) -> (B, C, *output_size).

    torch.onnx (torch 2.15) unrolls the operator for the example's size and is silently wrong at any other.
    """
    height, width = features.shape[-2:]
    rows, columns = output_size
    return _bins(height, rows, features) @ features @ _bins(width, columns, features).mT


def _bins(size: int, num_bins: int, like: Tensor) -> Tensor:
    """Weights (num_bins, size): bin i averages pixels floor(i size / n) up to ceil((i + 1) size / n)."""
    index = torch.arange(num_bins, device=like.device)[:, None]
    pixel = torch.arange(size, device=like.device)
    start = index * size // num_bins
    end = ((index + 1) * size + num_bins - 1) // num_bins
    inside = ((pixel >= start) & (pixel < end)).to(like.dtype)
    return inside / inside.sum(dim=1, keepdim=True)


def _free_axes(size: tuple[int, int] | None) -> dict[int, str]:
    return {0: "batch"} if size else {0: "batch", 2: "height", 3: "width"}
