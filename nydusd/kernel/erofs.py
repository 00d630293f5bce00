"""EROFS mounts: the kernel reads an image's metadata itself and its data from flat devices (design §2).

Owns     the mount it made, by identity: it is never confused with another one on the same path.
Callers  daemon/erofs_frontend.py, in the trio thread; `_make` runs in a worker thread, because the kernel
         opens the devices meanwhile, which may be files that this process serves.
Raises   MountError.
Cancel   `mount` gives up after MOUNT_TIMEOUT_S or when cancelled. The thread then ends by itself once
         the kernel lets it go, at the latest with the session behind the devices, and mounts nothing.

A device must have every byte of the image's address space. Where one fails in the middle of what EROFS asks for
at once, all of that is EIO and is asked for again by the next reader: a folio, which may be 128 KiB, is lost as a
whole, and nothing is filled with zeros (Linux 6.18; tests/faults/test_erofs_bad_parts.py).
"""

import contextlib
import errno
import fcntl
import logging
import os
import re
import select
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import trio

from nydusd.kernel import mount as mounts
from nydusd.kernel.fs_context import VALUE_MAX_BYTES, FsContext, attach
from nydusd.kernel.mount import MountError, MountIdentity

log = logging.getLogger(__name__)

KIND: Final = "erofs"
KERNEL_OLDEST: Final = (
    6,
    12,
)  # the first that mounts EROFS from plain files, without a loop device
MOUNT_TIMEOUT_S: Final = (
    20.0  # opening devices and reading the superblock: milliseconds, but for a stalled disk
)

# Not among the options, because measured or because their defaults are what an image needs:
# - directio: would save the device's own pages, but EROFS then asks for every small file by itself. `tar`
#   of 54,000 files took three times as long (6.0 s against 1.8 s).
# - user_xattr, acl: on by default. An ACL in an image then decides as on any other file system.
# - cache_strategy: for compressed EROFS; ours never is.
_OPTIONS: Final = ("ro",)

# Readahead of an EROFS mount only decides how much it asks of the device at once; what is read ahead from
# there is the device's to decide (session.py). The kernel's default, 128 KiB, did as well as 1 MiB for a
# sequential reader (1.2 to 1.3 GB/s either way), and asks for less that nobody wants. So it stays.

# The kernel wants a file that it can read page by page itself; those of tmpfs and overlayfs are not.
NO_FILE_MOUNT: Final = "the kernel mounts no file of that file system"

_MOUNTS: Final = Path("/proc/self/mountinfo")
_NAMES: Final = Path("/sys/fs/erofs")  # one directory per superblock, for as long as it lives
_NAME_PREFIX: Final = "erofs-"
_LOCK_TRIES: Final = 20
_LOCK_PAUSE_S: Final = 0.01
SUPERBLOCK_POLL_S: Final = 0.5


@dataclass(frozen=True, slots=True)
class _Made:
    """A mount that is in no tree yet."""

    fd: int
    superblock: str | None


