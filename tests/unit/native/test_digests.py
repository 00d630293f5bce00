"""BLAKE3, SHA-256 and CRC-32C of the C module against other implementations."""

import hashlib
import mmap
import random

import blake3
import pytest

from nydusd import native
from tests.support import native_twins

BLOCK, CHUNK, SLAB = 64, 1024, 256 * 1024
BOUNDARIES = sorted(
    {0}
    | {max(n * BLOCK + off, 0) for n in range(1, 33) for off in (-1, 0, 1)}
    | {
        n * CHUNK + off
        for n in (1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33)
        for off in (-1, 0, 1)
    }
    | {n * SLAB + off for n in (1, 2, 3, 4, 5, 8) for off in (-1, 0, 1)}
)
NOISE = random.Random(5).randbytes(max(BOUNDARIES))


def test_blake3_agrees_with_the_reference_implementation_at_every_boundary() -> None:
    for length in BOUNDARIES:
        data = NOISE[:length]
        assert native.digest(0, data) == blake3.blake3(data).digest(), length


def test_sha256_agrees_with_hashlib() -> None:
    for length in BOUNDARIES[:120]:
        assert native.digest(1, NOISE[:length]) == hashlib.sha256(NOISE[:length]).digest(), length


def test_crc_has_the_published_check_value() -> None:
    assert native.crc32c(b"123456789") == 0xE306_9283
    assert native.crc32c(b"") == 0


def test_crc_agrees_with_the_bitwise_one() -> None:
    for length in range(70):
        assert native.crc32c(NOISE[:length]) == native_twins.crc32c(NOISE[:length]), length


def test_any_kind_of_buffer_gives_the_same_digest() -> None:
    data = NOISE[:5000]
    mapping = mmap.mmap(-1, 5000)
    mapping[:] = data
    for buffer in (bytearray(data), memoryview(b"x" + data)[1:], mapping):
        assert native.digest(0, buffer) == blake3.blake3(data).digest()
        assert native.crc32c(buffer) == native.crc32c(data)
    mapping.close()  # refused while anything still held its memory


def test_unknown_digester_is_a_bug_and_said_so() -> None:
    with pytest.raises(ValueError, match="unknown codec or digester"):
        native.digest(2, b"")
