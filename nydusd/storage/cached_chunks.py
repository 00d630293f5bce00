"""Which chunks of a blob its cache file holds for this process, and that file's life.

Owns     the CacheFile from the blob's start to its end, and what the native relay is given of it: live
         ready bits, watch bits, a counter of hits.
Callers  LazyBlob and its Fetcher, in the trio thread. Relay threads use descriptor and buffers until they
         are told not to: every way to lose the file goes through `_end_native_use` first.
Raises   nothing. A file that cannot be read any more is given up: from then on no chunk is here.
Cancel   a cancelled `read` waits for its thread; nothing is left behind.
"""

import logging
import struct
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from nydusd import native
from nydusd.blob.model import Chunk
from nydusd.errors import ProtectionError
from nydusd.storage.cache.chunk_map import ChunkMap
from nydusd.storage.cache.files import CacheFile
from nydusd.storage.readahead import Marks
from nydusd.storage.threads import Workers

if TYPE_CHECKING:  # loaded with the first native source, not before
    from nydusd.native_relay import NativeSource

log = logging.getLogger(__name__)

_COUNTER: Final = struct.Struct("@Q")  # native and aligned: read whole, whatever threads add to it


class Run(NamedTuple):
    """Plain bytes that are read at once: [offset, offset + length)."""

    offset: int
    length: int


