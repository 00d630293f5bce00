"""The boundary between pyfuse3 and our code: nothing but an errno leaves it.

pyfuse3 answers only `FUSEError`; any other exception leaves its loop and ends the mount. So `answered`
wraps every operation, and no file system of ours is registered without being a `GuardedOperations`.

Owns     the table of requests that wait, and the log of faults.
Callers  pyfuse3, in the trio thread; daemon/ and api/ read `in_flight()`.
Raises   FUSEError only (and Cancelled).
Cancel   see `patient`.
"""

import errno
import functools
import itertools
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Concatenate, Final, ParamSpec, TypeVar

import pyfuse3
import trio

from nydusd.errors import NydusError
from nydusd.kernel.errno_map import Refusal, errno_of
from nydusd.kernel.fault_log import FaultLog
from nydusd.kernel.stats import InFlightRequest

OPCODE_READ: Final = 15  # FUSE opcode numbers are the kernel's, linux/fuse.h

P = ParamSpec("P")
T = TypeVar("T")
G = TypeVar("G", bound="GuardedOperations")


class GuardedOperations(pyfuse3.Operations):
    """Base of all file systems that a `Session` serves.

    Requests that are answered without waiting never show in `in_flight()`: whoever could look runs in the
    same thread. Only what goes through `patient` does, which is reads.
    """

    supports_dot_lookup = False  # that is for NFS export, which the session does not offer

    def __init__(self) -> None:
        """Nothing in flight."""
        super().__init__()
        self.faults = FaultLog()
        self._unique = itertools.count(1)  # pyfuse3 hides the kernel's own number
        self._waiting: dict[int, tuple[InFlightRequest, trio.CancelScope]] = {}
        self._shielded = True

    def in_flight(self) -> list[InFlightRequest]:
        """Return the requests that wait for bytes, oldest first (spec api §4.5)."""
        return [request for request, _ in self._waiting.values()]

    def describe(self, nodeid: int) -> str:
        """Return words for a log line about the object; a subclass knows better ones."""
        return f"nodeid={nodeid}"

    def unshield(self) -> None:
        """Let cancellation reach the requests that wait, now and from now on: the end of a session."""
        self._shielded = False
        for _, scope in self._waiting.values():
            scope.shield = False

    async def patient(self, opcode: int, nodeid: int, answer: Awaitable[T]) -> T:
        """Await `answer`, visible as in flight.

        Cancel: put off until `unshield`. pyfuse3 cancels all its tasks when one of them meets an error
        (see Session.serve), and their readers must get their bytes all the same.
        """
        unique = next(self._unique)
        scope = trio.CancelScope(shield=self._shielded)
        request = InFlightRequest(nodeid, opcode, unique, int(time.time()))
        self._waiting[unique] = (request, scope)
        try:
            with scope:
                return await answer
        finally:
            del self._waiting[unique]
        raise AssertionError("nobody cancels the scope itself")


def answered(
    operation: Callable[Concatenate[G, int, P], Awaitable[T]],
) -> Callable[Concatenate[G, int, P], Coroutine[Any, Any, T]]:
    """Turn what an operation on a nodeid raises into the errno its caller gets.

    A fault is logged as one line, collapsed if it repeats; a bug with its traceback.
    """
    name = operation.__name__

    @functools.wraps(operation)
    async def guarded(self: G, nodeid: int, /, *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return await operation(self, nodeid, *args, **kwargs)
        except pyfuse3.FUSEError:
            raise
        except Refusal as refusal:
            raise pyfuse3.FUSEError(refusal.errno) from None
        except NydusError as fault:
            number = errno_of(fault)
            where = self.describe(nodeid)
            self.faults.report(
                (name, where.partition(" ")[0], type(fault).__name__),
                f"{name} failed: {where}{_range(name, args)}"
                f" errno={errno.errorcode[number]} error={fault}",
            )
            raise pyfuse3.FUSEError(number) from None
        except Exception as bug:  # noqa: BLE001 - boundary (docs/style.md §3.4): it would end the mount
            self.faults.report(
                (name, type(bug).__name__),
                f"bug: {name} {self.describe(nodeid)}{_range(name, args)}",
                level=logging.ERROR,
                bug=bug,
            )
            raise pyfuse3.FUSEError(errno.EIO) from None

    return guarded


def _range(name: str, args: tuple[object, ...]) -> str:
    """Return offset and size of a read, for the log."""
    if name != "read" or len(args) < 2:
        return ""
    return f" offset={args[0]} size={args[1]}"
