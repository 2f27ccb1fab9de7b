"""What a training step costs on one GPU, what of it is the encoding, and whether the loader feeds it.

    encsearch data import camvid PATH/TO/CamVid data/camvid
    python -m benchmarks.gpu data/camvid --parts checks steps loader compile     # about 6 minutes
    python -m benchmarks.gpu data/camvid --parts memory resume shares

The step is the product's (`train_step`), on random images that lie on the GPU, except in the part `loader`,
which trains from the store. TFLOP/s count the products of convolutions and matrices, forwards and backwards,
and are compared with a product of two bfloat16 matrices on the same card. Needs torch, torchvision, pyarrow,
pydantic, ruamel.yaml and safetensors; no Ray, MLflow or Optuna. Prints each figure and writes JSON after each
part; the parts of an earlier run stay in the file.
"""

import argparse
import json
import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice, pairwise, product
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from encsearch.config import Config, load_config, with_values
from encsearch.data.datasets import IGNORE
from encsearch.data.loading import Inputs, feed
from encsearch.data.store import Store
from encsearch.model.encnet import EncNet
from encsearch.model.encoding import Encoding, encode, encode_definition
from encsearch.reports import REPORTS_FILE
from encsearch.runner.rank import RankTraining
from encsearch.train.checkpoint_files import MODEL_FILE, find_best
from encsearch.train.experiment import build, new_state
from encsearch.train.kernels import Kernels
from encsearch.train.loop import fit
from encsearch.train.loss import loss_sums, weighted_loss
from encsearch.train.memory import training_gib
from encsearch.train.step import Plan, train_step

BATCH, NUM_CLASSES = 16, 59
WARM_UP, TIMED = 4, 10
PARTS = ("checks", "steps", "loader", "compile", "memory", "shares", "resume")
NETWORKS: dict[str, dict[str, Any]] = {"EncNet": {}, "FCN": {"model.context": "none"}}
# One change each against the defaults of a GPU; `plain` has none of them.
VARIANTS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "channels first": {"train.channels_last": False},
    "cuDNN benchmark": {"train.cudnn_benchmark": True},
    "optimizer not fused": {"train.fused_optimizer": False},
    "fp32 as TF32": {"train.precision": "fp32"},
    "fp32, highest": {"train.precision": "fp32", "train.matmul_precision": "highest"},
    "deterministic": {"train.deterministic": True},
    "plain": {"train.channels_last": False, "train.fused_optimizer": False},
}


@dataclass(frozen=True)
class Step:
    """One training step: median of TIMED; memory is the peak that PyTorch allocated."""

    network: str
    backbone: str
    side: int
    variant: str
    milliseconds: float
    images_per_s: float
    tflops: float
    share_of_peak: float
    memory_mib: float


def main() -> None:
    arguments = parse()
    torch.manual_seed(0)
    device = torch.device(arguments.device)
    result: dict[str, Any] = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    result |= {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "torch": torch.__version__,
        "batch": arguments.batch,
    }
    began = time.monotonic()
    peaks = ceilings(device, arguments.matrix)
    result["ceilings"] = peaks
    print(json.dumps(peaks), flush=True)
    work: dict[str, Callable[[], Any]] = {
        "checks": lambda: checks(device, arguments),
        "steps": lambda: steps(device, arguments, peaks["bf16_tflops"]),
        "loader": lambda: loader(device, arguments),
        "compile": lambda: compiled(device, arguments, peaks["bf16_tflops"]),
        "memory": lambda: memory(device, arguments),
        "shares": lambda: shares(device, arguments),
        "resume": lambda: resumed(device, arguments),
    }
    for part in arguments.parts:
        started = time.monotonic()
        result[part] = work[part]()
        result[part + "_seconds"] = time.monotonic() - started
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")
        print(f"{part}: {result[part + '_seconds']:.0f} s", flush=True)
    print(f"{time.monotonic() - began:.0f} s in all")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("store", help="store of CamVid")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--batch", type=int, default=BATCH)
    parser.add_argument("--sides", type=int, nargs="+", default=[480, 512], help="crops, px")
    parser.add_argument("--backbones", nargs="+", default=["resnet50", "resnet101"])
    parser.add_argument("--matrix", type=int, default=8192, help="side of the product that is the peak")
    parser.add_argument("--threads", type=int, default=4, help="decoding threads")
    parser.add_argument("--processes", type=int, default=8, help="decoding processes; 0: threads")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/gpu.json"))
    return parser.parse_args()


