"""Chunks of several blobs as one device: any range is right, and what contradicts a blob is not served."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random

import pytest

from nydusd.errors import BackendError, FormatError
from nydusd.rafs.erofs_from_v5 import SEGMENT
from nydusd.storage.lazy_blob import LazyBlob
from nydusd.storage.segment_device import SegmentDevice
from tests.support.blobs import MadeBlob, make_blob
from tests.support.memory_backend import MemoryBackend
from tests.unit.storage.conftest import OpenBlob

SIZES = [5000, 4096, 100_000, 1, 65536, 70_001]
FIRST = make_blob(SIZES, blob_id="a1" * 32)
SECOND = make_blob(SIZES, seed=2, blob_id="b2" * 32)
ORDER = [(0, 2), (1, 0), (1, 1), (0, 0), (1, 5), (0, 1), (0, 3), (0, 4)]  # blob and chunk


def layout(order: list[tuple[int, int]]) -> tuple[bytearray, bytes]:
    """Return segments of those chunks at one block after the other, and the device's bytes."""
    segments, plain = bytearray(), b""
    for blob, index in order:
        chunk = (FIRST, SECOND)[blob].chunks[index]
        at = len(plain)
        segments += SEGMENT.pack(
            at, chunk.uncompressed_offset, chunk.uncompressed_size, index, blob
        )
        plain += (FIRST, SECOND)[blob].plain[index]
        plain += bytes(-len(plain) % 4096)
    return segments, plain


SEGMENTS, PLAIN = layout(ORDER)


@pytest.fixture
def backend() -> MemoryBackend:
    return MemoryBackend({made.info.blob_id: made.stored for made in (FIRST, SECOND)})


@asynccontextmanager
async def opened(
    open_blob: OpenBlob,
    backend: MemoryBackend,
    segments: bytes | bytearray = SEGMENTS,
    *,
    cached: bool = True,
) -> AsyncIterator[tuple[SegmentDevice, list[LazyBlob]]]:
    async with (
        open_blob(FIRST, backend, cached=cached) as one,
        open_blob(SECOND, backend, cached=cached) as other,
    ):
        device = SegmentDevice("device", len(PLAIN), memoryview(segments), [one, other])
        yield device, [one, other]


@pytest.mark.parametrize("cached", [True, False])
async def test_every_range_is_as_long_as_asked_and_right(open_blob, backend, cached: bool) -> None:
    random = Random(4)
    async with opened(open_blob, backend, cached=cached) as (device, _):
        for _ in range(60):
            offset = random.randrange(len(PLAIN))
            length = random.choice([1, 4095, 4096, 4097, 131072, len(PLAIN)])
            assert bytes(await device.read(offset, length)) == PLAIN[offset : offset + length]
        assert bytes(await device.read(0, len(PLAIN) + 4096)) == PLAIN
        assert bytes(await device.read(len(PLAIN), 4096)) == b""


async def test_after_a_fill_the_bytes_are_where_the_native_map_says(open_blob, backend) -> None:
    async with opened(open_blob, backend) as (device, blobs):
        assert await device.fill(0, len(PLAIN))
        reads = len(backend.reads)
        found = await device.native_map()
        assert found is not None
        assert (found.size, found.zero_gaps, found.blocks) == (len(PLAIN), True, None)
        assert found.sources == tuple(blobs)
        answer = bytearray(found.size)
        assert found.segments is not None
        for address, offset, length, chunk, source in SEGMENT.iter_unpack(found.segments):
            native = found.sources[source].native_source()
            assert native is not None
            assert native.bits[native.base + chunk // 8] & 0x80 >> chunk % 8
            answer[address : address + length] = os.pread(native.fd, length, offset)
        assert answer == PLAIN
        assert len(backend.reads) == reads


async def test_a_fill_fetches_no_more_than_the_range(open_blob, backend) -> None:
    async with opened(open_blob, backend) as (device, blobs):
        assert await device.fill(0, 4096)
        ready = [[blob.is_ready(index) for index in range(len(SIZES))] for blob in blobs]
        assert [sum(flags) for flags in ready] == [1, 0]
        assert ready[0][ORDER[0][1]]


async def test_without_a_cache_file_a_fill_promises_nothing(open_blob, backend) -> None:
    async with opened(open_blob, backend, cached=False) as (device, _):
        assert not await device.fill(0, 4096)


async def test_a_gap_needs_nobody(open_blob, backend) -> None:
    begin, length = 100_000, 2400  # behind the first chunk, up to its block's end
    async with opened(open_blob, backend) as (device, _):
        assert bytes(await device.read(begin, length)) == bytes(length)
        assert await device.fill(begin, length)
    assert backend.reads == []


async def test_a_chunk_that_the_blob_knows_otherwise_is_lost_alone(
    open_blob, backend, caplog
) -> None:
    lied = bytearray(SEGMENTS)
    at = 3 * SEGMENT.size
    address, plain, size, number, blob = SEGMENT.unpack_from(lied, at)
    SEGMENT.pack_into(lied, at, address, plain + 1, size, number, blob)
    async with opened(open_blob, backend, lied) as (device, _):
        assert bytes(await device.read(0, address)) == PLAIN[:address]
        with pytest.raises(FormatError, match="chunk 0"):
            await device.read(address, 1)
        with pytest.raises(FormatError, match="chunk 0"):
            await device.fill(address, 1)
        behind = address + 8192
        assert bytes(await device.read(behind, 9999)) == PLAIN[behind : behind + 9999]
        assert await device.native_map() is None
    assert "two ways" in caplog.text


@pytest.mark.parametrize(("number", "blob"), [(len(SIZES), 0), (0, 2)])
async def test_a_segment_of_nothing_is_refused(
    open_blob, backend, caplog, number: int, blob: int
) -> None:
    strange = SEGMENT.pack(0, 0, 10, number, blob)
    async with opened(open_blob, backend, strange) as (device, _):
        with pytest.raises(FormatError):
            await device.read(0, 10)
        assert await device.native_map() is None
    assert "two ways" in caplog.text


async def test_the_device_is_complete_when_its_blobs_are(open_blob, backend) -> None:
    async with opened(open_blob, backend) as (device, blobs):
        assert not device.is_complete()
        for made, blob in zip((FIRST, SECOND), blobs, strict=True):
            await blob.read(extents_of(made))
        assert device.is_complete()
        assert device.cache_path() is None


def extents_of(made: MadeBlob) -> list[object]:
    return [made.extent(index) for index in range(len(made.chunks))]


async def test_a_backend_that_fails_fails_the_range_and_is_asked_again(open_blob, backend) -> None:
    async with opened(open_blob, backend) as (device, _):
        backend.failures.append(BackendError("gone"))
        with pytest.raises(BackendError):
            await device.fill(0, 4096)
        assert await device.fill(0, 4096)
