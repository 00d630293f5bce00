"""Who reads a blob in order, and how far ahead of him to fetch. Pure state, no I/O.

A miss opens a *stream*: the chunks fetched with it are its window. When its reader comes to the window's
second half having used at least half of what was fetched, or misses right behind it, the next window is
due, twice as large up to a cap. So a walk through a whole image, or one large file, keeps the link full
without waiting for a round trip per window, and a random reader never gets more than the first window.
"""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final, NamedTuple

from nydusd.units import MIB

STREAMS_MAX: Final = 8  # concurrent sequential readers of one blob that are told apart
WINDOW_MAX_BYTES: Final = 4 * MIB  # stored; the product of 100 ms and 300 Mbit/s
SLACK_CHUNKS: Final = (
    8  # a reader may skip a few chunks (shared files, other blobs) and stay in order
)


class Due(NamedTuple):
    """A window that should be fetched now: chunks from `begin` on, `window_bytes` stored bytes."""

    key: int
    begin: int
    window_bytes: int


@dataclass(slots=True)
class Stream:
    """One sequential reader: its chunks [begin, end), fetched or under way."""

    begin: int  # first chunk of the present window
    end: int  # first chunk not asked for yet
    window_bytes: int  # stored bytes to ask for next time
    position: int  # highest chunk touched
    touched: int = 0  # chunks of the window touched, in order


class Streams:
    """The sequential readers of one blob, least recently used first."""

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

    def extended(self, key: int, begin: int, end: int) -> None:
        """The window [begin, end) of a stream is under way now; the next one may be larger."""
        stream = self._streams.get(key)
        if stream is None:
            return
        stream.begin, stream.end, stream.touched = begin, max(end, begin + 1), 0
        stream.window_bytes = min(
            max(stream.window_bytes, 1) * 2, max(WINDOW_MAX_BYTES, self._first)
        )

    def touch(self, index: int) -> Due | None:
        """A reader uses the ready chunk `index`. Return the next window of its stream if that is due."""
        for key, stream in self._streams.items():
            if stream.begin <= index < stream.end and index > stream.position:
                stream.position = index
                stream.touched += 1
                size = stream.end - stream.begin
                if stream.touched * 2 >= size and (index - stream.begin) * 2 >= size:
                    return Due(key, stream.end, stream.window_bytes)
                return None
        return None
