"""EROFS metadata in the cache directory: kept for the next mount, never trusted where it should not be."""

import os
import struct
from pathlib import Path

import pytest

from nydusd.blob.model import Digester
from nydusd.errors import UnsupportedError
from nydusd.native import digest
from nydusd.rafs.bootstrap import open_bootstrap
from nydusd.rafs.erofs_from_v5 import lay_out
from nydusd.rafs.v5 import BootstrapV5, open_v5
from nydusd.rafs.v6 import open_v6
from nydusd.storage import synthesised
from nydusd.storage.synthesised import is_quick, open_synthesised, synthesise
from tests.support import rafs_v6_image
from tests.support.erofs_reader import ErofsReader
from tests.support.rafs_v5_image import Image, directory, make_image, patched_inode, regular

OWNERLESS = 0x2 | 0x4 | 0x20


def image_of(*contents: bytes, flags: int = OWNERLESS | 0x10) -> Image:
    files = (regular(b"f%d" % number, content) for number, content in enumerate(contents))
    return make_image(directory(b"/", *files), flags=flags)


IMAGE = image_of(b"one" * 3000, b"two")


def opened(image: Image = IMAGE) -> BootstrapV5:
    return open_v5(image.bootstrap, "image.boot")


def made_file(folder: Path) -> Path:
    (path,) = folder.iterdir()
    return path


def test_there_is_nothing_before_it_is_made_and_the_same_afterwards(tmp_path: Path) -> None:
    assert open_synthesised(opened(), tmp_path, []) is None
    made = synthesise(opened(), tmp_path, [])
    assert made is not None
    (device,) = made.devices
    assert (made.metadata_path, device.size) == (made_file(tmp_path), 4 * 4096)
    status = made.metadata_path.stat()
    again = open_synthesised(opened(), tmp_path, [])
    assert again is not None
    assert again.metadata_path == made.metadata_path
    assert again.devices[0].size == device.size
    assert made.metadata_path.stat() == status


def test_the_file_is_named_by_the_bootstrap_and_begins_with_the_metadata(tmp_path: Path) -> None:
    synthesise(opened(), tmp_path, [])
    path = made_file(tmp_path)
    assert path.name == f"{digest(Digester.BLAKE3, IMAGE.bootstrap).hex()}.v1.erofs"
    image = lay_out(opened(), 0)
    content = path.read_bytes()
    size = len(image.metadata)
    assert content[1024:size] == image.metadata[1024:]
    assert content[size:] == image.segments
    assert ErofsReader(content[:size]).tree()[b"/f1"].size == 3


def test_a_mapped_bootstrap_is_read_and_let_go(tmp_path: Path) -> None:
    (tmp_path / "boot").write_bytes(IMAGE.bootstrap)
    (tmp_path / "cache").mkdir()
    bootstrap = open_bootstrap(tmp_path / "boot")
    assert synthesise(bootstrap, tmp_path / "cache", []) is not None
    assert open_synthesised(opened(), tmp_path / "cache", []) is not None
    bootstrap.close()


@pytest.mark.parametrize("where", ["header", "superblock", "metadata", "segments"])
def test_a_changed_byte_is_noticed_and_the_file_made_anew(tmp_path: Path, where: str) -> None:
    made = synthesise(opened(), tmp_path, [])
    assert made is not None
    good = made.metadata_path.read_bytes()
    positions = {
        "header": range(108),
        "superblock": (1024, 1040, 1408, 1500),
        "metadata": range(4096, len(good) - 100, 97),
        "segments": range(len(good) - 96, len(good), 7),
    }[where]
    for position in positions:
        bad = bytearray(good)
        bad[position] ^= 0x10
        made.metadata_path.write_bytes(bad)
        assert open_synthesised(opened(), tmp_path, []) is None, position
    assert synthesise(opened(), tmp_path, []) is not None
    assert made.metadata_path.read_bytes() == good
    assert open_synthesised(opened(), tmp_path, []) is not None


def test_a_cut_a_grown_an_empty_and_a_foreign_file_are_made_anew(tmp_path: Path) -> None:
    made = synthesise(opened(), tmp_path, [])
    assert made is not None
    path = made.metadata_path
    good = path.read_bytes()
    for bad in (
        b"",
        good[:500],
        good[:1024],
        good[:4096],
        good[:-1],
        good + bytes(32),
        os.urandom(9000),
    ):
        path.write_bytes(bad)
        assert open_synthesised(opened(), tmp_path, []) is None
    assert synthesise(opened(), tmp_path, []) is not None
    assert path.read_bytes() == good


def test_a_file_of_another_image_under_our_name_is_not_ours(tmp_path: Path) -> None:
    made = synthesise(opened(), tmp_path, [])
    assert made is not None
    (tmp_path / "other").mkdir()
    other = synthesise(opened(image_of(b"other")), tmp_path / "other", [])
    assert other is not None
    other.metadata_path.rename(made.metadata_path)
    assert open_synthesised(opened(), tmp_path, []) is None


def test_a_file_of_another_version_is_not_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = synthesise(opened(), tmp_path, [])
    assert made is not None
    monkeypatch.setattr(synthesised, "VERSION", synthesised.VERSION + 1)
    assert open_synthesised(opened(), tmp_path, []) is None
    newer = synthesise(opened(), tmp_path, [])
    assert newer is not None
    assert newer.metadata_path != made.metadata_path  # who has the old one mounted keeps it
    made.metadata_path.rename(newer.metadata_path)
    assert open_synthesised(opened(), tmp_path, []) is None


def test_where_the_image_has_no_owners_ours_are_in_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ownerless = image_of(b"x", flags=OWNERLESS)
    made = synthesise(opened(ownerless), tmp_path, [])
    assert made is not None
    monkeypatch.setattr("os.geteuid", lambda: 4711)
    assert open_synthesised(opened(ownerless), tmp_path, []) is None
    assert synthesise(opened(ownerless), tmp_path, []) is not None
    content = made.metadata_path.read_bytes()
    (size,) = struct.unpack_from("<Q", content, 16)
    assert ErofsReader(content[:size]).tree()[b"/f0"].uid == 4711


def test_an_image_without_data_has_no_device(tmp_path: Path) -> None:
    made = synthesise(opened(image_of(b"", b"")), tmp_path, [])
    assert made is not None
    assert made.devices == ()


def test_an_image_that_cannot_be_laid_out_leaves_no_file(tmp_path: Path) -> None:
    broken = open_v5(patched_inode(IMAGE, IMAGE.node(b"f1"), i_nlink=0), "image.boot")
    with pytest.raises(UnsupportedError, match="i_nlink"):
        synthesise(broken, tmp_path, [])
    assert list(tmp_path.iterdir()) == []


def test_without_a_place_to_keep_it_there_is_none(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert synthesise(opened(), None, []) is None
    assert open_synthesised(opened(), None, []) is None
    assert caplog.text == ""
    (tmp_path / "file").touch()
    assert synthesise(opened(), tmp_path / "file", []) is None
    assert "not kept" in caplog.text
    assert "Not a directory" in caplog.text


def test_new_images_need_none(tmp_path: Path) -> None:
    v6 = open_v6(rafs_v6_image.make_image(rafs_v6_image.directory()).data(), "image.boot")
    assert synthesise(v6, tmp_path, []) is None
    assert open_synthesised(v6, tmp_path, []) is None
    assert not is_quick(v6)


def test_small_images_are_quick() -> None:
    assert is_quick(opened())
