"""Devices as files: what the kernel's EROFS reads an image's data from. Never seen by anybody else.

One root directory, one regular file per device, named by its place in the image's device table: "0", "1", …
A successor gives the same files the same numbers, so that the kernel, which has them open, need not know.

Owns     what the relay was told of the devices. Not the devices.
Callers  kernel/session.py by way of the FileSystem protocol, in the trio thread.
Raises   what the device raises; Refusal for what these files do not do.
Cancel   as Device.read.
"""

import errno
import stat
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from nydusd.errors import NotFoundError, NydusError
from nydusd.kernel import wire
from nydusd.kernel.attributes import Attributes, Statfs
from nydusd.kernel.errno_map import Refusal
from nydusd.kernel.native_files import NativeFiles
from nydusd.kernel.server import unserved
from nydusd.kernel.stats import FsStats
from nydusd.kernel.wire import ROOT_NODEID, Opcode, OpenFlag
from nydusd.records import Buffer
from nydusd.storage.device import Device

if TYPE_CHECKING:
    from nydusd.native_relay import Relay

FIRST_NODEID: Final = ROOT_NODEID + 1
_DIRECTORY_MODE: Final = stat.S_IFDIR | 0o500
_FILE_MODE: Final = stat.S_IFREG | 0o400
_SECTOR_BYTES: Final = 512
_STATFS: Final = Statfs(block_bytes=4096, name_max_bytes=255, files=0)
_EMPTY: Final = b""


class DeviceFiles:
    """The file system of one private session."""

    def __init__(self, devices: Sequence[Device], stats: FsStats) -> None:
        """`devices` by their place in the device table; `stats` are told of every READ."""
        self._devices = tuple(devices)
        self._stats = stats
        self._native: NativeFiles | None = None  # from attach_relay on

    def attach_relay(self, relay: "Relay") -> None:
        """Take note of the relay: devices are registered with it once bytes of theirs are there."""
        self._native = NativeFiles(relay)

    def answer(self, request: wire.Request) -> Buffer | None:
        """Answer all but READ."""
        nodeid = request.nodeid
        match request.opcode:
            case Opcode.LOOKUP:
                child = self._child(nodeid, wire.name(request))
                return wire.entry_out(child, 0, self._attributes(child))
            case Opcode.GETATTR:
                return wire.attr_out(nodeid, self._attributes(nodeid))
            case Opcode.OPEN:
                self._device(nodeid)
                return wire.open_out(0, OpenFlag.KEEP_CACHE)
            case Opcode.RELEASE:
                return _EMPTY
            case Opcode.STATFS:
                return wire.statfs_out(_STATFS)
            case Opcode.FORGET | Opcode.BATCH_FORGET:
                return None
            case _:
                raise unserved(request)

    def read_now(self, nodeid: int, fh: int, offset: int, size: int) -> Buffer | None:  # noqa: ARG002
        """Leave it to `read`: what is there without waiting, the relay has answered."""
        device = self._device(nodeid)
        return _EMPTY if offset >= device.size else None

    async def read(self, nodeid: int, fh: int, offset: int, size: int) -> Buffer | None:  # noqa: ARG002
        """Return device bytes [offset, offset + size) within its size; None: the relay has them now."""
        device = self._device(nodeid)
        length = min(size, device.size - offset)
        if length <= 0:
            return _EMPTY
        started_s = time.monotonic()
        try:
            if await device.fill(offset, length) and await self._register(nodeid, device):
                return None  # the relay counts it
            content = await _read_exactly(device, offset, length)
        except NydusError as exc:
            self._stats.count_read(nodeid, 0, started_s, failed=True)
            if isinstance(exc, NotFoundError):
                # A missing blob is a fault behind the file; ENOENT would deny the file itself.
                raise NydusError(str(exc)) from exc
            raise
        self._stats.count_read(nodeid, length, started_s)
        return content

    def touched(self, source: int, chunk: int) -> None:
        """Pass on to the blob that the relay has read a watched chunk."""
        if self._native is not None:
            self._native.touched(source, chunk)

    def describe(self, nodeid: int) -> str:
        """Return words for a log line."""
        index = nodeid - FIRST_NODEID
        name = self._devices[index].name if 0 <= index < len(self._devices) else "none"
        return f"device={name} number={index}"

    def close(self) -> None:
        """Take the devices back from the relay, before it is closed."""
        if self._native is not None:
            self._native.close()

    async def _register(self, nodeid: int, device: Device) -> bool:
        native = self._native
        if native is None:
            return False
        if nodeid in native:
            return True
        found = await device.native_map()
        return found is not None and native.add(nodeid, found, self._stats.native_reads())

    # --- what there is -----------------------------------------------------------------------------

    def _child(self, parent: int, name: bytes) -> int:
        if parent == ROOT_NODEID:
            for index in range(len(self._devices)):
                if name == b"%d" % index:
                    return FIRST_NODEID + index
        raise Refusal(errno.ENOENT, f"no device {name[:16]!r}")

    def _device(self, nodeid: int) -> Device:
        index = nodeid - FIRST_NODEID
        if not 0 <= index < len(self._devices):
            raise Refusal(errno.EISDIR if nodeid == ROOT_NODEID else errno.ENOENT, "no device")
        return self._devices[index]

    def _attributes(self, nodeid: int) -> Attributes:
        if nodeid == ROOT_NODEID:
            return Attributes(nodeid, _DIRECTORY_MODE, 2, 0, 0, 0, 0, 0, 0, 0, 0)
        size = self._device(nodeid).size
        return Attributes(nodeid, _FILE_MODE, 1, 0, 0, 0, size, size // _SECTOR_BYTES, 0, 0, 0)


async def _read_exactly(device: Device, offset: int, length: int) -> Buffer:
    """Read, and refuse a short answer: the kernel might take what is missing for zeros."""
    content = await device.read(offset, length)
    if len(content) != length:
        raise NydusError(f"{device.name}: {len(content)} of {length} bytes at {offset}")
    return content
