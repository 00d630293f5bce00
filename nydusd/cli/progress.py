"""A progress bar on a terminal, for commands that take a while.

Owns     the last line of the terminal until `close`.
Callers  cli.image. Nobody makes one if stderr is not a terminal.
Raises   nothing: a terminal that is gone does not stop a build.
"""

import time
from contextlib import suppress
from typing import Final, TextIO

from nydusd.units import MIB

BAR_WIDTH: Final = 30
INTERVAL_S: Final = 0.1
CLEAR_LINE: Final = "\r\x1b[K"


class ProgressBar:
    """Shows phase, bar and amount; call it as often as you like, it draws ten times a second."""

    def __init__(self, terminal: TextIO) -> None:
        """Draw nothing yet."""
        self._terminal = terminal
        self._drawn = 0.0
        self._phase = ""

    def __call__(self, phase: str, done: int, total: int) -> None:
        """Show that `done` of `total` are through; bytes in phase "data", names elsewhere."""
        now = time.monotonic()
        if phase == self._phase and now - self._drawn < INTERVAL_S:
            return
        self._phase, self._drawn = phase, now
        self._write(f"{CLEAR_LINE}{_line(phase, done, total)}")

    def close(self) -> None:
        """Wipe the bar away."""
        if self._phase:
            self._write(CLEAR_LINE)
            self._phase = ""

    def _write(self, text: str) -> None:
        with suppress(OSError):
            self._terminal.write(text)
            self._terminal.flush()


def _line(phase: str, done: int, total: int) -> str:
    if phase == "scan":
        return f"reading names   {done or ''}"
    if phase == "metadata":
        return "writing metadata"
    if not total:
        return "storing data"
    share = min(done / total, 1.0)
    bar = "#" * round(BAR_WIDTH * share)
    return (
        f"storing data   [{bar:<{BAR_WIDTH}}] {share:4.0%}  "
        f"{done / MIB:.0f} of {total / MIB:.0f} MiB"
    )
