"""The queue of a served model, and bodies on their way: who is next, who makes room, who is refused."""

import asyncio
from collections.abc import AsyncIterator, Sequence

import pytest

from encsearch.serving.arriving import Arrivals
from encsearch.serving.requests import ImageFile, Limits, RequestRefusedError
from encsearch.serving.waiting import Place, Queue, Room, choose_batch, describe_trouble, make_room, plan_room

ROOM = Room(max_images=4, max_pixels=400, batch_images=3, batch_pixels=100, wait_s=0)
LONG_S, SHORT_S = 60.0, 0.02


def places(*sizes: int) -> list[Place]:
    """Places of these numbers of pixels, the first one the oldest."""
    return [Place(size, float(second)) for second, size in enumerate(sizes)]


def sizes(chosen: Sequence[Place] | None) -> list[int] | None:
    return None if chosen is None else [place.num_pixels for place in chosen]


@pytest.mark.parametrize(
    ("waiting", "oldest_first", "chosen"),
    [
        ((), True, []),
        ((90, 5, 20, 5), False, [5, 5]),
        ((30, 30, 30, 30), False, [30, 30, 30]),  # no more images than a batch has
        ((40, 40, 40, 50), False, [40, 40]),  # no more pixels
        ((90, 60, 5), True, [90]),
        ((20, 5, 20), True, [20, 20]),
        ((300, 300), False, [300]),  # beyond one pass it goes alone
    ],
)
def test_the_smallest_or_the_oldest_go_next_with_those_of_their_size_that_fit_in_a_pass(
    waiting: tuple[int, ...], oldest_first: bool, chosen: list[int]
) -> None:
    assert sizes(choose_batch(places(*waiting), ROOM, oldest_first=oldest_first)) == chosen


@pytest.mark.parametrize(("flood", "lone", "batches"), [(100, 1, 2), (34, 90, 3)])
def test_a_flood_of_other_sizes_holds_up_nobody_for_long(flood: int, lone: int, batches: int) -> None:
    for oldest_first in (False, True):
        new = Place(lone, 4.5)
        # Of the flood one is older than the newcomer; the others come later, to the end of time.
        waiting = [Place(flood, 4.0), new, Place(flood, 5.0), Place(flood, 6.0)]
        for _ in range(batches):
            chosen = choose_batch(waiting, ROOM, oldest_first=oldest_first)
            oldest_first = waiting[0] not in chosen
            waiting = [place for place in waiting if place not in chosen]
            waiting += [Place(flood, 9.0) for _ in chosen]
        assert new not in waiting


@pytest.mark.parametrize(
    ("waiting", "new", "leaving"),
    [
        ((), 100, []),
        ((100, 100, 100), 100, []),
        ((100, 100, 100, 50), 50, [100]),  # too many images
        ((100, 200, 99), 2, [200]),  # too many pixels
        ((200, 200), 150, [200]),
        ((200, 200), 200, None),
        ((201, 190, 9), 190, [201]),
        ((201, 190, 9, 190), 190, None),  # one leaves, and it is still too much
        ((100, 100, 100, 100), 100, None),
        ((1, 1, 1, 1), 1, None),
    ],
)
def test_larger_images_make_room_for_smaller_ones(
    waiting: tuple[int, ...], new: int, leaving: list[int] | None
) -> None:
    assert sizes(make_room(places(*waiting), new, ROOM)) == leaving


def test_of_two_equally_large_images_the_newer_leaves() -> None:
    old, new = places(200, 200)
    assert make_room([old, new], 10, ROOM) == [new]


