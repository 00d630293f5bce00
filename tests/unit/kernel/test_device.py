"""Devices as files, without a kernel: names, numbers, bytes, and what the relay is told."""

import errno
from array import array
from pathlib import Path
from typing import Any

import pytest

from nydusd.errors import BackendError, NotFoundError, NydusError
from nydusd.kernel import wire
from nydusd.kernel.device import FIRST_NODEID, DeviceFiles
from nydusd.kernel.errno_map import Refusal
from nydusd.kernel.stats import FsStats, Op
from nydusd.kernel.wire import ROOT_NODEID, Opcode, OpenFlag
from nydusd.storage.native_map import NativeMap
from tests.support.fuse_requests import attr_of, entry_of, lookup_message, make_message

CONTENT = bytes(range(256)) * 64  # 4 blocks


class FakeBlob:
    """A blob as far as the relay's registrations go."""

    def __init__(self) -> None:
        self.source: object | None = object()
        self.lost: list[Any] = []
        self.was_touched: list[int] = []

    def native_source(self) -> object | None:
        return self.source

    def add_on_lost(self, callback: Any) -> None:
        self.lost.append(callback)

    def remove_on_lost(self, callback: Any) -> None:
        self.lost.remove(callback)

    def touched(self, chunk: int) -> None:
        self.was_touched.append(chunk)

    def lose(self) -> None:
        self.source = None
        for callback in self.lost:
            callback()
        self.lost.clear()


class FakeDevice:
    """Bytes in memory; `blob` is what the relay could read them from."""

    name = "blob-a"
    size = len(CONTENT)

    def __init__(self, *, fills: bool = False) -> None:
        self.fills = fills
        self.blob = FakeBlob()
        self.failure: NydusError | None = None
        self.answer: bytes | None = None
        self.maps = 0

    async def read(self, offset: int, length: int) -> bytes:
        return CONTENT[offset : offset + length] if self.answer is None else self.answer

    async def fill(self, offset: int, length: int) -> bool:
        if self.failure is not None:
            raise self.failure
        return self.fills

    async def native_map(self) -> NativeMap | None:
        self.maps += 1
        blobs: Any = (self.blob,)
        return NativeMap(self.size, blobs, memoryview(array("I", [0, 2])), None, zero_gaps=True)

    def is_complete(self) -> bool:
        return False

    def cache_path(self) -> Path | None:
        return None


class FakeRelay:
    """Notes what it is told."""

    def __init__(self) -> None:
        self.files: dict[int, int] = {}  # nodeid: source
        self.sources: list[int] = []
        self.next_source = 7

    def add_source(self, source: object) -> int:
        self.sources.append(self.next_source)
        self.next_source += 1
        return self.sources[-1]

    def drop_source(self, source: int) -> None:
        self.sources.remove(source)

    def add_flat(self, nodeid: int, size: int, source: int, blocks: Any, counts: Any) -> None:
        assert (size, list(blocks)) == (len(CONTENT), [0, 2])
        self.files[nodeid] = source

    def drop_file(self, nodeid: int) -> None:
        del self.files[nodeid]


def files(*devices: FakeDevice) -> DeviceFiles:
    made: Any = devices
    return DeviceFiles(made, FsStats("/"))


def attached(*devices: FakeDevice) -> tuple[DeviceFiles, FakeRelay]:
    served, relay = files(*devices), FakeRelay()
    double: Any = relay
    served.attach_relay(double)
    return served, relay


def ask(served: DeviceFiles, message: bytes) -> bytes:
    answer = served.answer(wire.parse(message))
    assert answer is not None
    return bytes(answer)


def refusal_of(served: DeviceFiles, message: bytes) -> int:
    with pytest.raises(Refusal) as caught:
        served.answer(wire.parse(message))
    return caught.value.errno


def test_a_device_is_found_by_its_number_and_has_its_size() -> None:
    served = files(FakeDevice(), FakeDevice())
    entry = entry_of(ask(served, lookup_message(ROOT_NODEID, b"1")))
    assert entry.nodeid == FIRST_NODEID + 1
    assert (entry.attr.size, entry.attr.mode) == (len(CONTENT), 0o100400)
    attributes = attr_of(ask(served, make_message(Opcode.GETATTR, entry.nodeid, bytes(16))))[1]
    assert attributes == entry.attr
    root = attr_of(ask(served, make_message(Opcode.GETATTR, ROOT_NODEID, bytes(16))))[1]
    assert root.mode == 0o40500


