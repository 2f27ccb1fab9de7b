"""A step, an evaluation, a prediction and their memory beside the libraries that people would use instead.

    python -m benchmarks.step                # installs the peers in .peers, 5 GB, by uv
    python -m benchmarks.step --families EncNet --backbone resnet101

Each family is one architecture on one backbone at stride 8: encsearch with its default formats, and a peer as
it comes and in the number format and memory order that encsearch chose (`same formats`). Each contender is a
process of one thread; they take turns, one round each, and the figure is the median of the rounds in CPU
seconds. A step is forward, the losses, backward and SGD on one batch in memory; an evaluation is forward,
argmax and confusion matrix of a batch; a prediction goes from one uint8 image to its label map. Memory is the
peak of the process over what it held before it built the network. Prints a Markdown table and writes JSON.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

NUM_CLASSES, IGNORE = 21, 255
BATCH, CROP, IMAGE = 4, 128, 256  # images a step; px
WORK = ("step", "evaluate", "predict")
WARM_UP, ROUNDS = 2, 7
VENV = Path(".peers")
PEERS = ("segmentation-models-pytorch", "onedl-mmsegmentation", "onedl-mmcv", "onedl-mmengine", "psutil")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

# Family -> the recipe's model: values, and the peer that has the same architecture.
FAMILIES: dict[str, tuple[dict[str, Any], str]] = {
    "EncNet": ({"preset": "mmseg", "channels": 512, "num_codewords": 32}, "mmsegmentation"),
    "FCN": ({"preset": "mmseg", "context": "none", "channels": 512}, "torchvision fcn"),
    "DeepLabv3": (
        {"preset": "mmseg", "context": "none", "head": "deeplabv3", "channels": 256},
        "torchvision deeplabv3",
    ),
    "DeepLabv3 without auxiliary head": (
        {"preset": "mmseg", "context": "none", "head": "deeplabv3", "channels": 256, "auxiliary": "none"},
        "smp",
    ),
}


class Contender(NamedTuple):
    """What is timed; `parameters` shows that two networks are the same."""

    step: Callable[[], object]
    evaluate: Callable[[], object]
    predict: Callable[[], object]
    parameters: int


def main() -> None:
    arguments = parse()
    if arguments.serve:
        serve(*arguments.serve, arguments.backbone)
        return
    peers = install(arguments.venv)
    rows = []
    for family in arguments.families:
        rows += compare(family, peers, arguments)
        arguments.out.write_text(json.dumps({"torch": torch.__version__, "rows": rows}, indent=1) + "\n")
    print(table(rows))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    parser.add_argument("--backbone", default="resnet50", choices=("resnet50", "resnet101"))
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--venv", type=Path, default=VENV)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/step.json"))
    parser.add_argument("--serve", nargs=3, help=argparse.SUPPRESS)  # family, contender, formats
    return parser.parse_args()


def install(venv: Path) -> str:
    """The Python of the peers' own environment, with this one's torch; made if it is not there."""
    python = venv / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
        torch_version = torch.__version__.partition("+")[0]
        wanted = [f"torch=={torch_version}", "torchvision", *PEERS]
        subprocess.run([python, "-m", "pip", "install", "--quiet", "uv"], check=True)
        subprocess.run([venv / "bin" / "uv", "pip", "install", "--python", python, *wanted], check=True)
    return str(python)


# --- the turns, in the first process ---


def compare(family: str, peers: str, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    _, peer = FAMILIES[family]
    contenders = [("encsearch", "defaults"), (peer, "as it comes"), (peer, "same formats")]
    processes = [
        start(sys.executable if name == "encsearch" else peers, family, name, formats, arguments.backbone)
        for name, formats in contenders
    ]
    times: dict[tuple[str, str, str], list[float]] = {}
    parameters = [ask(process, "parameters") for process in processes]
    for work in WORK:
        for turn in range(WARM_UP + arguments.rounds):
            for (name, formats), process in zip(contenders, processes, strict=True):
                cpu_s = ask(process, work)
                if turn >= WARM_UP:
                    times.setdefault((name, formats, work), []).append(cpu_s)
    rows = []
    for (name, formats), process, count in zip(contenders, processes, parameters, strict=True):
        row = {"family": family, "contender": name, "formats": formats, "parameters": count}
        row |= {work: times[name, formats, work] for work in WORK}
        row["memory_mib"] = ask(process, "memory")
        rows.append(row)
        print(json.dumps({k: median(v) if isinstance(v, list) else v for k, v in row.items()}), flush=True)
        process.kill()
    return rows


def start(python: str, *names: str) -> "subprocess.Popen[str]":
    *served, backbone = names
    command = [python, "-m", "benchmarks.step", "--backbone", backbone, "--serve", *served]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )


def ask(process: "subprocess.Popen[str]", work: str) -> float:
    assert process.stdin
    assert process.stdout
    process.stdin.write(f"{work}\n")
    process.stdin.flush()
    for line in process.stdout:
        if line.startswith("figure "):
            return float(line.split()[1])
    sys.exit("a contender ended; its message is above")


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| family | contender | formats | M parameters | step s | evaluation s | prediction s | MiB "
        "| encsearch is faster: step, evaluation, prediction |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        own = next(o for o in rows if (o["family"], o["contender"]) == (row["family"], "encsearch"))
        figures = [median(row[work]) for work in WORK]
        ratios = [f"{median(row[work]) / median(own[work]):.2f}x" for work in WORK]
        shown = "-" if row is own else ", ".join(ratios)
        lines.append(
            f"| {row['family']} | {row['contender']} | {row['formats']} | {row['parameters'] / 1e6:.2f} "
            f"| {' | '.join(f'{figure:.2f}' for figure in figures)} | {row['memory_mib']:.0f} | {shown} |"
        )
    return "\n".join(lines)


# --- one contender, in a process of its own ---


def serve(family: str, name: str, formats: str, backbone: str) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    values, _ = FAMILIES[family]
    build = partial_build(name, values, formats == "same formats", backbone)
    before_mib = rss_mib()
    contender = build()
    for line in sys.stdin:
        work = line.strip()
        if work == "parameters":
            figure = float(contender.parameters)
        elif work == "memory":
            figure = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before_mib
        else:
            started = time.process_time()
            getattr(contender, work)()
            figure = time.process_time() - started
        print(f"figure {figure}", flush=True)


def partial_build(
    name: str, values: Mapping[str, Any], same_formats: bool, backbone: str
) -> Callable[[], Contender]:
    """Import what the contender needs, so that it does not count as its memory."""
    if name == "encsearch":
        import benchmarks.gpu  # noqa: F401 - everything that `own` uses

        return lambda: own(values, backbone)
    if name == "mmsegmentation":
        from mmseg.utils import register_all_modules

        register_all_modules(init_default_scope=True)
        return lambda: mmsegmentation(backbone, same_formats)
    if name == "smp":
        import segmentation_models_pytorch as smp

        return lambda: bare(
            smp.DeepLabV3(
                backbone,
                encoder_weights=None,
                encoder_output_stride=8,
                decoder_channels=256,
                classes=NUM_CLASSES,
            ),
            same_formats,
        )
    import torchvision

    builder = getattr(torchvision.models.segmentation, f"{name.split()[1]}_{backbone}")
    options = {"weights": None, "weights_backbone": None, "num_classes": NUM_CLASSES, "aux_loss": True}
    return lambda: bare(builder(**options), same_formats)


def own(values: Mapping[str, Any], backbone: str) -> Contender:
    """encsearch's own step, evaluation and predictor, with its defaults."""
    from benchmarks.gpu import plan_of
    from encsearch.config import Config
    from encsearch.data.datasets import DatasetInfo
    from encsearch.data.loading import Batch, Inputs
    from encsearch.inference.bundle import Bundle
    from encsearch.inference.predictor import Predictor
    from encsearch.model.encnet import EncNet
    from encsearch.train.experiment import new_state
    from encsearch.train.loop import evaluate
    from encsearch.train.step import train_step

    # mmsegmentation's ResNet-50 has a deep stem.
    name = f"{backbone}c" if values.get("context") != "none" else backbone
    config = Config.model_validate(
        {
            "data": {"store": "none"},
            "model": {"backbone": name, "output_stride": 8, **values},
            "train": {"global_batch_size": BATCH, "steps_per_epoch": 1},
        }
    )
    plan = plan_of(config, torch.device("cpu"))
    state = new_state(EncNet.from_config(config.model, NUM_CLASSES), config)
    images, labels, pictures = batch()
    order = torch.channels_last if plan.kernels.channels_last else torch.contiguous_format
    inputs = Inputs(images.contiguous(memory_format=order), labels.to(torch.uint8), ids=())
    info = DatasetInfo("random", tuple(map(str, range(NUM_CLASSES))), ((0, 0, 0),) * NUM_CLASSES)
    bundle = Bundle(state.model, config, info, "", {})
    large = Batch(
        torch.from_numpy(pictures), torch.zeros(BATCH, IMAGE, IMAGE, dtype=torch.uint8), ("",) * BATCH
    )

    def step() -> None:
        state.model.train()
        train_step(state, inputs, config.loss, plan)

    def predict() -> None:
        state.model.eval()
        Predictor(bundle).predict(pictures[0])

    return Contender(
        step,
        lambda: evaluate(state.model, iter([large]), plan.kernels, num_classes=NUM_CLASSES),
        predict,
        count(state.model),
    )


