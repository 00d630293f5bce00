"""All blobs that a daemon has open, and the images that share them.

Owns     the workers, the byte budget, the in-memory chunks, one backend per distinct configuration and
         one LazyBlob per (cache directory, backend, blob id), each reference counted.
Callers  the daemon, from the trio thread.
Raises   NydusError; a failed open leaves nothing behind.
"""

import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import trio

from nydusd.blob.model import BlobInfo
from nydusd.config.model import BackendConfig, CacheKind, Config, RegistryConfig, Secret
from nydusd.errors import ConfigError, FormatError, UnsupportedError
from nydusd.rafs.bootstrap import open_bootstrap, sniff_file
from nydusd.rafs.model import Bootstrap
from nydusd.storage.backend.base import Backend
from nydusd.storage.backend.open import open_backend
from nydusd.storage.budget import ByteBudget
from nydusd.storage.cache.files import DATA_SUFFIX, open_cache_file
from nydusd.storage.cache.memory import MemoryChunks
from nydusd.storage.fetching import BlobResources
from nydusd.storage.image import Image
from nydusd.storage.inline import open_inline_bootstrap
from nydusd.storage.lazy_blob import LazyBlob
from nydusd.storage.stats import BackendStats, CacheStats
from nydusd.storage.threads import Workers
from nydusd.units import MIB

log = logging.getLogger(__name__)

IN_FLIGHT_BYTES: Final = 64 * MIB  # stored bytes under way at once, all blobs together
CLOSE_TIMEOUT_S: Final = 10.0


class _SharedBackend:
    __slots__ = ("backend", "stats", "users")

    def __init__(self, backend: Backend, stats: BackendStats) -> None:
        self.backend = backend
        self.stats = stats
        self.users = 0


class _SharedBlob:
    __slots__ = ("blob", "users")

    def __init__(self, blob: LazyBlob) -> None:
        self.blob = blob
        self.users = 0


