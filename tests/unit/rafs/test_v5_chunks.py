"""Chunk tables that the inodes of a v5 bootstrap make up."""

from typing import Any

import pytest

from nydusd import native
from nydusd.blob.model import Codec
from nydusd.errors import FormatError, UnsupportedError
from nydusd.rafs.v5 import open_v5
from nydusd.rafs.v5_chunks import NO_RECORD, ChunkTableV5
from tests.support.rafs_v5_image import (
    Image,
    directory,
    link,
    make_image,
    patched_chunk,
    patched_inode,
    regular,
)
from tests.support.tree import check_plain

CONTENT = bytes(range(256)) * 40  # three chunks of 4096, 4096 and 2048 bytes


def image_of_two_files() -> Image:
    a = regular(b"a", CONTENT)
    return make_image(directory(b"/", a, link(b"b", a), regular(b"z", b"end")))


def table_of(bootstrap: bytes) -> ChunkTableV5:
    return open_v5(bootstrap, "image.boot").chunk_table(0)


def test_every_chunk_leads_to_its_bytes() -> None:
    image = image_of_two_files()
    bootstrap = open_v5(image.bootstrap, "image.boot")
    (info,) = bootstrap.blobs
    table = bootstrap.chunk_table(0)
    assert len(table) == image.chunk_count == 4
    plain = b""
    for index in range(4):
        chunk = table.chunk(index)
        assert chunk.chunk_index == index
        stored = image.blob[chunk.compressed_offset : chunk.compressed_end]
        decoded: bytes | None = stored
        if chunk.is_compressed:
            decoded = native.decompress(Codec.LZ4_BLOCK, stored, chunk.uncompressed_size)
        assert decoded is not None
        check_plain(info, chunk, decoded)
        assert chunk.digest is not None
        assert table.claim(index) == (len(plain), len(decoded))
        plain += decoded
    assert plain == CONTENT + b"end"
    assert [table.chunk(index).is_compressed for index in range(4)] == [True, True, True, False]


@pytest.mark.parametrize("index", [-1, 4, 1 << 40])
def test_there_is_no_chunk_outside_the_table(index: int) -> None:
    table = table_of(image_of_two_files().bootstrap)
    for ask in (table.chunk, table.claim):
        with pytest.raises(FormatError, match="chunk index"):
            ask(index)


def test_chunks_that_no_file_refers_to_are_absent() -> None:
    # What a merged image looks like: an upper layer's file has taken the place of a lower one's.
    image = image_of_two_files()
    node = image.node(b"z")
    table = table_of(patched_inode(image, node, i_size=0, i_child_count=0))
    assert len(table) == 4
    with pytest.raises(FormatError, match="no file refers to it"):
        table.chunk(3)
    assert [table.locate(offset) for offset in (0, 8191, 10239, 10240)] == [0, 1, 2, None]


def test_an_offset_is_located_in_chunks_packed_anywhere() -> None:
    table = table_of(image_of_two_files().bootstrap)
    assert [table.locate(offset) for offset in (0, 4095, 4096, 10239, 10240, 10242, 10243)] == [
        0,
        0,
        1,
        2,
        3,
        3,
        None,
    ]


def test_the_chunks_within_a_range_are_those_that_cover_a_byte_of_it() -> None:
    table = table_of(image_of_two_files().bootstrap)
    spans = [(0, 4096), (4096, 8192), (8192, 10240), (10240, 10243)]
    for start in (0, 4095, 4096, 10239, 10240, 10242, 10243):
        for end in (start, start + 1, 4096, 10240, 10241, 20_000):
            expected = [
                i for i, (a, b) in enumerate(spans) if a < end and b > start and start < end
            ]
            assert list(table.within(start, end)) == expected, (start, end)
    assert table.layout() is None


def test_chunks_in_another_order_than_their_numbers_are_located() -> None:
    image = image_of_two_files()
    swapped = patched_chunk(image, image.node(b"z"), uncompressed_offset=1 << 30)
    last = patched_chunk(
        Image(swapped, image.blob, image.nodes, 4), image.node(b"a"), 0, uncompressed_offset=1 << 31
    )
    table = table_of(last)
    assert [table.locate(offset) for offset in (0, 4096, 1 << 30, 1 << 31)] == [None, 1, 3, 0]


def test_overlapping_chunks_are_not_searched() -> None:
    image = image_of_two_files()
    table = table_of(patched_chunk(image, image.node(b"z"), uncompressed_offset=4095))
    with pytest.raises(FormatError, match="overlaps"):
        table.locate(0)


@pytest.mark.parametrize(
    ("fields", "rule"),
    [
        ({"uncompressed_size": 0}, "must be 1 to 4096"),
        ({"compressed_size": 0}, "must be 1 to 16777216"),
        ({"uncompressed_size": 4097}, "must be 1 to 4096"),
        ({"compressed_size": (16 << 20) + 1, "flags": 1}, "must be 1 to 16777216"),
        ({"uncompressed_size": 4}, "stored plain"),
        ({"compressed_size": 4}, "stored plain"),
        ({"compressed_offset": 1 << 60}, "chunk data"),
        ({"compressed_offset": (1 << 64) - 1}, "chunk data"),
        ({"uncompressed_offset": 10241}, "plain bytes"),
        ({"uncompressed_offset": (1 << 64) - 1}, "plain bytes"),
    ],
    ids=str,
)
def test_a_record_outside_the_blob_fails_alone(fields: dict[str, Any], rule: str) -> None:
    image = image_of_two_files()
    table = table_of(patched_chunk(image, image.node(b"z"), **fields))
    with pytest.raises(FormatError, match=rule):
        table.chunk(3)
    assert table.chunk(2).uncompressed_size == 2048


@pytest.mark.parametrize(
    ("flags", "name"), [(0x2, "hole"), (0x4, "encrypted"), (0x9, "batch"), (0x20, "unknown")]
)
def test_flags_that_v5_does_not_have_are_not_served(flags: int, name: str) -> None:
    image = image_of_two_files()
    table = table_of(patched_chunk(image, image.node(b"z"), flags=flags))
    with pytest.raises(UnsupportedError, match=name):
        table.chunk(3)


def test_a_digest_or_crc_may_be_missing() -> None:
    image = image_of_two_files()
    table = table_of(patched_chunk(image, image.node(b"z"), flags=0, block_id=bytes(32)))
    chunk = table.chunk(3)
    assert (chunk.digest, chunk.crc32) == (None, None)


def test_a_record_of_another_chunk_is_refused() -> None:
    image = image_of_two_files()
    bootstrap = open_v5(image.bootstrap, "image.boot")
    right = bootstrap.chunk_table(0)
    position = image.bootstrap.index(right.chunk(0).digest or b"?") >> 3
    wrong = ChunkTableV5(
        image.bootstrap, [NO_RECORD, position, NO_RECORD], bootstrap.blobs[0], "image.boot"
    )
    with pytest.raises(FormatError, match="changed"):
        wrong.chunk(1)


def test_blobs_without_chunks_have_an_empty_table() -> None:
    image = make_image(directory(b"/"), blob_ids=(b"a" * 64, b"b" * 64))
    bootstrap = open_v5(image.bootstrap, "image.boot")
    for blob in bootstrap.blobs:
        table = bootstrap.chunk_table(blob.index)
        assert len(table) == 0
        assert table.locate(0) is None
    assert bootstrap.digests(0) is None
