"""What an earlier daemon left on our mountpoint and our socket path (spec api §8.3, §8.4).

Callers  life.py, once, before anything is mounted.
Raises   ConfigError if another daemon lives at the socket; MountError if a dead mount cannot be taken away.

A daemon that was killed leaves its socket file, which refuses connections, and its mount. A FUSE mount then
answers ENOTCONN, or nothing at all as long as a supervisor holds the session's descriptor. An EROFS mount looks
alive: names and cached pages are the kernel's, only what would have to be fetched is EIO; the socket alone tells.
Taking such a session over is not built yet: until then the dead mount is detached and replaced.
"""

import errno
import logging
import os
import re
from pathlib import Path
from typing import Final

import trio

from nydusd.api.socket_file import Peer, probe
from nydusd.config.model import FrontendKind
from nydusd.errors import ConfigError
from nydusd.kernel import mount

log = logging.getLogger(__name__)

STATVFS_TIMEOUT_S: Final = 1.0
STACK_MAX: Final = 16  # dead mounts on top of each other
_ESCAPED: Final = re.compile(
    rb"[ \t\n\\]"
)  # what /proc/self/mountinfo spells as three octal digits


async def clear(mountpoint: Path, apisock: Path | None) -> None:
    """Take away the dead mounts of predecessors at `mountpoint`; a living mount is left alone."""
    peer = Peer.ABSENT if apisock is None else probe(apisock)
    if peer is Peer.ALIVE:
        raise ConfigError(f"apisock: another process answers on {apisock}")
    for _ in range(STACK_MAX):
        kind = _kind(mountpoint)
        if kind is None:
            return
        # A socket that refuses beside a mount is how a crashed daemon is told (spec api §9); without
        # a socket only the kernel's own word counts.
        if peer is not Peer.STALE and not (
            kind is FrontendKind.FUSE and await _has_no_server(mountpoint)
        ):
            return
        log.warning("a dead predecessor's mount is replaced: mountpoint=%s", mountpoint)
        mount.detach(mountpoint)


def _kind(mountpoint: Path) -> FrontendKind | None:
    """Return by which frontend a daemon like this one shows what is on top at `mountpoint`; None: by none.

    An EROFS mount of ours has a plain file as its source, others a block device.
    """
    escaped = _ESCAPED.sub(lambda byte: b"\\%03o" % byte[0][0], os.fsencode(mountpoint))
    with Path("/proc/self/mountinfo").open("rb") as lines:
        mounts = [line.split() for line in lines]
    there = [fields for fields in mounts if fields[4] == escaped]
    if not there:
        return None
    kind, source = there[-1][there[-1].index(b"-") + 1 :][:2]
    if kind.partition(b".")[0] == b"fuse" and source == mount.SOURCE.encode():
        return FrontendKind.FUSE
    if kind == b"erofs" and not source.startswith(b"/dev/"):
        return FrontendKind.EROFS
    return None


async def _has_no_server(mountpoint: Path) -> bool:
    """Tell whether a mount is one that nobody serves any more.

    By statvfs: the kernel answers stat from its cache for ever, but passes this on. It waits where a
    living server is slow, or where somebody still holds the session's descriptor: no proof of death.
    """
    with trio.move_on_after(STATVFS_TIMEOUT_S):
        try:
            await trio.to_thread.run_sync(os.statvfs, mountpoint, abandon_on_cancel=True)
        except OSError as exc:
            return exc.errno in (errno.ENOTCONN, errno.ECONNABORTED)
    return False
