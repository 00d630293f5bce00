"""The kernel's own EROFS shows old images through metadata made for them: every path, attribute and byte."""

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from nydusd.blob.model import Codec
from nydusd.builder.build import build_image
from nydusd.builder.options import BuildOptions
from nydusd.rafs.bootstrap import open_bootstrap
from nydusd.rafs.erofs_from_v5 import ErofsImage, lay_out
from nydusd.rafs.v5 import BootstrapV5, open_v5
from nydusd.storage.synthesised import synthesise
from nydusd.units import GIB, KIB, MIB
from tests.support.erofs_from_v5 import NOW_S, write_device
from tests.support.erofs_mounts import MNT_DETACH, MS_RDONLY, erofs, libc, needs_erofs
from tests.support.image_trees import folder_tree
from tests.support.mounted_tree import walk
from tests.support.mounts import is_mounted, temporary_mountpoint, wait_until
from tests.support.rafs_v5_image import Node, directory, make_image, regular
from tests.support.source_trees import write_tree
from tests.support.tree import quote
from tests.support.vectors import description, each_vector, manifest, vector

pytestmark = needs_erofs


def open_image(path: Path, extracted_from: str | None = None) -> BootstrapV5:
    bootstrap = open_bootstrap(path, extracted_from=extracted_from)
    assert isinstance(bootstrap, BootstrapV5)
    return bootstrap


def lay_out_files(
    bootstrap: BootstrapV5, blobs: list[bytes], folder: Path
) -> tuple[Path, Path | None]:
    """Write metadata and device; return their paths as `erofs` wants them."""
    image = lay_out(bootstrap, NOW_S)
    (folder / "metadata").write_bytes(image.metadata)
    write_device(image, bootstrap, blobs, folder / "device")
    fsck(folder / "metadata", folder / "device", image)
    return folder / "metadata", folder / "device" if image.device_blocks else None


