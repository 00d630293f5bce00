"""Records of a RAFS v5 bootstrap, and the rules that hold for its tables (spec rafs-v5 §2 to §5, §7, §10).

Owns     the layout of superblock, tables, inodes and chunk records; what of it is checked at open.
Callers  rafs.v5, the builder.
Raises   FormatError; `source` is the bootstrap's path, for the message.
"""

from struct import Struct
from typing import Annotated, Final, NamedTuple

from nydusd.errors import FormatError
from nydusd.records import At, Buffer, Record
from nydusd.units import KIB, MIB

MAGIC: Final = 0x5241_4653
VERSION: Final = 0x500
SUPERBLOCK_BYTES: Final = 8192
INODE_BYTES: Final = 128
RECORD_MIN_BYTES: Final = INODE_BYTES + 8  # with a name, padded
CHUNK_BYTES: Final = 80
EXTENDED_BLOB_BYTES: Final = 64
INODE_SLOT_BYTES: Final = 4
POSITION_SHIFT_BITS: Final = 3  # the inode table counts in units of 8 bytes
ALIGNMENT: Final = 8

CHUNK_SIZE_MIN_BYTES: Final = 4 * KIB
CHUNK_SIZE_MAX_BYTES: Final = 16 * MIB
NAME_MAX_BYTES: Final = 255
BLOB_TABLE_MAX_BYTES: Final = MIB  # builders stop at 256 blobs: 18 KiB with usual ids
BLOB_CHUNKS_MAX: Final = 1 << 24
BLOB_STORED_MAX_BYTES: Final = 1 << 40
BLOB_PLAIN_MAX_BYTES: Final = 1 << 44

SLOT: Final = Struct("<I")  # of the inode table and the prefetch table
XATTR_AREA_SIZE: Final = Struct("<Q")

ROOT_INO: Final = 1
FLAGS_ALLOWED: Final = (
    0xFF00_03FF  # the rest, and bits above, make a bootstrap unreadable (spec §3)
)


class SuperblockV5(NamedTuple):
    """The superblock, 8192 bytes at 0 (spec rafs-v5 §3)."""

    s_magic: Annotated[int, At(0, "I")]
    s_fs_version: Annotated[int, At(4, "I")]
    s_sb_size: Annotated[int, At(8, "I")]
    s_block_size: Annotated[int, At(12, "I")]  # chunk size in bytes
    s_flags: Annotated[int, At(16, "Q")]
    s_inodes_count: Annotated[int, At(24, "Q")]  # advisory: some builders are one short
    s_inode_table_offset: Annotated[int, At(32, "Q")]
    s_prefetch_table_offset: Annotated[int, At(40, "Q")]
    s_blob_table_offset: Annotated[int, At(48, "Q")]
    s_inode_table_entries: Annotated[int, At(56, "I")]
    s_prefetch_table_entries: Annotated[int, At(60, "I")]
    s_blob_table_size: Annotated[int, At(64, "I")]  # bytes, tail padding included
    s_extended_blob_table_entries: Annotated[int, At(68, "I")]
    s_extended_blob_table_offset: Annotated[int, At(72, "Q")]  # 0: no such table

    @property
    def has_extended_blobs(self) -> bool:
        """False for images from before blobs had recorded sizes and chunks had numbers (spec §4.4)."""
        return bool(self.s_extended_blob_table_offset and self.s_extended_blob_table_entries)


class ExtendedBlob(NamedTuple):
    """What the extended blob table adds to a blob, 64 bytes (spec rafs-v5 §4.4)."""

    chunk_count: Annotated[int, At(0, "I")]  # 0: as if there were no record
    features: Annotated[int, At(4, "I")]
    uncompressed_size: Annotated[int, At(8, "Q")]
    compressed_size: Annotated[int, At(16, "Q")]


