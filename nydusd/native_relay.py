"""The typed edge of native/relay.h: threads that answer for ready ranges and for names, and queue the rest.

Owns     the threads, their eventfd and queue; references to every buffer that C was given, until it is
         dropped. Devices and cache files stay the caller's: they must be open until `stop`, or until
         the source is dropped. Devices are one FUSE descriptor or clones of it.
Callers  `take`, `answer` and what adds and drops: any thread, while the relay runs or not. `start`,
         `stop` and `close`: one caller at a time. The GIL is released while C works; the relay's
         threads never need it.
Raises   OSError with C's errno, TimeoutError; ValueError for buffers and numbers that do not fit each
         other, OverflowError for numbers that no file has; MemoryError.
Cancel   nothing here waits for the network. `stop` waits for threads, `drop_*` for READs that have
         begun, all of them at most for the disk.

A buffer that was given must not change but for bits being set. Watch bits are cleared here and set by
`nydusd.native.mark_ready`. After a source was dropped, messages that name it may still be queued.
"""

import errno
import os
import struct
from collections.abc import Sequence
from enum import IntEnum
from typing import TYPE_CHECKING, Final, NamedTuple

from nydusd._native import ffi, lib
from nydusd.native import Buffer
from nydusd.native_tree import NativeTree

if TYPE_CHECKING:  # cffi's own class has no name that could be imported
    from nydusd._native import CData

SEGMENT: Final = struct.Struct("=QQIIII")
"""nd_segment: file_offset, cache_offset, length, chunk, source, 0."""

TOUCHED: Final = struct.Struct("=II")
"""Body of a TOUCHED message: source, chunk."""

ENDED: Final = struct.Struct("=i")
"""Body of an ENDED message: errno."""

REPLY_BYTES_MAX: Final = 1 << 20  # ND_REPLY_BYTES_MAX: a READ of more is always queued
REQUEST_BYTES_MAX: Final = 16384  # ND_REQUEST_BYTES_MAX: max_write must leave room for a header
THREADS_MAX: Final = 64  # ND_RELAY_THREADS_MAX

_MESSAGE: Final = struct.Struct("=IHH")  # nd_message
_TAKE_BYTES: Final = 2 * REQUEST_BYTES_MAX
_BUCKETS: Final = 8
_COUNTS_BYTES: Final = 8 * (3 + 2 * _BUCKETS)  # nd_read_counts


class Kind(IntEnum):
    """What a message is (enum nd_message_kind)."""

    REQUEST = 0  # as the kernel sent it, at least a whole header
    TOUCHED = 1  # a watched ready chunk was read; its watch bit is clear now
    ENDED = 2  # a device cannot be read any more; once after each start


class Message(NamedTuple):
    """Something for Python to do; `device` is a position in what `start` was given."""

    kind: Kind
    device: int
    body: bytes


class NativeSource(NamedTuple):
    """A cache file and the map of what it holds."""

    fd: int
    bits: Buffer  # a chunk map; its bitmap begins at byte `base`
    base: int
    chunk_count: int
    watch: bytearray | None  # one bit per chunk, from byte 0; None: nothing is watched
    hits: bytearray  # 8 bytes: a counter, one per run of a READ's bytes that lies in this source


class ReadCounts:
    """READs of a file, or of several together, that the relay has answered."""

    __slots__ = ("_buffer", "_counters")

    def __init__(self) -> None:
        """Begin with zeros."""
        self._buffer = bytearray(_COUNTS_BYTES)
        self._counters = memoryview(self._buffer).cast("Q")

    @property
    def reads(self) -> int:
        """Number of replies with data."""
        return self._counters[0]

    @property
    def bytes(self) -> int:
        """Bytes in them."""
        return self._counters[1]

    @property
    def latency_us(self) -> int:
        """Sum of the times from a request's arrival to its reply."""
        return self._counters[2]

    @property
    def by_size(self) -> Sequence[int]:
        """Replies by `nydusd.storage.stats.size_bucket`."""
        return self._counters[3 : 3 + _BUCKETS].tolist()

    @property
    def by_latency(self) -> Sequence[int]:
        """Replies by `nydusd.kernel.stats.READ_LATENCY_BOUNDS_US`."""
        return self._counters[3 + _BUCKETS :].tolist()

    @property
    def buffer(self) -> bytearray:
        """The counters as C has them."""
        return self._buffer


