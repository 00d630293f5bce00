"""Bootstraps inside a data blob: found in the tail, taken out, checked."""

import random

import pytest

from nydusd.blob.inline import extract_bootstrap, find_bootstrap, tail_range, within_tail
from nydusd.blob.model import Codec
from nydusd.errors import FormatError, IntegrityError, NotFoundError, NydusError
from tests.support.blob_bytes import make_inlined_blob, make_toc, make_toc_entry, make_trailer

BOOT = b"bootstrap " * 4096
TOC = pytest.mark.parametrize("toc", [False, True], ids=["trailer", "toc"])


def take_out(blob: bytes) -> bytes:
    """The two reads that storage does."""
    at = tail_range(len(blob))
    tail = blob[at.offset : at.end]
    segment = find_bootstrap(tail, len(blob), "b10b")
    stored = within_tail(tail, len(blob), segment)
    if stored is None:
        at = segment.byte_range
        stored = blob[at.offset : at.end]
    return extract_bootstrap(stored, segment, "b10b")


@TOC
@pytest.mark.parametrize("data_size", [0, 5, 1 << 20])
def test_a_bootstrap_comes_out_as_it_went_in(toc: bool, data_size: int) -> None:
    assert take_out(make_inlined_blob(b"d" * data_size, BOOT, toc=toc)) == BOOT


@TOC
def test_a_bootstrap_larger_than_the_tail_needs_a_second_read(toc: bool) -> None:
    boot = random.Random(1).randbytes(200_000)
    blob = make_inlined_blob(b"data", boot, toc=toc)
    at = tail_range(len(blob))
    assert at.length == 65536
    tail = blob[at.offset :]
    segment = find_bootstrap(tail, len(blob))
    assert within_tail(tail, len(blob), segment) is None
    assert take_out(blob) == boot


def test_a_small_one_needs_no_second_read() -> None:
    blob = make_inlined_blob(b"data", b"boot" * 100)
    segment = find_bootstrap(blob, len(blob))
    assert within_tail(blob, len(blob), segment) == b"boot" * 100


@pytest.mark.parametrize(
    "blob",
    [
        b"",
        b"x" * 511,
        b"x" * 2000,
        b"data" + make_trailer(b"image.blob", 4),
        b"data" + make_toc(make_toc_entry(b"image.blob", b"data")),
        b"x" * 600 + make_trailer(b"image.boot", 600, checksum=b"000000\0 "),
    ],
    ids=["empty", "tiny", "no trailer", "other segment", "toc without", "broken trailer"],
)
def test_a_blob_without_bootstrap_says_so(blob: bytes) -> None:
    with pytest.raises(NotFoundError, match="b10b"):
        take_out(blob)


@pytest.mark.parametrize(
    "blob",
    [
        b"x" * 10 + make_trailer(b"image.boot", 11),
        make_trailer(b"image.boot", 0),
        b"x" + make_toc(make_toc_entry(b"image.boot", b"", 0)),
        b"x" + make_toc(make_toc_entry(b"image.boot", b"x", 1 << 60)),
        b"x" + make_toc(make_toc_entry(b"image.boot", b"y" * 2000, 0)),
        b"x" + make_toc(make_toc_entry(b"image.boot", b"x", 0, flags=4)),
        b"x" + make_toc(make_toc_entry(b"image.boot", b"xxx", 0, stored=b"x", flags=2)),
        b"x" + make_trailer(b"rafs.blob.toc", 128),
    ],
)
def test_a_broken_tail_is_refused(blob: bytes) -> None:
    with pytest.raises(FormatError):
        take_out(blob)


def test_sizes_beyond_reason_are_refused_before_any_read() -> None:
    huge = make_trailer(b"image.boot", (1 << 30) + 1)
    with pytest.raises(FormatError, match="stored size"):
        find_bootstrap(huge, (1 << 30) + 513)
    entry = bytearray(make_toc_entry(b"image.boot", b"x", flags=2))
    entry[72:80] = ((1 << 30) + 1).to_bytes(8, "little")
    with pytest.raises(FormatError, match="plain size"):
        find_bootstrap(make_toc(bytes(entry)), 1 << 31)


def test_another_bootstrap_than_the_toc_names_is_refused() -> None:
    entry = make_toc_entry(b"image.boot", b"right", 0)
    with pytest.raises(IntegrityError, match=r"b10b: image\.boot"):
        take_out(b"wrong" + make_toc(entry))


def test_a_bootstrap_without_digest_is_taken_as_it_is() -> None:
    entry = bytearray(make_toc_entry(b"image.boot", b"right", 0))
    entry[24:56] = bytes(32)
    assert take_out(b"wrong" + make_toc(bytes(entry))) == b"wrong"


@TOC
@pytest.mark.parametrize("cut", [1, 100, 513, 1200])
def test_a_cut_blob_never_gives_another_bootstrap(toc: bool, cut: int) -> None:
    blob = make_inlined_blob(b"d" * 2000, BOOT, toc=toc)
    with pytest.raises(NydusError):
        take_out(blob[:-cut])


def test_the_codec_is_that_of_the_toc() -> None:
    blob = make_inlined_blob(b"", BOOT, toc=True)
    assert find_bootstrap(blob, len(blob)).codec is Codec.ZSTD
    plain = make_inlined_blob(b"", BOOT)
    assert find_bootstrap(plain[-65536:], len(plain)).codec is Codec.NONE
