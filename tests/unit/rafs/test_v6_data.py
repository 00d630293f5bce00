"""Extents, digests and the prefetch table of v6 (spec rafs-v6 §11, §12)."""

import pytest

from nydusd.errors import FormatError
from nydusd.rafs.model import Extent, Inode
from nydusd.rafs.v6 import BootstrapV6, open_v6
from tests.support.rafs_v6_image import (
    EXT_SUPERBLOCK,
    BlobSpec,
    ChunkRow,
    Image,
    directory,
    make_image,
    regular,
    symlink,
)

SOURCE = "/images/app/image.boot"
CHUNK = 0x1_0000
BLOBS = [BlobSpec("a" * 64), BlobSpec("b" * 64)]


def file_of(
    size: int, chunks: list[tuple[int, int, int]], **fields: object
) -> tuple[BootstrapV6, Inode]:
    image = make_image(directory({b"f": regular(size, chunks, **fields)}), BLOBS, chunk_size=CHUNK)
    bootstrap = open_v6(image.data(), SOURCE)
    return bootstrap, bootstrap.inode(image.nid(b"/f"))


# Extents

THREE = [(0, 5, 16), (1, 0x12_3456, 0), (0, 6, 32)]


def test_a_whole_file_is_its_chunks_in_file_order() -> None:
    bootstrap, inode = file_of(2 * CHUNK + 100, THREE)
    assert bootstrap.extents(inode, 0, 1 << 40) == [
        Extent(0, 5, 16 * 4096, CHUNK, 0, CHUNK),
        Extent(1, 0x12_3456, 0, CHUNK, 0, CHUNK),
        Extent(0, 6, 32 * 4096, 100, 0, 100),
    ]


@pytest.mark.parametrize(
    ("offset", "size", "runs"),
    [
        (0, 1, [(0, 0, 1)]),
        (CHUNK - 1, 1, [(0, CHUNK - 1, 1)]),
        (CHUNK - 1, 2, [(0, CHUNK - 1, 1), (1, 0, 1)]),
        (CHUNK, CHUNK, [(1, 0, CHUNK)]),
        (10, 2 * CHUNK, [(0, 10, CHUNK - 10), (1, 0, CHUNK), (2, 0, 10)]),
        (2 * CHUNK + 99, 4096, [(2, 99, 1)]),
        (2 * CHUNK + 100, 1, []),
        (1 << 62, 1, []),
        (5, 0, []),
    ],
)
def test_a_range_is_cut_to_the_chunks_it_touches(
    offset: int, size: int, runs: list[tuple[int, int, int]]
) -> None:
    bootstrap, inode = file_of(2 * CHUNK + 100, THREE)
    whole = bootstrap.extents(inode, 0, inode.size)
    assert bootstrap.extents(inode, offset, size) == [
        whole[number]._replace(offset=start, length=length) for number, start, length in runs
    ]


def test_a_file_of_whole_chunks_has_a_full_last_chunk() -> None:
    bootstrap, inode = file_of(2 * CHUNK, [(0, 0, 0), (0, 1, 16)])
    assert bootstrap.extents(inode, 0, 1 << 30)[-1] == Extent(0, 1, 16 * 4096, CHUNK, 0, CHUNK)


def test_an_empty_file_has_no_extents() -> None:
    bootstrap, inode = file_of(0, [])
    assert bootstrap.extents(inode, 0, 4096) == []


def test_a_file_and_its_xattrs_are_kept_apart() -> None:
    bootstrap, inode = file_of(9, [(0, 1, 2)], xattrs=[(1, b"k", b"v" * 33)])
    assert bootstrap.extents(inode, 0, 9) == [Extent(0, 1, 2 * 4096, 9, 0, 9)]


def test_the_exponent_in_i_u_does_not_set_the_chunk_size() -> None:
    image = make_image(directory({b"f": regular(2 * CHUNK, THREE[:2])}), BLOBS, chunk_size=CHUNK)
    image.patch(image.inode(b"/f") + 16, "<I", 0x20 | 31)
    bootstrap = open_v6(image.data(), SOURCE)
    inode = bootstrap.inode(image.nid(b"/f"))
    assert [extent.chunk_size for extent in bootstrap.extents(inode, 0, 1 << 30)] == [CHUNK, CHUNK]


@pytest.mark.parametrize("device", [0, 3, 255])
def test_a_blob_that_is_not_there_fails_the_range_that_needs_it(device: int) -> None:
    image = make_image(directory({b"f": regular(2 * CHUNK + 100, THREE)}), BLOBS, chunk_size=CHUNK)
    image.patch(image.indexes(b"/f") + 8 + 2, "B", device)
    bootstrap = open_v6(image.data(), SOURCE)
    inode = bootstrap.inode(image.nid(b"/f"))
    assert len(bootstrap.extents(inode, 0, CHUNK)) == 1
    with pytest.raises(FormatError, match=f"blob of chunk 1 of inode {inode.ino} is {device - 1}"):
        bootstrap.extents(inode, 0, CHUNK + 1)


