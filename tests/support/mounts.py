"""Real mounts for integration tests: temporary mountpoints, and processes that serve them.

A machine that cannot mount skips these tests; where CI=true is set it fails them instead, so that they
are never skipped unseen.
"""

import contextlib
import ctypes
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

PATIENCE_S = 20.0  # a bound for conditions that normally hold at once
_MNT_DETACH = 2
_SEQPACKET = (socket.AF_UNIX, socket.SOCK_SEQPACKET)


def why_no_mounts() -> str | None:
    """Return why this machine cannot mount FUSE file systems, None if it can."""
    from nydusd.kernel import mount

    with tempfile.TemporaryDirectory(prefix="nydusd-can-mount-") as place:
        try:
            os.close(mount.mount_fuse(Path(place)))
        except mount.MountError as exc:
            return str(exc)
        mount.detach(Path(place))
    return None


def require_mounts() -> None:
    """Skip the calling test, or fail it in CI, if this machine cannot mount."""
    if reason := why_no_mounts():
        if os.environ.get("CI") == "true":
            pytest.fail(f"CI must be able to mount: {reason}")
        pytest.skip(f"this machine cannot mount: {reason}")


def is_mounted(path: Path) -> bool:
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return any(line.split()[4] == str(path) for line in lines)


def umount_lazily(path: Path) -> None:
    """What `umount -l` does; nothing if nothing is mounted."""
    ctypes.CDLL(None).umount2(os.fsencode(path), _MNT_DETACH)


@contextlib.contextmanager
def temporary_mountpoint() -> Iterator[Path]:
    """An empty directory; whatever is mounted there in the end is taken off."""
    require_mounts()
    with tempfile.TemporaryDirectory(prefix="nydusd-test-") as place:
        path = Path(place).resolve() / "mnt"
        path.parent.chmod(0o755)  # other users are to reach the mount
        path.mkdir()
        try:
            yield path
        finally:
            while is_mounted(path):
                umount_lazily(path)


def wait_until(condition: Any, what: str) -> None:
    """Poll a condition of another process; fails after PATIENCE_S."""
    end_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end_s, f"never came true: {what}"
        time.sleep(0.005)


@dataclass(frozen=True)
class Inheritance:
    """A session between two servers: what the first told, and its descriptors, which are ours now."""

    told: dict[str, Any]
    fds: tuple[int, ...]

    def close(self) -> None:
        for fd in self.fds:
            os.close(fd)


class ServedMount:
    """A mount_runner process and the mount it serves."""

    def __init__(
        self,
        path: Path,
        *mounts: str,
        inherited: "Inheritance | None" = None,
        clones: bool = True,
    ) -> None:
        """`inherited`: of a predecessor on the same path. clones: several descriptors for one session."""
        self.path = path
        environment = dict(os.environ, CLONES="yes" if clones else "no")
        if inherited is not None:
            environment["INHERITED"] = json.dumps({**inherited.told, "fds": inherited.fds})
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed in end()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.mount_runner", str(path), *mounts],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=environment,
            pass_fds=() if inherited is None else inherited.fds,
        )
        self.connection_id = self.expect("ready")

    def expect(self, event: str) -> Any:
        """Return the value of the runner's next line, which must be of this kind."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"the runner ended instead of saying {event}: {self.log()}"
        said, value = json.loads(line)
        assert said == event, f"{line!r} instead of {event}: {self.log()}"
        return value

    def send(self, command: str, *arguments: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps([command, *arguments]).encode() + b"\n")
        self.process.stdin.flush()

    def do(self, command: str, *arguments: object) -> Any:
        """Run a command in the runner and return its result."""
        self.send(command, *arguments)
        return self.expect("done")

    def hand_over(self) -> "Inheritance":
        """Have the process send its session, as to a supervisor."""
        with tempfile.TemporaryDirectory() as place, socket.socket(*_SEQPACKET) as listener:
            listener.bind(f"{place}/supervisor")
            listener.listen()
            listener.settimeout(PATIENCE_S)
            self.send("hand_over", f"{place}/supervisor")
            channel, _ = listener.accept()
            with channel:
                message, fds, _, _ = socket.recv_fds(channel, 1 << 20, 64)
            self.expect("done")
        return Inheritance(json.loads(message), tuple(fds))

    def log(self) -> str:
        """Return what the runner has logged so far."""
        return os.pread(self._log.fileno(), 1 << 20, 0).decode(errors="replace")

    def wait_end(self) -> int:
        """Return the exit status."""
        return self.process.wait(PATIENCE_S)

    def end(self) -> None:
        """Whatever state the process is in: end it and leave nothing mounted."""
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
        while is_mounted(self.path):
            umount_lazily(self.path)
        self.process.kill()
        self.process.wait(PATIENCE_S)
        self._log.close()


@contextlib.contextmanager
def served(*mounts: str, clones: bool = True) -> Iterator[ServedMount]:
    """Serve images of mount_runner, e.g. served("rich=/"), on a temporary mountpoint."""
    with temporary_mountpoint() as path:
        mount = ServedMount(path, *mounts, clones=clones)
        try:
            yield mount
        finally:
            mount.end()
