"""The project's slow link for tests: in the test's own nursery (`Link`), or as a process beside it.

A process is what a test needs whose reads block its thread: a real mount.
"""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks import slow_link
from benchmarks.slow_link import Link

__all__ = ["Link", "LinkProcess", "link_process"]


class LinkProcess:
    """A link in a process of its own. `address` is `host:port` to connect to."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process
        self.address = self._answer()

    def command(self, line: str) -> str:
        """Send one command (see `benchmarks/slow_link.py`) and return its answer once it is done."""
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the link ended"
        return line.strip()


@contextmanager
def link_process(to: str, *, rtt_ms: float = 0.0, mbit: float = 0.0) -> Iterator[LinkProcess]:
    """Run a link to `to` (`host:port`) until the block ends."""
    assert slow_link.__file__ is not None
    argv = [sys.executable, slow_link.__file__, "--to", to]
    argv += ["--rtt-ms", str(rtt_ms), "--mbit", str(mbit)]
    with subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield LinkProcess(process)
        finally:
            process.terminate()
            process.wait(10)
