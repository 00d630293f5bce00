"""The system calls around a FUSE mount: mount(2), umount2(2), statx(2), and /dev/fuse.

Owns     nothing; callers own the descriptors they get.
Callers  kernel/session.py; daemon/ for `is_listed`. Everything is synchronous and returns at once.
Raises   MountError, which names the call and the mountpoint.
"""

import ctypes
import fcntl
import logging
import os
import re
import socket
import stat
import struct
from pathlib import Path
from typing import Final, NamedTuple

from nydusd.errors import NydusError

DEVICE: Final = "/dev/fuse"
SOURCE: Final = "rafs"
# As the reference has it (spec fs-behaviour §1): 256 pages, which bound a read, and one more.
MAX_READ_BYTES: Final = 256 * 4096 + 4096
FUSERMOUNT: Final = "fusermount3"
FUSERMOUNT_TIMEOUT_S: Final = 10.0

# mount(2) and umount2(2), linux/mount.h
_MS_RDONLY: Final = 1
_MS_NOSUID: Final = 2
_MS_NODEV: Final = 4
_MS_NOATIME: Final = 1024
_MNT_DETACH: Final = 2
_UMOUNT_NOFOLLOW: Final = 8
# statx(2), linux/stat.h
_AT_FDCWD: Final = -100
_AT_NO_AUTOMOUNT: Final = 0x800
_AT_STATX_DONT_SYNC: Final = 0x4000
_STATX_BASIC_AND_BIRTH: Final = 0xFFF
_STATX_MNT_ID: Final = 0x1000
_STATX_MNT_ID_UNIQUE: Final = 0x4000
_STATX_BYTES: Final = 256
_FUSE_DEV_IOC_CLONE: Final = 0x8004E500  # _IOR(229, 0, uint32_t)

log = logging.getLogger(__name__)
_libc = ctypes.CDLL(None, use_errno=True)


class MountError(NydusError):
    """The kernel did not mount, or ended the session in a way that is no unmount."""


class MountIdentity(NamedTuple):
    """Which mount a path leads to, told without asking whoever serves it."""

    device: int  # st_dev as the FUSE connection's directory is named: major << 20 | minor
    mount_id: int
    unique: bool  # never given again (Linux 6.8); else a later mount may get the same numbers


def mount_fuse(mountpoint: Path) -> int:
    """Mount a FUSE file system on an existing directory and return its /dev/fuse descriptor.

    The descriptor does not block: a request can be withdrawn between poll and read, and read must not
    wait for the next one then. Unprivileged callers go through fusermount3.
    """
    try:
        kind = stat.S_IFMT(mountpoint.stat().st_mode)
    except OSError as exc:
        raise MountError(f"mountpoint {mountpoint}: {exc.strerror}") from exc
    if not stat.S_ISDIR(kind):
        raise MountError(f"mountpoint {mountpoint} is no directory")
    try:
        return _mount_directly(mountpoint, kind)
    except PermissionError:
        return _mount_by_fusermount(mountpoint)
    except OSError as exc:
        raise MountError(f"mount of {mountpoint}: {exc}") from exc


def with_clones(fuse_fd: int, count: int) -> list[int]:
    """Return `fuse_fd` and clones of it, `count` in all; fewer where the kernel makes none (before 4.2).

    Each is a queue of its own for what is read and not yet answered, with a lock of its own.
    """
    fds = [fuse_fd]
    try:
        while len(fds) < count:
            fds.append(_clone(fuse_fd))
    except OSError as exc:
        log.debug("no more clones of /dev/fuse: count=%d reason=%s", len(fds), exc.strerror)
    return fds


def _clone(fuse_fd: int) -> int:
    clone = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.ioctl(clone, _FUSE_DEV_IOC_CLONE, struct.pack("=I", fuse_fd))
    except OSError:
        os.close(clone)
        raise
    return clone


