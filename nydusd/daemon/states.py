"""The daemon's life as a table (spec api §6, style §3.3). Pure: no clock, no task, no file.

    INIT ──mount──▶ READY ──start──▶ RUNNING ──stop──▶ READY ──stop──▶ STOPPED   (SIGTERM)
      └──takeover──▶ READY                               └──exit──▶ STOPPED      (PUT exit)

An event that the table does not name for a state is refused and changes nothing.
"""

from enum import Enum, StrEnum
from typing import Final

from nydusd.errors import StateError


class State(StrEnum):
    """What GET /daemon reports, letter by letter."""

    INIT = "INIT"
    READY = "READY"
    RUNNING = "RUNNING"
    STOPPED = "STOPPED"


class Event(StrEnum):
    """What happens to a daemon; the words stand in the error of an event that comes at a wrong time."""

    MOUNT = "Mount"
    TAKEOVER = "Takeover"
    START = "Start"
    STOP = "Stop"
    EXIT = "Exit"


class Action(Enum):
    """What a step asks the daemon to do."""

    NONE = "nothing"
    RESTORE = "take session and mounts over from the supervisor"
    SERVE = "answer the kernel's requests"
    QUIESCE = "stop answering; requests that were begun are answered first"
    UNMOUNT = "take the mount away and end"
    LEAVE = "end and leave the mount as it is"


TRANSITIONS: Final = {
    (State.INIT, Event.MOUNT): (State.READY, Action.NONE),
    (State.INIT, Event.TAKEOVER): (State.READY, Action.RESTORE),
    (State.INIT, Event.STOP): (State.STOPPED, Action.LEAVE),
    (State.READY, Event.START): (State.RUNNING, Action.SERVE),
    (State.READY, Event.STOP): (State.STOPPED, Action.UNMOUNT),
    (State.READY, Event.EXIT): (State.STOPPED, Action.LEAVE),
    (State.RUNNING, Event.STOP): (State.READY, Action.QUIESCE),
}

# The way down from each state: on SIGTERM with the mount taken away, on PUT exit with the mount kept.
TERMINATION: Final = {
    State.INIT: (Event.STOP,),
    State.READY: (Event.STOP,),
    State.RUNNING: (Event.STOP, Event.STOP),
    State.STOPPED: (),
}
DEPARTURE: Final = {
    State.INIT: (Event.STOP,),
    State.READY: (Event.EXIT,),
    State.RUNNING: (Event.STOP, Event.EXIT),
    State.STOPPED: (),
}


def step(state: State, event: Event) -> tuple[State, Action]:
    """Return the next state and what to do. Raises StateError for any pair that the table lacks."""
    try:
        return TRANSITIONS[state, event]
    except KeyError:
        raise StateError(event.value, state.value) from None
