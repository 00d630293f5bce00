"""An image in memory: a `Bootstrap` and the `FileReader` on top of it, for tests of the room above rafs.

    image = FakeImage()
    image.add_file("/etc/hosts", b"127.0.0.1 localhost")
    image.add_symlink("/etc/link", b"hosts")
    image.bootstrap.broken.add(image.ino("/etc/link"))

Parents are made as needed. Like the real ones it is synchronous, and has no list of all names.
"""

import stat
from collections import deque
from collections.abc import Iterator

import trio

from nydusd.blob.model import BlobInfo, ChunkTable, DigestSource
from nydusd.errors import FormatError, NotFoundError, NydusError
from nydusd.rafs.model import DirEntry, Extent, Inode, Superblock, SuperblockFlag
from nydusd.storage.native_map import NativeMap

MTIME_S = 1_600_000_000
MTIME_NS = 123_456_789


class FakeBootstrap:
    """Inodes in a dict; `broken` inode numbers raise FormatError as a corrupt record would."""

    blobs: tuple[BlobInfo, ...] = ()

    def __init__(self, flags: SuperblockFlag, root_ino: int) -> None:
        self.superblock = Superblock(6, flags, 1 << 20, 0, {})
        self.root_ino = root_ino
        self.broken: set[int] = set()
        self.nodes: dict[int, Inode] = {}
        self.names: dict[int, dict[bytes, int]] = {}
        self.targets: dict[int, bytes] = {}
        self.attributes: dict[int, dict[bytes, bytes]] = {}

    def inode(self, ino: int) -> Inode:
        if ino in self.broken:
            raise FormatError(f"inode {ino}", "garbage", "must not be")
        if ino not in self.nodes:
            raise NotFoundError(f"inode {ino}")
        return self.nodes[ino]

    def lookup(self, directory: Inode, name: bytes) -> Inode | None:
        ino = self._children(directory).get(name)
        return None if ino is None else self.inode(ino)

    def entries(self, directory: Inode, after: int = 0) -> Iterator[DirEntry]:
        for cookie, (name, ino) in enumerate(sorted(self._children(directory).items()), 1):
            if cookie > after:
                yield DirEntry(name, ino, cookie)

    def _children(self, directory: Inode) -> dict[bytes, int]:
        return self.names[directory.ino]

    def readlink(self, inode: Inode) -> bytes:
        return self.targets[inode.ino]

    def xattrs(self, inode: Inode) -> dict[bytes, bytes]:
        return self.attributes.get(inode.ino, {})

    def extents(self, inode: Inode, offset: int, size: int) -> list[Extent]:
        raise AssertionError("FakeImage has the bytes")

    def prefetch_inodes(self) -> list[int]:
        return []

    def chunk_table(self, blob_index: int) -> ChunkTable | None:
        return None

    def digests(self, blob_index: int) -> DigestSource | None:
        return None

    def mapped_tree(self) -> None:
        return None

    def close(self) -> None:
        pass


class FakeImage:
    """Files' bytes in a dict. `failures` are raised one per read; closed `gate` keeps reads waiting."""

    def __init__(
        self,
        flags: SuperblockFlag = SuperblockFlag.EXPLICIT_UID_GID | SuperblockFlag.HAS_XATTR,
        root_ino: int = 36,  # a v6 root is not 1
    ) -> None:
        self.bootstrap = FakeBootstrap(flags, root_ino)
        self.contents: dict[int, bytes] = {}
        self.failures: deque[BaseException] = deque()
        self.reads: list[tuple[int, int, int]] = []
        self.gate = trio.Event()
        self.gate.set()
        self.is_cached = False  # True: reads need not wait
        self.native_maps: dict[int, NativeMap] = {}  # by inode number
        self._next_ino = root_ino
        root = self._add_inode(stat.S_IFDIR | 0o700)
        self.bootstrap.names[root] = {b".": root, b"..": root}

    async def read(self, inode: Inode, offset: int, size: int) -> bytes:
        self.reads.append((inode.ino, offset, size))
        await self.gate.wait()
        if self.failures:
            raise self.failures.popleft()
        return self.contents[inode.ino][offset : offset + size]

    def read_now(self, inode: Inode, offset: int, size: int) -> bytes | None:
        if not self.is_cached:
            return None
        self.reads.append((inode.ino, offset, size))
        if self.failures:
            raise self.failures.popleft()
        return self.contents[inode.ino][offset : offset + size]

    def native_map(self, inode: Inode) -> NativeMap | None:
        return self.native_maps.get(inode.ino)

    def ino(self, path: str | bytes) -> int:
        """Return the inode number of a path."""
        here = self.bootstrap.root_ino
        for name in _names(path):
            here = self.bootstrap.names[here][name]
        return here

    def add_directory(self, path: str | bytes, mode: int = 0o755, **fields: int) -> int:
        *parents, name = _names(path)
        parent = self._make_parents(parents)
        ino = self._add_inode(stat.S_IFDIR | mode, **fields)
        self.bootstrap.names[ino] = {b".": ino, b"..": parent}
        self.bootstrap.names[parent][name] = ino
        return ino

    def add_file(
        self, path: str | bytes, content: bytes = b"", mode: int = 0o644, **fields: int
    ) -> int:
        fields.setdefault("size", len(content))
        ino = self._add_named(path, stat.S_IFREG | mode, **fields)
        self.contents[ino] = content
        return ino

    def add_symlink(self, path: str | bytes, target: bytes) -> int:
        ino = self._add_named(path, stat.S_IFLNK | 0o777, size=len(target))
        self.bootstrap.targets[ino] = target
        return ino

    def add_special(self, path: str | bytes, mode: int, rdev: int = 0) -> int:
        return self._add_named(path, mode, rdev=rdev)

    def add_link(self, path: str | bytes, to: str | bytes) -> int:
        *parents, name = _names(path)
        ino = self.ino(to)
        self.bootstrap.names[self._make_parents(parents)][name] = ino
        node = self.bootstrap.nodes[ino]
        self.bootstrap.nodes[ino] = node._replace(nlink=node.nlink + 1)
        return ino

    def set_xattr(self, path: str | bytes, name: bytes, value: bytes) -> None:
        self.bootstrap.attributes.setdefault(self.ino(path), {})[name] = value

    def _make_parents(self, names: list[bytes]) -> int:
        here = self.bootstrap.root_ino
        for depth, name in enumerate(names, 1):
            if name not in self.bootstrap.names[here]:
                self.add_directory(b"/" + b"/".join(names[:depth]))
            here = self.bootstrap.names[here][name]
        return here

    def _add_named(self, path: str | bytes, mode: int, **fields: int) -> int:
        *parents, name = _names(path)
        parent = self._make_parents(parents)
        ino = self._add_inode(mode, **fields)
        self.bootstrap.names[parent][name] = ino
        return ino

    def _add_inode(self, mode: int, **fields: int) -> int:
        ino = self._next_ino
        self._next_ino += 1
        size = fields.get("size", 0)
        plain = Inode(ino, mode, 1, 1000, 1001, 0, 0, -(-size // 512), MTIME_S, MTIME_NS, ino * 32)
        self.bootstrap.nodes[ino] = plain._replace(**fields)
        return ino


def _names(path: str | bytes) -> list[bytes]:
    raw = path.encode() if isinstance(path, str) else path
    return [name for name in raw.split(b"/") if name]


def failing(times: int, error: NydusError) -> deque[BaseException]:
    """Return a queue for `FakeImage.failures`."""
    return deque([error] * times)
