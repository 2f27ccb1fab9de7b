"""The stream depends on seed and data set alone: not on ranks, not on where it was resumed."""

import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from encsearch.config import AugmentConfig
from encsearch.data.datasets import DatasetInfo, Sample
from encsearch.data.loading import Batch, TrainStream, feed, validation_batches
from encsearch.errors import UserError

INFO = DatasetInfo("toy", ("a", "b"), ((0, 0, 0), (1, 1, 1)))
AUGMENT = AugmentConfig(
    crop=(8, 12),
    shorter_side=9,
    scale=(0.5, 2),
    rotate_deg=30,
    jitter=0.3,
    blur=0.5,
    class_uniform=0.5,
)


@dataclass(frozen=True)
class Numbered:
    """A data set of `length` images, number n of size sizes[n % len(sizes)]; `broken` cannot be read."""

    length: int
    sizes: tuple[tuple[int, int], ...] = ((8, 10),)
    broken: int | None = None
    fingerprint: str = "f"
    info: DatasetInfo = INFO

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Sample:
        if index == self.broken:
            raise UserError(f"sample {index} is damaged")
        rng = np.random.default_rng(index)
        size = self.sizes[index % len(self.sizes)]
        image = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
        return Sample(str(index), image, rng.integers(0, 2, size, dtype=np.uint8))


def take(
    dataset: Numbered,
    steps: int,
    *,
    batch: int = 4,
    seen: int = 0,
    seed: int = 0,
    rank: int = 0,
    world_size: int = 1,
    augment: AugmentConfig = AUGMENT,
    processes: int = 0,
) -> list[Batch]:
    stream = TrainStream(
        dataset,
        augment,
        global_batch_size=batch,
        seed=seed,
        rank=rank,
        world_size=world_size,
        processes=processes,
    )
    batches = stream.batches(seen)
    taken = list(islice(batches, steps))
    batches.close()
    return taken


def children() -> list[psutil.Process]:
    """The decoders of this process: children of its fork server."""
    every = psutil.Process().children(recursive=True)
    return [process for process in every if any(process.pid == p.pid for q in every for p in q.children())]


def ids(batches: list[Batch]) -> list[str]:
    return [name for batch in batches for name in batch.ids]


