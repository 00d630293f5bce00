"""One image: its metadata joined to the blobs that hold its data.

Owns     a share in the mapped bootstrap and in each of its blobs.
Callers  tasks of the trio thread: the tree frontend, prefetch, tools.
Raises   NydusError of whatever failed; never wrong bytes.

The only place that turns (inode, offset, size) into bytes.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Final

from nydusd.blob.model import BlobInfo
from nydusd.errors import FormatError, NydusError
from nydusd.rafs.model import Bootstrap, Extent, Inode
from nydusd.records import Buffer
from nydusd.storage.lazy_blob import LazyBlob
from nydusd.storage.stats import BackendStats, CacheStats

if TYPE_CHECKING:
    from nydusd.storage.native_map import NativeMap

# Of one file that the relay knows: its map is made in the loop, 3 us a chunk.
NATIVE_CHUNKS_MAX: Final = 4096


class Image:
    """An open image. Ends with `aclose`, which gives its blobs back."""

    def __init__(
        self,
        bootstrap: Bootstrap,
        blobs: Sequence[LazyBlob],
        backend_stats: BackendStats,
        store_path: str | None,
        release: Callable[[], Awaitable[None]],
    ) -> None:
        """`blobs` in blob table order; `store_path` is the cache directory, None without one."""
        self.bootstrap = bootstrap
        self.blobs: Sequence[LazyBlob] = tuple(blobs)
        self.backend_stats = backend_stats
        self._store_path = store_path
        self._release = release

    @property
    def cache_stats(self) -> CacheStats | None:
        """Return the counters of all blobs together, None without a cache directory (spec api §4.4)."""
        if self._store_path is None:
            return None
        total = CacheStats(self._store_path)
        for blob in self.blobs:
            total.add(blob.stats)
        return total

    async def read(self, inode: Inode, offset: int, size: int) -> Buffer:
        """Return file bytes [offset, offset + size), fewer only at the end of the file.

        One copy where the bytes are ready and lie together in one blob.
        """
        if offset >= inode.size or size <= 0:
            return b""
        extents = self.bootstrap.extents(inode, offset, size)
        pieces = [
            await self.blobs[index].read(run) for index, run in _by_blob(extents, len(self.blobs))
        ]
        return _whole(pieces, inode, offset, size)

    def read_now(self, inode: Inode, offset: int, size: int) -> Buffer | None:
        """Return what `read` would if all of it is in the page cache, else None. Raises as `read`."""
        if offset >= inode.size or size <= 0:
            return b""
        pieces: list[Buffer] = []
        extents = self.bootstrap.extents(inode, offset, size)
        for index, run in _by_blob(extents, len(self.blobs)):
            if (piece := self.blobs[index].read_now(run)) is None:
                return None
            pieces.append(piece)
        return _whole(pieces, inode, offset, size)

    def native_map(self, inode: Inode) -> "NativeMap | None":
        """Return where the bytes of a file lie in cache files, for the relay; None if it may not read them.

        Ask after a read of it: the relay does not compare an extent's claims with the blob's records, so
        they are compared here, and that needs the records.
        """
        from nydusd.storage.native_map import map_of_file

        if inode.size // self.bootstrap.superblock.chunk_size >= NATIVE_CHUNKS_MAX:
            return None
        try:
            extents = self.bootstrap.extents(inode, 0, inode.size)
            for index, run in _by_blob(extents, len(self.blobs)):
                if not self.blobs[index].agrees_now(run):
                    return None
        except NydusError:
            return None  # who reads that part of the file is told
        return map_of_file(inode.size, extents, self.blobs)

    def infos(self) -> tuple[BlobInfo, ...]:
        """Return the blob table."""
        return self.bootstrap.blobs

    async def aclose(self) -> None:
        """Give the blobs back to their pool.

        The bootstrap is unmapped with the last reference to it: another image may use a blob that took
        its chunk records from it.
        """
        await self._release()


def _whole(pieces: Sequence[Buffer], inode: Inode, offset: int, size: int) -> Buffer:
    """Join what was read, if it is all that is due."""
    data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
    expected = min(size, inode.size - offset)
    if len(data) != expected:
        raise FormatError(
            f"extents of inode {inode.ino}",
            f"{len(data)} bytes",
            f"but {expected} are due at {offset}",
        )
    return data


def _by_blob(extents: Sequence[Extent], blob_count: int) -> list[tuple[int, list[Extent]]]:
    """Split extents, in file order, into runs of one blob each."""
    runs: list[tuple[int, list[Extent]]] = []
    for extent in extents:
        if not 0 <= extent.blob_index < blob_count:
            raise FormatError("extent blob index", extent.blob_index, f"must be below {blob_count}")
        if runs and runs[-1][0] == extent.blob_index:
            runs[-1][1].append(extent)
        else:
            runs.append((extent.blob_index, [extent]))
    return runs
