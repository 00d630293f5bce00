"""Batches: the contexts behind the records, and the chunks that name them."""

import struct

import pytest
import zstandard

from nydusd.blob.batch import Batch, Batches
from nydusd.blob.blob_meta import open_ci, open_meta, open_stored
from nydusd.blob.model import BlobFeature, Codec
from nydusd.errors import FormatError
from tests.support.blob_bytes import Row, make_header, make_info, pack_rows
from tests.support.v2_blobs import V2Blob, compress, make_v2_blob
from tests.support.xts_twin import KEY, OTHER_KEY

V2 = BlobFeature.CHUNK_INFO_V2 | BlobFeature.BATCH
GROUPS = [5000, [9, 100, 700], 4096, [1, 2], [3000]]
IN_BATCH = 0x05


def contexts(*sizes: tuple[int, int]) -> bytes:
    return b"".join(struct.pack("<II32x", *pair) for pair in sizes)


def table_of(
    rows: tuple[Row, ...], *sizes: tuple[int, int], more: BlobFeature = V2, **changes: int
):
    """A table in its cached form, with these contexts."""
    area = contexts(*sizes)
    fields = {"uncompressed_size": 1 << 20, "compressed_data_size": 5000, **changes}
    info = make_info(rows, more=more, context_bytes=len(area), **fields)
    ci = pack_rows(rows, info.features) + area
    records = len(ci) - len(area)
    header = make_header(
        info, context_offset=records, context_size=len(area), context_count=len(sizes)
    )
    return open_meta(memoryview(ci.ljust(-(-len(ci) // 4096) * 4096, b"\0") + header), info)


def tail(made: V2Blob) -> bytes:
    return made.stored[made.info.compressed_data_size :]


@pytest.mark.parametrize("key", [None, KEY], ids=["plain", "encrypted"])
def test_chunks_of_a_batch_name_the_whole_of_it(key) -> None:
    made = make_v2_blob(GROUPS, key=key)
    table = open_stored(tail(made), made.info, made)
    chunks = [table.chunk(index) for index in range(len(table))]
    for number, members in enumerate(made.batches):
        offset, size = made.stored_range(number)
        within = 0
        for index in members:
            found = chunks[index]
            assert (found.compressed_offset, found.compressed_size) == (offset, size)
            assert found.context == chunks[members[0]].context
            assert found.context_offset == within
            within += found.uncompressed_size
        assert found.context is not None
        assert (found.context.number, found.context.uncompressed_size) == (number, within)
    assert [c.context is None for c in chunks] == [True, False, False, False, True, *[False] * 3]
    assert all(c.is_encrypted == (key is not None) for c in chunks)
    assert all(c.crc32 == made.lookup(c.chunk_index, c.uncompressed_offset)[1] for c in chunks)


def test_the_word_of_a_batch_chunk_is_not_taken_for_its_crc() -> None:
    row = Row(0, 0, 0, 10, flags=IN_BATCH | 0x10, extra=7)
    found = table_of((row,), (20, 20)).chunk(0)
    assert found.crc32 is None
    assert found.context_offset == 7


@pytest.mark.parametrize(
    ("row", "sizes", "rule"),
    [
        (Row(0, 0, 0, 10, IN_BATCH, 1 << 32), (20, 20), "batch is 1, must be below 1"),
        (Row(0, 0, 0, 10, IN_BATCH, 0xFFFF_FFFF << 32), (20, 20), "must be below 1"),
        (Row(0, 0, 0, 10, IN_BATCH, 11), (20, 20), "above the 20 bytes of context 0"),
        (Row(0, 0, 0, 10, IN_BATCH, 0xFFFF_FFFF), (20, 20), "above the 20 bytes"),
        (Row(0, 0, 0, 21, IN_BATCH), (20, 20), "above the 20 bytes"),
        (Row(0, 0, 0, 10, IN_BATCH), (0, 20), "batch 0 stored size is 0, must be 1 to 20"),
        (Row(0, 0, 0, 10, IN_BATCH), (21, 20), "batch 0 stored size is 21"),
        (Row(0, 0, 0, 10, IN_BATCH), (0, 0), "batch 0 plain size is 0"),
        (Row(0, 0, 0, 10, IN_BATCH), (9, (16 << 20) + 1), "batch 0 plain size"),
        (Row(0, 0, 0, 10, IN_BATCH), (9, 0xFFFF_FFFF), "batch 0 plain size"),
        (Row(4981, 0, 0, 10, IN_BATCH), (20, 20), "batch 0 stored end is 5001, must be 1 to 5000"),
        (Row((1 << 40) - 1, 0, 0, 10, IN_BATCH), (20, 20), "stored end"),
        (Row(0, 0, 1 << 30, 10, IN_BATCH), (20, 20), "plain bytes"),
        (Row(0, 0, 0, (1 << 20) + 1, IN_BATCH), (9, 4 << 20), "at most"),
    ],
)
def test_a_batch_outside_its_bounds_fails_alone(
    row: Row, sizes: tuple[int, int], rule: str
) -> None:
    good = Row(0, 4096, 8192, 4096)
    table = table_of((row, good), sizes)
    with pytest.raises(FormatError, match=rule):
        table.chunk(0)
    assert table.chunk(1).uncompressed_size == 4096
    assert table.claim(0) == (row.uncompressed_offset, row.uncompressed_size)


def test_contexts_are_as_many_as_there_is_room_for() -> None:
    info = make_info(more=V2, compressed_data_size=5000)
    area = memoryview(contexts((5, 5), (6, 6))[:79])
    batches = Batches(area, 0xFFFF_FFFF, info)
    assert batches.context(0, 0).uncompressed_size == 5
    with pytest.raises(FormatError, match="must be below 1"):
        batches.context(1, 0)


def test_batches_of_one_number_at_two_places_are_told_apart() -> None:
    batches = Batches(memoryview(contexts((5, 9))), 1, make_info(more=V2, compressed_data_size=99))
    assert batches.context(0, 10).compressed_offset == 10
    assert batches.context(0, 20).compressed_offset == 20
    assert batches.context(0, 20) is batches.context(0, 20)


def test_encrypted_batches_may_be_longer_than_they_were_by_their_padding_alone() -> None:
    more = V2 | BlobFeature.ENCRYPTED
    row = Row(0, 0, 0, 5, flags=IN_BATCH)
    assert table_of((row,), (18, 5), more=more).chunk(0).compressed_size == 18
    for stored in (15, 19):
        with pytest.raises(FormatError, match="must be 16 to 18"):
            table_of((row,), (stored, 5), more=more).chunk(0)


def test_bounds_are_relaxed_where_a_chunk_dictionary_s_numbers_say_nothing() -> None:
    more = V2 | BlobFeature.IS_CHUNKDICT_GENERATED
    row = Row(9000, 0, 0, 5, flags=IN_BATCH)
    assert table_of((row,), (5, 5), more=more).chunk(0).compressed_offset == 9000


@pytest.mark.parametrize("codec", [Codec.NONE, Codec.LZ4_BLOCK, Codec.ZSTD])
@pytest.mark.parametrize("plain", [b"a", b"x" * 40, b"abc" * 5000], ids=["1", "40", "15000"])
def test_a_batch_gives_its_plain_bytes_and_nothing_else(codec: Codec, plain: bytes) -> None:
    stored = compress(codec, plain) or plain
    batch = Batch(0, 0, len(stored), len(plain), codec, is_encrypted=False)
    assert batch.decode(memoryview(stored)) == plain
    if len(stored) < len(plain):
        assert batch._replace(uncompressed_size=len(plain) + 1).decode(stored) is None
        assert batch._replace(uncompressed_size=len(plain) - 1).decode(stored) is None
    assert batch._replace(codec=Codec.NONE, uncompressed_size=20000).decode(stored) is None


def test_a_batch_that_was_padded_is_decoded_from_what_was_there() -> None:
    def padded(plain: bytes) -> bytes:
        lacking = 16 - len(plain)
        return plain + bytes([lacking]) * lacking + b"\x78\x90"

    batch = Batch(0, 0, 18, 5, Codec.ZSTD, is_encrypted=True)
    assert batch.decode(padded(b"short")) == b"short"
    packed = compress(Codec.LZ4_BLOCK, bytes(18))
    assert packed is not None
    lz4 = Batch(0, 0, 18, 18, Codec.LZ4_BLOCK, is_encrypted=True)
    assert lz4.decode(padded(packed)) == bytes(18)


def test_a_bomb_is_not_decoded_past_its_size() -> None:
    bomb = zstandard.ZstdCompressor().compress(bytes(64 << 20))
    assert Batch(0, 0, len(bomb), 70_000, Codec.ZSTD, is_encrypted=False).decode(bomb) is None


def test_records_decrypted_with_another_key_are_no_records() -> None:
    made = make_v2_blob(GROUPS, key=KEY)
    with pytest.raises(FormatError, match="magic"):
        open_stored(tail(made), made.info._replace(cipher_key=OTHER_KEY), made)


def test_records_without_contexts_serve_the_other_chunks() -> None:
    rows = (Row(0, 100, 0, 100), Row(100, 0, 4096, 5, flags=IN_BATCH))
    table = open_ci(pack_rows(rows, V2), make_info(rows, more=V2))
    assert table.chunk(0).uncompressed_size == 100


@pytest.mark.parametrize(
    ("row", "rule"),
    [
        (Row(0, 20, 0, 20, flags=0x08), "needs the feature ENCRYPTED"),
        (Row(0, 20, 0, 20, flags=0x09), "needs the feature ENCRYPTED"),
        (Row(0, 0, 0, 20, flags=IN_BATCH), "needs the feature BATCH"),
        (Row(0, 9, 0, 20, flags=0x03), "needs the feature ZRAN"),
    ],
)
def test_a_record_of_a_kind_that_the_blob_does_not_have_is_refused(row: Row, rule: str) -> None:
    info = make_info((row,), more=BlobFeature.CHUNK_INFO_V2, compressed_data_size=99)
    with pytest.raises(FormatError, match=rule):
        open_ci(row.v2(), info).chunk(0)


def test_a_blob_has_contexts_of_one_kind() -> None:
    row = Row(0, 0, 0, 5, flags=IN_BATCH)
    with pytest.raises(FormatError, match="exclude each other"):
        table_of((row,), (5, 5), more=V2 | BlobFeature.ZRAN)


@pytest.mark.parametrize(
    ("row", "rule"),
    [
        (Row(0, 21, 0, 20, flags=0x08), "must be 20, for it is not compressed"),
        (Row(0, 5, 0, 5, flags=0x08), "must be 16 or more, for it is encrypted"),
        (Row(0, 17, 0, 5, flags=0x08), "must be 18, for it is not compressed"),
        (Row(0, 15, 0, 900, flags=0x09), "must be 16 or more"),
        (Row(0, 0, 0, 900, flags=0x09), "must be 16 or more"),
        (Row(0, 18, 0, 5, flags=0x08), None),
        (Row(0, 16, 0, 900, flags=0x09), None),
        (Row(0, 900, 0, 900, flags=0x00), None),
    ],
)
def test_sizes_of_encrypted_chunks_count_the_padding(row: Row, rule: str | None) -> None:
    more = BlobFeature.CHUNK_INFO_V2 | BlobFeature.ENCRYPTED
    table = open_ci(row.v2(), make_info((row,), more=more, compressed_data_size=999))
    if rule is None:
        assert table.chunk(0).is_encrypted == bool(row.flags & 0x08)
        return
    with pytest.raises(FormatError, match=rule):
        table.chunk(0)
