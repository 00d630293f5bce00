"""Who serves an EROFS mount: told by a lock, for names and cached pages are the kernel's and look alive for ever.

A daemon locks one byte of the metadata file that it mounted, the byte numbered as the mount's device. The lock
ends with the process, however it ends. Numbers of devices are given again only when the mount is gone.

Owns     the descriptor that holds the lock.
Callers  daemon/erofs_frontend.py, daemon/predecessor.py. Everything is synchronous and returns at once.
Raises   nothing: where files cannot be locked, nobody can be told from the dead.
"""

import fcntl
import logging
import os
import struct
from pathlib import Path
from typing import Final

log = logging.getLogger(__name__)

_FLOCK: Final = struct.Struct("@hhqqi4x")  # struct flock: type, whence, start, length, pid


class MountClaim:
    """Says of one mount, as long as it is held, that this process answers for it."""

    def __init__(self, metadata: Path, device: int) -> None:
        """`device`: the mount's, as kernel/mount.py numbers it."""
        self._fd: int | None = None
        try:
            self._fd = os.open(metadata, os.O_RDONLY | os.O_CLOEXEC)
            fcntl.fcntl(self._fd, fcntl.F_OFD_SETLK, _record(fcntl.F_RDLCK, device))
        except OSError as exc:
            log.debug("mount is not claimed: file=%s reason=%s", metadata, exc.strerror)

    def release(self) -> None:
        """Answer for the mount no more."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


def is_unclaimed(metadata: Path, device: int) -> bool:
    """Tell whether nobody answers for a mount of `metadata`; False also if that cannot be found out."""
    try:
        fd = os.open(metadata, os.O_RDONLY | os.O_CLOEXEC)
        try:
            answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _record(fcntl.F_WRLCK, device))
        finally:
            os.close(fd)
    except OSError:
        return False
    return bool(_FLOCK.unpack(answer)[0] == fcntl.F_UNLCK)


def _record(kind: int, device: int) -> bytes:
    return _FLOCK.pack(kind, os.SEEK_SET, device, 1, 0)
