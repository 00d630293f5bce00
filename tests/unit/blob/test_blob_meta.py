"""Chunk-info arrays: records, header, the stored and the cached form."""

import mmap
import struct
from array import array
from pathlib import Path

import pytest
import zstandard

from nydusd import native
from nydusd.blob.blob_meta import (
    check_ci_size,
    check_header,
    compose_meta_file,
    decode_ci,
    meta_file_size,
    open_ci,
    open_meta,
    pack_v1,
    stored_range,
)
from nydusd.blob.model import BlobFeature, BlobInfo, Chunk, CiLocation, Codec
from nydusd.blob.toc import DigestArray
from nydusd.errors import FormatError, UnsupportedError
from tests.support.blob_bytes import MIB, ROWS, Row, make_header, make_info, pack_rows

V2 = BlobFeature.CHUNK_INFO_V2
BOTH = pytest.mark.parametrize("more", [BlobFeature(0), V2], ids=["v1", "v2"])

# The two records of a real blob (spec blob §14.1) and one of a zran blob (§14.3).
REAL_V1 = bytes.fromhex(
    "0000000000202204 0000000000b02d01 0050000000704503 dc12000000d0b900".replace(" ", "")
)
REAL_ZRAN = bytes.fromhex("cd020000ffff0f03 1ee90b0000c54506 5d1e000002000000".replace(" ", ""))


class OneDigest:
    """A DigestSource that knows chunk 1 at its right place."""

    def lookup(self, index: int, uncompressed_offset: int) -> tuple[bytes | None, int | None]:
        return (b"d" * 32, 77) if (index, uncompressed_offset) == (1, 8192) else (None, None)


def meta_file(info: BlobInfo, ci: bytes) -> bytes:
    return b"".join(compose_meta_file(ci, make_header(info)))


# Records


def test_records_of_a_real_blob_decode_as_the_spec_says() -> None:
    rows = (Row(0, 4828, 0, 16931), Row(0x12DC, 2974, 0x5000, 13400))
    assert pack_rows(rows, BlobFeature(0)) == REAL_V1
    table = open_ci(REAL_V1, make_info(rows))
    assert table.chunk(0) == Chunk(0, 0, 4828, 0, 16931, is_compressed=True)
    assert table.chunk(1) == Chunk(1, 0x12DC, 2974, 0x5000, 13400, is_compressed=True)
    assert pack_v1(0, 4828, 0, 16931) + pack_v1(0x12DC, 2974, 0x5000, 13400) == REAL_V1


@BOTH
def test_each_record_comes_back_as_it_was_packed(more: BlobFeature) -> None:
    big = Row((1 << 40) - (16 << 20), (16 << 20) - 1, (1 << 44) - (16 << 20), 16 << 20, flags=1)
    rows = (*(Row(*_values(row), flags=int(row is not ROWS[1])) for row in ROWS), big)
    info = make_info(rows, more=more, chunk_size=16 << 20)
    table = open_ci(pack_rows(rows, more), info)
    assert len(table) == len(rows)
    for index, row in enumerate(rows):
        chunk = table.chunk(index)
        assert _values(row) == (
            chunk.compressed_offset,
            chunk.compressed_size,
            chunk.uncompressed_offset,
            chunk.uncompressed_size,
        )
        assert chunk.is_compressed == (index != 1)
        assert chunk.chunk_index == index
        assert table.claim(index) == (row.uncompressed_offset, row.uncompressed_size)


def _values(row: Row) -> tuple[int, int, int, int]:
    return (
        row.compressed_offset,
        row.compressed_size,
        row.uncompressed_offset,
        row.uncompressed_size,
    )


@BOTH
@pytest.mark.parametrize("index", [-1, 3, 1 << 40])
def test_there_is_no_chunk_outside_the_table(more: BlobFeature, index: int) -> None:
    table = open_ci(pack_rows(ROWS, more), make_info(more=more))
    for ask in (table.chunk, table.claim):
        with pytest.raises(FormatError, match="chunk index"):
            ask(index)


