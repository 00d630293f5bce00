"""Encrypted units: padding, keys, runs of chunks."""

import pytest

from nydusd.blob.encryption import (
    UNIT_MAX_BYTES,
    checked_key,
    decrypt,
    decrypt_run,
    decrypt_units,
    stored_size,
    unpadded_size,
)
from nydusd.blob.model import Chunk, CipherKey
from nydusd.errors import FormatError
from tests.support.xts_twin import KEY, OTHER_KEY, encrypt

SPEC_KEY = CipherKey(b"\x0c" * 31 + b"\x0a", bytes(16))


@pytest.mark.parametrize(
    ("stored", "plain"),
    [
        ("1df853e84717cce491f7bcb79c9edfb42ed2", b"1"),
        ("67a2d8fcc3beed670bb626feab5a03f295", b"1" * 17),
    ],
    ids=["padded", "stolen"],
)
def test_the_units_of_the_format_s_description(stored: str, plain: bytes) -> None:
    assert encrypt(plain, SPEC_KEY).hex() == stored
    assert decrypt(bytes.fromhex(stored), SPEC_KEY) == plain


@pytest.mark.parametrize("size", [1, 2, 15, 16, 17, 18, 19, 4096])
def test_a_unit_of_any_size_comes_back(size: int) -> None:
    plain = bytes(range(1, 256))[:size].ljust(size, b"x")
    stored = encrypt(plain)
    assert len(stored) == stored_size(size)
    assert bytes(decrypt(stored, KEY)) == plain
    assert bytes(decrypt(stored, OTHER_KEY)) != plain


def test_only_what_is_padded_is_taken_for_padding() -> None:
    assert unpadded_size(b"12345" + b"\x0b" * 11 + b"\x78\x90") == 5
    assert unpadded_size(b"1" * 15 + b"\x01\x78\x90") == 15
    for genuine in (
        b"12345" + b"\x0b" * 10 + b"\x0c\x78\x90",  # of another length than it says
        b"1" * 15 + b"\x00\x78\x90",
        b"\x10" * 16 + b"\x78\x90",  # nothing but padding: no unit is empty
        b"1" * 15 + b"\xff\x78\x90",
        b"12345" + b"\x0b" * 11 + b"\x78\x91",
        b"12345" + b"\x0b" * 11 + b"\x78",
        b"12345" + b"\x0b" * 11 + b"\x78\x90\x00",
    ):
        assert unpadded_size(genuine) == len(genuine)


@pytest.mark.parametrize(
    ("key", "tweak"),
    [
        (bytes(32), bytes(16)),
        (b"secret-secret-16" * 2, bytes(16)),
        (b"secret", bytes(16)),
        (KEY.key + KEY.key, bytes(16)),
        (KEY.key, b"secret"),
    ],
)
def test_what_can_be_no_key_is_refused_and_not_shown(key: bytes, tweak: bytes) -> None:
    with pytest.raises(FormatError) as caught:
        checked_key(key, tweak, "boot")
    assert "secret" not in str(caught.value)
    assert "boot: cipher key is ***" in str(caught.value)


def test_a_key_is_never_printed() -> None:
    key = checked_key(b"secret-secret-16" + b"another-secret-1", b"secret-tweak-123")
    assert f"{key} {key!r} {key!s} {[key]} %s" % (key,) == "*** *** *** [***] ***"


def chunk(index: int, at: int, size: int, plain: int, **more: object) -> Chunk:
    fields = {"is_compressed": False, "is_encrypted": True, **more}
    return Chunk(index, at, size, index * 4096, plain, **fields)  # type: ignore[arg-type]


def test_a_run_is_decrypted_unit_by_unit_and_padding_is_taken_off() -> None:
    long, short, genuine = b"x" * 100, b"short", b"genuine" + b"\x09" * 9 + b"\x78\x90"
    run = encrypt(long) + encrypt(short) + b"plain" + encrypt(genuine) + encrypt(b"lz4")
    chunks = [
        chunk(0, 1000, 100, 100),
        chunk(1, 1100, 18, 5),
        chunk(2, 1118, 5, 5, is_encrypted=False),
        chunk(3, 1123, 18, 18),
        chunk(4, 1141, 18, 900, is_compressed=True),
    ]
    opened, found = decrypt_run(run, 1000, chunks, KEY)
    taken = [bytes(opened[c.compressed_offset - 1000 : c.compressed_end - 1000]) for c in found]
    assert taken == [long, short, b"plain", genuine, b"lz4"]
    assert [c.chunk_index for c in found] == [0, 1, 2, 3, 4]


def test_a_run_without_encrypted_chunks_is_left_as_it_is() -> None:
    run, chunks = b"plain", [chunk(0, 0, 5, 5, is_encrypted=False)]
    opened, found = decrypt_run(run, 0, chunks, None)
    assert opened is run
    assert found is chunks


def test_encrypted_chunks_without_a_key_are_refused() -> None:
    with pytest.raises(FormatError, match="must be there for encrypted chunks"):
        decrypt_run(bytes(100), 0, [chunk(0, 0, 100, 100)], None)


@pytest.mark.parametrize("unit", [(0, 15), (1, 100), (-1, 16), (85, 16), (0, UNIT_MAX_BYTES + 1)])
def test_units_that_cannot_be_are_refused(unit: tuple[int, int]) -> None:
    with pytest.raises(FormatError, match="encrypted bytes"):
        decrypt_units(bytes(100), [unit], KEY)
