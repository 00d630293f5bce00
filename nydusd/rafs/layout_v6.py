"""RAFS v6 on disk: record tables, and the checked reading of the superblocks (spec rafs-v6 §2 to §8).

Owns     superblocks, and where the tables lie. The blob table itself: rafs/blob_table_v6.py. Inodes,
         directories and chunk indexes are read by rafs/v6.py, with the records of this file.
Callers  rafs/v6.py at open; the builder for the tables.
Raises   FormatError for whatever spec rafs-v6 §16 forbids.
"""

import logging
from mmap import mmap
from typing import Annotated, Final, NamedTuple

from nydusd.errors import FormatError
from nydusd.rafs.model import Superblock, SuperblockFlag
from nydusd.records import At, Record
from nydusd.units import KIB, MIB

log = logging.getLogger(__name__)

BootstrapBytes = bytes | mmap  # both slice to bytes, and both serve as buffers

EROFS_MAGIC: Final = 0xE0F5_E1E2
SUPERBLOCK_OFFSET: Final = 1024
EXT_SUPERBLOCK_OFFSET: Final = 1152
SLOTS_OFFSET: Final = 1408
SLOT_BYTES: Final = 128  # devt_slotoff counts these, too
BLOB_ENTRY_BYTES: Final = 256
CHUNK_RECORD_BYTES: Final = 80
VERSION_SHOWN: Final = 0x600  # by the API; it is not on disk

FILE_BYTES_MIN: Final = 4 * KIB
TABLE_ALIGN: Final = 4 * KIB
BLOCK_SIZE: Final = 4 * KIB
TARFS_BLOCK_SIZE: Final = 512
NID_UNIT: Final = 32

COMPAT_RAFS_V6: Final = 0x4000_0000
INCOMPAT_CHUNKED_DEVICES: Final = 0xC  # CHUNKED_FILE and DEVICE_TABLE: both, and nothing else
BLOCKS_WITHOUT_BLOBS: Final = (0, 4096)  # old builders wrote a constant
BLOBS_MAX: Final = 255  # an index entry names a blob by one byte, 0 being invalid
CHUNK_SIZE_MIN: Final = 4 * KIB
CHUNK_SIZE_MAX: Final = 16 * MIB

FLAGS_ALLOWED: Final = 0xFF00_03FF  # unknown bits of the top byte are compatible (spec rafs-v5 §3)
COMPRESSOR_FLAGS: Final = (
    SuperblockFlag.COMPRESSION_NONE
    | SuperblockFlag.COMPRESSION_LZ4
    | SuperblockFlag.COMPRESSION_GZIP
    | SuperblockFlag.COMPRESSION_ZSTD
)
DIGESTER_FLAGS: Final = SuperblockFlag.HASH_BLAKE3 | SuperblockFlag.HASH_SHA256
CIPHER_FLAGS: Final = SuperblockFlag.ENCRYPTION_NONE | SuperblockFlag.ENCRYPTION_AES_128_XTS

LAYOUT_FLAT_PLAIN: Final = 0
LAYOUT_FLAT_INLINE: Final = 2
LAYOUT_CHUNK_BASED: Final = 4
FORMAT_EXTENDED: Final = 0x1  # of i_format; bits 1 to 3 are the layout
CHUNK_FORMAT_INDEXES: Final = 0x20  # of i_u of a regular file
XATTR_HEADER_BYTES: Final = 12
XATTR_ENTRY_BYTES: Final = 4  # icount counts these behind the header's; entries are aligned to them
XATTR_PREFIXES: Final = {  # by name_index; the ACL names are whole, their suffix is empty
    1: b"user.",
    2: b"system.posix_acl_access",
    3: b"system.posix_acl_default",
    4: b"trusted.",
    6: b"security.",
}


class ErofsSuperblock(NamedTuple):
    """EROFS superblock, 128 bytes at 1024 (spec rafs-v6 §3)."""

    magic: Annotated[int, At(0, "I")]
    checksum: Annotated[int, At(4, "I")]
    feature_compat: Annotated[int, At(8, "I")]
    blkszbits: Annotated[int, At(12, "B")]
    extslots: Annotated[int, At(13, "B")]
    root_nid: Annotated[int, At(14, "H")]
    inos: Annotated[int, At(16, "Q")]  # advisory
    blocks: Annotated[int, At(36, "I")]
    meta_blkaddr: Annotated[int, At(40, "I")]  # blocks; where nid 0 would be
    xattr_blkaddr: Annotated[int, At(44, "I")]
    feature_incompat: Annotated[int, At(80, "I")]
    extra_devices: Annotated[int, At(86, "H")]  # device slots = blobs
    devt_slotoff: Annotated[int, At(88, "H")]


