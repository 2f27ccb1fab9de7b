"""A process beside a sweep's driver that has torch; the driver has none, and calls functions in it.

Torch takes half a gigabyte of a process and seconds of its start; a sweep's driver only waits for its trials.
The process ends with its driver, however that ends, since their pipe does.
"""

import os
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, Pipe
from typing import ParamSpec, TypeVar

from encsearch.errors import TrainingError, UserError, guard_terminal

P = ParamSpec("P")
T = TypeVar("T")


class TorchProcess:
    """The driver's handle; the process starts with the first call, or with `start` before it."""

    def __init__(self) -> None:
        self._pipe: Connection | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the process, unless it runs; it imports torch while the driver goes on."""
        if self._process and self._process.poll() is None:
            return
        self.end()
        self._pipe, theirs = Pipe()
        self._process = subprocess.Popen(
            # -P: with -m alone a file in the working directory, such as random.py, would be imported and run.
            [sys.executable, "-P", "-m", "encsearch.runner.torch_process", str(theirs.fileno())],
            stdin=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
            # Not in the terminal's group: a Ctrl-C ends the driver, which ends this process without a word.
            start_new_session=True,
        )
        theirs.close()

    def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a function in the process and return what it returns, or raise what it raises.

        The function, its arguments and its result are pickled, and their modules imported here too: none may
        import torch. Raises TrainingError when the process dies.
        """
        self.start()
        assert self._pipe
        assert self._process
        try:
            self._pipe.send((function, args, kwargs))
            result, error = self._pipe.recv()
        except (EOFError, ConnectionError):
            code = self._process.wait()
            self.end()
            raise TrainingError(
                f"the process that builds networks for this one was lost in {function.__name__} (exit code "
                f"{code}; -9 is often a lack of memory)"
            ) from None
        if error:
            raise error
        answer: T = result
        return answer

    def end(self) -> None:
        """End the process and free its memory, whatever it does; the next call starts another."""
        if self._process and self._pipe:
            self._pipe.close()
            self._process.kill()
            self._process.wait()
        self._pipe = self._process = None


@contextmanager
def torch_process() -> Iterator[TorchProcess]:
    """A process for the calls in the block, which ends with it."""
    process = TorchProcess()
    try:
        yield process
    finally:
        process.end()


def _serve(pipe: Connection) -> None:
    """Runs in the process: answers calls until the driver's end of the pipe is closed."""
    guard_terminal()
    try:
        os.getcwd()
    except FileNotFoundError:
        os.chdir("/")  # oneMKL, which torch 2.15 loads, ends a process whose working directory was deleted
    import torch  # noqa: F401 - while the driver does something else

    with suppress(EOFError, ConnectionError):
        while True:
            function, args, kwargs = pipe.recv()
            try:
                result = function(*args, **kwargs)
            except Exception as error:
                if not isinstance(error, UserError | TrainingError):  # a bug, whose place would be lost
                    error.add_note(f"in the process with torch:\n{traceback.format_exc()}")
                pipe.send((None, error))
            else:
                pipe.send((result, None))


if __name__ == "__main__":
    _serve(Connection(int(sys.argv[1])))
