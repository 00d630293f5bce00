"""What a container start and its user do to a tree, as commands that are timed from outside."""

import hashlib
import os
import random
import sys
import time
from pathlib import Path

from benchmarks.process import timed

RANDOM_READS = 400


def find(tree: Path) -> float:
    """Every name with its attributes."""
    return timed(["find", ".", "-printf", "%s %m %T@\\n"], tree)


def tar(tree: Path) -> float:
    """Every byte. Through a pipe: GNU tar reads no data when its output is /dev/null."""
    return timed(["sh", "-c", "tar -cf - . | cat > /dev/null"], tree)


def getfattr(tree: Path) -> float:
    """Every extended attribute below usr/share."""
    return timed(["sh", "-c", "getfattr -R -m - usr/share > /dev/null 2>&1 || true"], tree)


def largest_file(tree: Path) -> Path:
    """Return the largest regular file, relative to the tree."""
    files = (p for p in tree.rglob("*") if p.is_file() and not p.is_symlink())
    return max(files, key=lambda p: p.stat().st_size).relative_to(tree)


def sequential(tree: Path, file: Path) -> float:
    """Seconds to read one file from its beginning to its end."""
    return timed(["dd", f"if={file}", "of=/dev/null", "bs=1M", "status=none"], tree)


def random_reads(tree: Path, file: Path, size: int) -> float:
    """Seconds for reads of `size` bytes at random places of one file, past the page cache's help."""
    path = tree / file
    rng = random.Random(1)
    last = max(path.stat().st_size - size, 1)
    offsets = [rng.randrange(last) // 4096 * 4096 for _ in range(RANDOM_READS)]
    fd = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
        begin = time.perf_counter()
        for offset in offsets:
            os.pread(fd, size, offset)
        return time.perf_counter() - begin
    finally:
        os.close(fd)


def check_same(tree: Path, source: Path) -> None:
    """End the benchmark if any file of `tree` differs from the source: a fast wrong byte is worth nothing."""
    for path in source.rglob("*"):
        if not path.is_file() or path.is_symlink():
            continue
        other = tree / path.relative_to(source)
        with path.open("rb") as one, other.open("rb") as two:
            same = (
                hashlib.file_digest(one, "blake2b").digest()
                == hashlib.file_digest(two, "blake2b").digest()
            )
        if not same:
            sys.exit(f"{other} differs from {path}")
