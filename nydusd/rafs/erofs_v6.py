"""Whether the kernel's EROFS may show a v6 bootstrap in our place: it must look the same, path by path.

What the kernel would show otherwise is refused here; the tree (kernel/tree.py) then shows it as before.

Callers  storage, in a worker thread: all of the tree is read once (5 ms for 54,000 files).
Raises   FormatError, UnsupportedError: why not, in words for one log line. NotFoundError: no such file.
"""

import stat
from collections.abc import Sequence
from contextlib import suppress
from mmap import MADV_NORMAL, mmap
from pathlib import Path
from typing import Final, NamedTuple

from nydusd.blob.model import BlobInfo
from nydusd.errors import FormatError, UnsupportedError
from nydusd.rafs.blob_table_v6 import DEVICE_SLOT
from nydusd.rafs.bootstrap import map_file
from nydusd.rafs.layout_v6 import (
    BLOCK_SIZE,
    COMPAT_RAFS_V6,
    NID_UNIT,
    SLOT_BYTES,
    SLOTS_OFFSET,
    read_geometry,
    read_superblocks,
)
from nydusd.rafs.model import SuperblockFlag

ROOT_PERMISSIONS: Final = 0o755  # of every root that we show (spec fs-behaviour §7)
_MODE_OFFSET: Final = 4
_MADV_POPULATE_READ: Final = 22  # linux/mman.h; Linux 5.14


class ErofsMetadata(NamedTuple):
    """A bootstrap that EROFS may mount."""

    has_xattrs: bool
    # Per blob and chunk what files say of it; see native_erofs.ErofsWalk.
    claims: tuple[memoryview, ...]


def check_for_erofs(path: Path, blobs: Sequence[BlobInfo]) -> ErofsMetadata:
    """Walk the bootstrap at `path`, whose data is in the plain address spaces of `blobs`."""
    # Here, not above: only a mount by EROFS needs the C module.
    from nydusd.native_erofs import ErofsBlob, check_erofs

    source = str(path)
    with map_file(path) as data:
        _read_at_once(data)
        erofs, ext = read_superblocks(data, source)
        geometry = read_geometry(len(data), erofs, ext, source)
        if geometry.block_size != BLOCK_SIZE:
            raise UnsupportedError("its blobs are tar files, whose parts begin on 512 bytes")
        if not ext.flags & SuperblockFlag.EXPLICIT_UID_GID:
            raise UnsupportedError("it has no owners, which are then those of the daemon")
        if erofs.feature_compat != COMPAT_RAFS_V6:
            raise FormatError(
                "feature_compat", f"{erofs.feature_compat:#x}", "has unknown bits", source
            )
        if erofs.extra_devices != len(blobs):
            raise FormatError("extra_devices", erofs.extra_devices, f"must be {len(blobs)}", source)
        for index in range(len(blobs)):
            # The kernel would look there for directories that have such addresses.
            address = DEVICE_SLOT.read(data, SLOTS_OFFSET + index * SLOT_BYTES).mapped_blkaddr
            if 0 < address < -(-len(data) // BLOCK_SIZE):
                raise FormatError(
                    "mapped_blkaddr", address, "must lie behind the bootstrap", source
                )
        walk = check_erofs(
            data,
            geometry.meta_offset,
            geometry.root_nid,
            geometry.chunk_size,
            [ErofsBlob(-(-b.uncompressed_size // BLOCK_SIZE), b.chunk_count) for b in blobs],
        )
        root = geometry.meta_offset + geometry.root_nid * NID_UNIT + _MODE_OFFSET
        mode = int.from_bytes(data[root : root + 2], "little")
    if stat.S_IMODE(mode) != ROOT_PERMISSIONS:
        raise UnsupportedError(f"its root has mode {stat.S_IMODE(mode):#o}, to be shown as 0755")
    return ErofsMetadata(walk.with_xattrs > 0, walk.claims)


def _read_at_once(data: mmap) -> None:
    """Map all pages now: a walk in the order of names would wait for the disk page by page."""
    for advice in (MADV_NORMAL, _MADV_POPULATE_READ):
        with suppress(OSError):  # advice only
            data.madvise(advice)
