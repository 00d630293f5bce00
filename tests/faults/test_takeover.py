"""A server dies or leaves, and a successor goes on with its descriptors: nobody who reads may notice."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.mount_runner import BIG
from tests.support.mounts import ServedMount, served, wait_until

IMAGES = ("rich=/one", "plain=/two", "rich=/deep/er")
# Reads 64 KiB at an offset, past the page cache or through it, and says what it got.
READER = """
import hashlib, mmap, os, sys
path, offset, direct = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "direct"
fd = os.open(path, os.O_RDONLY | (os.O_DIRECT if direct else 0))
buffer = mmap.mmap(-1, 65536)
got = os.preadv(fd, [buffer], offset)
print(hashlib.sha256(buffer[:got]).hexdigest())
"""


def sha256_of(offset: int) -> str:
    import hashlib

    return hashlib.sha256(BIG[offset : offset + 65536]).hexdigest()


@contextlib.contextmanager
def blocked_readers(mount: ServedMount, place: str) -> Iterator[dict[int, subprocess.Popen[str]]]:
    """Processes whose reads of one image wait for a backend that does not answer, by offset."""
    mount.do("gate", place, False)
    readers = {
        offset: subprocess.Popen(
            [sys.executable, "-c", READER, mount.path / place[1:] / "big", str(offset), kind],
            stdout=subprocess.PIPE,
            text=True,
        )
        for offset, kind in ((0, "direct"), (1 << 20, "direct"), (2 << 20, "buffered"))
    }
    try:
        wait_until(lambda: len(mount.do("in_flight")) >= 3, "all reads are in flight")
        yield readers
    finally:
        for reader in readers.values():
            reader.kill()
            reader.communicate()


def check(readers: dict[int, subprocess.Popen[str]]) -> None:
    for offset, reader in readers.items():
        said, _ = reader.communicate(timeout=20)
        assert reader.returncode == 0
        assert said.strip() == sha256_of(offset)


@contextlib.contextmanager
def succeeded(mount: ServedMount) -> Iterator[ServedMount]:
    """End the server by force, and have a successor serve the same images, attached in another order."""
    inheritance = mount.hand_over()
    mount.process.send_signal(signal.SIGKILL)
    mount.wait_end()
    successor = ServedMount(mount.path, *reversed(IMAGES), inherited=inheritance)
    inheritance.close()
    try:
        yield successor
    finally:
        successor.end()


def open_elsewhere(path: Path) -> subprocess.Popen[str]:
    """A process that holds a file open and reads it again when told.

    Not in this process: closing its files in the children that tests start would ask a dead server.
    """
    program = (
        "import os, sys; fd = os.open(sys.argv[1], os.O_RDONLY);"
        "print(os.fstat(fd).st_ino, flush=True); sys.stdin.readline();"
        "print(os.fstat(fd).st_ino, os.pread(fd, 100, 0))"
    )
    return subprocess.Popen(
        [sys.executable, "-c", program, path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("clones", [False, True])
def test_readers_blocked_by_a_kill_finish_under_the_successor(clones: bool) -> None:
    with (
        served(*IMAGES, clones=clones) as mount,
        blocked_readers(mount, "/one") as readers,
        succeeded(mount) as successor,
    ):
        check(readers)
        assert (mount.path / "deep/er/usr/hard").read_bytes() == b"127.0.0.1 localhost\n"
        assert os.listdir(mount.path / "two") == ["plain"]
        assert len(os.listdir(mount.path / "one/many")) == 500
        wait_until(lambda: not successor.do("in_flight"), "nothing is asked twice for ever")
        successor.do("stop")
        successor.expect("ended")
        assert successor.expect("unmounted") is True
        assert successor.wait_end() == 0


def test_numbers_that_the_kernel_has_stay_true() -> None:
    with served(*IMAGES) as mount:
        known = {
            place: os.stat(mount.path / place).st_ino
            for place in ("", "one", "two", "deep", "deep/er", "deep/er/etc/hosts", "two/plain")
        }
        with (
            open_elsewhere(mount.path / "deep/er/etc/hosts") as holder,
            succeeded(mount) as successor,
        ):
            assert holder.stdin is not None
            assert holder.stdout is not None
            first = holder.stdout.readline().strip()
            holder.stdin.write("\n")
            holder.stdin.close()
            again, content = holder.stdout.readline().strip().split(" ", 1)
            assert (again, content) == (first, "b'127.0.0.1 localhost\\n'")
            # Past the kernel's caches, too: what the successor itself says.
            Path("/proc/sys/vm/drop_caches").write_text("2")
            for place, ino in known.items():
                assert os.stat(mount.path / place).st_ino == ino, place
            successor.do("detach", "/deep/er")
            assert os.listdir(mount.path / "deep/er") == []
            successor.do("attach", "plain", "/deep/er")
            assert os.listdir(mount.path / "deep/er") == ["plain"]


def test_a_reader_that_a_predecessor_did_not_answer_in_time_is_answered_by_the_successor() -> None:
    """An upgrade while the registry is slow: the old server stops, the new one is asked again."""
    with served(*IMAGES, clones=False) as mount, blocked_readers(mount, "/one") as readers:
        inheritance = mount.hand_over()
        mount.do("leave")
        mount.expect("ended")
        assert mount.wait_end() == 0
        successor = ServedMount(mount.path, *IMAGES, inherited=inheritance)
        inheritance.close()
        try:
            check(readers)
        finally:
            successor.end()


def test_a_killed_reader_goes_at_once_although_the_registry_is_dead() -> None:
    with served(*IMAGES) as mount, blocked_readers(mount, "/one") as readers:
        for reader in readers.values():
            reader.kill()
        for reader in readers.values():
            assert reader.wait(20) == -signal.SIGKILL
        wait_until(lambda: not mount.do("in_flight"), "their reads are given up")
        assert os.listdir(mount.path / "two") == ["plain"]


def test_a_signal_that_does_not_kill_disturbs_no_reader() -> None:
    program = (
        "import os, signal, sys; signal.signal(signal.SIGUSR1, lambda *_: print('signal', flush=True));"
        "fd = os.open(sys.argv[1], os.O_RDONLY); print('open', flush=True);"
        "print(len(os.pread(fd, 4096, 0)), flush=True)"
    )
    with served("rich=/") as mount:
        mount.do("gate", "/", False)
        with subprocess.Popen(
            [sys.executable, "-c", program, mount.path / "big"], stdout=subprocess.PIPE, text=True
        ) as reader:
            try:
                assert reader.stdout is not None
                assert reader.stdout.readline() == "open\n"
                wait_until(lambda: mount.do("in_flight"), "the read is in flight")
                reader.send_signal(signal.SIGUSR1)
                mount.do("gate", "/", True)
                assert reader.stdout.readline() == "signal\n"
                assert reader.stdout.readline() == "4096\n"
                assert reader.wait(20) == 0
            finally:
                reader.kill()
