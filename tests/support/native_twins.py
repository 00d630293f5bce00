"""What the C module does, in plain Python: slow, short, and written from the spec alone."""

import hashlib
import struct
import zlib

import blake3
import zstandard

from nydusd.blob.model import Chunk, Codec, Digester
from nydusd.native import Status

CHUNK_MAX_BYTES = 16 << 20


def crc32c(data: bytes) -> int:
    """CRC-32C, bit by bit (spec blob §6.3)."""
    crc = 0xFFFF_FFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F6_3B78 if crc & 1 else 0)
    return crc ^ 0xFFFF_FFFF


def digest(digester: int, data: bytes) -> bytes:
    if digester == Digester.BLAKE3:
        return blake3.blake3(data).digest()
    return hashlib.sha256(data).digest()


def lz4_block(data: bytes) -> bytes:
    """Decode an LZ4 block; raises ValueError or IndexError if it is none."""

    def length(nibble: int, at: int) -> tuple[int, int]:
        size = nibble
        while size >= 15 and (size - 15) % 255 == 0:
            size, at = size + data[at], at + 1
            if data[at - 1] != 255:
                break
        return size, at

    out, at = bytearray(), 0
    while True:
        token, at = data[at], at + 1
        literals, at = length(token >> 4, at)
        if at + literals > len(data):
            raise ValueError("literals past the end")
        out += data[at : at + literals]
        at += literals
        if at == len(data):
            return bytes(out)
        distance, at = int.from_bytes(data[at : at + 2], "little"), at + 2
        match, at = length(token & 15, at)
        if not 1 <= distance <= len(out):
            raise ValueError("match before the start")
        for _ in range(match + 4):
            out.append(out[-distance])


def lz4_stored(data: bytes) -> bytes:
    """Return an LZ4 block that is one run of literals: any bytes can be put in one."""
    if len(data) < 15:
        return bytes([len(data) << 4]) + data
    rest = len(data) - 15
    return b"\xf0" + b"\xff" * (rest // 255) + bytes([rest % 255]) + data


def encode(codec: int, plain: bytes) -> bytes:
    """Return `plain` as a chunk of `codec`, whatever its size then is."""
    if codec == Codec.LZ4_BLOCK:
        return lz4_stored(plain)
    if codec == Codec.GZIP:
        compressor = zlib.compressobj(wbits=31)
        return compressor.compress(plain) + compressor.flush()
    if codec == Codec.ZSTD:
        return zstandard.ZstdCompressor().compress(plain)
    return plain


def decode(codec: int, stored: bytes, size: int) -> bytes | None:
    """Return exactly `size` plain bytes, None if that is not what `stored` gives (spec blob §6.1)."""
    try:
        if codec == Codec.LZ4_BLOCK:
            plain = lz4_block(stored)
        elif codec == Codec.GZIP:
            plain = zlib.decompressobj(31).decompress(stored, size)
        elif codec == Codec.ZSTD:
            plain = b""
            while stored:
                frame = zstandard.ZstdDecompressor().decompressobj()
                plain += frame.decompress(stored)
                if not frame.eof:
                    return None
                stored = frame.unused_data
        else:
            return None
    except (ValueError, IndexError, zlib.error, zstandard.ZstdError):
        return None
    return plain if len(plain) == size else None


def plain_of(
    stored: bytes, stored_offset: int, chunk: Chunk, codec: int, digester: int
) -> tuple[Status, bytes]:
    """Return what becomes of one chunk, and its plain bytes if that is SAVED."""
    size = chunk.uncompressed_size
    if not 0 < size <= CHUNK_MAX_BYTES:
        return Status.DECODE_FAILED, b""
    start = chunk.compressed_offset - stored_offset
    if start < 0 or start + chunk.compressed_size > len(stored):
        return Status.OUT_OF_BUFFER, b""
    source = stored[start : start + chunk.compressed_size]
    plain = decode(codec, source, size) if chunk.is_compressed else source
    if plain is None or len(plain) != size:
        return Status.DECODE_FAILED, b""
    return check(plain, chunk, digester), plain


def check(plain: bytes, chunk: Chunk, digester: int) -> Status:
    if chunk.digest is not None and digest(digester, plain) != chunk.digest:
        return Status.DIGEST_MISMATCH
    if chunk.crc32 is not None and crc32c(plain) != chunk.crc32:
        return Status.CRC_MISMATCH
    return Status.SAVED


def chunk_table(table: bytes, blob_index: int, chunk_count: int) -> dict[int, int]:
    """Return chunk index → number of its first record of 80 bytes (spec rafs-v6 §11.2)."""
    found: dict[int, int] = {}
    for number in range(len(table) // 80):
        blob, index = struct.unpack_from("<32xI36xI", table, 80 * number)
        if blob == blob_index and index < chunk_count:
            found.setdefault(index, number)
    return found


def v5_chunks(file: bytes, table: int, entries: int, blob_index: int) -> tuple[dict[int, int], int]:
    """Return chunk index → offset of its first record, and the number of bad inodes (spec rafs-v5 §5)."""
    found: dict[int, int] = {}
    malformed = 0
    for slot in range(entries):
        run = _chunk_run(file, struct.unpack_from("<I", file, table + 4 * slot)[0] * 8)
        if run is None:
            malformed += 1
            continue
        for record in run:
            blob, index = struct.unpack_from("<32xI36xI", file, record)
            if blob == blob_index and index < 1 << 24:
                found.setdefault(index, record)
    return found, malformed


def _chunk_run(file: bytes, inode: int) -> range | None:
    """Return where the chunk records behind an inode record lie, None if that is malformed."""
    try:
        mode, flags, chunks, name, target = struct.unpack_from("<60xI16xQ8xIHH24x", file, inode)
        at = inode + 128 + -(-name // 8) * 8 + -(-target // 8) * 8
        if mode & 0o170000 != 0o100000:
            at = chunks = 0
        elif flags & 4:
            at += 8 + -(-struct.unpack_from("<Q", file, at)[0] // 8) * 8
    except struct.error:
        return None
    end = at + 80 * chunks
    return range(at, end, 80) if inode >= 8192 and end <= len(file) else None
