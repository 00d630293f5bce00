"""A backend in a dict: reads recorded, failures queued as data, answers held back where a test says so."""

from collections import deque

import trio

from nydusd.errors import BackendError
from nydusd.storage.backend.base import Priority
from nydusd.storage.stats import BackendStats


class MemoryBackend:
    kind = "memory"

    def __init__(self, blobs: dict[str, bytes]) -> None:
        self.blobs = blobs
        self.stats = BackendStats("memory")
        self.reads: list[tuple[str, int, int]] = []
        self.priorities: list[Priority] = []
        self.failures: deque[BackendError] = deque()
        self.gate: trio.Event | None = None
        self.closed = False

    async def read(
        self, blob_id: str, offset: int, length: int, priority: Priority = Priority.DEMAND
    ) -> bytes:
        self.reads.append((blob_id, offset, length))
        self.priorities.append(priority)
        await trio.lowlevel.checkpoint()
        if self.gate is not None:
            await self.gate.wait()
        if self.failures:
            raise self.failures.popleft()
        stored = self.blobs[blob_id][offset : offset + length]
        if len(stored) != length:
            raise BackendError(f"{blob_id}: {len(stored)} of {length} bytes at {offset}")
        return stored

    async def size(self, blob_id: str) -> int:
        return len(self.blobs[blob_id])

    async def aclose(self) -> None:
        self.closed = True
