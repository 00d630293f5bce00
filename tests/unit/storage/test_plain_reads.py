"""A blob read by plain address, and the devices that do so."""

import os
import random
from pathlib import Path

import pytest
import trio
import trio.testing

from nydusd.blob.model import BLOCK_BYTES, BlobInfo
from nydusd.errors import BackendError, ClosedError, FormatError, IntegrityError
from nydusd.storage.backend.base import Priority
from nydusd.storage.device import BlobDevice
from tests.support.blobs import MadeBlob, make_blob
from tests.support.memory_backend import MemoryBackend
from tests.support.plain import plain_of

SIZES = [5000, 4096, 100_000, 1, 65536, 70_001]


def with_hole(made: MadeBlob, index: int, shift: int) -> MadeBlob:
    """The same chunks, those from `index` on moved up by `shift` plain bytes."""
    chunks = [
        c._replace(uncompressed_offset=c.uncompressed_offset + shift)
        if c.chunk_index >= index
        else c
        for c in made.chunks
    ]
    info = replace_size(made, shift)
    return MadeBlob(info, made.stored, chunks, made.plain)


def replace_size(made: MadeBlob, more: int) -> BlobInfo:
    return made.info._replace(uncompressed_size=made.info.uncompressed_size + more)


@pytest.fixture
def made():
    return make_blob(SIZES)


@pytest.fixture
def backend(made):
    return MemoryBackend({made.info.blob_id: made.stored})


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("validate", [True, False])
async def test_any_range_is_what_the_chunks_say_and_zeros_between(open_blob, cached, validate):
    made = with_hole(make_blob(SIZES), 3, 3 * 4096)
    backend = MemoryBackend({made.info.blob_id: made.stored})
    plain, rng = plain_of(made, extra=8192), random.Random(7)
    async with open_blob(made, backend, cached=cached, validate=validate) as blob:
        for _ in range(60):
            offset = rng.randrange(len(plain) - 1)
            length = min(rng.choice([1, 4096, 50_000, 300_000]), len(plain) - offset)
            assert bytes(await blob.read_plain(offset, length)) == plain[offset : offset + length]


async def test_a_range_fetches_the_chunks_in_it_whole_and_no_other(open_blob, made, backend):
    async with open_blob(made, backend) as blob:
        at = made.chunks[2].uncompressed_offset
        await blob.read_plain(at + 4096, 4096)
        assert [blob.is_ready(index) for index in range(len(SIZES))] == [
            index == 2 for index in range(len(SIZES))
        ]
    assert backend.reads == [
        (made.info.blob_id, made.chunks[2].compressed_offset, made.chunks[2].compressed_size)
    ]


async def test_reading_by_extents_and_by_address_is_one_cache_and_one_flight(
    open_blob, made, backend
):
    backend.gate = trio.Event()
    async with open_blob(made, backend) as blob, trio.open_nursery() as nursery:
        nursery.start_soon(blob.read, [made.extent(2)])
        nursery.start_soon(blob.read_plain, made.chunks[2].uncompressed_offset, 4096)
        nursery.start_soon(blob.fill, made.chunks[2].uncompressed_offset, 100)
        await trio.testing.wait_all_tasks_blocked()
        backend.gate.set()
    assert len(backend.reads) == 1


async def test_filling_starts_all_fetches_at_once(open_blob):
    made = make_blob([250_000] * 6)
    backend = MemoryBackend({made.info.blob_id: made.stored})
    backend.gate = trio.Event()
    async with open_blob(made, backend) as blob, trio.open_nursery() as nursery:
        await blob.chunk_table()
        nursery.start_soon(blob.fill, 0, made.info.uncompressed_size)
        await trio.testing.wait_all_tasks_blocked()
        asked = len(backend.reads)
        backend.gate.set()
    assert asked == len(backend.reads) > 1


async def test_filling_tells_what_is_not_in_the_file(open_blob, made, backend):
    async with open_blob(made, backend) as blob:
        assert await blob.fill(0, made.info.uncompressed_size) == {}
    async with open_blob(made, backend, cached=False) as blob:
        kept = await blob.fill(0, 8192)
        assert {index: bytes(plain) for index, plain in kept.items()} == {0: made.plain[0]}


async def test_misses_by_address_are_amplified_and_read_ahead_as_the_trees(open_blob):
    made = make_blob([20_000] * 400)
    backend = MemoryBackend({made.info.blob_id: made.stored})
    async with open_blob(made, backend, amplify_bytes=128 * 1024) as blob:
        plain = plain_of(made)
        for offset in range(0, len(plain), 65536):
            assert (
                bytes(await blob.read_plain(offset, 65536))[: len(plain) - offset]
                == (plain[offset : offset + 65536])
            )
        stats = blob.stats
        assert stats.readahead_bytes > stats.demand_bytes
        assert stats.readahead_bytes + stats.demand_bytes == len(made.stored)
    assert Priority.READAHEAD in backend.priorities


