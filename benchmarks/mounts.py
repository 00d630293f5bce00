"""What the kernel says of a mount: its file system, its readahead."""

import os
from pathlib import Path

BDI = Path("/sys/class/bdi")


def file_system(mountpoint: Path) -> str:
    """Return the type of the uppermost file system that is mounted there, without FUSE's subtype."""
    found = ""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split()
        if fields[4].encode().decode("unicode_escape") == str(mountpoint):
            found = fields[fields.index("-", 6) + 1]
    return found.partition(".")[0]


def backing_devices() -> set[str]:
    """Return the names, `major:minor`, of all that has a readahead of its own."""
    return set(os.listdir(BDI))


def device_of(tree: Path) -> str:
    """Return the name of a mount among `backing_devices`."""
    device = os.stat(tree).st_dev
    return f"{os.major(device)}:{os.minor(device)}"


def readahead_kib(device: str) -> int:
    return int((BDI / device / "read_ahead_kb").read_text())


def set_readahead(device: str, kib: int) -> None:
    (BDI / device / "read_ahead_kb").write_text(str(kib))