class ExtSuperblock(NamedTuple):
    """RAFS extended superblock, 256 bytes at 1152 (spec rafs-v6 §4)."""

    flags: Annotated[int, At(0, "Q")]
    blob_table_offset: Annotated[int, At(8, "Q")]
    blob_table_size: Annotated[int, At(16, "I")]  # bytes
    chunk_size: Annotated[int, At(20, "I")]  # bytes
    chunk_table_offset: Annotated[int, At(24, "Q")]
    chunk_table_size: Annotated[int, At(32, "Q")]  # bytes
    prefetch_table_offset: Annotated[int, At(40, "Q")]  # 0: none, whatever the size says
    prefetch_table_size: Annotated[int, At(48, "I")]  # bytes


class CompactInode(NamedTuple):
    """Inode of 32 bytes: no times, 16-bit ids (spec rafs-v6 §7)."""

    i_format: Annotated[int, At(0, "H")]
    i_xattr_icount: Annotated[int, At(2, "H")]
    i_mode: Annotated[int, At(4, "H")]
    i_nlink: Annotated[int, At(6, "H")]
    i_size: Annotated[int, At(8, "I")]
    i_u: Annotated[int, At(16, "I")]
    i_ino: Annotated[int, At(20, "I")]  # the builder's sequence number; never an identity
    i_uid: Annotated[int, At(24, "H")]
    i_gid: Annotated[int, At(26, "H")]


class ExtendedInode(NamedTuple):
    """Inode of 64 bytes (spec rafs-v6 §7)."""

    i_format: Annotated[int, At(0, "H")]
    i_xattr_icount: Annotated[int, At(2, "H")]
    i_mode: Annotated[int, At(4, "H")]
    i_size: Annotated[int, At(8, "Q")]
    i_u: Annotated[int, At(16, "I")]  # block address, rdev or chunk format
    i_ino: Annotated[int, At(20, "I")]
    i_uid: Annotated[int, At(24, "I")]
    i_gid: Annotated[int, At(28, "I")]
    i_mtime: Annotated[int, At(32, "q")]  # seconds; negative before 1970, as the kernel reads it
    i_mtime_nsec: Annotated[int, At(40, "I")]
    i_nlink: Annotated[int, At(44, "I")]


class InodeBody(NamedTuple):
    """What both inode forms have at the same place and say about the bytes behind them."""

    i_format: Annotated[int, At(0, "H")]
    i_xattr_icount: Annotated[int, At(2, "H")]
    i_u: Annotated[int, At(16, "I")]


class XattrEntry(NamedTuple):
    """What precedes an xattr's name suffix and value, 4 bytes (spec rafs-v6 §10)."""

    name_len: Annotated[int, At(0, "B")]  # of the suffix
    name_index: Annotated[int, At(1, "B")]
    value_size: Annotated[int, At(2, "H")]


class Dirent(NamedTuple):
    """Directory entry, 12 bytes (spec rafs-v6 §8)."""

    nid: Annotated[int, At(0, "Q")]
    nameoff: Annotated[int, At(8, "H")]  # from the start of the block
    file_type: Annotated[int, At(10, "B")]


class ChunkIndex(NamedTuple):
    """Index entry of one chunk of a file, 8 bytes (spec rafs-v6 §11.1)."""

    ci_low: Annotated[int, At(0, "H")]
    device: Annotated[int, At(2, "B")]  # blob index + 1
    ci_high: Annotated[int, At(3, "B")]
    blkaddr: Annotated[int, At(4, "I")]  # in the uncompressed blob


EROFS_SUPERBLOCK: Final = Record(ErofsSuperblock, size_bytes=128)
EXT_SUPERBLOCK: Final = Record(ExtSuperblock, size_bytes=256)
COMPACT_INODE: Final = Record(CompactInode, size_bytes=32)
EXTENDED_INODE: Final = Record(ExtendedInode, size_bytes=64)
INODE_BODY: Final = Record(InodeBody, size_bytes=32)
XATTR_ENTRY: Final = Record(XattrEntry, size_bytes=XATTR_ENTRY_BYTES)
DIRENT: Final = Record(Dirent, size_bytes=12)
CHUNK_INDEX: Final = Record(ChunkIndex, size_bytes=8)


