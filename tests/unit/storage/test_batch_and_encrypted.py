"""Blobs whose chunks do not lie open in the backend: in batches, encrypted, or both."""

import itertools
import json
import os
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from nydusd.blob.model import Codec
from nydusd.config.load import load
from nydusd.errors import BackendError, FormatError, IntegrityError
from nydusd.storage.backend.base import Priority
from nydusd.storage.lazy_blob import LazyBlob
from nydusd.storage.pool import open_pool
from tests.support.memory_backend import MemoryBackend
from tests.support.open_blob import opened_blob
from tests.support.rafs_v6_image import directory, make_image, regular
from tests.support.v2_blobs import V2Blob, make_v2_blob
from tests.support.xts_twin import KEY, OTHER_KEY

GROUPS = [5000, [9, 100, 700, 4097], 40, [1, 2], 6000, [300]]
KINDS = pytest.mark.parametrize("key", [None, KEY], ids=["plain", "encrypted"])

Open = Callable[..., AbstractAsyncContextManager[LazyBlob]]


@pytest.fixture
def open_it(tmp_path: Path) -> Open:
    def opened(made: V2Blob, backend: MemoryBackend, *, cached: bool = True, **more: object):
        directory = tmp_path if cached else None
        return opened_blob(made, backend, directory, bootstrap=made, **more)  # type: ignore[arg-type]

    return opened


def backend_of(made: V2Blob) -> MemoryBackend:
    return MemoryBackend({made.info.blob_id: made.stored})


def data_reads(made: V2Blob, backend: MemoryBackend) -> list[tuple[int, int]]:
    """What was read of the chunk data, records left out."""
    end = made.info.compressed_data_size
    return [(offset, length) for _, offset, length in backend.reads if offset < end]


@KINDS
@pytest.mark.parametrize("codec", [Codec.NONE, Codec.LZ4_BLOCK, Codec.ZSTD])
@pytest.mark.parametrize("cached", [True, False], ids=["cached", "uncached"])
async def test_every_chunk_is_served_whatever_it_lies_in(open_it, codec, key, cached) -> None:
    made = make_v2_blob(GROUPS, codec=codec, key=key)
    async with open_it(made, backend_of(made), cached=cached) as blob:
        for index, plain in enumerate(made.plain):
            assert bytes(await blob.read([made.extent(index)])) == plain
        if cached:
            assert blob.is_complete()


@KINDS
async def test_a_batch_is_fetched_once_for_all_its_chunks(open_it, key) -> None:
    made = make_v2_blob(GROUPS, key=key)
    backend = backend_of(made)
    async with open_it(made, backend) as blob:
        assert bytes(await blob.read([made.extent(3, 100, 50)])) == made.plain[3][100:150]
        assert data_reads(made, backend) == [made.stored_range(0)]
        assert [i for i in range(len(made.plain)) if blob.is_ready(i)] == list(made.batches[0])
        for index in made.batches[0]:
            assert bytes(await blob.read([made.extent(index)])) == made.plain[index]
        assert len(data_reads(made, backend)) == 1


async def test_readers_of_one_batch_share_its_fetch(open_it) -> None:
    made = make_v2_blob(GROUPS)
    backend = backend_of(made)
    answers = {}

    async def read(index: int) -> None:
        answers[index] = bytes(await blob.read([made.extent(index)]))

    async with open_it(made, backend) as blob:
        await blob.chunk_table()
        async with trio.open_nursery() as nursery:
            for index in made.batches[0]:
                nursery.start_soon(read, index)
    assert answers == {index: made.plain[index] for index in made.batches[0]}
    assert data_reads(made, backend) == [made.stored_range(0)]


async def test_chunks_of_a_batch_that_are_there_are_not_written_again(open_it) -> None:
    made = make_v2_blob(GROUPS)
    async with open_it(made, backend_of(made)) as blob:
        await blob.read([made.extent(1)])
        assert blob.stats.entries_count == len(made.batches[0])
        await blob.ensure(range(len(made.plain)), Priority.PREFETCH)
        assert blob.stats.entries_count == len(made.plain)


async def test_amplification_takes_whole_batches_and_neighbours(open_it) -> None:
    made = make_v2_blob(GROUPS, key=KEY)
    backend = backend_of(made)
    async with open_it(made, backend, amplify_bytes=1 << 20) as blob:
        await blob.read([made.extent(0)])
        assert blob.is_complete()
    assert data_reads(made, backend) == [(0, made.info.compressed_data_size)]


