"""What a blob gives the native relay, and when it takes that back. The relay is played by the test."""

import os
import struct
from pathlib import Path

import pytest
import trio.testing

from nydusd.errors import BackendError, ClosedError
from nydusd.native_relay import NativeSource
from nydusd.storage.backend.base import Priority
from nydusd.storage.cache.chunk_map import ALL_READY, ChunkMap
from nydusd.storage.lazy_blob import LazyBlob
from tests.support.blobs import make_blob
from tests.support.memory_backend import MemoryBackend

SIZES = [5000, 4096, 100_000, 1, 65536, 70_001]


@pytest.fixture
def made():
    return make_blob(SIZES)


@pytest.fixture
def backend(made):
    return MemoryBackend({made.info.blob_id: made.stored})


def source_of(blob: LazyBlob) -> NativeSource:
    source = blob.native_source()
    assert source is not None
    return source


def bits_set(bits, base: int, count: int) -> list[int]:
    return [i for i in range(count) if bits[base + i // 8] & (0x80 >> i % 8)]


def hit(source: NativeSource, times: int = 1) -> None:
    (before,) = struct.unpack("=Q", source.hits)
    source.hits[:] = struct.pack("=Q", before + times)


async def test_bits_are_live_and_the_descriptor_is_the_cache_files(open_blob, made, backend):
    async with open_blob(made, backend) as blob:
        source = source_of(blob)
        assert bits_set(source.bits, source.base, source.chunk_count) == []
        await blob.read([made.extent(2)])
        assert bits_set(source.bits, source.base, source.chunk_count) == [2]
        assert os.pread(source.fd, 100_000, made.chunks[2].uncompressed_offset) == made.plain[2]
        assert source_of(blob) == source


async def test_without_a_file_there_is_no_source(open_blob, made, backend):
    async with open_blob(made, backend, cached=False) as blob:
        assert blob.native_source() is None
    assert blob.native_source() is None


async def test_with_validate_only_checked_chunks_are_ready_natively(
    open_blob, made, backend, tmp_path: Path, caplog
):
    async with open_blob(made, backend) as blob:
        await blob.fill(0, made.info.uncompressed_size)
    with (tmp_path / f"{made.info.blob_id}.blob.data").open("r+b") as file:
        file.seek(made.chunks[4].uncompressed_offset)
        file.write(b"damage")
    backend.reads.clear()
    async with open_blob(made, backend, validate=True) as blob:
        source = source_of(blob)
        assert bits_set(source.bits, source.base, source.chunk_count) == []
        await blob.read([made.extent(2), made.extent(4)])
        assert bits_set(source.bits, source.base, source.chunk_count) == [2, 4]
        assert os.pread(source.fd, 65536, made.chunks[4].uncompressed_offset) == made.plain[4]
    assert len(backend.reads) == 1
    assert "cached chunk is damaged" in caplog.text


def test_a_map_whose_flag_says_all_is_all_ready_natively(tmp_path: Path):
    path = tmp_path / "map"
    ChunkMap.open(path, 10, trusted=True).close()
    with path.open("r+b") as file:
        file.seek(12)
        file.write(struct.pack("<I", ALL_READY))
    chunk_map = ChunkMap.open(path, 10, trusted=True)
    assert chunk_map.is_complete()
    bits, base = chunk_map.native_bits()
    assert bits_set(bits, base, 10) == list(range(10))
    chunk_map.close()


def test_bits_that_somebody_holds_stay_mapped_after_the_map_was_closed(tmp_path: Path):
    chunk_map = ChunkMap.open(tmp_path / "map", 10, trusted=True)
    chunk_map.mark([3])
    bits, base = chunk_map.native_bits()
    with memoryview(bits) as held:
        chunk_map.close()
        assert bits_set(held, base, 10) == [3]
    bits.close()  # nobody holds it any more


async def test_native_hits_are_counted_as_hits(open_blob, made, backend):
    async with open_blob(made, backend) as blob:
        await blob.read([made.extent(2)])
        hit(source_of(blob), 5)
        stats = blob.stats
        assert (stats.total, stats.partial_hits) == (6, 5)
        assert blob.stats.total == 6
        hit(source_of(blob))
        assert blob.stats.total == 7


async def test_the_native_answer_to_what_was_just_filled_is_a_read_but_no_hit(
    open_blob, made, backend
):
    async with open_blob(made, backend) as blob:
        await blob.fill(0, 8192)
        assert blob.stats.total == 0
        hit(source_of(blob))
        assert (blob.stats.total, blob.stats.partial_hits) == (1, 0)
        await blob.fill(0, 8192)  # there by now
        hit(source_of(blob))
        assert (blob.stats.total, blob.stats.partial_hits) == (2, 1)


async def test_reading_what_was_just_filled_is_no_hit_either(open_blob, made, backend):
    async with open_blob(made, backend) as blob:
        await blob.fill(0, 8192)
        await blob.read_plain(0, 8192)
        assert (blob.stats.total, blob.stats.partial_hits) == (1, 0)
        await blob.read_plain(0, 8192)
        hit(source_of(blob))
        assert (blob.stats.total, blob.stats.partial_hits) == (3, 2)


async def test_a_fill_that_fails_is_a_read(open_blob, made, backend):
    backend.failures.append(BackendError("registry is down", temporary=True))
    async with open_blob(made, backend) as blob:
        with pytest.raises(BackendError):
            await blob.fill(0, 1)
        assert blob.stats.total == 1


async def test_whoever_uses_the_file_natively_is_told_before_it_is_closed(open_blob, made, backend):
    told: list[bool] = []
    async with open_blob(made, backend) as blob:
        source = source_of(blob)

        def lost() -> None:
            os.fstat(source.fd)  # still open
            told.append(True)

        def not_any_more() -> None:
            pytest.fail("was removed")

        blob.add_on_lost(lost)
        blob.add_on_lost(not_any_more)
        blob.remove_on_lost(not_any_more)
        blob.remove_on_lost(not_any_more)
    assert told == [True]
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(source.fd)


async def test_a_walk_that_only_the_relay_sees_is_read_ahead(open_blob):
    made = make_blob([20_000] * 400)
    backend = MemoryBackend({made.info.blob_id: made.stored})
    woken = 0
    async with open_blob(made, backend, amplify_bytes=128 * 1024) as blob:
        source = source_of(blob)
        assert source.watch is not None
        for index in range(400):
            mask = 0x80 >> index % 8
            if not blob.is_ready(index):
                await blob.fill(made.chunks[index].uncompressed_offset, 20_000)
            elif source.watch[index // 8] & mask:
                source.watch[index // 8] &= ~mask & 0xFF
                woken += 1
                blob.touched(index)
            await trio.testing.wait_all_tasks_blocked()
        stats = blob.stats
        assert stats.readahead_bytes > stats.demand_bytes
        assert stats.readahead_bytes + stats.demand_bytes == len(made.stored)
    assert Priority.READAHEAD in backend.priorities
    assert 0 < woken < 60
    blob.touched(7)  # after the end: nothing happens


async def test_a_chunk_that_is_not_there_cannot_be_touched(open_blob, made, backend):
    async with open_blob(made, backend) as blob:
        blob.touched(3)  # before the records are known
        await blob.read([made.extent(0)])
        blob.touched(1 << 31)
        blob.touched(6)
    with pytest.raises(ClosedError):
        await blob.fill(0, 1)
