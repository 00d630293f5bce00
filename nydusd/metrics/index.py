"""Which counters an id means (spec api §4): file systems, backends and caches of the mounts there are.

Owns     references to counters, from mount to unmount; the counters belong to the rooms that count.
Callers  the trio thread: daemon adds and removes, api selects. Nothing here waits.
Raises   nothing: an id that names no counters is None.

Selection is the same everywhere: with an id the object of that id, without one the only object
there is. A file system is known by its mountpoint, a cache by its configuration's id. A backend is
known by the mountpoint of each of its users; the reference knows only its first user, who may be
long gone.
"""

from collections.abc import Callable
from typing import Generic, NamedTuple, TypeVar

from nydusd.kernel.stats import FsStats
from nydusd.storage.stats import BackendStats, CacheStats

S = TypeVar("S")


class MountCounters(NamedTuple):
    """What one mount brings along.

    cache: adds the counters of the mount's blobs up at each call; None where nothing is cached.
    """

    mountpoint: str
    config_id: str
    fs: FsStats
    backend: BackendStats
    cache: Callable[[], CacheStats] | None


class _Shelf(Generic[S]):
    """Counters of one kind by id; mounts may share both the id and the counters."""

    __slots__ = ("_entries",)

    def __init__(self) -> None:
        self._entries: list[tuple[str, S]] = []  # in mount order

    def add(self, key: str, counters: S) -> None:
        self._entries.append((key, counters))

    def remove(self, key: str, counters: S) -> None:
        """Drop one matching entry: as many as there were mounts keep the counters visible."""
        for position, (entry_key, entry) in enumerate(self._entries):
            if entry_key == key and entry is counters:
                del self._entries[position]
                return

    def select(self, key: str | None) -> S | None:
        if key is not None:
            # The newest wins: an id may be used again while an older mount of that id still stands.
            return next((entry for name, entry in reversed(self._entries) if name == key), None)
        names = {name for name, _ in self._entries}
        objects = {id(entry) for _, entry in self._entries}
        only_one = len(names) == 1 or len(objects) == 1
        return self._entries[-1][1] if only_one else None


class MetricsIndex:
    """The counters of all mounts of this daemon, by id."""

    __slots__ = ("_backend", "_cache", "_fs")

    def __init__(self) -> None:
        """Begin without any mount."""
        self._fs = _Shelf[FsStats]()
        self._backend = _Shelf[BackendStats]()
        self._cache = _Shelf[Callable[[], CacheStats]]()

    def add(self, mount: MountCounters) -> None:
        """Make a mount's counters selectable."""
        self._fs.add(mount.mountpoint, mount.fs)
        self._backend.add(mount.mountpoint, mount.backend)
        if mount.cache is not None:
            self._cache.add(mount.config_id, mount.cache)

    def remove(self, mount: MountCounters) -> None:
        """Take a mount's counters away; those that other mounts share stay with them."""
        self._fs.remove(mount.mountpoint, mount.fs)
        self._backend.remove(mount.mountpoint, mount.backend)
        if mount.cache is not None:
            self._cache.remove(mount.config_id, mount.cache)

    def fs(self, mountpoint: str | None) -> FsStats | None:
        """Return the counters of one file system, up to now."""
        stats = self._fs.select(mountpoint)
        if stats is not None:
            stats.settle()
        return stats

    def backend(self, mountpoint: str | None) -> BackendStats | None:
        """Return the counters of one backend, by any of the mounts that use it."""
        return self._backend.select(mountpoint)

    def cache(self, config_id: str | None) -> CacheStats | None:
        """Return the counters of one cache."""
        count = self._cache.select(config_id)
        return None if count is None else count()
