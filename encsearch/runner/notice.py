"""A notice to end: SIGTERM, as a spot machine, Slurm or Kubernetes sends it before a machine goes.

It is for the driver. A signal to all processes of a job, as of a process group or a control group, ends a Ray
of its own too, which then saves nothing.
"""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

GRACE_S = 25
"""How long a training may take to save its state; Slurm and Kubernetes kill 30 s after their notice."""


@contextmanager
def sigterm_notice() -> Iterator[Callable[[], bool]]:
    """In the block the first SIGTERM only makes the yielded function return True.

    A second one, the end of GRACE_S, and the end of the block if nobody has heeded the first, do what SIGTERM
    did before. Outside of the main thread, which alone hears of signals, nothing changes.
    """
    given = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield given.is_set
        return
    before = signal.getsignal(signal.SIGTERM)
    alarm = threading.Timer(GRACE_S, os.kill, (os.getpid(), signal.SIGTERM))
    alarm.daemon = True

    def hear(signum: int, frame: object) -> None:
        given.set()
        signal.signal(signal.SIGTERM, before)
        alarm.start()

    signal.signal(signal.SIGTERM, hear)
    try:
        yield given.is_set
    finally:
        alarm.cancel()
        signal.signal(signal.SIGTERM, before)
    if given.is_set():
        signal.raise_signal(signal.SIGTERM)
