"""Build what the training loop needs from a configuration."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
from torch import nn

from encsearch.config import Config, EarlyStop, LossConfig
from encsearch.data.datasets import SHOWN_IMAGES, DatasetInfo, SegmentationDataset, evenly_spaced
from encsearch.data.loading import Batch, TrainStream, validation_batches
from encsearch.data.store import Store
from encsearch.model.backbones import sync_batch_norms
from encsearch.model.backbones.timm import TimmBackbone
from encsearch.model.encnet import EncNet, has_own_parts
from encsearch.parts import MetricPart, PartName, code_from, is_part, make_part
from encsearch.train.gpu_memory import keep_to_part, telling_full_gpu
from encsearch.train.initial import read_initial
from encsearch.train.kernels import Kernels
from encsearch.train.loop import Loaders
from encsearch.train.loss import own_losses
from encsearch.train.preflight import resolve_class_weights
from encsearch.train.state import TrainState, new_average, new_optimizer, own_schedule
from encsearch.train.step import Plan


@dataclass(frozen=True)
class Experiment:
    """Everything that `fit` takes, and the description of the data set.

    `origin` says what was taken of `train.init_from`, "" without it.
    """

    state: TrainState
    loaders: Loaders
    loss: LossConfig
    plan: Plan
    info: DatasetInfo
    fingerprint: str
    early_stop: EarlyStop
    origin: str = ""


def build(config: Config, *, rank: int = 0, world_size: int = 1, device: str = "cpu") -> Experiment:
    """Build model, optimizer and loaders of one rank; with world_size > 1 the process group exists.

    Opens the store anew, once per training and process: the data may have been replaced meanwhile.
    Initial weights depend on `train.seed` and `train.init_from` alone, so they are the same on every rank.
    Raises UserError for what the store or the device does not have, TrainingError where a GPU's memory does
    not suffice.
    """
    with code_from(config.code):
        return _build(config, rank, world_size, device)


def _build(config: Config, rank: int, world_size: int, device: str) -> Experiment:
    keep_to_part(config.scaling, device)
    store = Store(config.data.store)
    train, val = store.split(config.data.train_split), store.split(config.data.val_split)
    torch.manual_seed(config.train.seed)
    model = EncNet.from_config(config.model, len(store.info.classes))
    origin = ""
    if config.train.init_from:
        initial = read_initial(config.train.init_from, model)
        model.load_state_dict(initial.tensors, strict=False)
        origin = initial.description
    with telling_full_gpu(torch.device(device)):
        state = new_state(model, config, world_size=world_size, device=device)
    batch_size = config.train.global_batch_size
    loaders = Loaders(
        train=TrainStream(
            train,
            config.augment,
            global_batch_size=batch_size,
            seed=config.train.seed,
            rank=rank,
            world_size=world_size,
            threads=config.data.threads,
            processes=config.data.processes,
        ),
        validation=partial(
            validation_batches,
            val,
            batch_size=config.train.val_batch_size,
            rank=rank,
            world_size=world_size,
            threads=config.data.threads,
        ),
        # Only rank 0 reports the shown predictions.
        shown=partial(_shown_batches, val) if rank == 0 else tuple,
    )
    class_weights = resolve_class_weights(config.loss, store, config.data.train_split)
    plan = Plan(
        epochs=config.train.epochs,
        steps_per_epoch=config.train.steps_per_epoch or -(-len(train) // batch_size),
        global_batch_size=batch_size,
        seed=config.train.seed,
        optim=config.optim,
        classes=store.info.classes,
        groups=store.info.groups,
        kernels=Kernels.of(config.train, torch.device(device)),
        one_size=config.augment.crop is not None,
        class_weights=None if class_weights is None else torch.tensor(class_weights, device=device),
        own_losses=own_losses(config.loss, device),
        own_schedule=own_schedule(config.optim),
        own_metric=own_metric(config),
        # Not asked for, the whole: one process may train what several workers would.
        micro_batch_size=config.micro_batch_size
        if config.train.micro_batch_size or config.scaling.min_workers
        else None,
        ema=config.train.ema,
        profile_steps=config.train.profile_steps if rank == 0 else 0,
        max_skipped_steps=config.train.max_skipped_steps,
        save_steps=config.train.checkpoint_every.steps,
        save_minutes=config.train.checkpoint_every.minutes,
        rank=rank,
        world_size=world_size,
    )
    return Experiment(
        state, loaders, config.loss, plan, store.info, store.fingerprint, config.train.early_stop, origin
    )


def new_state(model: EncNet, config: Config, *, world_size: int = 1, device: str = "cpu") -> TrainState:
    """A new training state for the model, with DistributedDataParallel around it if there are several ranks.

    Batch norm: SyncBatchNorm with several GPU ranks. On the CPU, which lacks it, and with `sync_bn: off` each
    rank normalises its own part of the batch, and the loop averages the running statistics.
    """
    kernels = Kernels.of(config.train, torch.device(device))
    model = model.to(device)
    if kernels.channels_last:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    network: nn.Module = model
    on_gpu = kernels.device.type == "cuda"
    if world_size > 1:
        if on_gpu and config.train.sync_bn == "auto":
            sync_batch_norms(model)
        network = nn.parallel.DistributedDataParallel(
            model,
            device_ids=[device] if on_gpu else None,
            broadcast_buffers=False,
            # Own networks and some of timm, such as HRNet, have weights that a forward pass may not use.
            find_unused_parameters=isinstance(model.backbone, TimmBackbone) or has_own_parts(config.model),
        )
    if config.train.compile:
        network = cast(nn.Module, torch.compile(network))
    optimizer = new_optimizer(model, config.optim, fused=on_gpu and config.train.fused_optimizer)
    average = new_average(model) if config.train.ema else None
    return TrainState(model=model, network=network, optimizer=optimizer, average=average)


def own_metric(config: Config) -> tuple[PartName, MetricPart] | None:
    """The name and the metric if `metric` is an own one."""
    name = config.metric
    if not is_part(name):
        return None
    metric: MetricPart = make_part("metric", name, config.eval.args.get(name, {}))
    return name, metric


def _shown_batches(dataset: SegmentationDataset) -> Iterator[Batch]:
    """The validation images whose predictions are shown during training, one per batch."""
    for sample in evenly_spaced(dataset, SHOWN_IMAGES):
        yield Batch.of([sample])
