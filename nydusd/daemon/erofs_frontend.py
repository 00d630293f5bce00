"""The kernel's EROFS as the door: it reads the metadata itself, and its data from devices that we fill.

What is mounted: EROFS at the mountpoint, and nothing else that anybody sees. A device whose blob is whole in
the cache is the cache file; for the others there is a private FUSE session with one file each, which lives as
long as EROFS has the files open. So the end of the mount is the end of the session, however it came about:
umount, umount -l with a file still open, or the end of the last mount namespace that had it. Without a session
it is told by the mount table and the superblock's own end.

Owns     the EROFS mount and the session.
Callers  daemon/life.py by way of the Frontend protocol, in the trio thread.
Raises   MountError.
Cancel   a cancelled `mount` leaves nothing mounted and no session.
"""

import logging
import os
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import trio

from nydusd.daemon.erofs_layout import Layout
from nydusd.errors import NydusError
from nydusd.kernel import readahead
from nydusd.kernel.device import DeviceFiles
from nydusd.kernel.erofs import ErofsMount
from nydusd.kernel.mount import MountError, MountIdentity
from nydusd.kernel.mount_claim import MountClaim
from nydusd.kernel.session import Session, SessionState
from nydusd.kernel.stats import FsStats, InFlightRequest
from nydusd.kernel.vfs import Stale

log = logging.getLogger(__name__)

ABANDON_LIMIT_S: Final = 5.0


class ErofsState(NamedTuple):
    """What a successor needs besides the session's descriptors. Plain values."""

    mountpoint: str
    device: int  # MountIdentity
    mount_id: int
    is_unique: bool
    superblock: str | None
    devices: tuple[str, ...]  # their names, in order
    whole: tuple[bool, ...]  # those that are cache files
    session: SessionState | None  # None: all are