# --- the card ---


def ceilings(device: torch.device, side: int) -> dict[str, float]:
    """A product of two bfloat16 matrices, and a copy in memory, on random numbers."""
    left, right = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    source = torch.randn(side * side, device=device)
    target = torch.empty_like(source)
    product_s = seconds(device, lambda: left @ right)
    copy_s = seconds(device, lambda: target.copy_(source))
    return {"bf16_tflops": 2 * side**3 / product_s / 1e12, "copy_gb_per_s": 8 * side**2 / copy_s / 1e9}


def seconds(device: torch.device, work: Callable[[], object], timed: int = TIMED) -> float:
    """Median seconds of `work` on the device."""
    for _ in range(WARM_UP):
        work()
    if device.type != "cuda":
        found = []
        for _ in range(timed):
            started = time.perf_counter()
            work()
            found.append(time.perf_counter() - started)
        return median(found)
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(timed + 1)]
    marks[0].record()
    for mark in marks[1:]:
        work()
        mark.record()
    torch.cuda.synchronize(device)
    return median(a.elapsed_time(b) / 1000 for a, b in pairwise(marks))


# --- the step ---


def recipe(arguments: argparse.Namespace, values: Mapping[str, Any]) -> Config:
    """The defaults that a GPU gets, for random images of one size."""
    config = Config.model_validate(
        {
            "data": {
                "store": arguments.store,
                "threads": arguments.threads,
                "processes": arguments.processes,
            },
            "augment": {"crop": arguments.sides[0], "scale": [0.5, 2.0], "rotate_deg": 10, "jitter": 0.2},
            "model": {"backbone": "resnet50", "output_stride": 8},
            "train": {
                "global_batch_size": arguments.batch,
                "precision": "bf16",
                "channels_last": True,
                "epochs": 1,
                "steps_per_epoch": WARM_UP + TIMED,
            },
        }
    )
    return with_values(config, dict(values))


def plan_of(config: Config, device: torch.device) -> Plan:
    return Plan(
        epochs=1,
        steps_per_epoch=config.train.steps_per_epoch or 1,
        global_batch_size=config.train.global_batch_size,
        seed=0,
        optim=config.optim,
        classes=(),
        groups={},
        kernels=Kernels.of(config.train, device),
    )


