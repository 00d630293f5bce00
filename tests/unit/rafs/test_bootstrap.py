"""Opening bootstraps of either version: sniffing, files that are none, closing."""

import os
import struct
from pathlib import Path

import pytest

from nydusd.errors import FormatError, NotFoundError
from nydusd.rafs.bootstrap import (
    SNIFF_BYTES,
    inlining_blob_id,
    open_bootstrap,
    sniff,
    sniff_file,
)
from nydusd.units import KIB, MIB
from tests.support.rafs_v6_image import BlobSpec, ChunkRow, Image, directory, make_image, regular


def image_v6(**blob: object) -> Image:
    spec = BlobSpec(**blob)  # type: ignore[arg-type]
    return make_image(
        directory({b"motd": regular(5, [(0, 0, 0)])}), [spec], chunk_rows=[ChunkRow(0, 0, 0)]
    )


@pytest.fixture
def bootstrap_file(tmp_path: Path) -> Path:
    path = tmp_path / "image.boot"
    path.write_bytes(image_v6().data())
    return path


def test_sniffing_tells_the_versions_apart() -> None:
    v5 = struct.pack("<II", 0x52414653, 0x500) + bytes(SNIFF_BYTES)
    assert sniff(v5) == 5
    assert sniff(image_v6().data()[:SNIFF_BYTES]) == 6
    assert sniff(bytes(SNIFF_BYTES)) is None


@pytest.mark.parametrize("size", [0, 3, 4, 1024, 1027])
def test_sniffing_a_short_file_finds_nothing(size: int, tmp_path: Path) -> None:
    data = image_v6().data()[:size]
    assert sniff(data) is None
    (tmp_path / "short").write_bytes(data)
    assert sniff_file(tmp_path / "short") is None


def test_a_bootstrap_opens_and_closes(bootstrap_file: Path) -> None:
    assert sniff_file(bootstrap_file) == 6
    bootstrap = open_bootstrap(bootstrap_file)
    root = bootstrap.inode(bootstrap.root_ino)
    assert [entry.name for entry in bootstrap.entries(root)] == [b".", b"..", b"motd"]
    assert mapped(bootstrap_file)
    bootstrap.close()
    assert not mapped(bootstrap_file)
    with pytest.raises(ValueError, match="closed"):
        bootstrap.inode(bootstrap.root_ino)


def test_closing_gives_every_file_descriptor_back(bootstrap_file: Path) -> None:
    before = open_files()
    bootstrap = open_bootstrap(bootstrap_file)
    bootstrap.close()
    assert open_files() == before


def test_closing_while_the_chunk_table_is_read_leaves_the_mapping_to_its_reader(
    bootstrap_file: Path,
) -> None:
    bootstrap = open_bootstrap(bootstrap_file)
    held = memoryview(bootstrap._data)  # type: ignore[attr-defined]
    bootstrap.close()
    assert held[1024:1028].hex() == "e2e1f5e0"
    held.release()


def test_opening_a_large_bootstrap_touches_its_head_alone(tmp_path: Path) -> None:
    path = tmp_path / "image.boot"
    path.write_bytes(image_v6().data())
    os.truncate(path, 64 * MIB)
    path.read_bytes()  # into the page cache, so that the kernel could map all of it at once
    bootstrap = open_bootstrap(path)
    assert resident_bytes(path) <= 128 * KIB  # what the kernel maps around two faults
    bootstrap.close()


def test_a_refused_bootstrap_leaves_nothing_mapped(tmp_path: Path) -> None:
    image = image_v6()
    image.patch(1152, "<Q", 0)
    path = tmp_path / "image.boot"
    path.write_bytes(image.data())
    with pytest.raises(FormatError, match="s_flags"):
        open_bootstrap(path)
    assert not mapped(path)


@pytest.mark.parametrize("content", [b"", b"x", b"garbage" * 1000, bytes(8192)])
def test_a_file_that_is_no_bootstrap_is_refused_in_one_line(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "image.boot"
    path.write_bytes(content)
    with pytest.raises(FormatError) as caught:
        open_bootstrap(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"image\.boot cannot be opened: No such file"):
        open_bootstrap(tmp_path / "image.boot")
    with pytest.raises(NotFoundError, match="cannot be opened"):
        sniff_file(tmp_path / "image.boot")


def test_what_is_no_regular_file_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path, tmp_path / "fifo", Path("/dev/zero")):
        with pytest.raises(FormatError, match="no regular file"):
            open_bootstrap(path)


def test_a_symlink_to_a_bootstrap_is_followed(bootstrap_file: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(bootstrap_file)
    open_bootstrap(tmp_path / "link").close()


def test_the_id_of_an_inlining_blob_is_the_file_name_up_to_its_first_dot(tmp_path: Path) -> None:
    inlined = image_v6(blob_id="x" * 64, features=0x4000_0003)
    for name, blob_id in (("0a1b", "0a1b"), ("0a1b.image.boot", "0a1b")):
        path = tmp_path / name
        path.write_bytes(inlined.data())
        assert inlining_blob_id(path) == blob_id
        bootstrap = open_bootstrap(path)
        assert bootstrap.blobs[0].blob_id == blob_id
        bootstrap.close()


def test_an_extracted_bootstrap_belongs_to_the_blob_it_came_from(tmp_path: Path) -> None:
    path = tmp_path / "some-name.image.boot"
    path.write_bytes(image_v6(blob_id="d" * 64, features=0x1).data())
    for extracted_from, blob_id in ((None, "d" * 64), ("0a1b", "0a1b")):
        bootstrap = open_bootstrap(path, extracted_from=extracted_from)
        assert bootstrap.blobs[0].blob_id == blob_id
        bootstrap.close()


def resident_bytes(path: Path) -> int:
    smaps = Path("/proc/self/smaps").read_text()
    of_file = smaps[smaps.index(str(path)) :]
    return int(of_file[of_file.index("Rss:") :].split()[1]) * KIB


def open_files() -> list[str]:
    # The descriptor that lists the folder is gone when it is read: so by name, not by iterdir alone.
    return sorted(str(fd.readlink()) for fd in Path("/proc/self/fd").iterdir() if fd.is_symlink())


def mapped(path: Path) -> bool:
    return str(path) in Path("/proc/self/maps").read_text()
