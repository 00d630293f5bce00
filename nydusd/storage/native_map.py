"""How the native relay finds the bytes of one file in cache files. A value, no I/O.

A file is either *flat*, which is what a blob device is: file offset = cache offset, chunk i begins at
`blocks[i]` and reaches to the next one; or it is described by *segments*, each of them within one chunk
(`SEGMENT` of nydusd/native_relay.py). Where a file cannot be described, everybody goes through Python.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from nydusd.records import Buffer

if TYPE_CHECKING:
    from nydusd.storage.lazy_blob import LazyBlob

BLOCK_BYTES: Final = 4096  # the unit of `blocks`, and of every device size


@dataclass(frozen=True, slots=True)
class NativeMap:
    """Where the bytes of one file lie. Exactly one of `blocks` and `segments` is given."""

    size: int  # bytes of the file
    sources: tuple["LazyBlob", ...]  # whose native_source() a segment's source number indexes
    blocks: Buffer | None  # flat: u32 per chunk of sources[0], its first block, ascending
    segments: Buffer | None  # packed SEGMENTs, ascending by file offset; `source` indexes `sources`
    zero_gaps: bool  # bytes that no segment covers are zeros; False: not known here, ask Python
