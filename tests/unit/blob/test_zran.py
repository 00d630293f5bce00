"""Contexts of zran as the table of chunks gives them, and those that it must not give."""

import struct
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nydusd.blob.blob_meta import open_ci, open_meta
from nydusd.blob.zran import CONTEXT, CONTEXT_BYTES, STORED_MAX_BYTES
from nydusd.errors import FormatError, UnsupportedError
from tests.support.gzip_layers import Layer, Member, gzipped, make_layer, words

# Context 2 of the zran sample of spec blob §14.3.
REAL = struct.pack("<QQQIIIBBxx", 0xBDD24, 0x2A6FA3, 0x8000, 0x651C0, 0x101E5D, 0x8000, 0x68, 7)


def layer_of(size: int) -> Layer:
    """Return a layer of a member and 3 contexts."""
    plain = words(size, 1)
    stored = gzipped(plain, [Member(size, 6, size // 12, zlib.Z_BLOCK)])
    return make_layer(plain, stored, context_size=2 * size // 5)


SMALL = layer_of(10_000)


@pytest.fixture
def layer() -> Layer:
    return layer_of(50_000)


def with_context(layer: Layer, **fields: int) -> bytes:
    """Return the layer's meta file, its context 1 changed."""
    assert layer.info.ci is not None
    start = 24 * len(layer.pieces) + CONTEXT_BYTES
    record = CONTEXT.read(layer.meta_file, start)._replace(**fields)
    packed = struct.pack("<QQQIIIBBxx", *record)
    return layer.meta_file[:start] + packed + layer.meta_file[start + CONTEXT_BYTES :]


def first_of(layer: Layer, context: int) -> int:
    return next(i for i, piece in enumerate(layer.pieces) if piece.context == context)


def test_a_real_context_is_read_field_by_field() -> None:
    found = CONTEXT.read(REAL)
    assert (found.in_offset, found.in_len) == (0xBDD24, 0x651C0)
    assert (found.out_offset, found.out_len) == (0x2A6FA3, 0x101E5D)
    assert (found.dict_offset, found.dict_size) == (0x8000, 0x8000)
    assert (found.ctx_byte, found.ctx_bits) == (0x68, 7)


def test_a_chunk_names_its_context_and_its_place_there(layer: Layer) -> None:
    table = open_meta(layer.meta_file, layer.info)
    assert {piece.context for piece in layer.pieces} == {0, 1, 2}
    for index, piece in enumerate(layer.pieces):
        chunk = table.chunk(index)
        assert chunk.context is not None
        assert chunk.context.number == piece.context
        assert chunk.compressed_offset == chunk.context.compressed_offset
        assert chunk.compressed_size == chunk.context.compressed_size
        assert chunk.compressed_end <= len(layer.stored)
        assert (chunk.uncompressed_offset, chunk.uncompressed_size) == (4096 * index, piece.size)
        assert chunk.context_offset + piece.size <= chunk.context.uncompressed_size
        assert chunk.is_compressed


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({"in_len": 0}, "stored size"),
        ({"in_len": STORED_MAX_BYTES + 1}, "stored size"),
        ({"in_offset": 1 << 40}, "stored end"),
        ({"in_offset": (1 << 64) - 1}, "stored end"),
        ({"out_len": 0}, "plain size"),
        ({"out_len": (16 << 20) + 1}, "plain size"),
        ({"dict_size": 32_769}, "dictionary size"),
        ({"dict_offset": 1 << 40}, "dictionary end"),
        ({"dict_offset": (1 << 64) - 1}, "dictionary end"),
        ({"ctx_bits": 8}, "bits"),
    ],
)
def test_a_context_that_breaks_a_rule_is_refused_and_the_others_not(
    layer: Layer, fields: dict[str, int], what: str
) -> None:
    table = open_meta(with_context(layer, **fields), layer.info)
    with pytest.raises(FormatError, match=f"zran context 1 {what}"):
        table.chunk(first_of(layer, 1))
    assert table.chunk(first_of(layer, 0)).context is not None
    assert table.chunk(first_of(layer, 2)).context is not None


def test_without_a_dictionary_its_offset_is_of_no_account(layer: Layer) -> None:
    table = open_meta(with_context(layer, dict_size=0, dict_offset=1 << 60), layer.info)
    context = table.chunk(first_of(layer, 1)).context
    assert context is not None
    assert len(context.dictionary) == 0


@pytest.mark.parametrize("number", [3, 0xFFFF_FFFF])
def test_a_chunk_of_no_context_is_refused(layer: Layer, number: int) -> None:
    meta = bytearray(layer.meta_file)
    struct.pack_into("<Q", meta, 16, number << 32)
    with pytest.raises(FormatError, match="zran context"):
        open_meta(bytes(meta), layer.info).chunk(0)


@pytest.mark.parametrize("offset", [0xFFFF_FFFF, 1 << 24])
def test_a_chunk_that_does_not_lie_in_its_context_is_refused(layer: Layer, offset: int) -> None:
    meta = bytearray(layer.meta_file)
    struct.pack_into("<Q", meta, 16, offset)
    with pytest.raises(FormatError, match="end in its context"):
        open_meta(bytes(meta), layer.info).chunk(0)


def test_records_without_their_header_name_no_context(layer: Layer) -> None:
    with pytest.raises(UnsupportedError, match="context"):
        open_ci(layer.ci, layer.info).chunk(0)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_whatever_the_records_say_a_chunk_is_refused_or_decodes_within_bounds(
    data: st.DataObject,
) -> None:
    layer = SMALL
    meta = bytearray(layer.meta_file)
    records = 24 * len(layer.pieces)
    size = records + CONTEXT_BYTES * (layer.pieces[-1].context + 1)
    for place in data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=6)):
        meta[place] = data.draw(st.integers(0, 255))
    table = open_meta(bytes(meta), layer.info)
    for index in range(len(table)):
        try:
            chunk = table.chunk(index)
        except FormatError:
            continue
        if chunk.context is None:
            continue
        run = layer.stored[chunk.compressed_offset : chunk.compressed_end]
        assert len(run) == chunk.compressed_size == chunk.context.compressed_size
        assert chunk.context_offset + chunk.uncompressed_size <= chunk.context.uncompressed_size
        plain = chunk.context.decode(run)
        assert plain is None or len(plain) == chunk.context.uncompressed_size <= 16 << 20
