"""The plain address space of a blob as one flat file: what a kernel file system mounts. No FUSE here.

Owns     nothing: a device is a view of blobs that its image holds. `cache_path` leaves a lock on the
         cache file, which goes when the blob is closed.
Callers  tasks of the trio thread.
Raises   NydusError of whatever failed; never wrong bytes.
Cancel   a cancelled caller stops waiting; fetches go on for the others.
"""

from pathlib import Path
from typing import Protocol

from nydusd.blob.model import BLOCK_BYTES
from nydusd.records import Buffer
from nydusd.storage.lazy_blob import LazyBlob
from nydusd.storage.native_map import NativeMap


class Device(Protocol):
    """Bytes at addresses 0 to `size`; chunks are fetched as they are read. Holes are zeros."""

    @property
    def name(self) -> str:
        """What log lines call it."""
        ...

    @property
    def size(self) -> int:
        """Bytes, a multiple of 4096."""
        ...

    async def read(self, offset: int, length: int) -> Buffer:
        """Return exactly the bytes [offset, offset + length) that lie below `size`."""
        ...

    async def fill(self, offset: int, length: int) -> bool:
        """Have that range fetched. True: all of it is in cache files now, the relay can answer."""
        ...

    async def native_map(self) -> NativeMap | None:
        """Return where the relay finds the bytes; None: they can only be had through `read`.

        May load chunk records over the network: ask after the first `fill`, not before the mount.
        """
        ...

    def is_complete(self) -> bool:
        """Tell whether every byte can be had without the backend."""
        ...

    def cache_path(self) -> Path | None:
        """Return a path to a file that *is* this device, for mount(2); None: there is none (yet).

        The file is whole, checked where that is asked for, and locked until the device's blob is closed
        (cache/files.py: protect). The path is good in this process only.
        """
        ...


class BlobDevice:
    """One blob: its cache file's layout is the device's."""

    def __init__(self, blob: LazyBlob) -> None:
        """`blob` stays open as long as the device is used; its image sees to that."""
        self.blob = blob
        self.name = blob.info.blob_id
        self.size = -(-blob.info.uncompressed_size // BLOCK_BYTES) * BLOCK_BYTES

    async def read(self, offset: int, length: int) -> Buffer:
        """Return exactly the bytes [offset, offset + length) that lie below `size`."""
        return await self.blob.read_plain(offset, min(length, self.size - offset))

    async def fill(self, offset: int, length: int) -> bool:
        """Have that range fetched; see Device. The cache file may end within the last block."""
        end = min(offset + length, self.size)
        in_memory = await self.blob.fill(offset, end - offset)
        return not in_memory and end <= self.blob.info.uncompressed_size

    async def native_map(self) -> NativeMap | None:
        """Return the chunks' first blocks, if the blob keeps to blocks; see Device."""
        blocks = await self.blob.plain_blocks()
        if blocks is None:
            return None
        return NativeMap(self.size, (self.blob,), blocks, None, zero_gaps=True)

    def is_complete(self) -> bool:
        """Tell whether every byte can be had without the backend."""
        return self.blob.is_complete()

    def cache_path(self) -> Path | None:
        """Return a path to the whole, locked cache file; see Device."""
        return self.blob.protected_path()