class InodeRecord(NamedTuple):
    """The fixed part of an inode, 128 bytes (spec rafs-v5 §5.1)."""

    i_digest: Annotated[bytes, At(0, "32s")]
    i_parent: Annotated[int, At(32, "Q")]  # inode number; 0 for the root
    i_ino: Annotated[int, At(40, "Q")]
    i_uid: Annotated[int, At(48, "I")]
    i_gid: Annotated[int, At(52, "I")]
    i_projid: Annotated[int, At(56, "I")]
    i_mode: Annotated[int, At(60, "I")]
    i_size: Annotated[int, At(64, "Q")]
    i_blocks: Annotated[int, At(72, "Q")]  # 512-byte units
    i_flags: Annotated[int, At(80, "Q")]
    i_nlink: Annotated[int, At(88, "I")]
    i_child_index: Annotated[int, At(92, "I")]  # of a directory
    i_child_count: Annotated[int, At(96, "I")]  # of a directory; of a file: number of chunk records
    i_name_size: Annotated[int, At(100, "H")]
    i_symlink_size: Annotated[int, At(102, "H")]
    i_rdev: Annotated[int, At(104, "I")]  # garbage but for devices
    i_mtime_nsec: Annotated[int, At(108, "I")]
    i_mtime: Annotated[int, At(112, "q")]  # seconds; 0: not recorded


I_FLAG_XATTR: Final = 0x4
I_FLAG_HAS_HOLE: Final = 0x8


class ChunkRecord(NamedTuple):
    """One chunk of a file, 80 bytes (spec rafs-v5 §7); the v6 chunk table has the same records."""

    block_id: Annotated[bytes, At(0, "32s")]  # digest of the plain bytes
    blob_index: Annotated[int, At(32, "I")]
    flags: Annotated[int, At(36, "I")]
    compressed_size: Annotated[int, At(40, "I")]
    uncompressed_size: Annotated[int, At(44, "I")]
    compressed_offset: Annotated[int, At(48, "Q")]
    uncompressed_offset: Annotated[int, At(56, "Q")]
    file_offset: Annotated[int, At(64, "Q")]
    index: Annotated[int, At(72, "I")]  # type: ignore[assignment]  # within its blob; hides tuple.index
    crc32: Annotated[int, At(76, "I")]


CHUNK_COMPRESSED: Final = 0x1
CHUNK_HOLE: Final = 0x2
CHUNK_ENCRYPTED: Final = 0x4
CHUNK_BATCH: Final = 0x8
CHUNK_HAS_CRC32: Final = 0x10

SUPERBLOCK: Final = Record(SuperblockV5, size_bytes=SUPERBLOCK_BYTES)
EXTENDED_BLOB: Final = Record(ExtendedBlob, size_bytes=EXTENDED_BLOB_BYTES)
INODE: Final = Record(InodeRecord, size_bytes=INODE_BYTES)
CHUNK: Final = Record(ChunkRecord, size_bytes=CHUNK_BYTES)


def align8(size: int) -> int:
    """Round up to the next multiple of 8."""
    return (size + 7) & ~7


def xattr_offset(record: InodeRecord, position: int) -> int:
    """Return where the xattr table of the inode record at `position` begins, if it has one (spec §5.2)."""
    return position + INODE_BYTES + align8(record.i_name_size) + align8(record.i_symlink_size)


def read_superblock(view: Buffer, source: str = "") -> SuperblockV5:
    """Return the superblock, its own fields and the ranges of all tables checked (spec rafs-v5 §10)."""
    size = len(view)
    if size <= SUPERBLOCK_BYTES or size % ALIGNMENT:
        rule = f"must be a multiple of {ALIGNMENT} above {SUPERBLOCK_BYTES}"
        raise FormatError("bootstrap size", size, rule, source)
    found = SUPERBLOCK.read(view)
    if found.s_magic != MAGIC:
        raise FormatError("s_magic", f"{found.s_magic:#x}", f"must be {MAGIC:#x}", source)
    if found.s_fs_version != VERSION:
        raise FormatError("s_fs_version", f"{found.s_fs_version:#x}", "must be 0x500", source)
    if found.s_sb_size != SUPERBLOCK_BYTES:
        raise FormatError("s_sb_size", found.s_sb_size, f"must be {SUPERBLOCK_BYTES}", source)
    if found.s_flags & ~FLAGS_ALLOWED:
        unknown = f"{found.s_flags & ~FLAGS_ALLOWED:#x}"
        raise FormatError("s_flags", f"{found.s_flags:#x}", f"has unknown bits {unknown}", source)
    _check_chunk_size(found.s_block_size, source)
    if found.s_inode_table_entries == 0:
        raise FormatError("s_inode_table_entries", 0, "an image has a root", source)
    # Each entry has a record of its own. Whoever walks them all relies on it for an end in sight.
    if found.s_inode_table_entries > size // RECORD_MIN_BYTES:
        rule = f"more than fit in {size} bytes"
        raise FormatError("s_inode_table_entries", found.s_inode_table_entries, rule, source)
    if found.s_inodes_count > found.s_inode_table_entries:
        rule = f"must be {found.s_inode_table_entries} at most"
        raise FormatError("s_inodes_count", found.s_inodes_count, rule, source)
    _check_tables(found, size, source)
    return found


