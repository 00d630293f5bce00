"""Writes a RAFS v5 bootstrap (spec rafs-v5).

Owns     nothing: it fills a buffer that the caller provides.
Callers  build: plan first, which tells the size, then write.
Raises   BuildError if the tree outgrows the format.
"""

import struct

from nydusd import native
from nydusd.builder.blob_tail import BlobDescription
from nydusd.builder.chunk_record import chunk_record
from nydusd.builder.ledger import ChunkLedger
from nydusd.builder.options import BuildOptions
from nydusd.builder.superblock_flags import flags_of
from nydusd.builder.tree import BuildError, Node, Tree, Xattrs
from nydusd.rafs.layout_v5 import (
    CHUNK,
    EXTENDED_BLOB,
    I_FLAG_XATTR,
    INODE,
    INODE_SLOT_BYTES,
    MAGIC,
    POSITION_SHIFT_BITS,
    SUPERBLOCK,
    SUPERBLOCK_BYTES,
    VERSION,
    ExtendedBlob,
    InodeRecord,
    SuperblockV5,
    align8,
)

FILE_MAX_BYTES = 0x8000_0000  # what the reference maps, spec rafs-v5 §2
I_FLAG_SYMLINK = 0x1  # spec rafs-v5 §5.1
ROOT_NAME = b"/"
DIRECTORY_UNIT_BYTES = 4096  # i_size of a directory is cosmetic, spec rafs-v5 §5.1
DIRECTORY_ENTRY_BYTES = 12
SECTOR_BYTES = 512
_PAIR_SIZE = struct.Struct("<I")
_AREA_SIZE = struct.Struct("<Q")


