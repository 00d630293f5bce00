"""One flight for all who want it; failure and cancellation leave no trace."""

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from nydusd.errors import AuthError, BackendError, ThrottledError
from nydusd.storage.backend.single_flight import SingleFlight


class Door:
    """What a flight does: count, wait, then succeed or fail."""

    def __init__(self) -> None:
        self.flights = 0
        self.open = trio.Event()
        self.error: BackendError | None = None

    async def fly(self) -> None:
        self.flights += 1
        await self.open.wait()
        if self.error is not None:
            raise self.error


async def test_all_who_come_meanwhile_share_one_flight(nursery: trio.Nursery) -> None:
    door, flight, done = Door(), SingleFlight(), list[int]()

    async def want(number: int) -> None:
        await flight.run(door.fly)
        done.append(number)

    for number in range(5):
        nursery.start_soon(want, number)
    await wait_all_tasks_blocked()
    assert (door.flights, done) == (1, [])
    door.open.set()
    await wait_all_tasks_blocked()
    assert sorted(done) == list(range(5))
    await want(9)
    assert door.flights == 2


@pytest.mark.parametrize(
    "error",
    [AuthError("no"), BackendError("x", temporary=True), ThrottledError("y", retry_after_s=3)],
)
async def test_a_failure_reaches_all_who_waited_and_nobody_later(
    error: BackendError, nursery: trio.Nursery
) -> None:
    door, flight, caught = Door(), SingleFlight(), list[BackendError]()
    door.error = error

    async def want() -> None:
        try:
            await flight.run(door.fly)
        except BackendError as exc:
            caught.append(exc)

    for _ in range(3):
        nursery.start_soon(want)
    await wait_all_tasks_blocked()
    door.open.set()
    await wait_all_tasks_blocked()
    assert len({id(exc) for exc in caught}) == 3
    for exc in caught:
        assert (type(exc), str(exc), vars(exc)) == (type(error), str(error), vars(error))
    door.error = None
    await flight.run(door.fly)
    assert door.flights == 2


async def test_a_cancelled_flight_is_flown_by_a_waiter(nursery: trio.Nursery) -> None:
    door, flight, done = Door(), SingleFlight(), list[str]()
    first = trio.CancelScope()

    async def cancelled() -> None:
        with first:
            await flight.run(door.fly)
            done.append("cancelled")

    async def waiter() -> None:
        await flight.run(door.fly)
        done.append("waiter")

    nursery.start_soon(cancelled)
    await wait_all_tasks_blocked()
    nursery.start_soon(waiter)
    nursery.start_soon(waiter)
    await wait_all_tasks_blocked()
    first.cancel()
    await wait_all_tasks_blocked()
    assert door.flights == 2
    door.open.set()
    await wait_all_tasks_blocked()
    assert done == ["waiter", "waiter"]


async def test_a_cancelled_waiter_disturbs_nobody(nursery: trio.Nursery) -> None:
    door, flight = Door(), SingleFlight()
    nursery.start_soon(flight.run, door.fly)
    await wait_all_tasks_blocked()
    with trio.CancelScope() as scope:
        scope.cancel()
        await flight.run(door.fly)
    assert scope.cancelled_caught
    door.open.set()
    await wait_all_tasks_blocked()
    assert door.flights == 1
