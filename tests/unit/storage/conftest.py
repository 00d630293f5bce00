from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest
import trio

from nydusd.storage.budget import ByteBudget
from nydusd.storage.cache.files import open_cache_file
from nydusd.storage.cache.memory import MemoryChunks
from nydusd.storage.fetching import BlobResources
from nydusd.storage.lazy_blob import LazyBlob
from nydusd.storage.stats import CacheStats
from nydusd.storage.threads import Workers
from tests.support.blobs import MadeBlob, TableBootstrap
from tests.support.memory_backend import MemoryBackend

OpenBlob = Callable[..., AbstractAsyncContextManager[LazyBlob]]


@pytest.fixture
def open_blob(tmp_path: Path) -> OpenBlob:
    """Open a made blob on a backend, with its cache in the test's folder (or without, cached=False)."""

    @asynccontextmanager
    async def opened(
        made: MadeBlob,
        backend: MemoryBackend,
        *,
        cached: bool = True,
        amplify_bytes: int = 0,
        validate: bool = False,
    ) -> AsyncIterator[LazyBlob]:
        file = None
        if cached:
            info = made.info
            file = open_cache_file(
                tmp_path, info.blob_id, info.uncompressed_size, info.chunk_count, indexed=True
            )
        resources = BlobResources(backend, Workers(2), ByteBudget(1 << 20), MemoryChunks())
        blob = LazyBlob(
            made.info,
            TableBootstrap(made.table),
            resources,
            tmp_path if cached else None,
            file,
            CacheStats(str(tmp_path)),
            amplify_bytes=amplify_bytes,
            validate=validate,
        )
        async with trio.open_nursery() as nursery:
            await nursery.start(blob.run)
            try:
                yield blob
            finally:
                await blob.aclose()

    return opened
