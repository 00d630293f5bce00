"""The chunks of one blob, from the records that the inodes of a v5 bootstrap carry (spec rafs-v5 §7).

Each file repeats the records of its chunks, so a chunk may have many; the native module has picked one
per chunk number. Chunks that no file of the image refers to (of a merged image, say) have none.

Owns     an array of 4 bytes per chunk; the bootstrap's mapping is borrowed and must stay open.
Callers  rafs.v5 makes it, LazyBlob asks it.
Raises   FormatError for a record that breaks a rule, UnsupportedError for kinds that v5 never had.
"""

import mmap
import struct
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Sequence

from nydusd.blob.model import NO_DIGEST, BlobInfo, Chunk
from nydusd.errors import FormatError, UnsupportedError
from nydusd.rafs.layout_v5 import (
    CHUNK,
    CHUNK_BATCH,
    CHUNK_COMPRESSED,
    CHUNK_ENCRYPTED,
    CHUNK_HAS_CRC32,
    CHUNK_HOLE,
    CHUNK_SIZE_MAX_BYTES,
    POSITION_SHIFT_BITS,
)

NO_RECORD = 0xFFFF_FFFF  # in `positions`

_CLAIM = struct.Struct("<44xI8xQ16x")  # of a chunk record: uncompressed_size, uncompressed_offset
_SERVED = CHUNK_COMPRESSED | CHUNK_HAS_CRC32
_UNSERVED = {CHUNK_HOLE: "hole", CHUNK_ENCRYPTED: "encrypted", CHUNK_BATCH: "batch"}


class ChunkTableV5:
    """The chunks of one blob, as a ChunkTable."""

    __slots__ = ("_data", "_info", "_order", "_positions", "_source", "_starts")

    def __init__(
        self, data: mmap.mmap | bytes, positions: Sequence[int], info: BlobInfo, source: str
    ) -> None:
        """positions: by chunk number, file offset of a record >> 3, or NO_RECORD."""
        self._data = data
        self._positions = positions
        self._info = info
        self._source = f"{source}: blob {info.blob_id}"
        self._starts: array[int] | None = None  # plain offsets, ascending; made by the first locate
        self._order: array[int] = array("I")  # chunk numbers in the order of _starts

    def __len__(self) -> int:
        """Number of chunks, those without a record included."""
        return len(self._positions)

    def chunk(self, index: int) -> Chunk:
        """Return chunk `index`, checked against the blob's bounds; see ChunkTable."""
        record = CHUNK.read(self._data, self._position(index))
        where = f"chunk {index}"
        is_other = record.index != index and self._info.is_numbered
        if record.blob_index != self._info.index or is_other:
            found = f"{record.index} of blob {record.blob_index}"
            raise FormatError(where, found, "the bootstrap was changed", self._source)
        if record.flags & ~_SERVED:
            kinds = [name for flag, name in _UNSERVED.items() if record.flags & flag]
            raise UnsupportedError(
                f"{self._source}: {where} has flags {record.flags:#x}"
                f" ({' '.join(kinds) or 'unknown'}), which are not supported in RAFS v5"
            )
        chunk = Chunk(
            chunk_index=index,
            compressed_offset=record.compressed_offset,
            compressed_size=record.compressed_size,
            uncompressed_offset=record.uncompressed_offset,
            uncompressed_size=record.uncompressed_size,
            is_compressed=bool(record.flags & CHUNK_COMPRESSED),
            digest=None if record.block_id == NO_DIGEST else record.block_id,
            crc32=record.crc32 if record.flags & CHUNK_HAS_CRC32 else None,
        )
        self._check(chunk, where)
        return chunk

    def claim(self, index: int) -> tuple[int, int]:
        """Return (uncompressed_offset, uncompressed_size) of chunk `index`; see ChunkTable."""
        size, offset = _CLAIM.unpack_from(self._data, self._position(index))
        return offset, size

    def locate(self, uncompressed_offset: int) -> int | None:
        """Return the chunk that covers a plain offset; see ChunkTable."""
        found = self.within(uncompressed_offset, uncompressed_offset + 1)
        return found[0] if found else None

    def within(self, start: int, end: int) -> Sequence[int]:
        """Return the chunks that cover plain bytes [start, end); see ChunkTable.

        The first call sorts the chunks once: 12 bytes each. Raises FormatError if any overlap.
        """
        if self._starts is None:
            self._starts = self._sort()
        if not 0 <= start < end:
            return ()
        first = bisect_right(self._starts, start)
        if first and sum(self.claim(self._order[first - 1])) > start:
            first -= 1
        return self._order[first : bisect_left(self._starts, end, first)]

    def layout(self) -> None:
        """Return None: chunks begin anywhere, and some have no record; see ChunkTable."""
        return

    def _sort(self) -> "array[int]":
        known = (at for at in enumerate(self._positions) if at[1] != NO_RECORD)
        spans = sorted((*self.claim(index), index) for index, _ in known)
        end = 0
        for offset, size, index in spans:
            if offset < end:
                rule = f"overlaps the chunk that ends at {end}"
                raise FormatError(f"chunk {index} offset", offset, rule, self._source)
            end = offset + size
        self._order = array("I", (index for _, _, index in spans))
        return array("Q", (offset for offset, _, _ in spans))

    def _position(self, index: int) -> int:
        """Return the file offset of the record of chunk `index`."""
        if not 0 <= index < len(self._positions):
            rule = f"must be below {len(self._positions)}"
            raise FormatError("chunk index", index, rule, self._source)
        if self._positions[index] == NO_RECORD:
            raise FormatError(f"chunk {index}", "absent", "no file refers to it", self._source)
        return self._positions[index] << POSITION_SHIFT_BITS

    def _check(self, chunk: Chunk, where: str) -> None:
        info = self._info
        for field, size, limit in (
            ("stored size", chunk.compressed_size, CHUNK_SIZE_MAX_BYTES),
            ("size", chunk.uncompressed_size, info.chunk_size),
        ):
            if not 0 < size <= limit:
                raise FormatError(f"{where} {field}", size, f"must be 1 to {limit}", self._source)
        if not chunk.is_compressed and chunk.compressed_size != chunk.uncompressed_size:
            rule = f"must be {chunk.uncompressed_size}, for it is stored plain"
            raise FormatError(f"{where} stored size", chunk.compressed_size, rule, self._source)
        if info.chunk_count == 0:
            return  # the blob is not in the extended blob table, so nothing says how long it is
        if chunk.compressed_end > info.compressed_data_size:
            rule = f"above the {info.compressed_data_size} bytes of chunk data"
            raise FormatError(f"{where} stored end", chunk.compressed_end, rule, self._source)
        if chunk.uncompressed_end > info.uncompressed_size:
            rule = f"above the blob's {info.uncompressed_size} plain bytes"
            raise FormatError(f"{where} end", chunk.uncompressed_end, rule, self._source)
