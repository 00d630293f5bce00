"""EROFS metadata for a RAFS v5 image, so that the kernel can show an old image by itself (spec rafs-v5, rafs-v6).

The plain bytes of all blobs get one address space of our own, the *device*: each chunk that a file
refers to starts at a 4 KiB block, in the order of first use, so most files are one run of blocks and
one index entry tells the kernel everything. What it needs to serve the device, a table of segments
(device address → chunk), comes with the metadata.

Only a flawless image is laid out: the kernel could not lose a broken inode, or a chunk that two files
describe differently, alone and with the right error, as the tree frontend does.

Owns     nothing: a Bootstrap in, bytes out. The layout depends on the bootstrap's bytes alone; `now_s`
         and the owner (images without EXPLICIT_UID_GID) only fill in fields.
Callers  storage/synthesised.py, in a worker thread: some 8 us per inode.
Raises   UnsupportedError with the reason if the image cannot be laid out; time and memory are bounded by
         the bootstrap's size, whatever its counts say.
"""

import stat
import struct
from operator import lt
from typing import Any, Final, NamedTuple, NoReturn

from nydusd.errors import FormatError, NotFoundError, UnsupportedError
from nydusd.rafs.erofs_parts import (
    BLOCK_BITS,
    FILE_TYPES,
    XATTR_AREA_MAX_BYTES,
    XATTR_SUFFIX_MAX_BYTES,
    XATTR_VALUE_MAX_BYTES,
    pack_xattrs,
    split_xattr,
)
from nydusd.rafs.erofs_writer import Attributes, ErofsWriter
from nydusd.rafs.layout_v5 import (
    CHUNK_BYTES,
    I_FLAG_XATTR,
    INODE,
    INODE_BYTES,
    INODE_SLOT_BYTES,
    NAME_MAX_BYTES,
    POSITION_SHIFT_BITS,
    ROOT_INO,
    SLOT,
    SUPERBLOCK_BYTES,
    XATTR_AREA_SIZE,
    InodeRecord,
    align8,
)
from nydusd.rafs.layout_v6 import BLOCK_SIZE
from nydusd.rafs.model import SuperblockFlag
from nydusd.rafs.v5 import BootstrapV5

# Device address, offset in the blob's cache file, length, chunk number, blob index: as the native relay
# wants them (native/relay.h: nd_segment).
SEGMENT: Final = struct.Struct("<QQIII4x")
DEVICE_BLOCKS_MAX: Final = (1 << 32) - 2  # block 2^32 - 1 means "hole"
TARGET_MAX_BYTES: Final = 4095  # PATH_MAX without its NUL
ROOT_PERMISSIONS: Final = 0o755  # as the tree frontend shows it

_SLOT_MIN: Final = (SUPERBLOCK_BYTES >> POSITION_SHIFT_BITS) + 1
_SLOT_MAX: Final = (1 << 29) - 1
_SIZE_MAX: Final = (1 << 63) - 1
_MODE_MAX: Final = 0o177777
_NS_PER_S: Final = 1_000_000_000
_KIND: Final = 0o170000
_FILE: Final = FILE_TYPES[stat.S_IFREG]
_DIRECTORY: Final = FILE_TYPES[stat.S_IFDIR]
_SYMLINK: Final = FILE_TYPES[stat.S_IFLNK]
_DEVICES: Final = (FILE_TYPES[stat.S_IFCHR], FILE_TYPES[stat.S_IFBLK])

_RECORD: Final = struct.Struct(f"<{INODE.codes}")
_INO: Final = InodeRecord._fields.index("i_ino")
_NAME_SIZE: Final = InodeRecord._fields.index("i_name_size")
# Of a chunk record: blob, size, plain and file offset, number.
_EXTENT: Final = struct.Struct("<32xI8xI8xQQI4x")


class ErofsImage(NamedTuple):
    """What `lay_out` makes of a bootstrap."""

    metadata: bytearray  # whole blocks; the first 1024 bytes are zeros and nothing to the kernel
    segments: bytearray  # packed SEGMENTs, ascending by device address
    device_blocks: int  # 0: no file has data, EROFS is mounted without a device


