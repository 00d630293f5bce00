"""Plain chunks kept in memory: where there is no cache directory, or the disk is full.

Bounded by bytes, least recently used goes first. The kernel asks for a chunk in pieces of 128 KiB;
without this, each piece would fetch the chunk again.
"""

from collections import OrderedDict
from typing import Final

from nydusd.records import Buffer
from nydusd.units import MIB

MEMORY_CHUNKS_BYTES: Final = 32 * MIB  # two chunks of the largest size there is


class MemoryChunks:
    """Decoded, checked chunks by (blob, chunk index). Shared by all blobs of a pool."""

    def __init__(self, limit_bytes: int = MEMORY_CHUNKS_BYTES) -> None:
        """`limit_bytes`: at most this much is kept; one larger chunk is not kept at all."""
        self._limit = limit_bytes
        self._chunks: OrderedDict[tuple[str, int], Buffer] = OrderedDict()
        self._size = 0

    @property
    def size_bytes(self) -> int:
        """Bytes kept now."""
        return self._size

    def get(self, blob_id: str, chunk_index: int) -> Buffer | None:
        """Return the chunk's plain bytes if they are here."""
        plain = self._chunks.get((blob_id, chunk_index))
        if plain is not None:
            self._chunks.move_to_end((blob_id, chunk_index))
        return plain

    def put(self, blob_id: str, chunk_index: int, plain: Buffer) -> None:
        """Keep a chunk, dropping the least recently used ones beyond the limit."""
        self.discard(blob_id, chunk_index)
        if len(plain) > self._limit:
            return
        self._chunks[blob_id, chunk_index] = plain
        self._size += len(plain)
        while self._size > self._limit:
            _, dropped = self._chunks.popitem(last=False)
            self._size -= len(dropped)

    def discard(self, blob_id: str, chunk_index: int) -> None:
        """Forget a chunk, e.g. because it is in the cache file now."""
        dropped = self._chunks.pop((blob_id, chunk_index), None)
        if dropped is not None:
            self._size -= len(dropped)

    def discard_blob(self, blob_id: str) -> None:
        """Forget all chunks of a blob that is being closed."""
        for key in [key for key in self._chunks if key[0] == blob_id]:
            self.discard(*key)
