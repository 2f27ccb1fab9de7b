"""Estimates made before anything runs: a worker's memory in training, and the disk space of a sweep."""

import math
import weakref
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from encsearch.config import AugmentConfig, Config, SearchConfig, named_parts
from encsearch.data.loading import Inputs
from encsearch.data.store import Store
from encsearch.model.encnet import EncNet, without_storage
from encsearch.parts import code_from
from encsearch.train.kernels import Kernels, has_bf16
from encsearch.train.loss import own_losses
from encsearch.train.state import TrainState, new_average, new_optimizer
from encsearch.train.step import Plan, train_step

BYTES_PER_PARAMETER = 4  # float32, as are the gradients and the momentum
# A trial's checkpoint while the next one is written, and one in flight from a worker to the driver's folder.
CHECKPOINTS_A_TRIAL = 3
CHECKPOINTS_A_FINALIST = 2  # the best and the newest
ARTIFACTS_A_TRAINING = 2**20  # reports, tables, pictures


def training_gib(config: Config, store: Store) -> float:
    """Peak memory of one worker's training step, GiB: weights, gradients, momentum, activations.

    Two steps (momentum exists from the second on) run on tensors without storage, and the bytes they would
    allocate and free are added up, for the worker's part of the batch and the crop, or the largest image.

    Within 0.1 % of the CPU allocator's peak (torch.profiler, torch 2.15) for `tiny` with K = 4 and 64 and for
    a ResNet-18 on crops of 240 px in fp32 and bf16, and 1.2 % below it for timm's ConvNeXt-T. It counts
    only tensors: in those cases the process grew by 1.7 to 3.6 times as much, by 56 MiB more at least, since
    libraries, work space of the kernels and fragments come on top. It was not measured on CUDA, where cuDNN's
    work space comes on top.
    """
    with code_from(config.code):
        try:
            return _training_gib(config, store, is_fake=True)
        except Exception:
            if not named_parts(config):
                raise
            # An own part has read values back, which fake tensors do not have; so two steps are done for it.
            return _training_gib(config, store, is_fake=False)


def _training_gib(config: Config, store: Store, *, is_fake: bool) -> float:
    num_classes = len(store.info.classes)
    size = _largest_image(config.augment, store, config.data.train_split)
    # Built outside FakeTensorMode: timm networks read values back, which fake tensors do not have.
    with without_storage(config.model):
        model = EncNet.from_config(config.model.model_copy(update={"weights": None}), num_classes)
    average = new_average(model) if config.train.ema else None
    allocations = _Allocations(is_fake=is_fake)
    with FakeTensorMode(allow_non_fake_inputs=True) if is_fake else nullcontext(), allocations:
        if is_fake:
            model.to_empty(device="cpu")
            if average is not None:
                average.to_empty(device="cpu")
        else:
            allocations.add(*model.state_dict().values(), *(average.state_dict().values() if average else ()))
        state = TrainState(
            model=model,
            network=model.train(),
            optimizer=new_optimizer(model, config.optim),
            average=average,
        )
        for _ in range(2):
            train_step(state, _inputs(config, size), config.loss, _plan(config, num_classes))
        weights = sum(parameter.numel() for parameter in model.parameters()) * BYTES_PER_PARAMETER
    # DistributedDataParallel keeps the gradients a second time, in the buckets that it sends.
    buckets = weights if config.scaling.num_workers > 1 else 0
    return (allocations.peak + buckets) / 2**30


def sweep_bytes(search: SearchConfig, num_parameters: int, checkpoint_bytes: int, trials_at_once: int) -> int:
    """The most disk space that a sweep of networks of `num_parameters` needs in its folder, in bytes.

    Checkpoints, of `checkpoint_bytes` each, of the running and the paused trials, artifacts of all, and for
    each finalist and baseline a bundle, the best checkpoint and the newest.
    """
    trainings = search.confirm.num_trainings
    trial = CHECKPOINTS_A_TRIAL * checkpoint_bytes
    finalist = BYTES_PER_PARAMETER * num_parameters + CHECKPOINTS_A_FINALIST * checkpoint_bytes
    artifacts = ARTIFACTS_A_TRAINING * (search.budget.trials + trainings)
    paused = 0.0
    if search.scheduler == "asha":
        paused = min(search.budget.trials * checkpoint_bytes, search.disk_gib * 2**30)
    running = min(trials_at_once, search.budget.trials) * trial
    return running + math.ceil(paused) + trainings * finalist + artifacts


class _Allocations(TorchDispatchMode):
    """Counts the bytes of the storages that are created under it and still alive."""

    def __init__(self, *, is_fake: bool) -> None:
        super().__init__()
        self._is_fake = is_fake
        self.peak = 0
        self._now = 0
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if self._is_fake and func is torch.ops.aten._local_scalar_dense.default:
            return True  # fake tensors have no values: the step asks whether its gradient is finite
        result = func(*args, **(kwargs or {}))
        self.add(*(value for value in tree_leaves(result) if isinstance(value, Tensor)))
        return result

    def add(self, *tensors: Tensor) -> None:
        for tensor in tensors:
            self._count(tensor.untyped_storage())

    def _count(self, storage: torch.UntypedStorage) -> None:
        """Views and in-place results share a known storage; once that is freed, its key may be reused."""
        key = storage._cdata
        if key in self._sizes:
            return
        self._sizes[key] = storage.nbytes()
        self._now += storage.nbytes()
        self.peak = max(self.peak, self._now)
        weakref.finalize(storage, self._free, key)

    def _free(self, key: int) -> None:
        self._now -= self._sizes.pop(key)


def _inputs(config: Config, size: tuple[int, int]) -> Inputs:
    part = config.train.global_batch_size // config.scaling.num_workers
    labels = torch.zeros(part, *size, dtype=torch.uint8)
    return Inputs(torch.zeros(part, 3, *size), labels, ids=())


def _plan(config: Config, num_classes: int) -> Plan:
    weighted = config.loss.class_weights != "none"
    return Plan(
        epochs=1,
        steps_per_epoch=1,
        global_batch_size=config.train.global_batch_size // config.scaling.num_workers,  # one worker's part
        seed=config.train.seed,
        optim=config.optim,
        micro_batch_size=config.micro_batch_size,
        ema=config.train.ema,
        classes=("",) * num_classes,
        groups={},
        kernels=Kernels(torch.device("cpu"), bf16=_uses_bf16(config)),
        class_weights=torch.ones(num_classes) if weighted else None,
        own_losses=own_losses(config.loss),
    )


def _uses_bf16(config: Config) -> bool:
    """As this machine's device would; float32, which needs more, for a GPU that is elsewhere."""
    if config.train.precision != "auto":
        return config.train.precision == "bf16"
    if not config.scaling.gpus_per_worker:
        return has_bf16(torch.device("cpu"))
    return torch.cuda.is_available() and has_bf16(torch.device("cuda"))


def _largest_image(augment: AugmentConfig, store: Store, split: str) -> tuple[int, int]:
    """Height and width of the training image with the most pixels."""
    sizes = [augment.image_size(*size) for size, _ in store.stats(split).sizes]
    return max(sizes, key=lambda size: size[0] * size[1])
