"""Batches: the endless training stream and the single validation pass, and their way to the device.

Threads decode: most of the decoders' work releases Python's lock. A GPU that takes hundreds of images a
second is another matter, since what the threads do under the lock holds up the launch of kernels; then
processes decode (`data.processes`), which take seconds to start.
"""

import hashlib
import multiprocessing
import os
from collections import defaultdict, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from itertools import count
from threading import Thread
from typing import Generic, Self, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

from encsearch.config import AugmentConfig
from encsearch.data.datasets import Sample, SegmentationDataset
from encsearch.data.transforms import OwnTransforms, augment_sample, normalise
from encsearch.errors import UserError

T = TypeVar("T")
R = TypeVar("R")

_ORDER, _AUGMENTATION = 0, 1  # keep the random numbers of the two purposes apart
_MAX_WAITING_BATCHES = 4  # in validation; bounds the memory for a data set of many image sizes


@dataclass(frozen=True)
class Batch:
    """As decoded: images (B, H, W, 3) uint8 RGB, labels (B, H, W) uint8 with 255 = ignore, B ids.

    `colours` are the images' matrices (B, 3, 4) for `normalise`; None if they are to stay as they are.
    """

    images: Tensor
    labels: Tensor
    ids: tuple[str, ...]
    colours: Tensor | None = None

    @classmethod
    def of(cls, samples: Sequence[Sample], colours: Sequence[NDArray[np.float32]] = ()) -> Self:
        """Stack samples of one size."""
        return cls(
            images=torch.from_numpy(np.stack([sample.image for sample in samples])),
            labels=torch.from_numpy(np.stack([sample.mask for sample in samples])),
            ids=tuple(sample.id for sample in samples),
            colours=torch.from_numpy(np.stack(colours)) if colours else None,
        )


@dataclass(frozen=True)
class Inputs:
    """A batch where the model is: images (B, 3, H, W) float32 normalised, labels (B, H, W) uint8, B ids."""

    images: Tensor
    labels: Tensor
    ids: tuple[str, ...]


def feed(
    batches: Iterable[Batch], device: torch.device, *, channels_last: bool = False
) -> Generator[Inputs, None, None]:
    """Take batches to the device and normalise them there.

    On a GPU that is done on a stream of its own, from pinned memory, while the model still computes on the
    batches before: nothing waits for it but the model.
    """
    on_gpu = device.type == "cuda"
    stream = _copying_stream(device) if on_gpu else None
    order = torch.channels_last if channels_last else torch.contiguous_format
    for batch in batches:
        with torch.cuda.stream(stream) if on_gpu else nullcontext():
            images, labels, colours = (
                None if tensor is None else _send(tensor, device)
                for tensor in (batch.images, batch.labels, batch.colours)
            )
            assert images is not None
            assert labels is not None
            images = normalise(images, colours).contiguous(memory_format=order)
        if stream:
            model_stream = torch.cuda.current_stream(device)
            model_stream.wait_stream(stream)
            for tensor in (images, labels):
                tensor.record_stream(model_stream)  # else its memory is given away while the model reads it
        yield Inputs(images, labels, batch.ids)


