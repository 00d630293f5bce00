"""fsopen(2) and what belongs to it: a mount is made in steps, and shown to nobody before it is right.

Owns     the context's descriptor while it is being configured; mounts are returned as descriptors, which
         are the caller's.
Callers  kernel/private_mount.py; kernel/erofs.py, in worker threads: `create` may wait for whoever serves what
         is being mounted.
Raises   OSError with the kernel's errno, and with its own words where it has any.

Unlike mount(2) there is no page that all options must fit into, and no comma between them.
"""

import ctypes
import os
from types import TracebackType
from typing import Final, Self

# System call numbers since 424 are the same for every architecture.
_SYS_MOVE_MOUNT: Final = 429
_SYS_FSOPEN: Final = 430
_SYS_FSCONFIG: Final = 431
_SYS_FSMOUNT: Final = 432
# linux/mount.h
_FSOPEN_CLOEXEC: Final = 1
_FSCONFIG_SET_FLAG: Final = 0
_FSCONFIG_SET_STRING: Final = 1
_FSCONFIG_CMD_CREATE: Final = 6
_FSMOUNT_CLOEXEC: Final = 1
_MOVE_MOUNT_F_EMPTY_PATH: Final = 4
_AT_FDCWD: Final = -100
ATTRIBUTES: Final = 0x1 | 0x2 | 0x4 | 0x10  # read-only, nosuid, nodev, noatime

VALUE_MAX_BYTES: Final = 255  # of a string option, the source included
_MESSAGE_MAX_BYTES: Final = 4096
_MESSAGES_MAX: Final = 16

_libc = ctypes.CDLL(None, use_errno=True)


class FsContext:
    """A file system that is being set up."""

    def __init__(self, kind: str) -> None:
        """Begin with file system type `kind`; the kernel loads its module if need be."""
        self._fd = _call(_SYS_FSOPEN, kind.encode(), _FSOPEN_CLOEXEC)

    def __enter__(self) -> Self:
        """Return the context."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Let the context go; a mount that was made of it stays."""
        os.close(self._fd)

    def set(self, key: str, value: str | None = None) -> None:
        """Set an option, or without a value a flag. The same key again adds, as the type has it."""
        if value is None:
            self._configure(_FSCONFIG_SET_FLAG, key.encode(), None)
        else:
            self._configure(_FSCONFIG_SET_STRING, key.encode(), os.fsencode(value))

    def create(self) -> None:
        """Read the superblock."""
        self._configure(_FSCONFIG_CMD_CREATE, None, None)

    def mount(self) -> int:
        """Return a descriptor of the new mount's root, which is in no tree: `attach` puts it there."""
        return _call(_SYS_FSMOUNT, self._fd, _FSMOUNT_CLOEXEC, ATTRIBUTES)

    def _configure(self, command: int, key: bytes | None, value: bytes | None) -> None:
        try:
            _call(_SYS_FSCONFIG, self._fd, command, key, value, 0)
        except OSError as exc:
            words = self._messages()
            raise OSError(
                exc.errno, f"{exc.strerror} ({words})" if words else exc.strerror
            ) from exc

    def _messages(self) -> str:
        """Return what the kernel says of the failure: lines of one letter, a blank and text."""
        lines = []
        for _ in range(_MESSAGES_MAX):
            try:
                line = os.read(self._fd, _MESSAGE_MAX_BYTES)
            except OSError:  # ENODATA: no more
                break
            lines.append(line[2:].strip().decode("utf-8", "backslashreplace"))
        return "; ".join(lines)


def attach(mount_fd: int, mountpoint: str) -> None:
    """Put a mount that is in no tree on top of `mountpoint`."""
    _call(
        _SYS_MOVE_MOUNT,
        mount_fd,
        b"",
        _AT_FDCWD,
        os.fsencode(mountpoint),
        _MOVE_MOUNT_F_EMPTY_PATH,
    )


def _call(number: int, *arguments: bytes | int | None) -> int:
    """Make a system call; every integer is as wide as a register."""
    result: int = _libc.syscall(
        ctypes.c_long(number),
        *(ctypes.c_long(a) if isinstance(a, int) else ctypes.c_char_p(a) for a in arguments),
    )
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result
