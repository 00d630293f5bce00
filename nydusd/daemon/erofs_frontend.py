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
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import trio

from nydusd.daemon.erofs_layout import Layout
from nydusd.errors import NydusError
from nydusd.kernel import readahead
from nydusd.kernel.device import DeviceFiles
from nydusd.kernel.erofs import ErofsMount
from nydusd.kernel.session import Session
from nydusd.kernel.stats import FsStats, InFlightRequest
from nydusd.kernel.vfs import Stale

log = logging.getLogger(__name__)


class ErofsFrontend:
    """One image that the kernel shows."""

    def __init__(self, mount: ErofsMount, answering: "_Answering | None") -> None:
        """`answering`: the session behind the devices, which is served already; None: there is none."""
        self._mount = mount
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

        stats: of the image; they count the READs of its devices.
        """
        whole = [device.cache_path() for device in layout.devices]
        answering: _Answering | None = None
        if None in whole:
            session = Session.detached(threads=threads, clones=clones)
            answering = _Answering(session, DeviceFiles(layout.devices, stats))
        try:
            if answering is not None:
                await nursery.start(answering.run)
                readahead.widen(answering.session.connection_id)
            paths = [
                answering.path(index) if answering is not None and path is None else str(path)
                for index, path in enumerate(whole)
            ]
            mounted = await ErofsMount.mount(layout.metadata, paths, mountpoint)
        except BaseException:
            if answering is not None:
                answering.close()
            raise
        finally:
            if answering is not None:
                answering.session.drop_path()
        log.info("devices: whole=%d filled=%d", len(whole) - whole.count(None), whole.count(None))
        return cls(mounted, answering)

    async def serve(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Return when the mount is gone, or after `stop` when what was begun is answered."""
        task_status.started()
        if self._answering is not None:
            await self._answering.over.wait()
            if self._answering.fault is not None:
                raise self._answering.fault
            return
        async with trio.open_nursery() as nursery:
            for end in (self._stopped.wait, self._mount.wait_gone):
                nursery.start_soon(_end, end, nursery.cancel_scope)

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
        if self._answering is not None:
            self._answering.close()


class _Answering:
    """The session behind the devices, from its first request to its last."""

    def __init__(self, session: Session, files: DeviceFiles) -> None:
        self.session = session
        self.over = trio.Event()  # no more requests will come
        self.fault: NydusError | None = None  # that ended it
        self._files = files

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until the session ends; a fault before it has begun is raised, a later one kept."""
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
