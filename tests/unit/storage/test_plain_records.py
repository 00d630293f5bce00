"""Records of a side file, for one who asks by plain address: nothing else says where chunks lie."""

from dataclasses import replace
from pathlib import Path

import pytest
import trio

from nydusd.blob.blob_meta import compose_meta_file
from nydusd.blob.model import BlobInfo
from nydusd.errors import BackendError
from nydusd.storage.chunk_records import ChunkRecords
from nydusd.storage.threads import Workers
from tests.support.blob_bytes import PLAIN, Row, make_header, make_info, pack_rows
from tests.support.blobs import SilentBootstrap
from tests.support.memory_backend import MemoryBackend

DENSE = (Row(0, 900, 0, 5000), Row(900, 4096, 8192, 4096), Row(4996, 1, 12288, 4097))
MOVED = (*DENSE[:2], replace(DENSE[2], uncompressed_offset=20480))  # as one changed byte does


def info_of(rows: tuple[Row, ...]) -> BlobInfo:
    info = make_info(rows)
    return info._replace(uncompressed_size=-(-info.uncompressed_size // 4096) * 4096)


def write_side_file(directory: Path, info: BlobInfo, rows: tuple[Row, ...]) -> None:
    parts = compose_meta_file(pack_rows(rows, PLAIN), make_header(info))
    (directory / f"{info.blob_id}.blob.meta").write_bytes(b"".join(parts))


def backend_of(info: BlobInfo, rows: tuple[Row, ...]) -> MemoryBackend:
    assert info.ci is not None
    stored = bytes(info.ci.offset) + pack_rows(rows, PLAIN) + make_header(info)
    return MemoryBackend({info.blob_id: stored})


def records_of(info: BlobInfo, backend: MemoryBackend, directory: Path) -> ChunkRecords:
    return ChunkRecords(info, SilentBootstrap(), backend, Workers(1), directory)  # type: ignore[arg-type]


async def test_dense_records_are_taken_without_the_network(tmp_path):
    info = info_of(DENSE)
    write_side_file(tmp_path, info, DENSE)
    backend = MemoryBackend({})
    async with trio.open_nursery() as nursery:
        records = records_of(info, backend, tmp_path)
        table = await records.plain_table(nursery)
        assert list(table.within(0, 1 << 20)) == [0, 1, 2]
        assert await records.plain_table(nursery) is table
    assert backend.reads == []


@pytest.mark.parametrize("claimed", [MOVED, (DENSE[0], DENSE[2], DENSE[1])], ids=["hole", "order"])
async def test_records_that_leave_a_hole_or_are_out_of_order_are_fetched(tmp_path, claimed):
    info = info_of(DENSE)
    write_side_file(tmp_path, info, claimed)
    backend = backend_of(info, DENSE)
    async with trio.open_nursery() as nursery:
        records = records_of(info, backend, tmp_path)
        assert records.loaded is None
        table = await records.plain_table(nursery)
        assert [table.claim(i)[0] for i in range(3)] == [0, 8192, 12288]
        assert await records.plain_table(nursery) is table
    assert len(backend.reads) == 1


async def test_a_blob_that_has_holes_of_its_own_is_fetched_once_and_served(tmp_path):
    info = info_of(MOVED)
    write_side_file(tmp_path, info, MOVED)
    backend = backend_of(info, MOVED)
    async with trio.open_nursery() as nursery:
        records = records_of(info, backend, tmp_path)
        table = await records.plain_table(nursery)
        assert list(table.within(12288, 20480)) == []
        assert list(table.within(12288, 20481)) == [2]
        assert await records.plain_table(nursery) is table
    assert len(backend.reads) == 1


async def test_records_that_cannot_be_confirmed_are_not_used(tmp_path):
    info = info_of(DENSE)
    write_side_file(tmp_path, info, MOVED)
    backend = backend_of(info, DENSE)
    backend.failures.append(BackendError("registry is down", temporary=True))
    async with trio.open_nursery() as nursery:
        records = records_of(info, backend, tmp_path)
        with pytest.raises(BackendError):
            await records.plain_table(nursery)
        table = await records.plain_table(nursery)
        assert table.claim(2)[0] == 12288