class BootstrapV5:
    """One image's bootstrap: laid out at construction, written once."""

    def __init__(
        self, tree: Tree, ledger: ChunkLedger, options: BuildOptions, prefetch: list[Node]
    ) -> None:
        """Give each name its index. The chunks of all files must be in the ledger."""
        self._tree = tree
        self._ledger = ledger
        self._options = options
        self._prefetch = prefetch
        self._first_child: dict[Node, int] = {}
        nodes = self._number()
        self._digest(nodes)
        self._names = len(nodes)
        self._blobs = 1 if len(ledger) else 0
        self._prefetch_table = align8(SUPERBLOCK_BYTES + INODE_SLOT_BYTES * self._names)
        self._blob_table = align8(self._prefetch_table + 4 * len(prefetch))
        # The id is not known before the blob is closed, but its length is (spec blob §4).
        id_bytes = len(options.blob_id) if options.blob_id else 64
        self._blob_table_size = align8(8 + id_bytes) * self._blobs
        self._extended = self._blob_table + self._blob_table_size
        self._inodes = self._extended + EXTENDED_BLOB.size_bytes * self._blobs
        self.size = self._inodes + sum(map(_record_size, nodes))
        if self.size > FILE_MAX_BYTES:
            raise BuildError(
                f"a v5 bootstrap of {self.size} bytes, readers take {FILE_MAX_BYTES}: use fs-version 6"
            )

    def _number(self) -> list[Node]:
        """Give out indexes and return the nodes by index: children side by side (spec rafs-v5 §6)."""
        root = self._tree.root
        root.number = 1
        nodes = [root]
        pending = [root]
        while pending:
            directory = pending.pop()
            children = directory.children or []
            self._first_child[directory] = len(nodes) + 1
            size = 0
            for child in children:
                nodes.append(child)
                child.number = len(nodes)
                size += DIRECTORY_ENTRY_BYTES + len(child.name)
            units = max(1, -(-size // DIRECTORY_UNIT_BYTES))
            directory.size = units * DIRECTORY_UNIT_BYTES
            pending.extend(child for child in reversed(children) if child.is_directory)
        return nodes

    def _digest(self, nodes: list[Node]) -> None:
        """Set the digest of every inode (spec rafs-v5 §8)."""
        digester = self._options.digester
        empty = native.digest(digester, b"")
        for node in nodes:
            if node.link_of is None and node.children is None:
                node.digest = self._content_digest(node) or empty
        for node in nodes:
            if node.link_of is not None:
                node.digest = node.link_of.digest
        for node in reversed(nodes):  # children have higher indexes than their parent
            if node.children is not None:
                node.digest = native.digest(digester, b"".join(c.digest for c in node.children))

    def _content_digest(self, node: Node) -> bytes | None:
        """Return the digest of a file or symlink, None if it has no content."""
        if node.target:
            return native.digest(self._options.digester, node.target)
        if not node.chunk_count:
            return None
        ledger = self._ledger
        references = ledger.references[node.first_chunk : node.first_chunk + node.chunk_count]
        chunks = b"".join(map(ledger.digest, references))
        return native.digest(self._options.digester, chunks)

    def write(self, image: memoryview, blob: BlobDescription | None) -> None:
        """Fill `image`, which is `size` bytes of zeros. `blob`: None if no file has data."""
        self._write_superblock(image)
        for position, node in enumerate(self._prefetch):
            struct.pack_into("<I", image, self._prefetch_table + 4 * position, _ino(node))
        if blob is not None:
            self._write_blob(image, blob)
        offset = self._inodes
        for node in self._tree.walk():
            slot = SUPERBLOCK_BYTES + INODE_SLOT_BYTES * (node.number - 1)
            struct.pack_into("<I", image, slot, offset >> POSITION_SHIFT_BITS)
            offset = self._write_inode(image, offset, node)
        assert offset == self.size

    def _write_superblock(self, image: memoryview) -> None:
        SUPERBLOCK.pack_into(
            image,
            0,
            SuperblockV5(
                s_magic=MAGIC,
                s_fs_version=VERSION,
                s_sb_size=SUPERBLOCK_BYTES,
                s_block_size=self._options.chunk_size,
                s_flags=flags_of(self._options, has_xattrs=self._tree.has_xattrs),
                s_inodes_count=self._names - self._tree.extra_links,
                s_inode_table_offset=SUPERBLOCK_BYTES,
                s_prefetch_table_offset=self._prefetch_table,
                s_blob_table_offset=self._blob_table,
                s_inode_table_entries=self._names,
                s_prefetch_table_entries=len(self._prefetch),
                s_blob_table_size=self._blob_table_size,
                s_extended_blob_table_entries=self._blobs,
                s_extended_blob_table_offset=self._extended,
            ),
        )

    def _write_blob(self, image: memoryview, blob: BlobDescription) -> None:
        """Write the blob's entries in both tables (spec rafs-v5 §4.3, §4.4)."""
        entry = struct.pack("<II", 0, blob.prefetch_size) + blob.blob_id.encode()
        assert align8(len(entry)) == self._blob_table_size
        image[self._blob_table : self._blob_table + len(entry)] = entry
        EXTENDED_BLOB.pack_into(
            image,
            self._extended,
            ExtendedBlob(
                chunk_count=blob.chunk_count,
                features=blob.features,
                uncompressed_size=blob.uncompressed_size,
                compressed_size=blob.compressed_size,
            ),
        )

    def _write_inode(self, image: memoryview, offset: int, node: Node) -> int:
        """Write a name's record and return the offset behind it (spec rafs-v5 §5)."""
        first = node.link_of or node
        name = node.name or ROOT_NAME
        seconds, nanoseconds = divmod(first.mtime_ns, 1_000_000_000)
        flags = I_FLAG_XATTR if first.xattrs else 0
        if node.is_symlink:
            flags |= I_FLAG_SYMLINK
        INODE.pack_into(
            image,
            offset,
            InodeRecord(
                i_digest=node.digest,
                i_parent=node.parent.number if node.parent is not None else 0,
                i_ino=first.number,
                i_uid=first.uid,
                i_gid=first.gid,
                i_projid=0,
                i_mode=first.mode,
                i_size=first.size,
                i_blocks=-(-first.size // SECTOR_BYTES),
                i_flags=flags,
                i_nlink=first.nlink,
                i_child_index=self._first_child.get(node, 0),
                i_child_count=len(node.children)
                if node.children is not None
                else first.chunk_count,
                i_name_size=len(name),
                i_symlink_size=len(node.target),
                i_rdev=first.rdev & 0xFFFF_FFFF if first.is_device else 0,
                i_mtime_nsec=nanoseconds,
                i_mtime=seconds,
            ),
        )
        offset += INODE.size_bytes
        image[offset : offset + len(name)] = name
        offset += align8(len(name))
        image[offset : offset + len(node.target)] = node.target
        offset += align8(len(node.target))
        if first.xattrs:
            offset = _write_xattrs(image, offset, first.xattrs)
        return self._write_chunks(image, offset, first)

    def _write_chunks(self, image: memoryview, offset: int, node: Node) -> int:
        """Write the chunk records of a file and return the offset behind them."""
        references = self._ledger.references[node.first_chunk : node.first_chunk + node.chunk_count]
        for position, number in enumerate(references):
            record = chunk_record(self._ledger, number, position * self._options.chunk_size)
            CHUNK.pack_into(image, offset, record)
            offset += CHUNK.size_bytes
        return offset


def _ino(node: Node) -> int:
    return (node.link_of or node).number


def _record_size(node: Node) -> int:
    first = node.link_of or node
    size = INODE.size_bytes + align8(len(node.name or ROOT_NAME)) + align8(len(node.target))
    if first.xattrs:
        size += _AREA_SIZE.size + align8(_pairs_size(first.xattrs))
    return size + CHUNK.size_bytes * first.chunk_count


def _pairs_size(xattrs: Xattrs) -> int:
    return sum(_PAIR_SIZE.size + len(name) + 1 + len(value) for name, value in xattrs)


def _write_xattrs(image: memoryview, offset: int, xattrs: Xattrs) -> int:
    """Write the xattr table of an inode and return the offset behind it (spec rafs-v5 §5.3)."""
    pairs = b"".join(
        _PAIR_SIZE.pack(len(name) + 1 + len(value)) + name + b"\0" + value for name, value in xattrs
    )
    offset += _AREA_SIZE.size
    _AREA_SIZE.pack_into(image, offset - _AREA_SIZE.size, len(pairs))
    image[offset : offset + len(pairs)] = pairs
    return offset + align8(len(pairs))
