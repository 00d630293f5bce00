"""The server of an EROFS mount's devices dies, and a successor goes on: nobody who reads may notice."""

import contextlib
import hashlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from nydusd.builder.build import build_image
from nydusd.builder.options import BuildOptions
from nydusd.config.load import load
from nydusd.storage.device import BlobDevice
from nydusd.storage.pool import open_pool
from tests.support.erofs_mounts import needs_erofs
from tests.support.mounts import temporary_mountpoint, umount_lazily, wait_until
from tests.support.source_trees import seeded_bytes

pytestmark = needs_erofs

ROOT = Path(__file__).parents[2]
PATIENCE_S = 20.0
LARGE = seeded_bytes("large", 2**20 + 77)
SMALL = seeded_bytes("small", 5000)
STATE_MAX_BYTES = 65536


class Runner:
    """One serving process, and what it has handed over."""

    def __init__(self, folder: Path, mountpoint: Path, predecessor: "Runner | None" = None) -> None:
        ours, theirs = socket.socketpair()
        inherited = () if predecessor is None else predecessor.fds
        with ours, theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.support.erofs_runner", mountpoint, folder / "boot",
                 folder / "plain", str(theirs.fileno()),
                 *(() if predecessor is None else (predecessor.state, *map(str, inherited)))],
                stdin=subprocess.PIPE, pass_fds=(theirs.fileno(), *inherited), cwd=ROOT,
            )  # fmt: skip
            theirs.close()
            ours.settimeout(PATIENCE_S)
            state, fds, _, _ = socket.recv_fds(ours, STATE_MAX_BYTES, 8)
        self.state = state.decode()
        self.fds = tuple(fds)

    def say(self, word: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(word.encode() + b"\n")
        self.process.stdin.flush()

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.close_fds()

    def close_fds(self) -> None:
        for fd in self.fds:
            os.close(fd)
        self.fds = ()


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A folder with `boot`, and `plain`, the address space of its one blob."""
    (tmp_path / "source").mkdir()
    (tmp_path / "source/large").write_bytes(LARGE)
    (tmp_path / "source/small").write_bytes(SMALL)
    build_image(
        tmp_path / "source", BuildOptions(chunk_size=65536), tmp_path / "boot", tmp_path / "blobs"
    )
    config = load(
        '{"device": {"backend": {"type": "localfs", "config": {"dir": "%s"}}}, "mode": "direct"}'
        % (tmp_path / "blobs"),
        "test",
    )

    async def plain() -> bytes:
        async with open_pool() as pool:
            opened = await pool.open_image(tmp_path / "boot", config)
            device = BlobDevice(opened.blobs[0])
            content = await device.read(0, device.size)
            await opened.aclose()
            return bytes(content)

    (tmp_path / "plain").write_bytes(trio.run(plain))
    return tmp_path


@contextlib.contextmanager
def reader(path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that says when it begins to read a file, and then what it got."""
    program = (
        "import hashlib, sys; print('reads', flush=True);"
        "print(hashlib.sha256(open(sys.argv[1], 'rb').read()).hexdigest())"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, path], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "reads\n"
        try:
            yield process
        finally:
            process.kill()


def waits_for_disk(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].startswith("D")


def test_readers_blocked_by_a_kill_finish_under_the_successor(image: Path) -> None:
    with temporary_mountpoint() as mountpoint, contextlib.ExitStack() as ending:
        first = Runner(image, mountpoint)
        ending.callback(first.end)
        readers = [ending.enter_context(reader(mountpoint / name)) for name in ("large", "small")]
        first.process.send_signal(signal.SIGKILL)
        first.process.wait()
        assert os.stat(mountpoint / "small").st_size == len(SMALL)
        second = Runner(image, mountpoint, first)
        ending.callback(second.end)
        first.close_fds()
        second.say("go")
        for process, content in zip(readers, (LARGE, SMALL), strict=True):
            said, _ = process.communicate(timeout=PATIENCE_S)
            assert said.strip() == hashlib.sha256(content).hexdigest()
        second.close_fds()
        umount_lazily(mountpoint)
        assert second.process.wait(PATIENCE_S) == 0  # its session ended with the mount


def test_what_comes_while_nobody_serves_waits_for_the_successor(image: Path) -> None:
    with temporary_mountpoint() as mountpoint, contextlib.ExitStack() as ending:
        first = Runner(image, mountpoint)
        ending.callback(first.end)
        first.say("stop")
        assert first.process.wait(PATIENCE_S) == 0
        waiting = ending.enter_context(reader(mountpoint / "large"))
        second = Runner(image, mountpoint, first)
        ending.callback(second.end)
        second.say("go")
        said, _ = waiting.communicate(timeout=PATIENCE_S)
        assert said.strip() == hashlib.sha256(LARGE).hexdigest()


def test_reads_that_nobody_waits_for_do_not_hold_the_end_up(image: Path) -> None:
    with temporary_mountpoint() as mountpoint, contextlib.ExitStack() as ending:
        first = Runner(image, mountpoint)
        ending.callback(first.end)
        waiting = ending.enter_context(reader(mountpoint / "large"))
        wait_until(lambda: waits_for_disk(waiting.pid), "it waits for the device")
        waiting.kill()  # the kernel has read ahead for it, and goes on waiting
        waiting.wait(PATIENCE_S)
        first.close_fds()
        first.say("end")
        assert first.process.wait(PATIENCE_S) == 0
        assert os.listdir(mountpoint) == []


def test_without_a_successor_blocked_readers_get_eio(image: Path) -> None:
    with temporary_mountpoint() as mountpoint, contextlib.ExitStack() as ending:
        first = Runner(image, mountpoint)
        ending.callback(first.end)
        waiting = ending.enter_context(reader(mountpoint / "large"))
        first.end()
        assert waiting.wait(PATIENCE_S) == 1  # an exception, and no digest of zeros
        with pytest.raises(OSError, match="Input/output error"):
            (mountpoint / "small").read_bytes()
