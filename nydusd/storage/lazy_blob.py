"""A blob: a flat, read-only address space of plain bytes that fills itself on demand (design §1).

Owns     the cache file of one blob while images use it, and its fetches under way.
Callers  tasks of the trio thread. Decoding runs in worker threads, which see buffers and a descriptor.
Raises   BackendError, IntegrityError, FormatError, UnsupportedError, ClosedError. A full disk is no error:
         bytes are then served from memory.
Cancel   a cancelled caller stops waiting; the fetch goes on for the others.
Failure  goes to those who wait now and is then forgotten; the next reader tries again.

There is one way to a byte: extents → chunks → ready? read the cache file : join or start a fetch. A fetch
is one backend read for a run of chunks; each chunk is decoded, checked against its digest and written by
one native call, then its ready bit is set, then its readers go on. Readahead starts the same fetches.
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

import trio

from nydusd.blob.model import BlobInfo, Chunk, ChunkTable
from nydusd.errors import BackendError, ClosedError, FormatError, IntegrityError, NydusError
from nydusd.rafs.model import Bootstrap, Extent
from nydusd.records import Buffer
from nydusd.storage.backend.base import Backend, Priority
from nydusd.storage.budget import ByteBudget
from nydusd.storage.cache.files import CacheFile
from nydusd.storage.cache.memory import MemoryChunks
from nydusd.storage.chunk_records import ChunkRecords
from nydusd.storage.decoding import Decoder
from nydusd.storage.planner import Fetch, following, gap_bytes, plan_fetches, stored_bytes
from nydusd.storage.readahead import Streams
from nydusd.storage.stats import CacheStats
from nydusd.storage.threads import Workers

if TYPE_CHECKING:
    from nydusd.native_relay import NativeSource

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


@dataclass(frozen=True, slots=True)
class BlobResources:
    """What a blob shares with the others of its pool."""

    backend: Backend
    workers: Workers
    budget: ByteBudget
    memory: MemoryChunks


class LazyBlob:
    """One blob of one or several images. Begins with `nursery.start(blob.run)`, ends with `aclose`."""

    def __init__(
        self,
        info: BlobInfo,
        bootstrap: Bootstrap,
        resources: BlobResources,
        directory: Path | None,
        file: CacheFile | None,
        stats: CacheStats,
        *,
        amplify_bytes: int,
        validate: bool,
    ) -> None:
        """Whole once constructed, without I/O: chunk records are loaded by the first read.

        bootstrap: of the image that opens the blob; gives chunk records (v5) or digests (v6).
        amplify_bytes: stored bytes to fetch at once with a first miss; 0 fetches only what is asked.
        validate: check chunks that an earlier process cached once more, before they are first served.
        """
        self.info = info
        self.stats = stats
        self._resources = resources
        self._records = ChunkRecords(
            info, bootstrap, resources.backend, resources.workers, directory
        )
        self._decoder = Decoder(info, resources.workers)
        self._file = file
        self._lost_files: list[CacheFile] = []
        self._amplify = amplify_bytes if file is not None else 0
        self._unverified = (
            {index for index in range(len(file.map)) if file.map.is_ready(index)}
            if validate and file is not None
            else set[int]()
        )
        self._streams = Streams(self._amplify)
        self._flights: dict[int, _Flight] = {}
        self._readers = 0
        self._closing = trio.Event()
        self._ended = trio.Event()
        self._open_nursery: trio.Nursery | None = None

    # ---- life ---------------------------------------------------------------------------------

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Hold the nursery of this blob's fetches until `aclose`; then close the files."""
        try:
            async with trio.open_nursery() as nursery:
                self._open_nursery = nursery
                task_status.started()
                await self._closing.wait()
                nursery.cancel_scope.cancel()
        finally:
            self._open_nursery = None
            self._closing.set()
            self._resources.memory.discard_blob(self.info.blob_id)
            self._ended.set()
            self._close_files_unless_read()

    async def aclose(self) -> None:
        """End all fetches, give ClosedError to who still waits, close the files."""
        self._closing.set()
        await self._ended.wait()

    def _close_files_unless_read(self) -> None:
        # The last reader closes: the number of a descriptor that a thread uses must not be reused.
        if self._ended.is_set() and not self._readers:
            for file in filter(None, (self._file, *self._lost_files)):
                file.close()
            self._file = None
            self._lost_files.clear()

    @property
    def _nursery(self) -> trio.Nursery:
        if self._open_nursery is None or self._closing.is_set():
            raise ClosedError(f"blob {self.info.blob_id} is closed")
        return self._open_nursery

    # ---- reading ------------------------------------------------------------------------------

    async def read(self, extents: Sequence[Extent]) -> Buffer:
        """Return the bytes of `extents`, all of this blob, one after another.

        One copy where everything is ready and contiguous: pread into the result.
        """
        nursery = self._nursery
        self.stats.total += 1
        self._readers += 1
        try:
            table = self._records.loaded or await self._records.table(nursery)
            try:
                self._check_claims(table, extents)
            except FormatError:
                fresher = await self._records.refreshed(nursery)
                if fresher is None:
                    raise
                self._check_claims(fresher, extents)
                table = fresher
            return await self._read_checked(table, extents)
        finally:
            self._readers -= 1
            self._close_files_unless_read()

    async def _read_checked(self, table: ChunkTable, extents: Sequence[Extent]) -> Buffer:
        wanted = [extent.chunk_index for extent in extents]
        if self._file is not None and not self._missing(wanted):
            self.stats.partial_hits += 1
            if self._amplify:
                self._continue_streams(table, wanted[-1])
            if (data := await self._read_file(extents)) is not None:
                return data
        plain = await self.ensure(wanted, Priority.DEMAND)
        pieces: list[Buffer] = []
        for extent in extents:
            if (chunk := plain.get(extent.chunk_index)) is not None:
                pieces.append(memoryview(chunk)[extent.offset : extent.offset + extent.length])
            elif (data := await self._read_file([extent])) is not None:
                pieces.append(data)
            else:
                return await self._read_checked(table, extents)  # once: there is no file any more
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def read_now(self, extents: Sequence[Extent]) -> Buffer | None:
        """Return the bytes of `extents` if all are in the page cache; None: call `read`."""
        raise NotImplementedError

    async def read_plain(self, offset: int, length: int) -> Buffer:
        """Return plain bytes [offset, offset + length); holes, and what lies past the end, are zeros."""
        raise NotImplementedError

    async def fill(self, offset: int, length: int) -> dict[int, Buffer]:
        """Have the chunks of a plain range fetched; return those that are not in the cache file."""
        raise NotImplementedError

    async def plain_blocks(self) -> Buffer | None:
        """Return the first 4096-byte block of each chunk, u32 ascending; None if they are not laid out so."""
        raise NotImplementedError

    # ---- what the native relay needs ------------------------------------------------------------

    def native_source(self) -> "NativeSource | None":
        """Return what the relay needs to answer ready ranges; None: nothing can be answered natively.

        Before the descriptor is closed or the file given up, the callbacks of `add_on_lost` are called.
        """
        raise NotImplementedError

    def add_on_lost(self, callback: Callable[[], None]) -> None:
        """Call `callback` once when the cache file goes: it must end every native use before it returns."""
        raise NotImplementedError

    def remove_on_lost(self, callback: Callable[[], None]) -> None:
        """Forget a callback, because its relay uses the source no more."""
        raise NotImplementedError

    def touched(self, index: int) -> None:
        """A watched chunk was read natively: continue its sequential reader."""
        raise NotImplementedError

    def is_complete(self) -> bool:
        """Tell whether the whole blob can be served without the backend."""
        raise NotImplementedError

    def protected_path(self) -> Path | None:
        """Return a path, good in this process, to the whole and locked cache file; None if it is not whole."""
        raise NotImplementedError

    async def ensure(self, indices: Iterable[int], priority: Priority) -> dict[int, Buffer]:
        """Have chunks fetched. Return the plain bytes of those that are not in the cache file.

        Raises the error of a chunk that could not be had.
        """
        wanted = tuple(dict.fromkeys(indices))
        try:
            return await self._ensure(wanted, priority)
        except (FormatError, IntegrityError):
            # The records may come from a side file that is corrupt: look at the blob's own, once.
            if await self._records.refreshed(self._nursery) is None:
                raise
            return await self._ensure(wanted, priority)

    async def _ensure(self, wanted: Sequence[int], priority: Priority) -> dict[int, Buffer]:
        plain: dict[int, Buffer] = {}
        for _ in range(READ_ATTEMPTS):
            table = await self._records.table(self._nursery)
            for index in self._missing(wanted):
                if (kept := self._resources.memory.get(self.info.blob_id, index)) is not None:
                    plain[index] = kept
            absent = [index for index in self._missing(wanted) if index not in plain]
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
        raise BackendError(f"blob {self.info.blob_id}: chunks {wanted[:4]}… do not stay available")

    async def chunk_table(self) -> ChunkTable:
        """Return the blob's chunk records, loading them if need be."""
        return await self._records.table(self._nursery)

    def is_ready(self, index: int) -> bool:
        """Tell whether chunk `index` can be served without the backend."""
        return not self._missing((index,))

    def _missing(self, indices: Iterable[int]) -> list[int]:
        """Return those chunks that the cache file does not hold, or not checked where they must be."""
        if self._file is None:
            return list(indices)
        ready = self._file.map.is_ready
        if self._unverified:
            return [i for i in indices if i in self._unverified or not ready(i)]
        return [i for i in indices if not ready(i)]

    def _check_claims(self, table: ChunkTable, extents: Sequence[Extent]) -> None:
        """Refuse extents whose idea of a chunk differs from the blob's own record of it."""
        for extent in extents:
            claim = table.claim(extent.chunk_index)
            if claim != (extent.chunk_offset, extent.chunk_size):
                raise FormatError(
                    f"chunk {extent.chunk_index}",
                    f"{extent.chunk_size} bytes at {extent.chunk_offset} for the file",
                    f"but {claim[1]} at {claim[0]} in the blob",
                    self.info.blob_id,
                )

    async def _read_file(self, extents: Sequence[Extent]) -> bytes | None:
        """Read ready extents from the cache file, adjacent ones with one pread; None if it is lost."""
        file = self._file
        if file is None:
            return None
        pieces: list[bytes] = []
        for offset, length in _runs(extents):
            try:
                data = file.read_now(offset, length)
                if data is None:
                    data = await self._resources.workers.run(file.read, offset, length)
            except OSError as exc:
                self._give_up(file, exc.strerror or str(exc))
                return None
            if len(data) != length:
                self._give_up(file, "somebody truncated it")
                return None
            pieces.append(data)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _give_up(self, file: CacheFile, reason: str) -> None:
        """Serve from memory from now on: what the map says of this file is not true any more."""
        if self._file is file:
            log.warning(
                "cache file is lost, not used any more: file=%s reason=%s", file.path, reason
            )
            self._lost_files.append(file)  # closed at the end: threads may still use its descriptor
            self._file = None
            self._amplify = 0

    # ---- what to fetch ------------------------------------------------------------------------

    def _launch(self, table: ChunkTable, absent: Sequence[int], priority: Priority) -> None:
        """Start fetches for those absent chunks that nobody is fetching yet, with what follows them."""
        mine = [index for index in absent if index not in self._flights]
        if not mine:
            return
        chunks = [table.chunk(index) for index in mine]
        ahead: list[Chunk] = []
        if priority is Priority.DEMAND and self._amplify:
            last = max(chunks)  # by chunk_index: what follows is behind all that was asked for
            key, window = self._streams.miss(last.chunk_index)
            spare = max(window - stored_bytes(chunks), 0)
            ahead, end = following(
                table, last, last.compressed_end + spare, self._is_absent, gap_bytes(self._amplify)
            )
            self._streams.extended(key, last.chunk_index, end)
        # What fits the amplification limit rides along; the rest of a grown window is readahead.
        room = self._amplify - stored_bytes(chunks)
        riding = 0
        while riding < len(ahead) and ahead[riding].compressed_size <= room:
            room -= ahead[riding].compressed_size
            riding += 1
        for fetch in plan_fetches([*chunks, *ahead[:riding]], self._amplify):
            self._start(fetch, priority)
        for fetch in plan_fetches(ahead[riding:], self._amplify):
            self._start(fetch, Priority.READAHEAD)

    def _continue_streams(self, table: ChunkTable, index: int) -> None:
        """Start the next window of a sequential reader that is coming to the end of this one."""
        due = self._streams.touch(index)
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
        self._streams.extended(due.key, due.begin, end)
        for fetch in plan_fetches(ahead, self._amplify):
            self._start(fetch, Priority.READAHEAD)

    def _is_absent(self, index: int) -> bool:
        return index not in self._flights and not self.is_ready(index)

    # ---- fetching -----------------------------------------------------------------------------

    def _start(self, fetch: Fetch, priority: Priority) -> None:
        flight = _Flight(tuple(chunk.chunk_index for chunk in fetch.chunks))
        self._nursery.start_soon(self._fly, fetch, flight, priority)
        for index in flight.chunks:
            self._flights[index] = flight

    async def _fly(self, fetch: Fetch, flight: _Flight, priority: Priority) -> None:
        flight.error = ClosedError(f"blob {self.info.blob_id} was closed")  # stands if cancelled
        try:
            nursery = self._nursery
            chunks = [await self._records.described(chunk, nursery) for chunk in fetch.chunks]
            if self._unverified:
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
            log.debug("fetch failed: blob=%s reason=%s", self.info.blob_id, exc)
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
        file = self._file
        async with self._resources.budget.hold(length, priority):
            stored = await self._resources.backend.read(self.info.blob_id, offset, length, priority)
            self.stats.count_fetched(length, priority)
            outcome = await self._decoder.decode(stored, offset, chunks, file)
        if file is not None:
            # Data first, bit second: the other order serves zeros for ever after a crash in between.
            self.stats.entries_count += file.map.mark(outcome.saved)
            self._unverified.difference_update(outcome.saved)
            if outcome.write_error is not None:
                log.warning(
                    "serving from memory, cache file cannot be written: file=%s reason=%s",
                    file.path,
                    outcome.write_error,
                )
        flight.plain.update(outcome.plain)
        for index in (chunk.chunk_index for chunk in chunks):
            flight.errors.pop(index, None)
        flight.errors.update(outcome.errors)
        for index, plain in outcome.plain.items():
            self._resources.memory.put(self.info.blob_id, index, plain)

    async def _drop_verified(self, chunks: Sequence[Chunk]) -> list[Chunk]:
        """Check cached chunks that nobody has checked in this process; return those to be fetched."""
        cached = [chunk for chunk in chunks if chunk.chunk_index in self._unverified]
        if not cached or self._file is None:
            return list(chunks)
        right = await self._decoder.verify(cached, self._file)
        self.stats.whole_hits += len(right)
        self._unverified -= right
        return [chunk for chunk in chunks if chunk.chunk_index not in right]


def _runs(extents: Sequence[Extent]) -> list[tuple[int, int]]:
    """Join extents that are adjacent in the plain address space: (offset, length) each."""
    runs: list[tuple[int, int]] = []
    for extent in extents:
        start = extent.chunk_offset + extent.offset
        if runs and sum(runs[-1]) == start:
            runs[-1] = (runs[-1][0], runs[-1][1] + extent.length)
        else:
            runs.append((start, extent.length))
    return runs
