"""How the native relay finds the bytes of one file in cache files. A value, no I/O.

A file is either *flat*, which is what a blob device is: file offset = cache offset, chunk i begins at
`blocks[i]` and reaches to the next one; or it is described by *segments*, each of them within one chunk
(`SEGMENT` of nydusd/native_relay.py). Where a file cannot be described, everybody goes through Python.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from nydusd.native_relay import SEGMENT
from nydusd.rafs.model import Extent
from nydusd.records import Buffer

if TYPE_CHECKING:
    from nydusd.storage.lazy_blob import LazyBlob


class NativeMap(NamedTuple):
    """Where the bytes of one file lie. Exactly one of `blocks` and `segments` is given."""

    size: int  # bytes of the file
    sources: tuple["LazyBlob", ...]  # whose native_source() a segment's source number indexes
    blocks: Buffer | None  # flat: u32 per chunk of sources[0], its first block, ascending
    segments: Buffer | None  # packed SEGMENTs, ascending by file offset; `source` indexes `sources`
    zero_gaps: bool  # bytes that no segment covers are zeros; False: not known here, ask Python


def map_of_file(
    size: int, extents: Sequence[Extent], blobs: Sequence["LazyBlob"]
) -> NativeMap | None:
    """Return the map of a file of `size` bytes that is made of `extents`, in order; None if that is not so.

    The extents' claims must agree with their blobs' records.
    """
    places: dict[int, int] = {}  # blob index: position in `sources`
    segments = bytearray(SEGMENT.size * len(extents))
    end = 0
    for number, extent in enumerate(extents):
        if (
            extent.length <= 0
            or extent.offset < 0
            or extent.length > extent.chunk_size - extent.offset
        ):
            return None
        source = places.setdefault(extent.blob_index, len(places))
        at = extent.chunk_offset + extent.offset
        SEGMENT.pack_into(
            segments, SEGMENT.size * number, end, at, extent.length, extent.chunk_index, source, 0
        )
        end += extent.length
    if end != size or not size:
        return None
    sources = tuple(blobs[index] for index in places)
    return NativeMap(size, sources, None, segments, zero_gaps=False)
