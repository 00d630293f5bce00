"""A folder and the image built from it in the same terms, so that `==` compares them.

Sockets, devices, owners, times, xattrs, link counts and contents are all in. Only the root's time is
left out: images do not keep it (spec rafs-v6 §7).
"""

import hashlib
import os
import stat
from pathlib import Path
from typing import Any

from nydusd import native
from nydusd.blob.model import ChunkTable
from nydusd.builder.blob_files import BlobFiles, inlined_bootstrap
from nydusd.rafs.bootstrap import open_bootstrap, open_mapped, sniff_file
from nydusd.rafs.model import Bootstrap, Inode

HASHED_MAX_BYTES = 1 << 28  # contents of larger files are not compared

Tree = dict[bytes, dict[str, Any]]


def folder_tree(root: Path) -> Tree:
    """Return what lstat, listxattr, readlink and reading say of every path below `root`."""
    base = os.fsencode(root)
    names: dict[tuple[int, int], bytes] = {}
    tree: Tree = {}
    pending = [b"/"]
    while pending:
        path = pending.pop()
        full = base + path
        status = os.lstat(full)
        record = _attributes(status.st_mode, status.st_uid, status.st_gid, status.st_nlink)
        record["mtime_ns"] = status.st_mtime_ns
        record["xattrs"] = {
            os.fsencode(name): os.getxattr(full, name, follow_symlinks=False)
            for name in os.listxattr(full, follow_symlinks=False)
        }
        if stat.S_ISDIR(status.st_mode):
            pending += (path.rstrip(b"/") + b"/" + name for name in os.listdir(full))
        elif stat.S_ISREG(status.st_mode):
            record["size"] = status.st_size
            record["file"] = names.setdefault((status.st_dev, status.st_ino), b"%d" % len(names))
            if status.st_size <= HASHED_MAX_BYTES:
                with open(full, "rb") as file:
                    record["sha256"] = hashlib.file_digest(file, "sha256").hexdigest()
        elif stat.S_ISLNK(status.st_mode):
            record["target"] = os.readlink(full)
        elif not stat.S_ISFIFO(status.st_mode) and not stat.S_ISSOCK(status.st_mode):
            record["rdev"] = status.st_rdev
        tree[path] = record
    return _comparable(tree)


def image_tree(bootstrap: Path, blob_dir: Path) -> Tree:
    """Return what our readers say of every path of an image, contents decoded from its blobs."""
    if sniff_file(bootstrap) is None:
        with inlined_bootstrap(bootstrap) as plain:
            image = open_mapped(plain, str(bootstrap), bootstrap.name)  # type: ignore[arg-type]
            return _comparable(_Image(image, blob_dir).tree())
    image = open_bootstrap(bootstrap)
    try:
        return _comparable(_Image(image, blob_dir).tree())
    finally:
        image.close()


class _Image:
    def __init__(self, image: Bootstrap, blob_dir: Path) -> None:
        self._image = image
        self._files = BlobFiles(blob_dir)
        self._tables = [self._table(index) for index in range(len(image.blobs))]

    def _table(self, index: int) -> ChunkTable:
        table = self._image.chunk_table(index)
        if table is None:
            info = self._image.blobs[index]
            table = self._files.chunk_table(info, self._image.digests(index))
        return table

    def tree(self) -> Tree:
        image = self._image
        tree: Tree = {}
        pending = [(b"/", image.inode(image.root_ino))]
        while pending:
            path, inode = pending.pop()
            record = _attributes(inode.mode, inode.uid, inode.gid, inode.nlink)
            record["mtime_ns"] = inode.mtime_s * 10**9 + inode.mtime_ns
            record["xattrs"] = image.xattrs(inode)
            if stat.S_ISDIR(inode.mode):
                for entry in image.entries(inode):
                    if entry.name in (b".", b".."):
                        continue
                    child = image.lookup(inode, entry.name)
                    assert child is not None
                    assert child.ino == entry.ino
                    pending.append((path.rstrip(b"/") + b"/" + entry.name, child))
            elif stat.S_ISREG(inode.mode):
                record["size"] = inode.size
                record["file"] = b"%d" % inode.ino
                if inode.size <= HASHED_MAX_BYTES:
                    record["sha256"] = self._sha256(inode)
            elif stat.S_ISLNK(inode.mode):
                record["target"] = image.readlink(inode)
            elif not stat.S_ISFIFO(inode.mode) and not stat.S_ISSOCK(inode.mode):
                record["rdev"] = inode.rdev
            assert path not in tree
            tree[path] = record
        return tree

    def _sha256(self, inode: Inode) -> str:
        digest = hashlib.sha256()
        for extent in self._image.extents(inode, 0, inode.size):
            table = self._tables[extent.blob_index]
            assert table.claim(extent.chunk_index) == (extent.chunk_offset, extent.chunk_size)
            chunk = table.chunk(extent.chunk_index)
            assert chunk.digest is not None
            assert chunk.crc32 is not None
            info = self._image.blobs[extent.blob_index]
            with self._files.path_of(info.blob_id).open("rb") as file:
                stored = os.pread(file.fileno(), chunk.compressed_size, chunk.compressed_offset)
            plain = bytearray(chunk.uncompressed_size)
            (result,) = native.decode_to_memory(
                stored, chunk.compressed_offset, [chunk], info.codec, info.digester, plain,
                chunk.uncompressed_offset,
            )  # fmt: skip
            assert result.status is native.Status.SAVED
            digest.update(plain[extent.offset : extent.offset + extent.length])
        return digest.hexdigest()


def _attributes(mode: int, uid: int, gid: int, nlink: int) -> dict[str, Any]:
    return {"mode": oct(mode), "uid": uid, "gid": gid, "nlink": nlink}


def _comparable(tree: Tree) -> Tree:
    """Name each file by its first path instead of its number, and forget the root's time."""
    del tree[b"/"]["mtime_ns"]
    first: dict[bytes, bytes] = {}
    for path in sorted(tree):
        record = tree[path]
        if "file" in record:
            record["file"] = first.setdefault(record["file"], path)
    return tree
