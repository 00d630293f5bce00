"""Messages that a FUSE server sends to the kernel on its own account (linux/fuse.h).

Callers  kernel/session.py, the invalidations in worker threads: the kernel may make us wait until a request
         that it has sent us for the same directory is answered.
Raises   OSError; ENOENT means that the kernel does not know the object, ENOTCONN or ENODEV that the
         session is over.
"""

import os
import struct
from typing import Final

_INVAL_INODE: Final = 2
_INVAL_ENTRY: Final = 3
_RESEND: Final = 7
_HEADER: Final = struct.Struct("=IiQ")  # length, code instead of an error, unique 0
_INODE: Final = struct.Struct("=Qqq")  # nodeid, offset, length
_ENTRY: Final = struct.Struct("=QII")  # parent, name length, flags


def invalidate_inode(fuse_fd: int, nodeid: int) -> None:
    """Make the kernel forget an inode's attributes and pages."""
    _send(fuse_fd, _INVAL_INODE, _INODE.pack(nodeid, 0, 0))


def invalidate_entry(fuse_fd: int, parent: int, name: bytes) -> None:
    """Make the kernel forget a name and all that it knows below it."""
    _send(fuse_fd, _INVAL_ENTRY, _ENTRY.pack(parent, len(name), 0) + name + b"\0")


def resend(fuse_fd: int) -> None:
    """Have the kernel send again, as `wire.RESENT`, all requests that were read and not answered."""
    _send(fuse_fd, _RESEND, b"")


def _send(fuse_fd: int, code: int, message: bytes) -> None:
    os.write(fuse_fd, _HEADER.pack(_HEADER.size + len(message), code, 0) + message)
