"""A cache file that the kernel reads by itself, among processes that follow the rule and one that dies."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nydusd.errors import ProtectionError
from nydusd.storage.cache.files import CacheFile, open_cache_file

ID = "cd" * 32
SIZE = 40_000

# One process: opens the file with the size it is told, does what the letters say, one line for each.
PROGRAM = """
import sys
from pathlib import Path
from nydusd.errors import ProtectionError
from nydusd.storage.cache.files import open_cache_file
file = open_cache_file(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), 10, indexed=True)
print("open", file.map.count_ready(), flush=True)
for line in sys.stdin:
    try:
        {"protect": file.protect, "close": file.close}[line.strip()]()
        print("done", flush=True)
    except ProtectionError as exc:
        print("refused", flush=True)
"""


class Other:
    """Another daemon, as far as cache files go."""

    def __init__(self, directory: Path, size: int = SIZE) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, directory, ID, str(size)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.ready = int(self._line().removeprefix("open "))

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def say(self, word: str) -> str:
        assert self.process.stdin is not None
        print(word, file=self.process.stdin, flush=True)
        return self._line()

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.communicate()


@pytest.fixture
def other(tmp_path: Path) -> Iterator[Callable[..., Other]]:
    started: list[Other] = []

    def start(size: int = SIZE) -> Other:
        started.append(Other(tmp_path, size))
        return started[-1]

    yield start
    for process in started:
        process.kill()


def whole(directory: Path) -> CacheFile:
    file = open_cache_file(directory, ID, SIZE, 10, indexed=True)
    assert file is not None
    os.pwrite(file.fd, b"x" * SIZE, 0)
    file.map.mark(range(10))
    return file


def test_two_daemons_protect_one_file_and_a_third_one_replaces_it(tmp_path, other):
    file = whole(tmp_path)
    same = other()
    assert same.ready == 10
    assert same.say("protect") == "done"
    file.protect()
    foreign = other(SIZE + 4096)
    assert foreign.ready == 0
    status = os.fstat(file.fd)
    assert (status.st_size, status.st_nlink) == (SIZE, 0)
    assert file.read(0, SIZE) == b"x" * SIZE
    assert (tmp_path / f"{ID}.blob.data").stat().st_size == SIZE + 4096
    file.close()


def test_the_lock_of_a_daemon_that_was_killed_is_gone(tmp_path, other):
    whole(tmp_path).close()
    killed = other()
    assert killed.say("protect") == "done"
    killed.kill()
    inode = (tmp_path / f"{ID}.blob.data").stat().st_ino
    assert other(SIZE + 4096).ready == 0
    now = (tmp_path / f"{ID}.blob.data").stat()
    assert (now.st_ino, now.st_size) == (inode, SIZE + 4096)


def test_a_file_that_another_daemon_made_longer_cannot_be_protected(tmp_path, other):
    file = whole(tmp_path)
    other(SIZE + 4096)
    with pytest.raises(ProtectionError, match="not whole"):
        file.protect()
    file.close()


def test_closing_one_protector_leaves_the_others_lock(tmp_path, other):
    file = whole(tmp_path)
    first, second = other(), other()
    assert (first.say("protect"), second.say("protect")) == ("done", "done")
    assert first.say("close") == "done"
    inode = os.fstat(file.fd).st_ino
    file.close()
    other(SIZE + 4096)
    assert (tmp_path / f"{ID}.blob.data").stat().st_ino != inode
