"""Builds tiny RAFS v6 bootstraps by hand, with the struct formats of the spec's text, not of the parser.

    image = make_image(directory({b"motd": regular(5, [(0, 0, 0)])}), [BlobSpec()])
    bootstrap = open_v6(image.data(), "image.boot")

An image can be spoilt before it is opened: `image.patch(image.inode(b"/motd") + 8, "<Q", 1 << 62)`.
Hard links are one Node under several names. Offsets are file offsets (spec rafs-v6 §2 to §12).
"""

import stat
import struct
from dataclasses import dataclass, field

BLOCK = 4096
ROOT_NID = 128
SUPERBLOCK, EXT_SUPERBLOCK, SLOTS, BLOB_TABLE = 1024, 1152, 1408, 4096
FLAGS = 0x0100_0094  # zstd, BLAKE3, explicit ids, not encrypted
FEATURES = 0x4000_0001  # ALIGNED, CAP_TAR_TOC
XATTR_INDEXES = {b"user.": 1, b"trusted.": 4, b"security.": 6}


@dataclass
class Node:
    """One inode. `chunks` are (blob index, CI index, block address), one per chunk of the file."""

    mode: int
    size: int = 0
    uid: int = 0
    gid: int = 0
    nlink: int = 1
    mtime_s: int = 1_700_000_000
    mtime_ns: int = 5
    rdev: int = 0
    target: bytes = b""
    children: dict[bytes, "Node"] = field(default_factory=dict)
    xattrs: list[tuple[int, bytes, bytes]] = field(default_factory=list)
    chunks: list[tuple[int, int, int]] = field(default_factory=list)
    compact: bool = False
    inline: bool = True


@dataclass
class BlobSpec:
    """A blob table entry and its slot; the fields' defaults make a small, valid native blob."""

    blob_id: str = "b" * 64
    chunk_count: int = 2
    codec: int = 3
    digester: int = 0
    features: int = FEATURES
    compressed_size: int = 9000
    uncompressed_size: int = 0x9000
    toc_size: int = 0
    ci_codec: int = 0
    ci_offset: int = 4000
    ci_compressed_size: int | None = None  # as long as the array
    ci_uncompressed_size: int | None = None  # 16 bytes per chunk
    toc_digest: bytes = bytes(32)
    meta_digest: bytes = bytes(32)
    meta_size: int = 0
    cipher_iv: bytes = bytes(8)
    cipher: int = 0
    slot_id: str | None = None
    slot_blocks: int = 9


@dataclass
class ChunkRow:
    """One record of the chunk table (spec rafs-v5 §7)."""

    blob_index: int
    index: int
    uncompressed_offset: int
    digest: bytes = b"\x11" * 32
    flags: int = 0x11  # compressed, has CRC
    crc32: int = 0x1234_5678


def directory(children: dict[bytes, Node] | None = None, **fields: object) -> Node:
    """Return a directory; nlink counts its subdirectories."""
    children = children or {}
    nlink = 2 + sum(stat.S_ISDIR(child.mode) for child in children.values())
    return _node(stat.S_IFDIR | 0o755, nlink=nlink, children=children, **fields)


def regular(size: int, chunks: list[tuple[int, int, int]], **fields: object) -> Node:
    """Return a regular file; its chunks are for the caller to count."""
    return _node(stat.S_IFREG | 0o644, size=size, chunks=chunks, **fields)


def symlink(target: bytes, **fields: object) -> Node:
    """Return a symlink."""
    return _node(stat.S_IFLNK | 0o777, size=len(target), target=target, **fields)


def _node(mode: int, **fields: object) -> Node:
    return Node(**{"mode": mode, **fields})  # type: ignore[arg-type]


