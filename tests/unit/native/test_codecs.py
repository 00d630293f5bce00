"""compress and decompress: single runs of bytes."""

import random

import pytest
import zstandard

from nydusd import native
from tests.support import native_twins

PLAIN = b"".join(b"line %d of a file that repeats itself\n" % (n % 37) for n in range(2000))


@pytest.mark.parametrize("codec", [1, 3])
@pytest.mark.parametrize("level", [0, 1, 9])
def test_what_is_compressed_comes_back_elsewhere_too(codec: int, level: int) -> None:
    packed = native.compress(codec, PLAIN, level)
    assert packed is not None
    assert len(packed) < len(PLAIN) // 4
    assert native.decompress(codec, packed, len(PLAIN)) == PLAIN
    assert native_twins.decode(codec, packed, len(PLAIN)) == PLAIN


def test_zstd_frames_carry_their_content_size() -> None:
    packed = native.compress(3, PLAIN)
    assert packed is not None
    assert zstandard.frame_content_size(packed) == len(PLAIN)


@pytest.mark.parametrize(("codec", "fast", "thorough"), [(1, 0, 9), (3, -5, 9)])
def test_higher_levels_compress_better(codec: int, fast: int, thorough: int) -> None:
    quick, good = native.compress(codec, PLAIN, fast), native.compress(codec, PLAIN, thorough)
    assert quick is not None
    assert good is not None
    assert len(good) < len(quick)


@pytest.mark.parametrize("codec", [1, 3])
@pytest.mark.parametrize("length", [0, 1, 2, 16, 4096])
def test_what_would_not_be_smaller_is_none(codec: int, length: int) -> None:
    assert native.compress(codec, random.Random(2).randbytes(length)) is None


def test_codecs_that_are_not_written_are_refused() -> None:
    for codec in (0, 2, 4):
        with pytest.raises(ValueError, match="cannot be written"):
            native.compress(codec, PLAIN)


@pytest.mark.parametrize("codec", [1, 2, 3])
def test_any_other_size_than_promised_is_none(codec: int) -> None:
    stored = native_twins.encode(codec, PLAIN)
    assert native.decompress(codec, stored, len(PLAIN)) == PLAIN
    assert native.decompress(codec, stored, len(PLAIN) + 1) is None
    assert native.decompress(codec, stored[: len(stored) // 2], len(PLAIN)) is None
    assert native.decompress(codec, stored, 0) is None
    assert native.decompress(codec, b"", 10) is None
    if codec != 2:  # of a gzip member the wanted bytes are taken, the rest is left (spec blob §6.1)
        assert native.decompress(codec, stored, len(PLAIN) - 1) is None


def test_codec_none_has_nothing_to_decompress() -> None:
    assert native.decompress(0, b"abc", 3) is None
    assert native.decompress(77, b"abc", 3) is None
