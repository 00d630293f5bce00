"""The typed edge of the C module: nothing else imports `nydusd._native` but native_relay.py.

Owns     nothing. Every function works on buffers and file descriptors of the caller, checks all sizes
         against them and keeps no pointer after it returns.
Callers  any thread; the GIL is released while C works. A caller must not change a buffer meanwhile,
         and a mapped file that is cut short reads as zeros, or kills the process (`survive_cut_maps`).
Raises   FormatError for numbers that no buffer of this kind can have, ValueError for an unknown codec
         or digester (a bug: ids from images are checked by `blob`), MemoryError. What becomes of a
         chunk is a value, `Decoded`.
Cancel   none of them waits for anything but the disk; run them in a worker thread.

`codec` and `digester` are the ids of spec blob §6.1 and §6.2 (`nydusd.blob.model.Codec`, `Digester`).
"""

import errno
import os
import struct
from array import array
from collections.abc import Sequence
from enum import IntEnum
from mmap import mmap
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from nydusd._native import ffi, lib
from nydusd.errors import FormatError

if TYPE_CHECKING:  # cffi's own class has no name that could be imported
    from nydusd._native import CData

DIGEST_BYTES: Final = 32
CHUNK_COUNT_MAX: Final = 1 << 24  # of one blob (spec rafs-v6 §6.1, rafs-v5 §10)
NO_RECORD: Final = 0xFFFF_FFFF  # in the arrays of index_*: the bootstrap has no such chunk

Buffer = bytes | bytearray | memoryview | mmap
WritableBuffer = bytearray | memoryview | mmap

_CHUNK: Final = struct.Struct("=QQIIII32s")  # nd_chunk of native/decode.h
_RESULT: Final = struct.Struct("=ii")  # nd_result
_LAYOUT: Final = struct.Struct("=QQQ")  # nd_chunk_layout of native/chunk_layout.h
_CLAIM_BYTES: Final = 8
_UNIT: Final = struct.Struct("=QII")  # nd_unit of native/cipher.h
_TWEAK_BYTES: Final = 16
_V5_WALK: Final = struct.Struct("=II")  # nd_v5_walk
_COMPRESSED, _HAS_DIGEST, _HAS_CRC = 1, 2, 4  # enum nd_chunk_flag


class Status(IntEnum):
    """What became of one chunk (enum nd_status of native/decode.h)."""

    SAVED = 0  # decoded, checked, written; in a check: right
    UNSAVED = 1  # right, but the file could not be written; in a check: not readable. See errno
    OUT_OF_BUFFER = 2  # a range of the chunk lies outside the buffers or address space
    DECODE_FAILED = 3  # the stored bytes do not decode to the chunk's size
    DIGEST_MISMATCH = 4
    CRC_MISMATCH = 5


class Decoded(NamedTuple):
    """Result for one chunk; `errno` is 0 unless status is UNSAVED (0 there: end of file)."""

    status: Status
    errno: int


class ChunkRecord(Protocol):
    """What a chunk must tell to be decoded; `nydusd.blob.model.Chunk` does. Offsets and sizes in bytes."""

    @property
    def compressed_offset(self) -> int:
        """Position in the stored blob."""

    @property
    def compressed_size(self) -> int:
        """Bytes there."""

    @property
    def uncompressed_offset(self) -> int:
        """Position in the plain address space, which is the cache file's."""

    @property
    def uncompressed_size(self) -> int:
        """Bytes there, 1 to 16 MiB."""

    @property
    def is_compressed(self) -> bool:
        """False: stored raw, whatever the blob's codec."""

    @property
    def digest(self) -> bytes | None:
        """Digest of the plain bytes, None if not known."""

    @property
    def crc32(self) -> int | None:
        """CRC-32C of the plain bytes, None if not known."""


_STATUS: Final = tuple(Status)
_allocate: Final = ffi.new_allocator(should_clear_after_alloc=False)  # pages touched when written
_SAVED: Final = Decoded(Status.SAVED, 0)


