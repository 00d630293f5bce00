"""What stat and statfs show of an object, whichever file system it belongs to. Values only."""

from typing import NamedTuple


class Attributes(NamedTuple):
    """What stat shows, but for the inode number that the kernel sees, which is the session's to compose."""

    ino: int  # the file system's own number
    mode: int
    nlink: int
    uid: int
    gid: int
    rdev: int
    size: int
    blocks: int  # 512-byte units
    atime_ns: int
    mtime_ns: int
    ctime_ns: int


class Statfs(NamedTuple):
    """What statfs shows; all other fields are 0 (spec fs-behaviour §11)."""

    block_bytes: int
    name_max_bytes: int
    files: int
