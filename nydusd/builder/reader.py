"""File contents as batches of chunks, in a given order of files.

Owns     a few open files, and the batch it is filling.
Callers  chunk_stream, one thread.
Raises   BuildError naming a file that cannot be read or changed since the scan.

Batches are bounded in bytes and in pieces; holes of sparse files are passed on without being read.
"""

import errno
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from itertools import groupby
from operator import attrgetter

from nydusd.builder.encode import HOLE, Batch, Piece
from nydusd.builder.reach import reachable
from nydusd.builder.tree import BuildError, Node
from nydusd.units import KIB, MIB

BATCH_BYTES = 4 * MIB  # one hand-over to a worker costs some 50 us: small files must share it
BATCH_PIECES = 1024
AHEAD_FILES = 32  # open before their turn: a disk serves many small reads at once as fast as one
AHEAD_BYTES = 128 * KIB  # of each; the kernel's own readahead does the rest
CHANGED = "the file changed while the image was built"
SPARSE_MIN_BYTES = MIB  # smaller files are read without asking for holes
_OPEN_FLAGS = (
    os.O_RDONLY
    | os.O_CLOEXEC
    | os.O_NOFOLLOW
    | os.O_NONBLOCK  # a FIFO that took the file's place since the scan must not stop us
)


class ChunkReader:
    """Cuts files into chunks and hands them over in batches."""

    def __init__(self, source: bytes, chunk_size: int, hand_over: Callable[[Batch], Batch]) -> None:
        """`hand_over` takes a filled batch and gives an empty one of at least `chunk_size` bytes."""
        self._source = source
        self._chunk_size = chunk_size
        self._hand_over = hand_over
        self._batch = Batch(max(BATCH_BYTES, chunk_size))
        self._references = 0

    def read(self, files: Iterable[Node]) -> None:
        """Read `files` in order, setting first_chunk and chunk_count of each."""
        for node, file in self._opened_ahead(files):
            try:
                self._read_file(node, file)
            except OSError as exc:
                raise self._error(node, exc.strerror) from exc
            finally:
                os.close(file)

    def _opened_ahead(self, files: Iterable[Node]) -> Iterator[tuple[Node, int]]:
        """Yield files open, some while before their turn: the disk fetches their first bytes meanwhile.

        The caller closes what it was given.
        """
        window: deque[tuple[Node, int]] = deque()
        try:
            for node, file in self._opened(files):
                window.append((node, file))
                _ask_early(file, node.size)
                if len(window) > AHEAD_FILES:
                    yield window.popleft()
            while window:
                yield window.popleft()
        finally:
            for _, file in window:
                os.close(file)

    def _opened(self, files: Iterable[Node]) -> Iterator[tuple[Node, int]]:
        for parent, group in groupby(files, key=attrgetter("parent")):
            with reachable(self._source, parent.relative_path) as prefix:
                for node in group:
                    try:
                        file = os.open(prefix + node.name, _OPEN_FLAGS)
                    except OSError as exc:
                        raise self._error(node, exc.strerror) from exc
                    yield node, file

    def _error(self, node: Node, why: str | None) -> BuildError:
        path = os.fsdecode(self._source + b"/" + node.relative_path)
        return BuildError(f"{path}: {why}")

    def flush(self) -> None:
        """Hand over what is left."""
        if self._batch.pieces:
            self._batch = self._hand_over(self._batch)

    def _read_file(self, node: Node, file: int) -> None:
        size, chunk_size = node.size, self._chunk_size
        node.first_chunk = self._references
        node.chunk_count = -(-size // chunk_size)
        self._references += node.chunk_count
        offset = 0
        while offset < size:
            holes = _whole_holes(file, offset, size, chunk_size)
            if holes:
                offset = self._add_hole(offset, holes, size)
            else:
                offset = self._add_data(node, file, offset, min(chunk_size, size - offset))
        status = os.fstat(file)
        if status.st_size != size or status.st_mtime_ns != node.mtime_ns:
            raise self._error(node, CHANGED)

    def _add_data(self, node: Node, file: int, offset: int, length: int) -> int:
        """Read one chunk into the batch and return the offset behind it."""
        batch = self._batch
        if len(batch.buffer) - batch.used < length or len(batch.pieces) >= BATCH_PIECES:
            batch = self._batch = self._hand_over(batch)
        start = batch.used
        end = start + length
        filled = start
        while filled < end:
            count = os.preadv(file, [batch.view[filled:end]], offset + filled - start)
            if count == 0:
                raise self._error(node, CHANGED)
            filled += count
        batch.used = end
        batch.pieces.append(Piece(start, length, offset, 1))
        return offset + length

    def _add_hole(self, offset: int, chunks: int, size: int) -> int:
        """Note `chunks` chunks of zeros and return the offset behind them."""
        if len(self._batch.pieces) >= BATCH_PIECES:
            self._batch = self._hand_over(self._batch)
        length = min(self._chunk_size, size - offset)
        self._batch.pieces.append(Piece(HOLE, length, offset, chunks))
        return offset + length * chunks


def _ask_early(file: int, size: int) -> None:
    # No regular file any more? Then reading it will say so, with its name.
    with suppress(OSError):
        os.posix_fadvise(file, 0, min(size, AHEAD_BYTES), os.POSIX_FADV_WILLNEED)


def _whole_holes(file: int, offset: int, size: int, chunk_size: int) -> int:
    """Return how many chunks from `offset` on are holes; a shorter last chunk is counted by itself."""
    if size < SPARSE_MIN_BYTES:
        return 0
    try:
        data = os.lseek(file, offset, os.SEEK_DATA)
    except OSError as exc:
        if exc.errno != errno.ENXIO:  # no data up to the end of the file
            return 0
        data = size
    if data >= size:
        whole = (size - offset) // chunk_size
        return whole or 1
    return (data - offset) // chunk_size
