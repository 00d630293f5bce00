"""Fetches chunks of one blob into its cache file, each of them once at a time.

Owns     the fetches under way, and the nursery that they run in.
Callers  LazyBlob, for its readers and for prefetch. Decoding runs in worker threads, which see buffers and
         a descriptor.
Raises   BackendError, IntegrityError, FormatError, UnsupportedError, ClosedError. A full disk is no error:
         the bytes are handed over in memory.
Cancel   a cancelled caller stops waiting; the fetch goes on for the others.
Failure  goes to those who wait now and is then forgotten; the next reader tries again.

A fetch is one backend read for a run of chunks; each chunk is decoded, checked against its digest and
written by one native call, then its ready bit is set, then its readers go on. Readahead starts the same
fetches.
"""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import trio

from nydusd.blob.model import BlobInfo, Chunk, ChunkTable
from nydusd.errors import BackendError, ClosedError, FormatError, IntegrityError, NydusError
from nydusd.records import Buffer
from nydusd.storage.backend.base import Backend, Priority
from nydusd.storage.budget import ByteBudget
from nydusd.storage.cache.files import CacheFile
from nydusd.storage.cache.memory import MemoryChunks
from nydusd.storage.cached_chunks import CachedChunks
from nydusd.storage.chunk_records import ChunkRecords
from nydusd.storage.decoding import Decoder
from nydusd.storage.planner import (
    Fetch,
    following,
    gap_bytes,
    plan_fetches,
    stored_bytes,
    with_companions,
    within_room,
)
from nydusd.storage.readahead import Streams
from nydusd.storage.stats import CacheStats
from nydusd.storage.threads import Workers

log = logging.getLogger(__name__)

READ_ATTEMPTS: Final = 3  # a chunk kept in memory only may be dropped before its reader gets to it


@dataclass(slots=True, eq=False)
class _Flight:
    """One fetch under way and who it is for."""

    chunks: tuple[int, ...]
    demanded: set[int] = field(default_factory=set)  # chunks that somebody waits for
    done: trio.Event = field(default_factory=trio.Event)
    error: NydusError | None = None  # of the whole fetch
    errors: dict[int, NydusError] = field(default_factory=dict)  # of single chunks
    plain: dict[int, Buffer] = field(default_factory=dict)  # chunks not in the cache file

    def outcome(self, index: int) -> NydusError | None:
        return self.errors.get(index, self.error)


class BlobResources(NamedTuple):
    """What a blob shares with the others of its pool."""

    backend: Backend
    workers: Workers
    budget: ByteBudget
    memory: MemoryChunks


