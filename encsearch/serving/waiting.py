"""The images that wait for the model: who is next, who makes room, and who has waited too long.

Plain asyncio, without a web framework. `choose_batch`, `make_room` and `describe_trouble` decide, and `Queue`
carries it out.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Generic, TypeVar

from encsearch.serving.requests import ImageFile, RequestRefusedError
from encsearch.text import format_count, format_duration

Answer = TypeVar("Answer")

WAITING_BATCHES = 4  # that a replica holds beside the one in the model


@dataclass(frozen=True)
class Room:
    """What may wait, and what goes through the model at once.

    At most `max_images` wait, of at most `max_pixels` together. A batch has at most `batch_images`, of at
    most `batch_pixels` together, or is one image. The oldest image waits at most `wait_s` for a full batch.
    """

    max_images: int
    max_pixels: int
    batch_images: int
    batch_pixels: int
    wait_s: float


@dataclass(frozen=True, eq=False)
class Place:
    """An image of `num_pixels` that waits since `since`, in seconds of a monotonic clock."""

    num_pixels: int
    since: float


def plan_room(max_batch: int, wait_s: float, pixels_at_once: int, max_pixels: int) -> Room:
    """Plan for a model that takes `pixels_at_once` in one pass, and images of at most `max_pixels`."""
    most_pixels = max(WAITING_BATCHES * pixels_at_once, max_pixels)
    return Room(WAITING_BATCHES * max_batch, most_pixels, max_batch, pixels_at_once, wait_s)


def choose_batch(waiting: Collection[Place], room: Room, *, oldest_first: bool) -> list[Place]:
    """Choose what goes through the model next: the smallest images, or those of the oldest one's size.

    They are of one size, since others do not share a pass, but would wait for it. If the oldest image has the
    turn after one that passed it over, a small image waits for two batches at most, however many large ones
    there are, and no flood of small ones holds up a large one for good. Clients are not told apart: behind a
    proxy all of them have one address, and an attacker has several.
    """
    order = sorted(waiting, key=lambda place: place.since)
    if not order:
        return []
    leader = order[0] if oldest_first else min(order, key=lambda place: place.num_pixels)
    most = max(1, min(room.batch_images, room.batch_pixels // leader.num_pixels))
    others = [place for place in order if place.num_pixels == leader.num_pixels and place is not leader]
    return [leader, *others][:most]


def make_room(waiting: Collection[Place], num_pixels: int, room: Room) -> list[Place] | None:
    """Choose who leaves for an image of `num_pixels`: nobody if there is room; None if it has to go itself.

    The largest leave first, and only for a smaller image, so that large ones cannot keep small ones out.
    """
    images, pixels = len(waiting) + 1, _total_pixels(waiting) + num_pixels
    leaving: list[Place] = []
    for place in sorted(waiting, key=lambda place: (-place.num_pixels, -place.since)):
        if images <= room.max_images and pixels <= room.max_pixels:
            break
        if place.num_pixels <= num_pixels:
            return None
        leaving.append(place)
        images, pixels = images - 1, pixels - place.num_pixels
    return leaving


def describe_trouble(
    waiting: Collection[Place],
    computing_s: float,
    now: float,
    room: Room,
    largest: int,
    timeout_s: float,
) -> str | None:
    """Say why an image of `largest` pixels that comes now might get no answer in time; None if it will.

    The batch in the model is computed for `computing_s`, 0 if there is none; `now` is of the places' clock.
    """
    if computing_s > timeout_s:
        return f"the model has not answered for {format_duration(computing_s)}"
    if make_room(waiting, largest, room) is None:
        return f"the queue is full: {_describe(waiting)} in it"
    waited_s = max((now - place.since for place in waiting), default=0.0)
    # The oldest has every second turn. Who comes now may have to wait as long again.
    if waited_s > timeout_s / 2:
        return f"the oldest of {_describe(waiting)} has waited for {format_duration(waited_s)}"
    return None


class Queue(Generic[Answer]):
    """The queue of one model, in one event loop.

    `compute` takes the files of a batch and returns for each, in order, its answer or the error to raise. One
    batch is computed at a time.
    """

    def __init__(
        self,
        compute: Callable[[Sequence[bytes]], Awaitable[Sequence[Answer | Exception]]],
        room: Room,
        timeout_s: float,
    ) -> None:
        self._compute, self._room, self._timeout_s = compute, room, timeout_s
        self._waiting: dict[Place, tuple[bytes, asyncio.Future[Answer]]] = {}
        self._came = asyncio.Event()
        self._worker: asyncio.Task[None] | None = None
        self._computing_since: float | None = None

    async def answer(self, file: ImageFile) -> Answer:
        """Wait for the answer to an image; if the caller is cancelled, the image leaves the queue.

        Raises RequestRefusedError: 503 for no room or no turn in time, 504 if the model takes too long; and
        what `compute` raises or returns as an error.
        """
        place = Place(file.num_pixels, time.monotonic())
        self._make_room(place)
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting[place] = (file.data, answer)
        self._came.set()
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())
        try:
            async with asyncio.timeout(self._timeout_s):
                return await answer
        except TimeoutError:
            limit = format_duration(self._timeout_s)
            if place in self._waiting:
                raise RequestRefusedError(503, f"it was not this image's turn within {limit}") from None
            raise RequestRefusedError(
                504, f"the model did not answer within {limit}; send it smaller"
            ) from None
        finally:
            self._waiting.pop(place, None)

    def describe_trouble(self, largest: int) -> str | None:
        """What the function of this name says of now."""
        now = time.monotonic()
        computing_s = 0.0 if self._computing_since is None else now - self._computing_since
        return describe_trouble(self._waiting, computing_s, now, self._room, largest, self._timeout_s)

    def _make_room(self, place: Place) -> None:
        leaving = make_room(self._waiting, place.num_pixels, self._room)
        if leaving is None:
            raise RequestRefusedError(503, f"the queue is full: {_describe(self._waiting)} in it")
        for other in leaving:
            _, answer = self._waiting.pop(other)
            _finish(answer, RequestRefusedError(503, "the queue is full, and smaller images go first"))

    async def _work(self) -> None:
        passed_over = False
        while self._waiting:
            await self._gather()
            chosen = choose_batch(self._waiting, self._room, oldest_first=passed_over)
            # Places are kept in the order in which they came.
            passed_over = next(iter(self._waiting), None) not in chosen
            await self._answer([self._waiting.pop(place) for place in chosen])

    async def _gather(self) -> None:
        """Return when a batch is full, or the oldest image has waited for others long enough."""
        while self._waiting:
            full = len(self._waiting) >= self._room.batch_images
            left_s = next(iter(self._waiting)).since + self._room.wait_s - time.monotonic()
            if full or left_s <= 0 or _total_pixels(self._waiting) >= self._room.batch_pixels:
                return
            self._came.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(left_s):
                    await self._came.wait()

    async def _answer(self, batch: Sequence[tuple[bytes, "asyncio.Future[Answer]"]]) -> None:
        outcomes: Sequence[Answer | Exception]
        if not batch:  # all of them have gone
            return
        self._computing_since = time.monotonic()
        try:
            outcomes = await self._compute([data for data, _ in batch])
        except Exception as error:  # those who wait must hear of it, since nobody awaits this task
            outcomes = [error] * len(batch)
        finally:
            self._computing_since = None
        for (_, answer), outcome in zip(batch, outcomes, strict=True):
            _finish(answer, outcome)


def _finish(answer: "asyncio.Future[Answer]", outcome: Answer | Exception) -> None:
    if answer.done():  # whoever asked has gone
        return
    if isinstance(outcome, Exception):
        answer.set_exception(outcome)
    else:
        answer.set_result(outcome)


def _total_pixels(waiting: Collection[Place]) -> int:
    return sum(place.num_pixels for place in waiting)


def _describe(waiting: Collection[Place]) -> str:
    pixels = format_count(_total_pixels(waiting), "pixel")
    return f"{format_count(len(waiting), 'request')} of {pixels}"
