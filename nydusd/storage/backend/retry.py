"""The one retry policy: after which fault, how long, how often (spec backends §5).

Pure: (attempt, error, priority, chance) → seconds to wait, or None to give up. Time and chance are
passed in. The reference's counts stand: a waiting reader gets 1 + 3 attempts, speculation 1 + 1;
`retry_limit` raises both where it is larger. A backend shares one `RetryBudget`, so that many
readers of a failing registry do not become a storm of retries: when it is empty, first attempts
go on and fail at once.

Bounds of one call, whatever the peer does: `call_limit_s(length)`, of which a single attempt may
take half, so that a peer that drips still leaves time for a fresh connection.
"""

import random
from typing import Final, NamedTuple

from nydusd.errors import BackendError, ThrottledError
from nydusd.storage.backend.base import Priority
from nydusd.units import KIB

DEMAND_RETRIES: Final = 3
SPECULATIVE_RETRIES: Final = 1
# A reader waits about 0.1, 0.4 and 1.6 s: long enough to outlive the restart of a registry.
DEMAND_FIRST_DELAY_S: Final = 0.1
DEMAND_DELAY_GROWTH: Final = 4.0
DEMAND_DELAY_MAX_S: Final = 5.0
SPECULATIVE_DELAY_S: Final = (0.1, 1.0)  # spec backends §5
RETRY_AFTER_MAX_S: Final = 10.0  # a longer pause is cut to this: somebody waits behind it

BUDGET_RETRIES: Final = 64.0  # 16 readers may retry three times each, with some to spare
BUDGET_REFILL_PER_S: Final = 8.0
BUDGET_KEPT_FOR_DEMAND: Final = 32.0

CALL_LIMIT_S: Final = 60.0
CALL_SLOWEST_BYTES_PER_S: Final = 16 * KIB  # a 1 MiB read may take 124 s, not more


def call_limit_s(length: int) -> float:
    """Return how long one call may take in all: attempts, pauses and the wait for a connection."""
    return CALL_LIMIT_S + length / CALL_SLOWEST_BYTES_PER_S


def attempt_limit_s(length: int) -> float:
    """Return how long one of its attempts may take."""
    return call_limit_s(length) / 2


class RetryPolicy(NamedTuple):
    """How often to try again."""

    demand_retries: int = DEMAND_RETRIES
    speculative_retries: int = SPECULATIVE_RETRIES

    @classmethod
    def with_limit(cls, retry_limit: int) -> "RetryPolicy":
        """Return the reference's counts, raised to the configured `retry_limit` where that is larger."""
        return cls(
            demand_retries=max(DEMAND_RETRIES, retry_limit),
            speculative_retries=max(SPECULATIVE_RETRIES, retry_limit),
        )

    def delay_s(
        self, attempt: int, error: BackendError, priority: Priority, chance: random.Random
    ) -> float | None:
        """Return the pause before the next attempt, None to give up.

        attempt: number of the one that just failed, from 1.
        """
        if not error.temporary:
            return None
        demand = priority is Priority.DEMAND
        if attempt > (self.demand_retries if demand else self.speculative_retries):
            return None
        if demand:
            grown: float = DEMAND_FIRST_DELAY_S * DEMAND_DELAY_GROWTH ** min(attempt - 1, 8)
            delay = min(grown, DEMAND_DELAY_MAX_S) * chance.uniform(0.5, 1.0)
        else:
            delay = chance.uniform(*SPECULATIVE_DELAY_S)
        if isinstance(error, ThrottledError) and error.retry_after_s is not None:
            # On top of the pause asked for: else all who were refused come back in one moment.
            delay += min(max(error.retry_after_s, 0.0), RETRY_AFTER_MAX_S)
        return delay


class RetryBudget:
    """Retries that one backend may still make; refills with time. `now_s` is any monotonic clock."""

    __slots__ = ("_left", "_seen_s")

    def __init__(self) -> None:
        """Start full."""
        self._left = BUDGET_RETRIES
        self._seen_s: float | None = None

    def take(self, priority: Priority, now_s: float) -> bool:
        """Take one retry if there is one. Speculation may not take what is kept for readers."""
        if self._seen_s is not None:
            elapsed_s = max(0.0, now_s - self._seen_s)
            self._left = min(BUDGET_RETRIES, self._left + elapsed_s * BUDGET_REFILL_PER_S)
        self._seen_s = now_s
        kept = 0.0 if priority is Priority.DEMAND else BUDGET_KEPT_FOR_DEMAND
        if self._left - 1 < kept:
            return False
        self._left -= 1
        return True