class Fetcher:
    """The fetches of one blob. Begins with `nursery.start(fetcher.run)`, ends with `close`."""

    def __init__(
        self,
        info: BlobInfo,
        records: ChunkRecords,
        resources: BlobResources,
        cached: CachedChunks,
        stats: CacheStats,
        amplify_bytes: int,
    ) -> None:
        """amplify_bytes: stored bytes to fetch at once with a first miss; 0 fetches only what is asked."""
        self._info = info
        self._records = records
        self._resources = resources
        self._cached = cached
        self._stats = stats
        self._decoder = Decoder(info, resources.workers)
        self._amplify_bytes = amplify_bytes
        self._streams = Streams(amplify_bytes)
        self._flights: dict[int, _Flight] = {}
        self._refusal: str | None = None  # why the last chunks could not be written
        self._closing = trio.Event()
        self._open_nursery: trio.Nursery | None = None

    # ---- life ---------------------------------------------------------------------------------

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Hold the nursery of the fetches until `close`."""
        try:
            async with trio.open_nursery() as nursery:
                self._open_nursery = nursery
                task_status.started()
                await self._closing.wait()
                nursery.cancel_scope.cancel()
        finally:
            self._open_nursery = None
            self._closing.set()

    def close(self) -> None:
        """End all fetches and give ClosedError to who waits; `run` returns soon."""
        self._closing.set()

    @property
    def nursery(self) -> trio.Nursery:
        """Where the blob's own tasks run. Raises ClosedError once it is closed."""
        if (nursery := self._open_nursery) is None or self._closing.is_set():
            raise ClosedError(f"blob {self._info.blob_id} is closed")
        return nursery

    @property
    def is_open(self) -> bool:
        """True while fetches can be started."""
        return self._open_nursery is not None and not self._closing.is_set()

    @property
    def _amplify(self) -> int:
        return (
            self._amplify_bytes if self._cached.file is not None else 0
        )  # else: nowhere to keep it

    # ---- asking -------------------------------------------------------------------------------

    async def ensure(self, indices: Iterable[int], priority: Priority) -> dict[int, Buffer]:
        """Have chunks fetched. Return the plain bytes of those that are not in the cache file.

        Raises the error of a chunk that could not be had.
        """
        wanted = tuple(dict.fromkeys(indices))
        try:
            return await self._ensure(wanted, priority)
        except (FormatError, IntegrityError):
            # The records may come from a side file that is corrupt: look at the blob's own, once.
            if await self._records.refreshed(self.nursery) is None:
                raise
            return await self._ensure(wanted, priority)

    async def _ensure(self, wanted: Sequence[int], priority: Priority) -> dict[int, Buffer]:
        plain: dict[int, Buffer] = {}
        for _ in range(READ_ATTEMPTS):
            table = await self._records.table(self.nursery)
            for index in self._cached.missing(wanted):
                if (kept := self._resources.memory.get(self._info.blob_id, index)) is not None:
                    plain[index] = kept
            absent = [index for index in self._cached.missing(wanted) if index not in plain]
            if not absent:
                return plain
            # No await between the check above and the registration of the flights: single flight.
            self._launch(table, absent, priority)
            for index in absent:
                self._flights[index].demanded.add(index)
            for flight in dict.fromkeys(self._flights[index] for index in absent):
                await flight.done.wait()
                for index in flight.demanded.intersection(absent):
                    if (error := flight.outcome(index)) is not None:
                        raise error
                    if index in flight.plain:
                        plain[index] = flight.plain[index]
        raise BackendError(f"blob {self._info.blob_id}: chunks {wanted[:4]}… do not stay available")

    # ---- what to fetch ------------------------------------------------------------------------

    def _launch(self, table: ChunkTable, absent: Sequence[int], priority: Priority) -> None:
        """Start fetches for those absent chunks that nobody is fetching yet, with what follows them."""
        mine = [index for index in absent if index not in self._flights]
        if not mine:
            if priority is Priority.DEMAND:  # this reader is faster than the link, and in order
                self.continue_streams(table, absent)
            return
        # What a context gives beside the chunks asked for costs no more than to decode it again would.
        chunks = with_companions(table, [table.chunk(index) for index in mine], self._is_absent)
        ahead: list[Chunk] = []
        if priority is Priority.DEMAND and self._amplify:
            used, last = max(mine), chunks[-1]  # what follows is behind all that was asked for
            key, window = self._streams.miss(used)
            spare = max(window - stored_bytes(chunks), 0)
            ahead, end = following(
                table, last, last.compressed_end + spare, self._is_absent, gap_bytes(self._amplify)
            )
            self._cached.watch(self._streams.extended(key, used, end))
        # What fits the amplification limit rides along; the rest of a grown window is readahead.
        riding = within_room(ahead, self._amplify - stored_bytes(chunks))
        for fetch in plan_fetches([*chunks, *ahead[:riding]], self._amplify):
            self._start(fetch, priority)
        for fetch in plan_fetches(ahead[riding:], self._amplify):
            self._start(fetch, Priority.READAHEAD)

    def continue_streams(self, table: ChunkTable, used: Sequence[int]) -> None:
        """Start the next window of a sequential reader that is coming to the end of this one.

        used: the chunks that he reads now, in his order.
        """
        if not used or not self._amplify:
            return
        first, last = used[0], used[-1]
        if (
            last - first != len(used) - 1
        ):  # pieces from all over: the last one says where he goes on
            first = last
        due = self._streams.touch(first, last)
        if due is None or due.begin >= len(table):
            return
        try:
            before = table.chunk(due.begin - 1)
        except NydusError:
            return  # speculation raises nothing; whoever reads that chunk gets the error
        ahead, end = following(
            table,
            before,
            before.compressed_end + due.window_bytes,
            self._is_absent,
            gap_bytes(self._amplify),
        )
        self._cached.watch(self._streams.extended(due.key, due.begin, end))
        for fetch in plan_fetches(ahead, self._amplify):
            self._start(fetch, Priority.READAHEAD)

    def _is_absent(self, index: int) -> bool:
        return index not in self._flights and not self._cached.is_ready(index)

    # ---- fetching -----------------------------------------------------------------------------

    def _start(self, fetch: Fetch, priority: Priority) -> None:
        flight = _Flight(tuple(chunk.chunk_index for chunk in fetch.chunks))
        self.nursery.start_soon(self._fly, fetch, flight, priority)
        for index in flight.chunks:
            self._flights[index] = flight

    async def _fly(self, fetch: Fetch, flight: _Flight, priority: Priority) -> None:
        flight.error = ClosedError(f"blob {self._info.blob_id} was closed")  # stands if cancelled
        try:
            nursery = self.nursery
            chunks = [await self._records.described(chunk, nursery) for chunk in fetch.chunks]
            chunks = await self._drop_verified(chunks)
            try:
                await self._fetch(chunks, flight, priority)
            except BackendError as exc:
                few = [chunk for chunk in chunks if chunk.chunk_index in flight.demanded]
                if exc.temporary or not few or len(few) == len(chunks):
                    raise
                # What rode along may lie behind the end of a cut blob; the readers' part not.
                flight.errors.update({chunk.chunk_index: exc for chunk in chunks})
                for narrow in plan_fetches(few, 0):
                    await self._fetch(narrow.chunks, flight, priority)
            flight.error = None
        except NydusError as exc:
            flight.error = exc
            log.debug("fetch failed: blob=%s reason=%s", self._info.blob_id, exc)
        finally:
            for index in flight.chunks:
                del self._flights[index]
            flight.done.set()

    async def _fetch(self, chunks: Sequence[Chunk], flight: _Flight, priority: Priority) -> None:
        """Fetch a run of chunks in one backend read, check, keep, mark; errors of chunks go to `flight`."""
        if not chunks:
            return
        offset = min(chunk.compressed_offset for chunk in chunks)
        length = max(chunk.compressed_end for chunk in chunks) - offset
        async with self._resources.budget.hold(length, priority):
            stored = await self._resources.backend.read(
                self._info.blob_id, offset, length, priority
            )
            self._stats.count_fetched(length, priority)
            file = self._cached.file_to_fill()
            outcome = await self._decoder.decode(stored, offset, chunks, file)
        if file is not None:
            # Data first, bit second: the other order serves zeros for ever after a crash in between.
            self._stats.entries_count += self._cached.mark(file, outcome.saved)
            self._tell_refusal(file, outcome.write_error)
        flight.plain.update(outcome.plain)
        for index in (chunk.chunk_index for chunk in chunks):
            flight.errors.pop(index, None)
        flight.errors.update(outcome.errors)
        for index, plain in outcome.plain.items():
            self._resources.memory.put(self._info.blob_id, index, plain)

    def _tell_refusal(self, file: CacheFile, reason: str | None) -> None:
        """Warn when the disk begins to refuse chunks, not for each of them."""
        if reason is not None and reason != self._refusal:
            log.warning(
                "serving from memory, cache file cannot be written: file=%s reason=%s",
                file.path,
                reason,
            )
        self._refusal = reason

    async def _drop_verified(self, chunks: Sequence[Chunk]) -> list[Chunk]:
        """Check cached chunks that nobody has checked in this process; return those to be fetched."""
        file, cached = self._cached.file, self._cached.unchecked(chunks)
        if not cached or file is None:
            return list(chunks)
        right = await self._decoder.verify(cached, file)
        self._stats.whole_hits += len(right)
        self._cached.mark(file, sorted(right))
        return [chunk for chunk in chunks if chunk.chunk_index not in right]
