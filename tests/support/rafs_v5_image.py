"""Tiny RAFS v5 images made by hand: a tree in, the bytes of bootstrap and blob out (spec rafs-v5).

    image = make_image(directory(b"/", regular(b"a", b"text"), symlink(b"b", b"a")))
    image.bootstrap, image.blob

`patched_*` return a bootstrap in which some fields of one record are others: how tests break it.
"""

import stat
import struct
from dataclasses import dataclass, field
from typing import Any

from nydusd import native
from nydusd.blob.model import Codec, Digester
from nydusd.rafs.layout_v5 import (
    CHUNK,
    CHUNK_BYTES,
    CHUNK_COMPRESSED,
    CHUNK_HAS_CRC32,
    EXTENDED_BLOB,
    EXTENDED_BLOB_BYTES,
    I_FLAG_XATTR,
    INODE,
    INODE_BYTES,
    MAGIC,
    SUPERBLOCK,
    SUPERBLOCK_BYTES,
    VERSION,
    ChunkRecord,
    ExtendedBlob,
    InodeRecord,
    SuperblockV5,
    align8,
)

BLOB_ID = b"b10b" * 16
CHUNK_SIZE = 4096
LZ4_BLAKE3_OWNERS_XATTRS = 0x2 | 0x4 | 0x10 | 0x20


@dataclass(eq=False)
class Node:
    name: bytes
    mode: int
    content: bytes = b""
    target: bytes = b""
    children: list["Node"] = field(default_factory=list)
    xattrs: list[tuple[bytes, bytes]] = field(default_factory=list)
    link_to: "Node | None" = None  # a further name of that file
    uid: int = 1000
    gid: int = 1001
    rdev: int = 0
    mtime: tuple[int, int] = (1_600_000_000, 5)
    nlink: int = 1
    i_flags: int = 0
    index: int = 0
    position: int = 0
    chunks: list[ChunkRecord] = field(default_factory=list)


def directory(name: bytes, *children: Node, **fields: Any) -> Node:
    ordered = sorted(children, key=lambda node: node.name)
    return Node(name, stat.S_IFDIR | 0o755, children=ordered, **fields)


def regular(name: bytes, content: bytes = b"", **fields: Any) -> Node:
    return Node(name, stat.S_IFREG | 0o644, content=content, **fields)


def symlink(name: bytes, target: bytes, **fields: Any) -> Node:
    return Node(name, stat.S_IFLNK | 0o777, target=target, **fields)


def special(name: bytes, mode: int, rdev: int = 0) -> Node:
    return Node(name, mode, rdev=rdev)


def link(name: bytes, to: Node) -> Node:
    """Another name of `to`, which must come before it in the image's order."""
    return Node(name, to.mode, link_to=to)


@dataclass
class Image:
    bootstrap: bytes
    blob: bytes
    nodes: list[Node]  # nodes[k] has index k + 1
    chunk_count: int

    def node(self, name: bytes) -> Node:
        return next(node for node in self.nodes if node.name == name)


def make_image(
    root: Node,
    *,
    chunk_size: int = CHUNK_SIZE,
    flags: int = LZ4_BLAKE3_OWNERS_XATTRS,
    prefetch: tuple[int, ...] = (),
    extended: bool = True,
    features: int = 0x4000_0000,
    blob_ids: tuple[bytes, ...] = (BLOB_ID,),
    readahead: tuple[int, int] = (0, 0),
) -> Image:
    """Number, lay out and write. All chunks are in blob 0; the other blobs of `blob_ids` are empty.

    extended: False leaves out the extended blob table and the numbers of chunks, as first builders did.
    """
    nodes = _number(root)
    blob = _Blob(chunk_size, Codec.LZ4_BLOCK if flags & 0x2 else Codec.NONE, numbered=extended)
    for node in nodes:
        node.chunks = (node.link_to or node).chunks or blob.add(node.content)
    blob_table = b"\0".join(struct.pack("<II", *readahead) + blob_id for blob_id in blob_ids)
    blob_table = blob_table.ljust(align8(len(blob_table)), b"\0")
    inode_table_offset = SUPERBLOCK_BYTES
    prefetch_offset = inode_table_offset + align8(4 * len(nodes))
    blob_table_offset = prefetch_offset + align8(4 * len(prefetch))
    extended_offset = blob_table_offset + len(blob_table)
    position = extended_offset + EXTENDED_BLOB_BYTES * len(blob_ids) * extended
    records = bytearray()
    for node in nodes:
        node.position = position + len(records)
        records += _record(node, nodes)
    superblock = SuperblockV5(
        s_magic=MAGIC,
        s_fs_version=VERSION,
        s_sb_size=SUPERBLOCK_BYTES,
        s_block_size=chunk_size,
        s_flags=flags,
        s_inodes_count=sum(node.link_to is None for node in nodes),
        s_inode_table_offset=inode_table_offset,
        s_prefetch_table_offset=prefetch_offset,
        s_blob_table_offset=blob_table_offset,
        s_inode_table_entries=len(nodes),
        s_prefetch_table_entries=len(prefetch),
        s_blob_table_size=len(blob_table),
        s_extended_blob_table_entries=len(blob_ids) if extended else 0,
        s_extended_blob_table_offset=extended_offset if extended else 0,
    )
    out = bytearray(SUPERBLOCK.pack(superblock))
    out += _padded(struct.pack(f"<{len(nodes)}I", *(node.position >> 3 for node in nodes)))
    out += _padded(struct.pack(f"<{len(prefetch)}I", *prefetch))
    out += blob_table
    if extended:
        out += EXTENDED_BLOB.pack(
            ExtendedBlob(blob.count, features, blob.plain_size, len(blob.stored))
        )
        out += EXTENDED_BLOB.pack(ExtendedBlob(0, features, 0, 0)) * (len(blob_ids) - 1)
    return Image(bytes(out + records), bytes(blob.stored), nodes, blob.count)