def decode_to_file(
    stored: Buffer,
    stored_offset: int,
    chunks: Sequence[ChunkRecord],
    codec: int,
    digester: int,
    fd: int,
) -> list[Decoded]:
    """Decode and check each chunk and write its plain bytes to `fd` at its uncompressed_offset.

    `stored` holds the blob's bytes from `stored_offset` on. One result per chunk, in order; a chunk
    that fails leaves the others alone and nothing of itself in the file. A known digest and a known CRC
    are both checked (spec blob §6.3). No copy of raw chunks, one of the others.
    """
    source, records, results = _bytes(stored), _pack(chunks), bytearray(_RESULT.size * len(chunks))
    failed = lib.nd_decode_to_file(
        source,
        len(source),
        stored_offset,
        records,
        len(chunks),
        codec,
        digester,
        fd,
        ffi.from_buffer("nd_result[]", results, require_writable=True),
    )
    return _unpack(failed, results)


def decode_to_memory(
    stored: Buffer,
    stored_offset: int,
    chunks: Sequence[ChunkRecord],
    codec: int,
    digester: int,
    target: WritableBuffer,
    target_offset: int,
) -> list[Decoded]:
    """Do the same into `target`, whose first byte has the plain address `target_offset`.

    The range of a chunk that fails its checks holds zeros afterwards. No copy but of raw chunks.
    """
    source, records, results = _bytes(stored), _pack(chunks), bytearray(_RESULT.size * len(chunks))
    room = ffi.from_buffer("uint8_t[]", target, require_writable=True)
    failed = lib.nd_decode_to_memory(
        source,
        len(source),
        stored_offset,
        records,
        len(chunks),
        codec,
        digester,
        room,
        len(room),
        target_offset,
        ffi.from_buffer("nd_result[]", results, require_writable=True),
    )
    return _unpack(failed, results)


def verify_file(fd: int, chunks: Sequence[ChunkRecord], digester: int) -> list[Decoded]:
    """Check plain bytes that are in a cache file already; SAVED = right.

    A chunk with neither digest nor CRC is right if it can be read.
    """
    records, results = _pack(chunks), bytearray(_RESULT.size * len(chunks))
    failed = lib.nd_verify_file(
        fd,
        records,
        len(chunks),
        digester,
        ffi.from_buffer("nd_result[]", results, require_writable=True),
    )
    return _unpack(failed, results)


def digest(digester: int, data: Buffer) -> bytes:
    """Return the 32-byte digest of `data` (BLAKE3: about 4 GB/s with AVX2)."""
    source, result = _bytes(data), bytearray(DIGEST_BYTES)
    room = ffi.from_buffer("uint8_t[]", result, require_writable=True)
    _check_started(lib.nd_digest(digester, source, len(source), room))
    return bytes(result)


def crc32c(data: Buffer) -> int:
    """Return the CRC-32C of `data` (spec blob §6.3)."""
    source = _bytes(data)
    return lib.nd_crc32c(source, len(source))


def survive_cut_maps(tell_fd: int) -> None:
    """Go on, with zeros, where a mapped file was cut short; for the whole process, from now on.

    tell_fd: an eventfd that counts the pages that were lost; it must stay open. Raises OSError.
    """
    code = lib.nd_survive_cut_maps(tell_fd)
    if code < 0:
        raise OSError(-code, os.strerror(-code))


def compress(codec: int, data: Buffer, level: int = 0) -> bytes | None:
    """Return `data` as a chunk of lz4_block or zstd, None if that would not be smaller.

    level 0: the codec's default. Raises ValueError for a codec that is not written here.
    """
    if codec not in (1, 3):  # Codec.LZ4_BLOCK, Codec.ZSTD
        raise ValueError(f"codec {codec} cannot be written")
    source = _bytes(data)
    capacity = len(source) - 1
    if capacity <= 0:
        return None
    target = _allocate("uint8_t[]", capacity)
    size = lib.nd_compress(codec, level, source, len(source), target, capacity)
    return bytes(ffi.buffer(target, size)) if size else None


def decompress(codec: int, stored: Buffer, size: int) -> bytes | None:
    """Return the `size` plain bytes of one compressed run, None if it does not decode to just as many.

    For metadata, checked by the caller, who also bounds `size`; memory is touched only as far as the
    run decodes. Raises MemoryError if there is none for `size` bytes. One copy.
    """
    if size <= 0:
        return None
    source, target = _bytes(stored), _allocate("uint8_t[]", size)
    if lib.nd_decompress_once(codec, source, len(source), target, size) != 1:
        return None
    return bytes(ffi.buffer(target, size))