@BOTH
@pytest.mark.parametrize(
    ("row", "rule"),
    [
        (Row(0, 4096, 0, MIB + 1, flags=1), "at most"),
        (Row(4090, 8, 0, 8), "chunk data"),
        (Row(0, 4096, 20480, 8193, flags=1), "plain bytes"),
        (Row(0, 4096, 1 << 43, 4096), "plain bytes"),
    ],
    ids=["size", "stored end", "end", "far end"],
)
def test_a_record_outside_the_blob_fails_alone(more: BlobFeature, row: Row, rule: str) -> None:
    good = Row(0, 4096, 0, 4096)
    info = make_info(
        (good, row), more=more, compressed_data_size=4096, uncompressed_size=20480 + 5000
    )
    table = open_ci(pack_rows((good, row), more), info)
    with pytest.raises(FormatError, match=rule):
        table.chunk(1)
    assert table.chunk(0).uncompressed_size == 4096
    assert table.claim(1) == (row.uncompressed_offset, row.uncompressed_size)


@BOTH
def test_the_last_chunk_may_end_within_the_padding_of_the_last_page(more: BlobFeature) -> None:
    row = Row(0, 4096, 0, 4096)
    table = open_ci(pack_rows((row,), more), make_info((row,), more=more, uncompressed_size=4000))
    assert table.chunk(0).uncompressed_end == 4096


@pytest.mark.parametrize(
    ("row", "rule"),
    [
        (Row(0, 10, 0, 20), "not compressed"),
        (Row(0, 0, 0, 20, flags=1), "must not be zero"),
        (Row(0, 20, 0, 20, flags=0x10), "crc32"),
    ],
    ids=["sizes", "zero", "crc of zero"],
)
def test_a_v2_record_that_contradicts_itself_is_refused(row: Row, rule: str) -> None:
    table = open_ci(row.v2(), make_info((row,), more=V2, compressed_data_size=99))
    with pytest.raises(FormatError, match=rule):
        table.chunk(0)


def test_a_v2_record_may_carry_its_crc() -> None:
    rows = (Row(0, 20, 0, 20, flags=0x10, extra=0x1_2345_6789), Row(20, 9, 4096, 20, flags=1))
    table = open_ci(pack_rows(rows, V2), make_info(rows, more=V2))
    assert table.chunk(0).crc32 == 0x2345_6789
    assert table.chunk(1).crc32 is None


@pytest.mark.parametrize(
    ("record", "kind"),
    [
        (REAL_ZRAN, BlobFeature.ZRAN),
        (Row(0, 0, 0x2CD000, 0x100000, flags=5).v2(), BlobFeature.BATCH),
    ],
    ids=["zran", "batch"],
)
def test_a_chunk_whose_context_is_not_known_says_so_and_keeps_its_place(
    record: bytes, kind: BlobFeature
) -> None:
    info = make_info((Row(0, 1, 0x2CD000, 0x100000),), more=V2 | kind)
    table = open_ci(record, info)
    with pytest.raises(UnsupportedError, match="its context is not known"):
        table.chunk(0)
    assert table.claim(0) == (0x2CD000, 0x100000)
    assert table.locate(0x2CD001) == 0


@BOTH
def test_digests_are_filled_in_from_where_they_are_kept(more: BlobFeature) -> None:
    rows = tuple(Row(*_values(row), flags=int(row is not ROWS[1])) for row in ROWS)
    ci = pack_rows(rows, more)
    table = open_ci(ci, make_info(rows, more=more), OneDigest())
    assert (table.chunk(1).digest, table.chunk(1).crc32) == (b"d" * 32, 77)
    assert (table.chunk(0).digest, table.chunk(0).crc32) == (None, None)
    array = DigestArray(bytes(32) + b"x" * 32 + b"y" * 32, 3)
    assert [open_ci(ci, make_info(rows, more=more), array).chunk(k).digest for k in range(3)] == [
        None,
        b"x" * 32,
        b"y" * 32,
    ]


