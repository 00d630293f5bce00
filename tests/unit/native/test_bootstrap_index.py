"""Indexes of chunk records, on tables made here and on the reference builder's images."""

import mmap
import struct
from pathlib import Path

import pytest

from nydusd import native
from nydusd.blob.model import Chunk, Codec
from nydusd.errors import FormatError
from nydusd.native import NO_RECORD, V5Walk
from tests.support import native_twins
from tests.support.vectors import each_vector

REGULAR = 0o100644


def chunk_record(blob_index: int, index: int) -> bytes:
    return struct.pack("<32xI36xII", blob_index, index, 0)


def inode(*chunks: bytes, mode: int = REGULAR, name: bytes = b"n", xattrs: bytes = b"") -> bytes:
    """A v5 inode record (spec rafs-v5 §5)."""
    flags = 4 if xattrs else 0
    head = struct.pack("<60xI16xQ8xIHH24x", mode, flags, len(chunks), len(name), 0)
    pad = -len(name) % 8
    area = struct.pack("<Q", len(xattrs)) + xattrs + bytes(-len(xattrs) % 8) if xattrs else b""
    return head + name + bytes(pad) + area + b"".join(chunks)


def v5_file(*inodes: bytes) -> tuple[bytes, int]:
    """Superblock's worth of zeros, offset table, inodes; and the table's offset."""
    table, body = b"", b""
    start = 8192 + (4 * len(inodes) + 7) // 8 * 8
    for record in inodes:
        table += struct.pack("<I", (start + len(body)) // 8)
        body += record
    return bytes(8192) + table.ljust(start - 8192, b"\0") + body, 8192


def test_a_v6_table_is_indexed_by_chunk_and_blob() -> None:
    table = chunk_record(0, 2) + chunk_record(1, 0) + chunk_record(0, 0) + chunk_record(0, 2)
    bootstrap = bytes(4096) + table
    assert list(native.index_chunk_table(bootstrap, 4096, len(table), 0, 4)) == [
        2,
        NO_RECORD,
        0,
        NO_RECORD,
    ]
    assert list(native.index_chunk_table(bootstrap, 4096, len(table), 1, 1)) == [1]
    assert list(native.index_chunk_table(bootstrap, 4096, 0, 0, 2)) == [NO_RECORD] * 2
    assert len(native.index_chunk_table(bootstrap, 4096, len(table), 0, 0)) == 0


@pytest.mark.parametrize(
    ("offset", "size"), [(0, 81), (80, 160), (-80, 80), (1 << 63, 80), (1 << 70, 80), (0, -80)]
)
def test_a_v6_table_outside_the_file_is_refused(offset: int, size: int) -> None:
    with pytest.raises(FormatError, match="chunk table"):
        native.index_chunk_table(bytes(160), offset, size, 0, 10)


def test_v5_records_are_found_behind_names_and_xattrs() -> None:
    file, table = v5_file(
        inode(mode=0o40755, name=b"/"),
        inode(chunk_record(0, 1), chunk_record(1, 9), name=b"twelve bytes"),
        inode(chunk_record(0, 0), chunk_record(0, 1), xattrs=b"\x05\0\0\0a=\0bc.."),
    )
    found, malformed = native_twins.v5_chunks(file, table, 3, 0)
    assert sorted(found) == [0, 1]
    assert native.walk_v5_chunks(file, table, 3, 0) == V5Walk(2, malformed)
    assert list(native.index_v5_chunks(file, table, 3, 0)) == [found[0] // 8, found[1] // 8]
    assert list(native.index_v5_chunks(file, table, 3, 0, 3))[2] == NO_RECORD
    assert native.walk_v5_chunks(file, table, 3, 1).chunk_count == 10
    assert native.walk_v5_chunks(file, table, 3, 2) == V5Walk(0, 0)
    assert len(native.index_v5_chunks(file, table, 3, 2)) == 0


def test_malformed_v5_inodes_are_passed_over() -> None:
    good = inode(chunk_record(0, 0))
    cut = inode(*[chunk_record(0, 1)] * 3)[:-8]  # its chunks cross the end of the file
    file, table = v5_file(good, cut)
    assert native.walk_v5_chunks(file, table, 2, 0) == V5Walk(1, 1)


def test_inodes_that_share_chunk_records_by_the_thousand_are_refused() -> None:
    one = inode(*[chunk_record(0, 0)] * 100)
    file = bytearray(8192 + 4 * 4000) + one
    struct.pack_into("<4000I", file, 8192, *[(8192 + 16000) // 8] * 4000)
    with pytest.raises(FormatError, match="overlap"):
        native.index_v5_chunks(file, 8192, 4000, 0)


@pytest.mark.parametrize(
    ("offset", "entries"), [(-8, 1), (8190, 1), (0, 1 << 62), (1 << 64, 1), (0, -1)]
)
def test_a_v5_table_outside_the_file_is_refused(offset: int, entries: int) -> None:
    with pytest.raises(FormatError, match="inode table"):
        native.walk_v5_chunks(bytes(8192), offset, entries, 0)


def test_chunk_counts_beyond_the_format_are_refused() -> None:
    for count in (-1, (1 << 24) + 1):
        with pytest.raises(FormatError, match="chunk_count"):
            native.index_chunk_table(bytes(80), 0, 80, 0, count)
        with pytest.raises(FormatError, match="chunk_count"):
            native.index_v5_chunks(bytes(80), 0, 0, 0, count)


def test_a_mapping_can_be_closed_after_it_was_indexed() -> None:
    mapping = mmap.mmap(-1, 8192)
    index = native.index_chunk_table(mapping, 0, 80, 0, 1)
    with pytest.raises(FormatError) as caught:
        native.index_chunk_table(mapping, 8192, 80, 0, 1)
    mapping.close()
    assert list(index) == [0]
    assert caught.value.field == "chunk table"


@pytest.mark.parametrize("folder", each_vector("v5-lz4*", "v5-zstd*", "v5-none*"))
def test_every_chunk_of_a_real_v5_image_is_found_and_decodes(folder: Path) -> None:
    file = (folder / "bootstrap").read_bytes()
    flags, table = struct.unpack_from("<Q8xQ", file, 16)
    entries = struct.unpack_from("<I", file, 56)[0]
    codec = next(c for c, bit in ((0, 1), (1, 2), (2, 0x40), (3, 0x80)) if flags & bit)
    digester = 1 if flags & 8 else 0
    blob_id = file[struct.unpack_from("<Q", file, 48)[0] + 8 :][:64].decode()
    stored = (folder / "blobs" / blob_id).read_bytes()
    index = native.index_v5_chunks(file, table, entries, 0)
    chunks = []
    for number, place in enumerate(index):
        assert place != NO_RECORD
        block_id, _, bits, c_size, u_size, c_offset, u_offset, _, own, crc = struct.unpack_from(
            "<32s4I3Q2I", file, place * 8
        )
        assert own == number
        chunks.append(Chunk(own, c_offset, c_size, u_offset, u_size, bool(bits & 1), block_id, crc))
        assert bits & 0x10  # has a CRC
    target = bytearray(max(chunk.uncompressed_end for chunk in chunks))
    results = native.decode_to_memory(stored, 0, chunks, Codec(codec), digester, target, 0)
    assert {result.status for result in results} == {native.Status.SAVED}
    for chunk in chunks[:50]:
        plain = bytes(target[chunk.uncompressed_offset : chunk.uncompressed_end])
        assert native_twins.digest(digester, plain) == chunk.digest


@pytest.mark.parametrize("folder", each_vector("v6-zstd*", "v6-lz4*", "merge3-v6"))
def test_the_chunk_table_of_a_real_v6_image_is_indexed_like_the_twin(folder: Path) -> None:
    file = (folder / "bootstrap").read_bytes()
    offset, size = struct.unpack_from("<QQ", file, 1152 + 24)
    for blob_index in range(3):
        index = native.index_chunk_table(file, offset, size, blob_index, 1000)
        twin = native_twins.chunk_table(file[offset : offset + size], blob_index, 1000)
        assert {i: n for i, n in enumerate(index) if n != NO_RECORD} == twin
