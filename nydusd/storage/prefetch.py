"""Fetches an image's data before anyone asks (spec blobcache §10, fs-behaviour §17).

Owns     one task per worker while it runs; nothing afterwards.
Callers  the daemon starts `run` in a mount's nursery once the mount stands; cancelling ends it.
Raises   nothing: what cannot be fetched is logged once and left to demand.

Not a second path: it calls `LazyBlob.ensure` with the lowest priority, so it shares flights with readers,
never fetches what is there, and stands behind them in the byte budget.

Order: the blob table's own prefetch ranges; then the listed files (the caller's list replaces the image's
table); then, if asked for or if the list is exactly the root, everything else.
"""

import logging
import stat
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

import trio

from nydusd.blob.model import Chunk, ChunkTable
from nydusd.config.model import PrefetchConfig
from nydusd.errors import BackendError, NydusError
from nydusd.rafs.model import Bootstrap, Inode
from nydusd.storage.backend.base import Priority
from nydusd.storage.image import Image
from nydusd.storage.lazy_blob import LazyBlob
from nydusd.storage.planner import added_bytes
from nydusd.units import KIB

log = logging.getLogger(__name__)

MERGE_FLOOR_BYTES: Final = 128 * KIB
DEPTH_MAX: Final = 4096  # nested directories; a loop in a hostile image ends here
EXTENT_STEP_BYTES: Final = 64 * 1024 * KIB  # of a file looked at in one go


@dataclass(slots=True)
class PrefetchProgress:
    """Counters for the blobcache metrics (spec api §4.4)."""

    requests: int = 0
    stored_bytes: int = 0
    chunks: int = 0
    workers: int = 0
    begin_epoch_ms: int = 0
    end_epoch_ms: int = 0
    failed: list[str] = field(default_factory=list)


