"""The one door to worker threads: blocking disk work and native decoding (design §4 Threads).

A worker receives buffers and file descriptors and touches no shared Python state. The limiter bounds
how many run at once; more than the processors only adds memory, as each may hold a decoded chunk.
"""

import os
from collections.abc import Callable
from typing import Final, TypeVar, TypeVarTuple

import trio

Args = TypeVarTuple("Args")
T = TypeVar("T")

WORKERS_MIN: Final = 2  # one slow disk read must not stop all decoding on a one-processor node


class Workers:
    """A bounded set of worker threads, shared by everything that one pool of blobs does."""

    def __init__(self, count: int | None = None) -> None:
        """`count`: threads at once; default one per processor, at least two."""
        self._limiter = trio.CapacityLimiter(count or max(WORKERS_MIN, os.cpu_count() or 1))

    async def run(self, function: Callable[[*Args], T], *args: *Args) -> T:
        """Return function(*args), run in a thread.

        Cancel: the caller stays until the thread is done, because it holds the caller's buffers.
        """
        return await trio.to_thread.run_sync(function, *args, limiter=self._limiter)
