"""EROFS metadata for one device, inode by inode: where things go and what they look like (spec rafs-v6 §3 to §11).

The inodes come in any order and get their nids at once; directories are filled in at the end, when all
nids are known. The first block has the superblock and the device slot; nids count from the file's start.

Owns     the metadata while it grows at its end.
Callers  rafs/erofs_from_v5.py.
Raises   struct.error for a number that EROFS has no room for. Sizes and names are the caller's to check.
"""

import stat
from bisect import bisect_left
from collections.abc import Sequence
from struct import Struct
from typing import Final, NamedTuple

from nydusd.rafs.blob_table_v6 import DEVICE_SLOT, DeviceSlot
from nydusd.rafs.erofs_parts import (
    BLOCK_BITS,
    CHUNK_BITS_MAX,
    FILE_TYPES,
    align,
    directory_blocks,
    index_offset,
    pack_directory_block,
    xattr_count,
)
from nydusd.rafs.layout_v6 import (
    BLOCK_SIZE,
    CHUNK_FORMAT_INDEXES,
    CHUNK_INDEX,
    DIRENT,
    EROFS_MAGIC,
    EROFS_SUPERBLOCK,
    EXTENDED_INODE,
    FORMAT_EXTENDED,
    INCOMPAT_CHUNKED_DEVICES,
    LAYOUT_CHUNK_BASED,
    LAYOUT_FLAT_INLINE,
    LAYOUT_FLAT_PLAIN,
    NID_UNIT,
    SLOT_BYTES,
    SLOTS_OFFSET,
    SUPERBLOCK_OFFSET,
    ErofsSuperblock,
)

DEVICE_TAG: Final = b"rafs-v5"

_DIRECTORY: Final = FILE_TYPES[stat.S_IFDIR]
_HEAD: Final = Struct(f"<{EXTENDED_INODE.codes}")
_HEAD_BYTES: Final = EXTENDED_INODE.size_bytes
_INDEX: Final = Struct(f"<{CHUNK_INDEX.codes}")
_DEVICE: Final = 1  # EROFS counts devices from 1; 0 is the metadata itself
_FILE_FORMAT: Final = FORMAT_EXTENDED | LAYOUT_CHUNK_BASED << 1
_PLAIN_FORMAT: Final = FORMAT_EXTENDED | LAYOUT_FLAT_PLAIN << 1
_INLINE_FORMAT: Final = FORMAT_EXTENDED | LAYOUT_FLAT_INLINE << 1


class Attributes(NamedTuple):
    """What every inode has."""

    ino: int  # the caller's own number, by which directories refer to it
    mode: int
    uid: int
    gid: int
    mtime_s: int
    mtime_ns: int
    nlink: int
    xattrs: bytes  # packed area

    def head(self, i_format: int, size: int, word: int) -> bytes:
        """Return the inode's bytes, xattrs included."""
        ino, mode, uid, gid, mtime_s, mtime_ns, nlink, xattrs = self
        count = xattr_count(len(xattrs))
        fixed = _HEAD.pack(
            i_format, count, mode, size, word, ino, uid, gid, mtime_s, mtime_ns, nlink
        )
        return fixed + xattrs if xattrs else fixed


class _Directory(NamedTuple):
    """A directory whose entries are not written yet."""

    names: list[bytes]
    inos: list[int]
    places: list[tuple[int, int, int]]  # of each block: end among the names, position, bytes used


