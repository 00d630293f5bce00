"""A referenced OCI layer as a blob: each context fetched and decoded once, and only right bytes kept."""

import os
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path

import pytest
import trio

from nydusd.errors import BackendError, FormatError, IntegrityError
from nydusd.storage.backend.base import Priority
from nydusd.storage.lazy_blob import LazyBlob
from tests.support.gzip_layers import Layer, LayerDigests, Member, gzipped, make_layer, words
from tests.support.memory_backend import MemoryBackend
from tests.support.open_blob import opened_blob

Opened = Callable[..., AbstractAsyncContextManager[LazyBlob]]


@pytest.fixture(scope="module")
def layer() -> Layer:
    plain = words(90_000, 1)
    members = [Member(30_000, 6, 4_000, 5), Member(0), Member(25_000, 0, 9_000, 2)]
    made = make_layer(plain, gzipped(plain, members), context_size=15_000)
    assert {piece.context for piece in made.pieces} == {0, 1, 2, 3}
    return made


@pytest.fixture
def backend(layer: Layer) -> MemoryBackend:
    return MemoryBackend(
        {layer.info.blob_id: layer.stored, layer.info.meta_blob_id: layer.meta_blob}
    )


@pytest.fixture
def opened(layer: Layer) -> Opened:
    return partial(opened_blob, layer, bootstrap=LayerDigests(layer))


def members_of(layer: Layer, context: int) -> list[int]:
    return [i for i, piece in enumerate(layer.pieces) if piece.context == context]


def layer_reads(backend: MemoryBackend, layer: Layer) -> list[tuple[int, int]]:
    return [at for blob_id, *at in backend.reads if blob_id == layer.info.blob_id]


@pytest.mark.parametrize("amplify_bytes", [0, 1 << 20])
@pytest.mark.parametrize("cached", [True, False])
async def test_every_chunk_has_its_bytes(
    opened, layer, backend, tmp_path: Path, cached: bool, amplify_bytes: int
):
    directory = tmp_path if cached else None
    async with opened(backend, directory, amplify_bytes=amplify_bytes) as blob:
        for index in range(len(layer.pieces)):
            size = layer.pieces[index].size
            assert bytes(await blob.read_plain(4096 * index, size)) == layer.bytes_of(index)


async def test_one_read_of_the_layer_has_all_chunks_of_a_context(
    opened, layer, backend, tmp_path: Path
):
    async with opened(backend, tmp_path) as blob:
        asked = members_of(layer, 1)[2]
        await blob.read_plain(4096 * asked, 1)
        ready = [index for index in range(len(layer.pieces)) if blob.is_ready(index)]
    assert ready == members_of(layer, 1)
    assert len(layer_reads(backend, layer)) == 1


async def test_readers_of_one_context_share_one_read(opened, layer, backend, tmp_path: Path):
    backend.gate = trio.Event()
    async with opened(backend, tmp_path) as blob, trio.open_nursery() as nursery:
        for index in members_of(layer, 2):
            nursery.start_soon(blob.read_plain, 4096 * index, 10)
        await trio.testing.wait_all_tasks_blocked()
        backend.gate.set()
    assert len(layer_reads(backend, layer)) == 1


async def test_neighbouring_contexts_come_in_one_read(opened, layer, backend, tmp_path: Path):
    async with opened(backend, tmp_path) as blob:
        await blob.fill(0, layer.info.uncompressed_size)
        assert blob.is_complete()
    assert layer_reads(backend, layer) == [[10, len(layer.stored) - 10]]


async def test_what_a_second_daemon_finds_is_the_whole_cache(
    opened, layer, backend, tmp_path: Path
):
    async with opened(backend, tmp_path) as blob:
        await blob.ensure(range(len(layer.pieces)), Priority.PREFETCH)
    name = layer.info.blob_id
    assert (tmp_path / f"{name}.blob.meta").read_bytes() == layer.meta_file
    data = (tmp_path / f"{name}.blob.data").read_bytes()
    assert len(data) == layer.info.uncompressed_size
    for index, piece in enumerate(layer.pieces):
        assert data[4096 * index :][:4096] == layer.bytes_of(index).ljust(4096, b"\0")
        assert piece.size <= 4096
    async with opened(MemoryBackend({}), tmp_path) as blob:
        assert blob.is_complete()
        assert bytes(await blob.read_plain(0, 4096)) == layer.bytes_of(0)


