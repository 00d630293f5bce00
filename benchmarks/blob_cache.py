"""A blob cache from outside: is a blob whole, and how is one chunk taken out of it (spec blobcache §2, §3)?

Only between two lives of a daemon. All daemons that share the layout are served alike.
"""

import os
import struct
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISDIR, S_ISREG

from nydusd.rafs.bootstrap import open_bootstrap
from nydusd.rafs.model import Bootstrap, Extent, Inode

MAP_HEADER_BYTES = 4096
ALL_READY_OFFSET = 12
VICTIM_BYTES_MAX = 64 << 10  # none of the large files that reads of one file are measured with


@dataclass(frozen=True, slots=True)
class Victim:
    """A small file of one chunk, which is no other file's: the rest of the tree is whole without it."""

    path: Path  # relative to the tree
    extent: Extent


class BlobCache:
    """The files of one blob in a cache directory."""

    def __init__(self, folder: Path, blob_id: str, chunk_count: int) -> None:
        self.folder = folder
        self.data = folder / f"{blob_id}.blob.data"
        self._maps = [  # some daemons name it after the blob, others after the data file
            folder / f"{blob_id}.blob.data.chunk_map",
            folder / f"{blob_id}.chunk_map",
        ]
        self._chunk_count = chunk_count

    @property
    def _map(self) -> Path:
        return next((path for path in self._maps if path.exists()), self._maps[0])

    def absent(self) -> int:
        """Return how many chunks are not there."""
        if not self._map.exists():
            return self._chunk_count
        # By the bits alone: the header's flag is written at a later open only. Spare bits are 0.
        bits = int.from_bytes(self._map.read_bytes()[MAP_HEADER_BYTES:])
        return self._chunk_count - bits.bit_count()

    def take_out(self, extent: Extent) -> None:
        """Make a chunk absent: its bit and the complete flag 0, and zeros where its bytes were.

        Zeros: a daemon that serves the chunk without fetching it is found out.
        """
        with self.data.open("r+b") as file:
            file.seek(extent.chunk_offset)
            file.write(bytes(extent.chunk_size))
        position = MAP_HEADER_BYTES + extent.chunk_index // 8
        with self._map.open("r+b") as file:
            file.seek(ALL_READY_OFFSET)
            file.write(struct.pack("<I", 0))
            file.seek(position)
            (byte,) = file.read(1)
            file.seek(position)
            file.write(bytes([byte & ~(0x80 >> extent.chunk_index % 8)]))


def choose_victim(bootstrap_file: Path) -> tuple[Victim, int]:
    """Return the victim that lies in the middle of the first blob, and the blob's number of chunks."""
    bootstrap = open_bootstrap(bootstrap_file)
    users: Counter[int] = Counter()
    candidates = []
    try:
        for path, inode in _files(bootstrap, Path(), bootstrap.inode(bootstrap.root_ino)):
            extents = bootstrap.extents(inode, 0, inode.size)
            users.update(extent.chunk_index for extent in extents if extent.blob_index == 0)
            if len(extents) == 1 and not extents[0].blob_index and inode.size <= VICTIM_BYTES_MAX:
                candidates.append(Victim(path, extents[0]))
        lone = [victim for victim in candidates if users[victim.extent.chunk_index] == 1]
        lone.sort(key=lambda victim: victim.extent.chunk_index)
        return lone[len(lone) // 2], bootstrap.blobs[0].chunk_count
    finally:
        bootstrap.close()


def _files(bootstrap: Bootstrap, path: Path, directory: Inode) -> Iterator[tuple[Path, Inode]]:
    for entry in bootstrap.entries(directory):
        if entry.name in (b".", b".."):
            continue
        inode, name = bootstrap.inode(entry.ino), path / os.fsdecode(entry.name)
        if S_ISDIR(inode.mode):
            yield from _files(bootstrap, name, inode)
        elif S_ISREG(inode.mode):
            yield name, inode
