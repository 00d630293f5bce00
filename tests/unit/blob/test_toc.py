"""Tables of contents, and the digest array that they name."""

import hashlib
import struct

import pytest
import zstandard

from nydusd.blob.model import NO_DIGEST, Codec
from nydusd.blob.segment import ByteRange
from nydusd.blob.toc import DigestArray, parse_toc, toc_range
from nydusd.errors import FormatError, IntegrityError
from tests.support.blob_bytes import make_toc, make_toc_entry, make_trailer

CI = b"r" * 48
ENTRIES = (
    make_toc_entry(b"image.blob", b"d" * 100, 7),
    make_toc_entry(b"blob.meta", CI, 612),
    make_toc_entry(b"blob.meta.header", b"h" * 4096, 660),
)


def test_entries_are_found_by_name() -> None:
    toc = parse_toc(make_toc(*ENTRIES))
    assert [segment.name for segment in toc.segments] == [
        "image.blob",
        "blob.meta",
        "blob.meta.header",
    ]
    meta = toc.find("blob.meta")
    assert meta is not None
    assert meta.byte_range == ByteRange(612, 48)
    assert (meta.codec, meta.uncompressed_size) == (Codec.NONE, 48)
    assert meta.digest == hashlib.sha256(CI).digest()
    assert toc.find("image.boot") is None


def test_a_tail_may_hold_more_than_the_toc() -> None:
    tail = b"bootstrap and so on" + make_toc(*ENTRIES)
    assert parse_toc(tail) == parse_toc(memoryview(make_toc(*ENTRIES)))


def test_the_digest_of_the_blob_table_covers_entries_and_header() -> None:
    toc = make_toc(*ENTRIES)
    digest = hashlib.sha256(toc).digest()
    assert parse_toc(toc, digest) == parse_toc(toc)
    flipped = bytearray(toc)
    flipped[130] ^= 1
    with pytest.raises(IntegrityError, match="b10b: TOC"):
        parse_toc(bytes(flipped), digest, "b10b")
    with pytest.raises(IntegrityError):
        parse_toc(b"\0" + toc, digest)


def test_names_of_16_bytes_have_no_nul() -> None:
    (segment,) = parse_toc(make_toc(make_toc_entry(b"blob.meta.header", b""))).segments
    assert segment.name == "blob.meta.header"


def test_an_empty_toc_is_a_toc() -> None:
    assert parse_toc(make_toc()).segments == ()


@pytest.mark.parametrize(
    "stored",
    [
        b"",
        make_toc(*ENTRIES)[1:-512],
        make_toc(*ENTRIES)[200:],
        make_toc(*ENTRIES)[:-1],
        b"x" * 100 + make_trailer(b"rafs.blob.toc", 100),
        b"x" * 128 + make_trailer(b"rafs.blob.toc", 128),
        b"x" * 128 + make_trailer(b"image.boot", 128),
        bytes(65664) + make_trailer(b"rafs.blob.toc", 65664),
        make_toc(make_toc_entry(b"blob.meta", b"", flags=0)),
        make_toc(make_toc_entry(b"blob.meta", b"", flags=3)),
        make_toc(make_toc_entry(b"blob.meta", b"x", stored=b"xx")),
        make_toc(make_toc_entry(b"\xff\xff", b"")),
        make_toc(make_toc_entry(b"a\0b", b"")),
    ],
)
def test_anything_else_is_refused(stored: bytes) -> None:
    with pytest.raises(FormatError, match="b10b"):
        parse_toc(stored, source="b10b")


def test_old_builders_wrote_differing_sizes_for_the_data() -> None:
    entry = make_toc_entry(b"image.blob", b"d" * 100, stored=b"d" * 60)
    (data,) = parse_toc(make_toc(entry)).segments
    assert (data.compressed_size, data.uncompressed_size) == (60, 100)


@pytest.mark.parametrize(
    ("blob_size", "toc_size", "expected"),
    [
        (10_000, 1024, ByteRange(8976, 1024)),
        (1024, 1024, ByteRange(0, 1024)),
        (10_000, 0, ByteRange(5904, 4096)),
        (1000, 0, ByteRange(104, 896)),
        (100, 0, ByteRange(100, 0)),
    ],
)
def test_the_range_to_read(blob_size: int, toc_size: int, expected: ByteRange) -> None:
    assert toc_range(blob_size, toc_size) == expected


@pytest.mark.parametrize("toc_size", [1, 384, 640 + 1, 65536 + 128, 10_112])
def test_a_toc_size_against_the_rules_is_refused(toc_size: int) -> None:
    with pytest.raises(FormatError, match="blob_toc_size"):
        toc_range(10_000, toc_size)


def test_contents_come_out_plain_and_checked() -> None:
    content = b"text" * 1000
    packed = zstandard.ZstdCompressor().compress(content)
    entry = make_toc_entry(b"image.boot", content, stored=packed, flags=2)
    (segment,) = parse_toc(make_toc(entry)).segments
    assert segment.codec is Codec.ZSTD
    assert segment.extract(packed) == content
    with pytest.raises(FormatError, match="length"):
        segment.extract(packed + b"\0")
    other = zstandard.ZstdCompressor().compress(b"Text" * 1000)
    with pytest.raises(IntegrityError, match=r"image\.boot"):
        segment._replace(compressed_size=len(other)).extract(other)
    unchecked = segment._replace(compressed_size=len(other), digest=NO_DIGEST)
    assert unchecked.extract(other) == b"Text" * 1000
    for size in (len(content) - 1, len(content) + 1, 0, -1, 1 << 62):
        with pytest.raises(FormatError):
            segment._replace(uncompressed_size=size).extract(packed)


def test_a_digest_array_answers_by_index() -> None:
    array = DigestArray(memoryview(b"a" * 32 + bytes(32) + b"c" * 32), 3)
    assert array.lookup(0, 0) == (b"a" * 32, None)
    assert array.lookup(2, 1 << 40) == (b"c" * 32, None)
    for unknown in (1, 3, -1, 1 << 60):
        assert array.lookup(unknown, 0) == (None, None)


@pytest.mark.parametrize("length", [0, 63, 65, 96])
def test_a_digest_array_has_32_bytes_per_chunk(length: int) -> None:
    with pytest.raises(FormatError, match="2 chunks"):
        DigestArray(bytes(length), 2, "b10b")


def test_entries_keep_what_reserved_bytes_hold_out_of_sight() -> None:
    entry = bytearray(ENTRIES[1])
    entry[80:128] = struct.pack("<6Q", *range(1, 7))
    assert parse_toc(make_toc(bytes(entry))) == parse_toc(make_toc(ENTRIES[1]))