def patched_superblock(bootstrap: bytes, **fields: Any) -> bytes:
    out = bytearray(bootstrap)
    SUPERBLOCK.pack_into(out, 0, SUPERBLOCK.read(bootstrap)._replace(**fields))
    return bytes(out)


def patched_inode(image: Image, node: Node, **fields: Any) -> bytes:
    out = bytearray(image.bootstrap)
    INODE.pack_into(out, node.position, INODE.read(out, node.position)._replace(**fields))
    return bytes(out)


def patched_chunk(image: Image, node: Node, ordinal: int = 0, **fields: Any) -> bytes:
    out = bytearray(image.bootstrap)
    position = node.position + len(_head(node)) + ordinal * CHUNK_BYTES
    CHUNK.pack_into(out, position, CHUNK.read(out, position)._replace(**fields))
    return bytes(out)


def patched_bytes(bootstrap: bytes, position: int, new: bytes) -> bytes:
    return bootstrap[:position] + new + bootstrap[position + len(new) :]


def name_position(node: Node) -> int:
    return node.position + INODE_BYTES


def _number(root: Node) -> list[Node]:
    """Children of a directory get consecutive indexes, then each child directory in turn (spec §6)."""
    nodes = [root]
    root.index = 1

    def descend(parent: Node) -> None:
        for child in parent.children:
            nodes.append(child)
            child.index = len(nodes)
        for child in parent.children:
            descend(child)

    descend(root)
    for node in nodes:
        if node.link_to is not None:
            node.link_to.nlink = node.nlink = 1 + sum(
                other.link_to is node.link_to for other in nodes
            )
    for node in nodes:
        if node.link_to is not None:
            node.nlink = node.link_to.nlink
    return nodes


class _Blob:
    def __init__(self, chunk_size: int, codec: Codec, *, numbered: bool) -> None:
        self.stored = bytearray()
        self.plain_size = 0
        self.count = 0
        self._chunk_size = chunk_size
        self._codec = codec
        self._numbered = numbered

    def add(self, content: bytes) -> list[ChunkRecord]:
        return [
            self._add_chunk(content[offset : offset + self._chunk_size], offset)
            for offset in range(0, len(content), self._chunk_size)
        ]

    def _add_chunk(self, plain: bytes, file_offset: int) -> ChunkRecord:
        packed = None if self._codec is Codec.NONE else native.compress(self._codec, plain)
        is_compressed = packed is not None and len(packed) < len(plain)
        stored = packed if packed is not None and is_compressed else plain
        record = ChunkRecord(
            block_id=native.digest(Digester.BLAKE3, plain),
            blob_index=0,
            flags=CHUNK_HAS_CRC32 | (CHUNK_COMPRESSED if is_compressed else 0),
            compressed_size=len(stored),
            uncompressed_size=len(plain),
            compressed_offset=len(self.stored),
            uncompressed_offset=self.plain_size,
            file_offset=file_offset,
            index=self.count if self._numbered else 0,
            crc32=native.crc32c(plain),
        )
        self.stored += stored
        self.plain_size += len(plain)
        self.count += 1
        return record


def _record(node: Node, nodes: list[Node]) -> bytes:
    first = node.link_to or node
    parent = next((other.index for other in nodes if node in other.children), 0)
    fixed = InodeRecord(
        i_digest=bytes(32),
        i_parent=parent,
        i_ino=first.index,
        i_uid=first.uid,
        i_gid=first.gid,
        i_projid=0,
        i_mode=first.mode,
        i_size=len(first.target or first.content),
        i_blocks=-(-len(first.content) // 512),
        i_flags=first.i_flags | (I_FLAG_XATTR if first.xattrs else 0),
        i_nlink=node.nlink,
        i_child_index=node.children[0].index if node.children else 0,
        i_child_count=len(first.chunks) or len(node.children),
        i_name_size=len(node.name),
        i_symlink_size=len(first.target),
        i_rdev=first.rdev,
        i_mtime_nsec=first.mtime[1],
        i_mtime=first.mtime[0],
    )
    return INODE.pack(fixed) + _head(node)[INODE_BYTES:] + b"".join(map(CHUNK.pack, first.chunks))


def _head(node: Node) -> bytes:
    """All of a record before its chunks; the fixed part as zeros."""
    first = node.link_to or node
    out = bytes(INODE_BYTES) + _padded(node.name) + _padded(first.target)
    if first.xattrs:
        pairs = b"".join(
            struct.pack("<I", len(name) + 1 + len(value)) + name + b"\0" + value
            for name, value in first.xattrs
        )
        out += struct.pack("<Q", len(pairs)) + _padded(pairs)
    return out


def _padded(raw: bytes) -> bytes:
    return raw.ljust(align8(len(raw)), b"\0")