def random_inputs(batch: int, side: int, device: torch.device, *, channels_last: bool) -> Inputs:
    images = torch.randn(batch, 3, side, side, device=device)
    if channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, NUM_CLASSES, (batch, side // 16, side // 16), device=device, dtype=torch.uint8)
    labels = labels.repeat_interleave(16, 1).repeat_interleave(16, 2)
    labels[:, :16] = IGNORE
    return Inputs(images, labels, ())


def time_step(
    config: Config, side: int, device: torch.device, peak: float, names: tuple[str, str, str]
) -> Step:
    """Time the product's own step."""
    network, backbone, variant = names
    torch.manual_seed(0)
    state = new_state(EncNet.from_config(config.model, NUM_CLASSES), config, device=str(device))
    plan = plan_of(config, device)
    batch = config.train.global_batch_size
    inputs = random_inputs(batch, side, device, channels_last=config.train.channels_last)
    state.network.train()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with plan.kernels.chosen(one_size=True):
        step_s = seconds(device, partial(train_step, state, inputs, config.loss, plan))
    memory = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
    flops = count_flops(config, side)
    del state, inputs
    if device.type == "cuda":
        torch.cuda.empty_cache()
    tflops = flops * batch / step_s / 1e12
    row = Step(
        network,
        backbone,
        side,
        variant,
        1000 * step_s,
        batch / step_s,
        tflops,
        tflops / peak,
        memory / 2**20,
    )
    print(describe(row), flush=True)
    return row


def count_flops(config: Config, side: int) -> float:
    """Operations of one image, forwards and backwards, without storage."""
    with torch.device("meta"):
        model = EncNet.from_config(config.model, NUM_CLASSES).train()
    with FakeTensorMode(allow_non_fake_inputs=True):
        model.to_empty(device="cpu")
        with FlopCounterMode(display=False) as counter:
            output = model(torch.empty(2, 3, side, side))
            sum(part.sum() for part in output if part is not None).backward()
    return counter.get_total_flops() / 2


def steps(device: torch.device, arguments: argparse.Namespace, peak: float) -> dict[str, Any]:
    rows: list[Step] = []
    for backbone in arguments.backbones:
        for side in arguments.sides:
            for network, values in NETWORKS.items():
                config = recipe(arguments, {"model.backbone": backbone, **values})
                rows.append(time_step(config, side, device, peak, (network, backbone, "defaults")))
    side = arguments.sides[0]
    for backbone in arguments.backbones:
        for variant, values in VARIANTS.items():
            if variant == "defaults" or (backbone != arguments.backbones[-1] and variant != "plain"):
                continue
            config = recipe(arguments, {"model.backbone": backbone, **values})
            rows.append(time_step(config, side, device, peak, ("EncNet", backbone, variant)))
    encoding = [encoding_cost(device, arguments, k) for k in (32, 64)]
    return {
        "rows": [asdict(row) for row in rows],
        "encoding": encoding,
        "deeplabv3": deeplab(device, arguments),
    }


def encoding_cost(device: torch.device, arguments: argparse.Namespace, num_codewords: int) -> dict[str, Any]:
    """The encoding layer, forwards and backwards, on bfloat16 features of 60 x 60 x 512."""
    side = arguments.sides[0] // 8
    features = torch.randn(arguments.batch, 512, side, side, device=device, dtype=torch.bfloat16)
    features = features.contiguous(memory_format=torch.channels_last).requires_grad_()
    layer = Encoding(512, num_codewords).to(device)

    def work() -> None:
        layer(features).sum().backward()

    found: dict[str, Any] = {"num_codewords": num_codewords}
    for tf32 in (False, True):
        with Kernels(device, tf32=tf32).chosen(one_size=True):
            found["tf32_ms" if tf32 else "ms"] = 1000 * seconds(device, work)
    print(json.dumps(found), flush=True)
    return found


def deeplab(device: torch.device, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """torchvision's DeepLabv3 at stride 8 with its auxiliary head, trained by the same means."""
    from torchvision.models.segmentation import deeplabv3_resnet50, deeplabv3_resnet101

    rows = []
    side = arguments.sides[0]
    for backbone, make in {"resnet50": deeplabv3_resnet50, "resnet101": deeplabv3_resnet101}.items():
        if backbone not in arguments.backbones:
            continue
        model = make(weights=None, weights_backbone=None, num_classes=NUM_CLASSES, aux_loss=True)
        model = model.to(device, memory_format=torch.channels_last).train()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, fused=device.type == "cuda")
        inputs = random_inputs(arguments.batch, side, device, channels_last=True)
        kernels = Kernels(device, bf16=True, channels_last=True, tf32=True, benchmark=True)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        work = bare_step(model, optimizer, inputs, kernels)
        with kernels.chosen(one_size=True):
            step_s = seconds(device, work)
        memory = torch.cuda.max_memory_allocated(device) / 2**20 if device.type == "cuda" else 0
        rows.append(
            {
                "backbone": backbone,
                "side": side,
                "milliseconds": 1000 * step_s,
                "images_per_s": arguments.batch / step_s,
                "memory_mib": memory,
            }
        )
        print("DeepLabv3 " + json.dumps(rows[-1]), flush=True)
        del model, optimizer, work
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return rows


def bare_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, inputs: Inputs, kernels: Kernels
) -> Callable[[], None]:
    def work() -> None:
        labels = inputs.labels.long()
        with kernels.autocast():
            output = model(inputs.images)
        loss = F.cross_entropy(output["out"].float(), labels, ignore_index=IGNORE)
        loss = loss + 0.4 * F.cross_entropy(output["aux"].float(), labels, ignore_index=IGNORE)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return work


