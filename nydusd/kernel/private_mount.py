"""A FUSE mount that nobody sees: its files are for mount(2) of another file system in this process.

Owns     what `PrivateMount` says, until `drop`.
Callers  kernel/session.py.
Raises   MountError.

fsopen(2) and fsmount(2) make a mount that is in no tree; the descriptor leads to it. Where the kernel has
them not (before 5.2) or a sandbox refuses them, it stands on a fresh directory until it is dropped.
"""

import ctypes
import errno
import os
import shutil
import tempfile
from pathlib import Path
from typing import Final

from nydusd.kernel import mount
from nydusd.kernel.mount import DEVICE, MAX_READ_BYTES, SOURCE, MountError

# System call numbers since 424 are the same for every architecture.
_SYS_FSOPEN: Final = 430
_SYS_FSCONFIG: Final = 431
_SYS_FSMOUNT: Final = 432
_FSOPEN_CLOEXEC: Final = 1
_FSMOUNT_CLOEXEC: Final = 1
_FSCONFIG_SET_FLAG: Final = 0
_FSCONFIG_SET_STRING: Final = 1
_FSCONFIG_CMD_CREATE: Final = 6
_MOUNT_ATTRIBUTES: Final = 0x1 | 0x2 | 0x4 | 0x10  # read-only, nosuid, nodev, noatime

_libc = ctypes.CDLL(None, use_errno=True)


class PrivateMount:
    """One mount and the way to it."""

    def __init__(self, fuse_fd: int, *, mount_fd: int | None, directory: Path | None) -> None:
        """`fuse_fd` is the caller's; of the other two one is given, and is let go by `drop`."""
        self.fuse_fd = fuse_fd
        self._mount_fd = mount_fd
        self._directory = directory

    @property
    def path(self) -> Path:
        """The mount's root."""
        if self._mount_fd is not None:
            return Path(f"/proc/self/fd/{self._mount_fd}")
        if self._directory is None:
            raise MountError("the private mount has been let go")
        return self._directory

    def drop(self) -> None:
        """Let the mount go: it ends with the last of its files that is open. Again is nothing."""
        if self._mount_fd is not None:
            os.close(self._mount_fd)
            self._mount_fd = None
        if self._directory is not None:
            directory, self._directory = self._directory, None
            try:
                mount.detach(directory)
            finally:
                shutil.rmtree(directory, ignore_errors=True)


def mount_privately() -> PrivateMount:
    """Mount a FUSE file system that is in no tree, or for a while in a place that nobody knows."""
    fuse_fd = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        mount_fd = _fsmount(fuse_fd)
    except OSError as exc:
        os.close(fuse_fd)
        if exc.errno in (errno.ENOSYS, errno.EPERM):
            return _mount_on_a_fresh_directory()
        raise MountError(f"detached mount: {exc}") from exc
    return PrivateMount(fuse_fd, mount_fd=mount_fd, directory=None)


def _mount_on_a_fresh_directory() -> PrivateMount:
    directory = Path(tempfile.mkdtemp(prefix="nydusd-"))
    try:
        return PrivateMount(mount.mount_fuse(directory), mount_fd=None, directory=directory)
    except BaseException:
        directory.rmdir()
        raise


def _fsmount(fuse_fd: int) -> int:
    """Return a descriptor of a new mount's root. Raises OSError."""
    context = _call(_SYS_FSOPEN, b"fuse", _FSOPEN_CLOEXEC)
    try:
        for key, value in (
            (b"source", SOURCE.encode()),
            (b"fd", b"%d" % fuse_fd),
            (b"rootmode", b"40000"),
            (b"user_id", b"%d" % os.geteuid()),
            (b"group_id", b"%d" % os.getegid()),
            (b"max_read", b"%d" % MAX_READ_BYTES),
        ):
            _call(_SYS_FSCONFIG, context, _FSCONFIG_SET_STRING, key, value, 0)
        for flag in (b"default_permissions", b"allow_other", b"ro"):
            _call(_SYS_FSCONFIG, context, _FSCONFIG_SET_FLAG, flag, None, 0)
        _call(_SYS_FSCONFIG, context, _FSCONFIG_CMD_CREATE, None, None, 0)
        return _call(_SYS_FSMOUNT, context, _FSMOUNT_CLOEXEC, _MOUNT_ATTRIBUTES)
    finally:
        os.close(context)


def _call(number: int, *arguments: bytes | int | None) -> int:
    """Make a system call; every integer is as wide as a register. Raises OSError."""
    result: int = _libc.syscall(
        ctypes.c_long(number),
        *(ctypes.c_long(a) if isinstance(a, int) else ctypes.c_char_p(a) for a in arguments),
    )
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result
