"""A made blob, opened on a backend of the test's."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from nydusd.storage.backend.base import Backend
from nydusd.storage.budget import ByteBudget
from nydusd.storage.cache.files import open_cache_file
from nydusd.storage.cache.memory import MemoryChunks
from nydusd.storage.fetching import BlobResources
from nydusd.storage.lazy_blob import LazyBlob
from nydusd.storage.stats import CacheStats
from nydusd.storage.threads import Workers
from tests.support.blobs import MadeBlob, TableBootstrap


@asynccontextmanager
async def opened_blob(
    made: MadeBlob,
    backend: Backend,
    directory: Path | None,
    *,
    amplify_bytes: int = 0,
    validate: bool = False,
    bootstrap: object = None,
) -> AsyncIterator[LazyBlob]:
    """The blob with its cache in `directory`, None: without one; closed at the end of the block.

    bootstrap: where its chunk records are; by default one that holds them all.
    """
    file = None
    if directory is not None:
        info = made.info
        file = open_cache_file(
            directory, info.blob_id, info.uncompressed_size, info.chunk_count, indexed=True
        )
    resources = BlobResources(backend, Workers(2), ByteBudget(1 << 20), MemoryChunks())
    blob = LazyBlob(
        made.info,
        bootstrap or TableBootstrap(made.table),  # type: ignore[arg-type]
        resources,
        directory,
        file,
        CacheStats(str(directory or "")),
        amplify_bytes=amplify_bytes,
        validate=validate,
    )
    async with trio.open_nursery() as nursery:
        await nursery.start(blob.run)
        try:
            yield blob
        finally:
            await blob.aclose()