class _Pending(NamedTuple):
    """A directory whose children are not laid out yet."""

    attributes: Attributes
    parent: int
    first_child: int
    child_count: int


def lay_out(bootstrap: BootstrapV5, now_s: int) -> ErofsImage:
    """Return EROFS metadata that shows what the tree frontend shows of this image.

    now_s: stands in for times that the image does not record. Directories have the size of their
    entries instead of the record's, which is cosmetic (spec rafs-v5 §5.1).
    """
    try:
        return _Walk(bootstrap, now_s).lay_out()
    except (FormatError, struct.error) as exc:
        # struct: a record ends behind the file, or EROFS has no room for a number.
        raise UnsupportedError(f"{bootstrap.raw().source}: no EROFS layout: {exc}") from exc


class _Walk:
    """One image on its way from v5 to EROFS."""

    def __init__(self, bootstrap: BootstrapV5, now_s: int) -> None:
        self._bootstrap = bootstrap
        self._raw = bootstrap.raw()
        self._now_s = now_s
        self._size = len(self._raw.data)
        self._slot_max = min((self._size - INODE_BYTES) >> POSITION_SHIFT_BITS, _SLOT_MAX)
        self._has_xattrs = SuperblockFlag.HAS_XATTR in bootstrap.superblock.flags
        self._chunk_counts = [blob.chunk_count for blob in bootstrap.blobs]
        self._segments = bytearray()
        self._segment_of: list[dict[int, int]] = [{} for _ in bootstrap.blobs]  # by chunk number
        self._next_block = 0
        self._kinds = bytearray(self._raw.slots + 1)  # by ino; 0: not met yet
        self._pending: list[_Pending] = []
        self._areas: dict[bytes, bytes] = {}  # images with labels have few different ones
        # Good images use each index and each byte once. Others shall not cost more than good ones.
        self._names_left = self._raw.slots
        self._bytes_left = self._size
        self._add_inode(ROOT_INO, 0, *self._record(ROOT_INO))
        root = self._pending[0].attributes
        self._writer = ErofsWriter(root, self._raw.slots + 1, self._raw.chunk_size)

    def lay_out(self) -> ErofsImage:
        """Add everything, depth first: how trees are walked, and how blobs are filled."""
        while self._pending:
            self._add_directory(self._pending.pop())
        return ErofsImage(self._writer.finish(self._next_block), self._segments, self._next_block)

    def _record(self, ino: int) -> tuple[int, tuple[Any, ...]]:
        """Return position and fields of the record in slot `ino`, which is 1 to the number of slots."""
        raw = self._raw
        slot = SLOT.unpack_from(raw.data, raw.table_offset + (ino - 1) * INODE_SLOT_BYTES)[0]
        if not _SLOT_MIN <= slot <= self._slot_max:
            self._refuse(ino, "lies outside the file")
        position = slot << POSITION_SHIFT_BITS
        return position, _RECORD.unpack_from(raw.data, position)

    def _add_directory(self, directory: _Pending) -> None:
        """Add the children, but for directories, which become pending; then the directory itself."""
        raw, kinds, slot_max = self._raw, self._kinds, self._slot_max
        data, slots, unpack = raw.data, raw.slots, _RECORD.unpack_from
        attributes, parent, first, count = directory
        own = attributes.ino
        if count and (first <= own or first + count - 1 > slots):
            self._refuse(own, "has children outside the inode table")
        self._names_left -= count
        if self._names_left < 0:
            self._refuse(own, "shares its children with other directories")
        waiting = len(self._pending)
        names: list[bytes] = []
        inos: list[int] = []
        name_bytes = 0
        table = raw.table_offset + (first - 1) * INODE_SLOT_BYTES if count else 0
        for index, slot in enumerate(struct.unpack_from(f"<{count}I", data, table), first):
            if not _SLOT_MIN <= slot <= slot_max:
                self._refuse(index, "lies outside the file")
            position = slot << POSITION_SHIFT_BITS
            record = unpack(data, position)
            ino, name_size = record[_INO], record[_NAME_SIZE]
            if not 0 < name_size <= NAME_MAX_BYTES:
                self._refuse(index, f"has a name of {name_size} bytes")
            start = position + INODE_BYTES
            names.append(data[start : start + name_size])
            name_bytes += name_size
            inos.append(ino)
            if ino == index and not kinds[ino]:
                self._add_inode(ino, own, position, record)
                continue
            if not 1 <= ino <= slots:
                self._refuse(index, f"stands for inode {ino}, but there are {slots}")
            if not kinds[ino]:  # a further name of a file, met before the first one
                self._add_inode(ino, 0, *self._record(ino))
            if kinds[ino] == _DIRECTORY:
                self._refuse(ino, "is a directory with several names")
        self._pending[waiting:] = self._pending[waiting:][::-1]
        joined = b"".join(names)
        if len(joined) != name_bytes or b"/" in joined or b"\0" in joined:
            self._refuse(own, "has a child whose name no path can hold")
        if len(names) > 1 and not all(map(lt, names, names[1:])):
            # The format wants this order, and the tree frontend's look-ups rely on it.
            self._refuse(own, "has children that are not in order")
        if b"." in joined and (b"." in names or b".." in names):
            self._refuse(own, "has a child that is called like itself or its parent")
        self._writer.add_directory(attributes, names, inos, parent)

    def _add_inode(self, ino: int, parent: int, position: int, record: tuple[Any, ...]) -> None:
        """Check an inode's record as v5 checks what it serves (rafs/v5.py), and lay it out.

        parent: the directory that lists it, which must be the only one if it is a directory itself.
        """
        (_, i_parent, i_ino, uid, gid, _, mode, size, _, flags, nlink, child_index, child_count,
         name_size, target_size, rdev, mtime_ns, mtime_s) = record  # fmt: skip
        kind = FILE_TYPES.get(mode & _KIND)
        shared = nlink > 1 and kind != _DIRECTORY
        if (
            kind is None
            or i_ino != ino
            or mode > _MODE_MAX
            or nlink == 0
            or size > _SIZE_MAX
            or mtime_ns >= _NS_PER_S
            or not 0 < name_size <= NAME_MAX_BYTES
            or (not 0 < i_parent < ino and ino != ROOT_INO and not (shared and i_parent))
        ):
            self._refuse(ino, "breaks a rule of the format")
        if kind == _DIRECTORY and i_parent != parent and ino != ROOT_INO:
            self._refuse(ino, f"belongs to another directory, {i_parent}")
        target = position + INODE_BYTES + align8(name_size)
        end = target + align8(target_size)
        xattrs = b""
        if flags & I_FLAG_XATTR:
            xattrs, end = self._xattrs(ino, end)
        chunks = end
        if kind == _FILE:
            end += child_count * CHUNK_BYTES
        self._bytes_left -= end - position
        if end > self._size or self._bytes_left < 0:
            self._refuse(ino, "overlaps other inodes or the end of the file")
        if self._raw.owner is not None:
            uid, gid = self._raw.owner
        if mtime_s == 0 and mtime_ns == 0:
            mtime_s = self._now_s
        self._kinds[ino] = kind
        attributes = Attributes(ino, mode, uid, gid, mtime_s, mtime_ns, nlink, xattrs)
        if kind == _FILE:
            blocks = self._blocks(ino, size, chunks, child_count) if size or child_count else []
            self._writer.add_file(attributes, size, blocks)
        elif kind == _DIRECTORY:
            if ino == ROOT_INO:
                attributes = attributes._replace(mode=mode & _KIND | ROOT_PERMISSIONS)
            self._pending.append(_Pending(attributes, parent or ino, child_index, child_count))
        elif kind == _SYMLINK:
            value = self._raw.data[target : target + target_size]
            if not 0 < target_size <= TARGET_MAX_BYTES or b"\0" in value:
                self._refuse(ino, f"has a target of {target_size} bytes, or one with a NUL")
            self._writer.add_symlink(attributes, value)
        else:
            self._writer.add_special(attributes, rdev if kind in _DEVICES else 0)

    def _xattrs(self, ino: int, start: int) -> tuple[bytes, int]:
        """Return the packed xattrs of an inode whose table is at `start`, and where that table ends."""
        data = self._raw.data
        (size,) = XATTR_AREA_SIZE.unpack_from(data, start)
        end = start + XATTR_AREA_SIZE.size + align8(size)
        if end > self._size:
            self._refuse(ino, "has xattrs behind the end of the file")
        if not self._has_xattrs:
            # A setting decides if they are shown, and the layout is made for all settings.
            self._refuse(ino, "has xattrs, which the superblock denies")
        table = data[start:end]
        area = self._areas.get(table)
        if area is None:
            area = self._areas[table] = self._pack_xattrs(ino)
        return area, end

    def _pack_xattrs(self, ino: int) -> bytes:
        packed: list[tuple[int, bytes, bytes]] = []
        for name, value in self._bootstrap.xattrs(self._bootstrap.inode(ino)).items():
            split = split_xattr(name)
            if split is None or len(split[1]) > XATTR_SUFFIX_MAX_BYTES:
                self._refuse(ino, f"has xattr {name!r}, which EROFS cannot name")
            if len(value) > XATTR_VALUE_MAX_BYTES:
                self._refuse(ino, f"has xattr {name!r} of {len(value)} bytes")
            packed.append((*split, value))
        area = pack_xattrs(packed)
        if len(area) > XATTR_AREA_MAX_BYTES:
            self._refuse(ino, f"has {len(area)} bytes of xattrs")
        return area

    def _blocks(self, ino: int, size: int, position: int, count: int) -> list[int]:
        """Return the first device block of each chunk of a file; new chunks get their addresses."""
        chunk_size, segments, numbers = self._raw.chunk_size, self._segments, self._raw.numbers
        if count != -(-size // chunk_size):
            self._refuse(ino, f"has {count} chunks for {size} bytes")
        records = self._raw.data[position : position + count * CHUNK_BYTES]
        blocks: list[int] = []
        expected = 0
        for blob, length, plain, file_offset, number in _EXTENT.iter_unpack(records):
            if file_offset != expected or length != min(chunk_size, size - expected):
                self._refuse(ino, f"has {length} bytes at {file_offset} as chunk {len(blocks)}")
            if blob >= len(self._chunk_counts):
                self._refuse(ino, f"has a chunk of blob {blob}")
            if numbers:
                number = numbers[blob].number(plain)
            known = self._segment_of[blob]
            at = known.get(number)
            if at is None:
                if number >= self._chunk_counts[blob]:
                    self._refuse(ino, f"has chunk {number} of blob {blob}, which has fewer")
                block = self._next_block
                known[number] = len(segments)
                segments += SEGMENT.pack(block << BLOCK_BITS, plain, length, number, blob)
                self._next_block = block + (length + BLOCK_SIZE - 1 >> BLOCK_BITS)
            else:
                address, known_plain, known_length, _, _ = SEGMENT.unpack_from(segments, at)
                if (known_plain, known_length) != (plain, length):
                    self._refuse(ino, f"describes chunk {number} of blob {blob} as no other does")
                block = address >> BLOCK_BITS
            blocks.append(block)
            expected += chunk_size
        if self._next_block > DEVICE_BLOCKS_MAX:
            self._refuse(ino, "needs more addresses than EROFS has")
        return blocks

    def _refuse(self, ino: int, what: str) -> NoReturn:
        """Raise UnsupportedError; in v5's own words where it has something to say against the inode."""
        try:
            self._bootstrap.inode(ino)
        except (FormatError, NotFoundError) as exc:
            raise UnsupportedError(f"no EROFS layout: {exc}") from exc
        raise UnsupportedError(f"{self._raw.source}: no EROFS layout: inode {ino} {what}")
