"""Counters → the JSON that clients decode (spec api §4, §7)."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nydusd.kernel.stats import AccessPattern, FileStats, FsStats, InFlightRequest, Op
from nydusd.metrics import json_views
from nydusd.storage.stats import BackendStats, CacheStats

ZEROS = [0] * 8


def test_fs_view_has_every_key_in_the_order_of_the_reference() -> None:
    stats = FsStats("/42", files_enabled=True, nr_opens=0, data_read=6)
    stats.fop_hits[Op.READ] = 1
    assert json_views.fs_view(stats) == {
        "files_account_enabled": True,
        "access_pattern_enabled": False,
        "record_latest_read_files_enabled": False,
        "measure_latency": True,
        "id": "/42",
        "nr_opens": 0,
        "data_read": 6,
        "block_count_read": ZEROS,
        "fop_hits": [0, 0, 0, 0, 1] + [0] * 10,
        "fop_errors": [0] * 15,
        "fop_cumulative_latency_total": [0] * 15,
        "read_latency_dist": ZEROS,
    }


def test_one_read_of_six_bytes_is_one_read_of_six_bytes() -> None:
    stats = FsStats("/", files_enabled=True, pattern_enabled=True, latest_enabled=True)
    stats.count_read(17, 6, 0.0)
    view = json_views.fs_view(stats)
    assert view["data_read"] == 6
    assert view["fop_hits"][4] == 1  # type: ignore[index]
    files = json_views.files_view(stats)
    assert list(files) == ["17"]
    assert files["17"]["data_read"] == 6  # type: ignore[index]
    assert [entry["ino"] for entry in json_views.pattern_view(stats)] == [17]
    assert json_views.take_latest_view(stats) == [[17]]


def test_files_view_has_arrays_of_15_and_8() -> None:
    stats = FsStats("/", files={17: FileStats(total_fops=2, data_read=6)})
    assert json_views.files_view(stats) == {
        "17": {
            "total_fops": 2,
            "data_read": 6,
            "block_count_read": ZEROS,
            "fop_hits": [0] * 15,
            "fop_errors": [0] * 15,
        }
    }


def test_files_that_were_never_read_have_no_pattern() -> None:
    stats = FsStats("/", patterns={3: AccessPattern(), 17: AccessPattern(1, 1_784_864_689, 5000)})
    assert json_views.pattern_view(stats) == [
        {
            "ino": 17,
            "nr_read": 1,
            "first_access_time_secs": 1_784_864_689,
            "first_access_time_nanos": 5000,
        }
    ]


def test_backend_view_spells_the_counters_of_one_read() -> None:
    stats = BackendStats(
        "localfs",
        read_count=1,
        read_bytes=5049,
        latency_ms=1,
        latency_ms_by_size=[0, 0, 1, *[0] * 5],
    )
    stats.count_by_size[2] = 1
    stats.count_by_size_and_latency[2][0] = 1
    assert json_views.backend_view(stats) == {
        "backend_type": "localfs",
        "read_count": 1,
        "read_errors": 0,
        "read_amount_total": 5049,
        "read_cumulative_latency_millis_total": 1,
        "read_cumulative_latency_millis_dist": [0, 0, 1, 0, 0, 0, 0, 0],
        "read_count_block_size_dist": [0, 0, 1, 0, 0, 0, 0, 0],
        "read_latency_sizes_dist": [ZEROS, ZEROS, [1, *[0] * 7], *[ZEROS] * 5],
    }


def test_cache_view_splits_times_into_seconds_and_milliseconds() -> None:
    stats = CacheStats(
        "/cache",
        underlying_files=["a.blob.data"],
        prefetch_begin_ms=1_784_864_689_012,
        prefetch_end_ms=1_784_864_690_500,
    )
    view = json_views.cache_view(stats)
    assert list(view) == [
        "underlying_files", "store_path", "partial_hits", "whole_hits", "total", "entries_count",
        "prefetch_data_amount", "prefetch_requests_count", "prefetch_workers",
        "prefetch_unmerged_chunks", "prefetch_cumulative_time_millis", "prefetch_begin_time_secs",
        "prefetch_begin_time_millis", "prefetch_end_time_secs", "prefetch_end_time_millis",
        "buffered_backend_size", "data_all_ready",
    ]  # fmt: skip
    assert view["underlying_files"] == ["a.blob.data"]
    assert (view["prefetch_begin_time_secs"], view["prefetch_begin_time_millis"]) == (
        1_784_864_689,
        12,
    )
    assert (view["prefetch_end_time_secs"], view["prefetch_end_time_millis"]) == (
        1_784_864_690,
        500,
    )


def test_prefetching_never_ends_before_it_began() -> None:
    view = json_views.cache_view(CacheStats("/cache", prefetch_begin_ms=5001, prefetch_end_ms=0))
    assert (view["prefetch_end_time_secs"], view["prefetch_end_time_millis"]) == (5, 1)


def test_a_gauge_below_zero_does_not_cost_the_client_the_document() -> None:
    view = json_views.cache_view(CacheStats("/cache", buffered_bytes=-1, prefetch_workers=-3))
    assert (view["buffered_backend_size"], view["prefetch_workers"]) == (0, 0)


def test_a_counter_beyond_64_bits_stays_decodable() -> None:
    view = json_views.backend_view(BackendStats("x", read_bytes=1 << 70))
    assert view["read_amount_total"] == (1 << 64) - 1


def test_inflight_view_names_what_the_kernel_waits_for() -> None:
    request = InFlightRequest(72_057_594_037_929_010, 15, 22_728, 1_612_245_570)
    assert json_views.inflight_view([request]) == [
        {
            "inode": 72_057_594_037_929_010,
            "opcode": 15,
            "unique": 22_728,
            "timestamp_secs": 1_612_245_570,
        }
    ]


@pytest.mark.parametrize(
    ("inodes", "expected"),
    [
        ([], []),
        ([5], [[5]]),
        ([5, 8, 9, 10, 11, 12], [[5], [8, 12]]),
        ([1, 2, 4, 5], [[1, 2], [4, 5]]),
    ],
)
def test_runs_of_neighbours(inodes: list[int], expected: list[list[int]]) -> None:
    assert json_views.runs(inodes) == expected


@given(st.sets(st.integers(0, 60)))
def test_runs_cover_exactly_the_inodes_and_cannot_be_joined(inodes: set[int]) -> None:
    grouped = json_views.runs(sorted(inodes))
    assert {ino for run in grouped for ino in range(run[0], run[-1] + 1)} == inodes
    assert all(len(run) == 1 or (len(run) == 2 and run[0] < run[1]) for run in grouped)
    assert all(before[-1] + 1 < behind[0] for before, behind in pairwise(grouped))


def test_taking_the_latest_inodes_forgets_them() -> None:
    stats = FsStats("/", latest={12, 5, 8, 9, 10, 11})
    assert json_views.take_latest_view(stats) == [[5], [8, 12]]
    assert json_views.take_latest_view(stats) == []
