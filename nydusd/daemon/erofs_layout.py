"""What EROFS would be mounted on for an image: metadata in a file, and the devices that it names.

v6: the bootstrap itself and one device per blob. v5: metadata that was made for it, and one device of segments.

Callers  daemon/doors.py, before a mount. Bytes are read and checked in worker threads.
Raises   NydusError: why not, in words for one log line.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

import trio

from nydusd.config.model import RafsConfig
from nydusd.errors import UnsupportedError
from nydusd.rafs.model import SuperblockFlag
from nydusd.storage.claimed_device import ClaimedDevice
from nydusd.storage.device import Device
from nydusd.storage.image import Image

log = logging.getLogger(__name__)

NO_METADATA: Final = "its metadata is in no file, for there is no cache directory"


class Layout(NamedTuple):
    """An image as EROFS takes it."""

    metadata: Path
    devices: Sequence[Device]  # by their place in the metadata's device table


async def layout_of(image: Image, rafs: RafsConfig) -> Layout:
    """Return what to mount."""
    if image.bootstrap.superblock.version == 5:
        return await _layout_of_v5(image)
    return await _layout_of_v6(image, rafs)


async def _layout_of_v6(image: Image, rafs: RafsConfig) -> Layout:
    # Not for those who show the tree.
    from nydusd.rafs.erofs_v6 import check_for_erofs
    from nydusd.rafs.v6 import BootstrapV6

    bootstrap = image.bootstrap
    assert isinstance(bootstrap, BootstrapV6)
    path = Path(bootstrap.source)
    if not path.is_absolute():
        path = Path.cwd() / path
    if not await trio.to_thread.run_sync(path.is_file):
        raise UnsupportedError(NO_METADATA)
    found = await trio.to_thread.run_sync(check_for_erofs, path, bootstrap.blobs)
    flagged = SuperblockFlag.HAS_XATTR in bootstrap.superblock.flags
    if found.has_xattrs and not (flagged or rafs.enable_xattr):
        raise UnsupportedError("it has extended attributes, which are not to be shown")
    devices = [
        ClaimedDevice(blob, claims) for blob, claims in zip(image.blobs, found.claims, strict=True)
    ]
    for device in devices:
        await device.settle()
    return Layout(path, devices)


async def _layout_of_v5(image: Image) -> Layout:
    from nydusd.storage.synthesised import is_quick, open_synthesised, synthesise

    stats = image.cache_stats
    if stats is None:
        raise UnsupportedError(NO_METADATA)
    directory = Path(stats.store_path)
    made = await trio.to_thread.run_sync(open_synthesised, image.bootstrap, directory, image.blobs)
    if made is None:
        if not is_quick(image.bootstrap):
            raise UnsupportedError("its metadata is yet to be made for EROFS, which takes a while")
        made = await trio.to_thread.run_sync(synthesise, image.bootstrap, directory, image.blobs)
    if made is None:
        raise UnsupportedError("its metadata cannot be kept in the cache directory")
    return Layout(made.metadata_path, made.devices)
