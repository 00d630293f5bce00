"""Which chunks of a blob are in its cache file: the chunk map (spec blobcache §3).

Owns     the mapping of one `<id>.blob.data.chunk_map`, shared with other daemons on the same directory.
Callers  any task; every call is synchronous and cheap. Bits are only ever set, by atomic byte updates.
Raises   nothing once open. A map that cannot be kept on disk is kept in memory: chunks are then fetched
         again by the next process, and never served wrong.

Bit of chunk i: byte 4096 + i/8, most significant first. Data is written before its bit; the caller sees to that.
"""

import logging
import mmap
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Final, NamedTuple

from nydusd import native
from nydusd.errors import FormatError
from nydusd.records import At, Buffer, Record

log = logging.getLogger(__name__)

HEADER_BYTES: Final = 4096
MAGIC: Final = 0x424D4150
MAGIC2: Final = 0x434D4150
ALL_READY: Final = 0x4D4D4150
VERSION: Final = 1


class MapHeader(NamedTuple):
    """The header's used part, little-endian on every supported host (spec blobcache §3)."""

    magic: Annotated[int, At(0, "I")]
    version: Annotated[int, At(4, "I")]
    magic2: Annotated[int, At(8, "I")]
    all_ready: Annotated[int, At(12, "I")]


MAP_HEADER: Final = Record(MapHeader, size_bytes=16)


def map_file_bytes(chunk_count: int) -> int:
    """Return the exact size of a map file."""
    return HEADER_BYTES + (chunk_count + 7) // 8


def check_header(head: bytes, file_bytes: int, chunk_count: int) -> MapHeader:
    """Return the header of a map file, or raise FormatError if it cannot be trusted.

    A header of zeros is a map that another process has sized but not written yet: it holds no bits.
    """
    expected = map_file_bytes(chunk_count)
    if file_bytes != expected:
        raise FormatError("chunk map size", file_bytes, f"must be {expected}")
    header = MAP_HEADER.read(head)
    if header.magic == 0 and not any(head):
        return MapHeader(MAGIC, VERSION, MAGIC2, 0)
    if header.magic != MAGIC:
        raise FormatError("chunk map magic", hex(header.magic), f"must be {MAGIC:#x}")
    if header.version >= 1 and header.magic2 != MAGIC2:
        raise FormatError("chunk map magic2", hex(header.magic2), f"must be {MAGIC2:#x}")
    return header


def check_empty(header: MapHeader, bits: bytes) -> None:
    """Raise FormatError if a map, whose data file is new, says that chunks are there."""
    if header.all_ready or any(bits):
        raise FormatError("chunk map bits", "set", "but the data file is not theirs")


