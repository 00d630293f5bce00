"""A blob: a flat, read-only address space of plain bytes that fills itself on demand (design §1).

Owns     the cache file of one blob while images use it, its chunk records and its fetches under way.
Callers  tasks of the trio thread.
Raises   BackendError, IntegrityError, FormatError, UnsupportedError, ClosedError. A full disk is no error:
         bytes are then served from memory.
Cancel   a cancelled caller stops waiting; the fetch goes on for the others.
Failure  goes to those who wait now and is then forgotten; the next reader tries again.

There is one way to a byte: what is wanted → its chunks → ready? read the cache file (cached_chunks.py) :
join or start a fetch (fetching.py). What is wanted comes as extents of a file (`read`) or as a range of
the address space (`read_plain`, `fill`). The native relay goes the first half of that way by itself, on
what `native_source` gives it, and leaves the rest to us.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import trio

from nydusd.blob.model import BLOCK_BYTES, BlobInfo, ChunkTable
from nydusd.errors import FormatError
from nydusd.rafs.model import Bootstrap, Extent
from nydusd.records import Buffer
from nydusd.storage.backend.base import Priority
from nydusd.storage.cache.files import CacheFile
from nydusd.storage.cached_chunks import CachedChunks, Run
from nydusd.storage.chunk_records import ChunkRecords
from nydusd.storage.fetching import BlobResources, Fetcher
from nydusd.storage.stats import CacheStats

if TYPE_CHECKING:
    from nydusd.native_relay import NativeSource
    from nydusd.native_tree import NativeRecords


class _Wanted(NamedTuple):
    """What a reader wants."""

    chunks: Sequence[int]  # that hold it, in its order
    runs: Sequence[Run]  # of the cache file: joined, the answer, if all chunks are ready
    length: int  # of the answer
    pieces: Callable[[], Iterable[tuple[int, Extent]]]  # part of a chunk, and where in the answer


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
        self._stats = stats
        self._memory = resources.memory
        self._workers = resources.workers
        self._records = ChunkRecords(
            info, bootstrap, resources.backend, resources.workers, directory
        )
        self._cached = CachedChunks(file, resources.workers, validate=validate)
        self._fetcher = Fetcher(info, self._records, resources, self._cached, stats, amplify_bytes)
        self._fills = 0  # whose answers will look like hits, but are none
        self._ended = trio.Event()

    # ---- life ---------------------------------------------------------------------------------

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Hold the nursery of this blob's fetches until `aclose`; then close the files."""
        try:
            await self._fetcher.run(task_status=task_status)
        finally:
            self._memory.discard_blob(self.info.blob_id)
            self._cached.close()
            self._ended.set()

    async def aclose(self) -> None:
        """End native use and all fetches, give ClosedError to who still waits, close the files."""
        self._fetcher.close()
        await self._ended.wait()

    @property
    def stats(self) -> CacheStats:
        """The blob's counters, with those of the relay added."""
        hits = self._cached.take_hits()
        fills = min(hits, self._fills)
        self._fills -= fills
        self._stats.total += hits
        self._stats.partial_hits += hits - fills
        return self._stats

    # ---- reading ------------------------------------------------------------------------------

    async def read(self, extents: Sequence[Extent]) -> Buffer:
        """Return the bytes of `extents`, all of this blob, one after another.

        One copy where everything is ready and contiguous: pread into the result.
        """
        self._stats.total += 1
        with self._cached:
            table = await self._agreeing_table(extents)
            return await self._answer(table, _of_extents(extents))

    def read_now(self, extents: Sequence[Extent]) -> Buffer | None:
        """Return what `read` would if all of it is in the page cache; None: call `read`."""
        table = self._records.loaded
        if table is None or not self._fetcher.is_open or not self.agrees_now(extents):
            return None  # not loaded, or fresher records may agree
        wanted = _of_extents(extents)
        if self._cached.missing(wanted.chunks):
            return None
        data = self._cached.read_now(wanted.runs)
        if data is not None:
            self._stats.total += 1
            self._count_hit(table, wanted.chunks)
        return data

    async def read_plain(self, offset: int, length: int) -> Buffer:
        """Return plain bytes [offset, offset + length); holes, and what lies past the end, are zeros."""
        self._stats.total += 1
        with self._cached:
            table = await self._records.plain_table(self._fetcher.nursery)
            wanted = self._of_range(table, offset, length)
            data = await self._answer(table, wanted)
            if (
                self._records.loaded is not table
            ):  # records that were wrong may have put chunks elsewhere
                table = await self._records.plain_table(self._fetcher.nursery)
                wanted = self._of_range(table, offset, length)
                data = await self._answer(table, wanted)
        missing = max(length, 0) - len(data)
        return b"".join((data, bytes(missing))) if missing else data

    async def fill(self, offset: int, length: int) -> dict[int, Buffer]:
        """Have the chunks of a plain range fetched; return those that are not in the cache file.

        Where that is none the relay can answer, or `read_plain` without waiting for the backend; that
        answer is the one that counts as a read.
        """
        try:
            with self._cached:
                table = await self._records.plain_table(self._fetcher.nursery)
                start = _chunk_before(table, offset)
                return await self._fill(
                    table, self._of_range(table, start, offset + length - start)
                )
        except BaseException:
            self._stats.total += 1  # no answer follows
            raise

    async def fill_extents(self, extents: Sequence[Extent]) -> dict[int, Buffer]:
        """Have the chunks of `extents` fetched, all of this blob; else as `fill`."""
        try:
            with self._cached:
                table = await self._agreeing_table(extents)
                return await self._fill(table, _of_extents(extents))
        except BaseException:
            self._stats.total += 1
            raise

    async def _fill(self, table: ChunkTable, wanted: _Wanted) -> dict[int, Buffer]:
        if not self._cached.missing(wanted.chunks):
            self._fetcher.continue_streams(table, wanted.chunks)
            # The relay knows that, too: it was not asked yet, or failed. In the second case we fail as well,
            # and give the file up; in the first it need not wait for the disk any more.
            if await self._cached.read(wanted.runs) is not None:
                return {}
        plain = await self._fetcher.ensure(wanted.chunks, Priority.DEMAND)
        self._fills += not plain
        return plain

    async def _answer(self, table: ChunkTable, wanted: _Wanted) -> Buffer:
        if not self._cached.missing(wanted.chunks):
            self._count_hit(table, wanted.chunks)
            if (data := await self._cached.read(wanted.runs)) is not None:
                return data
        plain = await self._fetcher.ensure(wanted.chunks, Priority.DEMAND)
        if not plain and (data := await self._cached.read(wanted.runs)) is not None:
            return data
        answer = bytearray(wanted.length)
        for at, extent in wanted.pieces():
            part: Buffer | None
            if (chunk := plain.get(extent.chunk_index)) is not None:
                part = memoryview(chunk)[extent.offset : extent.offset + extent.length]
                if extent.length == wanted.length:
                    return part
            else:
                run = Run(extent.chunk_offset + extent.offset, extent.length)
                part = await self._cached.read((run,))
                if part is None:
                    return await self._answer(table, wanted)  # once: there is no file any more
            answer[at : at + extent.length] = part
        return answer

    def _count_hit(self, table: ChunkTable, chunks: Sequence[int]) -> None:
        if self._fills:
            self._fills -= 1
        else:
            self._stats.partial_hits += 1
        self._fetcher.continue_streams(table, chunks)

    async def _agreeing_table(self, extents: Sequence[Extent]) -> ChunkTable:
        """Return the blob's records, which say of the extents' chunks what the extents say."""
        nursery = self._fetcher.nursery
        table = self._records.loaded or await self._records.table(nursery)
        try:
            self._check_claims(table, extents)
        except FormatError:
            fresher = await self._records.refreshed(nursery)
            if fresher is None:
                raise
            self._check_claims(fresher, extents)
            table = fresher
        return table

    async def refreshed_table(self) -> ChunkTable | None:
        """Return records from the blob itself in place of a side file's that cannot be right.

        None if there are no fresher ones.
        """
        return await self._records.refreshed(self._fetcher.nursery)

    def agrees_now(self, extents: Sequence[Extent]) -> bool:
        """Tell whether the records, if they are loaded, say of the chunks what `extents` say.

        False: not known, or no; `read` finds out.
        """
        table = self._records.loaded
        if table is None:
            return False
        try:
            self._check_claims(table, extents)
        except FormatError:
            return False
        return True

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

    def _of_range(self, table: ChunkTable, offset: int, length: int) -> _Wanted:
        """Return what a plain range wants, up to the end of the cache file: one run, holes included."""
        chunks = table.within(offset, offset + length)
        end = self.info.uncompressed_size
        if chunks:
            end = max(end, sum(table.claim(chunks[-1])))
        length = max(min(length, end - offset), 0)

        def pieces() -> Iterator[tuple[int, Extent]]:
            for index in chunks:
                start, size = table.claim(index)
                first, last = max(start, offset), min(start + size, offset + length)
                extent = Extent(self.info.index, index, start, size, first - start, last - first)
                yield first - offset, extent

        return _Wanted(chunks, (Run(offset, length),), length, pieces)

    # ---- chunks -------------------------------------------------------------------------------

    async def ensure(self, indices: Iterable[int], priority: Priority) -> dict[int, Buffer]:
        """Have chunks fetched. Return the plain bytes of those that are not in the cache file.

        Raises the error of a chunk that could not be had.
        """
        return await self._fetcher.ensure(indices, priority)

    async def chunk_table(self) -> ChunkTable:
        """Return the blob's chunk records, loading them if need be."""
        return await self._records.table(self._fetcher.nursery)

    async def agrees(self, claims: Iterable[tuple[int, int, int]]) -> bool:
        """Tell whether the records say the same of chunks: (chunk index, plain offset, size) each.

        Looks at all of them at once, in a worker thread; `claims` is used up there.
        """
        table = await self._records.table(self._fetcher.nursery)
        return await self._workers.run(_agree, table, claims)

    async def plain_blocks(self) -> Buffer | None:
        """Return the first 4096-byte block of each chunk, u32 ascending; None if they are not laid out so."""
        layout = (await self._records.plain_table(self._fetcher.nursery)).layout()
        return layout.blocks if layout is not None and len(layout.blocks) else None

    def is_ready(self, index: int) -> bool:
        """Tell whether chunk `index` can be served without the backend."""
        return self._cached.is_ready(index)

    def is_complete(self, chunks: Sequence[int] | None = None) -> bool:
        """Tell whether every chunk can be served without the backend, from a cache file that is whole.

        chunks: those that matter; default: all. The image of an upper layer often needs some only.
        """
        return self._cached.is_complete(chunks)

    # ---- what the kernel and the native relay use ---------------------------------------------

    def native_source(self) -> "NativeSource | None":
        """Return what the relay needs to answer ready ranges; None: nothing can be answered natively.

        Whoever uses it registers with `add_on_lost`. Descriptor and buffers are the same in each answer.
        """
        return self._cached.native_source()

    def native_records(self) -> "NativeRecords | None":
        """Return the blob's chunk records as C reads them; None: not loaded yet, or not of that kind (v5)."""
        # Here, not above: for trees that the relay shows.
        from nydusd.blob.blob_meta import CiTable
        from nydusd.native_tree import NativeRecords

        table = self._records.loaded
        if not isinstance(table, CiTable):
            return None
        return NativeRecords(table.records, table.record_bytes, len(table))

    def add_on_lost(self, callback: Callable[[], None]) -> None:
        """Have `callback` called once when the cache file goes: given up, or closed with the blob.

        It must have ended every use of the native source before it returns.
        """
        self._cached.add_on_lost(callback)

    def remove_on_lost(self, callback: Callable[[], None]) -> None:
        """Forget a callback, because its relay uses the source no more."""
        self._cached.remove_on_lost(callback)

    def touched(self, index: int) -> None:
        """A watched chunk was read natively: continue its sequential reader. Raises nothing."""
        table = self._records.loaded
        if table is not None and self._fetcher.is_open and 0 <= index < len(table):
            self._fetcher.continue_streams(table, (index,))

    def protected_path(self, chunks: Sequence[int] | None = None) -> Path | None:
        """Return a path, good in this process, to the complete cache file; None if it is not complete.

        chunks: as for `is_complete`; the others read as zeros there.

        The file is locked until the blob is closed; see cache/files.py for what that means.
        """
        return self._cached.protected_path(chunks)


def _agree(table: ChunkTable, claims: Iterable[tuple[int, int, int]]) -> bool:
    try:
        return all(table.claim(index) == (offset, size) for index, offset, size in claims)
    except FormatError:
        return False


def _chunk_before(table: ChunkTable, offset: int) -> int:
    """Return where a range from `offset` on begins for the relay: a hole is part of the chunk before it."""
    layout = table.layout()
    if layout is None or layout.is_dense:
        return offset
    number = bisect_right(layout.blocks, offset // BLOCK_BYTES) - 1
    return layout.blocks[number] * BLOCK_BYTES if number >= 0 else offset


def _of_extents(extents: Sequence[Extent]) -> _Wanted:
    """Return what extents of a file want, one after another."""
    runs: list[Run] = []
    length = 0
    for extent in extents:
        start = extent.chunk_offset + extent.offset
        if runs and sum(runs[-1]) == start:
            runs[-1] = Run(runs[-1].offset, runs[-1].length + extent.length)
        else:
            runs.append(Run(start, extent.length))
        length += extent.length

    def pieces() -> Iterator[tuple[int, Extent]]:
        at = 0
        for extent in extents:
            yield at, extent
            at += extent.length

    return _Wanted([extent.chunk_index for extent in extents], runs, length, pieces)
