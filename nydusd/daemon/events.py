"""The last errors of the log, as GET /daemon/events shows them (spec api §3.1).

Owns     a ring of at most 500 lines and 51,200 bytes.
Callers  logging puts records in, from any thread, under the handler's lock; the API takes views.
Raises   nothing.
"""

import logging
import time
from collections import deque
from typing import Final

from nydusd.logs import blotted

EVENTS_MAX: Final = 500
EVENTS_MAX_BYTES: Final = 51_200
_DATE: Final = (
    "%a, %d %b %Y %H:%M:%S GMT"  # RFC 9110; the C locale's names, which nobody here changes
)


class EventRing(logging.Handler):
    """Keeps the newest ERROR records that fit."""

    def __init__(self) -> None:
        """Begin empty."""
        super().__init__(logging.ERROR)
        self._lines: deque[str] = deque()
        self._bytes = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one record, at the price of the oldest."""
        try:
            text = blotted(record.getMessage())
        except (TypeError, ValueError):  # arguments that do not fit the format: a bug of the caller
            text = str(record.msg)
        line = f"{time.strftime(_DATE, time.gmtime(record.created))} - {text}"
        line = line.encode(errors="replace")[:EVENTS_MAX_BYTES].decode(errors="ignore")
        size = _size(line)
        while self._lines and (
            len(self._lines) >= EVENTS_MAX or self._bytes + size > EVENTS_MAX_BYTES
        ):
            self._bytes -= _size(self._lines.popleft())
        self._lines.append(line)
        self._bytes += size

    def view(self) -> dict[str, object]:
        """Return the lines, oldest first, with the limits."""
        self.acquire()
        try:
            return {
                "max_errors": EVENTS_MAX,
                "total_errors": len(self._lines),
                "max_size": EVENTS_MAX_BYTES,
                "total_size": self._bytes,
                "errors": list(self._lines),
            }
        finally:
            self.release()


def _size(line: str) -> int:
    return len(line.encode())
