"""AES-XTS: what the plain twin encrypts is decrypted in its place, and nothing else is touched."""

import pytest

from nydusd import native
from tests.support.xts_twin import KEY, aes_block, xts_encrypt

# FIPS 197, C.1 and C.3
BLOCK = bytes.fromhex("00112233445566778899aabbccddeeff")
AES_256 = bytes(range(64))


def test_the_twin_is_the_cipher_of_the_standard() -> None:
    assert aes_block(bytes(range(16)), BLOCK).hex() == "69c4e0d86a7b0430d8cdb78070b4c55a"
    assert aes_block(bytes(range(32)), BLOCK).hex() == "8ea2b7ca516745bfeafc49904b496089"


@pytest.mark.parametrize("key", [KEY.key, AES_256], ids=["128", "256"])
@pytest.mark.parametrize("size", [16, 17, 31, 32, 33, 4096, 5001])
def test_what_the_twin_encrypts_comes_back(key: bytes, size: int) -> None:
    plain = bytes(n * 7 % 251 for n in range(size))
    data = bytearray(b"before" + xts_encrypt(key, KEY.tweak, plain) + b"behind")
    native.decrypt(data, [(6, size)], key, KEY.tweak)
    assert data == b"before" + plain + b"behind"


def test_units_are_decrypted_each_by_itself() -> None:
    one, two = b"1" * 40, b"2" * 18
    data = bytearray(
        xts_encrypt(KEY.key, KEY.tweak, one) + b"gap" + xts_encrypt(KEY.key, KEY.tweak, two)
    )
    native.decrypt(data, [(43, 18), (0, 40)], *KEY)
    assert data == one + b"gap" + two


@pytest.mark.parametrize(
    "unit", [(0, 15), (0, 65), (49, 16), (-1, 16), (1 << 64, 16), (0, 1 << 32), (64, 16)]
)
def test_units_outside_the_data_are_refused(unit: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="unit"):
        native.decrypt(bytearray(64), [unit], *KEY)


def test_keys_and_tweaks_of_other_lengths_are_refused() -> None:
    for size in (0, 16, 31, 33, 48, 65):
        with pytest.raises(ValueError, match=f"a key of {size} bytes"):
            native.decrypt(bytearray(64), [(0, 64)], bytes(size), KEY.tweak)
    with pytest.raises(ValueError, match="a tweak of 8 bytes"):
        native.decrypt(bytearray(64), [(0, 64)], KEY.key, bytes(8))
