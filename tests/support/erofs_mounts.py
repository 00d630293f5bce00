"""EROFS mounted by the kernel itself on plain files, for tests of what we write for it, and of what shows it."""

import ctypes
import errno
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

MS_RDONLY = 1
MNT_DETACH = 2
libc = ctypes.CDLL(None, use_errno=True)


def why_not_erofs() -> str | None:
    """Return why tests of EROFS cannot run on this machine, None if they must.

    Asked of the machine, not of the code under test. In CI a kernel that is new enough must have the module.
    """
    release = tuple(int(part) for part in platform.release().split("-")[0].split(".")[:2])
    if os.geteuid() != 0:
        return "EROFS needs root"
    if release < (6, 12):
        return f"Linux {platform.release()} mounts no EROFS from files, 6.12 does"
    if os.environ.get("CI") != "true" and not _kernel_has_erofs():
        return "this kernel has no EROFS"
    return None


def _kernel_has_erofs() -> bool:
    """Ask for a mount that fails; the kernel loads the module to find that out."""
    libc.mount(b"/nonexistent", b"/", b"erofs", MS_RDONLY, b"")
    return ctypes.get_errno() != errno.ENODEV


def mounts_at(path: Path) -> list[str]:
    """Return the kinds of what is mounted exactly there, from the bottom to the top."""
    lines = [line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return [line[line.index("-") + 1] for line in lines if line[4] == str(path)]


_WHY_NOT = why_not_erofs()
needs_erofs = pytest.mark.skipif(_WHY_NOT is not None, reason=_WHY_NOT or "")


@contextmanager
def erofs(metadata: Path, device: Path | None, mountpoint: Path) -> Iterator[Path]:
    """Mount `metadata` for the length of the block; `device` holds the files' bytes."""
    mountpoint.mkdir()
    options = f"device={device}".encode() if device is not None else b""
    if libc.mount(os.fsencode(metadata), os.fsencode(mountpoint), b"erofs", MS_RDONLY, options):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(metadata))
    try:
        yield mountpoint
    finally:
        libc.umount2(os.fsencode(mountpoint), MNT_DETACH)
