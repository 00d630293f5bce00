"""RAFS v5: a mapped bootstrap that answers for inodes, names, links, xattrs and extents (spec rafs-v5).

Nothing is read ahead and nothing kept: each answer unpacks the records that it needs from the mapping,
and checks them there and then. A record that breaks a rule fails alone.

Owns     the mapping, until `close()`.
Callers  rafs.bootstrap opens it; kernel and storage ask it, from any thread (it has no state that changes).
Raises   FormatError for records that break a rule, NotFoundError for inode numbers outside the image,
         UnsupportedError for files with unrecorded ranges.
"""

import mmap
import os
import stat
import struct
from collections.abc import Iterator
from typing import NamedTuple, NoReturn

from nydusd.blob.model import BlobInfo, DigestSource
from nydusd.errors import FormatError, NotFoundError, UnsupportedError
from nydusd.rafs.blob_table_v5 import read_blobs
from nydusd.rafs.layout_v5 import (
    CHUNK_BYTES,
    I_FLAG_HAS_HOLE,
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
    SuperblockV5,
    align8,
    read_superblock,
    shown_details,
    xattr_offset,
)
from nydusd.rafs.model import DirEntry, Extent, Inode, Superblock, SuperblockFlag
from nydusd.rafs.v5_chunks import ChunkTableV5
from nydusd.rafs.v5_unnumbered import ChunkNumbers, number_chunks

_INO_AND_NAME_SIZE = struct.Struct("<40xQ52xH26x")  # of an inode record
_PARENT = struct.Struct("<32xQ88x")
_XATTR_PAIR_SIZE = struct.Struct("<I")
_EXTENT = struct.Struct(
    "<32xI8xI8xQQI4x"
)  # of a chunk record: blob, size, plain and file offset, index

_SLOT_LIMIT = 1 << 29  # slots of the inode table are below it (spec §4.1)
_SIZE_MAX = (1 << 63) - 1
_MODE_MAX = 0o177777
_NS_PER_S = 1_000_000_000
_DOTS = 2  # the cookies of "." and ".."; child k has 3 + k (spec fs-behaviour §10)
_DEVICES = (stat.S_IFCHR, stat.S_IFBLK)
_KINDS = frozenset(
    (
        stat.S_IFDIR,
        stat.S_IFREG,
        stat.S_IFLNK,
        stat.S_IFCHR,
        stat.S_IFBLK,
        stat.S_IFIFO,
        stat.S_IFSOCK,
    )
)


def open_v5(
    data: mmap.mmap | bytes, source: str, extracted_from: str | None = None
) -> "BootstrapV5":
    """Return the bootstrap in `data`, superblock, tables and root checked.

    source: the file's path, for messages and, without directories, as stand-in for the blob id of
    an inlined bootstrap. extracted_from: id of the blob that the bootstrap was taken out of.
    Closing the bootstrap closes `data`; if this function raises, `data` stays open.
    """
    layout = read_superblock(data, source)
    blobs = read_blobs(data, layout, source, extracted_from)
    numbers: tuple[ChunkNumbers, ...] = ()
    if not layout.has_extended_blobs:
        numbers = number_chunks(data, layout, len(blobs), source)
        blobs = tuple(of_blob.describe(blob) for of_blob, blob in zip(numbers, blobs, strict=True))
    bootstrap = BootstrapV5(data, layout, blobs, numbers, source)
    if not stat.S_ISDIR(bootstrap.inode(ROOT_INO).mode):
        raise FormatError("root i_mode", "no directory", "the root must be one", source)
    return bootstrap


class RawV5(NamedTuple):
    """A bootstrap as it lies there, unchecked but for its tables: for who reads all of it at once."""

    data: mmap.mmap | bytes
    table_offset: int  # of the inode table
    slots: int  # its entries
    chunk_size: int
    owner: tuple[int, int] | None  # who owns every inode; None: each inode says so itself
    numbers: tuple[
        ChunkNumbers, ...
    ]  # by blob; empty where chunk records have numbers of their own
    source: str


