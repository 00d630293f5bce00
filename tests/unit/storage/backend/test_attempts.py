"""One call as a row of attempts: its bounds, its places, its counters, its end by close."""

import random
from collections import deque

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from nydusd.errors import BackendError, ClosedError
from nydusd.storage.backend.attempts import PLACES, SPECULATIVE_PLACES, Attempts
from nydusd.storage.backend.base import Asked, Priority
from nydusd.storage.backend.retry import RetryPolicy
from nydusd.storage.stats import BackendStats

ASKED = Asked("b", 0, 100)


class Door:
    """An attempt that waits, then does what is queued for it, else succeeds."""

    def __init__(self) -> None:
        self.begun = 0
        self.open = trio.Event()
        self.outcomes: deque[BackendError] = deque()

    async def attempt(self) -> str:
        self.begun += 1
        await self.open.wait()
        if self.outcomes:
            raise self.outcomes.popleft()
        return "bytes"


def attempts_with(stats: BackendStats) -> Attempts:
    return Attempts(stats, RetryPolicy(), random.Random(1))


async def test_faults_that_pass_are_outlived_and_counted(autojump_clock: MockClock) -> None:
    stats, door = BackendStats("x"), Door()
    door.open.set()
    door.outcomes.extend([BackendError("x", temporary=True)] * 3)
    assert await attempts_with(stats).run(ASKED, Priority.DEMAND, door.attempt) == "bytes"
    assert (stats.read_count, stats.read_errors, stats.read_bytes) == (4, 3, 400)


async def test_the_last_fault_is_what_the_caller_gets(autojump_clock: MockClock) -> None:
    stats, door = BackendStats("x"), Door()
    door.open.set()
    faults = [BackendError(str(number), temporary=True) for number in range(4)]
    door.outcomes.extend(faults)
    with pytest.raises(BackendError) as caught:
        await attempts_with(stats).run(ASKED, Priority.DEMAND, door.attempt)
    assert caught.value is faults[-1]


async def test_an_uncounted_call_leaves_the_counters_alone() -> None:
    stats, door = BackendStats("x"), Door()
    door.open.set()
    await attempts_with(stats).run(Asked("b"), Priority.DEMAND, door.attempt, counted=False)
    assert stats == BackendStats("x")


async def test_an_attempt_that_hangs_leaves_time_for_another(autojump_clock: MockClock) -> None:
    stats, begun = BackendStats("x"), list[float]()

    async def hangs_once() -> str:
        begun.append(trio.current_time())
        if len(begun) == 1:
            await trio.sleep_forever()
        return "bytes"

    assert await attempts_with(stats).run(ASKED, Priority.DEMAND, hangs_once) == "bytes"
    assert begun[1] - begun[0] == pytest.approx(30, abs=0.2)
    assert stats.read_errors == 1


async def test_a_call_that_finds_no_place_ends_in_time(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    attempts, door = attempts_with(BackendStats("x")), Door()

    async def call() -> None:
        with pytest.raises(BackendError, match="not had within 60 s"):
            await attempts.run(ASKED, Priority.DEMAND, door.attempt)

    async with trio.open_nursery() as callers:
        for _ in range(3 * PLACES):
            callers.start_soon(call)
    assert trio.current_time() == pytest.approx(60, abs=1)


async def test_places_are_bounded_and_some_are_the_readers_own(nursery: trio.Nursery) -> None:
    attempts, door = attempts_with(BackendStats("x")), Door()
    for _ in range(2 * PLACES):
        nursery.start_soon(attempts.run, ASKED, Priority.PREFETCH, door.attempt)
    await wait_all_tasks_blocked()
    assert door.begun == SPECULATIVE_PLACES
    for _ in range(2 * PLACES):
        nursery.start_soon(attempts.run, ASKED, Priority.DEMAND, door.attempt)
    await wait_all_tasks_blocked()
    assert door.begun == PLACES
    door.open.set()
    await wait_all_tasks_blocked()
    assert door.begun == 4 * PLACES


async def test_a_cancelled_caller_gives_its_place_back_and_is_no_fault(
    nursery: trio.Nursery,
) -> None:
    stats, door = BackendStats("x"), Door()
    attempts = attempts_with(stats)
    for _ in range(2 * PLACES):
        with trio.CancelScope() as scope:
            nursery.start_soon(cancel_soon, scope)
            await attempts.run(ASKED, Priority.PREFETCH, door.attempt)
    assert stats.read_errors == 0
    door.open.set()
    assert await attempts.run(ASKED, Priority.PREFETCH, door.attempt) == "bytes"


async def cancel_soon(scope: trio.CancelScope) -> None:
    await wait_all_tasks_blocked()
    scope.cancel()


async def test_close_ends_those_under_way_those_waiting_and_those_to_come(
    nursery: trio.Nursery,
) -> None:
    attempts, door, ended = attempts_with(BackendStats("x")), Door(), list[bool]()

    async def call() -> None:
        with pytest.raises(ClosedError):
            await attempts.run(ASKED, Priority.DEMAND, door.attempt)
        ended.append(True)

    for _ in range(PLACES + 5):
        nursery.start_soon(call)
    await wait_all_tasks_blocked()
    attempts.close()
    await wait_all_tasks_blocked()
    assert len(ended) == PLACES + 5
    await call()
