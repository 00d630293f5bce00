"""A device whose image says where chunks lie: nothing is given away before the blob says the same."""

from array import array
from pathlib import Path

import pytest

from nydusd.blob.blob_meta import compose_meta_file
from nydusd.blob.model import CiLocation, Codec
from nydusd.errors import BackendError, FormatError
from nydusd.storage.backend.base import Priority
from nydusd.storage.claimed_device import ClaimedDevice
from tests.support.blob_bytes import PLAIN, Row, make_header, pack_rows
from tests.support.blobs import MadeBlob, SilentBootstrap, make_blob
from tests.support.memory_backend import MemoryBackend
from tests.support.open_blob import opened_blob
from tests.support.plain import plain_of

SIZES = [5000, 4096, 100_000, 1, 65536, 70_001]


def rows_of(made: MadeBlob) -> tuple[Row, ...]:
    return tuple(Row(*chunk[1:5]) for chunk in made.chunks)


@pytest.fixture
def made() -> MadeBlob:
    """A blob that keeps its own records, behind its chunks."""
    plain = make_blob(SIZES, codec=Codec.NONE)
    ci = CiLocation(len(plain.stored), 16 * len(SIZES), 16 * len(SIZES), Codec.NONE)
    info = plain.info._replace(ci=ci)
    records = pack_rows(rows_of(plain), PLAIN)
    return MadeBlob(info, plain.stored + records + make_header(info), plain.chunks, plain.plain)


@pytest.fixture
def backend(made: MadeBlob) -> MemoryBackend:
    return MemoryBackend({made.info.blob_id: made.stored})


def claims_of(made: MadeBlob, *, moved: int | None = None) -> memoryview:
    """What files say of each chunk: block and size; chunk 1 is in no file."""
    words = array("I")
    for chunk in made.chunks:
        block = chunk.uncompressed_offset // 4096 + (chunk.chunk_index == moved)
        size = 0 if chunk.chunk_index == 1 else chunk.uncompressed_size
        words.extend((block, size))
    return memoryview(words.tobytes())


def write_side_file(directory: Path, made: MadeBlob, rows: tuple[Row, ...]) -> None:
    parts = compose_meta_file(pack_rows(rows, PLAIN), make_header(made.info))
    (directory / f"{made.info.blob_id}.blob.meta").write_bytes(b"".join(parts))


async def test_where_files_and_blob_agree_it_is_the_blobs_device(made, backend, tmp_path: Path):
    plain = plain_of(made)
    async with opened_blob(made, backend, tmp_path, bootstrap=SilentBootstrap()) as blob:
        device = ClaimedDevice(blob, claims_of(made))
        await device.settle()
        assert device.cache_path() is None
        assert bytes(await device.read(4096, 20_000)) == plain[4096:24_096]
        found = await device.native_map()
        assert found is not None
        assert found.sources == (blob,)
        assert await device.fill(0, device.size)
        path = device.cache_path()
        assert path is not None
        assert path.read_bytes() == plain


async def test_what_no_file_names_is_not_needed(made, backend, tmp_path: Path):
    async with opened_blob(made, backend, tmp_path, bootstrap=SilentBootstrap()) as blob:
        device = ClaimedDevice(blob, claims_of(made))
        await blob.ensure([0, 2, 3, 4], Priority.DEMAND)
        await device.settle()
        assert not device.is_complete()
        assert device.cache_path() is None
        await blob.ensure([5], Priority.DEMAND)
        await device.settle()
        assert not blob.is_complete()
        assert device.is_complete()
        path = device.cache_path()
        assert path is not None
        hole = slice(made.chunks[1].uncompressed_offset, made.chunks[2].uncompressed_offset)
        expected = bytearray(plain_of(made))
        expected[hole] = bytes(hole.stop - hole.start)
        assert path.read_bytes() == expected


async def test_one_contradiction_and_nothing_is_given_away(made, backend, tmp_path: Path):
    async with opened_blob(made, backend, tmp_path, bootstrap=SilentBootstrap()) as blob:
        await blob.fill(0, made.info.uncompressed_size)
        device = ClaimedDevice(blob, claims_of(made, moved=4))
        for _ in range(2):
            with pytest.raises(FormatError, match="chunk 4"):
                await device.read(0, 4096)
            with pytest.raises(FormatError, match="chunk 4"):
                await device.fill(0, 4096)
            with pytest.raises(FormatError, match="chunk 4"):
                await device.native_map()
        with pytest.raises(FormatError, match="chunk 4"):
            await device.settle()
        assert device.cache_path() is None


async def test_a_corrupt_side_file_contradicts_nobody(made, backend, tmp_path: Path):
    rows = list(rows_of(made))
    rows[2] = Row(*made.chunks[2][1:4], made.chunks[2].uncompressed_size + 1)
    write_side_file(tmp_path, made, tuple(rows))
    async with opened_blob(made, backend, tmp_path, bootstrap=SilentBootstrap()) as blob:
        device = ClaimedDevice(blob, claims_of(made))
        assert bytes(await device.read(0, device.size)) == plain_of(made)
    again = (tmp_path / f"{made.info.blob_id}.blob.meta").read_bytes()
    assert again.startswith(pack_rows(rows_of(made), PLAIN))


async def test_without_the_records_nothing_is_given_away_and_asking_again_helps(
    made, backend, tmp_path: Path
):
    backend.failures.append(BackendError("registry is down", temporary=True))
    async with opened_blob(made, backend, tmp_path, bootstrap=SilentBootstrap()) as blob:
        device = ClaimedDevice(blob, claims_of(made))
        with pytest.raises(BackendError):
            await device.read(0, 100)
        assert bytes(await device.read(0, 5000)) == made.plain[0]


async def test_a_whole_blob_whose_records_are_not_at_hand_is_left_for_later(
    made, backend, tmp_path: Path
):
    async with opened_blob(made, backend, tmp_path, bootstrap=SilentBootstrap()) as blob:
        await blob.fill(0, made.info.uncompressed_size)
    (tmp_path / f"{made.info.blob_id}.blob.meta").unlink()
    backend.failures.append(BackendError("registry is down", temporary=True))
    async with opened_blob(made, backend, tmp_path, bootstrap=SilentBootstrap()) as blob:
        device = ClaimedDevice(blob, claims_of(made))
        await device.settle()
        assert device.is_complete()
        assert device.cache_path() is None
        await device.settle()
        assert device.cache_path() is not None