class Span(NamedTuple):
    """A byte range of the bootstrap."""

    offset: int
    size: int

    @property
    def end(self) -> int:
        """First byte behind the range."""
        return self.offset + self.size

    def overlaps(self, other: "Span") -> bool:
        """Tell if the two share a byte; an empty range shares none."""
        apart = self.end <= other.offset or other.end <= self.offset
        return bool(self.size and other.size) and not apart


class Rules(NamedTuple):
    """Turns a broken rule into a FormatError that names the file."""

    source: str

    def require(self, holds: bool, field: str, value: object, rule: str) -> None:
        """Raise FormatError unless `holds`."""
        if not holds:
            raise FormatError(field, value, rule, self.source)


class Geometry(NamedTuple):
    """Where the parts of a bootstrap lie."""

    block_size: int
    meta_offset: int  # bytes; nid n is at meta_offset + 32 * n
    root_nid: int
    chunk_size: int
    blob_table: Span  # in the file, as are the device slots: as many as its entries
    chunk_table: Span | None  # in the file; None: there is none, or it was cut off
    prefetch_table: Span  # unchecked: its faults only disable prefetch (spec rafs-v6 §12)

    @property
    def tarfs(self) -> bool:
        """True where blobs are plain tar files."""
        return self.block_size == TARFS_BLOCK_SIZE


def read_superblocks(data: BootstrapBytes, source: str) -> tuple[ErofsSuperblock, ExtSuperblock]:
    """Return both superblocks, checked but for what they say of tables."""
    require = Rules(source).require
    size = len(data)
    require(size >= FILE_BYTES_MIN, "file size", size, f"must be at least {FILE_BYTES_MIN}")
    erofs = EROFS_SUPERBLOCK.read(data, SUPERBLOCK_OFFSET)
    ext = EXT_SUPERBLOCK.read(data, EXT_SUPERBLOCK_OFFSET)
    require(erofs.magic == EROFS_MAGIC, "magic", f"{erofs.magic:#x}", "not that of RAFS v6")
    _check_flags(ext.flags, source)

    block_size = block_size_of(ext)
    bits = block_size.bit_length() - 1
    require(size % block_size == 0, "file size", size, f"must be a multiple of {block_size}")
    require(erofs.blkszbits == bits, "blkszbits", erofs.blkszbits, f"must be {bits}")
    require(erofs.checksum == 0, "checksum", erofs.checksum, "must be 0")
    require(erofs.extslots == 0, "extslots", erofs.extslots, "must be 0")
    require(erofs.xattr_blkaddr == 0, "xattr_blkaddr", erofs.xattr_blkaddr, "must be 0")
    require(erofs.inos != 0, "inos", erofs.inos, "must not be 0")
    compat, incompat = erofs.feature_compat, erofs.feature_incompat
    require(bool(compat & COMPAT_RAFS_V6), "feature_compat", f"{compat:#x}", "lacks the RAFS bit")
    known = incompat == INCOMPAT_CHUNKED_DEVICES
    require(known, "feature_incompat", f"{incompat:#x}", f"must be {INCOMPAT_CHUNKED_DEVICES:#x}")
    chunk_size = ext.chunk_size
    in_range = CHUNK_SIZE_MIN <= chunk_size <= CHUNK_SIZE_MAX
    power_of_two = chunk_size & (chunk_size - 1) == 0
    rule = "must be a power of two from 4 KiB to 16 MiB"
    require(in_range and power_of_two, "s_chunk_size", chunk_size, rule)
    return erofs, ext


def _check_flags(flags: int, source: str) -> None:
    require, shown = Rules(source).require, f"{flags:#x}"
    require(flags & ~FLAGS_ALLOWED == 0, "s_flags", shown, "has a bit that is not known")
    one_compressor = (flags & COMPRESSOR_FLAGS).bit_count() == 1
    one_digester = (flags & DIGESTER_FLAGS).bit_count() == 1
    require(one_compressor, "s_flags", shown, "must name exactly one compressor")
    require(one_digester, "s_flags", shown, "must name exactly one digester")
    require(flags & CIPHER_FLAGS != CIPHER_FLAGS, "s_flags", shown, "must not name two ciphers")


def block_size_of(ext: ExtSuperblock) -> int:
    """Return the size of EROFS blocks: 512 bytes in tarfs mode, else 4096."""
    return TARFS_BLOCK_SIZE if ext.flags & SuperblockFlag.TARTFS_MODE else BLOCK_SIZE


