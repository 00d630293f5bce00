"""What EROFS would be mounted on for an image: metadata in a file, and the devices that it names.

v6: the bootstrap itself and one device per blob. v5: metadata that was made for it, and one device of segments.

Callers  daemon/doors.py, before a mount. Bytes are read, checked and made in worker threads.
Raises   NydusError: why not, in words for one log line.
Cancel   a cancelled `prepare` leaves its thread behind, which ends by itself and touches nothing of ours.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

import trio

from nydusd.config.model import RafsConfig
from nydusd.errors import NydusError, UnsupportedError
from nydusd.rafs.model import SuperblockFlag
from nydusd.storage.claimed_device import ClaimedDevice
from nydusd.storage.device import Device
from nydusd.storage.image import Image

log = logging.getLogger(__name__)

NO_METADATA: Final = "its metadata is in no file, for there is no cache directory"


# What a start reads comes first: a thread that makes metadata takes the interpreter from it, some 5 ms at a time.
PREPARE_AFTER_S: Final = 10.0


class UnpreparedError(UnsupportedError):
    """The metadata is not there, and making it takes longer than a mount should; see `prepare`."""


class Layout(NamedTuple):
    """An image as EROFS takes it."""

    metadata: Path
    devices: Sequence[Device]  # by their place in the metadata's device table


async def layout_of(image: Image, rafs: RafsConfig, *, whatever_it_takes: bool) -> Layout:
    """Return what to mount. Raises UnpreparedError rather than keep the caller waiting, unless told to."""
    if image.bootstrap.superblock.version == 5:
        return await _layout_of_v5(image, whatever_it_takes=whatever_it_takes)
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


async def prepare(image: Image) -> None:
    """Make a v5 image's metadata for its next mount, when the start is over. Raises nothing."""
    from nydusd.storage.synthesised import synthesise

    await trio.sleep(PREPARE_AFTER_S)
    try:
        made = await trio.to_thread.run_sync(
            synthesise, image.bootstrap, _directory(image), image.blobs, abandon_on_cancel=True
        )
    except NydusError as exc:
        log.info("metadata for EROFS cannot be made: %s", exc)
    else:
        if made is not None:
            log.info("metadata for EROFS is ready for the next mount: file=%s", made.metadata_path)


async def _layout_of_v5(image: Image, *, whatever_it_takes: bool) -> Layout:
    from nydusd.storage.synthesised import is_quick, open_synthesised, synthesise

    directory = _directory(image)
    made = await trio.to_thread.run_sync(open_synthesised, image.bootstrap, directory, image.blobs)
    if made is None:
        if not whatever_it_takes and not is_quick(image.bootstrap):
            raise UnpreparedError(
                "its metadata for EROFS takes a while, and will be ready next time"
            )
        made = await trio.to_thread.run_sync(synthesise, image.bootstrap, directory, image.blobs)
    if made is None:
        raise UnsupportedError("its metadata cannot be kept in the cache directory")
    return Layout(made.metadata_path, made.devices)


def _directory(image: Image) -> Path:
    stats = image.cache_stats
    if stats is None:
        raise UnsupportedError(NO_METADATA)
    return Path(stats.store_path)
