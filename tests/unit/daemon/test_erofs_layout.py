"""What EROFS is mounted on for an old image: at once where that is quick or asked for, else prepared."""

from pathlib import Path
from typing import cast

import pytest
import trio

from nydusd.config.model import RafsConfig
from nydusd.daemon.erofs_layout import (
    PREPARE_AFTER_S,
    Layout,
    UnpreparedError,
    layout_of,
    prepare,
)
from nydusd.errors import UnsupportedError
from nydusd.rafs.v5 import open_v5
from nydusd.storage import synthesised
from nydusd.storage.image import Image
from nydusd.storage.stats import CacheStats
from tests.support.rafs_v5_image import directory, make_image, patched_inode, regular

MADE = make_image(directory(b"/", regular(b"a", b"text")))


class StubImage:
    """As much of an image as its layout depends on."""

    def __init__(self, bootstrap: bytes, store_path: Path | None) -> None:
        self.bootstrap = open_v5(bootstrap, "image.boot")
        self.blobs = ()
        self.cache_stats = None if store_path is None else CacheStats(str(store_path))


def image(store_path: Path | None, bootstrap: bytes = MADE.bootstrap) -> Image:
    return cast("Image", StubImage(bootstrap, store_path))


async def layout(made: Image, *, whatever_it_takes: bool = False) -> Layout:
    return await layout_of(made, RafsConfig(), whatever_it_takes=whatever_it_takes)


def files(folder: Path) -> list[Path]:
    return list(folder.iterdir())


def empty_file(path: Path) -> None:
    path.touch()


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """No image is small."""
    monkeypatch.setattr(synthesised, "AT_ONCE_INODES_MAX", 0)


async def test_a_small_image_is_laid_out_at_once(tmp_path: Path) -> None:
    found = await layout(image(tmp_path))
    assert files(tmp_path) == [found.metadata]
    assert [device.size for device in found.devices] == [4096]


@pytest.mark.usefixtures("slow")
async def test_a_large_one_waits_for_its_next_mount(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    with pytest.raises(UnpreparedError):
        await layout(image(tmp_path))
    assert files(tmp_path) == []
    started = trio.current_time()
    await prepare(image(tmp_path))
    assert trio.current_time() - started >= PREPARE_AFTER_S
    found = await layout(image(tmp_path))
    assert files(tmp_path) == [found.metadata]


@pytest.mark.usefixtures("slow")
async def test_who_asks_for_it_gets_a_large_one_at_once(tmp_path: Path) -> None:
    assert (await layout(image(tmp_path), whatever_it_takes=True)).devices


async def test_without_a_cache_there_is_no_file_to_mount() -> None:
    with pytest.raises(UnsupportedError, match="no cache directory"):
        await layout(image(None))


async def test_what_cannot_be_laid_out_says_why(
    tmp_path: Path, autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    broken = patched_inode(MADE, MADE.node(b"a"), i_nlink=0)
    with pytest.raises(UnsupportedError, match="i_nlink"):
        await layout(image(tmp_path, broken))
    with caplog.at_level("INFO"):
        await prepare(image(tmp_path, broken))
    assert "i_nlink" in caplog.text


async def test_a_disk_that_takes_no_file_is_a_reason_too(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    empty_file(tmp_path / "file")
    with pytest.raises(UnsupportedError, match="cannot be kept"):
        await layout(image(tmp_path / "file"))
    assert "not kept" in caplog.text
