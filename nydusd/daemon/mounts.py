"""The images mounted inside the session, by mountpoint (spec api §3.2).

Owns     each mount from `mount` to `unmount`: its open image, its place in the Vfs, its counters, its
         prefetch. Blobs, backends and caches that mounts share are counted by the pool.
Callers  life.py, in the trio thread; several calls may be under way, for one mountpoint only one.
Raises   ConfigError for a mountpoint that is no absolute path, ExistsError, NotFoundError, and what the
         image raises when it is opened. A mount that fails has attached nothing and disturbs no other.
Cancel   a cancelled `mount` leaves nothing behind; `unmount` goes through once it has begun.
"""

import logging
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

import trio

from nydusd.config.model import BackendConfig, Config, Secret
from nydusd.errors import ConfigError, ExistsError, NotFoundError
from nydusd.kernel.tree import Tree
from nydusd.kernel.vfs import Stale, Vfs
from nydusd.metrics.index import MetricsIndex, MountCounters
from nydusd.storage.image import Image
from nydusd.storage.stats import CacheStats

if TYPE_CHECKING:
    from nydusd.storage.prefetch import PrefetchProgress

log = logging.getLogger(__name__)

CLOSE_TIMEOUT_S: Final = 5.0  # to give an image back; then it is left to the pool's end


class Pool(Protocol):
    """Where images come from; storage/pool.py has the real one."""

    async def open_image(self, bootstrap_path: Path, config: Config) -> Image:
        """Open an image or raise NydusError."""
        ...

    def set_registry_auth(self, backend: BackendConfig, auth: Secret | None) -> None:
        """Use another credential for an open backend. Raises ConfigError for one that cannot be used."""
        ...


@dataclass(slots=True)
class Mount:
    """One image and where it is mounted."""

    mountpoint: str
    source: Path
    config: Config
    image: Image
    tree: Tree
    mounted_ns: int  # epoch
    prefetch_files: tuple[str, ...] = ()
    prefetching: trio.CancelScope = field(default_factory=trio.CancelScope)
    prefetch_over: trio.Event = field(default_factory=trio.Event)
    progress: "PrefetchProgress | None" = None  # from when prefetch begins

    def counters(self) -> MountCounters:
        """Return what the metrics show of this mount."""
        return MountCounters(
            mountpoint=self.mountpoint,
            config_id=self.config.id,
            fs=self.tree.stats,
            backend=self.image.backend_stats,
            cache=None if self.image.cache_stats is None else self._cache_stats,
        )

    def _cache_stats(self) -> CacheStats:
        """Return the counters of the image's cache, prefetch included."""
        stats = self.image.cache_stats
        assert stats is not None
        if (progress := self.progress) is not None:
            stats.prefetch_requests += progress.requests
            stats.prefetch_workers += progress.workers
            stats.prefetch_unmerged_chunks += progress.chunks
            stats.prefetch_begin_ms = progress.begin_epoch_ms
            stats.prefetch_end_ms = progress.end_epoch_ms
            stats.prefetch_ms += max(0, progress.end_epoch_ms - progress.begin_epoch_ms)
        return stats


