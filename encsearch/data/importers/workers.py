"""Processes that work for an import and end with it, however it ends."""

import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from encsearch.errors import UserError

_PARENT_CHECK_S = 1.0
T = TypeVar("T")
R = TypeVar("R")


def work(function: Callable[[T], R], jobs: Iterable[T], processes: int) -> Iterator[tuple[T, R]]:
    """Each job with its result, in their order; `function` is sent once to each process.

    With one process, or one job, this process works. When the iterator ends or is closed, all processes have
    ended; what they have begun is finished. Raises what a job raises, and UserError when one was killed.
    """
    waiting = list(jobs)
    if processes == 1 or len(waiting) < 2:
        for job in waiting:
            yield job, function(job)
        return
    # Not forked: the parent may have threads, of a data loader or of Arrow, that hold locks.
    pool = ProcessPoolExecutor(
        min(processes, len(waiting)),
        multiprocessing.get_context("spawn"),
        initializer=_begin,
        initargs=(os.getpid(), function),
    )
    try:
        # Ctrl-C is for the parent, which lets what has begun be finished; processes inherit what is blocked.
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            futures: deque[Future[R]] = deque(pool.submit(_call, job) for job in waiting)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        for job in waiting:
            yield job, futures.popleft().result()  # let go of, as all results may be large
    except BrokenProcessPool:
        raise UserError(
            "a process of the import was killed, as happens when memory runs out; give fewer --processes"
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


_function: list[Callable[[Any], Any]] = []  # of a process of the pool


def _begin(parent: int, function: Callable[[Any], Any]) -> None:
    """Keep the function, and end this process when its parent has been killed: nobody else would."""
    _function.append(function)
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_PARENT_CHECK_S)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _call(job: Any) -> Any:
    return _function[0](job)