class BlobPool:
    """Opens images. Use `open_pool`."""

    def __init__(self, nursery: trio.Nursery) -> None:
        """`nursery`: holds the blobs' fetches; whoever opened it closes the pool."""
        self._nursery = nursery
        self._workers = Workers()
        self._budget = ByteBudget(IN_FLIGHT_BYTES)
        self._memory = MemoryChunks()
        self._backends: dict[BackendConfig, _SharedBackend] = {}
        self._blobs: dict[tuple[Path | None, BackendConfig, str], _SharedBlob] = {}

    async def open_image(self, bootstrap_path: Path, config: Config) -> Image:
        """Map a bootstrap and open its blobs; no network unless the bootstrap lies inside a blob.

        Raises ConfigError, UnsupportedError, FormatError, BackendError (inline bootstraps only).
        """
        directory = _work_dir(config)
        shared = self._take_backend(config.backend)
        try:
            if sniff_file(bootstrap_path) is None:
                bootstrap = await open_inline_bootstrap(
                    bootstrap_path, shared.backend, directory, self._workers
                )
            else:
                bootstrap = open_bootstrap(bootstrap_path)
            return await self._join(bootstrap, config, directory, shared)
        except BaseException:
            with trio.CancelScope(deadline=trio.current_time() + CLOSE_TIMEOUT_S, shield=True):
                await self._give_backend(config.backend)
            raise

    async def _join(
        self, bootstrap: Bootstrap, config: Config, directory: Path | None, shared: _SharedBackend
    ) -> Image:
        keys: list[tuple[Path | None, BackendConfig, str]] = []

        async def release() -> None:
            for key in keys:
                await self._give_blob(key)
            await self._give_backend(config.backend)

        blobs: list[LazyBlob] = []
        try:
            for info in bootstrap.blobs:
                key = (directory, config.backend, info.blob_id)
                blobs.append(await self._take_blob(key, info, bootstrap, config, shared))
                keys.append(key)
        except BaseException:
            with trio.CancelScope(deadline=trio.current_time() + CLOSE_TIMEOUT_S, shield=True):
                for key in keys:
                    await self._give_blob(key)
            raise
        return Image(bootstrap, blobs, shared.stats, str(directory) if directory else None, release)

    def set_registry_auth(self, config: BackendConfig, auth: Secret | None) -> None:
        """Use another credential for the open backend of `config`, by all images that share it.

        A backend that is no registry has no use for it. Raises ConfigError, and changes nothing, for one
        that cannot be sent.
        """
        shared = self._backends.get(config)
        if shared is not None and isinstance(config, RegistryConfig):
            from nydusd.storage.backend.registry import RegistryBackend  # loaded: it is open

            assert isinstance(shared.backend, RegistryBackend)
            shared.backend.set_credentials(auth)

    # ---- sharing ------------------------------------------------------------------------------

    def _take_backend(self, config: BackendConfig) -> _SharedBackend:
        shared = self._backends.get(config)
        if shared is None:
            backend = open_backend(config)
            shared = self._backends[config] = _SharedBackend(backend, backend.stats)
        shared.users += 1
        return shared

    async def _give_backend(self, config: BackendConfig) -> None:
        shared = self._backends[config]
        shared.users -= 1
        if not shared.users:
            del self._backends[config]
            await shared.backend.aclose()

    async def _take_blob(
        self,
        key: tuple[Path | None, BackendConfig, str],
        info: BlobInfo,
        bootstrap: Bootstrap,
        config: Config,
        shared: _SharedBackend,
    ) -> LazyBlob:
        entry = self._blobs.get(key)
        if entry is None:
            blob = self._new_blob(info, bootstrap, config, shared, key[0])
            entry = self._blobs[key] = _SharedBlob(blob)
            try:
                await self._nursery.start(blob.run)
            except BaseException:
                del self._blobs[key]  # a blob that never ran must not be found by the next image
                raise
        elif not _same_blob(entry.blob.info, info):
            raise FormatError(
                "blob table entry", info.blob_id, "contradicts that of a mounted image"
            )
        entry.users += 1
        return entry.blob

    async def _give_blob(self, key: tuple[Path | None, BackendConfig, str]) -> None:
        entry = self._blobs[key]
        entry.users -= 1
        if not entry.users:
            del self._blobs[key]
            await entry.blob.aclose()

    def _new_blob(
        self,
        info: BlobInfo,
        bootstrap: Bootstrap,
        config: Config,
        shared: _SharedBackend,
        directory: Path | None,
    ) -> LazyBlob:
        file = None
        stats = CacheStats(str(directory) if directory else "")
        if directory is not None:
            stats.underlying_files.append(f"{info.blob_id}{DATA_SUFFIX}")
            file = open_cache_file(
                directory,
                info.blob_id,
                info.uncompressed_size,
                info.chunk_count,
                indexed=info.has_indexed_map and not config.cache.disable_indexed_map,
            )
        resources = BlobResources(shared.backend, self._workers, self._budget, self._memory)
        return LazyBlob(
            info,
            bootstrap,
            resources,
            directory,
            file,
            stats,
            amplify_bytes=config.rafs.batch_size,
            validate=config.cache.validate,
        )


@asynccontextmanager
async def open_pool() -> AsyncIterator[BlobPool]:
    """A pool for the length of the block. At its end all fetches are cancelled and all files closed."""
    async with trio.open_nursery() as nursery:
        yield BlobPool(nursery)
        nursery.cancel_scope.cancel()


def _work_dir(config: Config) -> Path | None:
    """Return the cache directory, created with its parents; None without a cache."""
    cache = config.cache
    if cache.kind is CacheKind.NONE:
        return None
    if cache.compressed:
        raise UnsupportedError("cache.compressed (raw mode) is not supported yet")
    path = Path(cache.work_dir)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise ConfigError(f"cache work_dir {path} cannot be used: {exc.strerror}") from exc
    return Path(os.path.realpath(path))


def _same_blob(one: BlobInfo, other: BlobInfo) -> bool:
    """Tell whether two images mean the same thing by one blob id."""
    return all(
        getattr(one, field) == getattr(other, field)
        for field in ("chunk_count", "uncompressed_size", "codec", "ci", "cipher_key")
    )
