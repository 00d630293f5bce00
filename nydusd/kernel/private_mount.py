"""A FUSE mount that nobody sees: its files are for mount(2) of another file system in this process.

Owns     what `PrivateMount` says, until `drop`.
Callers  kernel/session.py.
Raises   MountError.

fsopen(2) and fsmount(2) make a mount that is in no tree; the descriptor leads to it. Where the kernel has
them not (before 5.2) or a sandbox refuses them, it stands on a fresh directory until it is dropped.
"""

import errno
import os
import shutil
from pathlib import Path

from nydusd.kernel import mount
from nydusd.kernel.fs_context import FsContext
from nydusd.kernel.mount import DEVICE, MAX_READ_BYTES, SOURCE, MountError


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
    import tempfile  # not at every start

    directory = Path(tempfile.mkdtemp(prefix="nydusd-"))
    try:
        return PrivateMount(mount.mount_fuse(directory), mount_fd=None, directory=directory)
    except BaseException:
        directory.rmdir()
        raise


def _fsmount(fuse_fd: int) -> int:
    """Return a descriptor of a new mount's root. Raises OSError."""
    with FsContext("fuse") as context:
        context.set("source", SOURCE)
        context.set("fd", str(fuse_fd))
        context.set("rootmode", "40000")
        context.set("user_id", str(os.geteuid()))
        context.set("group_id", str(os.getegid()))
        context.set("max_read", str(MAX_READ_BYTES))
        for flag in ("default_permissions", "allow_other", "ro"):
            context.set(flag)
        context.create()
        return context.mount()
