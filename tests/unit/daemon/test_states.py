"""The daemon's life as a table (spec api §6)."""

import pytest

from nydusd.daemon.states import DEPARTURE, TERMINATION, Action, Event, State, step
from nydusd.errors import StateError

ALLOWED = {
    (State.INIT, Event.MOUNT): (State.READY, Action.NONE),
    (State.INIT, Event.TAKEOVER): (State.READY, Action.RESTORE),
    (State.INIT, Event.STOP): (State.STOPPED, Action.LEAVE),
    (State.READY, Event.START): (State.RUNNING, Action.SERVE),
    (State.READY, Event.STOP): (State.STOPPED, Action.UNMOUNT),
    (State.READY, Event.EXIT): (State.STOPPED, Action.LEAVE),
    (State.RUNNING, Event.STOP): (State.READY, Action.QUIESCE),
}


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("event", Event)
def test_every_pair_is_a_step_of_the_spec_or_refused(state: State, event: Event) -> None:
    if (state, event) in ALLOWED:
        assert step(state, event) == ALLOWED[state, event]
        return
    with pytest.raises(StateError) as refused:
        step(state, event)
    assert (refused.value.event, refused.value.state) == (event.value, state.value)


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("way", [TERMINATION, DEPARTURE])
def test_every_way_down_ends_stopped(state: State, way: dict[State, tuple[Event, ...]]) -> None:
    for event in way[state]:
        state, _ = step(state, event)
    assert state is State.STOPPED


@pytest.mark.parametrize("state", State)
def test_departure_never_unmounts_and_termination_does_unless_nothing_is_mounted(
    state: State,
) -> None:
    def actions(way: tuple[Event, ...]) -> list[Action]:
        here, done = state, []
        for event in way:
            here, action = step(here, event)
            done.append(action)
        return done

    assert Action.UNMOUNT not in actions(DEPARTURE[state])
    mounted = state in (State.READY, State.RUNNING)
    assert (Action.UNMOUNT in actions(TERMINATION[state])) is mounted