class ErofsMount:
    """One EROFS mount of this process."""

    def __init__(self, mountpoint: Path, identity: MountIdentity, superblock: str | None) -> None:
        """Speak for a mount that stands at `mountpoint`.

        superblock: its name in sysfs, by which its end is noticed; None: not known.
        """
        self.mountpoint = mountpoint
        self.identity = identity
        self.superblock = superblock

    @classmethod
    async def mount(cls, metadata: Path, devices: Sequence[str], mountpoint: Path) -> "ErofsMount":
        """Mount `metadata`, whose data is in `devices` (paths, in the order of its device table).

        Nothing is seen at `mountpoint` before all of it works.
        """
        _check_values(metadata, devices)
        handover = _Handover()
        try:
            with trio.fail_after(MOUNT_TIMEOUT_S):
                made = await trio.to_thread.run_sync(
                    _make, str(metadata), tuple(devices), handover, abandon_on_cancel=True
                )
        except trio.TooSlowError as exc:
            handover.abandon()
            raise MountError(f"mount of {metadata}: not in {MOUNT_TIMEOUT_S:.0f} s") from exc
        except OSError as exc:
            words = NO_FILE_MOUNT if exc.errno == errno.ENOTBLK else exc.strerror
            raise MountError(f"EROFS mount of {metadata}: {words}") from exc
        except BaseException:
            handover.abandon()
            raise
        try:
            identity = mounts.identify(Path(f"/proc/self/fd/{made.fd}"))
            attach(made.fd, str(mountpoint))
        except OSError as exc:
            raise MountError(f"mount at {mountpoint}: {exc.strerror}") from exc
        finally:
            os.close(made.fd)
        log.info("mounted mountpoint=%s source=%s type=%s", mountpoint, metadata, KIND)
        return cls(mountpoint, identity, made.superblock)

    def is_listed(self) -> bool:
        """Tell whether the mount is still in our mount namespace's tree, wherever it was moved to."""
        wanted = b"%d:%d" % divmod(self.identity.device, 1 << 20)
        with _MOUNTS.open("rb") as lines:
            return any(line.split(b" ", 3)[2] == wanted for line in lines)

    async def wait_gone(self) -> None:
        """Return when nobody can reach the mount any more: unmounted everywhere, the last file closed.

        Where its superblock's name is not known: when it is not in our tree any more.
        """
        await self._wait_unlisted()
        if self.superblock is not None:
            # sysfs tells nobody of its changes.
            while (_NAMES / self.superblock).exists():  # noqa: ASYNC110
                await trio.sleep(SUPERBLOCK_POLL_S)

    async def _wait_unlisted(self) -> None:
        # The kernel reports a change of the mount table as an exceptional condition, which trio does not
        # wait for; an epoll instance that has one is readable.
        with _MOUNTS.open("rb") as table, select.epoll() as changes:  # noqa: ASYNC230  no disk
            changes.register(table, select.EPOLLPRI | select.EPOLLERR)
            while self.is_listed():
                await trio.lowlevel.wait_readable(changes.fileno())
                changes.poll(0)

    def unmount(self) -> bool:
        """Take our mount off its mountpoint if it is still there on top; tell whether it was.

        The devices may be files that this thread serves: nothing here waits for a read of them. EROFS reads
        devices in the thread that asks, through their page cache; a reader who was killed has let go.
        """
        try:
            if mounts.identify(self.mountpoint) != self.identity:
                return False
        except MountError:
            return False  # the path is gone, and our mount with it
        mounts.detach(self.mountpoint)
        log.info("unmounted mountpoint=%s", self.mountpoint)
        return True


def why_not() -> str | None:
    """Return why this process cannot mount EROFS from files at all; None if it can try."""
    release = os.uname().release
    numbers = re.match(r"(\d+)\.(\d+)", release)
    if numbers is None or (int(numbers[1]), int(numbers[2])) < KERNEL_OLDEST:
        return f"Linux {release} is older than {'.'.join(map(str, KERNEL_OLDEST))}"
    try:
        with FsContext(KIND):
            pass
    except PermissionError:
        return "no privilege to mount"
    except OSError as exc:
        return f"the kernel has no EROFS: {exc.strerror}"
    return None


class _Handover:
    """Who closes a mount that was made for a caller who has left: decided once, under a lock."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._made: _Made | None = None
        self._is_abandoned = False

    def abandon(self) -> None:
        """The caller leaves; what is made, or will be, is closed."""
        with self._lock:
            self._is_abandoned = True
            if self._made is not None:
                os.close(self._made.fd)

    def give(self, made: _Made) -> _Made:
        """Leave a mount to the caller, if he is still there."""
        with self._lock:
            if self._is_abandoned:
                os.close(made.fd)
            else:
                self._made = made
        return made


def _make(source: str, devices: Sequence[str], handover: _Handover) -> _Made:
    """Make a mount that is in no tree. Raises OSError."""
    with FsContext(KIND) as context:
        context.set("source", source)
        for device in devices:
            context.set("device", device)
        for flag in _OPTIONS:
            context.set(flag)
        with _alone():
            before = _superblocks()
            context.create()
            new = _superblocks() - before
        return handover.give(_Made(context.mount(), new.pop() if len(new) == 1 else None))


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Keep other daemons from making superblocks meanwhile, so that the new name is ours. Not for long."""
    try:
        fd = os.open(_NAMES, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:  # no sysfs: no names either
        yield
        return
    try:
        for _ in range(_LOCK_TRIES):
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                time.sleep(_LOCK_PAUSE_S)
            else:
                break
        yield
    finally:
        os.close(fd)


def _superblocks() -> set[str]:
    try:
        return {path.name for path in _NAMES.iterdir() if path.name.startswith(_NAME_PREFIX)}
    except OSError:
        return set()


def _check_values(metadata: Path, devices: Sequence[str]) -> None:
    """Refuse what fsconfig(2) would refuse without a word."""
    for path in (str(metadata), *devices):
        if len(os.fsencode(path)) > VALUE_MAX_BYTES:
            raise MountError(f"path of more than {VALUE_MAX_BYTES} bytes: {path[:80]}…")
