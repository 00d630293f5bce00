"""Blob formats: records and tails round-trip; garbage ends in a value or an error of ours."""

import contextlib
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nydusd.blob.blob_meta import (
    check_header,
    compose_meta_file,
    decode_ci,
    open_ci,
    open_meta,
    pack_v1,
)
from nydusd.blob.inline import extract_bootstrap, find_bootstrap, tail_range, within_tail
from nydusd.blob.model import BlobFeature, Codec
from nydusd.blob.tar_trailer import Trailer, read_trailer, write_trailer
from nydusd.blob.toc import parse_toc
from nydusd.errors import FormatError, IntegrityError, NotFoundError, UnsupportedError
from tests.support.blob_bytes import (
    PLAIN,
    ROWS,
    Row,
    make_header,
    make_info,
    make_inlined_blob,
    make_toc,
    make_toc_entry,
    pack_rows,
)

MET = (FormatError, IntegrityError, NotFoundError, UnsupportedError)
MIB16 = 16 << 20
FLAVOURS = st.sampled_from([PLAIN, BlobFeature.CHUNK_INFO_V2])


@st.composite
def rows_in_order(draw: st.DrawFn) -> tuple[Row, ...]:
    rows = []
    plain = stored = 0
    for _ in range(draw(st.integers(1, 12))):
        plain += draw(st.integers(0, 3)) * 4096  # a hole
        uncompressed_size = draw(st.integers(1, MIB16))
        compressed_size = draw(st.integers(1, MIB16 - 1))
        is_raw = compressed_size == uncompressed_size
        rows.append(Row(stored, compressed_size, plain, uncompressed_size, flags=int(not is_raw)))
        plain += -(-uncompressed_size // 4096) * 4096
        stored += compressed_size
    return tuple(rows)


@settings(max_examples=150)
@given(rows=rows_in_order(), more=FLAVOURS, data=st.data())
def test_records_come_back_and_every_offset_finds_its_chunk(
    rows: tuple[Row, ...], more: BlobFeature, data: st.DataObject
) -> None:
    table = open_ci(pack_rows(rows, more), make_info(rows, more=more, chunk_size=MIB16))
    for index, row in enumerate(rows):
        chunk = table.chunk(index)
        assert (chunk.compressed_offset, chunk.compressed_size) == (
            row.compressed_offset,
            row.compressed_size,
        )
        assert table.claim(index) == (row.uncompressed_offset, row.uncompressed_size)
        assert chunk.is_compressed == bool(row.flags)
    end = rows[-1].uncompressed_offset + rows[-1].uncompressed_size
    offset = data.draw(st.integers(0, end + 5000))
    expected = [
        index
        for index, row in enumerate(rows)
        if row.uncompressed_offset <= offset < row.uncompressed_offset + row.uncompressed_size
    ]
    assert table.locate(offset) == (expected[0] if expected else None)


@given(rows=rows_in_order())
def test_records_are_packed_as_the_spec_says(rows: tuple[Row, ...]) -> None:
    packed = b"".join(
        pack_v1(
            row.compressed_offset,
            row.compressed_size,
            row.uncompressed_offset,
            row.uncompressed_size,
        )
        for row in rows
    )
    assert packed == pack_rows(rows, PLAIN)


@settings(max_examples=200)
@given(records=st.binary(min_size=72, max_size=72), more=FLAVOURS, offset=st.integers(0, 1 << 45))
def test_any_record_ends_in_a_chunk_within_bounds_or_an_error(
    records: bytes, more: BlobFeature, offset: int
) -> None:
    count = 3 if more else 4
    info = make_info((ROWS[0],) * count, more=more)
    table = open_ci(records, info._replace(uncompressed_size=1 << 40, compressed_data_size=1 << 39))
    for index in range(count):
        try:
            chunk = table.chunk(index)
        except (FormatError, UnsupportedError):
            continue
        assert chunk.compressed_end <= 1 << 39
        assert chunk.uncompressed_end <= 1 << 40
        assert 0 < chunk.uncompressed_size <= info.chunk_size
        assert chunk.is_compressed or chunk.compressed_size == chunk.uncompressed_size
    try:
        found = table.locate(offset)
    except FormatError:
        return
    if found is not None:
        start, size = table.claim(found)
        assert start <= offset < start + size


@settings(max_examples=200)
@given(data=st.data(), more=FLAVOURS)
def test_a_changed_cache_file_is_used_right_or_refused(
    data: st.DataObject, more: BlobFeature
) -> None:
    info = make_info(more=more)
    whole = bytearray(b"".join(compose_meta_file(pack_rows(ROWS, more), make_header(info))))
    changed = [*range(72), *range(4096, 4160), *range(len(whole) - 8, len(whole))]
    for _ in range(data.draw(st.integers(1, 3))):
        whole[data.draw(st.sampled_from(changed))] = data.draw(st.integers(0, 255))
    try:
        table = open_meta(bytes(whole), info)
        chunks = [table.chunk(index) for index in range(len(table))]
    except (FormatError, UnsupportedError):
        return
    assert all(chunk.compressed_end <= info.compressed_data_size for chunk in chunks)


@settings(max_examples=200)
@given(
    stored=st.binary(min_size=1, max_size=300),
    codec=st.sampled_from([Codec.NONE, Codec.LZ4_BLOCK, Codec.ZSTD]),
)
def test_any_stored_array_ends_in_the_right_size_or_an_error(stored: bytes, codec: Codec) -> None:
    with contextlib.suppress(FormatError):
        assert len(decode_ci(stored, make_info(codec=codec, stored=stored))) == 48


@given(
    position=st.sampled_from([*range(4), *range(8, 40), *range(4092, 4096)]),
    flipped_bits=st.integers(1, 255),
)
def test_no_changed_header_is_accepted(position: int, flipped_bits: int) -> None:
    header = bytearray(make_header(make_info()))
    header[position] ^= flipped_bits
    with pytest.raises(FormatError):
        check_header(bytes(header), make_info())


@given(
    name=st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=100),
    size=st.integers(0, (1 << 63) - 1),
)
def test_trailers_come_back(name: str, size: int) -> None:
    assert read_trailer(write_trailer(Trailer(name, size))) == Trailer(name, size)