def compiled(device: torch.device, arguments: argparse.Namespace, peak: float) -> list[dict[str, Any]]:
    """The step under torch.compile; `first_s` is the first step, which compiles."""
    rows = []
    for network, values in NETWORKS.items():
        backbone = arguments.backbones[-1]
        config = recipe(arguments, {"model.backbone": backbone, "train.compile": True, **values})
        started = time.monotonic()
        row = time_step(config, arguments.sides[0], device, peak, (network, backbone, "compiled"))
        rows.append({**asdict(row), "whole_measurement_s": time.monotonic() - started})
        torch.compiler.reset()
    return rows


# --- is it right ---


def checks(device: torch.device, arguments: argparse.Namespace) -> dict[str, Any]:
    """The GPU computes what the CPU computes, gives the same bits if asked, and is not waited for."""
    found = {
        "encoding_error": encoding_errors(device),
        "gradient_error": gradient_errors(device, arguments),
        "same_bits": {
            "deterministic": same_bits(device, arguments, deterministic=True),
            "default": same_bits(device, arguments, deterministic=False),
        },
    }
    if device.type == "cuda":
        found["steps_without_read_back"] = steps_without_read_back(device, arguments)
    print(json.dumps(found), flush=True)
    return found


def encoding_errors(device: torch.device) -> dict[str, float]:
    """Relative error of the encoding and its gradients against float64, by the format of products."""
    features = torch.randn(2, 900, 64, device=device)
    codewords, smoothing = torch.randn(16, 64, device=device) / 8, torch.rand(16, device=device)
    grad = torch.randn(2, 16, 64, device=device)

    def run(function: Callable[..., Tensor], dtype: torch.dtype) -> list[Tensor]:
        leaves = [value.to(dtype).requires_grad_() for value in (features, codewords, smoothing)]
        output = function(*leaves)
        return [output, *torch.autograd.grad(output, leaves, grad.to(dtype))]

    truth = run(encode_definition, torch.float64)
    errors = {}
    for name, tf32 in {"highest": False, "TF32": True}.items():
        with Kernels(device, tf32=tf32).chosen(one_size=True):
            parts = run(encode, torch.float32)
        errors[name] = max(
            ((part.double() - true).norm() / true.norm()).item()
            for part, true in zip(parts, truth, strict=True)
        )
    return errors


def small(arguments: argparse.Namespace, values: Mapping[str, Any]) -> Config:
    return recipe(
        arguments,
        {
            "model.backbone": "resnet18",
            "model.channels": 64,
            "model.dropout": 0.0,
            "augment.crop": 96,
            "train.global_batch_size": 4,
            "train.steps_per_epoch": 4,
            "optim.lr": 1e-3,
            "data.threads": 2,
            "data.processes": 0,
            **values,
        },
    )


def gradient_errors(device: torch.device, arguments: argparse.Namespace) -> dict[str, float]:
    """Relative error of a whole network's gradient against float64 on the CPU, for one batch of the store."""
    batch = next(build(small(arguments, {}), device="cpu").loaders.train.batches(0))
    (inputs,) = feed([batch], torch.device("cpu"))
    formats: dict[str, tuple[str, dict[str, Any]]] = {
        "float64": ("cpu", {}),
        "cpu": ("cpu", {}),
        "highest": (str(device), {"train.matmul_precision": "highest"}),
        "TF32": (str(device), {"train.matmul_precision": "high"}),
        "bf16": (str(device), {"train.precision": "bf16"}),
        "bf16, cpu": ("cpu", {"train.precision": "bf16"}),
    }
    found = {}
    for name, (place, values) in formats.items():
        experiment = build(small(arguments, {"train.precision": "fp32", **values}), device=place)
        model = experiment.state.model.train()
        dtype = torch.float64 if name == "float64" else torch.float32
        model.to(dtype)
        kernels = experiment.plan.kernels
        with kernels.chosen(one_size=True):
            with kernels.autocast():
                output = model(inputs.images.to(place, dtype))
            terms = loss_sums(output, inputs.labels.to(place), loss=experiment.loss)
            divisors = torch.stack([term.divisor for term in terms.values()]).double()
            weighted_loss(terms, divisors, experiment.loss).backward()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        found[name] = torch.cat([gradient.detach().cpu().double().flatten() for gradient in gradients])
    truth = found.pop("float64")
    return {name: ((value - truth).norm() / truth.norm()).item() for name, value in found.items()}


