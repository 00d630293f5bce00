"""The checker finds what is wrong and nothing else: on images built here and then damaged."""

import os
import struct
from pathlib import Path

import pytest

from nydusd.blob.model import Codec
from nydusd.builder.blob_files import BlobFiles
from nydusd.builder.build import build_image
from nydusd.builder.check import FAULTS_KEPT, CheckReport, check_image
from nydusd.builder.options import BuildOptions, BuildResult
from nydusd.errors import FormatError, NotFoundError, NydusError
from nydusd.rafs.bootstrap import open_bootstrap
from tests.support.source_trees import write_small_tree, write_tree
from tests.support.vectors import each_vector

VERSIONS = pytest.mark.parametrize("version", [5, 6])


def build(tmp_path: Path, options: BuildOptions) -> BuildResult:
    source = write_small_tree(tmp_path / "source")
    bootstrap = None if options.inline_meta else tmp_path / "boot"
    return build_image(source, options, bootstrap, tmp_path / "blobs")


def check(tmp_path: Path, name: str = "boot") -> CheckReport:
    return check_image(tmp_path / name, BlobFiles(tmp_path / "blobs"), verify=True)


def patch(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        os.pwrite(file.fileno(), data, offset)


@VERSIONS
def test_a_sound_image_is_valid_and_counted(tmp_path: Path, version: int) -> None:
    source = write_tree(tmp_path / "source", entries=300)
    result = build_image(
        source, BuildOptions(fs_version=version), tmp_path / "boot", tmp_path / "blobs"
    )
    report = check(tmp_path)
    assert report.faults == []
    assert report.notices == []
    assert report.chunks_verified == result.chunks
    assert report.directories + report.files + report.symlinks + report.special == result.inodes


@pytest.mark.parametrize(
    "options",
    [
        BuildOptions(inline_meta=True),
        BuildOptions(inline_meta=True, blob_toc=True),
        BuildOptions(fs_version=5, inline_meta=True),
    ],
    ids=["v6", "v6-toc", "v5"],
)
def test_an_inlined_bootstrap_is_checked_in_its_blob(tmp_path: Path, options: BuildOptions) -> None:
    result = build(tmp_path, options)
    report = check_image(Path(result.blob_path), BlobFiles(tmp_path / "blobs"), verify=True)
    assert report.faults == []
    assert report.chunks_verified == result.chunks


@VERSIONS
@pytest.mark.parametrize("codec", [Codec.NONE, Codec.LZ4_BLOCK, Codec.ZSTD])
def test_one_flipped_bit_of_data_is_found(tmp_path: Path, version: int, codec: Codec) -> None:
    result = build(tmp_path, BuildOptions(fs_version=version, codec=codec))
    blob = Path(result.blob_path)
    position = result.compressed_size // 2
    patch(blob, position, bytes([blob.read_bytes()[position] ^ 1]))
    report = check(tmp_path)
    assert report.fault_count == 1
    assert f"blob {result.blob_ids[0]}: chunk " in report.faults[0]
    # without looking at the bytes there is nothing to see
    assert check_image(tmp_path / "boot", BlobFiles(tmp_path / "blobs")).is_valid


@VERSIONS
def test_a_blob_that_is_cut_or_gone_is_named(tmp_path: Path, version: int) -> None:
    result = build(tmp_path, BuildOptions(fs_version=version))
    blob = Path(result.blob_path)
    os.truncate(blob, 100)
    assert result.blob_ids[0] in check(tmp_path).faults[0]
    blob.unlink()
    report = check(tmp_path)
    assert report.fault_count == 1
    assert "No such file" in report.faults[0]


def directory_entry(bootstrap: Path, name: bytes) -> int:
    """Return where the dirent of a name lies: its nameoff is followed by the type byte."""
    data = bootstrap.read_bytes()
    image = open_bootstrap(bootstrap)
    inode = image.lookup(image.inode(image.root_ino), name)
    image.close()
    assert inode is not None
    return data.index(struct.pack("<Q", inode.ino))


def test_a_directory_that_contains_itself_is_a_fault_not_a_hang(tmp_path: Path) -> None:
    build(tmp_path, BuildOptions())
    boot = tmp_path / "boot"
    patch(boot, directory_entry(boot, b"none"), struct.pack("<Q", 128))
    report = check(tmp_path)
    assert "/none: the directory is met twice: a loop" in report.faults


def test_a_name_without_an_inode_is_a_fault_of_that_name_only(tmp_path: Path) -> None:
    build(tmp_path, BuildOptions())
    boot = tmp_path / "boot"
    patch(boot, directory_entry(boot, b"nothing"), struct.pack("<Q", 0x7FFFFFFF))
    report = check(tmp_path)
    assert report.fault_count == 1
    assert report.faults[0].startswith("/nothing: ")


def test_names_out_of_order_are_found(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name in ("aaa", "bbb", "ccc"):
        (source / name).touch()
    build_image(source, BuildOptions(), tmp_path / "boot", tmp_path / "blobs")
    data = (tmp_path / "boot").read_bytes()
    patch(tmp_path / "boot", data.index(b"aaabbbccc"), b"bbbaaaccc")
    report = check(tmp_path)
    assert "/aaa: the names of its directory are not sorted" in report.faults


def test_a_file_that_claims_a_chunk_of_other_bytes_is_found(tmp_path: Path) -> None:
    build(tmp_path, BuildOptions())
    boot = tmp_path / "boot"
    image = open_bootstrap(boot)
    inode = image.lookup(image.inode(image.root_ino), b"hello.txt")
    image.close()
    assert inode is not None
    patch(boot, inode.position + 64, struct.pack("<HBBI", 1, 1, 0, 0))
    report = check(tmp_path)
    assert any(fault.startswith("/hello.txt: chunk 1 is 13 bytes at 0") for fault in report.faults)
    patch(boot, inode.position + 64, struct.pack("<HBBI", 60000, 1, 0, 0))
    without_blobs = check_image(boot)
    assert any(
        fault.startswith("/hello.txt: chunk index is 60000") for fault in without_blobs.faults
    )


def test_a_long_list_of_faults_is_cut_but_counted(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for number in range(50):
        (source / f"{number:02}").write_bytes(b"%d" % number)
    result = build_image(source, BuildOptions(), tmp_path / "boot", tmp_path / "blobs")
    patch(Path(result.blob_path), 0, bytes(result.compressed_size))
    report = check(tmp_path)
    assert (report.fault_count, len(report.faults)) == (50, FAULTS_KEPT)


def test_a_cut_chunk_table_is_noted_and_the_rest_checked(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    build(tmp_path, BuildOptions())
    boot = tmp_path / "boot"
    (table_offset,) = struct.unpack_from("<Q", boot.read_bytes(), 1152 + 24)
    os.truncate(boot, table_offset)
    report = check(tmp_path)
    assert report.is_valid
    assert any("no chunk table" in notice for notice in report.notices)
    assert "chunk table" in caplog.text


def test_what_is_no_image_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(b"just text " * 1000)
    (tmp_path / "blobs").mkdir()
    with pytest.raises(FormatError, match="neither a bootstrap of RAFS v5 or v6"):
        check(tmp_path, "text")
    with pytest.raises(NotFoundError):
        check(tmp_path, "nothing")


@pytest.mark.parametrize(
    "folder", each_vector("v[56]-*", "merge3-*", "empty-*", "deep-*", "parent-*")
)
def test_images_of_the_reference_builder_are_valid(folder: Path) -> None:
    bootstrap = folder / "bootstrap"
    if not bootstrap.exists():
        (bootstrap,) = (folder / "blobs").iterdir()
    report = check_image(bootstrap, BlobFiles(folder / "blobs"), verify=True)
    assert report.faults == []


@pytest.mark.parametrize("folder", each_vector("broken/v*"))
def test_broken_images_end_in_a_clear_fault(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    report, refused = None, ""
    try:
        report = check_image(folder / "bootstrap", BlobFiles(folder / "blobs"), verify=True)
    except NydusError as exc:
        refused = str(exc)
    if report is None:
        assert str(folder) in refused
        assert "\n" not in refused
        return
    if folder.name == "v6-chunk-table-past-eof":  # the image is whole but for the digests
        assert report.is_valid
        assert "chunk table" in caplog.text
        assert report.notices
    else:
        assert not report.is_valid