class Image:
    """The bytes, and where things lie in them."""

    def __init__(self, data: bytearray, meta: int, placed: dict[bytes, "_Placed"]) -> None:
        self._data = data
        self._meta = meta
        self._placed = placed

    def data(self) -> bytes:
        return bytes(self._data)

    def nid(self, path: bytes) -> int:
        return (self.inode(path) - self._meta) // 32

    def inode(self, path: bytes) -> int:
        return self._placed[path].offset

    def body(self, path: bytes) -> int:
        """Offset behind inode and xattrs: of the inline tail, or near the chunk indexes."""
        return self.inode(path) + self._placed[path].header

    def block(self, path: bytes, number: int) -> int:
        """Offset of a directory's or symlink's data block."""
        placed = self._placed[path]
        if placed.inline and number == len(placed.blocks) - 1:
            return self.body(path)
        return placed.start + number * BLOCK

    def indexes(self, path: bytes) -> int:
        return -(-self.body(path) // 8) * 8

    def patch(self, offset: int, code: str, *values: object) -> None:
        struct.pack_into(code, self._data, offset, *values)

    def cut(self, size: int) -> None:
        del self._data[size:]


@dataclass
class _Placed:
    node: Node
    header: int  # inode and xattrs
    blocks: list[bytes | list[bytes]]  # of a symlink its bytes, of a directory its names
    inline: bool
    offset: int = 0
    start: int = 0  # of the data blocks outside the inode


def make_image(
    root: Node,
    blobs: list[BlobSpec] | None = None,
    *,
    chunk_size: int = 0x10_0000,
    flags: int = FLAGS,
    prefetch: list[int] | None = None,
    chunk_rows: list[ChunkRow] | None = None,
    block_size: int = BLOCK,
) -> Image:
    """Return a whole bootstrap for the tree below `root`."""
    blobs = blobs or []
    rows = chunk_rows or []
    table_bytes = 256 * len(blobs)
    prefetch_at = BLOB_TABLE + table_bytes
    meta = _align(prefetch_at + 4 * len(prefetch or []), BLOCK)
    placed, numbers = _place(root, meta + BLOCK, block_size)
    end = max(item.offset + _length(item) for item in placed.values())
    for item in placed.values():
        outside = item.blocks[:-1] if item.inline else item.blocks
        item.start = _align(end, block_size) if outside else 0
        end = max(end, item.start + len(outside) * block_size)
    table_at = _align(end, BLOCK)
    data = bytearray(_align(table_at + 80 * len(rows), BLOCK))

    mapped = sum(blob.slot_blocks for blob in blobs)
    bits = block_size.bit_length() - 1
    erofs = struct.pack(
        "<IIIBBHQQIIII16s16sIHHH38x",
        *(0xE0F5E1E2, 0, 0x4000_0000, bits, 0, ROOT_NID, len(placed), 0, 0),
        *(mapped, meta // block_size, 0, b"", b"", 0xC, 0, len(blobs), 11),
    )
    ext = struct.pack(
        "<QQIIQQQII200x",
        *(flags, BLOB_TABLE, table_bytes, chunk_size, table_at, 80 * len(rows)),
        *(prefetch_at if prefetch else 0, 4 * len(prefetch or []), 0),
    )
    data[SUPERBLOCK:EXT_SUPERBLOCK], data[EXT_SUPERBLOCK:SLOTS] = erofs, ext
    for index, blob in enumerate(blobs):
        slot, entry = _blob(blob, index, chunk_size)
        data[SLOTS + 128 * index : SLOTS + 128 * (index + 1)] = slot
        data[BLOB_TABLE + 256 * index : BLOB_TABLE + 256 * (index + 1)] = entry
    for position, nid in enumerate(prefetch or []):
        struct.pack_into("<I", data, prefetch_at + 4 * position, nid)
    for position, row in enumerate(rows):
        record = struct.pack(
            "<32s4I3Q2I",
            *(row.digest, row.blob_index, row.flags, 10, 10),
            *(0, row.uncompressed_offset, 0, row.index, row.crc32),
        )
        data[table_at + 80 * position : table_at + 80 * (position + 1)] = record
    paths = {id(item.node): path for path, item in placed.items()}
    for path, item in placed.items():
        _write(data, path, item, placed, paths, meta, block_size)
    return Image(data, meta, {path: placed[numbers[path]] for path in numbers})


def _place(
    root: Node, first: int, block_size: int
) -> tuple[dict[bytes, _Placed], dict[bytes, bytes]]:
    """Give each node its offset; second: every path, to the path under which its node was placed."""
    placed: dict[bytes, _Placed] = {}
    names: dict[bytes, bytes] = {}
    by_node: dict[int, bytes] = {}
    position = first
    pending = [(b"/", root)]
    while pending:
        path, node = pending.pop(0)
        names[path] = by_node.setdefault(id(node), path)
        if names[path] != path:
            continue
        header = (32 if node.compact else 64) + len(_xattr_area(node))
        blocks: list[bytes | list[bytes]] = []
        if stat.S_ISDIR(node.mode):
            blocks = list(_split_names([*node.children, b".", b".."], block_size))
            node.size = (len(blocks) - 1) * block_size + _names_length(blocks[-1])
        elif node.target:
            starts = range(0, len(node.target), block_size)
            blocks = [node.target[start : start + block_size] for start in starts]
        item = _Placed(node, header, blocks, node.inline and bool(blocks))
        tail = _length(item)
        if item.inline and position % block_size + tail > block_size:
            position = _align(
                position, block_size
            )  # the kernel wants the tail in the inode's block
        if item.inline and tail > block_size:
            item.inline = False
        item.offset = position
        position = _align(position + _length(item), 32)
        placed[path] = item
        for name, child in sorted(node.children.items()):
            pending.append((path.rstrip(b"/") + b"/" + name, child))
    return placed, names


def _length(item: _Placed) -> int:
    """Bytes of inode, xattrs and what follows them."""
    if item.inline:
        return item.header + _names_length(item.blocks[-1])
    return _align(item.header, 8) + 8 * len(item.node.chunks)


def _names_length(block: bytes | list[bytes]) -> int:
    return len(block) if isinstance(block, bytes) else sum(12 + len(name) for name in block)


def _split_names(names: list[bytes], block_size: int) -> list[list[bytes]]:
    blocks: list[list[bytes]] = [[]]
    for name in sorted(names):
        if _names_length([*blocks[-1], name]) > block_size:
            blocks.append([])
        blocks[-1].append(name)
    return blocks


def _xattr_area(node: Node) -> bytes:
    if not node.xattrs:
        return b""
    area = bytes(12)
    for index, suffix, value in node.xattrs:
        entry = struct.pack("<BBH", len(suffix), index, len(value)) + suffix + value
        area += entry + bytes(-len(entry) % 4)
    return area


def _write(
    data: bytearray,
    path: bytes,
    item: _Placed,
    placed: dict[bytes, _Placed],
    paths: dict[int, bytes],
    meta: int,
    block_size: int,
) -> None:
    node = item.node
    area = _xattr_area(node)
    icount = (len(area) - 12) // 4 + 1 if area else 0
    layout = 4 if stat.S_ISREG(node.mode) else 2 if item.inline else 0
    i_u = 0x28 if layout == 4 else node.rdev or item.start // block_size
    if node.compact:
        record = struct.pack(
            "<4H4I2H4x",
            *(layout << 1, icount, node.mode, node.nlink, node.size, 0, i_u, 7),
            *(node.uid, node.gid),
        )
    else:
        record = struct.pack(
            "<4HQ4IQ2I16x",
            *(layout << 1 | 1, icount, node.mode, 0, node.size, i_u, 7, node.uid, node.gid),
            *(node.mtime_s % (1 << 64), node.mtime_ns, node.nlink),
        )
    data[item.offset : item.offset + item.header] = record + area
    index_at = item.offset + _align(item.header, 8)
    for position, (blob, ci, block) in enumerate(node.chunks):
        entry = struct.pack("<HBBI", ci & 0xFFFF, blob + 1, ci >> 16, block)
        data[index_at + 8 * position : index_at + 8 * (position + 1)] = entry
    for number, block in enumerate(item.blocks):
        last = item.inline and number == len(item.blocks) - 1
        at = item.offset + item.header if last else item.start + number * block_size
        raw = block if isinstance(block, bytes) else _dirents(block, path, placed, paths, meta)
        data[at : at + len(raw)] = raw


def _dirents(
    names: list[bytes],
    path: bytes,
    placed: dict[bytes, _Placed],
    paths: dict[int, bytes],
    meta: int,
) -> bytes:
    dots = {b".": path, b"..": path.rpartition(b"/")[0] or b"/"}
    entries, text, base = b"", b"", 12 * len(names)
    for name in names:
        other = dots.get(name) or paths[id(placed[path].node.children[name])]
        target = placed[other]
        nid = (target.offset - meta) // 32
        entries += struct.pack("<QHBB", nid, base + len(text), 0, 0)
        text += name
    return entries + text


def _blob(blob: BlobSpec, index: int, chunk_size: int) -> tuple[bytes, bytes]:
    ci_bytes = 16 * blob.chunk_count
    if blob.ci_uncompressed_size is not None:
        ci_bytes = blob.ci_uncompressed_size
    stored = ci_bytes if blob.ci_compressed_size is None else blob.ci_compressed_size
    slot_id = blob.blob_id if blob.slot_id is None else blob.slot_id
    slot = struct.pack("<64sII56x", slot_id.encode(), blob.slot_blocks, 0)
    entry = struct.pack(
        "<64s6IQQIIQQQ32s32sQ8sI36x",
        *(blob.blob_id.encode(), index, chunk_size, blob.chunk_count, blob.codec, blob.digester),
        *(blob.features, blob.compressed_size, blob.uncompressed_size, blob.toc_size),
        *(blob.ci_codec, blob.ci_offset, stored, ci_bytes, blob.toc_digest, blob.meta_digest),
        *(blob.meta_size, blob.cipher_iv, blob.cipher),
    )
    return slot, entry


def _align(value: int, unit: int) -> int:
    return -(-value // unit) * unit
