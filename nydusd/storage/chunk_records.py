"""What is known of a blob's chunks: their records and their digests, loaded when first needed.

Owns     one chunk table and up to two digest sources of one blob.
Callers  LazyBlob. Loads run in the blob's nursery, once for all who wait (SharedLoad).
Raises   BackendError, FormatError, IntegrityError, UnsupportedError; none of them sticks.
"""

from pathlib import Path

import trio

from nydusd.blob.model import BlobInfo, Chunk, ChunkTable, DigestSource
from nydusd.rafs.model import Bootstrap
from nydusd.storage.backend.base import Backend
from nydusd.storage.cache.blob_meta import fetch_table, load_cached_table, refuse_unserved
from nydusd.storage.cache.digests import NoDigests, fetch_digest_array
from nydusd.storage.single_flight import SharedLoad
from nydusd.storage.threads import Workers


class ChunkRecords:
    """Chunk table and digests of one blob."""

    def __init__(
        self,
        info: BlobInfo,
        bootstrap: Bootstrap,
        backend: Backend,
        workers: Workers,
        directory: Path | None,
    ) -> None:
        """No I/O. `bootstrap` gives records (v5) or digests (v6); `directory` holds `.blob.meta`."""
        self._info = info
        self._bootstrap = bootstrap
        self._backend = backend
        self._workers = workers
        self._directory = directory
        name = f"blob {info.blob_id}"
        self._table = SharedLoad(name, self._load_table)
        self._fetched_table = SharedLoad(name, self._fetch_table)
        self._digests = SharedLoad(name, self._load_digests)
        self._own_digests = SharedLoad(name, self._fetch_digests)
        self._trusted: ChunkTable | None = None  # the table that plain_table has looked at
        self._nursery: trio.Nursery | None = None

    @property
    def loaded(self) -> ChunkTable | None:
        """The table if it is loaded: the hot path looks here first."""
        return self._table.value

    async def table(self, nursery: trio.Nursery) -> ChunkTable:
        """Return the table: the bootstrap's (v5), the side file's, or the one at the blob's end."""
        self._nursery = nursery
        return self._table.value or await self._table.get(nursery)

    async def plain_table(self, nursery: trio.Nursery) -> ChunkTable:
        """Return the table for one who asks by plain address, so that no claim of his can be compared.

        Records of a side file must then prove themselves: every known builder lays chunks out without
        holes, and there hardly any record can be changed unnoticed. Others are fetched.
        """
        table = await self.table(nursery)
        if table is self._trusted:
            return table
        if self._info.ci is not None and self._fetched_table.value is None:
            layout = table.layout()
            if layout is None or not layout.is_dense:
                table = await self.refreshed(nursery) or table
        self._trusted = table
        return table

    async def refreshed(self, nursery: trio.Nursery) -> ChunkTable | None:
        """Return records fetched by this process in place of a side file's, which may be corrupt.

        None if there are no fresher ones: v5 has no side file, or they are fetched already.
        """
        if self._info.ci is None or self._fetched_table.value is not None:
            return None
        self._table.value = await self._fetched_table.get(nursery)
        return self._table.value

    async def described(self, chunk: Chunk, nursery: trio.Nursery) -> Chunk:
        """Return the chunk with its digest and CRC, wherever the image keeps them (spec rafs-v6 §11.2)."""
        for load in (self._digests, self._own_digests):
            if chunk.digest is not None:
                break
            source = load.value or await load.get(nursery)
            digest, crc32 = source.lookup(chunk.chunk_index, chunk.uncompressed_offset)
            chunk = chunk._replace(
                digest=digest, crc32=chunk.crc32 if chunk.crc32 is not None else crc32
            )
        return chunk

    async def _load_table(self) -> ChunkTable:
        refuse_unserved(self._info)
        table = await self._workers.run(self._bootstrap.chunk_table, self._info.index)
        if table is None:
            table = load_cached_table(self._directory, self._info)
        if table is None:
            assert self._nursery is not None  # table() set it before it started us
            table = await self._fetched_table.get(self._nursery)
        return table

    async def _fetch_table(self) -> ChunkTable:
        return await fetch_table(self._backend, self._workers, self._directory, self._info)

    async def _load_digests(self) -> DigestSource:
        source = await self._workers.run(self._bootstrap.digests, self._info.index)
        return source if source is not None else NoDigests()

    async def _fetch_digests(self) -> DigestSource:
        return await fetch_digest_array(self._backend, self._info)