async def test_faults_are_those_of_other_reads(open_blob, made, backend):
    backend.failures.append(BackendError("registry is down", temporary=True))
    stored = bytearray(made.stored)
    stored[made.chunks[5].compressed_offset + 20] ^= 1
    backend.blobs[made.info.blob_id] = bytes(stored)
    async with open_blob(made, backend) as blob:
        with pytest.raises(BackendError, match="registry is down"):
            await blob.read_plain(0, 100)
        assert bytes(await blob.read_plain(0, 5000)) == made.plain[0]
        with pytest.raises(IntegrityError, match="chunk 5"):
            await blob.fill(made.chunks[5].uncompressed_offset, 1)
    with pytest.raises(ClosedError):
        await blob.read_plain(0, 1)


async def test_chunks_that_overlap_are_refused(open_blob, made, backend):
    clash = made.chunks[1]._replace(uncompressed_offset=0)
    table = MadeBlob(made.info, made.stored, [made.chunks[0], clash, *made.chunks[2:]], made.plain)
    assert table.table.layout() is None
    async with open_blob(table, backend) as blob:
        assert await BlobDevice(blob).native_map() is None


@pytest.mark.parametrize("native", [True, False])
async def test_a_truncated_file_is_given_up_and_bytes_come_from_memory(
    open_blob, made, backend, tmp_path: Path, caplog, native
):
    plain = plain_of(made)
    async with open_blob(made, backend) as blob:
        await blob.read_plain(0, made.info.uncompressed_size)
        lost: list[int] = []
        blob.add_on_lost(lambda: lost.append(1))
        os.truncate(tmp_path / f"{made.info.blob_id}.blob.data", 4096)
        if native:  # the relay got a short read, and asks
            kept = await blob.fill(0, 20_000)
            assert sorted(kept) == [0, 1, 2]
        assert bytes(await blob.read_plain(0, 120_000)) == plain[:120_000]
        assert lost == [1]
        assert blob.native_source() is None
    assert "cache file is lost" in caplog.text
    assert lost == [1]


async def test_a_device_ends_on_a_block_and_maps_its_chunks(open_blob, made, backend):
    made = MadeBlob(replace_size(made, -4000), made.stored, made.chunks, made.plain)
    async with open_blob(made, backend) as blob:
        device = BlobDevice(blob)
        assert device.size % BLOCK_BYTES == 0
        assert device.size - made.info.uncompressed_size == 4000
        whole = await device.read(0, 1 << 30)
        assert bytes(whole) == plain_of(made)[: device.size]
        assert await device.read(device.size, 4096) == b""
        assert await device.fill(0, device.size - 4096)
        assert not await device.fill(0, device.size)  # the relay would read past the file
        found = await device.native_map()
        assert found is not None
        assert (found.size, found.sources, found.segments) == (device.size, (blob,), None)
        assert found.blocks is not None
        assert list(memoryview(found.blocks)) == [
            chunk.uncompressed_offset // 4096 for chunk in made.chunks
        ]


async def test_a_device_is_complete_when_its_last_chunk_is_there(open_blob, made, backend):
    async with open_blob(made, backend) as blob:
        device = BlobDevice(blob)
        assert not device.is_complete()
        assert device.cache_path() is None
        assert await device.fill(0, device.size - 100_000)
        assert device.cache_path() is None
        assert await device.fill(0, device.size)
        assert device.is_complete()
        path = device.cache_path()
        assert path is not None
        assert path.read_bytes() == plain_of(made)[: device.size]
        assert device.cache_path() == path


async def test_what_was_not_checked_yet_is_not_complete(open_blob, made, backend):
    async with open_blob(made, backend) as blob:
        await blob.fill(0, made.info.uncompressed_size)
    async with open_blob(made, backend, validate=True) as blob:
        assert not blob.is_complete()
        await blob.fill(0, made.info.uncompressed_size)
        assert blob.is_complete()
    assert len(backend.reads) == 1


async def test_a_range_of_no_length_or_outside_is_empty_or_zeros(open_blob, made, backend):
    async with open_blob(made, backend) as blob:
        assert await blob.read_plain(10, 0) == b""
        assert bytes(await blob.read_plain(1 << 40, 5)) == bytes(5)
        assert await blob.fill(1 << 40, 5) == {}
    assert backend.reads == []


async def test_read_now_gives_what_is_in_the_page_cache_and_nothing_else(open_blob, made, backend):
    async with open_blob(made, backend) as blob:
        extents = [made.extent(i) for i in (2, 3, 0)]
        assert blob.read_now(extents) is None
        assert await blob.read(extents) == made.bytes_of(extents)
        assert blob.read_now(extents) == made.bytes_of(extents)
        assert blob.read_now([made.extent(4)]) is None
        lie = made.extent(0)._replace(chunk_offset=4096)
        assert blob.read_now([lie]) is None
        with pytest.raises(FormatError):
            await blob.read([lie])
        assert (blob.stats.total, blob.stats.partial_hits) == (3, 1)
    assert blob.read_now(extents) is None


async def test_a_hole_is_filled_with_the_chunk_before_it_as_the_relay_wants(open_blob):
    made = with_hole(make_blob(SIZES), 3, 3 * 4096)
    backend = MemoryBackend({made.info.blob_id: made.stored})
    async with open_blob(made, backend) as blob:
        hole = made.chunks[3].uncompressed_offset - 8192
        assert await BlobDevice(blob).fill(hole, 4096)
        assert [blob.is_ready(index) for index in range(6)] == [i == 2 for i in range(6)]
        assert bytes(await blob.read_plain(hole, 4096)) == bytes(4096)
