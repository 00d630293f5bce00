"""What is measured: an image made from this machine's own Debian packages, and an ext4 copy of the same tree."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from nydusd.builder.build import build_image
from nydusd.builder.options import BuildOptions

PACKAGE_LISTS = Path("/var/lib/dpkg/info")
EXT4_SPARE = 1.4  # of the tree's size: inodes, journal, slack


@dataclass(frozen=True)
class Subject:
    """One tree in its three forms."""

    source: Path
    paths: int
    plain_bytes: int
    bootstrap: Path
    blobs: Path
    blob_id: str
    stored_bytes: int


def installed_paths(paths_max: int, bytes_max: int) -> list[str]:
    """Return paths of installed packages, package by package in name order, within the bounds."""
    chosen: dict[str, None] = {}
    size = 0
    for listing in sorted(PACKAGE_LISTS.glob("*.list")):
        if "firmware" in listing.name:  # large, incompressible, and in no image
            continue
        for line in listing.read_text().splitlines():
            if line in ("", "/.") or not os.path.lexists(line):
                continue
            # Packages still say /lib where the machine has a link to usr/lib.
            path = Path(os.path.realpath(os.path.dirname(line))) / os.path.basename(line)
            if str(path) in chosen:
                continue
            if path.is_file() and not path.is_symlink():
                size += path.stat().st_size
            chosen.update(dict.fromkeys([*map(str, reversed(path.parents)), str(path)]))
        if len(chosen) >= paths_max or size >= bytes_max:
            break
    chosen.pop("/", None)
    return sorted(chosen)


def make_subject(folder: Path, paths_max: int, bytes_max: int, fs_version: int = 6) -> Subject:
    """Copy the packages' files into `folder` and build an image of them (zstd, 1 MiB chunks)."""
    source = folder / "source"
    source.mkdir()
    paths = installed_paths(paths_max, bytes_max)
    names = b"\0".join(p.lstrip("/").encode() for p in paths)
    copy = 'tar -C / --no-recursion --null -T - -cf - | tar -C "$1" -xpf -'
    subprocess.run(["sh", "-c", copy, "sh", source], input=names, check=True)
    blobs = folder / "blobs"
    blobs.mkdir()
    result = build_image(source, BuildOptions(fs_version=fs_version), folder / "bootstrap", blobs)
    return Subject(
        source,
        len(paths),
        result.source_bytes,
        folder / "bootstrap",
        blobs,
        result.blob_ids[0],
        result.compressed_size,
    )


@contextmanager
def ext4_copy(subject: Subject, folder: Path) -> Iterator[Path]:
    """Mount an ext4 file system with the same tree for the length of the block."""
    image, mountpoint = folder / "ext4.img", folder / "ext4"
    mountpoint.mkdir()
    size_mib = int(subject.plain_bytes * EXT4_SPARE / 2**20) + subject.paths // 64 + 64
    subprocess.run(["truncate", "-s", f"{size_mib}M", image], check=True)
    subprocess.run(["mkfs.ext4", "-q", "-d", subject.source, image], check=True)
    subprocess.run(["mount", "-o", "loop,ro", image, mountpoint], check=True)
    try:
        yield mountpoint
    finally:
        subprocess.run(["umount", mountpoint], check=True)
        image.unlink()


def remove(folder: Path) -> None:
    """Delete a work folder."""
    shutil.rmtree(folder, ignore_errors=True)
