"""What a driver and the ranks of its training say to each other beside it, in Ray's key-value store.

Each rank says every BEAT_S seconds that it lives, and where; the driver says when the training is to end. A
rank that is stopped, or whose node is cut off, falls silent long before a collective gives it up.
"""

import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
from ray.experimental.internal_kv import _internal_kv_del, _internal_kv_get, _internal_kv_put

from encsearch.reports import OnStep, ignore_step
from encsearch.runner.monitor import count_recovery
from encsearch.text import format_count, format_duration

BEAT_S = 2.0
MISSED_BEATS = 3  # after which a rank is silent
NAMESPACE = b"encsearch"


def listen(training: str) -> Callable[[], bool]:
    """Whether the training, or a sweep's trials, are to end: a thread of this process asks from now on."""
    told = threading.Event()

    def ask() -> None:
        while not told.wait(BEAT_S):
            if _is_told(training):
                told.set()

    threading.Thread(target=ask, name="notice", daemon=True).start()
    return told.is_set


@contextmanager
def passing_on(training: str, notice: Callable[[], bool]) -> Iterator[None]:
    """In the block a thread passes the driver's `notice` on to those who `listen`."""
    with watching(training, 0, notice, silence_s=0):
        yield


def announce_drain(training: str) -> None:
    """Let the driver know that a node of the training is about to go."""
    _internal_kv_put(_key(training, "drain"), b"1", namespace=NAMESPACE)


def take_drain(training: str) -> bool:
    """Whether a node of the training was announced to go since the last question."""
    return bool(_internal_kv_del(_key(training, "drain"), namespace=NAMESPACE))


@contextmanager
def beating(
    training: str, rank: int, world_size: int, step: Callable[[], int]
) -> Iterator[Callable[[], bool]]:
    """In the block a thread says that the rank lives; yields whether the training is to end."""
    told, stop = threading.Event(), threading.Event()
    node = ray.util.get_node_ip_address()

    def beat() -> None:
        beats = 0
        while True:
            pulse = {
                "pid": os.getpid(),
                "node": node,
                "world_size": world_size,
                "step": step(),
                "beats": beats,
            }
            try:
                _internal_kv_put(_key(training, rank), json.dumps(pulse), namespace=NAMESPACE)
            except Exception as error:  # Ray raises several kinds while its head is away: the next beat tries
                logging.getLogger(__name__).debug("no pulse: %s", error)
            if _is_told(training):
                told.set()
            beats += 1
            if stop.wait(BEAT_S):
                return

    thread = threading.Thread(target=beat, name="pulse", daemon=True)
    thread.start()
    try:
        yield told.is_set
    finally:
        stop.set()


@dataclass
class _Heard:
    """The last pulse of a rank, when it came by this clock, and whether its silence was reported."""

    rank: int
    pulse: dict[str, Any]
    at_s: float
    is_reported: bool = False

    @property
    def silent_s(self) -> float:
        return time.monotonic() - self.at_s

    def describe(self) -> str:
        silent = format_duration(self.silent_s)
        place = f"rank {self.rank} on node {self.pulse['node']}"
        return f"{place} has not answered for {silent} (step {self.pulse['step']})"


@contextmanager
def watching(
    training: str,
    num_ranks: int,
    notice: Callable[[], bool],
    silence_s: float,
    on_step: OnStep = ignore_step,
    job: str = "",
) -> Iterator[Callable[[], str | None]]:
    """In the block a thread reports ranks that fall silent or start again, and passes `notice` on.

    It also tells `on_step` where rank 0 is, once it trains, and counts the recoveries of `job`. The yielded
    function describes the rank that has been silent for longest, if any is silent.
    """
    stop = threading.Event()
    heard: dict[int, _Heard] = {}
    thread = threading.Thread(
        target=_watch,
        args=(training, num_ranks, notice, silence_s, on_step, job, stop, heard),
        name="watch",
        daemon=True,
    )
    thread.start()

    def describe_silence() -> str | None:
        longest = max(heard.values(), key=lambda one: one.silent_s, default=None)
        return longest.describe() if longest and longest.silent_s > MISSED_BEATS * BEAT_S else None

    try:
        yield describe_silence
    finally:
        stop.set()
        thread.join()


def _watch(
    training: str,
    num_ranks: int,
    notice: Callable[[], bool],
    silence_s: float,
    on_step: OnStep,
    job: str,
    stop: threading.Event,
    heard: dict[int, _Heard],
) -> None:
    is_told = False
    while not stop.wait(BEAT_S / 4):
        try:
            if notice() and not is_told:
                _internal_kv_put(_key(training, "end"), b"1", namespace=NAMESPACE)
                is_told = True
            # An elastic training has fewer ranks than it may have.
            present = heard[0].pulse["world_size"] if 0 in heard else num_ranks
            for rank in range(num_ranks):
                if rank >= present:
                    heard.pop(rank, None)
                elif found := _internal_kv_get(_key(training, rank), namespace=NAMESPACE):
                    _hear(heard, rank, json.loads(found), silence_s, job)
            # Before it has loaded its checkpoint, a training that goes on is at step 0 too.
            if 0 in heard and (step := heard[0].pulse["step"]):
                on_step(step)
        except Exception as error:  # as above; the training itself says what is wrong with Ray
            logging.getLogger(__name__).debug("no pulse is heard: %s", error)
    for name in ("end", "drain", *range(num_ranks)):
        try:
            _internal_kv_del(_key(training, name), namespace=NAMESPACE)
        except Exception:
            return  # Ray is gone, and its store with it


def _hear(heard: dict[int, _Heard], rank: int, pulse: dict[str, Any], silence_s: float, job: str) -> None:
    """Take in a pulse, and say what is worth saying of the rank."""
    before = heard.get(rank)
    log = logging.getLogger(__name__)
    if before is None or before.pulse != pulse:
        if before and before.pulse["pid"] != pulse["pid"]:
            if rank == 0:  # all start again together
                workers = format_count(pulse["world_size"], "worker")
                log.warning("%s started again, rank 0 on node %s", workers, pulse["node"])
                count_recovery(job)
        elif before and before.is_reported:
            log.warning("rank %d on node %s answers again", rank, pulse["node"])
        heard[rank] = _Heard(rank, pulse, time.monotonic())
    elif before.silent_s > silence_s and not before.is_reported:
        before.is_reported = True
        log.warning(before.describe())


def _is_told(training: str) -> bool:
    try:
        return bool(_internal_kv_get(_key(training, "end"), namespace=NAMESPACE))
    except Exception:  # as of a pulse
        return False


def _key(training: str, name: int | str) -> bytes:
    return f"{training}/{name}".encode()
