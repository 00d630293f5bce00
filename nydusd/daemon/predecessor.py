"""What an earlier daemon left on our mountpoint and our socket path (spec api §8.3, §8.4).

Callers  daemon/life.py, once, before anything is mounted.
Raises   ConfigError if another daemon lives at the socket; MountError if a dead mount cannot be taken away.

A daemon that was killed leaves its socket file, which refuses connections, and its mount. A FUSE mount then
answers ENOTCONN, or nothing at all as long as a supervisor holds the session's descriptor. An EROFS mount looks
alive: names and cached pages are the kernel's, only what would have to be fetched is EIO. There the socket tells,
or, without one, that no process claims a mount of just the image that is to be mounted (kernel/mount_claim.py).
Taking such a session over is not built yet: until then the dead mount is detached and replaced.
"""

import errno
import logging
import os
import re
from pathlib import Path
from typing import Final, NamedTuple

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


_OCTAL: Final = re.compile(rb"\\([0-7]{3})")


class _Top(NamedTuple):
    """The mount that `mountpoint` leads to."""

    kind: FrontendKind
    device: int  # as kernel/mount.py numbers it
    source: Path


async def clear(mountpoint: Path, apisock: Path | None, bootstrap: Path | None) -> None:
    """Take away the dead mounts of predecessors at `mountpoint`; a living mount is left alone.

    bootstrap: of the image that is to be mounted there, if any.
    """
    peer = Peer.ABSENT if apisock is None else probe(apisock)
    if peer is Peer.ALIVE:
        raise ConfigError(f"apisock: another process answers on {apisock}")
    for _ in range(STACK_MAX):
        top = _top(mountpoint)
        if top is None:
            return
        # A socket that refuses beside a mount is how a crashed daemon is told (spec api §9); without
        # a socket only the kernel's own word counts.
        if peer is not Peer.STALE and not await _has_no_server(mountpoint, top, bootstrap):
            return
        log.warning("a dead predecessor's mount is replaced: mountpoint=%s", mountpoint)
        mount.detach(mountpoint)


def _top(mountpoint: Path) -> _Top | None:
    """Return what is on top at `mountpoint` if a daemon like this one may have mounted it.

    An EROFS mount of ours has a plain file as its source, others a block device.
    """
    escaped = _ESCAPED.sub(lambda byte: b"\\%03o" % byte[0][0], os.fsencode(mountpoint))
    with Path("/proc/self/mountinfo").open("rb") as lines:
        mounts = [line.split() for line in lines]
    there = [fields for fields in mounts if fields[4] == escaped]
    if not there:
        return None
    fields = there[-1]
    kind, source = fields[fields.index(b"-") + 1 :][:2]
    major, _, minor = fields[2].partition(b":")
    device = int(major) << 20 | int(minor)
    path = Path(os.fsdecode(_OCTAL.sub(lambda code: bytes([int(code[1], 8)]), source)))
    if kind.partition(b".")[0] == b"fuse" and source == mount.SOURCE.encode():
        return _Top(FrontendKind.FUSE, device, path)
    if kind == b"erofs" and not source.startswith(b"/dev/"):
        return _Top(FrontendKind.EROFS, device, path)
    return None


async def _has_no_server(mountpoint: Path, top: _Top, bootstrap: Path | None) -> bool:
    """Tell whether a mount is one that nobody serves any more."""
    if top.kind is FrontendKind.FUSE:
        return await _refuses(mountpoint)
    from nydusd.kernel.mount_claim import is_unclaimed  # seldom wanted

    return _shows(top.source, bootstrap) and is_unclaimed(top.source, top.device)


def _shows(metadata: Path, bootstrap: Path | None) -> bool:
    """Tell whether EROFS metadata is a bootstrap, or was made by us of some bootstrap."""
    try:
        if bootstrap is not None and metadata.samefile(bootstrap):
            return True
        from nydusd.storage.synthesised import is_synthesised

        return is_synthesised(metadata)
    except OSError:
        return False


async def _refuses(mountpoint: Path) -> bool:
    """Tell whether the kernel has ended the session behind a FUSE mount.

    By statvfs: the kernel answers stat from its cache for ever, but passes this on. It waits where a
    living server is slow, or where somebody still holds the session's descriptor: no proof of death.
    """
    with trio.move_on_after(STATVFS_TIMEOUT_S):
        try:
            await trio.to_thread.run_sync(os.statvfs, mountpoint, abandon_on_cancel=True)
        except OSError as exc:
            return exc.errno in (errno.ENOTCONN, errno.ECONNABORTED)
    return False
