"""The one protocol behind which blobs lie (spec backends)."""

from enum import IntEnum
from typing import Protocol


class Priority(IntEnum):
    """Who asks. Demand goes first; speculation only asks early (design §4)."""

    DEMAND = 0
    READAHEAD = 1
    PREFETCH = 2


class Backend(Protocol):
    """Where blobs come from. Many tasks may call at once. Raises BackendError only.

    Implementations retry what is temporary by themselves (storage/backend/retry.py), so an error
    that reaches the caller is final for this call, and leaves no trace for the next.
    Cancel: an abandoned call closes or drains its connection; nothing else is left behind.
    """

    kind: str  # the word in configuration and metrics: "registry", "localfs", …

    async def read(
        self, blob_id: str, offset: int, length: int, priority: Priority = Priority.DEMAND
    ) -> bytes:
        """Return exactly `length` bytes from `offset`, or raise: a short body is an error here."""
        ...

    async def size(self, blob_id: str) -> int:
        """Return the blob's size in bytes."""
        ...

    async def aclose(self) -> None:
        """Close connections and files. Calls under way end with ClosedError or BackendError."""
        ...