def bare(model: nn.Module, same_formats: bool) -> Contender:
    """The loop of torchvision's segmentation reference around a network of torchvision or smp."""
    images, labels, pictures = batch()
    autocast, place = formats_of(model, same_formats)
    images = place(images)
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9, weight_decay=1e-4)

    def logits(given: Tensor) -> tuple[Tensor, Tensor | None]:
        with autocast():
            found = model(given)
        return (found["out"], found.get("aux")) if isinstance(found, dict) else (found, None)

    def step() -> None:
        model.train()
        main_logits, aux_logits = logits(images)
        loss = F.cross_entropy(main_logits.float(), labels, ignore_index=IGNORE)
        if aux_logits is not None:
            loss = loss + 0.4 * F.cross_entropy(aux_logits.float(), labels, ignore_index=IGNORE)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return Contender(step, *inference(model, lambda x: logits(place(x))[0], pictures), count(model))


def mmsegmentation(backbone: str, same_formats: bool) -> Contender:
    """EncoderDecoder with EncHead, as configs/_base_/models/encnet_r50-d8.py has it, BN not synchronised."""
    from mmengine.structures import PixelData
    from mmseg.registry import MODELS
    from mmseg.structures import SegDataSample

    norm = {"type": "BN", "requires_grad": True}
    ce = {"type": "CrossEntropyLoss", "use_sigmoid": False}
    model = MODELS.build(
        {
            "type": "EncoderDecoder",
            "backbone": {
                "type": "ResNetV1c",
                "depth": int(backbone.removeprefix("resnet")),
                "num_stages": 4,
                "out_indices": (0, 1, 2, 3),
                "dilations": (1, 1, 2, 4),
                "strides": (1, 2, 1, 1),
                "norm_cfg": norm,
                "norm_eval": False,
                "style": "pytorch",
                "contract_dilation": True,
            },
            "decode_head": {
                "type": "EncHead",
                "in_channels": [512, 1024, 2048],
                "in_index": (1, 2, 3),
                "channels": 512,
                "num_codes": 32,
                "use_se_loss": True,
                "add_lateral": False,
                "dropout_ratio": 0.1,
                "num_classes": NUM_CLASSES,
                "norm_cfg": norm,
                "align_corners": False,
                "loss_decode": {**ce, "loss_weight": 1.0},
                "loss_se_decode": {**ce, "use_sigmoid": True, "loss_weight": 0.2},
            },
            "auxiliary_head": {
                "type": "FCNHead",
                "in_channels": 1024,
                "in_index": 2,
                "channels": 256,
                "num_convs": 1,
                "concat_input": False,
                "dropout_ratio": 0.1,
                "num_classes": NUM_CLASSES,
                "norm_cfg": norm,
                "align_corners": False,
                "loss_decode": {**ce, "loss_weight": 0.4},
            },
            "train_cfg": {},
            "test_cfg": {"mode": "whole"},
        }
    )
    images, labels, pictures = batch()
    autocast, place = formats_of(model, same_formats)
    images = place(images)
    size = {"img_shape": (CROP, CROP), "ori_shape": (CROP, CROP), "pad_shape": (CROP, CROP)}
    samples = [
        SegDataSample(gt_sem_seg=PixelData(data=one[None]), metainfo={**size, "padding_size": [0] * 4})
        for one in labels
    ]
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9, weight_decay=1e-4)

    def step() -> None:
        model.train()
        with autocast():
            losses = model.loss(images, samples)
        loss, _ = model.parse_losses(losses)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    def logits(given: Tensor) -> Tensor:
        height, width = given.shape[-2:]
        shape = {"img_shape": (height, width), "ori_shape": (height, width), "padding_size": [0] * 4}
        with autocast():
            found: Tensor = model.encode_decode(place(given), [shape] * len(given))
        return found

    return Contender(step, *inference(model, logits, pictures), count(model))