def read_geometry(size: int, erofs: ErofsSuperblock, ext: ExtSuperblock, source: str) -> Geometry:
    """Return where things lie in a file of `size` bytes."""
    require = Rules(source).require
    meta_offset = erofs.meta_blkaddr * block_size_of(ext)
    require(meta_offset <= size, "meta_blkaddr", erofs.meta_blkaddr, "lies outside the file")
    blob_table = Span(ext.blob_table_offset, ext.blob_table_size)
    blob_count, rest = divmod(blob_table.size, BLOB_ENTRY_BYTES)
    require(rest == 0, "s_blob_table_size", blob_table.size, "must be a multiple of 256")
    require(blob_count <= BLOBS_MAX, "number of blobs", blob_count, f"must be at most {BLOBS_MAX}")
    rule = f"but the blob table has {blob_count} entries"
    require(erofs.extra_devices == blob_count, "extra_devices", erofs.extra_devices, rule)
    if blob_count == 0:
        none = erofs.blocks in BLOCKS_WITHOUT_BLOBS
        require(none, "blocks", erofs.blocks, "but there are no blobs")
    else:
        slots = Span(SLOTS_OFFSET, blob_count * SLOT_BYTES)
        at = erofs.devt_slotoff * SLOT_BYTES
        require(at == slots.offset, "devt_slotoff", erofs.devt_slotoff, "must be 11")
        start = blob_table.offset
        placed = start >= TABLE_ALIGN and start % TABLE_ALIGN == 0
        require(placed, "s_blob_table_offset", start, "must be a multiple of 4 KiB, not 0")
        require(blob_table.end <= size, "blob table's end", blob_table.end, "outside the file")
        apart = not blob_table.overlaps(slots)
        require(apart, "s_blob_table_offset", start, "lies in the device slots")
    return Geometry(
        block_size=block_size_of(ext),
        meta_offset=meta_offset,
        root_nid=erofs.root_nid,
        chunk_size=ext.chunk_size,
        blob_table=blob_table,
        chunk_table=_chunk_table(size, ext, blob_table, source),
        prefetch_table=Span(ext.prefetch_table_offset, ext.prefetch_table_size),
    )


def _chunk_table(size: int, ext: ExtSuperblock, blob_table: Span, source: str) -> Span | None:
    require = Rules(source).require
    table = Span(ext.chunk_table_offset, ext.chunk_table_size)
    if table.size == 0:
        return None
    aligned, whole = table.offset % TABLE_ALIGN == 0, table.size % CHUNK_RECORD_BYTES == 0
    require(aligned, "s_chunk_table_offset", table.offset, "must be a multiple of 4 KiB")
    require(whole, "s_chunk_table_size", table.size, f"must be a multiple of {CHUNK_RECORD_BYTES}")
    if table.end > size:
        # Snapshotters cut the file there to save space (spec rafs-v6 §11.2); no read needs the table.
        log.warning(
            "bootstrap=%s: no digests, the chunk table at %d ends outside the file",
            source,
            table.offset,
        )
        return None
    apart = not table.overlaps(blob_table)
    require(apart, "s_chunk_table_offset", table.offset, "lies in the blob table")
    return table


def superblock_of(erofs: ErofsSuperblock, ext: ExtSuperblock) -> Superblock:
    """Return the superblock in common terms; `details` as GET /daemon/backend shows a v6 image."""
    return Superblock(
        version=6,
        flags=SuperblockFlag(ext.flags),
        chunk_size=ext.chunk_size,
        inode_count=erofs.inos,
        details={
            "magic": erofs.magic,
            "version": VERSION_SHOWN,
            "sb_size": 0,
            "root_inode": 0,
            "chunk_size": ext.chunk_size,
            "batch_size": 0,
            "inodes_count": erofs.inos,
            "flags": ext.flags,
            "inode_table_entries": 0,
            "inode_table_offset": 0,
            "blob_table_size": ext.blob_table_size,
            "blob_table_offset": ext.blob_table_offset,
            "extended_blob_table_offset": 0,
            "extended_blob_table_entries": 0,
            "blob_device_table_count": erofs.extra_devices,
            "blob_device_table_offset": SLOTS_OFFSET,
            "prefetch_table_offset": ext.prefetch_table_offset,
            "prefetch_table_entries": ext.prefetch_table_size // 4,
            "is_chunk_dict": False,
            "meta_blkaddr": erofs.meta_blkaddr,
            "root_nid": erofs.root_nid,
            "chunk_table_offset": ext.chunk_table_offset,
            "chunk_table_size": ext.chunk_table_size,
        },
    )