def fsck(metadata: Path, device: Path, image: ErofsImage) -> None:
    """Have erofs-utils look at it, too, where it is installed."""
    tool = shutil.which("fsck.erofs")
    if tool is not None:
        devices = [f"--device={device}"] if image.device_blocks else []
        done = subprocess.run([tool, *devices, metadata], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("chunk_size", [4 * KIB, 64 * KIB, 16 * MIB])
@pytest.mark.parametrize("aligned", [False, True])
def test_the_kernel_shows_the_folder_that_the_image_was_made_of(
    tmp_path: Path, chunk_size: int, aligned: bool
) -> None:
    source = write_tree(tmp_path / "source")
    options = BuildOptions(
        codec=Codec.LZ4_BLOCK, chunk_size=chunk_size, fs_version=5, aligned_chunk=aligned
    )
    build_image(source, options, tmp_path / "boot", tmp_path / "blobs")
    bootstrap = open_image(tmp_path / "boot")
    blobs = [(tmp_path / "blobs" / blob.blob_id).read_bytes() for blob in bootstrap.blobs]
    with erofs(*lay_out_files(bootstrap, blobs, tmp_path), tmp_path / "mnt") as mounted:
        assert folder_tree(mounted) == folder_tree(source)
        assert (mounted / "contents").stat().st_ino == (mounted / "contents").stat().st_ino
    bootstrap.close()


def shows_start(status: os.stat_result) -> bool:
    """The reference shows its own start where the image has second 0; we keep nanoseconds of second 0."""
    return status.st_mtime_ns == NOW_S * 10**9 or 0 <= status.st_mtime_ns < 10**9


@pytest.mark.parametrize("expected", each_vector("*v5*/expected.jsonl*"))
def test_the_kernel_shows_what_the_reference_showed(expected: Path, tmp_path: Path) -> None:
    folder = expected.parent
    source = Path(description(folder).get("mount_source") or "bootstrap")
    if source.name == "bootstrap":
        bootstrap = open_image(folder / source)
    else:  # a blob that contains its bootstrap
        bootstrap = open_image(folder / "image.boot", source.name)
    blobs = [(folder / "blobs" / blob.blob_id).read_bytes() for blob in bootstrap.blobs]
    wanted = manifest(folder / "expected.jsonl")
    with erofs(*lay_out_files(bootstrap, blobs, tmp_path), tmp_path / "mnt") as mounted:
        found = walk(os.fsencode(mounted), shows_start)
        contents = folder_tree(mounted)
    assert found.keys() == wanted.keys()
    for path, record in wanted.items():
        # Inode numbers and the blocks that a file takes are EROFS's own.
        keys = record.keys() - {"sha256", "loose", "ino", "blocks"}
        assert {key: found[path].get(key) for key in keys} == {key: record[key] for key in keys}
    for raw, record in contents.items():
        assert record.get("sha256") == wanted[quote(raw)].get("sha256")
    bootstrap.close()


def test_names_of_one_file_are_one_inode(tmp_path: Path) -> None:
    folder = vector("v5-lz4-blake3-1m")
    bootstrap = open_image(folder / "bootstrap")
    blobs = [(folder / "blobs" / blob.blob_id).read_bytes() for blob in bootstrap.blobs]
    wanted = manifest(folder / "expected.jsonl")
    with erofs(*lay_out_files(bootstrap, blobs, tmp_path), tmp_path / "mnt") as mounted:
        found = walk(os.fsencode(mounted), shows_start)
    groups: dict[int, set[str]] = {}
    shown: dict[int, set[str]] = {}
    for path, record in wanted.items():
        groups.setdefault(record["ino"], set()).add(path)
        shown.setdefault(found[path]["ino"], set()).add(path)
    assert sorted(map(sorted, shown.values())) == sorted(map(sorted, groups.values()))
    bootstrap.close()


def test_a_root_with_more_entries_than_nids_fit_its_field_is_mounted(tmp_path: Path) -> None:
    # 16 bits of 32 bytes: the root must lie in the first 2 MiB, which these inodes alone would fill.
    names = [f"{number:06}".encode() for number in range(30_000)]
    made = make_image(directory(b"/", *(regular(name) for name in names)))
    bootstrap = open_v5(made.bootstrap, "boot")
    with erofs(*lay_out_files(bootstrap, [made.blob], tmp_path), tmp_path / "mnt") as mounted:
        assert sorted(os.listdir(os.fsencode(mounted))) == names
        assert stat.S_ISREG((mounted / "029999").stat().st_mode)


def test_a_file_of_more_than_4_gib_is_read_at_both_ends(tmp_path: Path) -> None:
    chunk = 16 * MIB
    repeats = 5 * GIB // chunk
    made = make_image(
        directory(b"/", regular(b"huge", b"begin".ljust(chunk, b"a") + b"end".ljust(100, b"z"))),
        chunk_size=chunk,
    )
    bootstrap = open_v5(stretched(made.bootstrap, made.node(b"huge"), repeats), "boot")
    with erofs(*lay_out_files(bootstrap, [made.blob], tmp_path), tmp_path / "mnt") as mounted:
        size = repeats * chunk + 100
        assert (mounted / "huge").stat().st_size == size
        with (mounted / "huge").open("rb") as file:
            for offset, wanted in (
                (0, b"begin"),
                (4 * GIB, b"begin"),
                (4 * GIB - 3, b"aaabegin"),
                (repeats * chunk - 2, b"aaend"),
                (size - 2, b"zz"),
            ):
                file.seek(offset)
                assert file.read(len(wanted)) == wanted


def stretched(bootstrap: bytes, node: Node, repeats: int) -> bytes:
    """Return a bootstrap whose last inode, of two chunks, has its first chunk `repeats` times."""
    from nydusd.rafs.layout_v5 import CHUNK, CHUNK_BYTES, INODE

    start = len(bootstrap) - 2 * CHUNK_BYTES
    first, last = (CHUNK.read(bootstrap, start + at * CHUNK_BYTES) for at in range(2))
    step = first.uncompressed_size
    out = bytearray(bootstrap[:start])
    for position in range(repeats):
        out += CHUNK.pack(first._replace(file_offset=position * step))
    out += CHUNK.pack(last._replace(file_offset=repeats * step))
    record = INODE.read(bootstrap, node.position)
    size = repeats * step + last.uncompressed_size
    INODE.pack_into(out, node.position, record._replace(i_size=size, i_child_count=repeats + 1))
    return bytes(out)


# ---- the daemon -----------------------------------------------------------------------------------


@contextmanager
def daemon(folder: Path, mountpoint: Path) -> Iterator[Path]:
    """A nydusd that shows the v5 image in `folder` through EROFS; ends by SIGTERM with status 0."""
    config = {
        "device": {
            "backend": {"type": "localfs", "config": {"dir": str(folder / "blobs")}},
            "cache": {"type": "blobcache", "config": {"work_dir": str(folder / "cache")}},
        },
        "mode": "direct",
    }
    (folder / "config.json").write_text(json.dumps(config))
    root = Path(__file__).parents[2]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "nydusd.cli.nydusd", "fuse", "--frontend", "erofs",
             "--config", folder / "config.json", "--bootstrap", folder / "boot",
             "--mountpoint", mountpoint, "--apisock", folder / "api.sock"],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            env=os.environ | {"PYTHONPATH": str(root)},
        )  # fmt: skip
    try:
        wait_until(
            lambda: is_mounted(mountpoint) or process.poll() is not None, "the image is mounted"
        )
        assert process.poll() is None, (folder / "log").read_text()
        assert kind_of_mount(mountpoint) == "erofs", (folder / "log").read_text()
        yield mountpoint
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait(30)
        libc.umount2(os.fsencode(mountpoint), MNT_DETACH)


