"""Which files of a tree the relay answers for: those being read, within bounds.

Owns     the choice; the registrations are native_files.py's.
Callers  kernel/namespace.py, in the trio thread.
Raises   nothing.

The relay tells nobody which files it answers for, so there is no order of use: beyond the bounds the file
that was chosen first goes, and comes back with its next read that Python sees.
"""

from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from nydusd.kernel.native_files import NativeFiles
from nydusd.native_relay import SEGMENT

if TYPE_CHECKING:
    from nydusd.native_relay import ReadCounts
    from nydusd.storage.native_map import NativeMap

FILES_MAX: Final = 1024
SEGMENTS_MAX: Final = 65_536  # 2 MiB of them; a segment is a chunk of a file, 1 MiB as a rule


class NativeWindow:
    """A bounded choice of files."""

    def __init__(
        self, files: NativeFiles, *, files_max: int = FILES_MAX, segments_max: int = SEGMENTS_MAX
    ) -> None:
        """Begin with none."""
        self._files = files
        self._files_max = files_max
        self._segments_max = segments_max
        self._chosen: OrderedDict[int, int] = OrderedDict()  # nodeid: segments; refused ones have 0
        self._segments = 0

    def __contains__(self, nodeid: int) -> bool:
        """Whether the file was looked at, and is not worth another look."""
        return nodeid in self._chosen

    def add(self, nodeid: int, native_map: "NativeMap | None", counts: "ReadCounts") -> None:
        """Choose a file. A map that is None or refused is remembered, too."""
        segments = 0
        if native_map is not None and self._files.add(nodeid, native_map, counts):
            segments = len(native_map.segments or b"") // SEGMENT.size
        self._chosen[nodeid] = segments
        self._segments += segments
        while len(self._chosen) > self._files_max or (
            self._segments > self._segments_max and len(self._chosen) > 1
        ):
            self._drop(next(iter(self._chosen)))

    def drop_where(self, condition: Callable[[int], bool]) -> None:
        """Forget the files whose nodeid meets `condition`; no thread of the relay reads them then."""
        for nodeid in [nodeid for nodeid in self._chosen if condition(nodeid)]:
            self._drop(nodeid)

    def _drop(self, nodeid: int) -> None:
        self._segments -= self._chosen.pop(nodeid)
        self._files.drop(nodeid)
