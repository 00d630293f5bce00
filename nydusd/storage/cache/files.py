"""One blob's files in the cache directory: data file and chunk map, opened together (spec blobcache §2).

Owns     the descriptor of `<id>.blob.data` and its ChunkMap.
Callers  any task. `read_now` never blocks on a disk; `read` may and belongs in a worker thread.
Raises   ConfigError if the directory cannot be used at all. A file that is foreign is replaced under a
         new inode, so that another daemon that has the old one open is not disturbed; a disk that is
         full or read-only gives a cache without files (`open_cache_file` returns None).

The data file is sparse: chunks lie at their uncompressed offsets, nothing is written between them.

Two locks, which do not know of each other (flock and byte-range locks are separate on Linux):

- *Opening* (flock, for the few file operations of an open): shared by openers who find the file right,
  exclusive for one who has to size or replace it.
- *Protection* (open-file-description lock on all bytes, shared, until the file is closed): the kernel may
  read the file by itself now, e.g. as an EROFS device, so its bytes must stay. The rule, for every program
  that handles these files: who wants to truncate, extend, punch or overwrite a data file takes this lock
  exclusively first, without waiting, and leaves the file alone if he does not get it. Writing a chunk's own
  bytes where they belong is no change. Removing the name, or putting another file in its place, harms
  nobody and needs no lock. The lock ends with the process; a mount that outlives its daemon has none until
  a successor protects the file again.
"""

import errno
import fcntl
import logging
import os
import stat
import struct
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from nydusd.errors import ProtectionError
from nydusd.records import Buffer
from nydusd.storage.cache.chunk_map import ChunkMap

log = logging.getLogger(__name__)

DATA_SUFFIX: Final = ".blob.data"
MAP_SUFFIX: Final = ".blob.data.chunk_map"
RAW_SUFFIX: Final = ".blob.raw"
META_SUFFIX: Final = ".blob.meta"
TOC_SUFFIX: Final = ".blob.toc"
DIGEST_SUFFIX: Final = ".blob.digest"
BOOT_SUFFIX: Final = ".image.boot"

OPEN_LOCK_TRIES: Final = 50
OPEN_LOCK_PAUSE_S: Final = 0.01  # who sizes the file holds the lock for a few file operations
_FLOCK: Final = struct.Struct("@hhqqi4x")  # struct flock: type, whence, start, length (0: all), pid


class CacheFile:
    """The data file of one blob and the map of what is in it."""

    def __init__(self, path: Path, fd: int, size_bytes: int, chunk_map: ChunkMap) -> None:
        """Take over `fd` and `chunk_map`. Use `open_cache_file`."""
        self.path = path
        self.fd = fd
        self.size_bytes = size_bytes
        self.map = chunk_map

    def read_now(self, offset: int, length: int) -> bytes | None:
        """Return bytes [offset, offset + length) if the page cache has them all, else None."""
        buffer = bytearray(length)
        try:
            got = os.preadv(self.fd, [buffer], offset, os.RWF_NOWAIT)
        except OSError as exc:
            if exc.errno in (errno.EAGAIN, errno.EOPNOTSUPP):
                return None
            raise
        return bytes(buffer) if got == length else None

    def read(self, offset: int, length: int) -> bytes:
        """Return bytes [offset, offset + length), fewer only if somebody truncated the file."""
        data = os.pread(self.fd, length, offset)
        if len(data) in (0, length):
            return data
        pieces = [data]  # a read that a signal or the kernel's 2 GiB limit cut short goes on
        while data and (got := sum(map(len, pieces))) < length:
            pieces.append(data := os.pread(self.fd, length - got, offset + got))
        return b"".join(pieces)

    def is_whole(self) -> bool:
        """Tell whether the data file has its full size and holds anything at all."""
        status = os.fstat(self.fd)
        return status.st_size == self.size_bytes and (status.st_blocks > 0 or not self.size_bytes)

    def is_cut(self) -> bool:
        """Tell whether somebody truncated the data file."""
        status = os.fstat(self.fd)
        return stat.S_ISREG(status.st_mode) and status.st_size < self.size_bytes

    def disown_map(self) -> None:
        """Take the map's name away: its bits lie, and the next opener must not trust them.

        Who has it mapped finds out as we did. Raises nothing.
        """
        with suppress(OSError):
            self.path.with_name(self.path.name.removesuffix(DATA_SUFFIX) + MAP_SUFFIX).unlink()

    def protect(self) -> None:
        """Keep everybody who follows the rule above from changing the file, until it is closed.

        Openers are not held up. Raises ProtectionError if somebody is changing the file now, if it is not
        whole, or if the file system has no such locks.
        """
        try:
            _lock_bytes(self.fd, fcntl.F_RDLCK)
        except OSError as exc:
            raise ProtectionError(f"{self.path} cannot be locked: {exc.strerror}") from exc
        if not self.is_whole():  # looked at under the lock: from here on it stays as it is
            _lock_bytes(self.fd, fcntl.F_UNLCK)
            raise ProtectionError(f"{self.path} is not whole any more")

    def close(self) -> None:
        """Close both files. Readers under way in threads must have ended."""
        self.map.close()
        os.close(self.fd)


