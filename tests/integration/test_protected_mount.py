"""EROFS straight on a cache file: complete, locked, and left alone by whoever follows the rule."""

import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from nydusd.builder.build import build_image
from nydusd.builder.options import BuildOptions
from nydusd.config.load import load
from nydusd.storage.cache.files import open_cache_file
from nydusd.storage.device import BlobDevice
from nydusd.storage.pool import open_pool
from tests.support.configs import v1
from tests.support.erofs_mounts import erofs, needs_erofs
from tests.support.image_trees import folder_tree
from tests.support.source_trees import write_small_tree

pytestmark = needs_erofs


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = write_small_tree(tmp_path / "source")
    (folder / "large").write_bytes(os.urandom(3 << 20))
    build_image(folder, BuildOptions(chunk_size=65536), tmp_path / "boot", tmp_path / "blobs")
    return folder


@asynccontextmanager
async def opened_device(tmp_path: Path) -> AsyncIterator[BlobDevice]:
    backend = {"type": "localfs", "config": {"dir": str(tmp_path / "blobs")}}
    cache = {"type": "blobcache", "config": {"work_dir": str(tmp_path / "cache")}}
    config = load(json.dumps(v1(backend=backend, cache=cache)), "test")
    async with open_pool() as pool:
        image = await pool.open_image(tmp_path / "boot", config)
        yield BlobDevice(image.blobs[0])
        await image.aclose()


def forget_pages(mounted: Path) -> None:
    """Have the kernel read the files' bytes from the device again."""
    for path in mounted.rglob("*"):
        if path.is_file() and not path.is_symlink():
            fd = os.open(path, os.O_RDONLY)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(fd)


async def test_the_kernel_reads_a_complete_blob_by_itself(tmp_path: Path, source: Path) -> None:
    async with opened_device(tmp_path) as device:
        assert await device.fill(0, device.size)
        path = device.cache_path()
        assert path is not None
        with erofs(tmp_path / "boot", path, tmp_path / "mnt") as mounted:
            assert folder_tree(mounted) == folder_tree(source)


async def test_what_others_do_to_the_cache_does_not_reach_the_mount(
    tmp_path: Path, source: Path, caplog
) -> None:
    async with opened_device(tmp_path) as device:
        assert await device.fill(0, device.size)
        path = device.cache_path()
        assert path is not None
        with erofs(tmp_path / "boot", path, tmp_path / "mnt") as mounted:
            # Somebody means another blob by this name, and fills the file with it.
            foreign = open_cache_file(
                tmp_path / "cache", device.name, device.size + 4096, 2, indexed=True
            )
            assert foreign is not None
            os.pwrite(foreign.fd, b"\xff" * (device.size + 4096), 0)
            forget_pages(mounted)
            assert folder_tree(mounted) == folder_tree(source)
            # The garbage collector takes everything away.
            foreign.close()
            for file in (tmp_path / "cache").iterdir():
                file.unlink()
            forget_pages(mounted)
            assert folder_tree(mounted) == folder_tree(source)
    assert "not of this blob" in caplog.text


async def test_a_path_names_the_file_that_was_checked_not_its_replacement(
    tmp_path: Path, source: Path
) -> None:
    async with opened_device(tmp_path) as device:
        assert await device.fill(0, device.size)
        path = device.cache_path()
        assert path is not None
        data = tmp_path / "cache" / f"{device.name}.blob.data"
        data.unlink()
        data.write_bytes(bytes(device.size))
        with erofs(tmp_path / "boot", path, tmp_path / "mnt") as mounted:
            assert folder_tree(mounted) == folder_tree(source)


async def test_the_mount_outlives_the_daemons_blob(tmp_path: Path, source: Path) -> None:
    async with opened_device(tmp_path) as device:
        assert await device.fill(0, device.size)
        path = device.cache_path()
        assert path is not None
        mount = erofs(tmp_path / "boot", path, tmp_path / "mnt")
        mounted = mount.__enter__()
    try:
        forget_pages(mounted)
        assert folder_tree(mounted) == folder_tree(source)
    finally:
        mount.__exit__(None, None, None)