def test_directories_and_symlinks_have_no_extents() -> None:
    image = make_image(directory({b"l": symlink(b"x")}), BLOBS)
    bootstrap = open_v6(image.data(), SOURCE)
    for path in (b"/", b"/l"):
        assert bootstrap.extents(bootstrap.inode(image.nid(path)), 0, 100) == []


# Digests


def with_rows(*rows: ChunkRow) -> Image:
    blobs = [BlobSpec("a" * 64, chunk_count=4), BlobSpec("b" * 64, chunk_count=4)]
    return make_image(directory(), blobs, chunk_rows=list(rows))


def test_digests_are_found_in_a_table_sorted_by_anything_but_the_index() -> None:
    rows = [
        ChunkRow(1, 0, 0, b"\x01" * 32, crc32=1),
        ChunkRow(0, 3, 0x3000, b"\x02" * 32, crc32=2),
        ChunkRow(1, 2, 0x2000, b"\x03" * 32, crc32=3),
        ChunkRow(0, 0, 0, b"\x04" * 32, crc32=4),
    ]
    bootstrap = open_v6(with_rows(*rows).data(), SOURCE)
    for row in rows:
        digests = bootstrap.digests(row.blob_index)
        assert digests is not None
        assert digests.lookup(row.index, row.uncompressed_offset) == (row.digest, row.crc32)


def test_a_chunk_without_a_record_has_no_digest() -> None:
    digests = open_v6(with_rows(ChunkRow(0, 1, 0)).data(), SOURCE).digests(0)
    assert digests is not None
    for index in (0, 2, 3, 4, 1 << 24, -1):
        assert digests.lookup(index, 0) == (None, None)


def test_a_record_of_other_bytes_is_no_answer() -> None:
    digests = open_v6(with_rows(ChunkRow(0, 1, 0x1000)).data(), SOURCE).digests(0)
    assert digests is not None
    assert digests.lookup(1, 0x2000) == (None, None)
    assert digests.lookup(1, 0x1000) == (b"\x11" * 32, 0x1234_5678)


def test_a_zero_digest_is_unknown_and_a_crc_needs_its_flag() -> None:
    rows = [
        ChunkRow(0, 0, 0, bytes(32)),
        ChunkRow(0, 1, 0x1000, flags=0x1),
        ChunkRow(0, 2, 0x2000, bytes(32), flags=0x1),
        ChunkRow(0, 3, 0x3000, crc32=0),
    ]
    digests = open_v6(with_rows(*rows).data(), SOURCE).digests(0)
    assert digests is not None
    assert digests.lookup(0, 0) == (None, 0x1234_5678)
    assert digests.lookup(1, 0x1000) == (b"\x11" * 32, None)
    assert digests.lookup(2, 0x2000) == (None, None)
    assert digests.lookup(3, 0x3000) == (b"\x11" * 32, 0)


def test_an_image_without_a_chunk_table_has_no_digests() -> None:
    bootstrap = open_v6(make_image(directory(), BLOBS).data(), SOURCE)
    assert bootstrap.digests(0) is None
    assert bootstrap.chunk_table(0) is None


# Prefetch table


def test_the_prefetch_table_ends_at_its_first_zero() -> None:
    image = make_image(directory(), BLOBS, prefetch=[130, 128, 0, 140])
    assert open_v6(image.data(), SOURCE).prefetch_inodes() == [130, 128]


def test_an_image_without_a_prefetch_table_prefetches_nothing() -> None:
    assert open_v6(make_image(directory(), BLOBS).data(), SOURCE).prefetch_inodes() == []


def test_a_prefetch_table_at_offset_0_is_none_whatever_its_size() -> None:
    image = make_image(directory(), BLOBS, prefetch=[128])
    image.patch(EXT_SUPERBLOCK + 40, "<QI", 0, 400)
    assert open_v6(image.data(), SOURCE).prefetch_inodes() == []


@pytest.mark.parametrize(
    ("offset", "size"), [(1 << 40, 4), (4096 + 2, 4), (4096, 6), (4096, 0xFFFF_FFFC)]
)
def test_a_bad_prefetch_table_is_ignored_with_a_warning(
    offset: int, size: int, caplog: pytest.LogCaptureFixture
) -> None:
    image = make_image(directory(), BLOBS, prefetch=[128])
    image.patch(EXT_SUPERBLOCK + 40, "<QI", offset, size)
    assert open_v6(image.data(), SOURCE).prefetch_inodes() == []
    assert "prefetch table" in caplog.text
    assert SOURCE in caplog.text
