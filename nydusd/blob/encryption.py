"""Encrypted bytes of a blob: chunks, contexts, chunk records and their header (spec blob §11).

Each of them is one unit of AES-XTS, all with the blob's one key and tweak; the length stays, but what is
shorter than a block of the cipher is padded before.

Owns     nothing. No text of an error shows a key or what was decrypted.
Callers  blob_meta for records; storage, in worker threads, for chunks.
Raises   FormatError for a key or unit that the format does not have. There is no check of what was
         decrypted: a wrong key gives other bytes, which their digests tell.
"""

from collections.abc import Sequence
from typing import Final

from nydusd.blob.model import Chunk, CipherKey
from nydusd.errors import FormatError
from nydusd.records import Buffer

KEY_BYTES: Final = 32  # AES-128-XTS: two keys of 16
TWEAK_BYTES: Final = 16
UNIT_MIN_BYTES: Final = 16  # the cipher's block
UNIT_MAX_BYTES: Final = 16 << 20  # of XTS: 2^20 blocks
PADDED_BYTES: Final = (
    18  # what a shorter unit becomes: to 16 by the count of what lacks, then the mark
)
PADDING_MARK: Final = b"\x78\x90"


def checked_key(key: bytes, tweak: bytes, source: str = "") -> CipherKey:
    """Return the key of a blob table entry, if it can be one."""
    half = KEY_BYTES // 2
    if len(key) != KEY_BYTES or len(tweak) != TWEAK_BYTES:
        raise FormatError(
            "cipher key", "***", f"must have {KEY_BYTES} bytes and a tweak of 16", source
        )
    if key[:half] == key[half:]:  # none was set, or it is one that XTS forbids
        raise FormatError("cipher key", "***", "its two halves must differ", source)
    return CipherKey(bytes(key), bytes(tweak))


def stored_size(size: int) -> int:
    """Return how long `size` bytes are once they are encrypted."""
    return size if size >= UNIT_MIN_BYTES else PADDED_BYTES


def unpadded_size(unit: Buffer) -> int:
    """Return how many bytes of a decrypted unit were encrypted, the padding left out.

    18 bytes may end like padding without being any, where the unit was never short; who knows better
    by its size should not ask.
    """
    if len(unit) == PADDED_BYTES and unit[UNIT_MIN_BYTES:] == PADDING_MARK:
        lacking = unit[UNIT_MIN_BYTES - 1]
        size = UNIT_MIN_BYTES - lacking
        if 0 < size < UNIT_MIN_BYTES and unit[size:UNIT_MIN_BYTES] == bytes([lacking]) * lacking:
            return size
    return len(unit)


def decrypt_units(
    stored: Buffer, units: Sequence[tuple[int, int]], key: CipherKey | None
) -> bytearray:
    """Return a copy of `stored` with its units, (offset, length) each, decrypted in their places."""
    from nydusd import native  # loaded by the first decode: a cached mount may never need it

    if key is None:
        raise FormatError("cipher key", None, "must be there for encrypted chunks")
    for offset, length in units:
        if not UNIT_MIN_BYTES <= length <= UNIT_MAX_BYTES or not 0 <= offset <= (
            len(stored) - length
        ):
            rule = f"must be {UNIT_MIN_BYTES} to {UNIT_MAX_BYTES} of the {len(stored)} there are"
            raise FormatError("encrypted bytes", f"{length} at {offset}", rule)
    opened = bytearray(stored)
    native.decrypt(opened, units, *key)
    return opened


def decrypt_run(
    stored: Buffer, offset: int, chunks: Sequence[Chunk], key: CipherKey | None
) -> tuple[Buffer, Sequence[Chunk]]:
    """Return a run of stored chunks as if the blob were not encrypted, and the chunks as they lie in it.

    stored: the bytes from blob offset `offset` on, which hold all of them. One copy, if need be.
    """
    units = dict.fromkeys(
        (chunk.compressed_offset - offset, chunk.compressed_size)
        for chunk in chunks
        if chunk.is_encrypted
    )
    if not units:
        return stored, chunks
    opened = decrypt_units(stored, list(units), key)
    return opened, [_unpadded(opened, offset, chunk) for chunk in chunks]


def _unpadded(opened: bytearray, offset: int, chunk: Chunk) -> Chunk:
    """Return the chunk without its padding. That of a context's is the context's to take off."""
    size = chunk.compressed_size
    if not chunk.is_encrypted or size != PADDED_BYTES or chunk.context is not None:
        return chunk
    if chunk.is_compressed or chunk.uncompressed_size < size:
        start = chunk.compressed_offset - offset
        size = unpadded_size(opened[start : start + size])
    return chunk._replace(compressed_size=size)


def decrypt(stored: Buffer, key: CipherKey | None) -> Buffer:
    """Return the plain bytes of one unit."""
    opened = decrypt_units(stored, [(0, len(stored))], key)
    return memoryview(opened)[: unpadded_size(opened)]