def _check_chunk_size(value: int, source: str) -> None:
    in_range = CHUNK_SIZE_MIN_BYTES <= value <= CHUNK_SIZE_MAX_BYTES
    if not in_range or value & (value - 1):
        rule = f"must be a power of two, {CHUNK_SIZE_MIN_BYTES} to {CHUNK_SIZE_MAX_BYTES}"
        raise FormatError("s_block_size", value, rule, source)


def _check_tables(found: SuperblockV5, size: int, source: str) -> None:
    """Tables start at a multiple of 8, lie inside the file and apart from each other."""
    if found.s_blob_table_size > BLOB_TABLE_MAX_BYTES:
        rule = f"must be {BLOB_TABLE_MAX_BYTES} at most"
        raise FormatError("s_blob_table_size", found.s_blob_table_size, rule, source)
    inodes = found.s_inode_table_entries * INODE_SLOT_BYTES
    prefetch = found.s_prefetch_table_entries * INODE_SLOT_BYTES
    extended = found.s_extended_blob_table_entries * EXTENDED_BLOB_BYTES
    tables = [
        (found.s_inode_table_offset, inodes, "inode table"),
        (found.s_prefetch_table_offset, prefetch, "prefetch table"),
        (found.s_blob_table_offset, found.s_blob_table_size, "blob table"),
    ]
    if found.s_extended_blob_table_offset:
        tables.append((found.s_extended_blob_table_offset, extended, "extended blob table"))
    end, before = SUPERBLOCK_BYTES, "superblock"
    for start, length, name in sorted(table for table in tables if table[1]):
        if start % ALIGNMENT:
            raise FormatError(f"{name} offset", start, f"must be a multiple of {ALIGNMENT}", source)
        if start < end:
            raise FormatError(f"{name} offset", start, f"lies inside the {before}", source)
        end, before = start + length, name
        if end > size:
            raise FormatError(f"{name} end", end, f"above the file's {size} bytes", source)


def shown_details(layout: SuperblockV5) -> dict[str, int]:
    """Return the raw fields by the names of GET /daemon/backend (spec api §3.1); 0: not of v5."""
    return {
        "magic": layout.s_magic,
        "version": layout.s_fs_version,
        "sb_size": layout.s_sb_size,
        "root_inode": 0,
        "chunk_size": layout.s_block_size,
        "batch_size": 0,
        "inodes_count": layout.s_inodes_count,
        "flags": layout.s_flags,
        "inode_table_entries": layout.s_inode_table_entries,
        "inode_table_offset": layout.s_inode_table_offset,
        "blob_table_size": layout.s_blob_table_size,
        "blob_table_offset": layout.s_blob_table_offset,
        "extended_blob_table_offset": layout.s_extended_blob_table_offset,
        "extended_blob_table_entries": layout.s_extended_blob_table_entries,
        "blob_device_table_count": 0,
        "blob_device_table_offset": 0,
        "prefetch_table_offset": layout.s_prefetch_table_offset,
        "prefetch_table_entries": layout.s_prefetch_table_entries,
        "meta_blkaddr": 0,
        "root_nid": 0,
        "chunk_table_offset": 0,
        "chunk_table_size": 0,
    }