class ChunkMap:
    """The ready bits of one blob, mapped from its file or kept in memory."""

    def __init__(
        self, bits: mmap.mmap | bytearray, chunk_count: int, *, base: int, all_ready: bool
    ) -> None:
        """`bits`: the bitmap starts at byte `base` of it. Use `open` or `in_memory`."""
        self._bits = bits
        self._base = base
        self._count = chunk_count
        self._all_ready = all_ready

    @classmethod
    def in_memory(cls, chunk_count: int) -> "ChunkMap":
        """Return a map without a file, nothing ready."""
        return cls(bytearray((chunk_count + 7) // 8), chunk_count, base=0, all_ready=False)

    @classmethod
    def open(cls, path: Path, chunk_count: int, *, trusted: bool) -> "ChunkMap":
        """Open, create or replace the map file at `path`.

        trusted: False if the data file was not there: bits that a file of that name holds are then lies.
        A file of the wrong size or magic, or with such bits, is replaced under a new inode, so that a daemon
        that has the old one mapped is not disturbed. OSError (full or read-only disk): a map in memory.
        """
        try:
            return cls._open_file(path, chunk_count, trusted=trusted)
        except OSError as exc:
            log.warning("chunk map kept in memory only: map=%s reason=%s", path, exc.strerror)
            if not trusted:  # its bits would pass for the data file's at the next open
                with suppress(OSError):
                    path.unlink(missing_ok=True)
            return cls.in_memory(chunk_count)

    @classmethod
    def _open_file(cls, path: Path, chunk_count: int, *, trusted: bool) -> "ChunkMap":
        expected = map_file_bytes(chunk_count)
        for _ in range(3):  # a remover or another creator may be between our steps
            try:
                fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            except FileNotFoundError:
                _create(path, expected)
                continue
            try:
                size = os.fstat(fd).st_size
                if size == 0:  # the reference creates first and sizes then (spec blobcache §3)
                    os.ftruncate(fd, size := expected)
                header = check_header(os.pread(fd, HEADER_BYTES, 0), size, chunk_count)
                if not trusted:
                    check_empty(header, os.pread(fd, expected, HEADER_BYTES))
                # Every block is allocated before it is mapped: on a full disk a write to a hole of a
                # mapping kills the process with SIGBUS (spec blobcache §12).
                os.posix_fallocate(fd, 0, expected)
                os.pwrite(fd, MAP_HEADER.pack(header), 0)
                bits = mmap.mmap(fd, expected)
            except FormatError as exc:
                log.warning(
                    "chunk map replaced, nothing in it is trusted: map=%s reason=%s", path, exc
                )
                _create(path, expected, replace=True)
                continue
            finally:
                os.close(fd)
            return cls._adopt(bits, header, chunk_count)
        raise FileNotFoundError(2, "removed as fast as it is created", str(path))

    @classmethod
    def _adopt(cls, bits: mmap.mmap, header: MapHeader, chunk_count: int) -> "ChunkMap":
        all_ready = header.version >= 1 and header.all_ready == ALL_READY
        if not all_ready and header.version >= 1:
            ready = native.count_ready(bits, HEADER_BYTES, chunk_count)
            if ready == chunk_count:
                # Like the reference, only an open writes the flag (spec blobcache §3).
                MAP_HEADER.pack_into(memoryview(bits), 0, header._replace(all_ready=ALL_READY))
                all_ready = True
        return cls(bits, chunk_count, base=HEADER_BYTES, all_ready=all_ready)

    def __len__(self) -> int:
        """Number of chunks."""
        return self._count

    @property
    def is_persistent(self) -> bool:
        """True if the bits outlive this process."""
        return isinstance(self._bits, mmap.mmap)

    def is_ready(self, index: int) -> bool:
        """Tell whether chunk `index` is in the cache file; sees bits set by other daemons at once."""
        return self._all_ready or bool(
            self._bits[self._base + (index >> 3)] & (0x80 >> (index & 7))
        )

    def is_complete(self) -> bool:
        """Tell whether every chunk is in the cache file."""
        if not self._all_ready and self.count_ready() == self._count:
            self._all_ready = True
        return self._all_ready

    def count_ready(self) -> int:
        """Return the number of chunks in the cache file."""
        if self._all_ready:
            return self._count
        return native.count_ready(self._bits, self._base, self._count)

    def mark(self, indices: Sequence[int]) -> int:
        """Set bits, after their data was written; return how many were not set before."""
        return native.mark_ready(self._bits, self._base, self._count, indices)

    def native_bits(self) -> tuple[Buffer, int]:
        """Return (buffer, byte where the bitmap begins): the live bits, for readers outside Python.

        A mapped buffer stays mapped as long as somebody holds it, whatever `close` does.
        """
        if (
            self._all_ready
            and native.count_ready(self._bits, self._base, self._count) < self._count
        ):
            return bytes(
                b"\xff" * ((self._count + 7) // 8)
            ), 0  # the flag counts, not the bits (§3)
        return self._bits, self._base

    def absent(self, indices: Iterable[int]) -> list[int]:
        """Return those of `indices` that are not in the cache file, in their order."""
        return [index for index in indices if not self.is_ready(index)]

    def close(self) -> None:
        """Unmap. The map must not be used afterwards.

        While somebody holds `native_bits`, the mapping stays and goes with its last holder.
        """
        if isinstance(self._bits, mmap.mmap):
            with suppress(BufferError):
                self._bits.close()


def _create(path: Path, size_bytes: int, *, replace: bool = False) -> None:
    """Put a fresh, whole map file at `path`; without `replace` an existing one wins."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    try:
        os.posix_fallocate(fd, 0, size_bytes)
        os.pwrite(fd, MAP_HEADER.pack(MapHeader(MAGIC, VERSION, MAGIC2, 0)), 0)
        os.fsync(fd)
        if replace:
            temporary.rename(path)
        else:
            try:
                os.link(temporary, path)
            except FileExistsError:
                return
    finally:
        os.close(fd)
        temporary.unlink(missing_ok=True)