def decrypt(
    data: WritableBuffer, units: Sequence[tuple[int, int]], key: Buffer, tweak: Buffer
) -> None:
    """Decrypt units of `data`, (offset, length) each, in their places (AES-XTS, spec blob §11).

    key: 32 bytes for AES-128, 64 for AES-256; tweak: 16 bytes, the same for every unit. Units that are
    not within the data, or not 16 bytes to 16 MiB long, are ValueErrors.
    """
    if len(tweak) != _TWEAK_BYTES:
        raise ValueError(f"a tweak of {len(tweak)} bytes")
    try:
        packed = b"".join(_UNIT.pack(offset, length, 0) for offset, length in units)
    except struct.error:
        raise ValueError("a unit outside 64 bits") from None
    with ffi.from_buffer("uint8_t[]", data, require_writable=True) as room:
        code = lib.nd_decrypt(
            room,
            len(room),
            ffi.from_buffer("nd_unit[]", packed),
            len(units),
            _bytes(key),
            len(key),
            _bytes(tweak),
        )
    if code == -errno.EINVAL:
        raise ValueError(f"units outside {len(data)} bytes, or a key of {len(key)} bytes")
    _check_started(code)


def inflate_context(
    stored: Buffer, size: int, dictionary: Buffer, prior_byte: int, prior_bits: int
) -> bytearray | None:
    """Return the `size` bytes that a gzip file gives from the middle of a member on, None if it does not.

    dictionary: at most 32 KiB of what the member gave before, empty at its start. prior_byte: the byte
    before `stored`, whose `prior_bits` high bits (0 to 7) are still to be read. Members that follow
    within `stored` are taken along (native/inflate.h). Raises FormatError for numbers out of these
    bounds, MemoryError if there is none for `size` bytes, which the caller bounds.
    """
    if size <= 0:
        return None
    source, history, plain = _bytes(stored), _bytes(dictionary), bytearray(size)
    done = lib.nd_inflate_context(
        source,
        len(source),
        history,
        len(history),
        prior_bits,
        prior_byte,
        ffi.from_buffer("uint8_t[]", plain, require_writable=True),
        size,
    )
    if done == -errno.EINVAL:
        rule = "at most 32 KiB of dictionary, 7 bits"
        raise FormatError("context", f"{len(history)} bytes, {prior_bits} bits", rule)
    _check_started(done)
    return plain if done == 1 else None


def mark_ready(
    chunk_map: WritableBuffer, base: int, chunk_count: int, indices: Sequence[int]
) -> int:
    """Set the bits of `indices` and return how many were newly set (spec blobcache §3).

    `chunk_map` is the mapped file, `base` the byte offset of its bitmap (4096). Atomic for each bit,
    among threads and processes. Raises FormatError, with no bit set, if the map is too short or an
    index not below chunk_count.
    """
    try:
        numbers = array("I", indices)
    except OverflowError:
        raise FormatError("chunk_index", "outside 32 bits", _below(chunk_count)) from None
    with _bitmap(chunk_map, base, chunk_count, require_writable=True) as bits:
        fresh = lib.nd_map_mark(
            bits,
            len(bits),
            chunk_count,
            ffi.from_buffer("uint32_t[]", memoryview(numbers)),
            len(numbers),
        )
    if fresh < 0:
        raise FormatError("chunk_index", max(indices), _below(chunk_count))
    return fresh


def is_ready(chunk_map: Buffer, base: int, chunk_count: int, index: int) -> bool:
    """Return chunk `index`'s bit. Raises FormatError if there is no such bit."""
    if not 0 <= index < chunk_count:
        raise FormatError("chunk_index", index, _below(chunk_count))
    with _bitmap(chunk_map, base, chunk_count) as bits:
        return lib.nd_map_is_ready(bits, len(bits), chunk_count, index) == 1


def count_ready(chunk_map: Buffer, base: int, chunk_count: int) -> int:
    """Return how many of the chunk_count bits are set; padding bits behind them do not count."""
    with _bitmap(chunk_map, base, chunk_count) as bits:
        return lib.nd_map_count_ready(bits, len(bits), chunk_count)


def next_absent(chunk_map: Buffer, base: int, chunk_count: int, start: int) -> int | None:
    """Return the first chunk at or behind `start` whose bit is clear, None if all are set."""
    if start >= chunk_count:
        return None
    with _bitmap(chunk_map, base, chunk_count) as bits:
        found = lib.nd_map_next_absent(bits, len(bits), chunk_count, max(start, 0))
    return found if found < chunk_count else None