def _mount_directly(mountpoint: Path, kind: int) -> int:
    fd = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        options = (
            f"default_permissions,allow_other,fd={fd},rootmode={kind:o},user_id={os.geteuid()},"
            f"group_id={os.getegid()},max_read={MAX_READ_BYTES}"
        )
        flags = _MS_NOSUID | _MS_NODEV | _MS_NOATIME | _MS_RDONLY
        failed = _libc.mount(
            SOURCE.encode(),
            os.fsencode(mountpoint),
            b"fuse",
            ctypes.c_ulong(flags),
            options.encode(),
        )
        if failed:
            _raise_errno(mountpoint)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _mount_by_fusermount(mountpoint: Path) -> int:
    """Let the setuid program mount; it sends the descriptor over the socket named in its environment."""
    import subprocess  # only the unprivileged pay for it

    options = (
        f"fsname={SOURCE},default_permissions,allow_other,max_read={MAX_READ_BYTES},"
        "ro,nosuid,nodev,exec,async,noatime"
    )
    ours, theirs = socket.socketpair()
    with ours, theirs:
        try:
            done = subprocess.run(  # noqa: S603 - a fixed program and our own arguments
                [FUSERMOUNT, "-o", options, "--", mountpoint],
                env={**os.environ, "_FUSE_COMMFD": str(theirs.fileno())},
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=FUSERMOUNT_TIMEOUT_S,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as exc:
            raise MountError(
                f"mount of {mountpoint}: not permitted, and {FUSERMOUNT} failed: {exc}"
            ) from exc
        theirs.close()
        if done.returncode:
            words = done.stderr.decode(errors="replace").strip()
            raise MountError(
                f"mount of {mountpoint}: not permitted, and {FUSERMOUNT} said: {words}"
            )
        _, fds, _, _ = socket.recv_fds(ours, 1, 1)
    if not fds:
        raise MountError(f"mount of {mountpoint}: {FUSERMOUNT} sent no descriptor")
    os.set_inheritable(fds[0], False)
    os.set_blocking(fds[0], False)
    return fds[0]


def identify(path: Path) -> MountIdentity:
    """Return which mount `path` leads to, without a request to whoever serves it."""
    record = _statx(path, _AT_STATX_DONT_SYNC, _STATX_MNT_ID_UNIQUE)
    # struct statx: stx_mask at 0, stx_dev_major at 136, stx_dev_minor at 140, stx_mnt_id at 144.
    mask = ctypes.c_uint32.from_buffer(record, 0).value
    major = ctypes.c_uint32.from_buffer(record, 136).value
    minor = ctypes.c_uint32.from_buffer(record, 140).value
    known = mask & (_STATX_MNT_ID | _STATX_MNT_ID_UNIQUE)
    mount_id = ctypes.c_uint64.from_buffer(record, 144).value if known else 0
    return MountIdentity(major << 20 | minor, mount_id, bool(mask & _STATX_MNT_ID_UNIQUE))


def ask_all_attributes(path: Path) -> None:
    """Make the kernel ask whoever serves `path` for all that a later stat(2) or statx(2) may want.

    That includes the time of birth: stat(1) wants it, and once the kernel has learned that the server has
    none, it answers from its cache.
    """
    _statx(path, 0, _STATX_BASIC_AND_BIRTH)


def _statx(path: Path, flags: int, mask: int) -> "ctypes.Array[ctypes.c_char]":
    record = ctypes.create_string_buffer(_STATX_BYTES)
    failed = _libc.statx(
        _AT_FDCWD, os.fsencode(path), flags | _AT_NO_AUTOMOUNT, ctypes.c_uint(mask), record
    )
    if failed:
        try:
            _raise_errno(path)
        except OSError as exc:
            raise MountError(f"statx of {path}: {exc.strerror}") from exc
    return record


def detach(mountpoint: Path) -> None:
    """Take the mount off the tree at once; open files keep it alive until they are closed."""
    if not _libc.umount2(os.fsencode(mountpoint), _MNT_DETACH | _UMOUNT_NOFOLLOW):
        return
    try:
        _raise_errno(mountpoint)
    except PermissionError:
        _detach_by_fusermount(mountpoint)
    except OSError as exc:
        raise MountError(f"umount of {mountpoint}: {exc.strerror}") from exc


def _detach_by_fusermount(mountpoint: Path) -> None:
    import subprocess  # only the unprivileged pay for it

    try:
        done = subprocess.run(  # noqa: S603 - a fixed program and our own arguments
            [FUSERMOUNT, "--unmount", "--quiet", "--lazy", "--", mountpoint],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=FUSERMOUNT_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise MountError(f"umount of {mountpoint}: not permitted, and {FUSERMOUNT}: {exc}") from exc
    if done.returncode:
        raise MountError(
            f"umount of {mountpoint}: not permitted, and {FUSERMOUNT} ended with {done.returncode}"
        )


def is_listed(mountpoint: Path) -> bool:
    """Tell whether something is mounted exactly there, from the kernel's list: no stat, which can block."""
    wanted = os.fsencode(mountpoint)
    with Path("/proc/self/mountinfo").open("rb") as lines:
        return any(_unescape(line.split(b" ", 5)[4]) == wanted for line in lines)


def _unescape(path: bytes) -> bytes:
    """Undo the octal escapes of /proc/self/mountinfo."""
    return re.sub(rb"\\([0-7]{3})", lambda code: bytes([int(code[1], 8)]), path)


def _raise_errno(path: Path) -> None:
    number = ctypes.get_errno()
    raise OSError(number, os.strerror(number), os.fspath(path))
