"""EROFS read from bytes, as the kernel reads it, in as few lines as will do: to check what we write.

Written from the format's description and nothing of the project's, so that writer and reader do not
share a mistake. Uncompressed images of 4 KiB blocks, extended inodes, at most one device.
"""

import stat
import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

BLOCK = 4096
PREFIXES = {
    1: b"user.",
    2: b"system.posix_acl_access",
    3: b"system.posix_acl_default",
    4: b"trusted.",
    6: b"security.",
}
KINDS = {
    stat.S_IFREG: 1,
    stat.S_IFDIR: 2,
    stat.S_IFCHR: 3,
    stat.S_IFBLK: 4,
    stat.S_IFIFO: 5,
    stat.S_IFSOCK: 6,
    stat.S_IFLNK: 7,
}


class Shown(NamedTuple):
    """One inode."""

    nid: int
    mode: int
    uid: int
    gid: int
    nlink: int
    size: int
    mtime: tuple[int, int]
    rdev: int
    xattrs: dict[bytes, bytes]
    target: bytes
    runs: list[tuple[int, int]]  # of a file: device address and length


class ErofsReader:
    def __init__(self, data: bytes | bytearray) -> None:
        self.data = bytes(data)
        magic, compat = struct.unpack_from("<I4xI", self.data, 1024)
        assert magic == 0xE0F5E1E2
        assert compat == 0  # no checksum, nothing else that a reader may ignore
        bits, self.root_nid, self.inos, self.blocks = struct.unpack_from(
            "<BxHQ12xI", self.data, 1036
        )
        assert bits == 12
        assert self.blocks * BLOCK == len(self.data)
        (self.meta_block,) = struct.unpack_from("<I", self.data, 1064)
        incompat, self.devices, slot = struct.unpack_from("<I2xHH", self.data, 1104)
        assert incompat == 0xC
        assert self.devices in (0, 1)
        (self.device_blocks,) = struct.unpack_from("<I", self.data, slot * 128 + 64)

    def inode(self, nid: int) -> Shown:
        at = self.meta_block * BLOCK + nid * 32
        (form, icount, mode, size, word, _, uid, gid, mtime, mtime_ns, nlink) = struct.unpack_from(
            "<HHH2xQIIIIqII16x", self.data, at
        )
        assert form & 1
        assert at % BLOCK + 64 <= BLOCK  # the fixed part is read from one block
        area = 12 + 4 * (icount - 1) if icount else 0
        layout, kind = form >> 1, stat.S_IFMT(mode)
        rdev, target, runs = 0, b"", list[tuple[int, int]]()
        if kind == stat.S_IFREG:
            assert layout == 4
            runs = list(self._runs(at + (64 + area + 7) // 8 * 8, size, word))
        elif kind == stat.S_IFLNK:
            target = b"".join(self._flat(at + 64 + area, layout, size, word))
        elif kind in (stat.S_IFCHR, stat.S_IFBLK):
            rdev = word
        xattrs = dict(self._xattrs(at + 64, area))
        return Shown(
            nid, mode, uid, gid, nlink, size, (mtime, mtime_ns), rdev, xattrs, target, runs
        )

    def entries(self, nid: int) -> list[tuple[bytes, int, int]]:
        """Return (name, nid, kind) of a directory, in order."""
        at = self.meta_block * BLOCK + nid * 32
        form, icount, _, size, word = struct.unpack_from("<HHH2xQI", self.data, at)
        area = 12 + 4 * (icount - 1) if icount else 0
        found: list[tuple[bytes, int, int]] = []
        for block in self._flat(at + 64 + area, form >> 1, size, word):
            count, rest = divmod(struct.unpack_from("<8xH", block)[0], 12)
            assert count
            assert rest == 0
            dirents = [struct.unpack_from("<QHB", block, 12 * i) for i in range(count)]
            ends = [dirent[1] for dirent in dirents[1:]] + [len(block)]
            for (child, start, kind), end in zip(dirents, ends, strict=True):
                found.append((block[start:end].rstrip(b"\0"), child, kind))
        names = [name for name, _, _ in found]
        assert names == sorted(set(names))
        return found

    def tree(self) -> dict[bytes, Shown]:
        """Return every path; checks `.`, `..` and the kinds that entries name."""
        tree: dict[bytes, Shown] = {}
        pending = [(b"/", self.root_nid, self.root_nid)]
        while pending:
            path, nid, parent = pending.pop()
            tree[path] = shown = self.inode(nid)
            if not stat.S_ISDIR(shown.mode):
                continue
            entries = self.entries(nid)
            assert (b".", nid, 2) in entries
            assert (b"..", parent, 2) in entries
            for name, child, kind in entries:
                assert kind == KINDS[stat.S_IFMT(self.inode(child).mode)]
                if name not in (b".", b".."):
                    pending.append((path.rstrip(b"/") + b"/" + name, child, nid))
        return tree

    def _flat(self, tail: int, layout: int, size: int, block: int) -> Iterator[bytes]:
        assert layout in (0, 2)
        last = -(-size // BLOCK) - 1
        for number in range(last + 1):
            length = min(BLOCK, size - number * BLOCK)
            start = (block + number) * BLOCK
            if layout == 2 and number == last:
                start = tail
                assert start % BLOCK + length <= BLOCK  # the kernel refuses what crosses a block
            assert start + length <= len(self.data)
            yield self.data[start : start + length]

    def _runs(self, index: int, size: int, word: int) -> Iterator[tuple[int, int]]:
        assert word & ~0x3F == 0
        assert word & 0x20
        chunk = BLOCK << (word & 0x1F)
        for number in range(-(-size // chunk)):
            _, device, block = struct.unpack_from("<HHI", self.data, index + 8 * number)
            assert device == 1
            assert block != 0xFFFF_FFFF
            length = min(chunk, size - number * chunk)
            assert block * BLOCK + length <= self.device_blocks * BLOCK
            yield block * BLOCK, length

    def _xattrs(self, at: int, area: int) -> Iterator[tuple[bytes, bytes]]:
        end = at + area
        if area:
            assert self.data[at : at + 12] == bytes(12)
        at += 12
        while at < end:
            length, index, value_size = struct.unpack_from("<BBH", self.data, at)
            value = at + 4 + length
            yield PREFIXES[index] + self.data[at + 4 : value], self.data[value : value + value_size]
            at = (value + value_size + 3) // 4 * 4


def expected(root: Any) -> dict[bytes, Any]:
    """Return the nodes of tests.support.rafs_v5_image by path."""
    found = {b"/": root}
    pending = [(b"/", root)]
    while pending:
        path, node = pending.pop()
        for child in node.children:
            place = path.rstrip(b"/") + b"/" + child.name
            found[place] = child
            pending.append((place, child))
    return found
