"""Positions of chunks in chunk-info records, against the blob room's own reader of single records."""

import struct

import pytest

from nydusd import native
from nydusd.blob.blob_meta import pack_v1
from nydusd.errors import FormatError

SIZES = [1, 4096, 4097, 16 << 20, 12_345]


def records(starts: list[int], record_bytes: int) -> bytes:
    if record_bytes == 16:
        return b"".join(
            pack_v1(0, 9, at * 4096, size) for at, size in zip(starts, SIZES, strict=True)
        )
    return b"".join(
        struct.pack("<QQQ", 0x1F << 56 | (size - 1) << 32 | at, 9, 9)
        for at, size in zip(starts, SIZES, strict=True)
    )


@pytest.mark.parametrize("record_bytes", [16, 24])
def test_chunks_that_follow_each_other_have_no_holes(record_bytes: int) -> None:
    starts = [0, 1, 2, 4, 4100]
    found = native.chunk_layout(records(starts, record_bytes), record_bytes, 5)
    assert (list(found.blocks), found.holes, found.end_block) == (starts, 0, 4104)


@pytest.mark.parametrize("record_bytes", [16, 24])
def test_holes_are_counted_the_one_before_the_first_chunk_too(record_bytes: int) -> None:
    starts = [7, 8, 10, 12, (1 << 32) - 4]
    found = native.chunk_layout(records(starts, record_bytes), record_bytes, 5)
    assert (list(found.blocks), found.holes, found.end_block) == (starts, 3, 1 << 32)


@pytest.mark.parametrize("record_bytes", [16, 24])
def test_an_overlap_ends_the_list(record_bytes: int) -> None:
    found = native.chunk_layout(records([0, 1, 2, 3, 9000], record_bytes), record_bytes, 5)
    assert list(found.blocks) == [0, 1, 2]


@pytest.mark.parametrize(
    ("length", "record_bytes", "count"), [(79, 16, 5), (80, 24, 4), (80, 20, 4), (80, 0, 1)]
)
def test_records_that_are_not_there_are_refused(length: int, record_bytes: int, count: int) -> None:
    with pytest.raises(FormatError, match="chunk records"):
        native.chunk_layout(bytes(length), record_bytes, count)


def test_a_count_beyond_the_format_is_refused() -> None:
    for count in (-1, (1 << 24) + 1):
        with pytest.raises(FormatError, match="chunk_count"):
            native.chunk_layout(bytes(80), 16, count)
