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


def erofs_windows() -> set[str]:
    """Return the names of all EROFS mounts on files in BDI: the kernel numbers them by itself."""
    return {name for name in os.listdir(BDI) if name.startswith("erofs-")}


def device_of(tree: Path) -> str:
    """Return the name of any other mount."""
    device = os.stat(tree).st_dev
    return f"{os.major(device)}:{os.minor(device)}"


def fuse_devices(pid: int) -> list[str]:
    """Return the names of the FUSE sessions that a process serves, those that nobody sees included."""
    found: dict[str, None] = {}
    for info in Path(f"/proc/{pid}/fdinfo").iterdir():
        try:
            lines = info.read_text().splitlines()
        except FileNotFoundError:
            continue  # closed since it was listed
        for line in lines:
            if line.startswith("fuse_connection:"):
                found[f"0:{line.split()[1]}"] = None
    return list(found)


def readahead_kib(device: str) -> int:
    return int((BDI / device / "read_ahead_kb").read_text())


def set_readahead(device: str, kib: int) -> None:
    (BDI / device / "read_ahead_kb").write_text(str(kib))
