"""An image's tree as its bootstrap tells it, in the terms of the vectors' manifests."""

import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nydusd import native
from nydusd.blob.model import BlobInfo, Chunk, ChunkTable
from nydusd.rafs.model import Bootstrap, Inode


def quote(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape").encode("unicode_escape").decode()


def unquote(text: str) -> bytes:
    """Undo `quote`."""
    return text.encode().decode("unicode_escape").encode("utf-8", "surrogateescape")


def walk(bootstrap: Bootstrap) -> Iterator[tuple[bytes, Inode]]:
    """Yield (path, inode) of the whole tree, resolving every name that a directory lists."""
    pending = [(b"/", bootstrap.inode(bootstrap.root_ino))]
    while pending:
        path, inode = pending.pop()
        yield path, inode
        if not stat.S_ISDIR(inode.mode):
            continue
        for entry in bootstrap.entries(inode):
            if entry.name in (b".", b".."):
                continue
            child = bootstrap.lookup(inode, entry.name)
            assert child is not None
            assert child.ino == entry.ino
            pending.append((path.rstrip(b"/") + b"/" + entry.name, child))


def describe(bootstrap: Bootstrap, path: bytes, inode: Inode) -> dict[str, Any]:
    """Return the record of one path, without file contents."""
    found: dict[str, Any] = {
        "path": quote(path),
        "mode": oct(inode.mode),
        "uid": inode.uid,
        "gid": inode.gid,
        "nlink": inode.nlink,
        "ino": inode.ino,
        "blocks": inode.blocks,
        "mtime": inode.mtime_s or "start",
        "mtime_ns": inode.mtime_ns if inode.mtime_s else 0,
    }
    if stat.S_ISREG(inode.mode) or stat.S_ISLNK(inode.mode):
        found["size"] = inode.size
    if stat.S_ISLNK(inode.mode):
        found["target"] = quote(bootstrap.readlink(inode))
    if stat.S_ISCHR(inode.mode) or stat.S_ISBLK(inode.mode):
        found["rdev"] = [os.major(inode.rdev), os.minor(inode.rdev)]
    xattrs = bootstrap.xattrs(inode)
    if xattrs:
        found["xattrs"] = {quote(name): xattrs[name].hex() for name in sorted(xattrs)}
    return found


class BlobFiles:
    """File contents from a folder of blobs, chunk by chunk, each one checked."""

    def __init__(self, bootstrap: Bootstrap, folder: Path, tables: list[ChunkTable]) -> None:
        self._bootstrap = bootstrap
        self._folder = folder
        self._tables = tables
        self._stored: dict[str, bytes] = {}

    def sha256(self, inode: Inode) -> str:
        digest = hashlib.sha256()
        for extent in self._bootstrap.extents(inode, 0, inode.size):
            table = self._tables[extent.blob_index]
            assert table.claim(extent.chunk_index) == (extent.chunk_offset, extent.chunk_size)
            plain = self._plain(self._bootstrap.blobs[extent.blob_index], table, extent.chunk_index)
            digest.update(plain[extent.offset : extent.offset + extent.length])
        return digest.hexdigest()

    def _plain(self, info: BlobInfo, table: ChunkTable, index: int) -> bytes:
        chunk = table.chunk(index)
        stored = self._blob(info.blob_id)[chunk.compressed_offset : chunk.compressed_end]
        plain = stored
        if chunk.is_compressed:
            decoded = native.decompress(info.codec, stored, chunk.uncompressed_size)
            assert decoded is not None
            plain = decoded
        check_plain(info, chunk, plain)
        return plain

    def _blob(self, blob_id: str) -> bytes:
        if blob_id not in self._stored:
            self._stored[blob_id] = (self._folder / blob_id).read_bytes()
        return self._stored[blob_id]


def check_plain(info: BlobInfo, chunk: Chunk, plain: bytes) -> None:
    assert chunk.digest is not None or chunk.crc32 is not None
    if chunk.digest is not None:
        assert native.digest(info.digester, plain) == chunk.digest
    if chunk.crc32 is not None:
        assert native.crc32c(plain) == chunk.crc32