def open_cache_file(
    directory: Path, blob_id: str, size_bytes: int, chunk_count: int, *, indexed: bool
) -> CacheFile | None:
    """Open or create the data file and map of a blob; None if the disk does not let us.

    size_bytes: of the plain address space; the file is made that long, sparse. indexed: False keeps the
    map in memory (v5 without chunk counts, spec blobcache §3 "Digest map").

    The map is trusted only if the data file was there in full before: bits that outlive a removed data
    file, or that speak of a `.blob.raw` beside it (spec blobcache §2), would serve zeros.
    """
    path = directory / f"{blob_id}{DATA_SUFFIX}"
    map_path = directory / f"{blob_id}{MAP_SUFFIX}"
    try:
        fd, was_whole = _open_data(path, map_path, size_bytes)
    except OSError as exc:
        log.warning("blob is not cached on disk: file=%s reason=%s", path, exc.strerror)
        return None
    if indexed:
        trusted = was_whole and not (directory / f"{blob_id}{RAW_SUFFIX}").exists()
        chunk_map = ChunkMap.open(map_path, chunk_count, trusted=trusted)
    else:
        chunk_map = ChunkMap.in_memory(chunk_count)
    fcntl.flock(fd, fcntl.LOCK_UN)
    return CacheFile(path, fd, size_bytes, chunk_map)


def _open_data(path: Path, map_path: Path, size_bytes: int) -> tuple[int, bool]:
    """Return a descriptor of the data file at full size, flocked, and whether it held data of that size."""
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            is_right = os.fstat(fd).st_size == size_bytes
            _lock_for_opening(fd, fcntl.LOCK_SH if is_right else fcntl.LOCK_EX)
            status = os.fstat(fd)
            if status.st_nlink and status.st_size == size_bytes:
                # A file without a single block holds no chunk, whatever a map says.
                return fd, status.st_blocks > 0 or size_bytes == 0
            if status.st_nlink and not is_right:
                if status.st_size < size_bytes and _extend(fd, size_bytes):
                    return fd, False
                _remove_foreign(path, map_path, status.st_size, size_bytes)
        except OSError:
            os.close(fd)
            raise
        os.close(fd)  # removed or changed between our open and our lock: look again


def _extend(fd: int, size_bytes: int) -> bool:
    """Make the file longer; False if it is protected: then it is in use, and of another blob."""
    try:
        _lock_bytes(fd, fcntl.F_WRLCK)
    except OSError as exc:
        if exc.errno in (errno.EAGAIN, errno.EACCES):
            return False
        # The file system has no such locks, so nobody can have protected the file.
    try:
        os.ftruncate(fd, size_bytes)
    finally:
        with suppress(OSError):
            _lock_bytes(fd, fcntl.F_UNLCK)
    return True


def _remove_foreign(path: Path, map_path: Path, found_bytes: int, size_bytes: int) -> None:
    log.warning(
        "cache file replaced, it is not of this blob: file=%s size=%d expected=%d",
        path,
        found_bytes,
        size_bytes,
    )
    # The map first: who has the old data file open goes on marking in it, and it must not be taken for
    # the new file's.
    map_path.unlink(missing_ok=True)
    path.unlink()


def _lock_for_opening(fd: int, mode: int) -> None:
    """Take the opening lock. Not for long, and not if a stranger holds it."""
    for _ in range(OPEN_LOCK_TRIES):
        try:
            fcntl.flock(fd, mode | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(OPEN_LOCK_PAUSE_S)
        else:
            return
    log.warning("cache file is locked by another process, going on without the lock: fd=%d", fd)


def _lock_bytes(fd: int, kind: int) -> None:
    """Take (F_RDLCK, F_WRLCK) or give (F_UNLCK) the protection lock of this descriptor, without waiting."""
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(kind, os.SEEK_SET, 0, 0, 0))


def replace_file(path: Path, parts: Sequence[Buffer]) -> None:
    """Write a side file whole or not at all: temporary name, fsync, rename. Raises OSError.

    Threads and processes may do so at the same time; the last one's file stays.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_native_id()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.writelines(parts)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
    finally:
        temporary.unlink(missing_ok=True)