class Prefetcher:
    """One image's background fetch."""

    def __init__(self, image: Image, config: PrefetchConfig, files: Sequence[bytes] = ()) -> None:
        """`files`: absolute paths that replace the image's prefetch table; empty: use the table."""
        self._image = image
        self._config = config
        self._files = tuple(files)
        self.progress = PrefetchProgress()

    async def run(self) -> None:
        """Fetch everything that is to be fetched; returns when done or given up."""
        progress = self.progress
        progress.workers = self._config.threads
        progress.begin_epoch_ms = progress.end_epoch_ms = time.time_ns() // 1_000_000
        send, receive = trio.open_memory_channel[tuple[LazyBlob, list[int]]](0)
        async with trio.open_nursery() as nursery:
            for _ in range(self._config.threads):
                nursery.start_soon(self._work, receive.clone())
            receive.close()
            async with send:
                try:
                    await self._submit_all(send)
                except trio.BrokenResourceError:
                    pass  # every worker has given up, which each of them has logged
                except NydusError as exc:
                    log.warning("prefetch stops early: reason=%s", exc)
        progress.end_epoch_ms = time.time_ns() // 1_000_000
        log.info(
            "prefetch ended: chunks=%d stored_bytes=%d requests=%d",
            progress.chunks,
            progress.stored_bytes,
            progress.requests,
        )

    async def _work(self, receive: trio.MemoryReceiveChannel[tuple[LazyBlob, list[int]]]) -> None:
        async with receive:
            async for blob, indices in receive:
                self.progress.requests += 1
                self.progress.chunks += len(indices)
                try:
                    await blob.ensure(indices, Priority.PREFETCH)
                except BackendError as exc:
                    log.warning("prefetch gives up, reads fetch on their own: reason=%s", exc)
                    return
                except NydusError as exc:  # one broken chunk says nothing of the next
                    log.warning("prefetch leaves chunks out: reason=%s", exc)
                self.progress.end_epoch_ms = time.time_ns() // 1_000_000

    async def _submit_all(self, send: trio.MemorySendChannel[tuple[LazyBlob, list[int]]]) -> None:
        bootstrap = self._image.bootstrap
        for blob in self._image.blobs:
            if blob.info.prefetch_size:
                await self._submit_prefix(send, blob, blob.info.prefetch_size)
        listed = self._listed_inodes()
        whole = listed == [bootstrap.root_ino]
        if not whole:
            for ino in listed:
                await self._submit_files(send, ino)
        if whole or (self._config.prefetch_all and bootstrap.root_ino not in listed):
            for blob in self._image.blobs:
                await self._submit_prefix(send, blob, blob.info.compressed_data_size)

    def _listed_inodes(self) -> list[int]:
        bootstrap = self._image.bootstrap
        if not self._files:
            return bootstrap.prefetch_inodes()
        found = (_resolve(bootstrap, path) for path in self._files)
        return [inode.ino for inode in found if inode is not None]

    async def _submit_prefix(
        self, send: trio.MemorySendChannel[tuple[LazyBlob, list[int]]], blob: LazyBlob, end: int
    ) -> None:
        """Submit the chunks stored before blob offset `end`, in requests of the merge size."""
        table = await blob.chunk_table()
        await self._submit(send, blob, table, iter(range(len(table))), end)

    async def _submit_files(
        self, send: trio.MemorySendChannel[tuple[LazyBlob, list[int]]], ino: int
    ) -> None:
        """Submit the chunks of a file, or of all files below a directory."""
        by_blob: dict[int, dict[int, None]] = {}
        for inode in _regular_files(self._image.bootstrap, ino):
            for offset in range(0, inode.size, EXTENT_STEP_BYTES):
                try:
                    extents = self._image.bootstrap.extents(inode, offset, EXTENT_STEP_BYTES)
                except NydusError as exc:
                    log.debug("prefetch leaves a file out: inode=%d reason=%s", inode.ino, exc)
                    break
                for extent in extents:
                    by_blob.setdefault(extent.blob_index, {})[extent.chunk_index] = None
            await trio.lowlevel.checkpoint()
        for index, wanted in by_blob.items():
            if index < len(self._image.blobs):
                blob = self._image.blobs[index]
                table = await blob.chunk_table()
                await self._submit(
                    send, blob, table, iter(sorted(wanted)), blob.info.compressed_size
                )

    async def _submit(
        self,
        send: trio.MemorySendChannel[tuple[LazyBlob, list[int]]],
        blob: LazyBlob,
        table: ChunkTable,
        indices: Iterator[int],
        end: int,
    ) -> None:
        limit = max(self._config.batch_size, MERGE_FLOOR_BYTES)
        group: list[int] = []
        size = 0
        before: Chunk | None = None
        for index in indices:
            if blob.is_ready(index):
                continue
            try:
                chunk = table.chunk(index)
            except NydusError as exc:
                log.debug("prefetch leaves a chunk out: reason=%s", exc)
                continue
            if chunk.compressed_offset >= end:
                continue
            # What comes out of one context costs its stored bytes once, and belongs into one request.
            cost = added_bytes(chunk, before)
            before = chunk
            if group and cost and size + cost > limit:
                self.progress.stored_bytes += size
                await send.send((blob, group))
                group, size = [], 0
            group.append(index)
            size += cost
        if group:
            self.progress.stored_bytes += size
            await send.send((blob, group))


def _resolve(bootstrap: Bootstrap, path: bytes) -> Inode | None:
    """Return the inode at an absolute path; None if a name on the way is missing or broken."""
    try:
        inode: Inode | None = bootstrap.inode(bootstrap.root_ino)
        for name in filter(None, path.split(b"/")):
            if inode is None or not stat.S_ISDIR(inode.mode):
                return None
            inode = bootstrap.lookup(inode, name)
    except NydusError as exc:
        log.debug("prefetch leaves a path out: path=%r reason=%s", path, exc)
        return None
    return inode


def _regular_files(bootstrap: Bootstrap, ino: int) -> Iterator[Inode]:
    """Yield a file, or the files below a directory: its own first, then each subdirectory's; links once."""
    seen: set[int] = set()
    stack = [(ino, 0)]
    while stack:
        ino, depth = stack.pop()
        if ino in seen or depth > DEPTH_MAX:
            continue
        seen.add(ino)
        try:
            inode = bootstrap.inode(ino)
            if stat.S_ISREG(inode.mode):
                yield inode
            if not stat.S_ISDIR(inode.mode):
                continue
            children = [e.ino for e in bootstrap.entries(inode) if e.name not in (b".", b"..")]
        except NydusError as exc:
            log.debug("prefetch leaves an inode out: inode=%d reason=%s", ino, exc)
            continue
        stack += [(child, depth + 1) for child in reversed(children)]