@KINDS
async def test_the_plain_address_space_is_flat(open_it, key) -> None:
    made = make_v2_blob(GROUPS, key=key)
    flat = bytearray(made.info.uncompressed_size)
    for row, plain in zip(made.rows, made.plain, strict=True):
        flat[row.uncompressed_offset : row.uncompressed_offset + len(plain)] = plain
    async with open_it(made, backend_of(made)) as blob:
        assert bytes(await blob.read_plain(100, 30_000)) == flat[100:30_100]
        assert await blob.fill(0, len(flat)) == {}
        assert bytes(await blob.read_plain(0, len(flat))) == flat
        path = blob.protected_path()
        assert path is not None
        assert path.read_bytes() == flat


def spoilt(made: V2Blob, offset: int) -> bytes:
    stored = bytearray(made.stored)
    stored[offset] ^= 1
    return bytes(stored)


@KINDS
@pytest.mark.parametrize("codec", [Codec.NONE, Codec.ZSTD])
async def test_a_damaged_batch_is_an_error_until_it_is_right(open_it, codec, key) -> None:
    made = make_v2_blob([5000, [3000, 2000], 40], codec=codec, key=key)
    backend = backend_of(made)
    offset, length = made.stored_range(0)
    backend.blobs[made.info.blob_id] = spoilt(made, offset + length // 2)
    async with open_it(made, backend) as blob:
        with pytest.raises(IntegrityError, match=made.info.blob_id):
            await blob.read([made.extent(1), made.extent(2)])
        assert not all(blob.is_ready(index) for index in made.batches[0])
        backend.blobs[made.info.blob_id] = made.stored
        assert bytes(await blob.read([made.extent(1)])) == made.plain[1]
        assert bytes(await blob.read([made.extent(2)])) == made.plain[2]


async def test_a_flipped_bit_of_one_chunk_leaves_the_rest_of_its_batch(open_it) -> None:
    made = make_v2_blob([[3000, 2000]], codec=Codec.NONE)
    backend = MemoryBackend({made.info.blob_id: spoilt(made, 3500)})
    async with open_it(made, backend) as blob:
        assert bytes(await blob.read([made.extent(0)])) == made.plain[0]
        with pytest.raises(IntegrityError, match=r"chunk 1 .*digest differs"):
            await blob.read([made.extent(1)])
        assert not blob.is_ready(1)


@pytest.mark.parametrize("has_records", [False, True], ids=["cold", "records"])
async def test_another_key_gives_an_error_that_shows_neither(
    open_it, tmp_path, has_records
) -> None:
    made = make_v2_blob(GROUPS, key=KEY)
    if has_records:  # plain ones lie beside the cache: then it is the data that does not open
        async with open_it(made, backend_of(made)) as blob:
            await blob.chunk_table()
    made.info = made.info._replace(cipher_key=OTHER_KEY)
    async with open_it(made, backend_of(made)) as blob:
        for index in range(len(made.plain)):
            with pytest.raises((FormatError, IntegrityError)) as caught:
                await blob.read([made.extent(index)])
            for secret in (KEY.key, OTHER_KEY.key, KEY.tweak):
                assert secret.hex() not in str(caught.value)
                assert repr(secret) not in str(caught.value)
            assert not blob.is_ready(index)


async def test_records_of_an_encrypted_blob_are_kept_plain_beside_it(open_it, tmp_path) -> None:
    made = make_v2_blob(GROUPS, key=KEY)
    backend = backend_of(made)
    async with open_it(made, backend) as blob:
        await blob.read([made.extent(0)])
    (meta,) = tmp_path.glob("*.blob.meta")
    records = b"".join(row.v2() for row in made.rows)
    assert meta.read_bytes().startswith(records)
    assert KEY.key not in meta.read_bytes()
    backend.reads.clear()
    async with open_it(made, backend) as blob:
        await blob.read([made.extent(1)])
    assert backend.reads == [(made.info.blob_id, *made.stored_range(0))]


async def test_a_full_disk_leaves_batches_in_memory(open_it, monkeypatch, caplog) -> None:
    made = make_v2_blob(GROUPS, key=KEY)
    async with open_it(made, backend_of(made)) as blob:
        file = blob._cached.file
        assert file is not None
        full = os.open("/dev/full", os.O_RDWR)
        with monkeypatch.context() as patch:
            patch.setattr(file, "fd", full)
            for index, plain in enumerate(made.plain):
                assert bytes(await blob.read([made.extent(index)])) == plain
        os.close(full)
        assert not any(blob.is_ready(index) for index in range(len(made.plain)))
    assert caplog.text.count("cache file cannot be written") == 1


@KINDS
async def test_chunks_of_a_foreign_cache_are_checked_where_that_is_asked_for(
    open_it, tmp_path, key, caplog
) -> None:
    made = make_v2_blob(GROUPS, key=key)
    async with open_it(made, backend_of(made)) as blob:
        await blob.ensure(range(len(made.plain)), Priority.DEMAND)
    (data,) = tmp_path.glob("*.blob.data")
    with data.open("r+b") as file:
        os.pwrite(file.fileno(), b"?", made.rows[2].uncompressed_offset)
    backend = backend_of(made)
    async with open_it(made, backend, validate=True) as blob:
        for index, plain in enumerate(made.plain):
            assert bytes(await blob.read([made.extent(index)])) == plain
    assert data_reads(made, backend) == [made.stored_range(0)]
    assert caplog.text.count("cached chunk is damaged") == 1
    caplog.clear()


async def test_a_failing_backend_is_asked_again_for_the_whole_batch(open_it) -> None:
    made = make_v2_blob(GROUPS)
    backend = backend_of(made)
    async with open_it(made, backend) as blob:
        await blob.chunk_table()
        backend.failures.append(BackendError("gone", temporary=True))
        with pytest.raises(BackendError, match="gone"):
            await blob.read([made.extent(2)])
        assert bytes(await blob.read([made.extent(2)])) == made.plain[2]
    assert data_reads(made, backend) == [made.stored_range(0)] * 2


async def test_two_images_that_name_one_blob_by_two_keys_do_not_share_it(tmp_path) -> None:
    made = make_v2_blob([5000], key=KEY)
    spec = made.spec()
    for name, digest in (("one", KEY.key), ("other", OTHER_KEY.key), ("again", KEY.key)):
        tree = directory({b"file": regular(5000, [(0, 0, 0)])})
        image = make_image(tree, [replace(spec, meta_digest=digest)])
        (tmp_path / name).write_bytes(image.data())
    backend = {"type": "localfs", "config": {"dir": str(tmp_path)}}
    cache = {"type": "blobcache", "config": {"work_dir": str(tmp_path / "cache")}}
    config = load(
        json.dumps({"device": {"backend": backend, "cache": cache}, "mode": "direct"}), "test"
    )
    async with open_pool() as pool:
        one = await pool.open_image(tmp_path / "one", config)
        with pytest.raises(FormatError, match="contradicts that of a mounted image") as caught:
            await pool.open_image(tmp_path / "other", config)
        assert OTHER_KEY.key.hex() not in str(caught.value)
        again = await pool.open_image(tmp_path / "again", config)
        assert again.blobs == one.blobs
        await one.aclose()
        await again.aclose()


PLACES = (0, 1, 300, 349, 350, 1 << 39)
WORDS = (0, 1, 99, 101, 0xFFFF_FFFF, 1 << 32, 2 << 32, 0xFFFF_FFFF << 32)


@pytest.mark.parametrize(("offset", "word"), list(itertools.product(PLACES, WORDS)))
async def test_hostile_places_in_a_batch_end_in_an_error(open_it, offset, word) -> None:
    made = make_v2_blob([[100, 200], [50]], codec=Codec.NONE, compresses_records=False)
    made.rows[1] = replace(made.rows[1], compressed_offset=offset, extra=word)
    records = b"".join(row.v2() for row in made.rows)
    at = made.info.compressed_data_size
    made.stored = made.stored[:at] + records + made.stored[at + len(records) :]
    async with open_it(made, backend_of(made)) as blob:
        with pytest.raises((FormatError, IntegrityError)):
            await blob.read([made.extent(1)])
        assert bytes(await blob.read([made.extent(0)])) == made.plain[0]
        assert bytes(await blob.read([made.extent(2)])) == made.plain[2]
        assert not blob.is_ready(1)
