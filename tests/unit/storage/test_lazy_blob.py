import itertools
import os
from pathlib import Path

import pytest
import trio
import trio.testing

from nydusd.blob.model import Codec
from nydusd.errors import BackendError, ClosedError, FormatError, IntegrityError
from nydusd.storage.backend.base import Priority
from tests.support.blobs import make_blob
from tests.support.memory_backend import MemoryBackend

SIZES = [5000, 4096, 100_000, 1, 65536, 70_001]


@pytest.fixture
def made():
    return make_blob(SIZES)


@pytest.fixture
def backend(made):
    return MemoryBackend({made.info.blob_id: made.stored})


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("codec", [Codec.ZSTD, Codec.NONE])
async def test_every_byte_of_every_chunk_is_right(open_blob, cached, codec):
    made = make_blob(SIZES, codec=codec)
    backend = MemoryBackend({made.info.blob_id: made.stored})
    async with open_blob(made, backend, cached=cached) as blob:
        for index in range(len(SIZES)):
            extents = [made.extent(index)]
            assert bytes(await blob.read(extents)) == made.bytes_of(extents)
        extents = [made.extent(i) for i in (2, 3, 0, 5)]
        assert bytes(await blob.read(extents)) == made.bytes_of(extents)


async def test_part_of_a_chunk_is_cut_where_asked(open_blob, made, backend):
    async with open_blob(made, backend) as blob:
        extents = [made.extent(2, 777, 30_000), made.extent(4, 0, 10)]
        assert bytes(await blob.read(extents)) == made.bytes_of(extents)


async def test_a_ready_chunk_is_not_fetched_again(open_blob, made, backend):
    async with open_blob(made, backend) as blob:
        await blob.read([made.extent(0)])
        await blob.read([made.extent(0)])
    assert len(backend.reads) == 1


async def test_a_second_opening_serves_from_the_files_of_the_first(open_blob, made, backend):
    async with open_blob(made, backend) as blob:
        await blob.read([made.extent(i) for i in range(len(SIZES))])
    dead = MemoryBackend({})
    async with open_blob(made, dead) as blob:
        extents = [made.extent(i) for i in range(len(SIZES))]
        assert bytes(await blob.read(extents)) == made.bytes_of(extents)
    assert dead.reads == []


async def test_many_readers_of_one_chunk_cause_one_request(open_blob, made, backend):
    backend.gate = trio.Event()
    results: list[bytes] = []

    async def reader(blob, extents):
        results.append(bytes(await blob.read(extents)))

    async with open_blob(made, backend) as blob, trio.open_nursery() as nursery:
        for length in range(1, 17):
            nursery.start_soon(reader, blob, [made.extent(2, 0, length * 1000)])
        await trio.testing.wait_all_tasks_blocked()
        backend.gate.set()
    assert len(backend.reads) == 1
    assert sorted(results, key=len) == [made.plain[2][: n * 1000] for n in range(1, 17)]


async def test_overlapping_ranges_fetch_each_chunk_once(open_blob, made, backend):
    backend.gate = trio.Event()
    async with open_blob(made, backend) as blob, trio.open_nursery() as nursery:
        nursery.start_soon(blob.read, [made.extent(i) for i in (0, 1, 2)])
        nursery.start_soon(blob.read, [made.extent(i) for i in (1, 2, 3, 4)])
        await trio.testing.wait_all_tasks_blocked()
        backend.gate.set()
    fetched = sorted((offset, offset + length) for _, offset, length in backend.reads)
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(fetched))
    assert sum(end - start for start, end in fetched) == made.chunks[4].compressed_end


async def test_cancelled_reader_leaves_the_fetch_to_the_others(open_blob, made, backend):
    backend.gate = trio.Event()
    got: list[bytes] = []

    async def reader(blob, scope):
        with scope:
            got.append(bytes(await blob.read([made.extent(2)])))

    first, second = trio.CancelScope(), trio.CancelScope()
    async with open_blob(made, backend) as blob, trio.open_nursery() as nursery:
        nursery.start_soon(reader, blob, first)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(reader, blob, second)
        await trio.testing.wait_all_tasks_blocked()
        first.cancel()
        await trio.testing.wait_all_tasks_blocked()
        backend.gate.set()
    assert got == [made.plain[2]]
    assert len(backend.reads) == 1


async def test_a_fault_is_told_to_those_who_wait_and_then_forgotten(open_blob, made, backend):
    backend.failures.append(BackendError("registry is down", temporary=True))
    async with open_blob(made, backend) as blob:
        with pytest.raises(BackendError, match="registry is down"):
            await blob.read([made.extent(0)])
        assert bytes(await blob.read([made.extent(0)])) == made.plain[0]


async def test_a_flipped_byte_is_an_error_and_never_cached(open_blob, made):
    stored = bytearray(made.stored)
    stored[made.chunks[5].compressed_offset + 20] ^= 1
    backend = MemoryBackend({made.info.blob_id: bytes(stored)})
    async with open_blob(made, backend) as blob:
        with pytest.raises(IntegrityError, match="chunk 5"):
            await blob.read([made.extent(5)])
        assert not blob.is_ready(5)
        backend.blobs[made.info.blob_id] = made.stored
        assert bytes(await blob.read([made.extent(5)])) == made.plain[5]


