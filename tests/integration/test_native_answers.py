"""What native threads answer of a tree: rightly, counted, and only as long as they may."""

import errno
import json
import mmap
import os
import random
import struct
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from nydusd.builder.build import build_image
from nydusd.builder.options import BuildOptions
from nydusd.config.load import load
from nydusd.errors import ExistsError
from nydusd.kernel.namespace import Namespace
from nydusd.kernel.session import Session
from nydusd.kernel.stats import Op
from nydusd.kernel.tree import Tree
from nydusd.kernel.vfs import INDEX_SHIFT, Vfs
from nydusd.kernel.wire import Opcode, Request
from nydusd.records import Buffer
from nydusd.storage.image import Image
from nydusd.storage.pool import open_pool
from tests.support.mounts import temporary_mountpoint
from tests.support.source_trees import seeded_bytes

CHUNK = 65536
LARGE = seeded_bytes("large", 3 * 2**20 + 5)
SMALL = seeded_bytes("small", 1000)


class Watched(Namespace):
    """A namespace that notes what came to Python."""

    def __init__(self, vfs: Vfs) -> None:
        super().__init__(vfs)
        self.seen: Counter[int] = Counter()  # reads, by nodeid
        self.asked: Counter[int] = Counter()  # everything else, by opcode

    def answer(self, request: Request) -> Buffer | None:
        self.asked[request.opcode] += 1
        return super().answer(request)

    def read_now(self, nodeid: int, fh: int, offset: int, size: int) -> Buffer | None:
        self.seen[nodeid] += 1
        return super().read_now(nodeid, fh, offset, size)


class Scene:
    """One image mounted at /image of a session that this process serves."""

    def __init__(self, folder: Path, mountpoint: Path) -> None:
        self.folder = folder
        self.mountpoint = mountpoint
        self.vfs = Vfs()
        self.namespace = Watched(self.vfs)
        self.image: Image
        self.tree: Tree
        self.session: Session
        self.is_image_closed = False

    @property
    def cache_file(self) -> Path:
        [path] = (self.folder / "cache").glob("*.blob.data")
        return path


def build(folder: Path, fs_version: int) -> None:
    source = folder / "source"
    source.mkdir()
    (source / "large").write_bytes(LARGE)
    (source / "small").write_bytes(SMALL)
    (source / "other").write_bytes(LARGE[::-1])
    options = BuildOptions(fs_version=fs_version, chunk_size=CHUNK)
    build_image(source, options, folder / "boot", folder / "blobs")


@asynccontextmanager
async def mounted(
    folder: Path, fs_version: int = 6, *, is_built: bool = False, **rafs: bool
) -> AsyncIterator[Scene]:
    if not is_built:
        build(folder, fs_version)
    backend = {"type": "localfs", "config": {"dir": str(folder / "blobs")}}
    cache = {"type": "blobcache", "config": {"work_dir": str(folder / "cache")}}
    text = json.dumps({"device": {"backend": backend, "cache": cache}, "mode": "direct", **rafs})
    config = load(text, "test")
    with temporary_mountpoint() as mountpoint:
        scene = Scene(folder, mountpoint)
        async with open_pool() as pool, trio.open_nursery() as nursery:
            scene.image = await pool.open_image(folder / "boot", config)
            scene.tree = Tree(scene.image, config.rafs, "/image")
            scene.vfs.attach("/image", scene.tree)
            scene.session = Session.mount(mountpoint)
            await nursery.start(scene.session.serve, scene.namespace)
            try:
                yield scene
            finally:
                scene.session.unmount()
                scene.session.stop(grace_s=0)
        scene.namespace.close()
        scene.session.close()
        if not scene.is_image_closed:
            await scene.image.aclose()


