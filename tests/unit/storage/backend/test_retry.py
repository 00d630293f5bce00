"""The retry policy as a table: which fault, how often, how long."""

import random

import pytest

from nydusd.errors import AuthError, BackendError, ThrottledError
from nydusd.storage.backend.base import Priority
from nydusd.storage.backend.retry import (
    BUDGET_KEPT_FOR_DEMAND,
    BUDGET_REFILL_PER_S,
    BUDGET_RETRIES,
    DEMAND_DELAY_MAX_S,
    RETRY_AFTER_MAX_S,
    RetryBudget,
    RetryPolicy,
    attempt_limit_s,
    call_limit_s,
)
from nydusd.units import MIB

PASSING = BackendError("reset", temporary=True)
SPECULATIVE = [Priority.READAHEAD, Priority.PREFETCH]


def delays(policy: RetryPolicy, error: BackendError, priority: Priority) -> list[float]:
    chance, found = random.Random(7), list[float]()
    while (delay := policy.delay_s(len(found) + 1, error, priority, chance)) is not None:
        found.append(delay)
    return found


def test_a_reader_gets_three_retries_with_growing_pauses() -> None:
    pauses = delays(RetryPolicy(), PASSING, Priority.DEMAND)
    assert len(pauses) == 3
    for pause, longest in zip(pauses, [0.1, 0.4, 1.6], strict=True):
        assert longest / 2 <= pause <= longest


@pytest.mark.parametrize("priority", SPECULATIVE)
def test_speculation_gets_one_retry(priority: Priority) -> None:
    (pause,) = delays(RetryPolicy(), PASSING, priority)
    assert 0.1 <= pause <= 1.0


@pytest.mark.parametrize("priority", Priority)
@pytest.mark.parametrize("error", [BackendError("404"), AuthError("403")])
def test_what_cannot_heal_is_not_retried(error: BackendError, priority: Priority) -> None:
    assert delays(RetryPolicy(), error, priority) == []


@pytest.mark.parametrize(
    ("limit", "demand", "speculative"), [(0, 3, 1), (2, 3, 2), (9, 9, 9), (255, 255, 255)]
)
def test_a_larger_retry_limit_raises_the_count(limit: int, demand: int, speculative: int) -> None:
    policy = RetryPolicy.with_limit(limit)
    pauses = delays(policy, PASSING, Priority.DEMAND)
    assert len(pauses) == demand
    assert max(pauses) <= DEMAND_DELAY_MAX_S
    assert len(delays(policy, PASSING, Priority.PREFETCH)) == speculative


@pytest.mark.parametrize(
    ("named_s", "least_s", "most_s"),
    [
        (None, 0.0, 0.1),
        (0.0, 0.0, 0.1),
        (2.0, 2.0, 2.1),
        (-5.0, 0.0, 0.1),
        (3600.0, RETRY_AFTER_MAX_S, RETRY_AFTER_MAX_S + 0.1),
    ],
)
def test_the_pause_a_server_names_is_kept_up_to_a_bound(
    named_s: float | None, least_s: float, most_s: float
) -> None:
    error = ThrottledError("429", retry_after_s=named_s)
    pause = RetryPolicy().delay_s(1, error, Priority.DEMAND, random.Random(7))
    assert pause is not None
    assert least_s <= pause <= most_s


def test_the_budget_ends_and_refills_with_time() -> None:
    budget = RetryBudget()
    taken = 0
    while budget.take(Priority.DEMAND, 100.0):
        taken += 1
    assert taken == BUDGET_RETRIES
    assert not budget.take(Priority.DEMAND, 100.0 + 0.5 / BUDGET_REFILL_PER_S)
    assert budget.take(Priority.DEMAND, 100.0 + 1.01 / BUDGET_REFILL_PER_S)
    later = sum(budget.take(Priority.DEMAND, 1e6) for _ in range(1000))
    assert later == BUDGET_RETRIES


def test_speculation_leaves_readers_their_share_of_the_budget() -> None:
    budget = RetryBudget()
    for _ in range(1000):
        budget.take(Priority.PREFETCH, 0.0)
    left = sum(budget.take(Priority.DEMAND, 0.0) for _ in range(1000))
    assert left == BUDGET_KEPT_FOR_DEMAND


def test_a_clock_that_stands_still_refills_nothing() -> None:
    budget = RetryBudget()
    assert sum(budget.take(Priority.DEMAND, 5.0 - i) for i in range(1000)) == BUDGET_RETRIES


def test_a_call_is_bounded_and_an_attempt_takes_at_most_half_of_it() -> None:
    assert call_limit_s(0) == 60
    assert call_limit_s(MIB) == 124
    assert attempt_limit_s(MIB) == 62
