"""What the encoding layer costs: time, memory and accuracy of four ways to compute the same equations.

    python benchmarks/encoding.py                                        # the claims, 1 minute
    python benchmarks/encoding.py --batch 2 4 8 --side 60 90 --codewords 8 32 64       # the whole grid
    python benchmarks/encoding.py --device cuda      # and the layer's share of EncNet's training step

Forward and backward, C = 512, features in the layout of a convolution's output. Time: median over rounds in
which the variants take turns in one process; on the CPU it is CPU time (of all threads), which other work on
the machine stretches less than the wall clock's. Memory: peak above what imports and inputs take, each
variant in a process of its own. Prints Markdown tables and writes JSON. Needs torch, for the step also
torchvision.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from encsearch.model.encoding import encode, encode_definition

CHANNELS = 512
# Tensors (B, N, K, C) that the broadcast form holds at its peak, and the memory it may take.
BROADCAST_COPIES, BROADCAST_LIMIT_BYTES = 5, 8e9


def broadcast(features: Tensor, codewords: Tensor, smoothing_factors: Tensor) -> Tensor:
    """The residuals (B, N, K, C) as one tensor, as mmsegmentation has it."""
    residuals = features.unsqueeze(2) - codewords
    assignment = torch.softmax(-smoothing_factors * residuals.pow(2).sum(dim=3), dim=2)
    return (assignment.unsqueeze(3) * (features.unsqueeze(2) - codewords)).sum(dim=1)


def expanded(features: Tensor, codewords: Tensor, smoothing_factors: Tensor) -> Tensor:
    """`encode_definition` about zero instead of the mean codeword, in the precision that autocast chooses."""
    norms = features.square().sum(-1, keepdim=True), codewords.square().sum(-1)
    squared_distances = norms[0] - 2 * (features @ codewords.T) + norms[1]
    assignment = torch.softmax(-smoothing_factors * squared_distances, dim=-1)
    return assignment.mT @ features - assignment.sum(1).unsqueeze(-1) * codewords


VARIANTS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "broadcast": broadcast,
    "expanded": expanded,
    "definition": encode_definition,
    "own": encode,
}


@dataclass(frozen=True)
class Case:
    batch: int
    side: int
    codewords: int

    def inputs(self, device: str) -> tuple[Tensor, Tensor, Tensor]:
        """Made in place, so that making them leaves no peak behind."""
        torch.manual_seed(0)
        bound = (self.codewords * CHANNELS) ** -0.5
        shapes = (self.batch, CHANNELS, self.side**2), (self.codewords, CHANNELS), (self.codewords,)
        features, codewords, smoothing_factors = (torch.empty(shape, device=device) for shape in shapes)
        leaves = features.uniform_(), codewords.uniform_(-bound, bound), smoothing_factors.uniform_()
        for leaf in leaves:
            leaf.requires_grad_()
        return leaves

    def fits(self, variant: str) -> bool:
        values = self.batch * self.side**2 * self.codewords * CHANNELS
        return variant != "broadcast" or 4 * values * BROADCAST_COPIES < BROADCAST_LIMIT_BYTES


@dataclass(frozen=True)
class Cost:
    """Of one forward and backward pass; None where the memory does not suffice."""

    case: Case
    variant: str
    ms: float | None
    mib: float | None


@dataclass(frozen=True)
class Accuracy:
    """Relative error of the encoding against float64 on the same features, which lie `offset` off zero."""

    variant: str
    offset: float
    precision: str
    error: float


def main() -> None:
    arguments = parse()
    torch.set_num_threads(arguments.threads)
    if arguments.peak:
        print(peak_mib(arguments.peak, one_case(arguments), arguments.device))
        return
    costs = [
        cost
        for side in arguments.side
        for batch in arguments.batch
        for codewords in arguments.codewords
        for cost in measure(Case(batch, side, codewords), arguments)
    ]
    errors = [
        accuracy(variant, offset, precision)
        for variant in VARIANTS
        for offset in (0.0, 100.0)
        for precision in ("fp32", "bf16 autocast")
    ]
    print(f"\n{cost_table(costs)}\n\n{accuracy_table(errors)}")
    found: dict[str, object] = {
        "torch": torch.__version__,
        "device": device_name(arguments.device),
        "threads": arguments.threads,
        "costs": [asdict(cost) for cost in costs],
        "accuracy": [asdict(error) for error in errors],
    }
    if arguments.device != "cpu" or arguments.step:
        found["step"] = step = training_step(arguments.device, arguments.step_batch, arguments.crop)
        print("\n" + ", ".join(f"{name}: {value:.4g}" for name, value in step.items()))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(found, indent=1) + "\n")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, nargs="+", default=[2, 8])
    parser.add_argument("--side", type=int, nargs="+", default=[60], help="of the square feature map")
    parser.add_argument("--codewords", type=int, nargs="+", default=[32])
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--step", action="store_true", help="EncNet's training step on the CPU, too")
    parser.add_argument("--step-batch", type=int, default=16)
    parser.add_argument("--crop", type=int, default=480)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/encoding.json"))
    parser.add_argument("--peak", choices=VARIANTS, help=argparse.SUPPRESS)  # what a subprocess is told
    return parser.parse_args()


def one_case(arguments: argparse.Namespace) -> Case:
    (batch,), (side,), (codewords,) = arguments.batch, arguments.side, arguments.codewords
    return Case(batch, side, codewords)


def measure(case: Case, arguments: argparse.Namespace) -> list[Cost]:
    """Time and memory of all variants that fit."""
    fitting = [variant for variant in arguments.variants if case.fits(variant)]
    times = times_ms(fitting, case, arguments.device, arguments.repeats)
    costs = []
    for variant in arguments.variants:
        mib = peak_in_a_process(variant, case, arguments) if variant in fitting else None
        costs.append(Cost(case, variant, times.get(variant), mib))
        print(costs[-1], flush=True)
    return costs


def times_ms(variants: Sequence[str], case: Case, device: str, repeats: int) -> dict[str, float]:
    """Medians over rounds; the first round warms up."""
    inputs = case.inputs(device)
    rounds = [{name: pass_ms(VARIANTS[name], inputs) for name in variants} for _ in range(repeats + 1)]
    return {name: statistics.median(times[name] for times in rounds[1:]) for name in variants}


def pass_ms(function: Callable[[Tensor, Tensor, Tensor], Tensor], inputs: Sequence[Tensor]) -> float:
    features, codewords, smoothing_factors = inputs
    started = clock_s(features.device)
    encoding = function(features.mT, codewords, smoothing_factors)
    torch.autograd.grad(encoding, inputs, torch.ones_like(encoding))
    return 1e3 * (clock_s(features.device) - started)


def peak_in_a_process(variant: str, case: Case, arguments: argparse.Namespace) -> float:
    shape = ["--batch", case.batch, "--side", case.side, "--codewords", case.codewords]
    where = ["--device", arguments.device, "--threads", arguments.threads]
    command = [sys.executable, __file__, "--peak", variant, *map(str, [*shape, *where])]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def peak_mib(variant: str, case: Case, device: str) -> float:
    """Peak of one pass above what is held before it; a tiny pass comes first and loads the libraries."""
    pass_ms(VARIANTS[variant], Case(1, 2, 2).inputs(device))
    inputs = case.inputs(device)
    before = held_bytes(device)
    pass_ms(VARIANTS[variant], inputs)
    return (held_bytes(device) - before) / 2**20


def held_bytes(device: str) -> int:
    """The peak so far. Not ru_maxrss, which a process takes over from the one that started it (Linux)."""
    if device != "cpu":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


def accuracy(variant: str, offset: float, precision: str) -> Accuracy:
    """On the CPU, K = 32, features and codewords about one point, smoothing that leaves the choice open."""
    generator = torch.Generator().manual_seed(0)
    features = offset + torch.randn(1, 400, CHANNELS, generator=generator)
    codewords = offset + 0.5 * torch.randn(32, CHANNELS, generator=generator)
    smoothing_factors = 0.05 * torch.empty(32).uniform_(0.9, 1.1, generator=generator)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision != "fp32"):
        found = VARIANTS[variant](features, codewords, smoothing_factors)
    exact = broadcast(features.double(), codewords.double(), smoothing_factors.double())
    return Accuracy(variant, offset, precision, ((found - exact).norm() / exact.norm()).item())


def training_step(device: str, batch: int, crop: int) -> dict[str, float]:
    """ms of EncNet's step (resnet50, stride 8, K = 32, bf16, SGD) and of its encoding alone, median of 10."""
    from encsearch.model.encnet import EncNet

    model = EncNet("resnet50", num_codewords=32).to(device, memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    images = torch.randn(batch, 3, crop, crop, device=device).to(memory_format=torch.channels_last)

    def step() -> None:
        with torch.autocast(torch.device(device).type, dtype=torch.bfloat16):
            output = model(images)
        loss = sum(part.float().square().mean() for part in output if part is not None)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    side = -(-crop // 8)
    features = torch.rand(batch, CHANNELS, side, side, device=device).to(memory_format=torch.channels_last)
    features = features.bfloat16().flatten(2).requires_grad_()
    _, codewords, smoothing_factors = Case(batch, side, 32).inputs(device)
    step_ms, layer_ms = [], []
    for _ in range(13):
        started = clock_s(images.device)
        step()
        step_ms.append(1e3 * (clock_s(images.device) - started))
        layer_ms.append(pass_ms(encode, [features, codewords, smoothing_factors]))
    whole, layer = statistics.median(step_ms[3:]), statistics.median(layer_ms[3:])
    return {"step ms": whole, "encoding ms": layer, "share %": 100 * layer / whole}


def clock_s(device: torch.device) -> float:
    """CPU seconds of this process on the CPU; on a GPU the wall clock once its queue is empty."""
    if device.type == "cpu":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()


def device_name(device: str) -> str:
    return device if device == "cpu" else torch.cuda.get_device_name(device)


def cost_table(costs: Sequence[Cost]) -> str:
    """ms / MiB, and how many times the own function's they are."""
    names = list(dict.fromkeys(cost.variant for cost in costs))
    lines = [f"| B, map, K | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for case in dict.fromkeys(cost.case for cost in costs):
        of_it = {cost.variant: cost for cost in costs if cost.case == case}
        cells = " | ".join(cell(of_it[name], of_it.get("own")) for name in names)
        lines.append(f"| {case.batch}, {case.side}x{case.side}, {case.codewords} | {cells} |")
    return "\n".join(lines)


def cell(cost: Cost, own: Cost | None) -> str:
    if cost.ms is None or cost.mib is None:
        return "skipped: over 8 GB"
    text = f"{cost.ms:.0f} / {cost.mib:.0f}"
    if own is None or own is cost or own.ms is None or own.mib is None:
        return text
    return f"{text} (x{cost.ms / own.ms:.1f} / x{cost.mib / own.mib:.1f})"


def accuracy_table(errors: Sequence[Accuracy]) -> str:
    columns = dict.fromkeys((error.offset, error.precision) for error in errors)
    heads = " | ".join(f"{offset:g} off zero, {precision}" for offset, precision in columns)
    lines = [f"| variant | {heads} |", "|---" * (len(columns) + 1) + "|"]
    for name in dict.fromkeys(error.variant for error in errors):
        cells = " | ".join(f"{error.error:.0e}" for error in errors if error.variant == name)
        lines.append(f"| {name} | {cells} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
