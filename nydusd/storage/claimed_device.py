"""A blob as a device for a kernel that trusts the image's own idea of where chunks lie.

The tree compares each extent with the blob's record of the chunk before it serves a byte (LazyBlob): files
whose chunk indexes name another chunk's bytes get EIO. The kernel reads by address and asks nobody. So what
all files say of a blob's chunks is gathered before the mount, and compared with the blob's records, which may
have to be fetched, before the first byte of the device is given away. One contradiction and none is given.

Owns     the claims, until they are found right.
Callers  tasks of the trio thread.
Raises   FormatError for a blob that is contradicted; what the blob raises.
Cancel   as BlobDevice.
"""

import logging
from array import array
from pathlib import Path
from typing import Final

import trio

from nydusd.blob.blob_meta import CiTable
from nydusd.blob.model import ChunkTable
from nydusd.errors import FormatError, NydusError
from nydusd.records import Buffer
from nydusd.storage.device import BlobDevice
from nydusd.storage.lazy_blob import LazyBlob
from nydusd.storage.native_map import NativeMap

log = logging.getLogger(__name__)

LOCAL_RECORDS_TIMEOUT_S: Final = (
    1.0  # for records of a whole blob; they lie beside it, unless somebody took them
)


class ClaimedDevice:
    """A `BlobDevice` that answers only if the image and the blob agree; see Device."""

    def __init__(self, blob: LazyBlob, claims: memoryview) -> None:
        """`claims`: per chunk of the blob what files say of it (native_erofs.ErofsWalk)."""
        self._device = BlobDevice(blob)
        self._blob = blob
        self._claims: memoryview | None = claims  # None: compared
        sizes = claims.cast("I")[1::2]
        self._claimed = array("I", (number for number, size in enumerate(sizes) if size))
        self.name = self._device.name
        self.size = self._device.size

    async def check(self) -> None:
        """Compare; once, unless it fails. Raises FormatError, and what loading the records raises."""
        if self._claims is None:
            return
        number = self._contradicted(await self._blob.chunk_table())
        if number is not None:  # the records may come from a side file that is corrupt
            fresher = await self._blob.refreshed_table()
            if fresher is not None:
                number = self._contradicted(fresher)
        if number is not None:
            raise FormatError(
                f"chunk {number}", "elsewhere for files", "than for the blob", self.name
            )
        self._claims = None

    def _contradicted(self, table: ChunkTable) -> int | None:
        if self._claims is None:  # another caller was first
            return None
        if not isinstance(table, CiTable):
            raise FormatError("chunk records", "of RAFS v5", "must be the blob's", self.name)
        return table.contradicted(self._claims)

    async def read(self, offset: int, length: int) -> Buffer:
        """Return exactly the bytes [offset, offset + length) that lie below `size`."""
        await self.check()
        return await self._device.read(offset, length)

    async def fill(self, offset: int, length: int) -> bool:
        """Have that range fetched; see Device."""
        await self.check()
        return await self._device.fill(offset, length)

    async def native_map(self) -> NativeMap | None:
        """Return where the relay finds the bytes; see Device."""
        await self.check()
        return await self._device.native_map()

    def is_complete(self) -> bool:
        """Tell whether every byte that files have can be had without the backend.

        Chunks that no file names are of no account: layers above have deleted or replaced their files.
        """
        return self._blob.is_complete(self._claimed)

    def cache_path(self) -> Path | None:
        """Return a path to the whole, locked cache file, if the claims were compared; see Device."""
        return None if self._claims is not None else self._blob.protected_path(self._claimed)

    async def settle(self) -> None:
        """Before the mount: compare now if the blob is whole, so that `cache_path` can say where it is.

        Raises FormatError for a contradiction. Records that cannot be had here and now are left for later.
        """
        if not self.is_complete():
            return
        try:
            with trio.fail_after(LOCAL_RECORDS_TIMEOUT_S):
                await self.check()
        except FormatError:
            raise
        except (NydusError, trio.TooSlowError) as exc:
            log.info("chunk records are not at hand: blob=%s reason=%s", self.name, exc)
