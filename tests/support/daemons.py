"""A daemon without a kernel and without blobs: images in memory, and a session that only notes what is done."""

from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from nydusd.config.load import load
from nydusd.config.model import BackendConfig, Config, Secret
from nydusd.daemon.doors import Opening
from nydusd.daemon.events import EventRing
from nydusd.daemon.life import Daemon
from nydusd.daemon.mounts import Pool
from nydusd.daemon.options import DaemonOptions
from nydusd.errors import NotFoundError, NydusError
from nydusd.kernel.stats import InFlightRequest
from nydusd.kernel.vfs import Stale
from nydusd.storage.stats import BackendStats, CacheStats
from tests.support.fake_bootstrap import FakeImage

LOCALFS = """{"device": {"id": "%s", "backend": {"type": "localfs", "config": {"dir": "/blobs"}},
"cache": {"type": "blobcache", "config": {"work_dir": "/cache"}}}, "mode": "direct"}"""


def config_text(config_id: str = "vec") -> str:
    """A configuration as a mount request carries it."""
    return LOCALFS % config_id


def config(config_id: str = "vec") -> Config:
    return load(config_text(config_id), "test")


class OpenedImage(FakeImage):
    """An image as the pool gives it: with counters, and to be given back."""

    def __init__(self) -> None:
        super().__init__()
        self.blobs: tuple[Any, ...] = ()
        self.backend_stats = BackendStats("localfs")
        self.cache_stats: CacheStats | None = CacheStats("/cache", ["ab.blob.data"])
        self.closed = 0
        self.add_file("/hello", b"world")

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()
        self.closed += 1


class MemoryPool:
    """Images by the path of their bootstrap; closed `gate` keeps callers waiting, `failures` come first."""

    def __init__(self, *sources: str) -> None:
        self.images = {source: OpenedImage() for source in sources}
        self.failures: deque[NydusError] = deque()
        self.gate = trio.Event()
        self.gate.set()
        self.credentials: list[tuple[BackendConfig, Secret | None]] = []
        self.refuses_credentials: NydusError | None = None
        self.opened: list[str] = []

    async def open_image(self, bootstrap_path: Path, config: Config) -> OpenedImage:
        await self.gate.wait()
        if self.failures:
            raise self.failures.popleft()
        image = self.images.get(str(bootstrap_path))
        if image is None:
            raise NotFoundError(f"bootstrap {bootstrap_path} cannot be read")
        self.opened.append(str(bootstrap_path))
        return image

    def set_registry_auth(self, backend: BackendConfig, auth: Secret | None) -> None:
        if self.refuses_credentials is not None:
            raise self.refuses_credentials
        self.credentials.append((backend, auth))


class StillFrontend:
    """A session in which nothing happens unless the test says so."""

    is_fixed = False

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.stale: list[Stale] = []
        self.requests: Sequence[InFlightRequest] = ()
        self.over = trio.Event()
        self.unprimed: NydusError | None = None
        self.fault: NydusError | None = None
        self.prime_gate = trio.Event()
        self.prime_gate.set()

    def go_away(self, fault: NydusError | None = None) -> None:
        """What an outside umount, or a broken session, looks like."""
        self.fault = fault
        self.over.set()

    async def serve(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        self.calls.append("serve")
        task_status.started()
        await self.over.wait()
        if self.fault is not None:
            raise self.fault

    async def prime(self) -> None:
        self.calls.append("prime")
        await self.prime_gate.wait()
        if self.unprimed is not None:
            raise self.unprimed

    def stop(self, *, grace_s: float) -> None:
        self.calls.append("stop")
        self.over.set()

    async def invalidate(self, stale: Stale) -> None:
        self.stale.append(stale)
        await trio.lowlevel.checkpoint()

    def in_flight(self) -> Sequence[InFlightRequest]:
        return self.requests

    def unmount(self) -> bool:
        self.calls.append("unmount")
        return True

    def close(self) -> None:
        self.calls.append("close")


class Stage:
    """A daemon, its doubles, and the nursery they play in."""

    def __init__(self, nursery: trio.Nursery, pool: Pool, options: DaemonOptions) -> None:
        self.frontend = StillFrontend()
        self.ring = EventRing()
        self.options = options
        self.pool = pool
        self.mounted_at: list[Path] = []
        self.daemon = Daemon(options, pool, nursery, self._open_frontend, self.ring)
        self.ended = trio.Event()
        self.error: BaseException | None = None

    async def _open_frontend(self, opening: Opening) -> StillFrontend:
        if self.mounted_at:
            self.frontend = StillFrontend()  # `frontend` is always the newest
        self.mounted_at.append(opening.options.mountpoint)
        return self.frontend

    async def live(self) -> None:
        """Run the daemon to its end; an error of ours is noted, not raised."""
        try:
            await self.daemon.live()
        except NydusError as exc:
            self.error = exc
        finally:
            self.ended.set()


@asynccontextmanager
async def stage(
    pool: Pool | None = None, *, begin: bool = True, **changes: Any
) -> AsyncIterator[Stage]:
    """A daemon on a path where nothing is mounted; with `begin` it has come to rest, normally RUNNING."""
    options = DaemonOptions(**{"mountpoint": Path("/nowhere/mnt"), **changes})
    async with trio.open_nursery() as nursery:
        made = Stage(nursery, pool or MemoryPool(), options)
        if begin:
            nursery.start_soon(made.live)
            await trio.testing.wait_all_tasks_blocked()
        yield made
        made.daemon.end()
        if begin:
            await made.ended.wait()
        nursery.cancel_scope.cancel()
