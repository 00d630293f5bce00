"""Plain counters of this room. They only go up, unless a comment says so; metrics/ gives them names.

Buckets and meanings: spec api §4.3, §4.4, spec backends §12, spec fs-behaviour §19.
"""

import time
from bisect import bisect_right
from dataclasses import dataclass, field
from typing import Final

from nydusd.units import KIB, MIB

# A size falls into the first bucket whose bound is above it; the last bucket is open.
SIZE_BOUNDS_BYTES: Final = (KIB, 4 * KIB, 16 * KIB, 64 * KIB, 128 * KIB, 512 * KIB, MIB)
# A latency falls into the first bucket whose bound it does not exceed; the last bucket is open.
BACKEND_LATENCY_BOUNDS_MS: Final = (1, 20, 50, 100, 500, 1000, 2000)
BUCKETS: Final = 8


def size_bucket(size_bytes: int) -> int:
    """Return 0…7 for a request or reply size."""
    return bisect_right(SIZE_BOUNDS_BYTES, size_bytes)


def _zeros() -> list[int]:
    return [0] * BUCKETS


def _zero_matrix() -> list[list[int]]:
    return [_zeros() for _ in range(BUCKETS)]


@dataclass(slots=True)
class BackendStats:
    """Requests to one backend; one entry per attempt, failed ones included (spec backends §12)."""

    kind: str
    read_count: int = 0
    read_errors: int = 0
    read_bytes: int = 0  # asked for; the reference counts those, failed attempts too
    latency_ms: int = 0
    latency_ms_by_size: list[int] = field(default_factory=_zeros)
    count_by_size: list[int] = field(default_factory=_zeros)
    count_by_size_and_latency: list[list[int]] = field(default_factory=_zero_matrix)

    def record(self, length: int, started_s: float, *, failed: bool) -> None:
        """Count one attempt that began at monotonic `started_s` and has just ended."""
        elapsed_ms = int((time.monotonic() - started_s) * 1000)
        size = size_bucket(length)
        latency = sum(elapsed_ms > bound for bound in BACKEND_LATENCY_BOUNDS_MS)
        self.read_count += 1
        self.read_errors += failed
        self.read_bytes += length
        self.latency_ms += elapsed_ms
        self.latency_ms_by_size[size] += elapsed_ms
        self.count_by_size[size] += 1
        self.count_by_size_and_latency[size][latency] += 1


@dataclass(slots=True)
class CacheStats:
    """One cache as the snapshotter sees it, by configuration id (spec api §4.4)."""

    store_path: str
    underlying_files: list[str] = field(default_factory=list)  # goes up and down with the mounts
    total: int = 0  # reads, one per run of extents in one blob
    partial_hits: int = 0  # runs answered from the cache file without a fetch
    whole_hits: int = 0  # chunks read back whole from the cache (validation, raw mode)
    entries_count: int = 0  # chunks made ready by this process
    demand_bytes: int = 0  # stored bytes fetched because a reader waits
    readahead_bytes: int = 0  # stored bytes fetched early, behind a reader
    prefetch_bytes: int = 0
    prefetch_requests: int = 0
    prefetch_workers: int = 0
    prefetch_unmerged_chunks: int = 0
    prefetch_ms: int = 0
    prefetch_begin_ms: int = 0  # epoch milliseconds, 0: never began
    prefetch_end_ms: int = 0  # never before prefetch_begin_ms (spec api §7)
    buffered_bytes: int = 0  # decoded but not yet in the cache; goes up and down
    data_all_ready: bool = False

    def count_fetched(self, stored_bytes: int, priority: int) -> None:
        """Count bytes fetched, by who asked (a `Priority`: demand, readahead, prefetch)."""
        if priority == 0:
            self.demand_bytes += stored_bytes
        elif priority == 1:
            self.readahead_bytes += stored_bytes
        else:
            self.prefetch_bytes += stored_bytes

    def add(self, other: "CacheStats") -> None:
        """Add another cache's counters to these: sums, lists joined, begin earliest and end latest."""
        self.underlying_files += [
            f for f in other.underlying_files if f not in self.underlying_files
        ]
        for name in _SUMMED:
            setattr(self, name, getattr(self, name) + getattr(other, name))


_SUMMED: Final = (
    "total",
    "partial_hits",
    "whole_hits",
    "entries_count",
    "demand_bytes",
    "readahead_bytes",
    "prefetch_bytes",
    "buffered_bytes",
)
