"""The typed edge of native/tree_v6.h: names, attributes and bytes of a v6 image, as replies to the kernel.

Owns     the exports of the bootstrap's buffer and of blobs' chunk records, until `close`; the counters.
Callers  kernel/, which gives trees to its relay (nydusd/native_relay.py); tests ask them directly.
Raises   ValueError for numbers that C would not take.
"""

from typing import TYPE_CHECKING, Final, NamedTuple

from nydusd._native import ffi, lib
from nydusd.native import Buffer

if TYPE_CHECKING:  # cffi's own class has no name that could be imported
    from nydusd._native import CData

INDEX_SHIFT: Final = 56
INDEX_MAX: Final = 255
REPLY_BYTES_MAX: Final = 32_768  # ND_TREE_REPLY_BYTES_MAX
_COUNTS_BYTES: Final = 8 * 4  # nd_tree_counts
_U32_MAX: Final = (1 << 32) - 1


class MappedTree(NamedTuple):
    """Where a v6 bootstrap has its inodes: all that C needs to know of the image itself."""

    data: Buffer
    meta_offset: int  # of nid 0
    root_nid: int
    block_bytes: int
    chunk_bytes: int
    blob_count: int


class NativeRecords(NamedTuple):
    """A blob's own records of its chunks, as its chunk-info array has them."""

    data: Buffer
    record_bytes: int  # 16 or 24
    chunk_count: int


class TreeCounts(NamedTuple):
    """Requests that C has answered, up to now."""

    lookups: int
    getattrs: int
    listings: int
    open: int  # files and directories opened less those released; may be below 0


class NativeTree:
    """One mounted tree as C shows it. Ends with `close`, when no relay uses it any more."""

    def __init__(
        self,
        mapped: MappedTree,
        *,
        index: int,
        generation: int,
        mounted_at_s: int,
        owner: tuple[int, int] | None,
        reads: bytearray,
    ) -> None:
        """index, generation: of the mount. owner: uid and gid of everything; None: the image's count.

        reads: counters of READs (ReadCounts.buffer).
        """
        if not 0 < index <= INDEX_MAX or not mapped.block_bytes or not mapped.chunk_bytes:
            raise ValueError(f"index {index}, {mapped.block_bytes} and {mapped.chunk_bytes} bytes")
        uid, gid = owner or (0, 0)
        self.index = index
        self._counts = bytearray(_COUNTS_BYTES)
        self._counters = memoryview(self._counts).cast("q")
        self._bytes = ffi.from_buffer("uint8_t[]", mapped.data)
        self._borrowed = ffi.from_buffer("nd_tree_counts *", self._counts, True)
        self._reads = ffi.from_buffer("nd_read_counts *", reads, True)
        self._blobs = ffi.new("nd_tree_blob[]", mapped.blob_count)
        self._records: dict[int, CData] = {}  # by blob
        self.cdata: Final[CData] = ffi.new(
            "nd_tree *",
            {
                "bytes": self._bytes,
                "length": len(self._bytes),
                "meta_offset": mapped.meta_offset,
                "root_nid": mapped.root_nid,
                "block_size": mapped.block_bytes,
                "chunk_size": mapped.chunk_bytes,
                "high": index << INDEX_SHIFT,
                "generation": generation,
                "mounted_at_s": mounted_at_s,
                "uid": uid & _U32_MAX,
                "gid": gid & _U32_MAX,
                "explicit_ids": owner is None,
                "counts": self._borrowed,
                "reads": self._reads,
                "blobs": self._blobs,
                "blob_count": mapped.blob_count,
            },
        )

    @property
    def counts(self) -> TreeCounts:
        """The counters; they outlive `close`."""
        return TreeCounts(*self._counters)

    def answer(self, request: bytes) -> bytes | None:
        """Return the payload that the relay would write; None: it would ask Python."""
        reply = bytearray(REPLY_BYTES_MAX)
        with (
            ffi.from_buffer("uint8_t[]", request) as raw,
            ffi.from_buffer("uint8_t[]", reply, True) as room,
        ):
            length = lib.nd_tree_answer(self.cdata, raw, len(raw), room, len(room))
        return bytes(reply[:length]) if length >= 0 else None

    def unknown_blobs(self) -> list[int]:
        """Return the numbers of the blobs that `add_blob` was not told of."""
        return [number for number in range(len(self._blobs)) if number not in self._records]

    def add_blob(self, number: int, source: int, records: NativeRecords) -> None:
        """Have READs answered whose bytes lie in a blob; once for each, while a relay uses the tree or not.

        source: the number that the relay has for its cache file. records: what a file says of a chunk must
        agree with them. Raises ValueError.
        """
        data = ffi.from_buffer("uint8_t[]", records.data)
        if not lib.nd_tree_set_blob(
            self.cdata, number, source, data, len(data), records.record_bytes, records.chunk_count
        ):
            ffi.release(data)
            raise ValueError(
                f"blob {number}: {records.chunk_count} records in {len(records.data)} bytes"
            )
        self._records[number] = data

    def close(self) -> None:
        """Let the bootstrap and the records be unmapped."""
        for records in (self._bytes, *self._records.values()):
            ffi.release(records)
