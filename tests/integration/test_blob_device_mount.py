"""A blob as a mounted file: relay, Python and cache file together, with many readers and with faults.

The mount is served by the test's own loop, its readers are threads; who reads with O_DIRECT asks us each time.
"""

import contextlib
import ctypes
import mmap
import os
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest
import trio

from nydusd.errors import BackendError
from nydusd.kernel.device import DeviceFiles
from nydusd.kernel.session import Session
from nydusd.kernel.stats import FsStats, Op
from nydusd.storage.device import BlobDevice
from nydusd.storage.lazy_blob import LazyBlob
from tests.support.blobs import MadeBlob, make_blob
from tests.support.memory_backend import MemoryBackend
from tests.support.mounts import require_mounts, temporary_mountpoint, umount_lazily
from tests.support.open_blob import opened_blob
from tests.support.plain import plain_of

PATIENCE_S = 60.0
READERS = 16
SIZES = [random.Random(5).choice([700, 4096, 9000, 65536, 200_000]) for _ in range(300)]


@pytest.fixture(scope="module", autouse=True)
def _can_mount() -> None:
    require_mounts()


@pytest.fixture(scope="module")
def made() -> MadeBlob:
    return make_blob(SIZES)


@pytest.fixture
def mountpoint() -> Iterator[Path]:
    with temporary_mountpoint() as place:
        yield place


class Served:
    """A blob's device as the file `0` of a mount."""

    def __init__(self, path: Path, blob: LazyBlob, stats: FsStats) -> None:
        self.path = path
        self.blob = blob
        self.stats = stats

    async def read(self, offset: int, length: int, *, direct: bool = True) -> bytes:
        return await trio.to_thread.run_sync(
            read_file, self.path, offset, length, direct, abandon_on_cancel=True
        )