@settings(max_examples=200)
@given(data=st.data(), with_toc=st.booleans())
def test_a_changed_tail_gives_the_bootstrap_or_an_error(
    data: st.DataObject, with_toc: bool
) -> None:
    boot = struct.pack("<64I", *range(64))
    blob = bytearray(make_inlined_blob(b"data" * 10, boot, toc=with_toc))
    for _ in range(data.draw(st.integers(0, 3))):
        blob[data.draw(st.integers(len(blob) - 1100, len(blob) - 1))] = data.draw(
            st.integers(0, 255)
        )
    stored = bytes(blob[: data.draw(st.sampled_from([len(blob), len(blob) - 1, 600]))])
    at = tail_range(len(stored))
    tail = stored[at.offset : at.end]
    try:
        segment = find_bootstrap(tail, len(stored))
        held = within_tail(tail, len(stored), segment)
        assert held is not None
        found = extract_bootstrap(held, segment)
    except MET:
        return
    assert len(found) == segment.uncompressed_size
    if with_toc and any(segment.digest):
        assert found == boot


@settings(max_examples=200)
@given(tail=st.binary(max_size=2000), entries=st.binary(max_size=512))
def test_any_bytes_are_a_toc_or_an_error(tail: bytes, entries: bytes) -> None:
    for stored in (tail, make_toc(entries), tail + make_toc(make_toc_entry(b"x", b""), entries)):
        try:
            toc = parse_toc(stored)
        except FormatError:
            continue
        assert all(len(segment.name) <= 16 for segment in toc.segments)