def inference(
    model: nn.Module, logits: Callable[[Tensor], Tensor], pictures: np.ndarray
) -> tuple[Callable[[], object], Callable[[], object]]:
    """Evaluation by torchvision's reference (argmax, bincount), and prediction of one picture."""
    labels = torch.zeros(BATCH, IMAGE, IMAGE, dtype=torch.long)
    large = normalise(pictures)

    def evaluate() -> Tensor:
        model.eval()
        with torch.inference_mode():
            found = logits(large).argmax(1)
            return torch.bincount((labels * NUM_CLASSES + found).flatten(), minlength=NUM_CLASSES**2)

    def predict() -> np.ndarray:
        model.eval()
        with torch.inference_mode():
            return logits(normalise(pictures[:1])).argmax(1)[0].to(torch.uint8).numpy()

    return evaluate, predict


def formats_of(model: nn.Module, same_formats: bool) -> tuple[Callable[[], Any], Callable[[Tensor], Tensor]]:
    """Autocast and the order of images: bfloat16 and channels last, or PyTorch's own."""
    if not same_formats:
        return nullcontext, lambda images: images
    model.to(memory_format=torch.channels_last)
    return (
        lambda: torch.autocast("cpu", dtype=torch.bfloat16),
        lambda images: images.contiguous(memory_format=torch.channels_last),
    )


def batch() -> tuple[Tensor, Tensor, np.ndarray]:
    """Images (B, 3, H, W) and labels of a step, and uint8 pictures (B, H, W, 3); the same for everyone."""
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (BATCH, IMAGE, IMAGE, 3), dtype=np.uint8)
    labels = rng.integers(0, NUM_CLASSES, (BATCH, CROP // 16, CROP // 16)).repeat(16, 1).repeat(16, 2)
    return normalise(pictures[:, :CROP, :CROP]), torch.from_numpy(labels), pictures


def normalise(pictures: np.ndarray) -> Tensor:
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    return (torch.from_numpy(pictures.copy()).permute(0, 3, 1, 2).float().contiguous() / 255 - mean) / std


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def rss_mib() -> float:
    import psutil

    return float(psutil.Process().memory_info().rss) / 2**20


if __name__ == "__main__":
    main()