async def test_a_chunk_that_is_not_what_its_digest_says_spoils_no_other(
    opened, layer, backend, tmp_path: Path
):
    first, *others = members_of(layer, 1)
    digests = LayerDigests(layer)
    digests.digests_by_index[first] = bytes(31) + b"x"
    async with opened(backend, tmp_path, bootstrap=digests) as blob:
        for index in others:
            size = layer.pieces[index].size
            assert bytes(await blob.read_plain(4096 * index, size)) == layer.bytes_of(index)
        for _ in range(2):
            with pytest.raises(IntegrityError, match=f"chunk {first} .*digest differs"):
                await blob.read_plain(4096 * first, 1)
        assert not blob.is_ready(first)


async def test_a_layer_that_does_not_inflate_fails_and_heals_with_the_layer(
    opened, layer, backend, tmp_path: Path
):
    right = backend.blobs[layer.info.blob_id]
    backend.blobs[layer.info.blob_id] = bytes(len(right))
    async with opened(backend, tmp_path) as blob:
        with pytest.raises(IntegrityError, match=r"context 2 at .* does not decode"):
            await blob.read_plain(4096 * members_of(layer, 2)[0], 1)
        backend.blobs[layer.info.blob_id] = right
        assert bytes(await blob.read_plain(0, 100)) == layer.bytes_of(0)[:100]


async def test_another_layer_of_the_same_size_is_never_believed(
    opened, layer, backend, tmp_path: Path
):
    plain = bytes(byte ^ 1 for byte in layer.plain)
    other = gzipped(plain, [Member(len(plain), 0)])[: len(layer.stored)]
    backend.blobs[layer.info.blob_id] = other.ljust(len(layer.stored), b"\0")
    async with opened(backend, tmp_path) as blob:
        for index in range(len(layer.pieces)):
            with pytest.raises(IntegrityError):
                await blob.read_plain(4096 * index, 1)
        assert not any(blob.is_ready(index) for index in range(len(layer.pieces)))


async def test_a_layer_that_was_cut_short_is_the_backends_fault(
    opened, layer, backend, tmp_path: Path
):
    backend.blobs[layer.info.blob_id] = layer.stored[: len(layer.stored) // 2]
    async with opened(backend, tmp_path, amplify_bytes=1 << 20) as blob:
        assert bytes(await blob.read_plain(0, 4096)) == layer.bytes_of(0)
        with pytest.raises(BackendError):
            await blob.read_plain(4096 * (len(layer.pieces) - 1), 1)


async def test_contexts_of_a_side_file_that_are_corrupt_are_fetched_again(
    opened, layer, backend, tmp_path: Path
):
    damaged = bytearray(layer.meta_file)
    start = 24 * len(layer.pieces)
    damaged[start + 4] ^= 0xFF  # context 0 begins far behind the layer's end
    (tmp_path / f"{layer.info.blob_id}.blob.meta").write_bytes(damaged)
    async with opened(backend, tmp_path) as blob:
        assert bytes(await blob.read_plain(0, 4096)) == layer.bytes_of(0)
    assert (tmp_path / f"{layer.info.blob_id}.blob.meta").read_bytes() == layer.meta_file


async def test_contexts_that_are_corrupt_at_their_source_are_an_error(
    opened, layer, backend, tmp_path: Path
):
    damaged = bytearray(layer.meta_blob)
    damaged[24 * len(layer.pieces) + 4] ^= 0xFF
    backend.blobs[layer.info.meta_blob_id] = bytes(damaged)
    async with opened(backend, tmp_path) as blob:
        with pytest.raises(FormatError, match="zran context 0"):
            await blob.read_plain(0, 4096)
        last = len(layer.pieces) - 1
        assert bytes(await blob.read_plain(4096 * last, 5)) == layer.bytes_of(last)[:5]


async def test_a_full_disk_keeps_a_context_in_memory(
    opened, layer, backend, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    full = os.open("/dev/full", os.O_RDWR | os.O_CLOEXEC)
    async with opened(backend, tmp_path) as blob:
        os.dup2(full, blob.native_source().fd, inheritable=False)
        for index in members_of(layer, 0):
            size = layer.pieces[index].size
            assert bytes(await blob.read_plain(4096 * index, size)) == layer.bytes_of(index)
            assert not blob.is_ready(index)
    os.close(full)
    assert len(layer_reads(backend, layer)) == 1
    assert "cache file cannot be written" in caplog.text
    assert "No space left on device" in caplog.text