def index_chunk_table(
    bootstrap: Buffer, offset: int, size: int, blob_index: int, chunk_count: int
) -> "memoryview[int]":
    """Return, for each chunk index of a blob, the number of its record in a v6 chunk table.

    The table is `size` bytes at `offset` (spec rafs-v6 §11.2). NO_RECORD: it has none; of several
    records the first counts. Raises FormatError if the table is not whole records within the file.
    """
    _check_chunk_count(chunk_count)
    with _bytes(bootstrap) as source:
        records = bytearray(4 * chunk_count)
        if (
            offset < 0
            or not 0 <= size <= len(source) - offset
            or lib.nd_index_chunk_table(
                source,
                len(source),
                offset,
                size,
                blob_index,
                ffi.from_buffer("uint32_t[]", records, require_writable=True),
                chunk_count,
            )
        ):
            rule = f"must be whole records within {len(source)} bytes"
            raise FormatError("chunk table", f"{size} bytes at {offset}", rule)
    return memoryview(records).cast("I").toreadonly()


class V5Walk(NamedTuple):
    """What a walk over the inodes of a v5 bootstrap met."""

    chunk_count: int  # largest chunk index of the blob + 1; 0: it has no chunk
    malformed_inodes: int  # passed over, because they or their chunks cross the end of the file


def walk_v5_chunks(bootstrap: Buffer, table_offset: int, entries: int, blob_index: int) -> V5Walk:
    """Return how many chunks a blob has by the inodes of a v5 bootstrap (spec rafs-v5 §4.1, §5, §7).

    Raises FormatError like `index_v5_chunks`.
    """
    return _walk_v5(bootstrap, table_offset, entries, blob_index, bytearray())


def index_v5_chunks(
    bootstrap: Buffer, table_offset: int, entries: int, blob_index: int, chunk_count: int = 0
) -> "memoryview[int]":
    """Return, for each chunk index of a blob, the offset in the file of a record of it, divided by 8.

    NO_RECORD: there is none; of several records the first in inode order counts. chunk_count 0: not
    known, found by a walk of its own. Records are not checked, but lie within the file. Raises
    FormatError if the inode offset table does not, or if inodes overlap so that more chunk records are
    named than fit in the file.
    """
    _check_chunk_count(chunk_count)
    if chunk_count == 0:
        chunk_count = walk_v5_chunks(bootstrap, table_offset, entries, blob_index).chunk_count
    records = bytearray(4 * chunk_count)
    _walk_v5(bootstrap, table_offset, entries, blob_index, records)
    return memoryview(records).cast("I").toreadonly()


def _walk_v5(
    bootstrap: Buffer, table_offset: int, entries: int, blob_index: int, records: bytearray
) -> V5Walk:
    walk = bytearray(_V5_WALK.size)
    with _bytes(bootstrap) as source:
        if (
            table_offset < 0
            or not 0 <= 4 * entries <= len(source) - table_offset
            or lib.nd_index_v5_chunks(
                source,
                len(source),
                table_offset,
                entries,
                blob_index,
                ffi.from_buffer("uint32_t[]", records, require_writable=True),
                len(records) // 4,
                ffi.from_buffer("nd_v5_walk *", walk, require_writable=True),
            )
        ):
            rule = f"must lie within {len(source)} bytes, with inodes that do not overlap"
            raise FormatError("inode table", f"{entries} entries at {table_offset}", rule)
    return V5Walk(*_V5_WALK.unpack(walk))


class ChunkLayout(NamedTuple):
    """Where chunk records put their chunks, in blocks of 4096 bytes."""

    blocks: memoryview  # u32 per ordered chunk: its first block
    holes: int  # runs of whole blocks before a chunk, that no chunk covers
    end_block: int  # first block behind the last ordered chunk