_running: Final = set["Relay"]()  # a relay that nobody names must not be freed under its threads


class Relay:
    """Threads at /dev/fuse, see the module."""

    def __init__(self) -> None:
        """Make an idle relay. Raises OSError or MemoryError."""
        self.wake_fd: Final = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        """Readable exactly while `take` has something to return. Not to be read."""
        self._relay = lib.nd_relay_new(self.wake_fd)
        if self._relay == ffi.NULL:
            os.close(self.wake_fd)
            raise MemoryError
        self._is_open = True
        self._room = bytearray(_TAKE_BYTES)
        self._sources: dict[int, list[CData]] = {}
        self._files: dict[int, list[CData]] = {}
        self._trees: dict[int, NativeTree] = {}

    def start(self, devices: Sequence[int], threads: int, threads_max: int) -> None:
        """Have `threads` threads read the devices, and up to `threads_max` while some wait for a disk.

        Clears O_NONBLOCK. Raises OSError, EBUSY if the relay runs; then nothing has changed.
        """
        _running.add(self)
        try:
            _check(lib.nd_relay_start(self._open(), devices, len(devices), threads, threads_max))
        except OSError as exc:
            if exc.errno != errno.EBUSY:
                _running.discard(self)
            raise

    def stop(self, timeout_s: float) -> None:
        """Wait until all threads have ended. Requests they took are queued, later ones stay in the kernel.

        It may be started again. Raises TimeoutError if one still waits for the disk: stop again.
        """
        if self._is_open:
            _check(lib.nd_relay_stop(self._relay, int(timeout_s * 1000)))
            _running.discard(self)

    def close(self) -> None:
        """Free it all; once more does nothing. Raises OSError EBUSY if it was not stopped."""
        if self in _running:
            raise OSError(errno.EBUSY, "the relay has not been stopped")
        if self._is_open:
            self._is_open = False
            lib.nd_relay_free(self._relay)
            os.close(self.wake_fd)
            for kept in (*self._sources.values(), *self._files.values()):
                _release(kept)
            for tree in self._trees.values():
                tree.close()
            self._sources.clear()
            self._files.clear()
            self._trees.clear()

    def take(self) -> list[Message]:
        """Return what is queued, oldest first, none if nothing is; more may be left (`wake_fd` tells)."""
        with ffi.from_buffer("uint8_t[]", self._room, True) as room:
            length = _check(lib.nd_relay_take(self._open(), room, len(room)))
        messages: list[Message] = []
        offset = 0
        with memoryview(self._room) as taken:
            while offset < length:
                size, kind, device = _MESSAGE.unpack_from(taken, offset)
                body = bytes(taken[offset + _MESSAGE.size : offset + size])
                messages.append(Message(_KINDS[kind], device, body))
                offset += size + 7 & ~7
        return messages

    def answer(self, device_fd: int, request: Buffer) -> bool:
        """Answer one READ, if its bytes are all ready; False: it is not, or not a READ of a known file.

        Waits for the disk if the page cache lacks them. True also if the request was withdrawn.
        Raises OSError if the reply cannot be written.
        """
        with ffi.from_buffer("uint8_t[]", request) as raw:
            return _check(lib.nd_relay_answer(self._open(), device_fd, raw, len(raw))) == 1

    def add_source(self, source: NativeSource) -> int:
        """Make a cache file known and return its number, which no other will get.

        Raises ValueError if a buffer does not fit chunk_count.
        """
        needed = (source.chunk_count + 7) // 8
        if source.watch is not None and len(source.watch) < needed:
            raise ValueError(
                f"{len(source.watch)} bytes of watch bits for {source.chunk_count} chunks"
            )
        if len(source.hits) != 8:
            raise ValueError(f"a counter of {len(source.hits)} bytes")
        kept = [_bitmap(source.bits, source.base, needed)]
        bits, watch, hits = kept[0], ffi.NULL, ffi.from_buffer("uint64_t *", source.hits, True)
        kept.append(hits)
        if source.watch is not None:
            watch = ffi.from_buffer("uint8_t[]", source.watch, True)
            kept.append(watch)
        number = lib.nd_relay_add_source(
            self._open(), source.fd, bits, needed, source.chunk_count, watch, hits
        )
        self._keep(self._sources, number, number, kept)
        return number

    def drop_source(self, source: int) -> None:
        """Forget a source; READs that need it are queued from now on. The caller may close its file then.

        Waits for READs that have begun. Raises FileNotFoundError if there is none of that number.
        """
        _check(lib.nd_relay_drop_source(self._open(), source))
        _release(self._sources.pop(source))

    def add_file(
        self, nodeid: int, size: int, segments: Buffer, zero_gaps: bool, counts: ReadCounts
    ) -> None:
        """Have READs of `nodeid` answered from `segments`, packed SEGMENTs, ascending, not overlapping.

        Bytes between them are zeros (zero_gaps) or queued. Raises FileExistsError, ValueError.
        """
        if len(segments) % SEGMENT.size:
            raise ValueError(f"{len(segments)} bytes are not whole segments")
        kept = [_array("nd_segment[]", segments), _counters(counts)]
        rc = lib.nd_relay_add_file(
            self._open(), nodeid, size, kept[0], len(kept[0]), zero_gaps, kept[1]
        )
        self._keep(self._files, nodeid, rc, kept)

    def add_flat(
        self, nodeid: int, size: int, source: int, blocks: Buffer, counts: ReadCounts
    ) -> None:
        """Have READs of `nodeid` answered from the same offsets of a source.

        blocks: u32 per chunk, the 4096-byte block it begins at, strictly ascending; a chunk reaches to
        the next one. Raises FileExistsError, ValueError.
        """
        kept = [_array("uint32_t[]", blocks), _counters(counts)]
        rc = lib.nd_relay_add_flat(
            self._open(), nodeid, size, source, kept[0], len(kept[0]), kept[1]
        )
        self._keep(self._files, nodeid, rc, kept)

    def drop_file(self, nodeid: int) -> None:
        """Forget a file: its READs are queued from now on. Waits for those that have begun.

        Raises FileNotFoundError if it is not known.
        """
        _check(lib.nd_relay_drop_file(self._open(), nodeid))
        _release(self._files.pop(nodeid))

    def add_tree(self, tree: NativeTree) -> None:
        """Have requests for names and attributes of a tree answered from it. Raises FileExistsError.

        The tree is this object's from now on: `drop_tree` closes it.
        """
        _check(lib.nd_relay_add_tree(self._open(), tree.index, tree.cdata))
        self._trees[tree.index] = tree

    def drop_tree(self, index: int) -> None:
        """Forget a tree: its requests are queued from now on. Waits for those that have begun.

        Raises FileNotFoundError if it is not known.
        """
        _check(lib.nd_relay_drop_tree(self._open(), index))
        self._trees.pop(index).close()

    @property
    def dropped(self) -> int:
        """Requests too short for a header, which nobody can answer."""
        return lib.nd_relay_dropped(self._open())

    def _open(self) -> "CData":
        if not self._is_open:
            raise ValueError("the relay is closed")
        return self._relay

    @staticmethod
    def _keep(where: dict[int, list["CData"]], key: int, code: int, kept: list["CData"]) -> None:
        """Keep buffers alive if C took them, else let them go and raise."""
        if code >= 0:
            where[key] = kept
            return
        _release(kept)
        if code == -errno.EINVAL:
            raise ValueError("offsets, counts or numbers that do not fit each other")
        _check(code)


_KINDS: Final = tuple(Kind)


def _bitmap(bits: Buffer, base: int, needed: int) -> "CData":
    with memoryview(bits) as view, view.cast("B") as octets:
        if base < 0 or base + needed > len(octets):
            raise ValueError(f"{len(octets)} bytes do not hold {needed} at {base}")
        return ffi.from_buffer("uint8_t[]", octets[base : base + needed])


def _array(cdecl: str, data: Buffer) -> "CData":
    return ffi.from_buffer(cdecl, data)


def _counters(counts: ReadCounts) -> "CData":
    return ffi.from_buffer("nd_read_counts *", counts.buffer, True)


def _release(kept: list["CData"]) -> None:
    """Let mappings be closed and bytearrays be resized."""
    for buffer in kept:
        ffi.release(buffer)


def _check(code: int) -> int:
    if code == -errno.ENOMEM:
        raise MemoryError
    if code < 0:
        raise OSError(-code, os.strerror(-code))
    return code
