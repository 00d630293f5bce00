"""Files and trees that the relay answers by itself: told to it when their bytes are there, taken back in time.

Owns     the numbers that the relay gave to blobs and files. Not the blobs: whoever opened them closes them,
         and a blob tells by its callback before it closes the file that the relay reads.
Callers  file systems of this room, in the trio thread.
Raises   nothing: what cannot be registered is answered by Python.
"""

import logging
from array import array
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Final

from nydusd.records import Buffer
from nydusd.storage.lazy_blob import LazyBlob
from nydusd.storage.native_map import NativeMap

if TYPE_CHECKING:
    from nydusd.native_relay import ReadCounts, Relay
    from nydusd.native_tree import NativeTree

log = logging.getLogger(__name__)

# nd_segment as u32 words: 8 of them, of which one is the number of the source.
_SEGMENT_WORDS: Final = 8
_SOURCE_WORD: Final = 6


class NativeFiles:
    """The relay's files, trees and sources, by nodeid, index and blob."""

    def __init__(self, relay: "Relay") -> None:
        """`relay` stays the caller's."""
        self._relay = relay
        self._numbers: dict[LazyBlob, int] = {}
        self._blobs: dict[int, LazyBlob] = {}
        self._callbacks: dict[LazyBlob, Callable[[], None]] = {}
        self._users: dict[int, tuple[LazyBlob, ...]] = {}  # by nodeid
        self._trees: dict[int, NativeTree] = {}  # by index
        self._tree_blobs: dict[int, set[LazyBlob]] = {}  # by index: that C knows of

    def __contains__(self, nodeid: object) -> bool:
        """Tell whether the relay knows the file, and all blobs that it needs."""
        return nodeid in self._users

    def add(self, nodeid: int, found: NativeMap, counts: "ReadCounts") -> bool:
        """Have the relay answer for a file; False if it cannot."""
        if nodeid in self._users:
            return True
        numbers = array("I")
        for blob in found.sources:
            number = self._number(blob)
            if number is None:
                return False
            numbers.append(number)
        try:
            if found.blocks is not None:
                self._relay.add_flat(nodeid, found.size, numbers[0], found.blocks, counts)
            elif found.segments is not None:
                segments = _renumbered(found.segments, numbers)
                self._relay.add_file(nodeid, found.size, segments, found.zero_gaps, counts)
            else:
                return False
        except (OSError, ValueError) as exc:  # a map that contradicts itself: Python says where
            log.warning("file is not answered natively: nodeid=%#x reason=%s", nodeid, exc)
            return False
        self._users[nodeid] = found.sources
        return True

    def drop(self, nodeid: int) -> None:
        """Answer no more for a file; blobs that no other file uses are let go, too."""
        blobs = self._users.pop(nodeid, None)
        if blobs is None:
            return
        self._relay.drop_file(nodeid)
        self._let_go(blobs)

    def add_tree(self, tree: "NativeTree") -> None:
        """Have the relay show a tree. Its blobs are told by `add_blobs`."""
        self._relay.add_tree(tree)
        self._trees[tree.index] = tree
        self._tree_blobs[tree.index] = set()

    def shows(self, index: int) -> bool:
        """Tell whether the relay shows this tree."""
        return index in self._trees

    def add_blobs(self, index: int, blobs: Sequence[LazyBlob]) -> None:
        """Have the relay answer for files of a tree, in those of its blobs that can be read natively by now.

        blobs: all of the image.
        """
        tree = self._trees[index]
        for number in tree.unknown_blobs():
            blob = blobs[number]
            records = blob.native_records()
            source = None if records is None else self._number(blob)
            if records is None or source is None:
                continue
            tree.add_blob(number, source, records)
            self._tree_blobs[index].add(blob)

    def drop_tree(self, index: int) -> None:
        """Show a tree no more, if it is shown; no thread of the relay uses it or its blobs then."""
        if self._trees.pop(index, None) is None:
            return
        self._relay.drop_tree(index)
        self._let_go(self._tree_blobs.pop(index))

    def _let_go(self, blobs: Iterable[LazyBlob]) -> None:
        """Take back those of `blobs` that nobody uses any more."""
        used = {
            blob
            for users in (self._users, self._tree_blobs)
            for some in users.values()
            for blob in some
        }
        for blob in set(blobs) - used:
            blob.remove_on_lost(self._callbacks[blob])
            self._lose(blob)

    def touched(self, source: int, chunk: int) -> None:
        """Tell a blob that the relay has read one of its watched chunks."""
        blob = self._blobs.get(source)
        if blob is not None:
            blob.touched(chunk)

    def close(self) -> None:
        """Take back everything."""
        for index in list(self._trees):
            self.drop_tree(index)
        for nodeid in list(self._users):
            self.drop(nodeid)
        for blob in list(self._numbers):  # registered for a file that then was refused
            blob.remove_on_lost(self._callbacks[blob])
            self._lose(blob)

    def _number(self, blob: LazyBlob) -> int | None:
        number = self._numbers.get(blob)
        if number is not None:
            return number
        source = blob.native_source()
        if source is None:
            return None
        number = self._numbers[blob] = self._relay.add_source(source)
        self._blobs[number] = blob
        callback = self._callbacks[blob] = partial(self._lose, blob)
        blob.add_on_lost(callback)
        return number

    def _lose(self, blob: LazyBlob) -> None:
        """End every native use of a blob's cache file. Returns when no thread of the relay reads it."""
        number = self._numbers.pop(blob)
        del self._blobs[number], self._callbacks[blob]
        self._relay.drop_source(number)
        for users in self._tree_blobs.values():
            users.discard(blob)  # its number names nothing any more: Python is asked
        for nodeid, blobs in list(self._users.items()):
            if blob in blobs:
                del self._users[nodeid]
                self._relay.drop_file(nodeid)


def _renumbered(segments: Buffer, numbers: "array[int]") -> Buffer:
    """Return packed segments whose sources are the relay's numbers: a copy, unless they are that already."""
    if all(position == number for position, number in enumerate(numbers)):
        return segments  # a device's table, which stays in its file
    copy = bytearray(segments)
    sources = memoryview(copy).cast("I")[_SOURCE_WORD::_SEGMENT_WORDS]
    for position, source in enumerate(sources):
        sources[position] = numbers[source]
    return copy
