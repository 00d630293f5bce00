"""Where inodes and directory blocks of a v6 bootstrap go (spec rafs-v6 §7, §8, §11).

Owns     the arithmetic of one image: nids are given out here, bytes are written by bootstrap_v6.
Callers  bootstrap_v6.
Raises   nothing.

The kernel wants an inline tail within one block, next to its inode. An inode that does not fit into the
rest of a block starts the next one; the gap is kept for small inodes that come soon after, so that the
inodes of one directory stay close together.
"""

from typing import NamedTuple

from nydusd.builder.tree import Node, Xattrs
from nydusd.rafs.erofs_parts import align, directory_blocks, split_xattr
from nydusd.rafs.layout_v6 import (
    BLOCK_SIZE,
    CHUNK_INDEX,
    EXTENDED_INODE,
    NID_UNIT,
    XATTR_ENTRY_BYTES,
    XATTR_HEADER_BYTES,
)

ROOT_NID = BLOCK_SIZE // NID_UNIT  # the meta area starts one block before the root, spec rafs-v6 §9
GAPS_KEPT = 16  # more would pull inodes away from their directory
GAP_INODE_MAX_BYTES = 512  # only such small ones look for a gap


class Place(NamedTuple):
    """Where the data of a directory or symlink lies."""

    inline: bool  # the last block's bytes follow the inode
    first_block: int  # relative to the area of directory blocks
    blocks: int  # whole blocks there


def named_xattrs(xattrs: Xattrs) -> list[tuple[int, bytes, bytes]]:
    """Return (name_index, suffix, value) of xattrs that scan() let through."""
    named = []
    for name, value in xattrs:
        split = split_xattr(name)
        assert split is not None, f"scan() keeps no xattr {name!r}"
        named.append((*split, value))
    return named


def xattr_size(xattrs: Xattrs) -> int:
    """Return the bytes of the xattr area behind an inode (spec rafs-v6 §10)."""
    if not xattrs:
        return 0
    size = XATTR_HEADER_BYTES
    for _, suffix, value in named_xattrs(xattrs):
        size += align(XATTR_ENTRY_BYTES + len(suffix) + len(value), XATTR_ENTRY_BYTES)
    return size


def names_of(directory: Node) -> list[bytes]:
    """Return the names of a directory with `.` and `..`, in byte order (spec rafs-v6 §8)."""
    names = [child.name for child in directory.children or ()]
    names += (b".", b"..")
    names.sort()
    return names


class Space:
    """Gives out places, in the order in which nodes are shown to it."""

    def __init__(self) -> None:
        """Start empty; the first node is the root and gets ROOT_NID."""
        self._end = BLOCK_SIZE  # relative to the meta area, where nid 0 would be
        self._gaps: list[tuple[int, int]] = []
        self._places: dict[Node, Place] = {}
        self.directory_blocks = 0

    @property
    def inode_bytes(self) -> int:
        """Bytes of the inode area so far, from the root on."""
        return self._end - BLOCK_SIZE

    def place_of(self, node: Node) -> Place:
        """Return where the data of a directory or symlink was put."""
        return self._places[node]

    def add(self, node: Node) -> None:
        """Set `node.number` to its nid and, for a directory, `node.size`."""
        head = EXTENDED_INODE.size_bytes + xattr_size(node.xattrs)
        if node.is_directory:
            blocks = directory_blocks(names_of(node))
            node.size = (len(blocks) - 1) * BLOCK_SIZE + blocks[-1][1]
        elif not node.is_symlink:
            if node.is_regular and node.chunk_count:
                head = align(head, 8) + CHUNK_INDEX.size_bytes * node.chunk_count
            node.number = self._take(head, EXTENDED_INODE.size_bytes) // NID_UNIT
            return
        whole, tail = divmod(node.size, BLOCK_SIZE)
        inline = tail > 0 and head + tail <= BLOCK_SIZE
        if not inline and tail:
            whole += 1
        self._places[node] = Place(inline, self.directory_blocks, whole)
        self.directory_blocks += whole
        size, together = (head + tail, head + tail) if inline else (head, EXTENDED_INODE.size_bytes)
        node.number = self._take(size, together) // NID_UNIT

    def _take(self, size: int, together: int) -> int:
        """Return a place for `size` bytes of which the first `together` lie in one block."""
        size = align(size, NID_UNIT)
        if size <= GAP_INODE_MAX_BYTES:
            for position, (start, end) in enumerate(self._gaps):
                if end - start >= size:
                    if end - start == size:
                        del self._gaps[position]
                    else:
                        self._gaps[position] = (start + size, end)
                    return start
        start = self._end
        room = -start % BLOCK_SIZE
        if room and together > room:
            self._gaps.append((start, start + room))
            if len(self._gaps) > GAPS_KEPT:
                del self._gaps[0]
            start += room
        self._end = start + size
        return start
