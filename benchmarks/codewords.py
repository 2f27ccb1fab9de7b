"""Can more codewords be brought into use, and does that help? Variants of the encoding on `scenes`.

    python benchmarks/codewords.py --seeds 0                                          # all, 6 CPU minutes
    python benchmarks/codewords.py --seeds 0 1 2 3 4 --variants published "unit length, smoothing 10"

Every training has the backbone, data and steps of the recipe `demo` with the paper's head; a variant
changes the encoding layer or how its parameters learn, and nothing else. The score is the mIoU of the
ambiguous classes on the validation split after the last step. Prints a Markdown table and writes JSON.
"""

import argparse
import json
import math
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from scipy import stats
from torch import Tensor, nn

from encsearch.config import Config, load_config, trial_config, with_values
from encsearch.data.scenes import generate_scenes
from encsearch.metrics import scores
from encsearch.model.encoding import assign, encode
from encsearch.train.experiment import Experiment, build
from encsearch.train.loop import evaluate, fit

RECIPE = "encsearch/recipes/scenes.yaml"
PAPERS_HEAD = {
    "model.preset": "paper",
    "model.codeword_init": "published",
    "model.encoding_conv": True,
}
DEAD = 0.1  # of an equal share 1 / K of the assignment
DUPLICATE = 0.95  # cosine of two codewords


