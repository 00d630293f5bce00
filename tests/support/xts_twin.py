"""AES-XTS in plain Python, written from FIPS 197 and IEEE 1619: the encrypting side, and what the format adds.

Slow: for the few KiB of a test's blob.
"""

from functools import cache, lru_cache

from nydusd.blob.model import CipherKey

KEY = CipherKey(bytes(range(1, 33)), bytes(range(100, 116)))
OTHER_KEY = CipherKey(bytes(range(2, 34)), bytes(range(100, 116)))


def _double(value: int) -> int:
    """Multiply by x in the field of AES."""
    value <<= 1
    return value ^ 0x11B if value & 0x100 else value


@cache
def _sbox() -> bytes:
    # 3 generates the field: its powers and those of its inverse meet each element and its inverse.
    box, value, inverse = bytearray(256), 1, 1
    box[0] = 0x63
    for _ in range(255):
        rotated, mixed = inverse, inverse
        for _ in range(4):
            rotated = (rotated << 1 | rotated >> 7) & 0xFF
            mixed ^= rotated
        box[value] = mixed ^ 0x63
        value ^= _double(value)  # times 3
        for shift in (1, 2, 4):  # divided by 3
            inverse ^= inverse << shift & 0xFF
        inverse ^= 0x09 if inverse & 0x80 else 0
    return bytes(box)


@cache
def _round_keys(key: bytes) -> tuple[bytes, ...]:
    box, size = _sbox(), len(key) // 4
    words = [key[4 * i : 4 * i + 4] for i in range(size)]
    constant = 1
    for i in range(size, 4 * (size + 7)):
        word = words[-1]
        if i % size == 0:
            word = bytes(box[byte] for byte in word[1:] + word[:1])
            word = bytes((word[0] ^ constant,)) + word[1:]
            constant = _double(constant)
        elif size > 6 and i % size == 4:
            word = bytes(box[byte] for byte in word)
        words.append(_xor(word, words[-size]))
    return tuple(b"".join(words[i : i + 4]) for i in range(0, len(words), 4))


def _xor(one: bytes, other: bytes) -> bytes:
    return bytes(a ^ b for a, b in zip(one, other, strict=True))


@cache
def _tables() -> tuple[list[int], ...]:
    """What a byte of each row does to a column: substituted and mixed at once."""
    columns = [bytes((_double(s), s, s, _double(s) ^ s)) for s in _sbox()]
    return tuple(
        [int.from_bytes(column[-row:] + column[:-row]) for column in columns] for row in range(4)
    )


def aes_block(key: bytes, block: bytes) -> bytes:
    """Encrypt 16 bytes."""
    first, *inner, last = _round_keys(key)
    t0, t1, t2, t3 = _tables()
    state = _columns(_xor(block, first))
    for round_key in inner:
        a, b, c, d = state
        state = [
            t0[p >> 24] ^ t1[q >> 16 & 255] ^ t2[r >> 8 & 255] ^ t3[s & 255] ^ k
            for (p, q, r, s), k in zip(
                ((a, b, c, d), (b, c, d, a), (c, d, a, b), (d, a, b, c)),
                _columns(round_key),
                strict=True,
            )
        ]
    rows = b"".join(column.to_bytes(4) for column in state)
    box = _sbox()
    return _xor(bytes(box[rows[(i + 4 * (i % 4)) % 16]] for i in range(16)), last)


def _columns(block: bytes) -> list[int]:
    return [int.from_bytes(block[i : i + 4]) for i in (0, 4, 8, 12)]


@lru_cache(1024)  # tests encrypt the same header again and again
def xts_encrypt(key: bytes, tweak: bytes, plain: bytes) -> bytes:
    """Encrypt one data unit of 16 bytes or more; the last block may be short."""
    data_key, tweak_key = key[: len(key) // 2], key[len(key) // 2 :]
    mask = int.from_bytes(aes_block(tweak_key, tweak), "little")
    blocks = [plain[i : i + 16] for i in range(0, len(plain), 16)]
    stored: list[bytes] = []
    for block in blocks:
        if len(block) < 16:  # takes the end of the block before, which goes last, cut
            whole = stored.pop()
            stored += [_masked(data_key, mask, block + whole[len(block) :]), whole[: len(block)]]
            break
        stored.append(_masked(data_key, mask, block))
        mask <<= 1
        mask ^= 0x87 | 1 << 128 if mask >> 128 else 0
    return b"".join(stored)


def _masked(key: bytes, mask: int, block: bytes) -> bytes:
    mask_bytes = mask.to_bytes(16, "little")
    return _xor(aes_block(key, _xor(block, mask_bytes)), mask_bytes)


def encrypt(plain: bytes, key: CipherKey = KEY) -> bytes:
    """Return a unit as a builder stores it (spec blob §11)."""
    if len(plain) < 16:
        lacking = 16 - len(plain)
        plain = plain + bytes([lacking]) * lacking + b"\x78\x90"
    return xts_encrypt(key.key, key.tweak, plain)
