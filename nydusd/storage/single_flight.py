"""One load for all who ask for a thing at the same time."""

from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

import trio

from nydusd.errors import ClosedError, NydusError

T = TypeVar("T")


class SharedLoad(Generic[T]):
    """A value that is loaded on first use and kept.

    Failure  goes to those who wait for that attempt and is then forgotten; the next asker tries again.
    Cancel   a cancelled asker stops waiting; the load goes on for the others, in the given nursery.
    """

    def __init__(self, name: str, load: Callable[[], Awaitable[T]]) -> None:
        """`name` is for the ClosedError of those who wait when the nursery ends."""
        self._name = name
        self._load = load
        self._attempt: _Attempt | None = None
        self.value: T | None = None

    async def get(self, nursery: trio.Nursery) -> T:
        """Return the value, loading it if need be. Raises the NydusError of the load."""
        while self.value is None:
            attempt = self._attempt
            if attempt is None:
                attempt = self._attempt = _Attempt(ClosedError(f"{self._name} was closed"))
                nursery.start_soon(self._run, attempt)
            await attempt.done.wait()
            if attempt.error is not None:
                raise attempt.error
        return self.value

    async def _run(self, attempt: "_Attempt") -> None:
        try:
            self.value = await self._load()
            attempt.error = None
        except NydusError as exc:
            attempt.error = exc
        finally:
            self._attempt = None
            attempt.done.set()


class _Attempt:
    __slots__ = ("done", "error")

    def __init__(self, error: NydusError) -> None:
        self.done = trio.Event()
        self.error: NydusError | None = error  # stands if the attempt is cancelled
