"""A mapped RAFS v6 bootstrap: inodes, names, targets, xattrs, extents (spec rafs-v6 §7 to §12).

Owns     the mapping, until close(). It keeps no inode and no directory: each call reads what it needs.
Callers  tasks of one thread; digests() alone may run in a worker thread.
Raises   FormatError for what was asked for, the rest stays usable; NotFoundError for an inode number
         outside the file. A file cut short while mapped kills the process (SIGBUS): a new version of a
         bootstrap must be renamed over the old one.
"""

import logging
from collections import OrderedDict
from collections.abc import Iterator
from mmap import mmap
from stat import S_IFBLK, S_IFCHR, S_IFDIR, S_IFIFO, S_IFLNK, S_IFMT, S_IFREG, S_IFSOCK
from struct import Struct
from typing import TYPE_CHECKING, Final, NamedTuple

from nydusd.blob.model import ChunkTable, DigestSource
from nydusd.errors import FormatError, NotFoundError
from nydusd.rafs.blob_table_v6 import read_blobs
from nydusd.rafs.layout_v6 import (
    CHUNK_FORMAT_INDEXES,
    CHUNK_INDEX,
    COMPACT_INODE,
    DIRENT,
    EXTENDED_INODE,
    FORMAT_EXTENDED,
    INODE_BODY,
    LAYOUT_CHUNK_BASED,
    LAYOUT_FLAT_INLINE,
    LAYOUT_FLAT_PLAIN,
    NID_UNIT,
    XATTR_ENTRY,
    XATTR_ENTRY_BYTES,
    XATTR_HEADER_BYTES,
    XATTR_PREFIXES,
    BootstrapBytes,
    read_geometry,
    read_superblocks,
    superblock_of,
)
from nydusd.rafs.model import DirEntry, Extent, Inode

if TYPE_CHECKING:
    from nydusd.native_tree import MappedTree

log = logging.getLogger(__name__)

INO_MAX: Final = (1 << 56) - 1  # the top byte of a nodeid is the mount's (spec fs-behaviour §4)
SIZE_MAX: Final = (1 << 63) - 1  # off_t
NSEC_PER_S: Final = 1_000_000_000
SYMLINK_BYTES_MAX: Final = 4096
NAME_BYTES_MAX: Final = 255
PREFETCH_ENTRIES_MAX: Final = 1 << 20  # of builders' lists, which people write; a bound for memory
RESUME_POINTS_MAX: Final = 64  # directories being listed at one time

_LAYOUTS: Final = {  # by file type (spec rafs-v6 §7)
    S_IFREG: (LAYOUT_CHUNK_BASED,),
    S_IFDIR: (LAYOUT_FLAT_PLAIN, LAYOUT_FLAT_INLINE),
    S_IFLNK: (LAYOUT_FLAT_PLAIN, LAYOUT_FLAT_INLINE),
    S_IFCHR: (LAYOUT_FLAT_PLAIN,),
    S_IFBLK: (LAYOUT_FLAT_PLAIN,),
    S_IFIFO: (LAYOUT_FLAT_PLAIN,),
    S_IFSOCK: (LAYOUT_FLAT_PLAIN,),
}
_U16: Final = Struct("<H")
_U32: Final = Struct("<I")
# Plain tuples of the records' fields, without a look at the end of the file: for whoever has had one.
_COMPACT: Final = Struct("<" + COMPACT_INODE.codes).unpack_from
_EXTENDED: Final = Struct("<" + EXTENDED_INODE.codes).unpack_from
_DIRENTS: Final = Struct("<" + DIRENT.codes).iter_unpack
_DIRENT_BYTES: Final = DIRENT.size_bytes
_NAMEOFF: Final = 8  # within a dirent


class _Flat(NamedTuple):
    """Where the bytes of a directory or symlink lie: whole blocks, then a tail, maybe elsewhere."""

    start: int  # file offset of block 0
    block_size: int
    blocks: int  # the tail included
    tail: int  # file offset of the last block
    tail_length: int

    def block(self, number: int) -> tuple[int, int]:
        """Return file offset and valid length of a block."""
        if number == self.blocks - 1:
            return self.tail, self.tail_length
        return self.start + number * self.block_size, self.block_size


