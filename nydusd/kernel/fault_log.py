"""One log line for many equal faults, so that a dead registry does not flood the log.

Owns     when each kind of fault was last written, and how many came since.
Callers  the FUSE operations, in the trio thread; one `FaultLog` per session.
Raises   nothing.
"""

import logging
import time
from collections.abc import Callable, Hashable
from typing import Final

log = logging.getLogger(__name__)

QUIET_S: Final = 10.0  # one line per kind of fault in this time


class _Kind:
    __slots__ = ("last_s", "silenced")

    def __init__(self, last_s: float) -> None:
        self.last_s = last_s
        self.silenced = 0


class FaultLog:
    """Writes the first fault of a kind at once, then at most one line of that kind per `quiet_s`."""

    def __init__(
        self, *, quiet_s: float = QUIET_S, now_s: Callable[[], float] = time.monotonic
    ) -> None:
        """`now_s` is a monotonic clock; tests pass their own."""
        self._quiet_s = quiet_s
        self._now_s = now_s
        self._kinds: dict[Hashable, _Kind] = {}

    def report(
        self,
        kind: Hashable,
        message: str,
        *,
        level: int = logging.WARNING,
        bug: BaseException | None = None,
    ) -> None:
        """Write `message`, or count it if its kind was written less than `quiet_s` ago.

        kind: what makes two faults equal; there must be few kinds (mount and error class, not offset).
        bug: the exception whose traceback belongs to the line.
        """
        now_s = self._now_s()
        known = self._kinds.get(kind)
        if known is not None and now_s - known.last_s < self._quiet_s:
            known.silenced += 1
            return
        silenced = known.silenced if known is not None else 0
        self._kinds[kind] = _Kind(now_s)
        more = f" ({silenced} more like this since the last line)" if silenced else ""
        log.log(level, "%s%s", message, more, exc_info=bug)

    def flush(self) -> None:
        """Write how many faults were counted and not written. For the end of a session."""
        for kind, known in self._kinds.items():
            if known.silenced:
                log.warning("%s more faults of kind %s", known.silenced, kind)
        self._kinds.clear()
