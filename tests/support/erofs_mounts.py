"""EROFS mounted by the kernel itself on plain files, for tests of what we write for it."""

import ctypes
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

MS_RDONLY = 1
MNT_DETACH = 2
libc = ctypes.CDLL(None, use_errno=True)


def kernel_can() -> bool:
    """EROFS on plain files came with Linux 6.12; the module may not be loaded yet."""
    release = tuple(int(part) for part in platform.release().split("-")[0].split(".")[:2])
    return (
        os.geteuid() == 0
        and release >= (6, 12)
        and "erofs" in Path("/proc/filesystems").read_text()
    )


needs_erofs = pytest.mark.skipif(
    not kernel_can(), reason="needs root and a kernel that mounts EROFS from files (6.12)"
)


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
