"""What a mount shows, in the terms of the vectors' manifests."""

import os
import stat
from collections.abc import Callable
from typing import Any

from tests.support.tree import quote


def walk(
    place: bytes, is_start: Callable[[os.stat_result], bool], path: bytes = b"/"
) -> dict[str, dict[str, Any]]:
    """Return names, attributes, targets and xattrs below `place`, without contents.

    is_start: tells that a time is none of the image's but that of the mount.
    """
    full = place + path
    status = os.lstat(full)
    found: dict[str, Any] = {
        "path": quote(path),
        "mode": oct(status.st_mode),
        "uid": status.st_uid,
        "gid": status.st_gid,
        "nlink": status.st_nlink,
        "ino": status.st_ino & (1 << 56) - 1,
        "blocks": status.st_blocks,
        "mtime": status.st_mtime_ns // 10**9,
        "mtime_ns": status.st_mtime_ns % 10**9,
    }
    if is_start(status):
        found |= {"mtime": "start", "mtime_ns": 0}
    if stat.S_ISREG(status.st_mode) or stat.S_ISLNK(status.st_mode):
        found["size"] = status.st_size
    if stat.S_ISLNK(status.st_mode):
        found["target"] = quote(os.readlink(full))
    if stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode):
        found["rdev"] = [os.major(status.st_rdev), os.minor(status.st_rdev)]
    try:
        names = sorted(os.listxattr(full, follow_symlinks=False))
    except OSError:
        names = []
    if names:
        found["xattrs"] = {
            name: os.getxattr(full, name, follow_symlinks=False).hex() for name in names
        }
    tree = {found["path"]: found}
    if stat.S_ISDIR(status.st_mode):
        for name in os.listdir(full):
            tree |= walk(place, is_start, path.rstrip(b"/") + b"/" + name)
    return tree