@BOTH
def test_an_offset_is_located_or_lies_in_a_hole(more: BlobFeature) -> None:
    table = open_ci(pack_rows(ROWS, more), make_info(more=more))
    expected = {
        0: 0,
        4999: 0,
        5000: None,
        8191: None,
        8192: 1,
        12287: 1,
        12288: None,
        16384: 2,
        20480: 2,
        20481: None,
        1 << 50: None,
    }
    assert {offset: table.locate(offset) for offset in expected} == expected


@BOTH
def test_the_chunks_within_a_range_are_those_that_cover_a_byte_of_it(more: BlobFeature) -> None:
    table = open_ci(pack_rows(ROWS, more), make_info(more=more))
    for start in (0, 1, 4999, 5000, 8192, 12287, 12288, 16383, 16384, 20480, 20481, 1 << 50):
        for end in (start, start + 1, 5000, 8192, 8193, 16384, 16385, 30_000):
            expected = [
                index
                for index, row in enumerate(ROWS)
                if start < end
                and row.uncompressed_offset < end
                and row.uncompressed_offset + row.uncompressed_size > start
            ]
            assert list(table.within(start, end)) == expected, (start, end)


@BOTH
def test_the_layout_tells_holes_from_a_dense_blob(more: BlobFeature) -> None:
    layout = open_ci(pack_rows(ROWS, more), make_info(more=more)).layout()
    assert layout is not None
    assert list(layout.blocks) == [0, 2, 4]
    assert not layout.is_dense  # chunk 1 ends at block 3
    rows = (Row(0, 9, 0, 5000), Row(9, 9, 8192, 4096))
    table = open_ci(pack_rows(rows, more), make_info(rows, more=more, uncompressed_size=12288))
    assert table.layout() == (memoryview(array("I", [0, 2])), True)
    short = make_info(rows, more=more, uncompressed_size=16384)
    assert open_ci(pack_rows(rows, more), short).layout() == (memoryview(array("I", [0, 2])), False)


def test_before_the_first_chunk_is_a_hole() -> None:
    row = Row(0, 9, 4096, 9)
    assert open_ci(row.v1(), make_info((row,))).locate(4095) is None


@BOTH
@pytest.mark.parametrize("second", [Row(9, 9, 0, 9), Row(9, 9, 4096, 9)], ids=["order", "overlap"])
def test_records_out_of_order_are_not_searched(more: BlobFeature, second: Row) -> None:
    rows = (Row(0, 9, 4096, 9), second)
    table = open_ci(pack_rows(rows, more), make_info(rows, more=more))
    for _ in range(2):
        with pytest.raises(FormatError, match="unsorted"):
            table.locate(0)
        assert table.layout() is None
    assert table.chunk(1).compressed_offset == 9


def test_dictionaries_made_by_the_generator_are_not_held_to_the_bounds() -> None:
    row = Row(1 << 30, 4096, 1 << 30, 4096)
    more = BlobFeature.IS_CHUNKDICT_GENERATED
    info = make_info((row,), more=more, chunk_count=7, compressed_data_size=1, uncompressed_size=1)
    table = open_ci(row.v1(), info)
    assert len(table) == 1
    assert table.chunk(0).compressed_offset == 1 << 30
    check_header(make_header(info, entries=3), info)


# Sizes, header, stored form


def test_one_request_reads_array_and_header() -> None:
    info = make_info()
    assert stored_range(info) == (4997, 48 + 4096)
    assert meta_file_size(info) == 4096 + 4096


