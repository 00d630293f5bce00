"""One flight however many want its outcome; a failed or abandoned one leaves no trace.

Cancel: a waiter only stops waiting. If the task that flies is cancelled, one of the waiters flies anew.
"""

from collections.abc import Awaitable, Callable

import trio

from nydusd.errors import BackendError


class _Flight:
    __slots__ = ("done", "error", "landed")

    def __init__(self) -> None:
        self.done = trio.Event()
        self.error: BackendError | None = None
        self.landed = False


class SingleFlight:
    """Joins those who want the same thing done at the same time."""

    __slots__ = ("_flight",)

    def __init__(self) -> None:
        """Nobody flies yet."""
        self._flight: _Flight | None = None

    async def run(self, fly: Callable[[], Awaitable[None]]) -> None:
        """Run `fly`, or wait for the one under way. Its BackendError reaches all who waited."""
        while (flight := self._flight) is not None:
            await flight.done.wait()
            if flight.error is not None:
                # Each waiter raises its own: one object raised in many tasks mixes their tracebacks.
                error = _twin(flight.error)
                raise error from flight.error
            if flight.landed:
                return
        flight = self._flight = _Flight()
        try:
            await fly()
            flight.landed = True
        except BackendError as exc:
            flight.error = exc
            raise
        finally:
            self._flight = None
            flight.done.set()


def _twin(error: BackendError) -> BackendError:
    """Return an error of the same class, text and fields."""
    twin = type(error).__new__(type(error))
    twin.args = error.args
    twin.__dict__.update(error.__dict__)
    return twin
