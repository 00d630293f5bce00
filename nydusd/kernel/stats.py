"""Plain counters of file operations, per mount (spec api §4.1, §4.2, §4.5, fs-behaviour §19)."""

import time
from bisect import bisect_left
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING, Final, NamedTuple

from nydusd.storage.stats import BUCKETS, size_bucket

if TYPE_CHECKING:
    from nydusd.native_relay import ReadCounts
    from nydusd.native_tree import NativeTree, TreeCounts

READ_LATENCY_BOUNDS_US: Final = (200, 1000, 20_000, 50_000, 500_000, 1_000_000, 2_000_000)


class Op(IntEnum):
    """Position of an operation in every fop array."""

    GETATTR = 0
    READLINK = 1
    OPEN = 2
    RELEASE = 3
    READ = 4
    STATFS = 5
    GETXATTR = 6
    LISTXATTR = 7
    OPENDIR = 8
    LOOKUP = 9
    READDIR = 10
    READDIRPLUS = 11
    ACCESS = 12
    FORGET = 13
    BATCH_FORGET = 14


def _ops() -> list[int]:
    return [0] * len(Op)


def _buckets() -> list[int]:
    return [0] * BUCKETS


@dataclass(slots=True)
class FileStats:
    """One file's counters (only with iostats_files)."""

    total_fops: int = 0
    data_read: int = 0
    block_count_read: list[int] = field(default_factory=_buckets)
    fop_hits: list[int] = field(default_factory=_ops)
    fop_errors: list[int] = field(default_factory=_ops)


@dataclass(slots=True)
class AccessPattern:
    """When and how often a file was read (only with access_pattern)."""

    nr_read: int = 0
    first_access_time_s: int = 0
    first_access_time_ns: int = 0


class _NativeReads:
    """The relay's counters, which only go up, and how far they have been taken."""

    __slots__ = ("counts", "taken")

    def __init__(self, counts: "ReadCounts") -> None:
        self.counts = counts
        self.taken: tuple[int, ...] = (0,) * (3 + 2 * BUCKETS)

    def take(self) -> tuple[int, int, int, tuple[int, ...], tuple[int, ...]]:
        """Return the increase since the last call."""
        counts = self.counts
        now = (
            counts.reads,
            counts.bytes,
            counts.latency_us,
            *counts.by_size,
            *counts.by_latency,
        )
        more = tuple(new - old for new, old in zip(now, self.taken, strict=True))
        self.taken = now
        return more[0], more[1], more[2], more[3 : 3 + BUCKETS], more[3 + BUCKETS :]


@dataclass(slots=True)
class FsStats:
    """One mount's counters. The three switches come from the mount's RafsConfig."""

    mountpoint: str
    files_enabled: bool = False
    pattern_enabled: bool = False
    latest_enabled: bool = False
    nr_opens: int = 0
    data_read: int = 0
    block_count_read: list[int] = field(default_factory=_buckets)
    fop_hits: list[int] = field(default_factory=_ops)
    fop_errors: list[int] = field(default_factory=_ops)
    fop_cumulative_latency_us: list[int] = field(default_factory=_ops)
    read_latency_dist: list[int] = field(default_factory=_buckets)
    files: dict[int, FileStats] = field(default_factory=dict)
    patterns: dict[int, AccessPattern] = field(default_factory=dict)
    latest: set[int] = field(default_factory=set)  # inodes read since the last GET …?latest=true
    _native: "_NativeReads | None" = None  # reads that the relay has answered and counted
    _names: "NativeTree | None" = None  # names and attributes that it shows
    _names_taken: "TreeCounts | None" = None  # what of its counts is in ours

    @property
    def counts_per_file(self) -> bool:
        """Whether every read must be seen here, for it counts for its file."""
        return self.files_enabled or self.pattern_enabled or self.latest_enabled

    def native_reads(self) -> "ReadCounts":
        """Return the counters that the relay is to use for all files of this mount."""
        if self._native is None:
            from nydusd.native_relay import ReadCounts  # not before a file is registered

            self._native = _NativeReads(ReadCounts())
        return self._native.counts

    def add_names(self, native: "NativeTree") -> None:
        """Count what is answered from this tree, too, from now on in place of the one before."""
        self.settle()
        self._names = native
        self._names_taken = native.counts

    def settle(self) -> None:
        """Add what the relay has counted since the last time. For whoever is about to look."""
        if self._names is not None and self._names_taken is not None:
            before, now = self._names_taken, self._names.counts
            self._names_taken = now
            self.fop_hits[Op.LOOKUP] += now.lookups - before.lookups
            self.fop_hits[Op.GETATTR] += now.getattrs - before.getattrs
            self.fop_hits[Op.READDIRPLUS] += now.listings - before.listings
        if self._native is None:
            return
        reads, size, latency_us, by_size, by_latency = self._native.take()
        self.fop_hits[Op.READ] += reads
        self.data_read += size
        self.fop_cumulative_latency_us[Op.READ] += latency_us
        for bucket in range(BUCKETS):
            self.block_count_read[bucket] += by_size[bucket]
            self.read_latency_dist[bucket] += by_latency[bucket]

    def count(self, op: Op, ino: int, *, failed: bool = False) -> None:
        """Count one operation on inode `ino`."""
        (self.fop_errors if failed else self.fop_hits)[op] += 1
        if self.files_enabled:
            one = self.files.setdefault(ino, FileStats())
            one.total_fops += 1
            (one.fop_errors if failed else one.fop_hits)[op] += 1

    def count_read(self, ino: int, size: int, started_s: float, *, failed: bool = False) -> None:
        """Count one READ that returned `size` bytes (0 if it failed) and began at monotonic `started_s`."""
        self.count(Op.READ, ino, failed=failed)
        self.block_count_read[size_bucket(size)] += 1
        if self.files_enabled:
            one = self.files[ino]
            one.data_read += size
            one.block_count_read[size_bucket(size)] += 1
        if self.pattern_enabled:
            self._note_access(ino)
        if self.latest_enabled:
            self.latest.add(ino)
        if failed:
            return
        self.data_read += size
        elapsed_us = int((time.monotonic() - started_s) * 1_000_000)
        self.fop_cumulative_latency_us[Op.READ] += elapsed_us
        self.read_latency_dist[bisect_left(READ_LATENCY_BOUNDS_US, elapsed_us)] += 1

    def _note_access(self, ino: int) -> None:
        pattern = self.patterns.get(ino)
        if pattern is None:
            seconds, nanoseconds = divmod(time.time_ns(), 1_000_000_000)
            pattern = self.patterns[ino] = AccessPattern(0, seconds, nanoseconds)
        pattern.nr_read += 1


class InFlightRequest(NamedTuple):
    """One FUSE request that has not been answered yet (spec api §4.5)."""

    inode: int  # as the kernel knows it: fs_index << 56 | ino
    opcode: int  # FUSE opcode number
    unique: int
    started_epoch_s: int
