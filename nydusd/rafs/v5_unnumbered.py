"""Chunk numbers for v5 images from before chunks had any: those without extended blob table (spec rafs-v5 §4.4).

Their chunk records have no index to rely on, and nothing says how many chunks a blob has or how long it
is. So the chunks that the image refers to are collected at open, once, and numbered by where they lie in
the plain address space. Such a number means nothing to another image of the same blob: it must not reach
a chunk map on disk (`BlobInfo.has_indexed_map`).

Owns     8 + 4 bytes per chunk.
Callers  rafs.v5.
Raises   FormatError if inodes overlap so that they name more chunks than fit in the file.
"""

import struct
from array import array
from bisect import bisect_left
from collections.abc import Iterator
from stat import S_ISREG

from nydusd.blob.model import BlobInfo
from nydusd.errors import FormatError
from nydusd.rafs.layout_v5 import (
    BLOB_PLAIN_MAX_BYTES,
    BLOB_STORED_MAX_BYTES,
    CHUNK_BYTES,
    I_FLAG_XATTR,
    INODE,
    INODE_BYTES,
    INODE_SLOT_BYTES,
    POSITION_SHIFT_BITS,
    SLOT,
    SUPERBLOCK_BYTES,
    XATTR_AREA_SIZE,
    SuperblockV5,
    align8,
    xattr_offset,
)
from nydusd.records import Buffer

_WHERE = struct.Struct("<32xI4xIIQQ16x")  # of a chunk record: blob, sizes and offsets


class ChunkNumbers:
    """The chunks of one blob, by plain offset."""

    def __init__(self, found: dict[int, int], stored_end: int, plain_end: int) -> None:
        """found: plain offset → file offset of a chunk record >> 3; `_end`: of the chunk that ends last."""
        self._starts = array("Q", sorted(found))
        self.positions = array("I", (found[start] for start in self._starts))
        self.stored_end = stored_end
        self.plain_end = plain_end

    def number(self, plain_offset: int) -> int:
        """Return the number of the chunk at that offset; the count of chunks, which is none, if none is."""
        number = bisect_left(self._starts, plain_offset)
        if number < len(self._starts) and self._starts[number] == plain_offset:
            return number
        return len(self._starts)

    def describe(self, info: BlobInfo) -> BlobInfo:
        """Return the blob with the count and sizes that its chunks make up."""
        return info._replace(
            chunk_count=len(self.positions),
            compressed_size=self.stored_end,
            compressed_data_size=self.stored_end,
            uncompressed_size=self.plain_end,
            is_numbered=False,
        )


def number_chunks(
    view: Buffer, layout: SuperblockV5, blob_count: int, source: str = ""
) -> tuple[ChunkNumbers, ...]:
    """Return the chunks of every blob. A chunk beyond the limits of any blob gets no number."""
    found: list[dict[int, int]] = [{} for _ in range(blob_count)]
    stored_end = [0] * blob_count
    plain_end = [0] * blob_count
    for position in _chunk_positions(view, layout, source):
        blob, stored_size, plain_size, stored_offset, plain_offset = _WHERE.unpack_from(
            view, position
        )
        if blob >= blob_count or stored_offset + stored_size > BLOB_STORED_MAX_BYTES:
            continue
        if plain_offset + plain_size > BLOB_PLAIN_MAX_BYTES:
            continue
        found[blob].setdefault(plain_offset, position >> POSITION_SHIFT_BITS)
        stored_end[blob] = max(stored_end[blob], stored_offset + stored_size)
        plain_end[blob] = max(plain_end[blob], plain_offset + plain_size)
    return tuple(map(ChunkNumbers, found, stored_end, plain_end))


def _chunk_positions(view: Buffer, layout: SuperblockV5, source: str) -> Iterator[int]:
    """Yield the file offset of every chunk record; inodes that cross the end of the file are passed over."""
    left = len(view) // CHUNK_BYTES
    table = layout.s_inode_table_offset
    for slot in range(table, table + layout.s_inode_table_entries * INODE_SLOT_BYTES, SLOT.size):
        position = SLOT.unpack_from(view, slot)[0] << POSITION_SHIFT_BITS
        if position < SUPERBLOCK_BYTES or position + INODE_BYTES > len(view):
            continue
        record = INODE.read(view, position)
        if not S_ISREG(record.i_mode):
            continue
        start = xattr_offset(record, position)
        if record.i_flags & I_FLAG_XATTR:
            if start + XATTR_AREA_SIZE.size > len(view):
                continue
            start += XATTR_AREA_SIZE.size + align8(XATTR_AREA_SIZE.unpack_from(view, start)[0])
        end = start + record.i_child_count * CHUNK_BYTES
        if end > len(view):
            continue
        left -= record.i_child_count
        if left < 0:
            rule = "inodes overlap: more chunks are named than fit in the file"
            raise FormatError("inode table", f"{layout.s_inode_table_entries} inodes", rule, source)
        yield from range(start, end, CHUNK_BYTES)