class TrainStream:
    """The training samples of one rank, in an order that depends only on the seed and the data set.

    The stream is an endless sequence of permutations of the data set. Each step takes the next
    `global_batch_size` places, each rank a slice, equal where the ranks divide it. So the number of samples
    seen is the whole state: a training resumes from it exactly, on any number of ranks. The augmentation of a
    sample depends on (seed, pass, sample) alone.
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
        processes: int = 0,
    ) -> None:
        """With `processes` these decode, and `threads` does not matter."""
        assert global_batch_size >= world_size, (global_batch_size, world_size)
        assert 0 <= rank < world_size, (rank, world_size)
        self._dataset = dataset
        self._augment, self._own = augment, OwnTransforms.of(augment)
        self._global_batch_size = global_batch_size
        self._seed = seed
        self._rank = rank
        self._world_size = world_size
        self._threads, self._processes = threads, processes

    def batches(self, samples_seen: int) -> Generator[Batch, None, None]:
        """This rank's batches from place `samples_seen` of the stream on; close it to stop what decodes.

        Raises UserError when the samples of a batch differ in size and there is no crop.
        """
        steps = self._steps(samples_seen)
        if self._processes:
            return _load_by_processes(self._load, steps, self._processes)
        return _prefetch(self._load, steps, self._threads)

    def _steps(self, samples_seen: int) -> Iterator[list[tuple[int, int]]]:
        """The (pass, index) pairs of this rank's samples, one list per step."""
        first, last = (
            rank * self._global_batch_size // self._world_size for rank in (self._rank, self._rank + 1)
        )
        epoch, order = -1, np.empty(0, dtype=np.int64)
        for start in count(samples_seen, self._global_batch_size):
            step = []
            for place in range(start + first, start + last):
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
        samples: list[Sample] = []
        colours: list[NDArray[np.float32]] = []
        for epoch, index in step:
            rng = np.random.default_rng((_AUGMENTATION, self._seed, epoch, index))
            sample, matrix = augment_sample(self._dataset[index], self._augment, rng)
            sample = self._own(sample, rng)
            if samples and sample.mask.shape != samples[0].mask.shape:
                raise UserError(
                    f"training images differ in size: {samples[0].id} is {_size(samples[0])}, {sample.id} is "
                    f"{_size(sample)}; set augment.crop, which makes them equal"
                )
            samples.append(sample)
            if matrix is not None:
                colours.append(matrix)
        return Batch.of(samples, colours)


def validation_batches(
    dataset: SegmentationDataset, *, batch_size: int, rank: int = 0, world_size: int = 1, threads: int = 2
) -> Generator[Batch, None, None]:
    """One pass over this rank's part of the samples; over all ranks each comes exactly once, without padding.

    The images of a batch have the same size, so batches may be smaller than `batch_size`, and ranks may have
    different numbers of them, or none.
    """
    part = range(rank * len(dataset) // world_size, (rank + 1) * len(dataset) // world_size)
    samples = _prefetch(dataset.__getitem__, part, threads, ahead=2 * batch_size)
    waiting: defaultdict[tuple[int, ...], list[Sample]] = defaultdict(list)
    try:
        for sample in samples:
            same_size = waiting[sample.mask.shape]
            same_size.append(sample)
            if len(same_size) == batch_size:
                yield Batch.of(waiting.pop(sample.mask.shape))
            elif sum(map(len, waiting.values())) >= _MAX_WAITING_BATCHES * batch_size:
                fullest = max(waiting, key=lambda size: len(waiting[size]))
                yield Batch.of(waiting.pop(fullest))
        for rest in waiting.values():
            yield Batch.of(rest)
    finally:
        samples.close()


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


@dataclass(frozen=True)
class _Jobs(Generic[T, R]):
    """What a DataLoader takes for a data set: load(job) by job; an error as a value keeps its class."""

    load: Callable[[T], R]

    def __getitem__(self, job: T) -> R | UserError:
        try:
            return self.load(job)
        except UserError as error:
            return error


def _load_by_processes(load: Callable[[T], R], jobs: Iterable[T], processes: int) -> Generator[R, None, None]:
    """`_prefetch` by processes; tensors come through shared memory, two batches a process in advance."""
    context = multiprocessing.get_context("forkserver")  # a process that uses a GPU must not be forked
    context.set_forkserver_preload([__name__])
    loader: DataLoader[R | UserError] = DataLoader(
        _Jobs(load),  # type: ignore[arg-type]
        batch_size=None,
        sampler=jobs,
        num_workers=processes,
        collate_fn=_as_it_is,
        multiprocessing_context=context,
        worker_init_fn=_end_with_parent,
        generator=torch.Generator(),  # else it draws from the one that dropout uses
    )
    for result in loader:
        if isinstance(result, UserError):
            raise result
        yield result


def _as_it_is(result: R) -> R:
    return result


def _end_with_parent(number: int) -> None:
    """PyTorch watches the wrong process for a killed trainer: here the fork server is a decoder's parent."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    Thread(target=wait, daemon=True).start()


@cache
def _copying_stream(device: torch.device) -> torch.cuda.Stream:
    """One for all batches: PyTorch keeps freed memory by stream."""
    return torch.cuda.Stream(device)


def _send(tensor: Tensor, device: torch.device) -> Tensor:
    """A GPU copies from pinned memory by itself; from any other the copy would wait for the model."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def _size(sample: Sample) -> str:
    height, width = sample.mask.shape
    return f"{width}x{height}"