@pytest.mark.parametrize(
    ("waiting", "computing_s", "now", "trouble"),
    [
        ((), 0.0, 0.0, None),
        ((), 59.0, 0.0, None),
        ((), 61.0, 0.0, "the model has not answered for 61 s"),
        ((100, 200), 5.0, 29.0, None),
        ((100, 200), 5.0, 31.0, "the oldest of 2 requests of 300 pixels has waited for 31 s"),
        ((1, 1, 1, 1), 5.0, 4.0, "the queue is full: 4 requests of 4 pixels in it"),
        ((150, 140), 5.0, 4.0, "the queue is full: 2 requests of 290 pixels in it"),
    ],
)
def test_the_health_is_good_if_any_image_that_comes_now_gets_an_answer(
    waiting: tuple[int, ...], computing_s: float, now: float, trouble: str | None
) -> None:
    found = describe_trouble(places(*waiting), computing_s, now, ROOM, largest=150, timeout_s=LONG_S)
    assert found == trouble


def test_the_largest_image_that_is_allowed_has_room() -> None:
    room = plan_room(max_batch=8, wait_s=0.01, pixels_at_once=100, max_pixels=5000)
    assert make_room([], 5000, room) == []
    assert room.max_images == 4 * 8
    assert plan_room(8, 0.01, pixels_at_once=100, max_pixels=50).max_pixels == 400


class Model:
    """Answers with the files themselves once it may; `batches` are those that it was given."""

    def __init__(self) -> None:
        self.batches: list[list[bytes]] = []
        self.may_answer, self.is_asked = asyncio.Event(), asyncio.Event()

    async def compute(self, files: Sequence[bytes]) -> list[bytes | Exception]:
        self.batches.append(list(files))
        self.is_asked.set()
        await self.may_answer.wait()
        return [ValueError("damaged") if data == b"damaged" else data for data in files]


async def refused(queue: Queue[bytes], file: ImageFile) -> tuple[int, str]:
    with pytest.raises(RequestRefusedError) as error:
        await queue.answer(file)
    return error.value.status, str(error.value)


def test_images_that_wait_go_together_and_each_gets_its_own_answer() -> None:
    async def scenario() -> None:
        model = Model()
        queue = Queue(model.compute, ROOM, LONG_S)
        first = asyncio.create_task(queue.answer(ImageFile(b"first", 10)))
        await model.is_asked.wait()
        others = [
            asyncio.create_task(queue.answer(ImageFile(data, 10))) for data in (b"a", b"damaged", b"b", b"c")
        ]
        await asyncio.sleep(0)
        model.may_answer.set()
        assert await first == b"first"
        found = await asyncio.gather(*others, return_exceptions=True)
        assert [str(outcome) for outcome in found] == ["b'a'", "damaged", "b'b'", "b'c'"]
        assert model.batches == [[b"first"], [b"a", b"damaged", b"b"], [b"c"]]
        assert queue.describe_trouble(100) is None

    asyncio.run(scenario())


def test_the_first_image_waits_for_others() -> None:
    async def scenario() -> None:
        model = Model()
        model.may_answer.set()
        queue = Queue(model.compute, Room(4, 400, 2, 100, wait_s=LONG_S), LONG_S)
        await asyncio.gather(*(queue.answer(ImageFile(data, 10)) for data in (b"a", b"b")))
        assert model.batches == [[b"a", b"b"]]
        await queue.answer(ImageFile(b"as large as a pass", 100))

    asyncio.run(scenario())


def test_whoever_hangs_up_is_not_computed() -> None:
    async def scenario() -> None:
        model = Model()
        queue = Queue(model.compute, ROOM, LONG_S)
        first, gone, last = (
            asyncio.create_task(queue.answer(ImageFile(data, 100))) for data in (b"first", b"gone", b"last")
        )
        await model.is_asked.wait()
        gone.cancel()
        first.cancel()  # its answer is lost; the model goes on
        await asyncio.gather(first, gone, return_exceptions=True)
        model.may_answer.set()
        assert await last == b"last"
        assert model.batches == [[b"first"], [b"last"]]

    asyncio.run(scenario())