def kind_of_mount(mountpoint: Path) -> str:
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    found = [
        line.split(" - ")[1].split()[0] for line in lines if line.split()[4] == str(mountpoint)
    ]
    return found[-1] if found else "none"


def test_the_daemon_shows_an_old_image_through_erofs_cold_warm_and_after_damage(
    tmp_path: Path,
) -> None:
    source = write_tree(tmp_path / "source", entries=300)
    options = BuildOptions(codec=Codec.ZSTD, chunk_size=64 * KIB, fs_version=5)
    build_image(source, options, tmp_path / "boot", tmp_path / "blobs")
    wanted = folder_tree(source)
    with temporary_mountpoint() as mountpoint:
        with daemon(tmp_path, mountpoint) as mounted:
            assert folder_tree(mounted) == wanted
        (kept,) = (tmp_path / "cache").glob("*.erofs")
        good = kept.stat()
        with daemon(tmp_path, mountpoint) as mounted:
            assert folder_tree(mounted) == wanted
        assert kept.stat().st_ino == good.st_ino
        with kept.open("r+b") as file:
            file.seek(good.st_size // 2)
            file.write(b"damage")
        with daemon(tmp_path, mountpoint) as mounted:
            assert folder_tree(mounted) == wanted
        assert kept.stat().st_ino != good.st_ino


@pytest.mark.parametrize("fault", ["full", "read-only"])
def test_a_disk_that_takes_no_metadata_leaves_no_trace(
    tmp_path: Path, fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    made = make_image(directory(b"/", *(regular(b"%04d" % number) for number in range(1000))))
    disk = tmp_path / "disk"
    disk.mkdir()
    flags = MS_RDONLY if fault == "read-only" else 0
    assert libc.mount(b"none", os.fsencode(disk), b"tmpfs", flags, b"size=64k") == 0
    try:
        assert synthesise(open_v5(made.bootstrap, "boot"), disk, []) is None
        assert list(disk.iterdir()) == []
    finally:
        libc.umount2(os.fsencode(disk), MNT_DETACH)
    assert "metadata is not kept" in caplog.text
