import struct
import time

from nydusd.kernel.stats import FsStats, Op


def native_read(stats: FsStats, reads: int, size: int, latency_us: int, bucket: int) -> None:
    """Count as the relay does, in its own buffer."""
    buffer = stats.native_reads().buffer
    for position, more in (
        (0, reads),
        (1, size),
        (2, latency_us),
        (3 + bucket, reads),
        (11 + bucket, reads),
    ):
        (before,) = struct.unpack_from("=Q", buffer, 8 * position)
        struct.pack_into("=Q", buffer, 8 * position, before + more)


def test_reads_of_the_relay_are_added_once_each() -> None:
    stats = FsStats("/")
    stats.count_read(7, 20, time.monotonic())
    native_read(stats, 3, 300, 50, bucket=1)
    for _ in range(2):
        stats.settle()
        assert (stats.data_read, stats.fop_hits[Op.READ]) == (320, 4)
        assert (stats.block_count_read[0], stats.block_count_read[1]) == (1, 3)
        assert stats.read_latency_dist[1] == 3
        assert stats.fop_cumulative_latency_us[Op.READ] >= 50
    native_read(stats, 1, 7, 1, bucket=7)
    stats.count_read(7, 20, time.monotonic())
    stats.settle()
    assert (stats.data_read, stats.fop_hits[Op.READ]) == (347, 6)
    assert sum(stats.block_count_read) == sum(stats.read_latency_dist) == 6


def test_without_a_relay_there_is_nothing_to_add() -> None:
    stats = FsStats("/")
    stats.settle()
    assert stats.fop_hits == [0] * len(Op)


def test_files_whose_reads_count_for_themselves_are_known() -> None:
    assert not FsStats("/").counts_per_file
    assert FsStats("/", files_enabled=True).counts_per_file
    assert FsStats("/", pattern_enabled=True).counts_per_file
    assert FsStats("/", latest_enabled=True).counts_per_file