def test_a_full_queue_refuses_and_larger_images_leave_it() -> None:
    async def scenario() -> None:
        model = Model()
        queue = Queue(model.compute, ROOM, LONG_S)
        computed = asyncio.create_task(queue.answer(ImageFile(b"0", 100)))
        await model.is_asked.wait()
        large = asyncio.create_task(refused(queue, ImageFile(b"large", 350)))
        await asyncio.sleep(0)
        status, reason = await refused(queue, ImageFile(b"larger", 360))
        assert (status, reason) == (503, "the queue is full: 1 request of 350 pixels in it")
        assert queue.describe_trouble(350) == reason
        assert queue.describe_trouble(60) is None
        small = asyncio.create_task(queue.answer(ImageFile(b"small", 60)))
        assert await large == (503, "the queue is full, and smaller images go first")
        model.may_answer.set()
        assert (await computed, await small) == (b"0", b"small")

    asyncio.run(scenario())


def test_an_image_without_a_turn_is_503_and_a_model_that_takes_too_long_504() -> None:
    async def scenario() -> None:
        model = Model()
        queue = Queue(model.compute, ROOM, SHORT_S)
        computed = asyncio.create_task(refused(queue, ImageFile(b"computed", 100)))
        await model.is_asked.wait()
        assert await refused(queue, ImageFile(b"waiting", 100)) == (
            503,
            "it was not this image's turn within 0.02 s",
        )
        assert await computed == (504, "the model did not answer within 0.02 s; send it smaller")
        await asyncio.sleep(SHORT_S)
        assert "the model has not answered for" in str(queue.describe_trouble(1))
        model.may_answer.set()
        assert model.batches == [[b"computed"]]

    asyncio.run(scenario())


def test_a_model_that_fails_fails_its_requests_and_serves_the_next() -> None:
    async def scenario() -> None:
        fails = True

        async def compute(files: Sequence[bytes]) -> Sequence[bytes | Exception]:
            if fails:
                raise RuntimeError("out of memory")
            return files

        queue = Queue(compute, ROOM, LONG_S)
        with pytest.raises(RuntimeError, match="out of memory"):
            await queue.answer(ImageFile(b"a", 1))
        fails = False
        assert await queue.answer(ImageFile(b"b", 1)) == b"b"

    asyncio.run(scenario())


async def half_sent(start: bytes = b"x") -> AsyncIterator[bytes]:
    yield start
    await asyncio.Event().wait()


async def whole(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


async def status_of(receiving: "asyncio.Task[bytes]") -> int:
    with pytest.raises(RequestRefusedError) as error:
        await receiving
    return error.value.status


def test_bodies_that_are_held_keep_no_whole_one_out() -> None:
    async def scenario() -> None:
        arrivals = Arrivals(Limits(1000, 1, LONG_S), max_bodies=3)
        held = [asyncio.create_task(arrivals.receive(half_sent())) for _ in range(5)]
        assert [await status_of(task) for task in held[:2]] == [503, 503]  # the oldest
        for _ in range(10):
            assert await arrivals.receive(whole(b"a", b"b")) == b"ab"
        assert await status_of(held[2]) == 503  # once only: there was room from then on
        assert not any(task.done() for task in held[3:])
        for task in held[3:]:
            task.cancel()

    asyncio.run(scenario())


def test_a_body_that_does_not_come_or_drips_is_408_and_one_that_is_too_large_413() -> None:
    async def drip() -> AsyncIterator[bytes]:
        while True:
            yield b"x"
            await asyncio.sleep(SHORT_S / 10)

    async def scenario() -> None:
        arrivals = Arrivals(Limits(1000, 1, SHORT_S), max_bodies=3)
        for parts in (half_sent(), drip()):
            assert await status_of(asyncio.create_task(arrivals.receive(parts))) == 408
        too_large = half_sent(b"x" * 1001)
        assert await status_of(asyncio.create_task(arrivals.receive(too_large))) == 413

    asyncio.run(scenario())