def same_bits(device: torch.device, arguments: argparse.Namespace, *, deterministic: bool) -> bool:
    """Whether two trainings of 4 steps end with the same bits."""
    ends = []
    for _ in range(2):
        config = small(arguments, {"train.deterministic": deterministic, "model.preset": "reference"})
        experiment = build(config, device=str(device))
        for _ in fit(experiment.state, experiment.loaders, experiment.loss, experiment.plan):
            pass
        ends.append([parameter.detach().cpu() for parameter in experiment.state.model.parameters()])
    return all(torch.equal(one, other) for one, other in zip(*ends, strict=True))


def steps_without_read_back(device: torch.device, arguments: argparse.Namespace) -> int:
    """Train under CUDA's debug mode, which raises at any operation that waits for the GPU."""
    config = small(arguments, {})
    experiment = build(config, device=str(device))
    batches = experiment.loaders.train.batches(0)
    inputs = feed(batches, device, channels_last=True)
    experiment.state.network.train()
    with refuse_waits():
        done = sum(
            train_step(experiment.state, one, experiment.loss, experiment.plan) is not None
            for one in islice(inputs, 8)
        )
    batches.close()
    return done


@contextmanager
def refuse_waits() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


# --- the real loader, and a real training ---


def loader(device: torch.device, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Train from the store for some steps: images/s, and the share of the time that waits for data.

    By processes, and by threads, which hold up the launch of kernels (the lock of Python).
    """
    rows = []
    for backbone, processes in product(arguments.backbones, sorted({arguments.processes, 0})):
        values = {"train.epochs": 2, "train.steps_per_epoch": 60, "data.processes": processes}
        config = recipe(arguments, {"model.backbone": backbone, **values})
        experiment = build(config, device=str(device))
        reports = fit(experiment.state, experiment.loaders, experiment.loss, experiment.plan)
        for report in reports:
            last = report
        rows.append(
            {
                "backbone": backbone,
                "processes": processes,
                "images_per_s": last.metrics["throughput/images_per_s"],
                "waiting_share": last.metrics.get("time/data", 0.0) / last.metrics["time/train"],
                "validation_s": last.metrics["time/validation"],
            }
        )
        print("loader " + json.dumps(rows[-1]), flush=True)
    return rows


# --- several trainings on one card, and one that is killed ---


def small_recipe(arguments: argparse.Namespace, values: Mapping[str, Any]) -> Config:
    """The recipe `camvid` of before, whose small network leaves most of a card idle."""
    recipe = load_config("benchmarks/camvid_sgd.yaml")
    return with_values(recipe, {"data.store": arguments.store, "scaling.gpus_per_worker": 1, **values})


def memory(device: torch.device, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """The estimate of a step's memory beside what PyTorch's allocator held, and what the process held."""
    import pynvml

    pynvml.nvmlInit()
    gpu = pynvml.nvmlDeviceGetHandleByIndex(0)
    used_before = pynvml.nvmlDeviceGetMemoryInfo(gpu).used - torch.cuda.memory_reserved(device)
    big = {"model.backbone": "resnet50", "model.output_stride": 8, "model.channels": 512}
    cases: list[dict[str, Any]] = [
        {},
        {"augment.crop": 360, "train.global_batch_size": 16},
        {**big, "augment.crop": 360, "train.global_batch_size": 16},
        {**big, "augment.crop": 360, "train.global_batch_size": 16, "train.precision": "fp32"},
        {**big, "augment.crop": 360, "train.global_batch_size": 4, "model.num_codewords": 128},
    ]
    rows = []
    for values in cases:
        config = small_recipe(arguments, {**values, "train.epochs": 1, "train.steps_per_epoch": 12})
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        experiment = build(config, device=str(device))
        *_, _ = fit(experiment.state, experiment.loaders, experiment.loss, experiment.plan)
        rows.append(
            {
                "values": values,
                "estimate_mib": training_gib(config, Store(arguments.store)) * 1024,
                "allocated_mib": torch.cuda.max_memory_allocated(device) / 2**20,
                "reserved_mib": torch.cuda.max_memory_reserved(device) / 2**20,
                "card_without_allocator_mib": (
                    pynvml.nvmlDeviceGetMemoryInfo(gpu).used - torch.cuda.memory_reserved(device)
                )
                / 2**20,
                "the_same_before_mib": used_before / 2**20,
            }
        )
        del experiment
        print("memory " + json.dumps(rows[-1]), flush=True)
    return rows


def shares(device: torch.device, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Trainings of the small network side by side on the card, each in its part of the memory."""
    rows = []
    for number in (1, 2, 4, 8):
        with ProcessPoolExecutor(number, mp_context=get_context("spawn")) as pool:
            works = [pool.submit(train_in_part, arguments, 1 / number) for _ in range(number)]
            rates = [work.result() for work in works]
        rows.append({"at_once": number, "images_per_s": sum(rates)})
        print("shares " + json.dumps(rows[-1]), flush=True)
    return rows


def train_in_part(arguments: argparse.Namespace, part: float) -> float:
    """Images/s of the second of three epochs, in a process of its own."""
    values: dict[str, Any] = {
        "train.epochs": 3,
        "train.steps_per_epoch": 60,
        "scaling.gpus_per_worker": part,
        "data.processes": 2,
    }
    experiment = build(small_recipe(arguments, values), device="cuda:0")
    reports = list(fit(experiment.state, experiment.loaders, experiment.loss, experiment.plan))
    return float(reports[1].metrics["throughput/images_per_s"])


def resumed(device: torch.device, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """A training that is killed inside an epoch and goes on, against one that was left alone: same bits?"""
    rows = []
    for deterministic in (True, False):
        values = {"train.epochs": 2, "train.steps_per_epoch": 30, "train.deterministic": deterministic}
        values["train.checkpoint_every.steps"] = 10
        with tempfile.TemporaryDirectory() as folder:
            weights = []
            for name, kills in (("alone", ()), ("killed", (17, 45))):
                where = Path(folder) / name
                for kill_at in (*kills, None):
                    process = get_context("spawn").Process(
                        target=train_in_folder, args=(arguments, values, where, kill_at)
                    )
                    process.start()
                    process.join()
                    assert process.exitcode == (-9 if kill_at else 0), process.exitcode
                weights.append(load_file(find_best(where) / MODEL_FILE))
                text = (where / REPORTS_FILE).read_text().splitlines()
                weights[-1]["mIoU"] = torch.tensor([json.loads(line)["metrics"]["mIoU"] for line in text])
            alone, killed = weights
            largest = max(float((alone[k].double() - killed[k].double()).abs().max()) for k in alone)
        same = all(torch.equal(alone[name], killed[name]) for name in alone)
        rows.append({"deterministic": deterministic, "same_bits": same, "largest_difference": largest})
        print("resume " + json.dumps(rows[-1]), flush=True)
    return rows


def train_in_folder(
    arguments: argparse.Namespace, values: Mapping[str, Any], folder: Path, kill_at: int | None
) -> None:
    """Train, or go on; killed when it reaches step `kill_at`."""
    experiment = build(small_recipe(arguments, values), device=arguments.device + ":0")

    def killed() -> bool:
        if experiment.state.step == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return False

    folder.mkdir(exist_ok=True)
    training = RankTraining(experiment, folder, "mIoU", notice=killed)
    training.begin()
    for _ in training.reports():
        pass


def describe(row: Step) -> str:
    return (
        f"| {row.network} | {row.backbone} | {row.side} | {row.variant} | {row.milliseconds:.1f} ms "
        f"| {row.images_per_s:.0f} images/s | {row.tflops:.1f} TFLOP/s | {100 * row.share_of_peak:.1f} % "
        f"| {row.memory_mib:.0f} MiB |"
    )


if __name__ == "__main__":
    main()
