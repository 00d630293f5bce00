"""File contents → distinct chunks in the blob, through a few worker threads.

Owns     the threads, while a `with` lasts, and at most `threads` + 2 batches of BATCH_BYTES (or one
         chunk, if that is longer): memory does not grow with the contents.
Callers  build.
Raises   BuildError; OSError of the blob file.
Cancel   an exception in the `with` body ends the threads once their present batch is done.

The calling thread reads files and writes the blob; the workers digest and compress. Batches are settled
in the order in which they were read, so the blob does not depend on the timing of threads.
"""

from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self

from nydusd.builder.encode import Batch, Encoded, Encoder
from nydusd.builder.ledger import ChunkLedger
from nydusd.builder.options import BuildOptions
from nydusd.builder.reader import BATCH_BYTES, ChunkReader
from nydusd.builder.tree import Node
from nydusd.units import KIB

# With chunks as small as this the interpreter is the work, not the codec, and threads only fight for it:
# 100,000 files of 200 bytes took 4.1 s in the calling thread alone, 5.6 s with two workers (2 cores).
SMALL_PIECE_BYTES = 4 * KIB


class ChunkStream:
    """Writes the chunks of files through `write`, each distinct chunk once."""

    def __init__(
        self,
        source: bytes,
        options: BuildOptions,
        ledger: ChunkLedger,
        write: Callable[[bytes], object],
        report: Callable[[int], None] | None = None,
    ) -> None:
        """`report` is told now and then how many file bytes were settled."""
        self._encoder = Encoder(options.codec, options.digester, options.chunk_size)
        self._ledger = ledger
        self._write = write
        self._report = report
        self._batch_bytes = max(BATCH_BYTES, options.chunk_size)
        self._limit = options.threads + 1
        self._pool = ThreadPoolExecutor(options.threads, thread_name_prefix="encode")
        self._flying: deque[tuple[Batch, Future[list[Encoded]]]] = deque()
        self._free: list[Batch] = []
        self._settled_bytes = 0
        self._reader = ChunkReader(source, options.chunk_size, self._submit)

    def __enter__(self) -> Self:
        """Return self."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the threads; what was not settled is dropped."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def add(self, files: Iterable[Node]) -> None:
        """Store the contents of `files`, in order, and return when all of it is written."""
        self._reader.read(files)
        self._reader.flush()
        while self._flying:
            self._settle()

    def _submit(self, batch: Batch) -> Batch:
        """Give a filled batch to a worker and return an empty one."""
        if batch.used < SMALL_PIECE_BYTES * len(batch.pieces):
            future: Future[list[Encoded]] = Future()
            future.set_result(self._encoder.encode(batch, self._ledger))
        else:
            future = self._pool.submit(self._encoder.encode, batch, self._ledger)
        self._flying.append((batch, future))
        if len(self._flying) > self._limit:
            self._settle()
        return self._free.pop() if self._free else Batch(self._batch_bytes)

    def _settle(self) -> None:
        """Enter the oldest batch into the ledger and write what is new in it."""
        batch, future = self._flying.popleft()
        ledger = self._ledger
        fresh: list[bytes | memoryview] = []
        for piece, chunk in zip(batch.pieces, future.result(), strict=True):
            _, length, file_offset, times = piece
            number = ledger.position_of(chunk.digest)
            if number is None:
                number = ledger.add(
                    chunk.digest,
                    chunk.crc32,
                    len(chunk.stored),
                    length,
                    file_offset,
                    is_compressed=chunk.is_compressed,
                )
                fresh.append(chunk.stored)
                duplicates = times - 1
            else:
                duplicates = times
            if duplicates:
                ledger.count_duplicates(duplicates, length)
            ledger.refer(number, times)
            self._settled_bytes += length * times
        if fresh:
            self._write(b"".join(fresh))
        if self._report is not None:
            self._report(self._settled_bytes)
        batch.clear()
        self._free.append(batch)