@pytest.mark.parametrize(
    ("more", "count", "size"),
    [
        (BlobFeature(0), 3, 47),
        (BlobFeature(0), 3, 49),
        (V2, 3, 48),
        (V2 | BlobFeature.BATCH, 3, 71),
        (BlobFeature.BATCH, 3, 72),
        (BlobFeature.ZRAN, 3, 72),
        (BlobFeature(0), 0, 0),
        (BlobFeature(0), (1 << 24) + 1, 16 * ((1 << 24) + 1)),
        (V2 | BlobFeature.ZRAN, 3, (384 << 20) + 1),
        (BlobFeature.IS_CHUNKDICT_GENERATED, 3, (256 << 20) + 1),
    ],
)
def test_an_array_size_against_the_rules_is_refused(
    more: BlobFeature, count: int, size: int
) -> None:
    info = make_info(more=more, chunk_count=count, ci=CiLocation(0, 48, size, Codec.ZSTD))
    with pytest.raises(FormatError):
        check_ci_size(info)


def test_a_huge_stored_array_is_never_asked_for() -> None:
    info = make_info(ci=CiLocation(0, 1 << 40, 48, Codec.ZSTD))
    with pytest.raises(FormatError, match="CI stored size"):
        stored_range(info)


def test_a_blob_without_array_says_so() -> None:
    with pytest.raises(UnsupportedError, match="no chunk-info array"):
        stored_range(make_info(ci=None))


def test_the_header_of_the_blob_is_accepted_whatever_its_features_say() -> None:
    info = make_info()
    assert check_header(make_header(info, features=0xFFFF_FFFF), info).ci_entries == 3


@pytest.mark.parametrize(
    "fields",
    [
        {"magic": 0},
        {"magic2": 0xB10B_B10A},
        {"entries": 2},
        {"compressor": 3},
        {"offset": 0},
        {"stored_size": 47},
        {"plain_size": 1 << 63},
    ],
    ids=str,
)
def test_a_header_of_another_blob_is_refused(fields: dict[str, int]) -> None:
    info = make_info()
    with pytest.raises(FormatError, match=f"blob {'ab' * 32}: CI header"):
        check_header(make_header(info, **fields), info)


@pytest.mark.parametrize("length", [0, 4095, 4097])
def test_a_header_of_another_length_is_refused(length: int) -> None:
    info = make_info()
    with pytest.raises(FormatError, match="length"):
        check_header(make_header(info).ljust(4097, b"\0")[:length], info)


@pytest.mark.parametrize(
    "fields",
    [
        {"context_offset": 71},
        {"context_size": 121},
        {"context_count": 4, "context_size": 120},
        {"context_count": 3, "context_size": 119},
    ],
    ids=str,
)
def test_zran_contexts_must_fit(fields: dict[str, int]) -> None:
    info = make_info(more=V2 | BlobFeature.ZRAN, context_bytes=120)
    good = {"context_offset": 72, "context_size": 120, "context_count": 3}
    check_header(make_header(info, **good), info)
    with pytest.raises(FormatError, match="zran context"):
        check_header(make_header(info, **(good | fields)), info)


@pytest.mark.parametrize("codec", [Codec.NONE, Codec.LZ4_BLOCK, Codec.ZSTD])
def test_the_array_is_decoded_to_what_went_in(codec: Codec) -> None:
    rows = tuple(Row(k * 10, 10, k * 4096, 10) for k in range(500))
    ci = pack_rows(rows, BlobFeature(0))
    stored = ci if codec is Codec.NONE else native.compress(codec, ci)
    assert stored is not None
    info = make_info(rows, codec=codec, stored=stored)
    assert decode_ci(stored, info) == ci
    assert decode_ci(memoryview(stored), info) == ci


@pytest.mark.parametrize("change", [-1, 1])
def test_an_array_of_another_stored_length_is_refused(change: int) -> None:
    info = make_info()
    with pytest.raises(FormatError, match="CI stored length"):
        decode_ci(bytes(48 + change), info)


