"""Who reads a blob in order, and how far ahead of him to fetch. Pure state, no I/O.

A miss opens a *stream*: the chunks fetched with it are its window, and a few of them, evenly spread, its
*marks*. A reader is seen by the marks that he uses; so it is enough to be told of those, which is why the
native relay, whose hits Python does not see, watches marks only. When he has come to the window's second
half and used at least half of its marks, or misses right behind it, the next window is due, twice as large
up to a cap. So a walk through a whole image, or one large file, keeps the link full without waiting for a
round trip per window, and a random reader never gets more than the first window.
"""

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from nydusd.units import MIB

STREAMS_MAX: Final = 16  # concurrent sequential readers of one blob that are told apart
WINDOW_MAX_BYTES: Final = 4 * MIB  # stored; the product of 100 ms and 300 Mbit/s
MARKS_MAX: Final = 8  # per window; every chunk of a smaller one is a mark
SLACK_CHUNKS: Final = (
    8  # a reader may skip a few chunks (shared files, other blobs) and stay in order
)


class Due(NamedTuple):
    """A window that should be fetched now: chunks from `begin` on, `window_bytes` stored bytes."""

    key: int
    begin: int
    window_bytes: int


class Marks(NamedTuple):
    """Chunks whose first use is to be told from now on, and those for which that is of no use any more."""

    watch: tuple[int, ...]
    unwatch: tuple[int, ...]


@dataclass(slots=True)
class Stream:
    """One sequential reader: its chunks [begin, end), fetched or under way."""

    begin: int  # first chunk of the present window
    end: int  # first chunk not asked for yet
    window_bytes: int  # stored bytes to ask for next time
    position: int  # highest chunk used
    marks: set[int] = field(default_factory=set)  # of the window, not used yet
    marks_count: int = 1  # how many it began with, chunks used before it included
    marks_used: int = 0


class Streams:
    """The sequential readers of one blob, least recently seen first."""

    def __init__(self, first_window_bytes: int) -> None:
        """`first_window_bytes`: stored bytes fetched with a first miss; 0 turns readahead off."""
        self._first = first_window_bytes
        self._streams: OrderedDict[int, Stream] = OrderedDict()
        self._serial = 0

    def miss(self, index: int) -> tuple[int, int]:
        """A reader needs absent chunk `index`. Return (stream key, window in stored bytes).

        The caller fetches the window and reports it with `extended`.
        """
        for key, stream in self._streams.items():
            if stream.begin <= index <= stream.end + SLACK_CHUNKS:
                self._streams.move_to_end(key)
                window = stream.window_bytes if index > stream.position else self._first
                stream.position = max(stream.position, index)
                return key, window
        if len(self._streams) >= STREAMS_MAX:
            self._streams.popitem(last=False)
        self._serial += 1
        self._streams[self._serial] = Stream(index, index, self._first, index)
        return self._serial, self._first

    def extended(self, key: int, begin: int, end: int) -> Marks:
        """The window [begin, end) of a stream is under way now; the next one may be larger.

        Return its marks: `touch` is to be called when one of them is used.
        """
        stream = self._streams.get(key)
        if stream is None:
            return Marks((), ())
        old = tuple(stream.marks)
        stream.begin, stream.end = begin, max(end, begin + 1)
        size = stream.end - begin
        count = min(size, MARKS_MAX)
        places = (begin + place * size // count for place in range(count))
        stream.marks = {index for index in places if index > stream.position}
        stream.marks_count, stream.marks_used = count, 0
        stream.window_bytes = min(
            max(stream.window_bytes, 1) * 2, max(WINDOW_MAX_BYTES, self._first)
        )
        return Marks(tuple(stream.marks), old)

    def touch(self, first: int, last: int | None = None) -> Due | None:
        """A reader uses chunks `first` to `last`, or `first` alone. Return the next window if that is due.

        Reports may come late, in another order or more than once: each mark counts once.
        """
        last = first if last is None else last
        for key, stream in self._streams.items():
            if stream.begin <= last < stream.end:
                used = [mark for mark in stream.marks if first <= mark <= last]
                if not used:
                    return None
                stream.marks.difference_update(used)
                stream.marks_used += len(used)
                stream.position = max(stream.position, last)
                self._streams.move_to_end(key)
                is_late = (stream.position - stream.begin) * 2 >= stream.end - stream.begin
                if is_late and stream.marks_used * 2 >= stream.marks_count:
                    return Due(key, stream.end, stream.window_bytes)
                return None
        return None