def read_direct(path: Path, spans: list[tuple[int, int]]) -> list[bytes]:
    """Read (offset, size) each, past the page cache."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
    buffer = mmap.mmap(-1, 1 << 20)
    try:
        return [
            buffer[: os.preadv(fd, [memoryview(buffer)[:size]], offset)] for offset, size in spans
        ]
    finally:
        os.close(fd)


async def read(path: Path, spans: list[tuple[int, int]]) -> list[bytes]:
    return await trio.to_thread.run_sync(read_direct, path, spans)


WHOLE = [(offset, CHUNK) for offset in range(0, len(LARGE), CHUNK)]
RANDOM = [
    (random.Random(number).randrange(0, len(LARGE) // 4096) * 4096, size)
    for number, size in enumerate((4096, 8192, 131_072, 1 << 20) * 10)
]


def wanted(spans: list[tuple[int, int]], content: bytes = LARGE) -> list[bytes]:
    return [content[offset : offset + size] for offset, size in spans]


@pytest.mark.parametrize("fs_version", [5, 6])
async def test_what_is_cached_is_answered_without_python_and_counted(
    tmp_path: Path, fs_version: int
) -> None:
    async with mounted(tmp_path, fs_version) as scene:
        large = scene.mountpoint / "image/large"
        assert await read(large, WHOLE) == wanted(WHOLE)
        seen = scene.namespace.seen.total()
        assert seen
        assert await read(large, RANDOM) == wanted(RANDOM)
        assert scene.namespace.seen.total() == seen
        stats = scene.tree.stats
        stats.settle()
        assert stats.data_read == sum(map(len, wanted(WHOLE + RANDOM)))
        assert stats.fop_hits[Op.READ] == len(WHOLE + RANDOM)
        assert sum(stats.block_count_read) == sum(stats.read_latency_dist) == len(WHOLE + RANDOM)


async def test_a_small_file_is_answered_by_the_tree_and_not_worth_a_registration_without_one(
    tmp_path: Path,
) -> None:
    for fs_version, seen in (6, 1), (5, 3):
        folder = tmp_path / str(fs_version)
        folder.mkdir()
        async with mounted(folder, fs_version) as scene:
            small = scene.mountpoint / "image/small"
            for _ in range(3):
                assert await read(small, [(0, 4096)]) == [SMALL]
            assert scene.namespace.seen.total() == seen
            stats = scene.tree.stats
            stats.settle()
            assert (stats.fop_hits[Op.READ], stats.data_read) == (3, 3 * len(SMALL))


async def test_every_file_of_a_tree_is_answered_natively_once_the_records_are_loaded(
    tmp_path: Path,
) -> None:
    async with mounted(tmp_path) as scene:
        place = scene.mountpoint / "image"
        assert await read(place / "large", WHOLE) == wanted(WHOLE)
        assert await read(place / "other", WHOLE[:1]) == wanted(WHOLE[:1], LARGE[::-1])
        with (place / "other").open("rb", buffering=0) as file:  # has the rest fetched
            assert await trio.to_thread.run_sync(file.read) == LARGE[::-1]
        seen = scene.namespace.seen.copy()
        assert await read(place / "other", RANDOM) == wanted(RANDOM, LARGE[::-1])
        assert scene.namespace.seen == seen


async def test_a_file_that_contradicts_its_blob_is_refused_though_others_are_answered_natively(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with mounted(tmp_path) as scene:
        place = scene.mountpoint / "image"
        assert await read(place / "large", WHOLE) == wanted(WHOLE)
        assert await read(place / "other", WHOLE) == wanted(WHOLE, LARGE[::-1])
        bootstrap = scene.image.bootstrap
        inode = bootstrap.lookup(bootstrap.inode(bootstrap.root_ino), b"other")
        assert inode is not None
        first = bootstrap.extents(inode, 0, 1)[0]
    index = struct.pack("<HBBI", first.chunk_index, 1, 0, first.chunk_offset // 4096)
    boot = (tmp_path / "boot").read_bytes()
    assert boot.count(index) == 1
    block = struct.pack("<I", first.chunk_offset // 4096 + 1)
    (tmp_path / "boot").write_bytes(boot.replace(index, index[:4] + block))
    async with mounted(tmp_path, is_built=True) as scene:
        place = scene.mountpoint / "image"
        assert await read(place / "large", RANDOM) == wanted(RANDOM)
        with pytest.raises(OSError, match="Input/output error"):
            await read(place / "other", WHOLE[:1])
        assert await read(place / "other", WHOLE[1:]) == wanted(WHOLE[1:], LARGE[::-1])
        assert "for the file" in caplog.text


async def test_reads_that_count_for_their_file_are_all_seen(tmp_path: Path) -> None:
    async with mounted(tmp_path, iostats_files=True) as scene:
        large = scene.mountpoint / "image/large"
        for _ in range(2):
            assert await read(large, WHOLE) == wanted(WHOLE)
        assert scene.namespace.seen.total() == 2 * len(WHOLE)
        files = scene.tree.stats.files.values()
        assert max(one.data_read for one in files) == 2 * len(LARGE)


async def test_an_image_that_goes_takes_its_native_files_with_it(tmp_path: Path) -> None:
    async with mounted(tmp_path) as scene:
        large = scene.mountpoint / "image/large"
        assert await read(large, WHOLE) == wanted(WHOLE)
        fd = await trio.to_thread.run_sync(os.open, large, os.O_RDONLY | os.O_DIRECT)
        try:
            stale = scene.vfs.stale("/image")
            scene.vfs.detach("/image")
            await scene.session.invalidate(stale)
            scene.is_image_closed = True
            await scene.image.aclose()  # the last user: the cache file is closed
            buffer = mmap.mmap(-1, 4096)
            with pytest.raises(OSError, match="No such file") as failure:
                await trio.to_thread.run_sync(os.preadv, fd, [buffer], 0)
            assert failure.value.errno == errno.ENOENT
        finally:
            await trio.to_thread.run_sync(os.close, fd)


async def test_a_cache_file_that_somebody_cuts_gives_no_wrong_byte(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with mounted(tmp_path) as scene:
        large, other = scene.mountpoint / "image/large", scene.mountpoint / "image/other"
        assert await read(large, WHOLE) == wanted(WHOLE)
        assert await read(other, WHOLE) == wanted(WHOLE, LARGE[::-1])
        os.truncate(scene.cache_file, CHUNK)
        for _ in range(2):
            assert await read(large, RANDOM) == wanted(RANDOM)
            assert await read(other, RANDOM) == wanted(RANDOM, LARGE[::-1])
        assert "cache file is lost" in caplog.text


async def test_names_and_attributes_are_answered_without_python_and_counted(
    tmp_path: Path,
) -> None:
    async with mounted(tmp_path) as scene:
        place = scene.mountpoint / "image"
        await trio.to_thread.run_sync(os.stat, place)  # the session's own part: Python's
        scene.namespace.asked.clear()

        def look_around() -> list[tuple[str, int]]:
            found = sorted((entry.name, entry.stat().st_size) for entry in os.scandir(place))
            assert not (place / "missing").exists()
            assert (place / "small").read_bytes() == SMALL
            return found

        found = await trio.to_thread.run_sync(look_around)
        assert found == [("large", len(LARGE)), ("other", len(LARGE)), ("small", len(SMALL))]
        answered_by_c = {Opcode.LOOKUP, Opcode.GETATTR, Opcode.READDIRPLUS, Opcode.OPEN}
        answered_by_c |= {Opcode.OPENDIR, Opcode.RELEASE, Opcode.RELEASEDIR}
        assert not answered_by_c & set(scene.namespace.asked)
        stats = scene.tree.stats
        stats.settle()
        assert stats.fop_hits[Op.LOOKUP] == 1  # of what is missing; the listing told the rest
        assert stats.fop_hits[Op.READDIRPLUS] == 2


async def test_operations_that_count_for_their_file_are_all_seen(tmp_path: Path) -> None:
    async with mounted(tmp_path, iostats_files=True) as scene:
        small = scene.mountpoint / "image/small"
        await trio.to_thread.run_sync(os.stat, small)
        assert scene.namespace.asked[Opcode.LOOKUP]
        assert scene.tree.stats.files


async def test_an_index_with_files_that_were_opened_natively_is_not_given_away(
    tmp_path: Path,
) -> None:
    async with mounted(tmp_path) as scene:
        index = scene.vfs.index("/image")
        fd = await trio.to_thread.run_sync(os.open, scene.mountpoint / "image/large", os.O_RDONLY)
        nodeid = os.fstat(fd).st_ino
        assert nodeid >> INDEX_SHIFT == index
        [(_, _, opened)] = scene.vfs.export().indexes
        assert opened == 1
        scene.vfs.detach("/image")
        with pytest.raises(ExistsError):
            scene.vfs.attach("/other", scene.tree, index=index)
        await trio.to_thread.run_sync(os.close, fd)
        while scene.vfs.export().indexes[0][2]:  # noqa: ASYNC110 - a thread answers the release
            await trio.sleep(0.01)
        scene.vfs.attach("/other", scene.tree, index=index)
        small = scene.mountpoint / "other/small"
        assert await trio.to_thread.run_sync(small.read_bytes) == SMALL