class MountTable:
    """All mounts of one daemon."""

    def __init__(
        self,
        pool: Pool,
        vfs: Vfs,
        metrics: MetricsIndex,
        nursery: trio.Nursery,
        invalidate: Callable[[Stale], Awaitable[None]],
    ) -> None:
        """`nursery` runs prefetch; `invalidate` tells the kernel what it must not believe any more."""
        self._pool = pool
        self._vfs = vfs
        self._metrics = metrics
        self._nursery = nursery
        self._invalidate = invalidate
        self._mounts: dict[str, Mount] = {}
        self._counters: dict[str, MountCounters] = {}
        self._changing: set[str] = set()  # mountpoints that a call is mounting or unmounting
        self._may_prefetch = trio.Event()

    def __iter__(self) -> Iterator[Mount]:
        """Iterate over the mounts in the order they were made."""
        return iter(list(self._mounts.values()))

    def get(self, mountpoint: str) -> Mount:
        """Return the mount at `mountpoint`. Raises ConfigError, NotFoundError."""
        mount = self._mounts.get(normalized(mountpoint))
        if mount is None:
            raise NotFoundError(f"nothing is mounted at {mountpoint}")
        return mount

    def find(self, mount_id: str) -> Mount | None:
        """Return the mount at exactly this mountpoint, None if there is none."""
        return self._mounts.get(mount_id)

    def allow_prefetch(self) -> None:
        """Let prefetch begin, of mounts to come too: the daemon serves, nothing is held up any more."""
        self._may_prefetch.set()

    async def mount(
        self, mountpoint: str, source: Path, config: Config, prefetch_files: Sequence[str] = ()
    ) -> None:
        """Open the image in `source` and show it at `mountpoint`.

        prefetch_files: absolute paths in the image that replace its own list.
        """
        place = normalized(mountpoint)
        with self._reserved(place):
            if place in self._mounts:
                raise ExistsError(f"{place} is mounted already")
            image = await self._pool.open_image(source, config)
            mounted_ns = time.time_ns()
            try:
                tree = Tree(image, config.rafs, place, mounted_at_s=mounted_ns // 1_000_000_000)
                self._vfs.attach(place, tree)
            except BaseException:
                await _close(image)
                raise
            mount = Mount(place, source, config, image, tree, mounted_ns, tuple(prefetch_files))
            self._mounts[place] = mount
            self._counters[place] = mount.counters()
            self._metrics.add(self._counters[place])
            self._nursery.start_soon(self._prefetch, mount)
            # From here on the mount stands; telling the kernel is bounded and does not fail.
            with trio.CancelScope(shield=True):
                await self._invalidate(self._vfs.stale(place))
        log.info(
            "mounted image mountpoint=%s source=%s version=%d blobs=%d",
            place,
            source,
            image.bootstrap.superblock.version,
            len(image.bootstrap.blobs),
        )

    async def unmount(self, mountpoint: str) -> None:
        """Take the image away; its files that are open answer ENOENT from now on."""
        place = normalized(mountpoint)
        if place in self._changing:
            raise NotFoundError(f"{place} is not mounted yet, or not any more")
        mount = self.get(place)
        with self._reserved(place), trio.CancelScope(shield=True):
            stale = self._vfs.stale(place)
            self._vfs.detach(place)
            self._forget(mount)
            await self._invalidate(stale)
            await self._end(mount)
        log.info("unmounted image mountpoint=%s", place)

    async def close(self) -> None:
        """Give all images back; the session has ended, so nobody is told."""
        for mount in self:
            self._forget(mount)
            await self._end(mount)

    def set_registry_auth(self, mount: Mount, auth: Secret) -> None:
        """Use another credential for the mount's backend. Raises ConfigError."""
        self._pool.set_registry_auth(mount.config.backend, auth)

    # ---- parts --------------------------------------------------------------------------------

    @contextmanager
    def _reserved(self, place: str) -> Iterator[None]:
        """Keep other calls off this mountpoint. Check and mark without an await in between."""
        if place in self._changing:
            raise ExistsError(f"{place} is being mounted or unmounted")
        self._changing.add(place)
        try:
            yield
        finally:
            self._changing.remove(place)

    def _forget(self, mount: Mount) -> None:
        del self._mounts[mount.mountpoint]
        self._metrics.remove(self._counters.pop(mount.mountpoint))

    async def _end(self, mount: Mount) -> None:
        mount.prefetching.cancel()
        await mount.prefetch_over.wait()
        await _close(mount.image)

    async def _prefetch(self, mount: Mount) -> None:
        """Fetch ahead for one mount, once the daemon serves, until done or unmounted."""
        try:
            with mount.prefetching:
                await self._may_prefetch.wait()
                settings = mount.config.rafs.prefetch
                # Two switches, as in v2; v1 has one key for both (spec fs-behaviour §17).
                if not (settings.enable and mount.config.cache.prefetch.enable):
                    return
                from nydusd.storage.prefetch import Prefetcher  # few mounts need it

                files = [path.encode(errors="surrogateescape") for path in mount.prefetch_files]
                prefetcher = Prefetcher(mount.image, settings, files)
                mount.progress = prefetcher.progress
                await prefetcher.run()
        except Exception:  # one of the three boundaries (style §3.4): speculation ends no daemon
            log.exception("bug: prefetch mountpoint=%s", mount.mountpoint)
        finally:
            mount.prefetch_over.set()


def normalized(mountpoint: str) -> str:
    """Return an absolute path without empty, `.` and `..` parts. Raises ConfigError if it is not absolute."""
    if not mountpoint.startswith("/") or "\0" in mountpoint:
        raise ConfigError(f"mountpoint {mountpoint!r} is no absolute path")
    names: list[str] = []
    for name in mountpoint.split("/"):
        if name == "..":
            del names[-1:]
        elif name not in ("", "."):
            names.append(name)
    return "/" + "/".join(names)


def check_prefetch_files(paths: Sequence[str]) -> None:
    """Raise ConfigError unless all paths are absolute (spec api §3.2)."""
    for path in paths:
        if not path.startswith("/"):
            raise ConfigError(f"prefetch file {path[:256]!r} is no absolute path")


async def _close(image: Image) -> None:
    """Give an image back, whatever happens around us, within CLOSE_TIMEOUT_S."""
    with trio.CancelScope(deadline=trio.current_time() + CLOSE_TIMEOUT_S, shield=True):
        await image.aclose()