def open_v6(data: BootstrapBytes, source: str, extracted_from: str | None = None) -> "BootstrapV6":
    """Return the bootstrap in `data`, whose superblocks and blob table hold to the rules.

    source: the file's path, for messages; its name stands for the id of a blob that contains it.
    extracted_from: id of the blob that the bootstrap was pulled out of, if it was.
    """
    return BootstrapV6(data, source, extracted_from)


class BootstrapV6:
    """See `nydusd.rafs.model.Bootstrap`. Inode numbers are nids."""

    def __init__(self, data: BootstrapBytes, source: str, extracted_from: str | None) -> None:
        """Check superblocks and blob table; the cost does not depend on the number of inodes."""
        erofs, ext = read_superblocks(data, source)
        self._geometry = read_geometry(len(data), erofs, ext, source)
        self._data = data
        self._size = len(data)
        self.source = self._source = source
        self._resume: OrderedDict[int, tuple[int, int]] = OrderedDict()
        self.superblock = superblock_of(erofs, ext)
        self.blobs = read_blobs(data, self._geometry, source, extracted_from)
        self.root_ino = self._geometry.root_nid
        root = self._inode(self.root_ino)
        if S_IFMT(root.mode) != S_IFDIR:
            raise self._error("root mode", f"{root.mode:#o}", "must be a directory")

    def close(self) -> None:
        """Unmap the file, at once unless a worker thread still walks the chunk table."""
        if isinstance(self._data, mmap):
            try:
                self._data.close()
            except BufferError:
                # The walk holds the buffer. The mapping goes with its last reference.
                log.debug("bootstrap=%s: still in use, unmapped later", self._source)

    # Inodes

    def inode(self, ino: int) -> Inode:
        """Return the inode with this nid."""
        position = self._geometry.meta_offset + ino * NID_UNIT
        if ino < 0 or position + COMPACT_INODE.size_bytes > self._size:
            raise NotFoundError(f"{self._source}: inode {ino} lies outside the file")
        return self._inode(ino)

    def _inode(self, nid: int) -> Inode:
        """Return an inode whose record holds to the rules. Listings ask for each name: few calls here."""
        data, size_bytes = self._data, self._size
        position = self._geometry.meta_offset + nid * NID_UNIT
        if nid > INO_MAX or position + COMPACT_INODE.size_bytes > size_bytes:
            raise self._error("nid", nid, "lies outside the file")
        if data[position] & FORMAT_EXTENDED:
            behind = position + EXTENDED_INODE.size_bytes
            if behind > size_bytes:
                raise self._error("nid", nid, "of an extended inode, which ends outside the file")
            i_format, icount, mode, size, i_u, _, uid, gid, mtime_s, mtime_ns, nlink = _EXTENDED(
                data, position
            )
        else:
            behind = position + COMPACT_INODE.size_bytes
            i_format, icount, mode, nlink, size, i_u, _, uid, gid = _COMPACT(data, position)
            mtime_s = mtime_ns = 0
        file_type = S_IFMT(mode)
        rdev = 0
        if i_format >> 1 not in _LAYOUTS.get(file_type, ()):
            raise self._bad_layout(nid, i_format, mode)
        if size > SIZE_MAX:
            raise self._error(f"i_size of inode {nid}", size, f"must be at most {SIZE_MAX}")
        if mtime_ns >= NSEC_PER_S:
            raise self._error(f"i_mtime_nsec of inode {nid}", mtime_ns, "is a second or more")
        if file_type == S_IFREG:
            if not i_u & CHUNK_FORMAT_INDEXES:
                raise self._error(f"i_u of inode {nid}", f"{i_u:#x}", "must say index entries")
            chunks = -(-size // self._geometry.chunk_size)
            indexes = _indexes_behind(behind + _xattr_bytes(icount))
            if indexes + chunks * CHUNK_INDEX.size_bytes > size_bytes:
                rule = f"but its {chunks} index entries end outside the file"
                raise self._error(f"i_size of inode {nid}", size, rule)
        elif file_type == S_IFLNK:
            if not 0 < size <= SYMLINK_BYTES_MAX:
                rule = f"must be 1 to {SYMLINK_BYTES_MAX} for a symlink"
                raise self._error(f"i_size of inode {nid}", size, rule)
        elif file_type in (S_IFCHR, S_IFBLK) and i_format & FORMAT_EXTENDED:
            rdev = i_u
        return Inode(
            nid, mode, nlink, uid, gid, rdev, size, size + 511 >> 9, mtime_s, mtime_ns, position
        )

    def _bad_layout(self, nid: int, i_format: int, mode: int) -> FormatError:
        if S_IFMT(mode) not in _LAYOUTS:
            return self._error(f"i_mode of inode {nid}", f"{mode:#o}", "has no known file type")
        rule = f"not that of a file of mode {mode:#o}"
        return self._error(f"i_format of inode {nid}", f"{i_format:#x}", rule)

    def _body(self, position: int) -> tuple[int, int, int]:
        """Return (layout, file offset behind inode and xattrs, i_u)."""
        i_format, icount, i_u = INODE_BODY.read(self._data, position)
        inode = EXTENDED_INODE if i_format & FORMAT_EXTENDED else COMPACT_INODE
        return i_format >> 1, position + inode.size_bytes + _xattr_bytes(icount), i_u

    # Directories

    def lookup(self, directory: Inode, name: bytes) -> Inode | None:
        """Return the child of that name; None if there is none, or `directory` is no directory."""
        if S_IFMT(directory.mode) != S_IFDIR:
            return None
        if name == b"." or (name == b".." and directory.ino == self.root_ino):
            return directory
        flat = self._flat(directory)
        nid = self._find(flat, name) if flat.blocks else None
        return None if nid is None else self._inode(nid)

    def entries(self, directory: Inode, after: int = 0) -> Iterator[DirEntry]:
        """Yield the entries behind cookie `after`, in the image's order, dots at their sorted places.

        A cookie is the entry's ordinal, from 1. Of an entry with an impossible nid, `ino` is INO_MAX,
        which names no inode. Yields nothing for what is no directory.
        """
        if S_IFMT(directory.mode) != S_IFDIR:
            return
        flat = self._flat(directory)
        block, seen = self._resume.get(directory.position, (0, 0))
        if after < seen:
            block = seen = 0
        while block < flat.blocks:
            offset, length = flat.block(block)
            count = self._entry_count(offset, length)
            if after < seen + count:
                self._remember(directory.position, block, seen)
                yield from self._block_entries(offset, length, count, after - seen, seen)
                after = seen + count
            block, seen = block + 1, seen + count

    def _remember(self, position: int, block: int, seen: int) -> None:
        """Keep where a listing is: else each readdir of a huge directory would count from its start."""
        self._resume[position] = (block, seen)
        self._resume.move_to_end(position)
        if len(self._resume) > RESUME_POINTS_MAX:
            self._resume.popitem(last=False)

    def _block_entries(
        self, offset: int, length: int, count: int, skip: int, seen: int
    ) -> Iterator[DirEntry]:
        block = self._data[offset : offset + length]
        table = [*_DIRENTS(block[: count * _DIRENT_BYTES])]
        ends = [start for _, start, _ in table[1:]]
        ends.append(length)
        names_at = count * _DIRENT_BYTES
        for number in range(max(skip, 0), count):
            nid, start, _ = table[number]
            end = ends[number]
            if not names_at <= start <= end <= length:
                raise self._misplaced(offset, number, start, end, length)
            name = block[start:end]
            if number == count - 1:
                name = name.partition(b"\0")[0]
            if not 0 < len(name) <= NAME_BYTES_MAX or b"/" in name or b"\0" in name:
                where = f"name {number} of the directory block at {offset}"
                raise self._error(where, name[:NAME_BYTES_MAX], "cannot be a name")
            yield DirEntry(name, min(nid, INO_MAX), seen + number + 1)

    def _flat(self, inode: Inode) -> _Flat:
        """Return where the bytes of a directory or symlink lie, all of them inside the file."""
        layout, tail, i_u = self._body(inode.position)
        block_size = self._geometry.block_size
        blocks = -(-inode.size // block_size)
        start = i_u * block_size
        whole = max(blocks - 1, 0) * block_size
        tail_length = inode.size - whole
        if layout != LAYOUT_FLAT_INLINE:
            tail = start + whole
        if (whole and start + whole > self._size) or tail + tail_length > self._size:
            field = f"i_size of inode {inode.ino}"
            raise self._error(field, inode.size, "but its data ends outside the file")
        return _Flat(start, block_size, blocks, tail, tail_length)

    def _find(self, flat: _Flat, name: bytes) -> int | None:
        """Return the nid beside a name, by binary search: all names of a directory are one sorted list."""
        # The block wanted is the last one whose first name is not behind `name`.
        low, high = 0, flat.blocks
        while high - low > 1:
            middle = (low + high) // 2
            offset, length = flat.block(middle)
            if self._name(offset, length, self._entry_count(offset, length), 0) <= name:
                low = middle
            else:
                high = middle
        offset, length = flat.block(low)
        count = self._entry_count(offset, length)
        low, high = 0, count
        while low < high:
            middle = (low + high) // 2
            found = self._name(offset, length, count, middle)
            if found == name:
                return DIRENT.read(self._data, offset + middle * _DIRENT_BYTES).nid
            if found < name:
                low = middle + 1
            else:
                high = middle
        return None

    def _entry_count(self, offset: int, length: int) -> int:
        """Return the number of entries of a directory block: the first name follows the last entry."""
        if length >= _DIRENT_BYTES:
            first: int = _U16.unpack_from(self._data, offset + _NAMEOFF)[0]
            if _DIRENT_BYTES <= first < length and first % _DIRENT_BYTES == 0:
                return first // _DIRENT_BYTES
        raise self._error(f"directory block at {offset}", f"{length} bytes", "holds no entries")

    def _name(self, offset: int, length: int, count: int, number: int) -> bytes:
        """Return a name of a directory block; the last one ends at the first NUL or with the block."""
        at = offset + number * _DIRENT_BYTES + _NAMEOFF
        start: int = _U16.unpack_from(self._data, at)[0]
        last = number == count - 1
        end: int = length if last else _U16.unpack_from(self._data, at + _DIRENT_BYTES)[0]
        if not count * _DIRENT_BYTES <= start <= end <= length:
            raise self._misplaced(offset, number, start, end, length)
        name = self._data[offset + start : offset + end]
        return name.partition(b"\0")[0] if last else name

    def _misplaced(
        self, offset: int, number: int, start: int, end: int, length: int
    ) -> FormatError:
        where = f"name {number} of the directory block at {offset}"
        rule = f"must lie behind the entries and within {length}"
        return self._error(where, f"at {start} to {end}", rule)

    # Targets and xattrs

    def readlink(self, inode: Inode) -> bytes:
        """Return the target of a symlink."""
        if S_IFMT(inode.mode) != S_IFLNK:
            mode = f"{inode.mode:#o}"
            raise self._error(f"i_mode of inode {inode.ino}", mode, "not that of a symlink")
        flat = self._flat(inode)
        target = b""
        for number in range(flat.blocks):
            offset, length = flat.block(number)
            target += self._data[offset : offset + length]
        return target

    def xattrs(self, inode: Inode) -> dict[bytes, bytes]:
        """Return full names and values, in the order of the image."""
        i_format, icount, _ = INODE_BODY.read(self._data, inode.position)
        header = EXTENDED_INODE if i_format & FORMAT_EXTENDED else COMPACT_INODE
        position = inode.position + header.size_bytes
        end = position + _xattr_bytes(icount)
        if end > self._size:
            field = f"i_xattr_icount of inode {inode.ino}"
            raise self._error(field, icount, "but the xattrs end outside the file")
        position += XATTR_HEADER_BYTES
        found = {}
        while position < end:
            name_len, index, value_size = XATTR_ENTRY.read(self._data, position)
            name_end = position + XATTR_ENTRY_BYTES + name_len
            value_end = name_end + value_size
            prefix = XATTR_PREFIXES.get(index)
            suffix = self._data[position + XATTR_ENTRY_BYTES : name_end]
            if prefix is None or value_end > end or b"\0" in suffix:
                where = f"xattr at {position} of inode {inode.ino}"
                shown = f"index {index}, {name_len} and {value_size} bytes"
                rule = f"must have a known prefix, no NUL in its name, and end by {end}"
                raise self._error(where, shown, rule)
            found[prefix + suffix] = self._data[name_end:value_end]
            position = value_end + -value_end % XATTR_ENTRY_BYTES
        return found

    # File data

    def _indexes(self, position: int) -> int:
        """Return where the chunk indexes of the inode at `position` start."""
        _, behind, _ = self._body(position)
        return _indexes_behind(behind)

    def extents(self, inode: Inode, offset: int, size: int) -> list[Extent]:
        """Return the extents of file bytes [offset, offset + size), clipped at the end of the file."""
        end = min(offset + size, inode.size)
        if not 0 <= offset < end or S_IFMT(inode.mode) != S_IFREG:
            return []
        chunk_size, block_size = self._geometry.chunk_size, self._geometry.block_size
        indexes = self._indexes(inode.position)
        extents = []
        for number in range(offset // chunk_size, -(-end // chunk_size)):
            ci_low, device, ci_high, blkaddr = CHUNK_INDEX.read(
                self._data, indexes + number * CHUNK_INDEX.size_bytes
            )
            if not 0 < device <= len(self.blobs):
                where = f"blob of chunk {number} of inode {inode.ino}"
                raise self._error(where, device - 1, f"but there are {len(self.blobs)}")
            chunk_start = number * chunk_size
            run_start = max(offset, chunk_start)
            run_end = min(end, chunk_start + chunk_size)
            extents.append(
                Extent(
                    blob_index=device - 1,
                    chunk_index=ci_high << 16 | ci_low,
                    chunk_offset=blkaddr * block_size,
                    chunk_size=min(chunk_size, inode.size - chunk_start),
                    offset=run_start - chunk_start,
                    length=run_end - run_start,
                )
            )
        return extents

    # Tables

    def prefetch_inodes(self) -> list[int]:
        """Return the nids of the prefetch table up to its first 0; none if the table is no good."""
        offset, size = self._geometry.prefetch_table
        if offset == 0 or size == 0:
            return []
        if offset % 4 or size % 4 or offset + size > self._size or size // 4 > PREFETCH_ENTRIES_MAX:
            log.warning(
                "bootstrap=%s: prefetch table of %d bytes at %d is not usable, it is ignored",
                self._source,
                size,
                offset,
            )
            return []
        nids: list[int] = []
        for (nid,) in _U32.iter_unpack(self._data[offset : offset + size]):
            if nid == 0:
                break
            nids.append(nid)
        return nids

    def chunk_table(self, blob_index: int) -> ChunkTable | None:  # noqa: ARG002 (protocol)
        """Return None: the chunk records of a v6 image are in its blobs."""
        return None

    def digests(self, blob_index: int) -> DigestSource | None:
        """Return what the chunk table says of a blob; walks it once, so call it in a worker thread."""
        # Here, not above: a mount gets to RUNNING without the C module and without the v5 records.
        from nydusd.rafs.digests_v6 import TableDigests

        table, chunk_count = self._geometry.chunk_table, self.blobs[blob_index].chunk_count
        if table is None or chunk_count == 0:
            return None
        return TableDigests(self._data, table, blob_index, chunk_count)

    def mapped_tree(self) -> "MappedTree":
        """Return where the inodes lie; the mapping stays ours."""
        from nydusd.native_tree import MappedTree  # as above

        geometry = self._geometry
        return MappedTree(
            self._data,
            geometry.meta_offset,
            self.root_ino,
            geometry.block_size,
            geometry.chunk_size,
            len(self.blobs),
        )

    def _error(self, field: str, value: object, rule: str) -> FormatError:
        return FormatError(field, value, rule, self._source)


def _indexes_behind(position: int) -> int:
    """Return where chunk indexes start behind inode and xattrs."""
    return position + -position % CHUNK_INDEX.size_bytes


def _xattr_bytes(icount: int) -> int:
    """Return the size of the xattr area behind an inode (spec rafs-v6 §10)."""
    return XATTR_HEADER_BYTES + XATTR_ENTRY_BYTES * (icount - 1) if icount else 0
