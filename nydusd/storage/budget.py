"""A byte budget: in-flight buffers are bounded, and demand goes before speculation (design §4 Memory)."""

from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from nydusd.storage.backend.base import Priority


class _Waiter:
    __slots__ = ("granted", "size_bytes")

    def __init__(self, size_bytes: int) -> None:
        self.size_bytes = size_bytes
        self.granted = trio.Event()


class ByteBudget:
    """Hands out `limit_bytes` bytes. Waiters are served by priority, within one priority in turn.

    A request larger than the whole budget is granted when nothing else is out: it must go some time.
    Cancel: a cancelled waiter leaves the queue and holds nothing.
    """

    def __init__(self, limit_bytes: int) -> None:
        """`limit_bytes`: how much may be out at once."""
        self._limit = limit_bytes
        self._out = 0
        self._queues: dict[Priority, deque[_Waiter]] = {p: deque() for p in Priority}

    @property
    def used_bytes(self) -> int:
        """Bytes that are out now."""
        return self._out

    @asynccontextmanager
    async def hold(self, size_bytes: int, priority: Priority) -> AsyncIterator[None]:
        """Hold `size_bytes` for the length of the block; waits until they are free."""
        waiter = _Waiter(size_bytes)
        queue = self._queues[priority]
        queue.append(waiter)
        self._grant()
        try:
            await waiter.granted.wait()
            yield
        finally:
            if waiter.granted.is_set():
                self._out -= size_bytes
            else:
                queue.remove(waiter)
            self._grant()

    def _grant(self) -> None:
        for queue in self._queues.values():
            while queue:
                if self._out and self._out + queue[0].size_bytes > self._limit:
                    return  # nobody of lower priority may slip in before the first in line
                waiter = queue.popleft()
                self._out += waiter.size_bytes
                waiter.granted.set()
