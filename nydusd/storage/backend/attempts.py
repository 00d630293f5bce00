"""One backend call as a row of attempts: bounded in time and number, counted, ended by close.

The shell around retry.py that every network backend shares; what one attempt does is the backend's.

Owns     the places for requests under way, the retry budget, the calls that `close` must end.
Callers  tasks of the trio thread.
Raises   what the last attempt raised, BackendError when time is up, ClosedError after `close`.
Cancel   ends the attempt that is under way; a place is given back.
"""

import logging
import random
from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from time import monotonic
from typing import Final, TypeVar

import trio

from nydusd.errors import BackendError, ClosedError
from nydusd.storage.backend.base import Asked, Priority
from nydusd.storage.backend.retry import (
    RetryBudget,
    RetryPolicy,
    attempt_limit_s,
    call_limit_s,
)
from nydusd.storage.stats import BackendStats
from nydusd.units import MIB

PLACES: Final = 16  # requests under way, hence connections
SPECULATIVE_PLACES: Final = 12  # the rest is kept for readers
SLOW_S: Final = 0.25  # a longer attempt is worth a line (spec backends §5)
SLOW_LARGE_S: Final = 1.0
LARGE_BYTES: Final = 4 * MIB

T = TypeVar("T")
log = logging.getLogger(__name__)


class Attempts:
    """Runs the calls of one backend."""

    def __init__(self, stats: BackendStats, policy: RetryPolicy, chance: random.Random) -> None:
        """`stats` gets one entry per attempt of a counted call."""
        self._stats = stats
        self._policy = policy
        self._chance = chance
        self._budget = RetryBudget()
        self._places = trio.Semaphore(PLACES)
        self._speculative_places = trio.Semaphore(SPECULATIVE_PLACES)
        self._calls: set[trio.CancelScope] = set()
        self._closed = False

    async def run(
        self,
        asked: Asked,
        priority: Priority,
        attempt: Callable[[], Awaitable[T]],
        *,
        counted: bool = True,
    ) -> T:
        """Return what `attempt` returns, after as many tries as the policy grants.

        attempt: raises BackendError only. Never takes longer than `call_limit_s`.
        """
        limit_s = call_limit_s(max(asked.length, 0))
        with trio.CancelScope(deadline=trio.current_time() + limit_s) as scope:
            self._calls.add(scope)
            try:
                self._check_open(asked)
                return await self._row(asked, priority, attempt, counted)
            finally:
                self._calls.discard(scope)
        self._check_open(asked)
        raise BackendError(f"{asked}: not had within {limit_s:.0f} s", temporary=True)

    def close(self) -> None:
        """End all calls with ClosedError, and every later one at once."""
        self._closed = True
        for scope in self._calls:
            scope.cancel()

    def _check_open(self, asked: Asked) -> None:
        if self._closed:
            raise ClosedError(f"{asked}: the backend is closed")

    async def _row(
        self, asked: Asked, priority: Priority, attempt: Callable[[], Awaitable[T]], counted: bool
    ) -> T:
        number = 0
        while True:
            number += 1
            try:
                return await self._one(asked, priority, attempt, counted)
            except BackendError as exc:
                error = exc
            pause_s = self._policy.delay_s(number, error, priority, self._chance)
            if pause_s is None or not self._budget.take(priority, trio.current_time()):
                raise error
            log.info("retry attempt=%d pause_s=%.2f error=%s", number + 1, pause_s, error)
            await trio.sleep(pause_s)

    async def _one(
        self, asked: Asked, priority: Priority, attempt: Callable[[], Awaitable[T]], counted: bool
    ) -> T:
        limit_s = attempt_limit_s(max(asked.length, 0))
        own = nullcontext() if priority is Priority.DEMAND else self._speculative_places
        async with own, self._places:
            started_s, failed = monotonic(), True
            try:
                with trio.move_on_after(limit_s):
                    result = await attempt()
                    failed = False
                    return result
                raise BackendError(
                    f"{asked}: no whole answer within {limit_s:.0f} s", temporary=True
                )
            except trio.Cancelled:
                failed = False  # nobody wants it any more: no fault of the backend's
                raise
            finally:
                if counted:
                    self._stats.record(asked.length, started_s, failed=failed)
                _tell_slow(asked, monotonic() - started_s)


def _tell_slow(asked: Asked, elapsed_s: float) -> None:
    if elapsed_s >= (SLOW_LARGE_S if asked.length > LARGE_BYTES else SLOW_S):
        log.debug("slow asked=%s seconds=%.2f", asked, elapsed_s)