def chunk_layout(records: Buffer, record_bytes: int, count: int) -> ChunkLayout:
    """Return where the first `count` chunk-info records, of 16 or 24 bytes, put their chunks (spec blob §8).

    Records that do not ascend, or overlap, end the list early: `blocks` is shorter than `count` then.
    Raises FormatError if the buffer does not hold so many.
    """
    _check_chunk_count(count)
    blocks, layout = bytearray(4 * count), bytearray(_LAYOUT.size)
    with _bytes(records) as source:
        if lib.nd_chunk_blocks(
            source,
            len(source),
            record_bytes,
            count,
            ffi.from_buffer("uint32_t[]", blocks, require_writable=True),
            ffi.from_buffer("nd_chunk_layout *", layout, require_writable=True),
        ):
            rule = f"must hold {count} of {record_bytes} bytes"
            raise FormatError("chunk records", f"{len(source)} bytes", rule)
    ordered, holes, end_block = _LAYOUT.unpack(layout)
    return ChunkLayout(memoryview(blocks).cast("I").toreadonly()[:ordered], holes, end_block)


def contradicted_chunk(records: Buffer, record_bytes: int, claims: Buffer) -> int | None:
    """Return the first chunk whose record differs from what files claim of it, None if there is none.

    claims: per chunk its first block and its size in bytes, u32 each; size 0: nothing is claimed.
    Raises FormatError if there are fewer records than claims.
    """
    with _bytes(records) as source:
        count = len(claims) // _CLAIM_BYTES
        found = lib.nd_chunk_claims(
            source, len(source), record_bytes, count, ffi.from_buffer("uint32_t[]", claims)
        )
    if found < 0:
        raise FormatError("chunk records", f"{len(records)} bytes", f"must be {count} or more")
    return found if found < count else None


def _check_chunk_count(chunk_count: int) -> None:
    if not 0 <= chunk_count <= CHUNK_COUNT_MAX:
        raise FormatError("chunk_count", chunk_count, f"must be at most {CHUNK_COUNT_MAX}")


def _bytes(data: Buffer) -> "CData":
    return ffi.from_buffer("uint8_t[]", data)


def _bitmap(
    chunk_map: Buffer, base: int, chunk_count: int, *, require_writable: bool = False
) -> "CData":
    """Return the bitmap's bytes, to be let go by `with`: a mapping cannot be closed before.

    Raises FormatError if the map does not hold them.
    """
    needed = (chunk_count + 7) // 8
    with memoryview(chunk_map) as view, view.cast("B") as octets:
        if base < 0 or chunk_count < 0 or base + needed > len(octets):
            rule = f"must be at least {base} + {needed} for {chunk_count} chunks"
            raise FormatError("chunk map size", len(octets), rule)
        return ffi.from_buffer("uint8_t[]", octets[base : base + needed], require_writable)


def _below(chunk_count: int) -> str:
    return f"must be below chunk_count {chunk_count}"


def _pack(chunks: Sequence[ChunkRecord]) -> "CData":
    """Return chunks as nd_chunk[]. Raises FormatError if one of them does not fit its fields."""
    packed = bytearray(_CHUNK.size * len(chunks))
    for number, chunk in enumerate(chunks):
        flags = _COMPRESSED if chunk.is_compressed else 0
        known_digest, crc = chunk.digest, chunk.crc32
        if known_digest is None:
            known_digest = b""
        elif len(known_digest) == DIGEST_BYTES:
            flags |= _HAS_DIGEST
        else:
            raise FormatError("digest size", len(known_digest), f"must be {DIGEST_BYTES}")
        if crc is None:
            crc = 0
        else:
            flags |= _HAS_CRC
        try:
            _CHUNK.pack_into(
                packed,
                number * _CHUNK.size,
                chunk.compressed_offset,
                chunk.uncompressed_offset,
                chunk.compressed_size,
                chunk.uncompressed_size,
                flags,
                crc,
                known_digest,
            )
        except struct.error:
            rule = "needs offsets of 64 bits, sizes and CRC of 32, none negative"
            raise FormatError("chunk", chunk, rule) from None
    return ffi.from_buffer("nd_chunk[]", packed)


def _unpack(failed: int, results: bytearray) -> list[Decoded]:
    """Return a run's results; `failed` is the return code of native/decode.h."""
    _check_started(failed)
    if failed == 0:
        return [_SAVED] * (len(results) // _RESULT.size)
    return [Decoded(_STATUS[status], error) for status, error in _RESULT.iter_unpack(results)]


def _check_started(code: int) -> None:
    if code == -errno.ENOMEM:
        raise MemoryError
    if code < 0:
        raise ValueError("unknown codec or digester")