class ErofsFrontend:
    """One image that the kernel shows. Made by `mount` or `resume`."""

    is_fixed: Final = True

    def __init__(
        self,
        mount: ErofsMount,
        layout: Layout,
        whole: Sequence[bool],
        answering: "_Answering | None",
    ) -> None:
        """`answering`: the session behind the devices that are not `whole`; None: there is none."""
        self._mount = mount
        self._claim = MountClaim(layout.metadata, mount.identity.device)
        self._devices = tuple(device.name for device in layout.devices)
        self._whole = tuple(whole)
        self._answering = answering
        self._stopped = trio.Event()

    @classmethod
    async def mount(
        cls,
        mountpoint: Path,
        layout: Layout,
        stats: FsStats,
        nursery: trio.Nursery,
        *,
        threads: int,
        clones: bool,
    ) -> "ErofsFrontend":
        """Mount at an existing directory; `nursery` serves the devices from now on.

        stats: of the image; they count the READs of its devices. threads, clones: as Session.mount.
        """
        files = [device.cache_path() for device in layout.devices]
        answering: _Answering | None = None
        if None in files:
            session = Session.detached(threads=threads, clones=clones)
            answering = _Answering(session, DeviceFiles(layout.devices, stats))
        try:
            if answering is not None:
                # The kernel opens the devices while it mounts.
                await nursery.start(answering.run)
                readahead.widen(answering.session.connection_id)
            paths = [
                answering.path(index) if answering is not None and file is None else str(file)
                for index, file in enumerate(files)
            ]
            mounted = await ErofsMount.mount(layout.metadata, paths, mountpoint)
        except BaseException:
            if answering is not None:
                await answering.abandon()
            raise
        finally:
            if answering is not None:
                answering.session.drop_path()
        whole = [file is not None for file in files]
        log.info("devices: whole=%d filled=%d", whole.count(True), whole.count(False))
        return cls(mounted, layout, whole, answering)

    @classmethod
    def resume(
        cls, state: ErofsState, fds: Sequence[int], layout: Layout, stats: FsStats
    ) -> "ErofsFrontend":
        """Go on for a predecessor that has stopped or died; `fds` belong to the new frontend.

        Raises MountError if the image has other devices than the mount.
        """
        if state.devices != tuple(device.name for device in layout.devices):
            for fd in fds:
                os.close(fd)
            raise MountError(f"mount of {state.mountpoint}: not of this image, its devices differ")
        for device, is_whole in zip(layout.devices, state.whole, strict=True):
            if (
                is_whole and device.cache_path() is None
            ):  # asked for its lock, which died with its holder
                log.warning("cache file under a mount cannot be locked: device=%s", device.name)
        identity = MountIdentity(state.device, state.mount_id, state.is_unique)
        mounted = ErofsMount(Path(state.mountpoint), identity, state.superblock)
        answering: _Answering | None = None
        if state.session is not None:
            session = Session.resume(state.session, fds)
            answering = _Answering(session, DeviceFiles(layout.devices, stats))
        return cls(mounted, layout, state.whole, answering)

    def state(self) -> ErofsState:
        """Return what a successor needs besides `fds()`."""
        mount, answering = self._mount, self._answering
        return ErofsState(
            str(mount.mountpoint),
            *mount.identity,
            mount.superblock,
            self._devices,
            self._whole,
            None if answering is None else answering.session.state(),
        )

    def fds(self) -> tuple[int, ...]:
        """Return the descriptors that a successor needs; they stay ours."""
        return () if self._answering is None else self._answering.session.fds()

    async def serve(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Return when the mount is gone, or after `stop` when what was begun is answered."""
        answering = self._answering
        if answering is None:
            task_status.started()
            async with trio.open_nursery() as nursery:
                for end in (self._stopped.wait, self._mount.wait_gone):
                    nursery.start_soon(_end, end, nursery.cancel_scope)
            return
        if answering.has_begun:
            task_status.started()
            await answering.over.wait()
        else:
            await answering.run(task_status=task_status)
        if answering.fault is not None:
            raise answering.fault

    async def prime(self) -> None:
        """Nothing: the kernel has read the root's attributes to mount it."""

    def stop(self, *, grace_s: float) -> None:
        """Make `serve` return; READs under way have `grace_s` seconds. The mount stays."""
        self._stopped.set()
        if self._answering is not None:
            self._answering.session.stop(grace_s=grace_s)

    async def invalidate(self, stale: Stale) -> None:
        """Nothing: an EROFS mount never changes."""

    def in_flight(self) -> Sequence[InFlightRequest]:
        """Return the READs of devices that wait for bytes."""
        return () if self._answering is None else self._answering.session.in_flight()

    def unmount(self) -> bool:
        """Take the mount off the tree; tell whether it was still there."""
        return self._mount.unmount()

    def close(self) -> None:
        """Let the session's descriptors go: reads of what the kernel has not cached fail with EIO."""
        self._claim.release()
        if self._answering is not None:
            self._answering.close()


class _Answering:
    """The session behind the devices, from its first request to its last."""

    def __init__(self, session: Session, files: DeviceFiles) -> None:
        self.session = session
        self.over = trio.Event()  # no more requests will come
        self.fault: NydusError | None = None  # that ended it
        self._files = files
        self.has_begun = False  # `run` was called

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until the session ends; a fault before it has begun is raised, a later one kept."""
        self.has_begun = True
        started = _Started(task_status)
        try:
            await self.session.serve(self._files, task_status=started)
        except NydusError as exc:
            if not started.is_told:
                raise
            self.fault = exc
        finally:
            self.over.set()

    def path(self, index: int) -> str:
        """Return the path of a device for mount(2)."""
        return self.session.path(str(index))

    async def abandon(self) -> None:
        """End a session whose files nobody has open; bounded, and whatever happens around us."""
        with trio.CancelScope(deadline=trio.current_time() + ABANDON_LIMIT_S, shield=True):
            if self.has_begun:
                self.session.stop(grace_s=0)
                await self.over.wait()
        self.close()

    def close(self) -> None:
        """End the session."""
        self._files.close()
        self.session.close()


class _Started:
    """Passes on that a task has started, and remembers it."""

    def __init__(self, told: trio.TaskStatus[None]) -> None:
        self._told = told
        self.is_told = False

    def started(self, value: None = None) -> None:
        self.is_told = True
        self._told.started(value)


async def _end(wait: Callable[[], Awaitable[None]], scope: trio.CancelScope) -> None:
    await wait()
    scope.cancel()
