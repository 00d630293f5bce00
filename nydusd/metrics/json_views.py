"""Counters as the JSON that clients decode (spec api §4.1 to §4.5, §7). Pure: plain counters in, plain values out.

Every number is an unsigned integer below 2^64: clients decode into u64, and one negative or
fractional number makes them drop the whole document. The arrays have 15 and 8 elements, always:
a client indexes them without a check.
"""

from collections.abc import Iterable, Sequence

from nydusd.kernel.stats import FileStats, FsStats, InFlightRequest
from nydusd.storage.stats import BackendStats, CacheStats

_U64_MAX = (1 << 64) - 1


def fs_view(stats: FsStats) -> dict[str, object]:
    """Return one mount's counters (spec api §4.1). Latency is always measured."""
    return {
        "files_account_enabled": stats.files_enabled,
        "access_pattern_enabled": stats.pattern_enabled,
        "record_latest_read_files_enabled": stats.latest_enabled,
        "measure_latency": True,
        "id": stats.mountpoint,
        "nr_opens": _u64(stats.nr_opens),
        "data_read": _u64(stats.data_read),
        "block_count_read": _all_u64(stats.block_count_read),
        "fop_hits": _all_u64(stats.fop_hits),
        "fop_errors": _all_u64(stats.fop_errors),
        "fop_cumulative_latency_total": _all_u64(stats.fop_cumulative_latency_us),
        "read_latency_dist": _all_u64(stats.read_latency_dist),
    }


def files_view(stats: FsStats) -> dict[str, object]:
    """Return the counters of each file by inode number (spec api §4.2); empty unless `iostats_files`."""
    return {str(ino): _file_view(one) for ino, one in stats.files.items()}


def take_latest_view(stats: FsStats) -> list[list[int]]:
    """Return the inodes read since the last call, and forget them (spec api §4.2).

    A single inode is `[n]`, a run of neighbours `[first, last]`, both ends included; ascending.
    """
    taken = sorted(stats.latest)
    stats.latest.clear()
    return runs(taken)


def runs(ascending: Iterable[int]) -> list[list[int]]:
    """Group ascending distinct integers into runs: `[n]` or `[first, last]`."""
    grouped: list[list[int]] = []
    for number in ascending:
        if grouped and number == grouped[-1][-1] + 1:
            grouped[-1][1:] = [number]
        else:
            grouped.append([number])
    return grouped


def pattern_view(stats: FsStats) -> list[dict[str, object]]:
    """Return when and how often each file was read, unread ones left out (spec api §4.2)."""
    return [
        {
            "ino": _u64(ino),
            "nr_read": _u64(pattern.nr_read),
            "first_access_time_secs": _u64(pattern.first_access_time_s),
            "first_access_time_nanos": _u64(pattern.first_access_time_ns),
        }
        for ino, pattern in stats.patterns.items()
        if pattern.nr_read
    ]


def backend_view(stats: BackendStats) -> dict[str, object]:
    """Return one backend's counters (spec api §4.3)."""
    return {
        "backend_type": stats.kind,
        "read_count": _u64(stats.read_count),
        "read_errors": _u64(stats.read_errors),
        "read_amount_total": _u64(stats.read_bytes),
        "read_cumulative_latency_millis_total": _u64(stats.latency_ms),
        "read_cumulative_latency_millis_dist": _all_u64(stats.latency_ms_by_size),
        "read_count_block_size_dist": _all_u64(stats.count_by_size),
        "read_latency_sizes_dist": [_all_u64(row) for row in stats.count_by_size_and_latency],
    }


def cache_view(stats: CacheStats) -> dict[str, object]:
    """Return one cache's counters (spec api §4.4).

    The end of prefetching is never shown before its begin: the snapshotter subtracts them unsigned
    (spec api §7).
    """
    begin_ms = _u64(stats.prefetch_begin_ms)
    end_ms = max(begin_ms, _u64(stats.prefetch_end_ms))
    return {
        "underlying_files": list(stats.underlying_files),
        "store_path": stats.store_path,
        "partial_hits": _u64(stats.partial_hits),
        "whole_hits": _u64(stats.whole_hits),
        "total": _u64(stats.total),
        "entries_count": _u64(stats.entries_count),
        "prefetch_data_amount": _u64(stats.prefetch_bytes),
        "prefetch_requests_count": _u64(stats.prefetch_requests),
        "prefetch_workers": _u64(stats.prefetch_workers),
        "prefetch_unmerged_chunks": _u64(stats.prefetch_unmerged_chunks),
        "prefetch_cumulative_time_millis": _u64(stats.prefetch_ms),
        "prefetch_begin_time_secs": begin_ms // 1000,
        "prefetch_begin_time_millis": begin_ms % 1000,
        "prefetch_end_time_secs": end_ms // 1000,
        "prefetch_end_time_millis": end_ms % 1000,
        "buffered_backend_size": _u64(stats.buffered_bytes),
        "data_all_ready": stats.data_all_ready,
    }


def inflight_view(requests: Iterable[InFlightRequest]) -> list[dict[str, int]]:
    """Return the FUSE requests that wait for an answer (spec api §4.5)."""
    return [
        {
            "inode": _u64(request.inode),
            "opcode": _u64(request.opcode),
            "unique": _u64(request.unique),
            "timestamp_secs": _u64(request.started_epoch_s),
        }
        for request in requests
    ]


def _file_view(one: FileStats) -> dict[str, object]:
    return {
        "total_fops": _u64(one.total_fops),
        "data_read": _u64(one.data_read),
        "block_count_read": _all_u64(one.block_count_read),
        "fop_hits": _all_u64(one.fop_hits),
        "fop_errors": _all_u64(one.fop_errors),
    }


def _u64(number: int) -> int:
    """Clamp: a gauge that a bug drove below zero must not cost the client the document."""
    return min(max(number, 0), _U64_MAX)


def _all_u64(numbers: Sequence[int]) -> list[int]:
    return [_u64(number) for number in numbers]
