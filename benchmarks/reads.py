"""Reads of file bytes, timed in this process, and compared with the source once the clock has stopped.

Each read goes to a place of its own in one buffer, so what is compared is what was read. The reader is not
the bottleneck: from tmpfs, 2 cores, it does 530,000 reads of 4 KiB per second with one job and 800,000 with
four (fio's sync engine: 450,000 and 745,000), and 34,000 and 52,000 of 128 KiB.
"""

import mmap
import multiprocessing
import os
import random
import sys
import time
from collections.abc import Sequence
from ctypes import Array, c_double
from dataclasses import dataclass
from errno import EINVAL
from multiprocessing.sharedctypes import RawArray
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import NamedTuple

KIB = 1024
READS_BYTES_MAX = {4: 48 << 20, 128: 128 << 20}  # by KiB of a read
SET_BYTES = 128 << 20  # the largest files, up to so much
SEQUENTIAL_BYTES = 1 << 20
MADV_POPULATE_WRITE = 23  # Linux 5.14; the mmap module has no name for it


class Place(NamedTuple):
    """One read: which file of the set, where."""

    file: int
    offset: int


@dataclass(frozen=True, slots=True)
class Plan:
    """Reads of one size at random places of some files; no byte is asked for twice."""

    files: tuple[Path, ...]  # relative to a tree
    size: int
    places: tuple[Place, ...]


def large_files(tree: Path, without: Path) -> tuple[Path, ...]:
    """Return the largest files but one, relative to the tree, SET_BYTES of them."""
    sizes = {
        p.relative_to(tree): p.stat().st_size
        for p in tree.rglob("*")
        if p.is_file() and not p.is_symlink()
    }
    chosen, total = [], 0
    sizes.pop(without, None)
    for path in sorted(sizes, key=lambda p: (-sizes[p], p)):
        if total and total + sizes[path] > SET_BYTES:
            break
        chosen.append(path)
        total += sizes[path]
    return tuple(chosen)


def plan_reads(tree: Path, files: Sequence[Path], kib: int) -> Plan:
    """Return the same plan for the same files: every contestant gets the same reads."""
    size = kib * KIB
    places = [
        Place(number, offset)
        for number, path in enumerate(files)
        for offset in range(0, (tree / path).stat().st_size // size * size, size)
    ]
    random.Random(kib).shuffle(places)
    return Plan(tuple(files), size, tuple(places[: READS_BYTES_MAX[kib] // size]))


def prime(store: Path) -> None:
    """Have the kernel cache a file that a mount takes its bytes from: reads are of the mount, not of the disk."""
    with store.open("rb", buffering=0) as file:
        while file.read(SEQUENTIAL_BYTES):
            pass


def sequential(tree: Path, source: Path, file: Path) -> float:
    """Read one file from its beginning to its end; return MiB per second."""
    size = (source / file).stat().st_size
    with mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_POPULATE) as room:
        view = memoryview(room)
        begin = time.perf_counter()
        fd = os.open(tree / file, os.O_RDONLY)
        position = 0
        while count := os.readv(fd, [view[position : position + SEQUENTIAL_BYTES]]):
            position += count
        seconds = time.perf_counter() - begin
        os.close(fd)
        same = position == size and room[:] == (source / file).read_bytes()
        view.release()
    if not same:
        sys.exit(f"{tree / file} read from end to end is not {source / file}")
    return size / 2**20 / seconds


def random_reads(
    tree: Path, source: Path, plan: Plan, jobs: int, in_source: Plan | None = None
) -> tuple[float, bool]:
    """Carry out a plan with so many processes; return reads per second, and whether O_DIRECT was taken.

    A file system that refuses O_DIRECT is read through the page cache, without readahead; as no byte is
    asked for twice and the cache was dropped, what is there does not help it.
    in_source: where the source has the same bytes, if not in the same places.
    """
    direct = _takes_direct(tree / plan.files[0])
    context = multiprocessing.get_context("fork")
    flags = mmap.MAP_SHARED | mmap.MAP_POPULATE
    with mmap.mmap(-1, len(plan.places) * plan.size, flags=flags) as room:
        crew = _Crew(tree, plan, jobs, room, direct, context.Barrier(jobs), RawArray("d", 2 * jobs))
        workers = [context.Process(target=crew.work, args=(job,)) for job in range(jobs)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
            if worker.exitcode:
                sys.exit(f"a reader of {tree} ended with status {worker.exitcode}")
        _compare(tree, source, in_source or plan, room)
    return len(plan.places) / (max(crew.times[1::2]) - min(crew.times[::2])), direct


def _takes_direct(path: Path) -> bool:
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_DIRECT))
    except OSError as exc:
        if exc.errno != EINVAL:
            raise
        return False
    return True


@dataclass(frozen=True, slots=True)
class _Crew:
    """The processes that share out a plan, and the memory they share."""

    tree: Path
    plan: Plan
    jobs: int
    room: mmap.mmap
    direct: bool
    barrier: Barrier
    times: "Array[c_double]"  # begin and end of each job

    def work(self, job: int) -> None:
        """Do every `jobs`-th read, each to its place in the shared buffer; ends the process."""
        size = self.plan.size
        flags = os.O_RDONLY | (os.O_DIRECT if self.direct else 0)
        fds = [os.open(self.tree / path, flags) for path in self.plan.files]
        if not self.direct:
            for fd in fds:
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
        self.room.madvise(MADV_POPULATE_WRITE)  # a fork has no page tables of shared memory
        view = memoryview(self.room)
        # Everything that Python must allocate is allocated before the clock starts.
        reads = [
            (fds[place.file], [view[number * size : (number + 1) * size]], place.offset)
            for number, place in enumerate(self.plan.places)
            if number % self.jobs == job
        ]
        preadv, read = os.preadv, 0
        self.barrier.wait()
        self.times[2 * job] = time.perf_counter()
        for fd, target, offset in reads:
            read += preadv(fd, target, offset)
        self.times[2 * job + 1] = time.perf_counter()
        os._exit(read != len(reads) * size)  # at once: the views on the buffer need no taking down


def _compare(tree: Path, source: Path, plan: Plan, room: mmap.mmap) -> None:
    """End the benchmark if a place in the buffer does not hold what the source has there."""
    fds = [os.open(source / p, os.O_RDONLY) for p in plan.files]
    for number, (file, offset) in enumerate(plan.places):
        expected = os.pread(fds[file], plan.size, offset)
        if room[number * plan.size : (number + 1) * plan.size] != expected:
            sys.exit(f"{tree / plan.files[file]} at {offset}: other bytes than the source")
    for fd in fds:
        os.close(fd)
