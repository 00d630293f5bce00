"""The device of a v5 image that the kernel shows through EROFS: chunks of all its blobs, one after another.

Where they lie says a table of segments, packed and sorted (rafs/erofs_from_v5.py: SEGMENT), that stays in
its file and is looked up there. A segment claims to be a chunk of a blob; nothing is served before the
blob's own records say the same.

Owns     nothing: a view of blobs that their image holds.
Callers  tasks of the trio thread, through the protocol of device.py.
Raises   NydusError of whatever failed; never wrong bytes.
Cancel   a cancelled caller stops waiting; fetches go on for the others.
"""

import logging
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from nydusd.errors import FormatError
from nydusd.rafs.erofs_from_v5 import SEGMENT
from nydusd.rafs.model import Extent
from nydusd.records import Buffer
from nydusd.storage.lazy_blob import LazyBlob
from nydusd.storage.native_map import NativeMap

log = logging.getLogger(__name__)


class _Run(NamedTuple):
    """Extents of one blob that follow each other on the device, and where each begins in the answer."""

    blob: LazyBlob
    starts: list[int]
    extents: list[Extent]


class SegmentDevice:
    """All blobs of one image as one device."""

    def __init__(
        self, name: str, size: int, segments: memoryview, blobs: Sequence[LazyBlob]
    ) -> None:
        """`segments` by address, not overlapping, below `size`; their blob numbers count `blobs`.

        The blobs stay open as long as the device is used; their image sees to that.
        """
        self.name = name
        self.size = size
        self._segments = segments
        self._count = len(segments) // SEGMENT.size
        self._blobs = tuple(blobs)
        self._agrees: bool | None = None  # None: not asked yet

    async def read(self, offset: int, length: int) -> Buffer:
        """Return exactly the bytes [offset, offset + length) that lie below `size`; zeros between chunks."""
        length = min(length, self.size - offset)
        if length <= 0:
            return b""
        runs = list(self._runs(offset, length))
        if len(runs) == 1 and len(runs[0].extents) == 1 and runs[0].extents[0].length == length:
            return await runs[0].blob.read(runs[0].extents)
        answer = bytearray(length)
        for blob, starts, extents in runs:
            content = memoryview(await blob.read(extents))
            position = 0
            for start, extent in zip(starts, extents, strict=True):
                answer[start : start + extent.length] = content[position : position + extent.length]
                position += extent.length
        return answer

    async def fill(self, offset: int, length: int) -> bool:
        """Have that range fetched; see Device."""
        is_in_files = True
        for blob, _, extents in self._runs(offset, min(length, self.size - offset)):
            is_in_files &= not await blob.fill_extents(extents)
        return is_in_files

    async def native_map(self) -> NativeMap | None:
        """Return the segments, once all of them were found to say what the blobs' records say."""
        if self._agrees is None:
            self._agrees = await self._all_agree()
        if not self._agrees:
            return None
        return NativeMap(self.size, self._blobs, None, self._segments, zero_gaps=True)

    def is_complete(self) -> bool:
        """Tell whether every byte can be had without the backend."""
        return all(blob.is_complete() for blob in self._blobs)

    def cache_path(self) -> Path | None:
        """Return None: no file is laid out like this device."""
        return None

    async def _all_agree(self) -> bool:
        # One pass per blob, in worker threads: some 10 ms for the 12,000 chunks of a 14,500 file image.
        for index, blob in enumerate(self._blobs):
            if not await blob.agrees(_claims(self._segments, index, len(self._blobs))):
                log.warning(
                    "device is not read natively, the image describes chunks in two ways: device=%s blob=%s",
                    self.name,
                    blob.info.blob_id,
                )
                return False
        return True

    def _runs(self, offset: int, length: int) -> Iterator[_Run]:
        """Yield what lies in device bytes [offset, offset + length), by blob."""
        run: _Run | None = None
        end = offset + length
        first = bisect_right(range(self._count), offset, key=self._address) - 1
        for at in range(max(first, 0) * SEGMENT.size, len(self._segments), SEGMENT.size):
            address, plain, size, number, index = SEGMENT.unpack_from(self._segments, at)
            if address >= end:
                break
            start, stop = max(address, offset), min(address + size, end)
            if start >= stop:  # between two chunks
                continue
            blob = self._blob(index)
            if run is None or run.blob is not blob:
                if run is not None:
                    yield run
                run = _Run(blob, [], [])
            run.starts.append(start - offset)
            run.extents.append(Extent(index, number, plain, size, start - address, stop - start))
        if run is not None:
            yield run

    def _address(self, position: int) -> int:
        address: int = SEGMENT.unpack_from(self._segments, position * SEGMENT.size)[0]
        return address

    def _blob(self, index: int) -> LazyBlob:
        if index >= len(self._blobs):
            rule = f"the image has {len(self._blobs)}"
            raise FormatError("blob of a segment", index, rule, self.name)
        return self._blobs[index]


def _claims(
    segments: memoryview, blob_index: int, blob_count: int
) -> Iterator[tuple[int, int, int]]:
    """Yield (chunk number, plain offset, size) of what segments say of one blob."""
    for _, plain, size, number, index in SEGMENT.iter_unpack(segments):
        if index == blob_index:
            yield number, plain, size
        elif index >= blob_count:
            yield -1, plain, size  # of no blob: nobody agrees with that
