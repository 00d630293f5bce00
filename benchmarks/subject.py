"""What is measured: an image made from this machine's own Debian packages, and copies of the same tree."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from nydusd.builder.build import build_image
from nydusd.builder.options import BuildOptions

PACKAGE_LISTS = Path("/var/lib/dpkg/info")
START_BYTES = 64 << 20  # the mean means nothing before
EXT4_SPARE = 1.4  # of the tree's size: inodes, journal, slack


class Tree(NamedTuple):
    """A mounted copy, and the file that its bytes come from."""

    path: Path
    store: Path


@dataclass(frozen=True)
class Subject:
    """One tree in its three forms."""

    source: Path
    paths: int
    plain_bytes: int  # of files, hard links once
    bootstrap: Path
    blobs: Path
    blob_id: str
    stored_bytes: int


def installed_paths(paths_max: int, mean_bytes: int) -> list[str]:
    """Return at least `paths_max` paths of installed packages, with files of a mean size as images have.

    Package by package in name order; one that would pull the mean below `mean_bytes` per path or far above
    it is left out: headers and manuals by the thousand, or a compiler, are in no web server's image.
    """
    chosen: dict[str, None] = {}
    left_out: list[str] = []
    size = 0
    for listing in sorted(PACKAGE_LISTS.glob("*.list")):
        if "firmware" in listing.name:  # large, incompressible, and in no image either
            continue
        found, found_bytes = _paths_of(listing)
        new = [path for path in found if path not in chosen]
        mean = (size + found_bytes) / max(len(chosen) + len(new), 1)
        if mean < mean_bytes or (mean > 1.25 * mean_bytes and size > START_BYTES):
            left_out += new
            continue
        chosen.update(dict.fromkeys(new))
        size += found_bytes
        if len(chosen) >= paths_max:
            break
    chosen.update(dict.fromkeys(left_out[: max(paths_max - len(chosen), 0)]))  # a small machine
    chosen.pop("/", None)
    return sorted(chosen)


def _paths_of(listing: Path) -> tuple[list[str], int]:
    """Return a package's paths with their parents, and the bytes of its files."""
    paths: dict[str, None] = {}
    size = 0
    for line in listing.read_text().splitlines():
        if line in ("", "/.") or not os.path.lexists(line):
            continue
        # Packages still say /lib where the machine has a link to usr/lib.
        path = Path(os.path.realpath(os.path.dirname(line))) / os.path.basename(line)
        if path.is_file() and not path.is_symlink() and str(path) not in paths:
            size += path.stat().st_size
        paths.update(dict.fromkeys([*map(str, reversed(path.parents)), str(path)]))
    return list(paths), size


def make_subject(folder: Path, paths_max: int, mean_bytes: int, fs_version: int = 6) -> Subject:
    """Copy the packages' files into `folder` and build an image of them (zstd, 1 MiB chunks)."""
    source = folder / "source"
    source.mkdir()
    paths = installed_paths(paths_max, mean_bytes)
    names = b"\0".join(p.lstrip("/").encode() for p in paths)
    copy = 'tar -C / --no-recursion --null -T - -cf - | tar -C "$1" -xpf -'
    subprocess.run(["sh", "-c", copy, "sh", source], input=names, check=True)
    blobs = folder / "blobs"
    blobs.mkdir()
    result = build_image(source, BuildOptions(fs_version=fs_version), folder / "bootstrap", blobs)
    files = (os.lstat(p) for p in source.rglob("*") if p.is_file() and not p.is_symlink())
    sizes = {found.st_ino: found.st_size for found in files}
    return Subject(
        source,
        len(paths),
        sum(sizes.values()),
        folder / "bootstrap",
        blobs,
        result.blob_ids[0],
        result.compressed_size,
    )


@contextmanager
def ext4_copy(subject: Subject, folder: Path) -> Iterator[Tree]:
    """Mount an ext4 file system with the same tree for the length of the block."""
    image, mountpoint = folder / "ext4.img", folder / "ext4"
    mountpoint.mkdir()
    size_mib = int(subject.plain_bytes * EXT4_SPARE / 2**20) + subject.paths // 64 + 64
    subprocess.run(["truncate", "-s", f"{size_mib}M", image], check=True)
    subprocess.run(["mkfs.ext4", "-q", "-d", subject.source, image], check=True)
    subprocess.run(["mount", "-o", "loop,ro", image, mountpoint], check=True)
    try:
        yield Tree(mountpoint, image)
    finally:
        subprocess.run(["umount", mountpoint], check=True)
        image.unlink()


@contextmanager
def erofsfuse_copy(subject: Subject, folder: Path, program: str) -> Iterator[Tree]:
    """Mount an EROFS image of the same tree, not compressed, with Debian's `erofsfuse` for the block."""
    image, mountpoint = folder / "erofs.img", folder / "erofsfuse"
    mountpoint.mkdir()
    subprocess.run(["mkfs.erofs", image, subject.source], check=True, capture_output=True)
    subprocess.run(
        [program, image, mountpoint], check=True, capture_output=True
    )  # forks when mounted
    try:
        yield Tree(mountpoint, image)
    finally:
        subprocess.run(["umount", mountpoint], check=True)
        image.unlink()