def read_file(path: Path, offset: int, length: int, direct: bool) -> bytes:
    fd = os.open(path, os.O_RDONLY | (os.O_DIRECT if direct else 0))
    try:
        room = mmap.mmap(-1, -(-length // 4096) * 4096)
        return room[: min(os.preadv(fd, [room], offset), length)]
    finally:
        os.close(fd)


@asynccontextmanager
async def served(blob: LazyBlob, mountpoint: Path) -> AsyncIterator[Served]:
    stats = FsStats("device")
    files = DeviceFiles([BlobDevice(blob)], stats)
    session = Session.mount(mountpoint)
    try:
        with trio.fail_after(PATIENCE_S):
            async with trio.open_nursery() as nursery:
                await nursery.start(session.serve, files)
                yield Served(mountpoint / "0", blob, stats)
                session.stop(grace_s=1)
    finally:
        umount_lazily(mountpoint)
        files.close()
        session.close()


@contextmanager
def small_tmpfs(place: Path, size_bytes: int) -> Iterator[Path]:
    place.mkdir()
    libc = ctypes.CDLL(None, use_errno=True)
    options = f"size={size_bytes}".encode()
    if libc.mount(b"tmpfs", os.fsencode(place), b"tmpfs", 0, options):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    try:
        yield place
    finally:
        umount_lazily(place)


@pytest.mark.parametrize("amplify_bytes", [0, 1 << 17])
@pytest.mark.parametrize("direct", [True, False])
async def test_sixteen_readers_see_every_byte_and_nothing_is_fetched_twice(
    made, tmp_path: Path, mountpoint: Path, amplify_bytes: int, direct: bool
):
    backend = MemoryBackend({made.info.blob_id: made.stored})
    plain = plain_of(made)

    async def walk(device: Served, start: int) -> None:
        step = 131_072
        for number in range(-(-len(plain) // step)):
            offset = (start + number) * step % (-(-len(plain) // step) * step)
            expected = plain[offset : offset + step]
            assert await device.read(offset, len(expected), direct=direct) == expected

    async def jump(device: Served, seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(100):
            offset = rng.randrange(len(plain) // 4096) * 4096
            expected = plain[offset : offset + rng.choice([4096, 16_384, 1 << 20])]
            assert await device.read(offset, len(expected), direct=direct) == expected

    async with (
        opened_blob(made, backend, tmp_path, amplify_bytes=amplify_bytes) as blob,
        served(blob, mountpoint) as device,
    ):
        async with trio.open_nursery() as nursery:
            for reader in range(READERS):
                if reader % 2:
                    nursery.start_soon(walk, device, reader * 7)
                else:
                    nursery.start_soon(jump, device, reader)
        assert blob.is_complete()
        device.stats.settle()
        assert device.stats.fop_errors[Op.READ] == 0
        assert device.stats.fop_hits[Op.READ] == blob.stats.total
        assert blob.stats.demand_bytes + blob.stats.readahead_bytes == len(made.stored)
        assert device.stats.native_reads().reads > 0


async def test_what_is_cached_is_read_without_python(made, tmp_path: Path, mountpoint: Path):
    backend = MemoryBackend({made.info.blob_id: made.stored})
    plain = plain_of(made)
    async with opened_blob(made, backend, tmp_path) as blob, served(blob, mountpoint) as device:
        assert await device.read(0, len(plain)) == plain
        before = device.stats.native_reads().reads
        with without(device, "read"):
            assert await device.read(0, len(plain)) == plain
        assert device.stats.native_reads().reads > before


@contextmanager
def without(device: Served, name: str) -> Iterator[None]:
    """Whoever calls that function of DeviceFiles fails."""
    real = getattr(DeviceFiles, name)

    async def never(*_: object) -> None:
        raise AssertionError(name)

    setattr(DeviceFiles, name, never)
    try:
        yield
    finally:
        setattr(DeviceFiles, name, real)


async def test_a_full_cache_disk_costs_speed_and_no_byte(
    made, tmp_path: Path, mountpoint: Path, caplog
):
    backend = MemoryBackend({made.info.blob_id: made.stored})
    plain = plain_of(made)
    with small_tmpfs(tmp_path / "full", 2 << 20) as directory:
        async with (
            opened_blob(made, backend, directory) as blob,
            served(blob, mountpoint) as device,
        ):

            async def walk(start: int) -> None:
                for offset in range(start * 4096, len(plain), READERS * 65_536):
                    expected = plain[offset : offset + 65_536]
                    assert await device.read(offset, len(expected)) == expected

            for _ in range(2):
                async with trio.open_nursery() as nursery:
                    for reader in range(READERS):
                        nursery.start_soon(walk, reader * 16)
            assert not blob.is_complete()
            device.stats.settle()
            assert device.stats.fop_errors[Op.READ] == 0
            assert device.stats.native_reads().reads > 0  # of what fitted
    assert 0 < caplog.text.count("serving from memory") < 20  # not once per fetch


async def test_a_file_that_is_cut_under_the_relay_is_left_and_every_byte_still_right(
    made, tmp_path: Path, mountpoint: Path, caplog
):
    backend = MemoryBackend({made.info.blob_id: made.stored})
    plain = plain_of(made)
    async with opened_blob(made, backend, tmp_path) as blob, served(blob, mountpoint) as device:
        assert await device.read(0, len(plain)) == plain

        async def walk(seed: int) -> None:
            rng = random.Random(seed)
            for _ in range(60):
                offset = rng.randrange(len(plain) // 4096) * 4096
                expected = plain[offset : offset + 65_536]
                assert await device.read(offset, len(expected)) == expected

        async with trio.open_nursery() as nursery:
            for reader in range(READERS):
                nursery.start_soon(walk, reader)
            await trio.sleep(0.01)
            os.truncate(tmp_path / f"{made.info.blob_id}.blob.data", 3 * 4096)
        assert await device.read(0, len(plain)) == plain
        assert blob.native_source() is None
        assert not blob.is_complete()
    assert "cache file is lost" in caplog.text


async def test_a_fault_of_the_registry_is_eio_and_is_forgotten(
    made, tmp_path: Path, mountpoint: Path, caplog
):
    backend = MemoryBackend({made.info.blob_id: made.stored})
    plain = plain_of(made)
    async with opened_blob(made, backend, tmp_path) as blob, served(blob, mountpoint) as device:
        backend.failures.append(BackendError("registry is down", temporary=True))
        with pytest.raises(OSError, match="Input/output error"):
            await device.read(0, 4096)
        assert await device.read(0, 4096) == plain[:4096]
        device.stats.settle()
        assert blob.stats.total == 2
    assert "registry is down" in caplog.text


async def test_a_blob_that_is_closed_under_a_mount_takes_its_file_back_first(
    made, tmp_path: Path, mountpoint: Path, caplog
):
    backend = MemoryBackend({made.info.blob_id: made.stored})
    plain = plain_of(made)
    outcomes: list[bool] = []

    async def walk(device: Served, seed: int) -> None:
        rng = random.Random(seed)
        with contextlib.suppress(OSError):
            while True:
                offset = rng.randrange(len(plain) // 4096) * 4096
                expected = plain[offset : offset + 4096]
                outcomes.append(await device.read(offset, len(expected)) == expected)

    async with opened_blob(made, backend, tmp_path) as blob, served(blob, mountpoint) as device:
        assert await device.read(0, len(plain)) == plain
        async with trio.open_nursery() as nursery:
            for reader in range(READERS):
                nursery.start_soon(walk, device, reader)
            await trio.sleep(0.05)
            await blob.aclose()
    assert outcomes
    assert all(outcomes)
    assert "is closed" in caplog.text  # what the readers were told then