class CachedChunks:
    """The chunks of one blob that are in its cache file. Ends with `close`."""

    def __init__(self, file: CacheFile | None, workers: Workers, *, validate: bool) -> None:
        """Take over `file`; None: there is no cache.

        validate: what others cached counts only once it was checked here, or was written by this process.
        """
        self.file = file
        self._workers = workers
        self._ready: ChunkMap | None = None  # chunks that may be served
        if file is not None:
            self._ready = ChunkMap.in_memory(len(file.map)) if validate else file.map
        self._watch: bytearray | None = None
        self._hits = bytearray(_COUNTER.size)
        self._hits_taken = 0
        self._on_lost: list[Callable[[], None]] = []
        self._lost_files: list[CacheFile] = []
        self._users = 0
        self._is_closing = False

    # ---- life ---------------------------------------------------------------------------------

    def __enter__(self) -> None:
        """Keep descriptors open for the length of the block. Blocks of many tasks may overlap."""
        self._users += 1

    def __exit__(self, *_: object) -> None:
        """Let them go."""
        self._users -= 1
        self._close_unless_used()

    def close(self) -> None:
        """End native use now; close the files when the last reader has gone."""
        self._is_closing = True
        self._end_native_use()
        self._close_unless_used()

    def _close_unless_used(self) -> None:
        # The last user closes: the number of a descriptor that a thread uses must not be reused.
        if self._is_closing and not self._users:
            for file in filter(None, (self.file, *self._lost_files)):
                file.close()
            self.file = self._ready = None
            self._lost_files.clear()

    def give_up(self, file: CacheFile, reason: str) -> None:
        """Use `file` no more: what the map says of it is not true."""
        if self.file is not file:
            return
        log.warning("cache file is lost, not used any more: file=%s reason=%s", file.path, reason)
        self._end_native_use()
        self._lost_files.append(file)  # closed at the end: threads may still use its descriptor
        self.file = self._ready = None

    def _give_up_cut(self, file: CacheFile) -> None:
        # The file may come to its full size again, by a write of ours that is under way or another daemon's.
        file.disown_map()
        self.give_up(file, "somebody truncated it")

    # ---- what is there ------------------------------------------------------------------------

    def is_ready(self, index: int) -> bool:
        """Tell whether chunk `index` can be served from the file."""
        return self._ready is not None and self._ready.is_ready(index)

    def missing(self, indices: Iterable[int]) -> list[int]:
        """Return those chunks that cannot be served from the file, in their order."""
        if self._ready is None:
            return list(indices)
        return self._ready.absent(indices)

    def is_complete(self, chunks: Sequence[int] | None = None) -> bool:
        """Tell whether every chunk, or each of `chunks`, can be served from the file, and the file is whole."""
        file, ready = self.file, self._ready
        if file is None or ready is None or not file.is_whole():
            return False
        return ready.is_complete() or (chunks is not None and not ready.absent(chunks))

    def unchecked(self, chunks: Sequence[Chunk]) -> list[Chunk]:
        """Return those chunks that are in the file, but were not checked where they must be."""
        if self.file is None or self._ready is self.file.map:
            return []
        return [c for c in chunks if self.file.map.is_ready(c.chunk_index)]

    def file_to_fill(self) -> CacheFile | None:
        """Return the file for fetched chunks; None: there is none any more.

        Asked right before the write: behind the end of a truncated file it would make it long again, and
        ready chunks that were cut off would be zeros.
        """
        if self.file is not None and self.file.is_cut():
            self._give_up_cut(self.file)
        return self.file

    def mark(self, file: CacheFile, indices: Sequence[int]) -> int:
        """Set the bits of chunks that are in `file` and right; return how many were not set in its map."""
        fresh = file.map.mark(indices)
        if self.file is file and self._ready is not None and self._ready is not file.map:
            self._ready.mark(indices)
        return fresh

    # ---- reading ------------------------------------------------------------------------------

    def read_now(self, runs: Sequence[Run]) -> bytes | None:
        """Return the bytes of `runs`, joined, if the page cache has them all, else None."""
        file = self.file
        if file is None:
            return None
        pieces: list[bytes] = []
        try:
            for offset, length in runs:
                if (data := file.read_now(offset, length)) is None:
                    return None
                pieces.append(data)
        except OSError:
            return None  # `read` finds out what it means
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    async def read(self, runs: Sequence[Run]) -> bytes | None:
        """Return the bytes of `runs`, joined; None if the file is lost. Does not look at ready bits."""
        file = self.file
        if file is None:
            return None
        pieces: list[bytes] = []
        for offset, length in runs:
            try:
                data = file.read_now(offset, length)
                if data is None:
                    data = await self._workers.run(file.read, offset, length)
            except OSError as exc:
                self.give_up(file, exc.strerror or str(exc))
                return None
            if len(data) != length:
                self._give_up_cut(file)
                return None
            pieces.append(data)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    # ---- native use ---------------------------------------------------------------------------

    def native_source(self) -> "NativeSource | None":
        """Return descriptor and buffers for a relay, the same ones each time; None without a file."""
        if self.file is None or self._ready is None or self._is_closing:
            return None
        from nydusd.native_relay import NativeSource

        count = len(self._ready)
        if self._watch is None:
            self._watch = bytearray((count + 7) // 8)
        bits, base = self._ready.native_bits()
        return NativeSource(self.file.fd, bits, base, count, self._watch, self._hits)

    def add_on_lost(self, callback: Callable[[], None]) -> None:
        """Have `callback` called once before the file goes."""
        self._on_lost.append(callback)

    def remove_on_lost(self, callback: Callable[[], None]) -> None:
        """Forget a callback, if it was not called yet."""
        if callback in self._on_lost:
            self._on_lost.remove(callback)

    def _end_native_use(self) -> None:
        while self._on_lost:
            self._on_lost.pop()()

    def watch(self, marks: Marks) -> None:
        """Have the first native use of some chunks told, and of others not."""
        if self._watch is None or self._ready is None:
            return
        count = len(self._ready)  # a record may claim more chunks than the map has
        for index in marks.unwatch:
            if index >= count:
                continue
            # A relay thread may clear another bit of this byte just now, and we set it again: then a use
            # of that chunk is told twice, which does no harm.
            self._watch[index >> 3] &= ~(0x80 >> (index & 7)) & 0xFF
        native.mark_ready(self._watch, 0, count, [i for i in marks.watch if i < count])

    def take_hits(self) -> int:
        """Return how many runs were answered natively since the last call."""
        (hits,) = _COUNTER.unpack_from(self._hits)
        fresh = hits - self._hits_taken
        self._hits_taken = hits
        return int(fresh)

    def protected_path(self, chunks: Sequence[int] | None = None) -> Path | None:
        """Return a path to the file if it is complete and could be locked, else None (see cache/files.py).

        chunks: all that will be read; default: every one.

        It names the open file itself: whatever may be put in its place on disk meanwhile.
        """
        file = self.file
        if file is None or not self.is_complete(chunks):
            return None
        try:
            file.protect()
        except ProtectionError as exc:
            log.warning("complete blob is served by this process: reason=%s", exc)
            return None
        return Path(f"/proc/self/fd/{file.fd}")
