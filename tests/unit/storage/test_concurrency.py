import pytest
import trio
import trio.testing

from nydusd.errors import BackendError, ClosedError
from nydusd.storage.backend.base import Priority
from nydusd.storage.budget import ByteBudget
from nydusd.storage.readahead import Streams
from nydusd.storage.single_flight import SharedLoad


async def test_a_load_runs_once_for_all_who_wait():
    gate, loads = trio.Event(), []

    async def load():
        loads.append(1)
        await gate.wait()
        return "value"

    shared, got = SharedLoad("x", load), []

    async def ask(nursery):
        got.append(await shared.get(nursery))

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(ask, nursery)
        await trio.testing.wait_all_tasks_blocked()
        gate.set()
    assert (got, loads) == (["value"] * 5, [1])


async def test_a_failed_load_is_told_to_its_waiters_and_tried_again_later():
    outcomes = [BackendError("no"), "value"]

    async def load():
        outcome = outcomes.pop(0)
        if isinstance(outcome, BackendError):
            raise outcome
        return outcome

    shared = SharedLoad("x", load)
    async with trio.open_nursery() as nursery:
        with pytest.raises(BackendError):
            await shared.get(nursery)
        assert await shared.get(nursery) == "value"


async def test_a_cancelled_load_tells_closed():
    shared = SharedLoad("blob x", trio.sleep_forever)
    async with trio.open_nursery() as outer:

        async def ask(inner):
            with pytest.raises(ClosedError, match="blob x"):
                await shared.get(inner)

        async with trio.open_nursery() as inner:
            outer.start_soon(ask, inner)
            await trio.testing.wait_all_tasks_blocked()
            inner.cancel_scope.cancel()


async def test_demand_passes_speculation_in_the_budget():
    budget, order = ByteBudget(100), []

    async def hold(name, priority):
        async with budget.hold(60, priority):
            order.append(name)

    async with trio.open_nursery() as nursery, budget.hold(60, Priority.DEMAND):
        nursery.start_soon(hold, "prefetch", Priority.PREFETCH)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(hold, "readahead", Priority.READAHEAD)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(hold, "demand", Priority.DEMAND)
        await trio.testing.wait_all_tasks_blocked()
        assert order == []
    assert order == ["demand", "readahead", "prefetch"]
    assert budget.used_bytes == 0


async def test_more_than_the_whole_budget_is_granted_alone():
    budget = ByteBudget(10)
    async with budget.hold(1000, Priority.DEMAND):
        assert budget.used_bytes == 1000


async def test_a_cancelled_waiter_gives_way():
    budget = ByteBudget(10)
    async with budget.hold(10, Priority.DEMAND):
        with trio.move_on_after(0):
            async with budget.hold(10, Priority.DEMAND):
                pytest.fail("must not be granted")
    async with budget.hold(10, Priority.DEMAND):
        assert budget.used_bytes == 10


def test_a_sequential_reader_gets_growing_windows():
    streams = Streams(100)
    key, window = streams.miss(0)
    streams.extended(key, 0, 10)
    assert window == 100
    due = [streams.touch(i) for i in range(1, 10)]
    (found,) = [d for d in due if d is not None][:1]
    assert (found.begin, found.window_bytes) == (10, 200)
    assert due.index(found) == 4  # at chunk 5, half of the window


def test_a_random_reader_never_gets_more_than_the_first_window():
    streams = Streams(100)
    for index in (500, 20, 900, 300, 700):
        key, window = streams.miss(index)
        streams.extended(key, index, index + 10)
        assert window == 100
        assert streams.touch(index + 9) is None


def test_the_same_miss_again_does_not_widen_its_window():
    streams = Streams(100)
    for _ in range(3):
        key, window = streams.miss(7)
        streams.extended(key, 7, 9)
        assert window == 100