@pytest.mark.parametrize("codec", [Codec.LZ4_BLOCK, Codec.ZSTD])
@pytest.mark.parametrize("size", [47, 49, 48 << 20])
def test_an_array_that_decodes_to_another_size_is_refused(codec: Codec, size: int) -> None:
    stored = native.compress(codec, bytes(size))
    assert stored is not None
    with pytest.raises(FormatError, match="CI is"):
        decode_ci(stored, make_info(codec=codec, stored=stored))


@pytest.mark.parametrize("codec", [Codec.LZ4_BLOCK, Codec.ZSTD, Codec.GZIP])
def test_rubbish_is_refused(codec: Codec) -> None:
    with pytest.raises(FormatError):
        decode_ci(b"\xff" * 40, make_info(codec=codec, stored=b"\xff" * 40))


def test_a_frame_that_claims_a_terabyte_costs_nothing() -> None:
    # zstd magic, single segment with an 8-byte content size of 2^40, one RLE block of 128 KiB
    bomb = struct.pack("<IBQ", 0xFD2FB528, 0xE0, 1 << 40) + (0x2_0000 << 3 | 3).to_bytes(
        3, "little"
    )
    with pytest.raises(FormatError):
        decode_ci(bomb + b"\0", make_info(stored=bomb + b"\0"))


# Cached form


def test_the_cached_form_is_array_padding_header() -> None:
    info = make_info()
    ci = pack_rows(ROWS, info.features)
    parts = compose_meta_file(ci, make_header(info))
    assert [len(part) for part in parts] == [48, 4048, 4096]
    whole = b"".join(parts)
    assert len(whole) == meta_file_size(info)
    assert whole[:48] == ci
    assert not any(whole[48:4096])
    assert whole[4096:] == make_header(info)


def test_a_full_page_of_records_needs_no_padding() -> None:
    rows = tuple(Row(k, 1, k * 4096, 1) for k in range(256))
    info = make_info(rows)
    ci = pack_rows(rows, info.features)
    assert [len(part) for part in compose_meta_file(ci, make_header(info))] == [4096, 0, 4096]
    assert open_meta(meta_file(info, ci), info).chunk(255).compressed_offset == 255


def test_a_mapped_file_is_used_in_place_and_can_be_closed(tmp_path: Path) -> None:
    info = make_info()
    path = tmp_path / "x.blob.meta"
    path.write_bytes(meta_file(info, pack_rows(ROWS, info.features)))
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        table = open_meta(mapped, info)
        assert table.chunk(2).uncompressed_size == 4097
        assert open_meta(memoryview(mapped), info).chunk(1).uncompressed_offset == 8192


@pytest.mark.parametrize(
    "change", ["short", "long", "empty", "header only", "zero header", "foreign"]
)
def test_a_file_that_is_short_foreign_or_corrupt_is_refused(change: str) -> None:
    info = make_info()
    whole = meta_file(info, pack_rows(ROWS, info.features))
    broken = {
        "short": whole[:-1],
        "long": whole + b"\0",
        "empty": b"",
        "header only": whole[4096:],
        "zero header": whole[:4096] + bytes(4096),
        "foreign": whole[:4096] + make_header(info, offset=1),
    }[change]
    with pytest.raises(FormatError):
        open_meta(broken, info)


def test_a_compressed_array_reaches_the_cached_form_decoded() -> None:
    rows = tuple(Row(k * 10, 10, k * 4096, 10) for k in range(500))
    ci = pack_rows(rows, BlobFeature(0))
    stored = zstandard.ZstdCompressor().compress(ci)
    info = make_info(rows, stored=stored)
    blob_tail = stored + make_header(info)
    assert len(blob_tail) == stored_range(info).length
    header = blob_tail[len(stored) :]
    check_header(header, info)
    parts = compose_meta_file(decode_ci(blob_tail[: len(stored)], info), header)
    assert open_meta(b"".join(parts), info).chunk(499).uncompressed_offset == 499 * 4096
