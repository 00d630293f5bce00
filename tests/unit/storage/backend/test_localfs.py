"""Blobs as files: where they are looked for, what is said if they are not whole, what stays open."""

import os
from pathlib import Path

import pytest
import trio

from nydusd.config.model import LocalFsConfig
from nydusd.errors import BackendError, ClosedError, ConfigError
from nydusd.storage.backend import localfs
from nydusd.storage.backend.base import READ_MAX_BYTES
from nydusd.storage.backend.localfs import LocalFsBackend

DATA = bytes(range(256)) * 512


def backend_on(folder: Path, *alt_dirs: Path) -> LocalFsBackend:
    return LocalFsBackend(LocalFsConfig(dir=str(folder), alt_dirs=tuple(map(str, alt_dirs))))


def open_descriptors(path: Path) -> int:
    links = [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")
             if os.path.lexists(f"/proc/self/fd/{fd}")]  # fmt: skip
    return sum(link.removesuffix(" (deleted)") == str(path) for link in links)


async def test_ranges_of_a_blob_are_read_from_its_file(tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(DATA)
    backend = backend_on(tmp_path)
    assert await backend.size("blob") == len(DATA)
    for offset, length in [(0, 1), (7, 100), (0, len(DATA)), (len(DATA) - 1, 1)]:
        assert await backend.read("blob", offset, length) == DATA[offset : offset + length]
    assert await backend.read("blob", 5, 0) == b""
    assert backend.stats.read_count == 4
    assert backend.stats.read_errors == 0
    assert open_descriptors(tmp_path / "blob") == 1
    await backend.aclose()
    assert open_descriptors(tmp_path / "blob") == 0


async def test_what_is_not_in_the_page_cache_is_read_in_a_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "blob").write_bytes(DATA)
    half = len(DATA) // 2

    def cached_half(fd: int, body: bytearray, offset: int) -> int:
        return os.preadv(fd, [memoryview(body)[:half]], offset)

    monkeypatch.setattr(localfs, "_read_cached", cached_half)
    backend = backend_on(tmp_path)
    assert await backend.read("blob", 0, len(DATA)) == DATA
    monkeypatch.setattr(localfs, "_read_cached", lambda *_args: 0)
    assert await backend.read("blob", 9, 1000) == DATA[9:1009]
    await backend.aclose()


async def test_a_blob_that_is_still_growing_is_a_temporary_error(tmp_path: Path) -> None:
    path = tmp_path / "blob"
    path.write_bytes(DATA[:100])
    backend = backend_on(tmp_path)
    assert await backend.read("blob", 0, 100) == DATA[:100]
    with pytest.raises(BackendError) as caught:
        await backend.read("blob", 50, 100)
    assert str(caught.value) == (
        f"blob blob bytes 50-149: {path} has 100 bytes, 150 are wanted: not yet complete?"
    )
    assert caught.value.temporary
    assert backend.stats.read_errors == 1
    path.write_bytes(DATA)
    assert await backend.read("blob", 50, 100) == DATA[50:150]
    await backend.aclose()


async def test_a_blob_that_was_replaced_is_found_again(tmp_path: Path) -> None:
    path = tmp_path / "blob"
    path.write_bytes(DATA[:100])
    backend = backend_on(tmp_path)
    assert await backend.read("blob", 0, 100) == DATA[:100]
    (tmp_path / "new").write_bytes(DATA)
    (tmp_path / "new").rename(path)
    assert await backend.read("blob", 50, 100) == DATA[50:150]
    assert open_descriptors(path) == 1
    await backend.aclose()


async def test_a_missing_blob_names_every_place_and_may_come_later(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    backend = backend_on(tmp_path, other)
    with pytest.raises(BackendError) as caught:
        await backend.read("blob", 0, 1)
    assert f"{tmp_path}/blob: No such file" in str(caught.value)
    assert f"{other}/blob: No such file" in str(caught.value)
    (other / "blob").write_bytes(DATA)
    assert await backend.read("blob", 0, 9) == DATA[:9]
    await backend.aclose()


async def test_the_first_folder_with_a_blob_that_is_not_empty_wins(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in "abc"]
    for folder in folders:
        folder.mkdir()
    (folders[0] / "blob").touch()
    (folders[1] / "blob").write_bytes(b"from b")
    (folders[2] / "blob").write_bytes(b"from c")
    backend = backend_on(*folders)
    assert await backend.read("blob", 0, 6) == b"from b"
    assert await backend.size("blob") == 6
    await backend.aclose()


async def test_one_file_serves_every_blob_id(tmp_path: Path) -> None:
    path = tmp_path / "image.blob"
    path.write_bytes(DATA)
    backend = LocalFsBackend(LocalFsConfig(dir="/nowhere", blob_file=str(path)))
    assert await backend.read("one", 0, 9) == DATA[:9]
    assert await backend.read("two", 9, 9) == DATA[9:18]
    await backend.aclose()


@pytest.mark.parametrize(
    "blob_id", ["", ".", "..", "a/b", "../etc/passwd", "/etc/passwd", "a\0b", "a\nb", "x" * 256]
)
async def test_an_id_that_is_no_plain_name_never_becomes_a_path(
    tmp_path: Path, blob_id: str
) -> None:
    backend = backend_on(tmp_path)
    with pytest.raises(BackendError, match="not a plain name"):
        await backend.read(blob_id, 0, 1)
    with pytest.raises(BackendError, match="not a plain name"):
        await backend.size(blob_id)


@pytest.mark.parametrize(
    ("offset", "length"),
    [(-1, 1), (0, -1), (0, READ_MAX_BYTES + 1), (1 << 63, 1), ((1 << 63) - 1, 2)],
)
async def test_a_range_that_no_file_has_is_refused(
    tmp_path: Path, offset: int, length: int
) -> None:
    (tmp_path / "blob").write_bytes(DATA)
    with pytest.raises(BackendError):
        await backend_on(tmp_path).read("blob", offset, length)


async def test_a_length_that_lies_allocates_nothing(tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(b"x")
    backend = backend_on(tmp_path)
    with pytest.raises(BackendError, match="has 1 bytes"):
        await backend.read("blob", 0, READ_MAX_BYTES)
    await backend.aclose()


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir], ids=["fifo", "folder"])
async def test_only_regular_files_are_blobs(tmp_path: Path, make: object) -> None:
    assert callable(make)
    make(tmp_path / "blob")
    with pytest.raises(BackendError, match="not a regular file"):
        await backend_on(tmp_path).read("blob", 0, 1)


async def test_files_that_are_kept_open_are_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(localfs, "OPEN_FILES_MAX", 3)
    backend = backend_on(tmp_path)
    for name in "abcdef":
        (tmp_path / name).write_bytes(DATA)
    for name in "abcdefabc":
        assert await backend.read(name, 3, 3) == DATA[3:6]
    assert sum(open_descriptors(tmp_path / name) for name in "abcdef") == 3
    await backend.aclose()


async def test_many_first_reads_leave_one_descriptor(tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(DATA)
    backend = backend_on(tmp_path)
    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(backend.read, "blob", 0, 100)
    assert open_descriptors(tmp_path / "blob") == 1
    await backend.aclose()


async def test_a_closed_backend_says_so(tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(DATA)
    backend = backend_on(tmp_path)
    await backend.aclose()
    with pytest.raises(ClosedError):
        await backend.read("blob", 0, 1)
    with pytest.raises(ClosedError):
        await backend.size("blob")


def test_a_place_to_look_is_needed() -> None:
    with pytest.raises(ConfigError, match="blob_file"):
        LocalFsBackend(LocalFsConfig())