async def test_a_broken_neighbour_does_not_fail_the_chunk_that_was_asked_for(open_blob, made):
    stored = bytearray(made.stored)
    stored[made.chunks[1].compressed_offset + 5] ^= 0xFF
    backend = MemoryBackend({made.info.blob_id: bytes(stored)})
    async with open_blob(made, backend, amplify_bytes=1 << 20) as blob:
        assert bytes(await blob.read([made.extent(0)])) == made.plain[0]
        assert len(backend.reads) == 1
        with pytest.raises(IntegrityError):
            await blob.read([made.extent(1)])


async def test_a_blob_cut_behind_the_chunk_still_gives_the_chunk(open_blob, made):
    cut = made.stored[: made.chunks[2].compressed_end]
    backend = MemoryBackend({made.info.blob_id: cut})
    async with open_blob(made, backend, amplify_bytes=1 << 20) as blob:
        assert bytes(await blob.read([made.extent(1)])) == made.plain[1]
        with pytest.raises(BackendError):
            await blob.read([made.extent(4)])


async def test_amplification_fetches_the_neighbours_with_the_first_miss(open_blob, made, backend):
    async with open_blob(made, backend, amplify_bytes=1 << 20) as blob:
        await blob.read([made.extent(0)])
        for index in range(len(SIZES)):
            assert bytes(await blob.read([made.extent(index)])) == made.plain[index]
    assert len(backend.reads) == 1


async def test_a_file_whose_chunks_descend_in_the_blob_is_fetched_once(open_blob, made, backend):
    async with open_blob(made, backend, amplify_bytes=1 << 20) as blob:
        extents = [made.extent(4), made.extent(1)]
        assert bytes(await blob.read(extents)) == made.bytes_of(extents)
        assert blob.stats.demand_bytes == sum(made.chunks[i].compressed_size for i in (1, 4, 5))


async def test_a_walk_in_order_is_read_ahead_and_counted_apart(open_blob):
    made = make_blob([20_000] * 400)
    backend = MemoryBackend({made.info.blob_id: made.stored})
    async with open_blob(made, backend, amplify_bytes=128 * 1024) as blob:
        for index in range(400):
            assert bytes(await blob.read([made.extent(index)])) == made.plain[index]
        stats = blob.stats
        assert stats.readahead_bytes > stats.demand_bytes
        assert stats.readahead_bytes + stats.demand_bytes == len(made.stored)
    assert Priority.READAHEAD in backend.priorities


async def test_an_extent_that_contradicts_the_blobs_record_is_refused(open_blob, made, backend):
    async with open_blob(made, backend) as blob:
        await blob.read([made.extent(0)])
        lie = made.extent(0)._replace(chunk_offset=4096)
        with pytest.raises(FormatError, match="chunk 0"):
            await blob.read([lie])
        with pytest.raises(FormatError):
            await blob.read([made.extent(0)._replace(chunk_index=60_000)])


async def test_closing_answers_who_still_waits(open_blob, made, backend):
    backend.gate = trio.Event()
    caught: list[BaseException] = []

    async def reader(blob):
        try:
            await blob.read([made.extent(0)])
        except ClosedError as exc:
            caught.append(exc)

    async with trio.open_nursery() as nursery, open_blob(made, backend) as blob:
        nursery.start_soon(reader, blob)
        await trio.testing.wait_all_tasks_blocked()
        await blob.aclose()
    assert len(caught) == 1


async def test_cached_bytes_that_were_damaged_are_fetched_again_with_validate(
    open_blob, made, backend, tmp_path: Path, caplog
):
    async with open_blob(made, backend) as blob:
        await blob.read([made.extent(2), made.extent(4)])
    data = tmp_path / f"{made.info.blob_id}.blob.data"
    with data.open("r+b") as file:
        file.seek(made.chunks[2].uncompressed_offset)
        file.write(b"damage")
    backend.reads.clear()
    async with open_blob(made, backend, validate=True) as blob:
        assert bytes(await blob.read([made.extent(2)])) == made.plain[2]
        assert bytes(await blob.read([made.extent(4)])) == made.plain[4]
    assert len(backend.reads) == 1
    assert "cached chunk is damaged" in caplog.text


async def test_a_truncated_cache_file_is_given_up_not_served(
    open_blob, made, backend, tmp_path, caplog
):
    async with open_blob(made, backend) as blob:
        await blob.read([made.extent(2)])
        os.truncate(tmp_path / f"{made.info.blob_id}.blob.data", 100)
        assert bytes(await blob.read([made.extent(2)])) == made.plain[2]
        assert bytes(await blob.read([made.extent(0)])) == made.plain[0]
    assert "cache file is lost" in caplog.text


async def test_a_write_behind_the_end_of_a_truncated_file_makes_no_zeros(
    open_blob, made, backend, tmp_path, caplog
):
    last = len(made.plain) - 1
    data_file = tmp_path / f"{made.info.blob_id}.blob.data"
    async with open_blob(made, backend) as blob:
        await blob.read([made.extent(2)])
        os.truncate(data_file, 100)
        assert bytes(await blob.read([made.extent(last)])) == made.plain[last]
        assert bytes(await blob.read([made.extent(2)])) == made.plain[2]
    assert "cache file is lost" in caplog.text
    os.truncate(data_file, made.info.uncompressed_size)  # as a write under way would have done
    async with open_blob(made, backend) as blob:
        assert bytes(await blob.read([made.extent(2)])) == made.plain[2]


async def test_without_a_cache_a_chunk_read_in_pieces_is_fetched_once(open_blob, made, backend):
    async with open_blob(made, backend, cached=False) as blob:
        for offset in range(0, 100_000, 10_000):
            extents = [made.extent(2, offset, 10_000)]
            assert bytes(await blob.read(extents)) == made.bytes_of(extents)
    assert len(backend.reads) == 1
