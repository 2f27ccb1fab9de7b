"""Batches: the endless training stream and the single validation pass, both decoded by threads.

The decoders release the GIL, so threads suffice; worker processes cost more per sample and take up to a
minute to start.
"""

import hashlib
from collections import defaultdict, deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from encsearch.config import AugmentConfig
from encsearch.data.datasets import SegmentationDataset
from encsearch.data.transforms import eval_transform, train_transform
from encsearch.errors import UserError

T = TypeVar("T")
R = TypeVar("R")

_ORDER, _AUGMENTATION = 0, 1  # keep the random numbers of the two purposes apart
_MAX_WAITING_BATCHES = 4  # in validation; bounds the memory for a data set of many image sizes


@dataclass(frozen=True)
class Batch:
    """images (B, 3, H, W) float32 normalised, labels (B, H, W) int64 with 255 = ignore, B ids."""

    images: Tensor
    labels: Tensor
    ids: tuple[str, ...]


class TrainStream:
    """The training samples of one rank, in an order that depends only on the seed and the data set.

    The stream is an endless sequence of permutations of the data set. Each step takes the next
    `global_batch_size` places, each rank an equal slice. So the number of samples seen is the whole state: a
    training resumes from it exactly, on any number of ranks. The augmentation of a sample depends on
    (seed, pass, sample) alone.
    """

    def __init__(
        self,
        dataset: SegmentationDataset,
        augment: AugmentConfig,
        *,
        global_batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        threads: int = 2,
    ) -> None:
        assert global_batch_size % world_size == 0, (global_batch_size, world_size)
        assert 0 <= rank < world_size, (rank, world_size)
        self._dataset = dataset
        self._augment = augment
        self._global_batch_size = global_batch_size
        self._seed = seed
        self._rank = rank
        self._world_size = world_size
        self._threads = threads

    def batches(self, samples_seen: int) -> Generator[Batch, None, None]:
        """This rank's batches from place `samples_seen` of the stream on; close it to stop its threads.

        Raises UserError when the samples of a batch differ in size and there is no crop.
        """
        return _prefetch(self._load, self._steps(samples_seen), self._threads)

    def _steps(self, samples_seen: int) -> Iterator[list[tuple[int, int]]]:
        """The (pass, index) pairs of this rank's samples, one list per step."""
        size = self._global_batch_size // self._world_size
        epoch, order = -1, np.empty(0, dtype=np.int64)
        for start in count(samples_seen + self._rank * size, self._global_batch_size):
            step = []
            for place in range(start, start + size):
                if place // len(self._dataset) != epoch:
                    epoch = place // len(self._dataset)
                    order = self._order(epoch)
                step.append((epoch, int(order[place % len(self._dataset)])))
            yield step

    def _order(self, epoch: int) -> NDArray[np.int64]:
        digest = hashlib.sha256(self._dataset.fingerprint.encode()).digest()
        key = (_ORDER, self._seed, epoch, int.from_bytes(digest[:8], "little"))
        return np.random.default_rng(key).permutation(len(self._dataset))

    def _load(self, step: list[tuple[int, int]]) -> Batch:
        ids: list[str] = []
        images: list[Tensor] = []
        labels: list[Tensor] = []
        for epoch, index in step:
            sample = self._dataset[index]
            rng = np.random.default_rng((_AUGMENTATION, self._seed, epoch, index))
            image, label = train_transform(sample, self._augment, rng)
            if images and image.shape != images[0].shape:
                raise UserError(
                    f"training images differ in size: {ids[0]} is {_size(images[0])}, {sample.id} is "
                    f"{_size(image)}; set augment.crop, which makes them equal"
                )
            ids.append(sample.id)
            images.append(image)
            labels.append(label)
        return Batch(torch.stack(images), torch.stack(labels), tuple(ids))


def validation_batches(
    dataset: SegmentationDataset, *, batch_size: int, rank: int = 0, world_size: int = 1, threads: int = 2
) -> Generator[Batch, None, None]:
    """One pass over this rank's part of the samples; over all ranks each comes exactly once, without padding.

    The images of a batch have the same size, so batches may be smaller than `batch_size`, and ranks may have
    different numbers of them, or none.
    """
    part = range(rank * len(dataset) // world_size, (rank + 1) * len(dataset) // world_size)
    items = _prefetch(partial(_load_for_validation, dataset), part, threads, ahead=2 * batch_size)
    waiting: defaultdict[tuple[int, ...], list[_Item]] = defaultdict(list)
    try:
        for item in items:
            same_size = waiting[item.label.shape]
            same_size.append(item)
            if len(same_size) == batch_size:
                yield _to_batch(waiting.pop(item.label.shape))
            elif sum(map(len, waiting.values())) >= _MAX_WAITING_BATCHES * batch_size:
                fullest = max(waiting, key=lambda size: len(waiting[size]))
                yield _to_batch(waiting.pop(fullest))
        for rest in waiting.values():
            yield _to_batch(rest)
    finally:
        items.close()


@dataclass(frozen=True)
class _Item:
    id: str
    image: Tensor
    label: Tensor


def _load_for_validation(dataset: SegmentationDataset, index: int) -> _Item:
    sample = dataset[index]
    return _Item(sample.id, *eval_transform(sample))


def _to_batch(items: list[_Item]) -> Batch:
    images = torch.stack([item.image for item in items])
    return Batch(images, torch.stack([item.label for item in items]), tuple(item.id for item in items))


def _prefetch(
    load: Callable[[T], R], jobs: Iterable[T], threads: int, ahead: int | None = None
) -> Generator[R, None, None]:
    """Yield load(job) in the order of the jobs; threads work up to `ahead` jobs in advance.

    An error in `load` is raised here when its job is due. Closing the generator cancels the jobs that have
    not begun and waits for the others.
    """
    pending: deque[Future[R]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="loading") as pool:
        try:
            for job in jobs:
                pending.append(pool.submit(load, job))
                if len(pending) > (ahead or threads + 1):
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def _size(image: Tensor) -> str:
    height, width = image.shape[-2:]
    return f"{width}x{height}"