@pytest.mark.parametrize("name", [b"2", b"01", b"-1", b"one", b".."])
def test_no_other_name_is_there(name: bytes) -> None:
    served = files(FakeDevice(), FakeDevice())
    assert refusal_of(served, lookup_message(ROOT_NODEID, name)) == errno.ENOENT
    assert refusal_of(served, lookup_message(FIRST_NODEID, b"0")) == errno.ENOENT


def test_pages_of_a_device_are_kept_by_the_kernel() -> None:
    answer = ask(files(FakeDevice()), make_message(Opcode.OPEN, FIRST_NODEID, bytes(8)))
    assert answer == wire.open_out(0, OpenFlag.KEEP_CACHE)


@pytest.mark.parametrize("opcode", [Opcode.WRITE, Opcode.MKDIR, Opcode.READLINK, Opcode.GETXATTR])
def test_all_else_is_refused_and_nothing_for_ever(opcode: Opcode) -> None:
    number = refusal_of(files(FakeDevice()), make_message(opcode, FIRST_NODEID, bytes(64)))
    assert number in (errno.EROFS, errno.EOPNOTSUPP)


async def test_reads_are_exact_and_end_with_the_device() -> None:
    served = files(FakeDevice())
    assert await served.read(FIRST_NODEID, 0, 10, 100) == CONTENT[10:110]
    assert await served.read(FIRST_NODEID, 0, len(CONTENT) - 5, 100) == CONTENT[-5:]
    assert await served.read(FIRST_NODEID, 0, len(CONTENT), 100) == b""
    assert served.read_now(FIRST_NODEID, 0, len(CONTENT), 100) == b""
    assert served.read_now(FIRST_NODEID, 0, 0, 100) is None


async def test_a_short_answer_of_a_device_is_a_fault() -> None:
    device = FakeDevice()
    device.answer = b"short"
    with pytest.raises(NydusError, match="5 of 100 bytes at 10"):
        await files(device).read(FIRST_NODEID, 0, 10, 100)


async def test_a_missing_blob_does_not_deny_the_file() -> None:
    device = FakeDevice()
    device.failure = NotFoundError("no such blob")
    with pytest.raises(NydusError) as caught:
        await files(device).read(FIRST_NODEID, 0, 0, 10)
    assert not isinstance(caught.value, NotFoundError)


async def test_reads_and_faults_are_counted() -> None:
    device, stats = FakeDevice(), FsStats("/")
    made: Any = [device]
    served = DeviceFiles(made, stats)
    await served.read(FIRST_NODEID, 0, 0, 100)
    device.failure = BackendError("gone")
    with pytest.raises(BackendError):
        await served.read(FIRST_NODEID, 0, 0, 100)
    assert (stats.fop_hits[Op.READ], stats.fop_errors[Op.READ], stats.data_read) == (1, 1, 100)


async def test_filled_bytes_are_left_to_the_relay_which_is_told_once() -> None:
    device = FakeDevice(fills=True)
    served, relay = attached(FakeDevice(), device)
    for _ in range(3):
        assert await served.read(FIRST_NODEID + 1, 0, 0, 100) is None
    assert relay.files == {FIRST_NODEID + 1: 7}
    assert device.maps == 1
    served.touched(7, 5)
    served.touched(8, 6)  # of a source that is gone
    assert device.blob.was_touched == [5]
    served.close()
    assert (relay.files, relay.sources, device.blob.lost) == ({}, [], [])


async def test_without_a_cache_file_bytes_come_from_python() -> None:
    device = FakeDevice(fills=True)
    device.blob.source = None
    served, relay = attached(device)
    assert await served.read(FIRST_NODEID, 0, 0, 100) == CONTENT[:100]
    assert relay.files == {}


async def test_a_lost_cache_file_ends_its_native_use_before_it_is_closed() -> None:
    device = FakeDevice(fills=True)
    served, relay = attached(device)
    await served.read(FIRST_NODEID, 0, 0, 100)
    device.blob.lose()
    assert (relay.files, relay.sources) == ({}, [])
    assert await served.read(FIRST_NODEID, 0, 0, 100) == CONTENT[:100]


def test_a_log_line_names_the_device() -> None:
    served = files(FakeDevice())
    assert served.describe(FIRST_NODEID) == "device=blob-a number=0"
    assert served.describe(ROOT_NODEID) == "device=none number=-1"
