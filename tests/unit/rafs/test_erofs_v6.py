"""What the kernel's EROFS may show in our place, and what not. The walk itself: native/tests/erofs_check.c."""

import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from nydusd.errors import FormatError, NotFoundError, NydusError, UnsupportedError
from nydusd.rafs.bootstrap import open_bootstrap
from nydusd.rafs.erofs_v6 import ErofsMetadata, check_for_erofs
from tests.support.rafs_v6_image import (
    EXT_SUPERBLOCK,
    FLAGS,
    SLOTS,
    SUPERBLOCK,
    BlobSpec,
    Image,
    directory,
    make_image,
    regular,
    symlink,
)
from tests.support.vectors import each_vector, vector

CHUNK = 0x1000


def tree() -> Image:
    """Two files that share a chunk, a link and a directory; one blob of 9 blocks."""
    root = directory(
        {
            b"dir": directory({b"again": regular(CHUNK, [(0, 0, 2)])}),
            b"file": regular(2 * CHUNK - 5, [(0, 0, 2), (0, 1, 4)]),
            b"link": symlink(b"file"),
        }
    )
    image = make_image(root, [BlobSpec(chunk_count=3)], chunk_size=CHUNK)
    for path in (b"/file", b"/dir/again"):
        image.patch(image.inode(path) + 16, "<I", 0x20)  # index entries for chunks of one block
    return image


def check(folder: Path, image: Image) -> ErofsMetadata:
    path = folder / "boot"
    path.write_bytes(image.data())
    return check_for_erofs(path, open_bootstrap(path).blobs)


def test_an_image_in_order_says_what_its_files_claim_of_each_chunk(tmp_path: Path) -> None:
    found = check(tmp_path, tree())
    assert not found.has_xattrs
    assert [list(struct.iter_unpack("<II", claims)) for claims in found.claims] == [
        [(2, CHUNK), (4, CHUNK - 5), (0, 0)]
    ]


def test_xattrs_are_told(tmp_path: Path) -> None:
    root = directory({b"file": symlink(b"x", xattrs=[(1, b"name", b"value")])})
    assert check(tmp_path, make_image(root, [])).has_xattrs


def spoil(at: Callable[[Image], int], code: str, value: int) -> Callable[[Image], None]:
    return lambda image: image.patch(at(image), code, value)


SPOILT = {
    "owners": spoil(lambda _: EXT_SUPERBLOCK, "<Q", FLAGS & ~0x10),
    "unknown bits": spoil(lambda _: SUPERBLOCK + 8, "<I", 0x4000_0004),
    "mapped_blkaddr": spoil(lambda _: SLOTS + 68, "<I", 1),
    "mode 0o700": spoil(lambda image: image.inode(b"/") + 4, "<H", 0o40700),
    "reached by one path": spoil(lambda image: image.block(b"/", 0) + 2 * 12, "<Q", 128),
    "one place within the blob": spoil(lambda image: image.indexes(b"/dir/again") + 4, "<I", 3),
}


@pytest.mark.parametrize("words", SPOILT)
def test_what_the_kernel_would_show_otherwise_is_refused(tmp_path: Path, words: str) -> None:
    image = tree()
    SPOILT[words](image)
    with pytest.raises((FormatError, UnsupportedError), match=words):
        check(tmp_path, image)


def test_a_device_behind_the_bootstrap_is_no_offence(tmp_path: Path) -> None:
    image = tree()
    image.patch(SLOTS + 68, "<I", len(image.data()) // 4096)
    check(tmp_path, image)


def test_more_blobs_than_are_served_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "boot"
    path.write_bytes(tree().data())
    with pytest.raises(FormatError, match="extra_devices"):
        check_for_erofs(path, ())


def test_a_file_that_is_gone_is_no_bootstrap(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        check_for_erofs(tmp_path / "boot", ())


@pytest.mark.parametrize(
    "path",
    each_vector(
        *(f"{name}/bootstrap" for name in ("v6-*", "merge3-v6*", "chunk-dict-v6", "sortnames-v6"))
    ),
)
def test_images_of_the_reference_builder_are_fine(path: Path) -> None:
    check_for_erofs(path, open_bootstrap(path).blobs)


@pytest.mark.parametrize(
    "name",
    [
        "chunk-index-range",
        "directory-loop",
        "nameoff-past-block",
        "nid-missing",
        "size-negative",
        "symlink-size-huge",
        "truncated-half",
        "xattr-range",
    ],
)
def test_broken_images_are_left_to_us(name: str, caplog: pytest.LogCaptureFixture) -> None:
    path = vector(f"broken/v6-{name}") / "bootstrap"
    with pytest.raises(NydusError):
        check_for_erofs(path, open_bootstrap(path).blobs)
    assert all("chunk table" in record.message for record in caplog.records)  # that was cut off