class BootstrapV5:
    """A v5 bootstrap, as rafs.model.Bootstrap describes it. An inode's `position` is its record's offset."""

    __slots__ = (
        "_chunk_size",
        "_data",
        "_layout",
        "_numbers",
        "_owner",
        "_slots",
        "_source",
        "_table_offset",
        "blobs",
        "root_ino",
        "superblock",
    )

    def __init__(
        self,
        data: mmap.mmap | bytes,
        layout: SuperblockV5,
        blobs: tuple[BlobInfo, ...],
        numbers: tuple[ChunkNumbers, ...],
        source: str,
    ) -> None:
        """Callers use `open_v5`, which checks what it passes; `numbers` only where records have none."""
        flags = SuperblockFlag(layout.s_flags)
        self._data = data
        self._source = source
        self._layout = layout
        self._numbers = numbers
        self._slots = layout.s_inode_table_entries
        self._table_offset = layout.s_inode_table_offset
        self._chunk_size = layout.s_block_size
        explicit = SuperblockFlag.EXPLICIT_UID_GID in flags
        self._owner = None if explicit else (os.geteuid(), os.getegid())
        self.blobs = blobs
        self.root_ino = ROOT_INO
        self.superblock = Superblock(
            version=5,
            flags=flags,
            chunk_size=layout.s_block_size,
            inode_count=layout.s_inodes_count,
            details=shown_details(layout),
        )

    def inode(self, ino: int) -> Inode:
        """Return the inode with this number: the record of its first link (spec §6)."""
        position = self._position(ino)
        record = INODE.read(self._data, position)
        self._check_inode(record, position)
        if record.i_ino != ino:
            self._refuse(ino, "i_ino", record.i_ino, "must be its position in the inode table")
        uid, gid = self._owner or (record.i_uid, record.i_gid)
        return Inode(
            ino=ino,
            mode=record.i_mode,
            nlink=record.i_nlink,
            uid=uid,
            gid=gid,
            rdev=record.i_rdev if stat.S_IFMT(record.i_mode) in _DEVICES else 0,
            size=record.i_size,
            blocks=record.i_blocks,
            mtime_s=record.i_mtime,
            mtime_ns=record.i_mtime_nsec,
            position=position,
        )

    def lookup(self, directory: Inode, name: bytes) -> Inode | None:
        """Return the child of that name, by binary search: children are sorted by bytes (spec §6)."""
        record = self._directory(directory)
        if name == b".":
            return directory
        if name == b"..":
            return self._parent(directory, record)
        index = self._find(record, name)
        return None if index is None else self._child(directory, index)

    def entries(self, directory: Inode, after: int = 0) -> Iterator[DirEntry]:
        """Yield the entries behind cookie `after`: `.`, `..`, then the children in order.

        A child whose name cannot be told is left out; any other is listed, good or not, so that
        opening it tells what is wrong.
        """
        record = self._directory(directory)
        if after < 1:
            yield DirEntry(b".", directory.ino, 1)
        if after < _DOTS:
            yield DirEntry(b"..", record.i_parent or ROOT_INO, _DOTS)
        for child in range(max(after - _DOTS, 0), record.i_child_count):
            index = record.i_child_index + child
            try:
                ino, name = self._link(index)
            except FormatError:
                continue
            # A number outside the image may not fit where it is sent; the index leads to an error, too.
            shown = ino if 1 <= ino <= self._slots else index
            yield DirEntry(name, shown, _DOTS + 1 + child)

    def readlink(self, inode: Inode) -> bytes:
        """Return the target, as raw bytes."""
        record = INODE.read(self._data, inode.position)
        if not stat.S_ISLNK(record.i_mode):
            self._refuse(inode.ino, "i_mode", oct(record.i_mode), "must be that of a symlink")
        start = inode.position + INODE_BYTES + align8(record.i_name_size)
        return self._data[start : start + record.i_symlink_size]

    def xattrs(self, inode: Inode) -> dict[bytes, bytes]:
        """Return full names and values; pairs that hold no name are skipped (spec §5.3)."""
        record = INODE.read(self._data, inode.position)
        if not record.i_flags & I_FLAG_XATTR:
            return {}
        start = xattr_offset(record, inode.position)
        (size,) = XATTR_AREA_SIZE.unpack_from(self._data, start)
        position = start + XATTR_AREA_SIZE.size
        end = position + size
        pairs: dict[bytes, bytes] = {}
        while position < end:
            pair_start = position + _XATTR_PAIR_SIZE.size
            if pair_start > end:
                self._refuse(inode.ino, "xattr table", size, "ends within a pair")
            (pair_size,) = _XATTR_PAIR_SIZE.unpack_from(self._data, position)
            position = pair_start + pair_size
            if position > end:
                self._refuse(inode.ino, "xattr pair size", pair_size, "ends behind the table")
            name, separator, value = self._data[pair_start:position].partition(b"\0")
            if name and separator:
                pairs[name] = value
        return pairs

    def extents(self, inode: Inode, offset: int, size: int) -> list[Extent]:
        """Return the extents of file bytes [offset, offset + size), clipped at the end of the file.

        Raises UnsupportedError where the file has no chunk for some of them: no builder makes such
        files, and the reference would shift the bytes behind the gap.
        """
        end = min(offset + size, inode.size)
        if not 0 <= offset < end:
            return []
        record = INODE.read(self._data, inode.position)
        if not stat.S_ISREG(record.i_mode):
            self._refuse(inode.ino, "i_mode", oct(record.i_mode), "must be that of a regular file")
        chunks = self._check_xattr_area(record, inode.position)
        sparse = bool(record.i_flags & I_FLAG_HAS_HOLE)
        if sparse:
            ordinals = range(record.i_child_count)
        else:
            ordinals = range(offset // self._chunk_size, -(-end // self._chunk_size))
        found: list[Extent] = []
        position = offset
        for ordinal in ordinals:
            blob_index, chunk_size, plain_offset, file_offset, index = _EXTENT.unpack_from(
                self._data, chunks + ordinal * CHUNK_BYTES
            )
            if not sparse:
                self._check_ordinal(inode, ordinal, file_offset, chunk_size)
            if blob_index >= len(self.blobs):
                rule = f"the image has {len(self.blobs)} blobs"
                self._refuse(inode.ino, f"blob_index of chunk {ordinal}", blob_index, rule)
            chunk_end = file_offset + chunk_size
            if chunk_end <= position:
                continue
            if file_offset > position:
                break
            if self._numbers:
                index = self._numbers[blob_index].number(plain_offset)
            length = min(end, chunk_end) - position
            within = position - file_offset
            found.append(Extent(blob_index, index, plain_offset, chunk_size, within, length))
            position += length
            if position == end:
                return found
        raise UnsupportedError(
            f"{self._source}: inode {inode.ino} has no chunk at file offset {position}:"
            " files with holes are not supported"
        )

    def prefetch_inodes(self) -> list[int]:
        """Return the inodes of the prefetch table, in its order, up to the first 0 (spec §4.2).

        Numbers outside the image are left out; more entries than there are inodes are not read.
        """
        count = min(self._layout.s_prefetch_table_entries, self._slots)
        start = self._layout.s_prefetch_table_offset
        inodes: list[int] = []
        for (ino,) in SLOT.iter_unpack(self._data[start : start + count * SLOT.size]):
            if ino == 0:
                break
            if ino <= self._slots:
                inodes.append(ino)
        return inodes

    def chunk_table(self, blob_index: int) -> ChunkTableV5:
        """Return the blob's chunks. Walks the image once, natively: call it in a worker thread."""
        info = self.blobs[blob_index]
        if self._numbers:
            return ChunkTableV5(self._data, self._numbers[blob_index].positions, info, self._source)
        from nydusd import native  # loaded by the first blob that is opened, not by a mount

        positions = native.index_v5_chunks(
            self._data, self._table_offset, self._slots, blob_index, info.chunk_count
        )
        return ChunkTableV5(self._data, positions, info, self._source)

    def digests(self, blob_index: int) -> DigestSource | None:  # noqa: ARG002 - the protocol's
        """Return None: in v5 the chunk records themselves carry digest and CRC."""
        return None

    def mapped_tree(self) -> None:
        """Return None: names of v5 are shown by Python."""

    def raw(self) -> RawV5:
        """Return where the records lie. `data` must not be used after `close`."""
        return RawV5(
            self._data,
            self._table_offset,
            self._slots,
            self._chunk_size,
            self._owner,
            self._numbers,
            self._source,
        )

    def close(self) -> None:
        """Unmap the file. The bootstrap and its chunk tables must not be used afterwards."""
        if isinstance(self._data, mmap.mmap):
            self._data.close()

    def _position(self, index: int) -> int:
        """Return the file offset of the record in slot `index` of the inode table, from 1."""
        if not 1 <= index <= self._slots:
            raise NotFoundError(f"{self._source}: no inode {index}, there are {self._slots}")
        slot = self._table_offset + (index - 1) * INODE_SLOT_BYTES
        value: int = SLOT.unpack_from(self._data, slot)[0]
        position = value << POSITION_SHIFT_BITS
        if position <= SUPERBLOCK_BYTES or value >= _SLOT_LIMIT:
            self._refuse(index, "inode table slot", value, "must lie behind the superblock")
        if position + INODE_BYTES > len(self._data):
            self._refuse(index, "inode table slot", value, "lies behind the end of the file")
        return position

    def _link(self, index: int) -> tuple[int, bytes]:
        """Return (i_ino, name) of the record in slot `index`: a usable name, a number as it comes."""
        position = self._position(index)
        ino, size = _INO_AND_NAME_SIZE.unpack_from(self._data, position)
        start = position + INODE_BYTES
        name = self._data[start : start + size]
        # The kernel answers EIO for a whole listing in which one name has a slash.
        bad = len(name) != size or not 0 < size <= NAME_MAX_BYTES or name in (b".", b"..")
        if bad or b"/" in name or b"\0" in name:
            shown = repr(name[:NAME_MAX_BYTES])
            self._refuse(index, "name", shown, "must be a plain name of 1 to 255 bytes")
        return ino, name

    def _directory(self, directory: Inode) -> InodeRecord:
        record = INODE.read(self._data, directory.position)
        if not stat.S_ISDIR(record.i_mode):
            self._refuse(directory.ino, "i_mode", oct(record.i_mode), "must be that of a directory")
        return record

    def _parent(self, directory: Inode, record: InodeRecord) -> Inode:
        if directory.ino == ROOT_INO:
            return directory
        parent = self.inode(record.i_parent)
        if not stat.S_ISDIR(parent.mode):
            self._refuse(directory.ino, "i_parent", record.i_parent, "must be a directory")
        return parent

    def _find(self, record: InodeRecord, name: bytes) -> int | None:
        """Return the index of the child of that name."""
        low = record.i_child_index
        high = low + record.i_child_count
        try:
            while low < high:
                middle = (low + high) // 2
                here = self._link(middle)[1]
                if here == name:
                    return middle
                if here < name:
                    low = middle + 1
                else:
                    high = middle
        except FormatError:
            return self._find_among_broken(record, name)
        return None

    def _find_among_broken(self, record: InodeRecord, name: bytes) -> int | None:
        """Search one by one, because the search met a child whose name cannot be told.

        Raises FormatError if no other child has the name: the broken one may be it.
        """
        failure: FormatError | None = None
        for index in range(record.i_child_index, record.i_child_index + record.i_child_count):
            try:
                if self._link(index)[1] == name:
                    return index
            except FormatError as exc:
                failure = failure or exc
        if failure is not None:
            raise failure
        return None

    def _child(self, directory: Inode, index: int) -> Inode:
        """Return the inode that the record in slot `index`, a child of `directory`, stands for."""
        ino, name = self._link(index)
        if not 1 <= ino <= self._slots:
            rule = f"there are {self._slots} inodes"
            self._refuse(index, f"i_ino of {name!r}", ino, rule)
        inode = self.inode(ino)
        if stat.S_ISDIR(inode.mode):
            # A directory has one place; with child > parent (see _check_inode) this rules out loops.
            (parent,) = _PARENT.unpack_from(self._data, inode.position)
            if ino != index or parent != directory.ino:
                self._refuse(ino, "directory", repr(name), f"must not be linked at index {index}")
        return inode

    def _check_inode(self, record: InodeRecord, position: int) -> None:
        """Check what any later answer for this inode relies on (spec §10)."""
        ino, mode = record.i_ino, record.i_mode
        if not 1 <= ino <= self._slots:
            self._refuse(ino, "i_ino", ino, f"must be 1 to {self._slots}")
        if not 1 <= record.i_name_size <= NAME_MAX_BYTES:
            self._refuse(ino, "i_name_size", record.i_name_size, f"must be 1 to {NAME_MAX_BYTES}")
        if stat.S_IFMT(mode) not in _KINDS or mode > _MODE_MAX:
            self._refuse(ino, "i_mode", oct(mode), "is of no known kind")
        if record.i_nlink == 0:
            self._refuse(ino, "i_nlink", 0, "must not be zero")
        if record.i_size > _SIZE_MAX:
            self._refuse(ino, "i_size", record.i_size, f"must be {_SIZE_MAX} at most")
        if record.i_mtime_nsec >= _NS_PER_S:
            self._refuse(ino, "i_mtime_nsec", record.i_mtime_nsec, "must be below a second")
        self._check_parent(record)
        end = self._check_xattr_area(record, position)
        if stat.S_ISDIR(mode):
            self._check_children(record)
        elif stat.S_ISLNK(mode) and record.i_symlink_size == 0:
            self._refuse(ino, "i_symlink_size", 0, "must not be zero")
        elif stat.S_ISREG(mode):
            self._check_chunk_count(record)
            end += record.i_child_count * CHUNK_BYTES
        if end > len(self._data):
            self._refuse(ino, "end of record", end, f"above the file's {len(self._data)} bytes")

    def _check_parent(self, record: InodeRecord) -> None:
        if record.i_ino == ROOT_INO:
            return
        # Files with several names may have been met first below a later directory; so may symlinks
        # in images of old builders (spec §6).
        shared = record.i_nlink > 1 and not stat.S_ISDIR(record.i_mode)
        if record.i_parent == 0 or (record.i_parent >= record.i_ino and not shared):
            rule = f"must be 1 to {record.i_ino - 1}"
            self._refuse(record.i_ino, "i_parent", record.i_parent, rule)

    def _check_children(self, record: InodeRecord) -> None:
        if record.i_child_count == 0:
            return  # i_child_index is arbitrary then
        last = record.i_child_index + record.i_child_count - 1
        if record.i_child_index <= record.i_ino or last > self._slots:
            rule = f"must be {record.i_ino + 1} to {self._slots}"
            self._refuse(record.i_ino, "children", f"{record.i_child_index} to {last}", rule)

    def _check_chunk_count(self, record: InodeRecord) -> None:
        count = -(-record.i_size // self._chunk_size)
        if record.i_child_count != count and not record.i_flags & I_FLAG_HAS_HOLE:
            rule = f"must be {count} for {record.i_size} bytes"
            self._refuse(record.i_ino, "chunk count", record.i_child_count, rule)

    def _check_xattr_area(self, record: InodeRecord, position: int) -> int:
        """Return where the xattr table ends, or would begin if there is none."""
        start = xattr_offset(record, position)
        if not record.i_flags & I_FLAG_XATTR:
            return start
        if start + XATTR_AREA_SIZE.size > len(self._data):
            self._refuse(record.i_ino, "xattr table", start, "lies behind the end of the file")
        (size,) = XATTR_AREA_SIZE.unpack_from(self._data, start)
        end: int = start + XATTR_AREA_SIZE.size + align8(size)
        if end > len(self._data):
            self._refuse(record.i_ino, "xattr table size", size, "ends behind the file")
        return end

    def _check_ordinal(self, inode: Inode, ordinal: int, file_offset: int, size: int) -> None:
        """Chunk `ordinal` of a file holds the bytes that its number says (spec §9)."""
        want = ordinal * self._chunk_size
        if file_offset != want:
            self._refuse(
                inode.ino, f"file_offset of chunk {ordinal}", file_offset, f"must be {want}"
            )
        want = min(self._chunk_size, inode.size - want)
        if size != want:
            self._refuse(inode.ino, f"size of chunk {ordinal}", size, f"must be {want}")

    def _refuse(self, number: int, field: str, value: object, rule: str) -> NoReturn:
        raise FormatError(f"inode {number}: {field}", value, rule, self._source)