class TestTrainStream:
    def test_every_pass_is_a_new_permutation(self) -> None:
        order = ids(take(Numbered(12), 9))
        passes = [order[start : start + 12] for start in (0, 12, 24)]
        assert all(sorted(one, key=int) == [str(n) for n in range(12)] for one in passes)
        assert len({tuple(one) for one in passes}) == 3

    def test_order_follows_seed_and_data(self) -> None:
        order = ids(take(Numbered(12), 3))
        assert ids(take(Numbered(12), 3)) == order
        assert ids(take(Numbered(12), 3, seed=1)) != order
        assert ids(take(Numbered(12, fingerprint="g"), 3)) != order

    @pytest.mark.parametrize("world_size", [1, 2, 4])
    def test_ranks_together_see_the_same_stream(self, world_size: int) -> None:
        """Order, pixels and labels: what one rank sees alone, several see in parts."""
        alone = take(Numbered(10), 6, batch=8)
        ranks = [take(Numbered(10), 6, batch=8, rank=r, world_size=world_size) for r in range(world_size)]
        for step, whole in enumerate(alone):
            parts = [rank[step] for rank in ranks]
            assert tuple(name for part in parts for name in part.ids) == whole.ids
            assert torch.equal(torch.cat([part.images for part in parts]), whole.images)
            assert torch.equal(torch.cat([part.labels for part in parts]), whole.labels)
            assert torch.equal(torch.cat([part.colours for part in parts]), whole.colours)

    @pytest.mark.parametrize("seen", [4, 8, 12, 20, 400])
    def test_a_resumed_stream_goes_on_where_it_was(self, seen: int) -> None:
        whole = take(Numbered(10), seen // 4 + 3)[seen // 4 :]
        resumed = take(Numbered(10), 3, seen=seen)
        assert ids(resumed) == ids(whole)
        for one, other in zip(resumed, whole, strict=True):
            assert torch.equal(one.images, other.images)

    def test_resumed_with_another_batch_and_other_ranks(self) -> None:
        order = ids(take(Numbered(10), 20))
        parts = [take(Numbered(10), 5, batch=6, seen=8, rank=r, world_size=3) for r in range(3)]
        resumed = [name for step in zip(*parts, strict=True) for part in step for name in part.ids]
        assert resumed == order[8 : 8 + 30]

    def test_augmentation_differs_between_passes(self) -> None:
        first, second = take(Numbered(1), 2, batch=1)
        assert first.ids == second.ids == ("0",)
        assert not torch.equal(first.images, second.images)

    def test_a_data_set_smaller_than_a_batch(self) -> None:
        batches = take(Numbered(3), 4, batch=8)
        assert [len(batch.ids) for batch in batches] == [8] * 4
        assert sorted(ids(batches)[:30], key=int) == ["0"] * 10 + ["1"] * 10 + ["2"] * 10

    def test_shapes_and_types(self) -> None:
        (batch,) = take(Numbered(5), 1)
        assert (batch.images.shape, batch.images.dtype) == ((4, 8, 12, 3), torch.uint8)
        assert (batch.labels.shape, batch.labels.dtype) == ((4, 8, 12), torch.uint8)
        (inputs,) = feed([batch], torch.device("cpu"))
        assert (inputs.images.shape, inputs.images.dtype) == ((4, 3, 8, 12), torch.float32)
        (inputs,) = feed([batch], torch.device("cpu"), channels_last=True)
        assert inputs.images.is_contiguous(memory_format=torch.channels_last)

    def test_sizes_that_differ_need_a_crop(self) -> None:
        mixed = Numbered(10, sizes=((8, 10), (10, 8)))
        assert take(mixed, 3)[0].images.shape == (4, 8, 12, 3)
        with pytest.raises(
            UserError, match=r"differ in size: \d is \d+x\d+, \d is \d+x\d+; set augment\.crop"
        ):
            take(mixed, 3, augment=AugmentConfig())

    def test_an_error_reaches_the_one_who_asks(self) -> None:
        with pytest.raises(UserError, match="sample 5 is damaged"):
            take(Numbered(10, broken=5), 3)

    def test_processes_give_what_threads_give(self) -> None:
        threads, processes = take(Numbered(10), 4), take(Numbered(10), 4, processes=2)
        assert ids(threads) == ids(processes)
        for one, other in zip(threads, processes, strict=True):
            assert torch.equal(one.images, other.images)
            assert torch.equal(one.labels, other.labels)
            assert one.colours is not None
            assert other.colours is not None
            assert torch.equal(one.colours, other.colours)
        with pytest.raises(UserError, match=r"^sample 5 is damaged$"):
            take(Numbered(10, broken=5), 3, processes=1)

    def test_processes_leave_the_random_numbers_of_dropout_alone(self) -> None:
        torch.manual_seed(3)
        expected = torch.rand(2)
        torch.manual_seed(3)
        take(Numbered(10), 1, processes=1)
        assert torch.equal(torch.rand(2), expected)

    def test_processes_end_with_a_killed_trainer(self, tmp_path: Path) -> None:
        program = """
import os, sys, signal
sys.path.insert(0, sys.argv[1])
import test_loading as here
from encsearch.data.loading import TrainStream
if __name__ == "__main__":
    stream = TrainStream(here.Numbered(10), here.AUGMENT, global_batch_size=2, seed=0, processes=2)
    batches = stream.batches(0)
    next(batches)
    print(*(p.pid for p in here.children()), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""
        (tmp_path / "killed.py").write_text(program)
        run = [sys.executable, str(tmp_path / "killed.py"), str(Path(__file__).parent)]
        killed = subprocess.run(run, capture_output=True, text=True)
        decoders = [int(pid) for pid in killed.stdout.split()]
        assert len(decoders) == 2, killed.stderr
        for _ in range(100):
            alive = [pid for pid in decoders if psutil.pid_exists(pid)]
            if not alive:
                break
            time.sleep(0.1)
        assert not alive

    def test_it_reads_no_more_than_a_few_batches_ahead(self) -> None:
        read: list[int] = []

        class Counting(Numbered):
            def __getitem__(self, index: int) -> Sample:
                read.append(index)
                return super().__getitem__(index)

        take(Counting(1000), 1, batch=2)
        assert len(read) <= 2 * 5

    def test_closing_ends_the_threads(self) -> None:
        batches = TrainStream(Numbered(10), AUGMENT, global_batch_size=2, seed=0).batches(0)
        next(batches)
        assert [t for t in threading.enumerate() if t.name.startswith("loading")]
        batches.close()
        assert not [t for t in threading.enumerate() if t.name.startswith("loading")]


class TestValidation:
    @pytest.mark.parametrize("length", [1, 7, 24])
    @pytest.mark.parametrize("world_size", [1, 2, 3, 4, 5])
    def test_every_sample_comes_exactly_once(self, world_size: int, length: int) -> None:
        dataset = Numbered(length, sizes=((8, 10), (8, 10), (10, 8), (3, 4)))
        seen = [
            name
            for rank in range(world_size)
            for name in ids(list(validation_batches(dataset, batch_size=4, rank=rank, world_size=world_size)))
        ]
        assert sorted(seen, key=int) == [str(n) for n in range(length)]

    def test_samples_are_unchanged_and_batches_full(self) -> None:
        batches = list(validation_batches(Numbered(10), batch_size=4))
        assert [len(batch.ids) for batch in batches] == [4, 4, 2]
        np.testing.assert_array_equal(batches[1].labels[2].numpy(), Numbered(10)[6].mask)

    def test_a_batch_has_one_size(self) -> None:
        dataset = Numbered(24, sizes=((8, 10), (10, 8), (6, 6)))
        batches = list(validation_batches(dataset, batch_size=4))
        assert [len(batch.ids) for batch in batches] == [4] * 6
        for batch in batches:
            sizes = {dataset[int(name)].mask.shape for name in batch.ids}
            assert sizes == {tuple(batch.labels.shape[1:])}

    def test_many_sizes_do_not_pile_up(self) -> None:
        read: list[int] = []

        class Counting(Numbered):
            def __getitem__(self, index: int) -> Sample:
                read.append(index)
                return super().__getitem__(index)

        dataset = Counting(200, sizes=tuple((4, 4 + n) for n in range(100)))
        batches = validation_batches(dataset, batch_size=2)
        next(batches)
        assert len(read) <= 4 * 2 + 2 * 2 + 2
        batches.close()

    def test_an_error_reaches_the_one_who_asks(self) -> None:
        with pytest.raises(UserError, match="sample 5 is damaged"):
            list(validation_batches(Numbered(10, broken=5), batch_size=4))
