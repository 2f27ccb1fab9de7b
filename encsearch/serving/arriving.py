"""The bodies that are on their way: each has a time limit, and none can keep others out."""

import asyncio
from collections.abc import AsyncIterable

from encsearch.serving.requests import Limits, RequestRefusedError, check_received
from encsearch.text import format_duration

MAX_BODIES = 64
"""Of one replica at once: 1.3 GB of memory if each has the 20 MB that are allowed by default."""


class Arrivals:
    """Receives bodies, at most `max_bodies` at once, in one event loop.

    One more takes the place of the one that has been arriving longest: a body that is sent at once needs
    milliseconds, and so it gets through however many are sent by half and held.
    """

    def __init__(self, limits: Limits, max_bodies: int = MAX_BODIES) -> None:
        self._limits, self._max_bodies = limits, max_bodies
        self._deadlines: dict[asyncio.Timeout, None] = {}  # in the order in which the bodies began

    async def receive(self, parts: AsyncIterable[bytes]) -> bytes:
        """Return the body that comes in `parts`.

        Raises RequestRefusedError: 408 if it is not whole in time, 413 if it is too large, 503 if others took
        its place.
        """
        deadline = asyncio.timeout(self._limits.timeout_s)
        try:
            async with deadline:
                self._begin(deadline)
                return await self._join(parts)
        except TimeoutError:
            if deadline not in self._deadlines:
                reason = "too many bodies are arriving, and this one has taken longest; try again"
                raise RequestRefusedError(503, reason) from None
            limit = format_duration(self._limits.timeout_s)
            raise RequestRefusedError(408, f"the body is not whole after {limit}; send it faster") from None
        finally:
            self._deadlines.pop(deadline, None)

    def _begin(self, deadline: asyncio.Timeout) -> None:
        if len(self._deadlines) >= self._max_bodies:
            oldest = next(iter(self._deadlines))
            del self._deadlines[oldest]
            if not oldest.expired():
                oldest.reschedule(asyncio.get_running_loop().time())
        self._deadlines[deadline] = None

    async def _join(self, parts: AsyncIterable[bytes]) -> bytes:
        received, num_bytes = [], 0
        async for part in parts:
            received.append(part)
            num_bytes += len(part)
            check_received(num_bytes, self._limits)
        return b"".join(received)
