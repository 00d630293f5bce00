"""What an image's metadata says: inodes, directory entries, extents. Values and one protocol.

The two parsers, rafs/v5.py and rafs/v6.py, give the same answers in these terms; nobody above this
room knows which format an image has.
"""

from collections.abc import Iterator
from enum import IntFlag
from typing import TYPE_CHECKING, NamedTuple, Protocol

from nydusd.blob.model import BlobInfo, ChunkTable, DigestSource

if TYPE_CHECKING:
    from nydusd.native_tree import MappedTree


class SuperblockFlag(IntFlag):
    """s_flags, shared by v5 and v6 (spec rafs-v5 §3, rafs-v6 §4)."""

    COMPRESSION_NONE = 0x1
    COMPRESSION_LZ4 = 0x2
    HASH_BLAKE3 = 0x4
    HASH_SHA256 = 0x8
    EXPLICIT_UID_GID = 0x10
    HAS_XATTR = 0x20
    COMPRESSION_GZIP = 0x40
    COMPRESSION_ZSTD = 0x80
    INLINED_CHUNK_DIGEST = 0x100
    TARTFS_MODE = 0x200
    ENCRYPTION_NONE = 0x0100_0000
    ENCRYPTION_AES_128_XTS = 0x0200_0000


class Inode(NamedTuple):
    """One inode, as stat wants it. `position` is the parser's own (file offset of the record)."""

    ino: int  # v5: i_ino, v6: nid; below 2^56 (spec fs-behaviour §4)
    mode: int
    nlink: int
    uid: int
    gid: int
    rdev: int  # kernel encoding; 0 but for character and block devices
    size: int
    blocks: int  # 512-byte units
    mtime_s: int  # 0: not recorded
    mtime_ns: int
    position: int


class DirEntry(NamedTuple):
    """One name in a directory. `cookie` is the readdir offset *behind* this entry (spec fs-behaviour §10)."""

    name: bytes
    ino: int
    cookie: int


class Extent(NamedTuple):
    """A run of file bytes within one chunk, and what the metadata claims about that chunk.

    storage/ checks the claim against the blob's chunk table before it serves a byte.
    """

    blob_index: int
    chunk_index: int
    chunk_offset: int  # uncompressed_offset of the chunk in the blob
    chunk_size: int  # uncompressed_size of the chunk
    offset: int  # of the run, within the chunk
    length: int  # bytes of the run


class Superblock(NamedTuple):
    """What both formats' superblocks say, in common terms; `details` is what GET /daemon/backend shows."""

    version: int  # 5 or 6
    flags: SuperblockFlag
    chunk_size: int  # bytes
    inode_count: int  # advisory
    details: dict[str, int]  # raw fields by the names of spec api §3.1


class Bootstrap(Protocol):
    """A mapped bootstrap. Opening costs the same for any number of inodes; every method is synchronous.

    Raises FormatError where the bytes asked for break the format (other inodes stay usable), and
    NotFoundError where no such inode can exist.
    """

    superblock: Superblock
    blobs: tuple[BlobInfo, ...]
    root_ino: int

    def inode(self, ino: int) -> Inode:
        """Return the inode with this number."""
        ...

    def lookup(self, directory: Inode, name: bytes) -> Inode | None:
        """Return the child of that name, `.` and `..` included; None if there is none."""
        ...

    def entries(self, directory: Inode, after: int = 0) -> Iterator[DirEntry]:
        """Yield the entries behind cookie `after`, `.` and `..` where this format has them."""
        ...

    def readlink(self, inode: Inode) -> bytes:
        """Return the target, as raw bytes."""
        ...

    def xattrs(self, inode: Inode) -> dict[bytes, bytes]:
        """Return full names (with prefix) and values, in the order of the image."""
        ...

    def extents(self, inode: Inode, offset: int, size: int) -> list[Extent]:
        """Return the extents of file bytes [offset, offset + size), clipped at the end of the file."""
        ...

    def prefetch_inodes(self) -> list[int]:
        """Return the inodes of the prefetch table, in its order, up to the first 0."""
        ...

    def chunk_table(self, blob_index: int) -> ChunkTable | None:
        """Return the blob's chunks where the bootstrap holds them (v5); None where the blob does (v6).

        Walks the image once, natively: call it in a worker thread.
        """
        ...

    def digests(self, blob_index: int) -> DigestSource | None:
        """Return the digests that the bootstrap's chunk table holds for a blob (v6); None if it holds none.

        Walks the table once, natively: call it in a worker thread.
        """
        ...

    def mapped_tree(self) -> "MappedTree | None":
        """Return where the inodes lie (v6), for whoever shows names natively; None: they cannot (v5)."""
        ...

    def close(self) -> None:
        """Unmap the file. The bootstrap must not be used afterwards."""
        ...