class ErofsWriter:
    """One file system on its way."""

    def __init__(self, root: Attributes, inos: int, chunk_size: int) -> None:
        """`inos`: all numbers are below; `chunk_size`: of the files' chunks but the last of each."""
        self._root = root
        self._chunk_bits = chunk_size.bit_length() - 1 - BLOCK_BITS
        self._out = bytearray(BLOCK_SIZE)
        self._gap = self._gap_end = 0  # left by what had to start on a new block
        self._nids = [0] * inos
        self._kinds = bytearray(inos)
        self._directories: list[_Directory] = []
        # The superblock has 16 bits for the root's nid: it goes first, its entries elsewhere.
        self._put(root, bytes(_HEAD_BYTES + len(root.xattrs)))

    def add_file(self, attributes: Attributes, size: int, blocks: Sequence[int]) -> None:
        """Add a regular file whose chunks start at those blocks of the device."""
        bits = self._chunk_bits
        if len(blocks) > 1:
            # The kernel takes a file that lies in one run for one chunk, whatever that chunk's size.
            step, whole_bits = 1 << bits, (size - 1).bit_length() - BLOCK_BITS
            end = blocks[0] + len(blocks) * step
            if whole_bits <= CHUNK_BITS_MAX and blocks == list(range(blocks[0], end, step)):
                bits = max(bits, whole_bits)
                blocks = blocks[:1]
        inode = attributes.head(_FILE_FORMAT, size, CHUNK_FORMAT_INDEXES | bits)
        if blocks:
            inode = inode.ljust(index_offset(len(attributes.xattrs)), b"\0")
            inode += b"".join([_INDEX.pack(0, _DEVICE, 0, block) for block in blocks])
        self._put(attributes, inode)

    def add_symlink(self, attributes: Attributes, target: bytes) -> None:
        """Add a symlink, its target behind the inode if they fit into one block together."""
        size = len(target)
        if _HEAD_BYTES + len(attributes.xattrs) + size <= BLOCK_SIZE:
            inode = attributes.head(_INLINE_FORMAT, size, 0) + target
            self._put(attributes, inode, together=True)
        else:
            block = self._append_blocks(target)
            self._put(attributes, attributes.head(_PLAIN_FORMAT, size, block))

    def add_special(self, attributes: Attributes, rdev: int) -> None:
        """Add a device, FIFO or socket; `rdev` as the kernel encodes it, 0 but for devices."""
        self._put(attributes, attributes.head(_PLAIN_FORMAT, 0, rdev))

    def add_directory(
        self, attributes: Attributes, names: list[bytes], inos: list[int], parent: int
    ) -> None:
        """Add a directory of those children: names ascending by bytes, numbers of inodes added some day."""
        for name, ino in ((b".", attributes.ino), (b"..", parent)):
            position = bisect_left(names, name)
            names.insert(position, name)
            inos.insert(position, ino)
        used = DIRENT.size_bytes * len(names) + sum(map(len, names))
        blocks = [(len(names), used)] if used < BLOCK_SIZE else directory_blocks(names)
        tail = blocks[-1][1]
        size = (len(blocks) - 1) * BLOCK_SIZE + tail
        is_root = attributes is self._root
        head_bytes = _HEAD_BYTES + len(attributes.xattrs)
        inline = head_bytes + tail <= BLOCK_SIZE and not is_root
        whole = len(blocks) - inline
        first = self._append_blocks(bytes(whole * BLOCK_SIZE)) if whole else 0
        places = [
            (end, (first + position) * BLOCK_SIZE, bytes_used)
            for position, (end, bytes_used) in enumerate(blocks)
        ]
        head = attributes.head(_INLINE_FORMAT if inline else _PLAIN_FORMAT, size, first)
        if is_root:
            start = self._nids[attributes.ino] * NID_UNIT
            self._out[start : start + head_bytes] = head
        elif inline:
            start = self._put(attributes, head + bytes(tail), together=True)
            places[-1] = (len(names), start + head_bytes, tail)
        else:
            self._put(attributes, head)
        self._directories.append(_Directory(names, inos, places))

    def finish(self, device_blocks: int) -> bytearray:
        """Return the metadata, whole blocks; of no device if `device_blocks` is 0."""
        out = self._out
        out += bytes(-len(out) % BLOCK_SIZE)
        for names, inos, places in self._directories:
            nids = [self._nids[ino] for ino in inos]
            kinds = [self._kinds[ino] for ino in inos]
            start = 0
            for end, position, used in places:
                block = pack_directory_block(names[start:end], nids[start:end], kinds[start:end])
                out[position : position + used] = block
                start = end
        superblock = ErofsSuperblock(
            magic=EROFS_MAGIC,
            checksum=0,
            feature_compat=0,
            blkszbits=BLOCK_BITS,
            extslots=0,
            root_nid=self._nids[self._root.ino],
            inos=len(self._kinds) - self._kinds.count(0),
            blocks=len(out) // BLOCK_SIZE,
            meta_blkaddr=0,
            xattr_blkaddr=0,
            feature_incompat=INCOMPAT_CHUNKED_DEVICES,
            extra_devices=1 if device_blocks else 0,
            devt_slotoff=SLOTS_OFFSET // SLOT_BYTES,
        )
        EROFS_SUPERBLOCK.pack_into(out, SUPERBLOCK_OFFSET, superblock)
        if device_blocks:
            slot = DeviceSlot(DEVICE_TAG, blocks=device_blocks, mapped_blkaddr=0)
            DEVICE_SLOT.pack_into(out, SLOTS_OFFSET, slot)
        return out

    def _put(self, attributes: Attributes, inode: bytes, *, together: bool = False) -> int:
        """Put an inode somewhere, its fixed part (or all of it, `together`) within one block.

        Returns its position in the metadata.
        """
        out, size = self._out, len(inode)
        if self._gap_end - self._gap >= size:
            start = self._gap
            self._gap += align(size, NID_UNIT)
            out[start : start + size] = inode
        else:
            room = -len(out) % BLOCK_SIZE
            if 0 < room < (size if together else _HEAD_BYTES):
                self._start_block()
            start = len(out)
            out += inode
            out += bytes(-size % NID_UNIT)
        self._nids[attributes.ino] = start // NID_UNIT
        self._kinds[attributes.ino] = FILE_TYPES[stat.S_IFMT(attributes.mode)]
        return start

    def _append_blocks(self, content: bytes) -> int:
        """Put data on blocks of its own; return the first one's number."""
        self._start_block()
        block = len(self._out) // BLOCK_SIZE
        self._out += content
        self._out += bytes(-len(content) % BLOCK_SIZE)
        return block

    def _start_block(self) -> None:
        """Go on at the next block; what is left of this one is for small inodes to come."""
        start = len(self._out)
        room = -start % BLOCK_SIZE
        self._out += bytes(room)
        if room > self._gap_end - self._gap:
            self._gap, self._gap_end = start, start + room