class Published(nn.Module):
    """encsearch's Encoding, from its parameters, open to change."""

    def __init__(self, encoding: nn.Module, steps: int) -> None:
        super().__init__()
        self.codewords, self.smoothing_factors = encoding.codewords, encoding.smoothing_factors
        self.steps = steps
        self.step = 0

    def forward(self, features: Tensor) -> Tensor:
        self.step += self.training
        return encode(*self.terms(features))

    def terms(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What `encode` is given for a feature map (B, C, H, W)."""
        return features.flatten(2).mT, self.codewords, self.smoothing_factors

    def assignment(self, features: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, N, K)."""
        return assign(*self.terms(features))


class UnitLength(Published):
    """Features and codewords of length 1, so that only directions are compared."""

    def terms(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, d, s = super().terms(features)
        return F.normalize(x, dim=-1), F.normalize(d, dim=-1), s


class Annealed(Published):
    """Smoothing factors grow from 1 % to their value in the first half: all codewords learn at first."""

    def terms(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, d, s = super().terms(features)
        return x, d, s * min(1.0, 0.01 + 2 * self.step / self.steps)


class Balanced(Published):
    """Adds 0.1 (log K - entropy of the batch's mean assignment) to the loss."""

    def forward(self, features: Tensor) -> Tensor:
        encoding = super().forward(features)
        if not self.training:
            return encoding
        mean = self.assignment(features).mean(dim=(0, 1))
        missing = math.log(len(mean)) - entropy(mean)
        return AddToLoss.apply(encoding, 0.1 * missing)


class Sampled(Published):
    """The codewords start at pixels of the first batch."""

    def forward(self, features: Tensor) -> Tensor:
        if self.training and self.step == 0:
            pixels = features.detach().flatten(2).mT.flatten(0, 1)
            chosen = torch.linspace(0, len(pixels) - 1, len(self.codewords)).long()
            self.codewords.data.copy_(pixels[chosen])
        return super().forward(features)


class UnitLengthSampled(Sampled, UnitLength):
    """Both."""


class AddToLoss(torch.autograd.Function):
    """`value` as it is; in the backward pass `penalty` is differentiated as a term of the loss."""

    @staticmethod
    def forward(ctx: object, value: Tensor, penalty: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> tuple[Tensor, Tensor]:
        return grad, grad.new_ones(())


@dataclass(frozen=True)
class Variant:
    """What differs from the published encoding.

    `smoothing` is the range of the initial smoothing factors, `norm_weight` the initial weight of the BN on
    the encoding.
    """

    num_codewords: int = 16
    layer: type[Published] = Published
    smoothing: tuple[float, float] = (0.0, 1.0)
    lr_factor: float = 1.0
    decays: bool = True
    relu_before: bool = True
    norm_weight: float = 1.0


VARIANTS = {
    "published": Variant(),
    "published, K = 1": Variant(num_codewords=1),
    "K = 1, BN weight 16": Variant(num_codewords=1, norm_weight=16),
    "published, K = 4": Variant(num_codewords=4),
    "published, K = 64": Variant(num_codewords=64),
    "learning rate x 10": Variant(lr_factor=10),
    "no weight decay": Variant(decays=False),
    "annealed": Variant(layer=Annealed),
    "usage balance": Variant(layer=Balanced),
    "unit length, smoothing 10": Variant(layer=UnitLength, smoothing=(10, 10)),
    "unit length, from features": Variant(layer=UnitLengthSampled, smoothing=(10, 10)),
    "no ReLU before": Variant(relu_before=False),
    "codewords from features": Variant(layer=Sampled),
    "smoothing x 10": Variant(smoothing=(0, 10)),
    "smoothing / 48": Variant(smoothing=(0, 1 / 48)),
    "equal smoothing factors": Variant(smoothing=(0.5, 0.5)),
    "equal smoothing, from features": Variant(layer=Sampled, smoothing=(0.1, 0.1)),
    "equal smoothing, from features, no ReLU": Variant(
        layer=Sampled, smoothing=(0.1, 0.1), relu_before=False
    ),
}


@dataclass(frozen=True)
class Row:
    """One training. Scores in percent; the rest is of the validation split.

    `in_use`: exp of the entropy of the mean assignment, of K codewords. `per_pixel`: exp of the mean entropy
    of a pixel's assignment. `dead`: share of codewords with under a tenth of an equal share. `duplicates`:
    share of codewords that have another at a cosine over 0.95. `without_dead`: the mIoU of the ambiguous
    classes when what the dead codewords give is put to 0.
    """

    variant: str
    seed: int
    steps: int
    ambiguous: float
    mean_iou: float
    in_use: float
    per_pixel: float
    dead: float
    duplicates: float
    without_dead: float
    cpu_s: float


def main() -> None:
    arguments = parse()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        store = arguments.store or str(Path(scratch) / "scenes")
        if not arguments.store:
            generate_scenes(Path(store))
        base = trial_config(load_config(RECIPE, [f"data.store={store}"]), {})
        base = with_values(base, {**PAPERS_HEAD, "train.epochs": 1, "train.steps_per_epoch": arguments.steps})
        rows = []
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        for seed in arguments.seeds:
            for name in arguments.variants:
                row = run(name, with_values(base, {"train.seed": seed}))
                rows.append(row)
                print(row, flush=True)
                arguments.out.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    print(table(rows))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--store", help="an existing store of scenes; default: a fresh one")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/codewords.json"))
    return parser.parse_args()


def run(name: str, config: Config) -> Row:
    """One training and what its codewords do then."""
    started = time.process_time()
    experiment = build(with_values(config, {"model.num_codewords": VARIANTS[name].num_codewords}))
    layers = change(experiment, VARIANTS[name])
    (report,) = fit(experiment.state, experiment.loaders, experiment.loss, experiment.plan)
    layer = layers[0]  # of the module that scales; the other one is on stage 3
    with noted(layer) as notes:
        score(experiment)
    mean = torch.stack(notes.means).mean(dim=0)
    dead = mean < DEAD / len(mean)
    with silenced(experiment.state.model.context.semantics.norm, dead):
        without_dead = score(experiment)
    return Row(
        variant=name,
        seed=config.train.seed,
        steps=experiment.plan.total_steps,
        ambiguous=100 * report.metrics["mIoU/ambiguous"],
        mean_iou=100 * report.metrics["mIoU"],
        in_use=entropy(mean).exp().item(),
        per_pixel=math.exp(statistics.fmean(notes.entropies)),
        dead=dead.float().mean().item(),
        duplicates=duplicates(layer.codewords.detach()),
        without_dead=100 * without_dead,
        cpu_s=time.process_time() - started,
    )


def change(experiment: Experiment, variant: Variant) -> list[Published]:
    """Put the variant's layer in the place of every Encoding of the model, keeping its parameters."""
    model = experiment.state.model
    layers = []
    for module in (model.context, model.aux_context):
        semantics = module.semantics
        semantics.encoding = variant.layer(semantics.encoding, experiment.plan.total_steps)
        nn.init.uniform_(semantics.encoding.smoothing_factors, *variant.smoothing)
        nn.init.constant_(semantics.norm.weight, variant.norm_weight)
        if not variant.relu_before:
            semantics.conv[2] = nn.Identity()
        layers.append(semantics.encoding)
    learn_apart(experiment.state.optimizer, [p for layer in layers for p in layer.parameters()], variant)
    return layers


def learn_apart(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], variant: Variant) -> None:
    """Move `parameters` to a group of their own, with the variant's learning rate and weight decay."""
    chosen = {id(p) for p in parameters}
    heads = next(g for g in optimizer.param_groups if any(id(p) in chosen for p in g["params"]))
    heads["params"] = [p for p in heads["params"] if id(p) not in chosen]
    base_lr = heads["base_lr"] * variant.lr_factor
    own = {"params": parameters, "lr": base_lr, "base_lr": base_lr}
    optimizer.add_param_group(own if variant.decays else {**own, "weight_decay": 0.0})


def score(experiment: Experiment) -> float:
    """mIoU of the ambiguous classes on the validation split, as a ratio."""
    plan = experiment.plan
    confusion = evaluate(
        experiment.state.model,
        experiment.loaders.validation(),
        plan.kernels,
        num_classes=len(plan.classes),
    )
    return scores(confusion, plan.classes, plan.groups).group_iou["ambiguous"]


@dataclass
class Notes:
    """Of each validation batch the mean assignment (K,) and the mean entropy of a pixel's assignment."""

    means: list[Tensor] = field(default_factory=list)
    entropies: list[float] = field(default_factory=list)


@contextmanager
def noted(layer: Published) -> Iterator[Notes]:
    """While the block runs, note what the layer assigns."""
    notes = Notes()

    def note(module: nn.Module, features: tuple[Tensor]) -> None:
        assignment = layer.assignment(*features)
        notes.means.append(assignment.mean(dim=(0, 1)))
        notes.entropies.append(entropy(assignment).mean().item())

    handle = layer.register_forward_pre_hook(note)
    yield notes
    handle.remove()


@contextmanager
def silenced(norm: nn.Module, codewords: Tensor) -> Iterator[None]:
    """While the block runs, what the chosen codewords (K,) add to the context vector is 0."""
    handle = norm.register_forward_hook(lambda _, __, encoding: encoding * ~codewords.unsqueeze(-1))
    yield
    handle.remove()


def entropy(probabilities: Tensor) -> Tensor:
    """(..., K) -> (...), in nats."""
    return torch.special.entr(probabilities).sum(dim=-1)


def duplicates(codewords: Tensor) -> float:
    """Share of codewords (K, C) that have another one at a cosine over DUPLICATE."""
    directions = F.normalize(codewords, dim=-1)
    cosines = (directions @ directions.T).fill_diagonal_(-1)
    return (cosines.amax(dim=1) > DUPLICATE).float().mean().item()


def table(rows: Sequence[Row]) -> str:
    """Means over seeds, a row a variant; differences are to `published` with the same seed."""
    lines = [
        "| variant | seeds | mIoU ambiguous | difference, 95 % interval | in use | a pixel's | dead | "
        "duplicates | mIoU without the dead |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    published = {row.seed: row.ambiguous for row in rows if row.variant == "published"}
    for name in dict.fromkeys(row.variant for row in rows):
        of_it = [row for row in rows if row.variant == name]
        mean = partial(_mean, of_it)
        gains = [row.ambiguous - published[row.seed] for row in of_it if row.seed in published]
        lines.append(
            f"| {name} | {len(of_it)} | {mean('ambiguous'):.1f} | {_interval(gains)} | {mean('in_use'):.2f} "
            f"| {mean('per_pixel'):.2f} | {mean('dead'):.0%} | {mean('duplicates'):.0%} "
            f"| {mean('without_dead'):.1f} |"
        )
    return "\n".join(lines)


def _mean(rows: Sequence[Row], name: str) -> float:
    return statistics.fmean(getattr(row, name) for row in rows)


def _interval(gains: Sequence[float]) -> str:
    """Mean and half the 95 % interval of Student's t."""
    if len(gains) < 2 or not any(gains):
        return "-"
    half = stats.t.ppf(0.975, len(gains) - 1) * statistics.stdev(gains) / math.sqrt(len(gains))
    return f"{statistics.fmean(gains):+.1f} +- {half:.1f}"


if __name__ == "__main__":
    main()
