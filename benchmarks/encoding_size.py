"""Should the encoding be rescaled to the training size? The same weights at other sizes, with and without.

    python benchmarks/encoding_size.py --seeds 0 1 2 3 4        # 3 CPU minutes

EncNet is trained on `scenes` (encsearch/recipes/scenes.yaml with the paper's head, 64 px) and scored on the
validation split, seen at the training size and in other ways, with `model.rescale_encoding` and without; it
changes nothing in training. Prints a Markdown table and writes JSON.
"""

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from encsearch.config import Config, load_config, trial_config, with_values
from encsearch.data.loading import feed
from encsearch.data.scenes import generate_scenes
from encsearch.metrics import confusion_matrix, scores
from encsearch.model.encnet import EncNet
from encsearch.model.encoding import Encoding
from encsearch.train.experiment import Experiment, build
from encsearch.train.loop import fit

RECIPE = "encsearch/recipes/scenes.yaml"
OVERRIDES = {"model.preset": "paper", "model.encoding_conv": True, "model.rescale_encoding": True}

View = Callable[[EncNet, Tensor, Tensor], tuple[Tensor, Tensor]]


def whole(model: EncNet, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Labels (B, H, W) and predictions of the same size, as every view gives them."""
    return labels, model(images).logits.argmax(dim=1)


def mirror_tiled(model: EncNet, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Four copies of each picture about its corner: what is to be seen is the same."""
    for side in (-1, -2):
        images = torch.cat([images, images.flip(side)], dim=side)
        labels = torch.cat([labels, labels.flip(side)], dim=side)
    return whole(model, images, labels)


def quarters(model: EncNet, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The four crops of half the side, each on its own."""
    crops = torch.cat([crop for half in images.chunk(2, dim=-2) for crop in half.chunk(2, dim=-1)])
    masks = torch.cat([mask for half in labels.chunk(2, dim=-2) for mask in half.chunk(2, dim=-1)])
    return whole(model, crops, masks)


def zoomed(model: EncNet, images: Tensor, labels: Tensor, *, factor: float) -> tuple[Tensor, Tensor]:
    """The picture resized before and the logits after, as multi-scale evaluation does."""
    size = [round(factor * length) for length in images.shape[-2:]]
    logits = model(F.interpolate(images, size=size, mode="bilinear", antialias=True)).logits
    back = F.interpolate(logits, size=labels.shape[-2:], mode="bilinear", antialias=True)
    return labels, back.argmax(dim=1)


VIEWS: dict[str, View] = {
    "training size, 64 px": whole,
    "2x2 mirror tiles, 128 px": mirror_tiled,
    "quarters, 32 px": quarters,
    "zoomed by 0.5, 32 px": partial(zoomed, factor=0.5),
    "zoomed by 0.75, 48 px": partial(zoomed, factor=0.75),
    "zoomed by 1.5, 96 px": partial(zoomed, factor=1.5),
    "zoomed by 2, 128 px": partial(zoomed, factor=2.0),
}


@dataclass(frozen=True)
class Row:
    """One score of one model; `ambiguous` and `mean_iou` in percent."""

    seed: int
    view: str
    rescaled: bool
    ambiguous: float
    mean_iou: float


def main() -> None:
    arguments = parse()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        store = arguments.store or str(Path(scratch) / "scenes")
        if not arguments.store:
            generate_scenes(Path(store))
        base = trial_config(load_config(RECIPE, [f"data.store={store}"]), {})
        base = with_values(base, {**OVERRIDES, "train.epochs": 1, "train.steps_per_epoch": arguments.steps})
        rows = []
        for seed in arguments.seeds:
            for row in run(with_values(base, {"train.seed": seed})):
                rows.append(row)
                print(row, flush=True)
    print(table(rows))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--store", help="an existing store of scenes; default: a fresh one")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/encoding_size.json"))
    return parser.parse_args()


def run(config: Config) -> list[Row]:
    """One training, scored in every way: with rescaling first, since it is taken off for good."""
    experiment = build(config)
    for _ in fit(experiment.state, experiment.loaders, experiment.loss, experiment.plan):
        pass
    experiment.state.model.eval()
    rows = [score(experiment, view, rescaled=True) for view in VIEWS]
    for module in experiment.state.model.modules():
        if isinstance(module, Encoding):
            module.num_pixels = None
    return rows + [score(experiment, view, rescaled=False) for view in VIEWS]


@torch.inference_mode()
def score(experiment: Experiment, view: str, *, rescaled: bool) -> Row:
    plan = experiment.plan
    confusion = torch.zeros(len(plan.classes), len(plan.classes), dtype=torch.int64)
    for inputs in feed(experiment.loaders.validation(), plan.device):
        labels, predictions = VIEWS[view](experiment.state.model, inputs.images, inputs.labels)
        confusion += confusion_matrix(labels, predictions, len(plan.classes))
    result = scores(confusion, plan.classes, plan.groups)
    return Row(plan.seed, view, rescaled, 100 * result.group_iou["ambiguous"], 100 * result.mean_iou)


def table(rows: Sequence[Row]) -> str:
    """Mean over seeds without and with rescaling, and each seed's difference."""
    lines = [
        "| picture | mIoU ambiguous, without / with | mIoU, without / with | gain in mIoU of each seed |",
        "|---|---|---|---|",
    ]
    for view in VIEWS:
        without, with_it = ([r for r in rows if (r.view, r.rescaled) == (view, on)] for on in (False, True))
        ambiguous = (statistics.fmean(row.ambiguous for row in half) for half in (without, with_it))
        overall = (statistics.fmean(row.mean_iou for row in half) for half in (without, with_it))
        gains = (b.mean_iou - a.mean_iou for a, b in zip(without, with_it, strict=True))
        lines.append(
            f"| {view} | {' / '.join(f'{value:.1f}' for value in ambiguous)} "
            f"| {' / '.join(f'{value:.1f}' for value in overall)} "
            f"| {', '.join(f'{value:+.1f}' for value in gains)} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
