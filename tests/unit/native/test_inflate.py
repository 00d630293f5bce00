"""inflate_context: from every place where a layer can be resumed, next to deflate in plain Python."""

import zlib
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nydusd import native
from nydusd.blob.blob_meta import open_meta
from nydusd.errors import FormatError
from tests.support import inflate_twin
from tests.support.gzip_layers import Layer, Member, gzipped, make_layer, words

FLUSHES = [
    zlib.Z_NO_FLUSH,
    zlib.Z_SYNC_FLUSH,
    zlib.Z_FULL_FLUSH,
    zlib.Z_PARTIAL_FLUSH,
    zlib.Z_BLOCK,
]
MEMBERS = st.lists(
    st.builds(
        Member,
        size=st.integers(0, 12_000),
        level=st.sampled_from([0, 1, 6, 9]),
        step=st.integers(300, 9_000),
        flush=st.sampled_from(FLUSHES),
    ),
    min_size=1,
    max_size=5,
)


def inflated(layer: Layer, index: int) -> bytes | None:
    """Return chunk `index` as it comes out of its context."""
    chunk = open_meta(layer.meta_file, layer.info).chunk(index)
    assert chunk.context is not None
    plain = chunk.context.decode(layer.stored[chunk.compressed_offset : chunk.compressed_end])
    if plain is None:
        return None
    return bytes(plain[chunk.context_offset : chunk.context_offset + chunk.uncompressed_size])


@settings(max_examples=40, deadline=None)
@given(members=MEMBERS, seed=st.integers(0, 1 << 32), context_size=st.integers(500, 20_000))
def test_every_context_of_any_layer_gives_what_the_layer_gives_there(
    members: Sequence[Member], seed: int, context_size: int
) -> None:
    plain = words(sum(member.size for member in members) + 1, seed)
    stored = gzipped(plain, members)
    layer = make_layer(plain, stored, context_size=context_size, chunk_size=1000)
    table = open_meta(layer.meta_file, layer.info)
    contexts = {table.chunk(index).context for index in range(len(table))}
    for context in contexts:
        run = stored[context.compressed_offset :][: context.compressed_size]
        found = context.decode(run)
        history = bytes(context.dictionary)
        size, byte, bits = context.uncompressed_size, context.prior_byte, context.prior_bits
        assert found == inflate_twin.inflate_context(run, size, history, byte, bits)
    for index in range(len(table)):
        assert inflated(layer, index) == layer.bytes_of(index)


@settings(max_examples=60, deadline=None)
@given(
    data=st.data(),
    size=st.integers(1, 5_000),
    bits=st.integers(0, 7),
    byte=st.integers(0, 255),
    dictionary=st.binary(max_size=300),
)
def test_broken_bytes_give_nothing_or_just_as_many(data, size, bits, byte, dictionary) -> None:
    layer = bytearray(gzipped(words(4_000, 5), [Member(2_000), Member(2_000, 0)])[10:])
    for place in data.draw(st.lists(st.integers(0, len(layer) - 1), max_size=3)):
        layer[place] ^= data.draw(st.integers(1, 255))
    found = native.inflate_context(bytes(layer), size, dictionary, byte, bits)
    assert found is None or len(found) == size


def test_a_context_on_the_trailer_of_a_member_begins_behind_it() -> None:
    plain = words(9_000, 3)
    first = gzipped(plain[:4_000], [])
    stored = first + gzipped(plain[4_000:], [])
    # As builders leave it for eStargz: bits and a dictionary that belong to nothing.
    found = native.inflate_context(stored[len(first) - 8 :], 5_000, bytes(512), 0, 5)
    assert found == plain[4_000:]


def test_more_than_there_is_cannot_be_had() -> None:
    plain = words(5_000, 4)
    stored = gzipped(plain, [])[10:]
    assert native.inflate_context(stored, 5_000, b"", 0, 0) == plain
    assert native.inflate_context(stored, 5_001, b"", 0, 0) is None
    assert native.inflate_context(stored[:1_000], 5_000, b"", 0, 0) is None
    assert native.inflate_context(b"", 1, b"", 0, 0) is None
    assert native.inflate_context(stored, 0, b"", 0, 0) is None
    assert native.inflate_context(stored, -1, b"", 0, 0) is None


def test_a_bomb_gives_what_was_asked_for_and_no_more() -> None:
    stored = gzipped(bytes(50_000_000), [Member(50_000_000, 9)])
    assert len(stored) < 60_000
    assert native.inflate_context(stored[10:], 16 << 20, b"", 0, 0) == bytes(16 << 20)


@pytest.mark.parametrize(("dictionary", "byte", "bits"), [(32_769, 0, 0), (0, 0, 8), (0, 256, 0)])
def test_numbers_that_no_context_has_are_refused(dictionary: int, byte: int, bits: int) -> None:
    with pytest.raises(FormatError, match="context"):
        native.inflate_context(b"\3\0", 1, bytes(dictionary), byte, bits)
