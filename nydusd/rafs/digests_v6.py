"""Digests and CRCs of one blob's chunks, from the chunk table of a v6 bootstrap (spec rafs-v6 §11.2).

Owns     an index of 4 bytes per chunk; the records stay in the mapped file.
Callers  storage, which checks every chunk on arrival; lookup() from any thread.
Raises   nothing: a record that speaks of other bytes is no answer.
"""

from nydusd import native
from nydusd.blob.model import NO_DIGEST
from nydusd.rafs.layout_v5 import CHUNK, CHUNK_BYTES, CHUNK_HAS_CRC32
from nydusd.rafs.layout_v6 import BootstrapBytes, Span


class TableDigests:
    """The records of one blob, found by chunk index; the table itself is sorted by digest."""

    __slots__ = ("_blob_index", "_data", "_records", "_table")

    def __init__(
        self, data: BootstrapBytes, table: Span, blob_index: int, chunk_count: int
    ) -> None:
        """Walk the whole table once, natively: call it in a worker thread."""
        self._data = data
        self._table = table
        self._blob_index = blob_index
        self._records = native.index_chunk_table(
            data, table.offset, table.size, blob_index, chunk_count
        )

    def lookup(self, index: int, uncompressed_offset: int) -> tuple[bytes | None, int | None]:
        """Return (digest, CRC-32C) of chunk `index` if its record is about `uncompressed_offset`."""
        position = self._records[index] if 0 <= index < len(self._records) else native.NO_RECORD
        if position * CHUNK_BYTES >= self._table.size:
            return None, None
        record = CHUNK.read(self._data, self._table.offset + position * CHUNK_BYTES)
        key = (record.blob_index, record.index, record.uncompressed_offset)
        if key != (self._blob_index, index, uncompressed_offset):
            return None, None
        digest = record.block_id if record.block_id != NO_DIGEST else None
        return digest, record.crc32 if record.flags & CHUNK_HAS_CRC32 else None
