"""What a container start and its user do to a tree, timed from outside; and is the tree the source's?

Every walk is given what its answer must be, or is followed by `check_same` on the same page cache.
"""

import fcntl
import os
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.process import timed

PIPE_BYTES = 1 << 20
PIECE_BYTES = 4 << 20
NO_FILE = Path("/")


def find(tree: Path) -> float:
    """Every name with its attributes."""
    return timed(["find", ".", "-printf", "%s %m %T@\\n"], tree)


def tar(tree: Path, plain_bytes: int, without: Path = NO_FILE) -> float:
    """Every byte, but those of one file. Through a pipe: GNU tar reads no data for /dev/null.

    plain_bytes: what the stream must hold at least. Its bytes are thrown away unseen (splice), so that
    neither a copy nor a comparison takes part: `check_same` is for what was read.
    """
    argv = ["tar", "-cf", "-", f"--exclude=./{without}", "."]
    source, sink = os.pipe(), os.open(os.devnull, os.O_WRONLY)
    fcntl.fcntl(source[0], fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    carried = 0
    with tempfile.TemporaryFile() as complaints:
        begin = time.perf_counter()
        with subprocess.Popen(argv, cwd=tree, stdout=source[1], stderr=complaints) as process:
            os.close(source[1])
            while count := os.splice(source[0], sink, PIPE_BYTES):
                carried += count
        seconds = time.perf_counter() - begin
        os.close(source[0])
        os.close(sink)
        if process.returncode or carried < plain_bytes:
            complaints.seek(0)
            said = b"".join(complaints.readlines()[:3]).decode(errors="replace")
            sys.exit(
                f"tar of {tree}: status {process.returncode}, {carried:,} of {plain_bytes:,} bytes\n{said}"
            )
    return seconds


def getfattr(tree: Path) -> tuple[float, list[str]]:
    """Every extended attribute below usr/share: seconds, and the lines in an order of their own."""
    begin = time.perf_counter()
    done = subprocess.run(
        ["getfattr", "-R", "-P", "-d", "-m", "-", "usr/share"],
        cwd=tree,
        capture_output=True,
        check=False,
    )
    return time.perf_counter() - begin, sorted(done.stdout.decode("utf-8", "replace").splitlines())


def check_same(tree: Path, source: Path, without: Path = NO_FILE) -> None:
    """End the benchmark if `tree` differs from the source: a fast wrong byte is worth nothing.

    Compared: names, types, modes, owners, links, sizes and times of what is no directory, every byte
    but those of one file.
    """
    for relative in _names(source):
        one, two = source / relative, tree / relative
        left, right = _attributes(one), _attributes(two)
        mode = one.lstat().st_mode
        if left != right:
            sys.exit(f"{two} is {right}, {one} is {left}")
        if stat.S_ISREG(mode) and relative != without and not _same_bytes(one, two):
            sys.exit(f"{two} has other bytes than {one}")
        if stat.S_ISDIR(mode) and set(os.listdir(one)) != set(os.listdir(two)):
            sys.exit(f"{two} has other names than {one}")


def _names(folder: Path, relative: Path = Path()) -> Iterator[Path]:
    for entry in os.scandir(folder / relative):
        yield relative / entry.name
        if entry.is_dir(follow_symlinks=False):
            yield from _names(folder, relative / entry.name)


def _attributes(path: Path) -> tuple[int | str, ...]:
    found = os.lstat(path)
    if stat.S_ISDIR(found.st_mode):
        return found.st_mode, found.st_uid, found.st_gid
    target = os.readlink(path) if stat.S_ISLNK(found.st_mode) else ""
    return (
        *(found.st_mode, found.st_uid, found.st_gid, found.st_size),
        *(int(found.st_mtime), found.st_nlink, target),
    )


def _same_bytes(one: Path, two: Path) -> bool:
    with one.open("rb", buffering=0) as left, two.open("rb", buffering=0) as right:
        while True:
            expected = left.read(PIECE_BYTES)
            if expected != right.read(PIECE_BYTES):
                return False
            if not expected:
                return True
