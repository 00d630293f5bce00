"""The source directory as a tree of nodes, in memory (spec rafs-v5 §5, rafs-v6 §7 for what is kept).

Owns     nothing: a scan opens and closes what it reads.
Callers  build; the bootstrap writers walk the result.
Raises   BuildError naming the path that could not be read or cannot be expressed in an image.

Memory is in proportion to the number of names (some 400 bytes each), never to file contents.
"""

import errno
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from nydusd.builder.options import WhiteoutSpec
from nydusd.builder.reach import reachable
from nydusd.errors import NydusError

XATTR_PREFIXES = (  # with the ACLs below, what an image can name, spec rafs-v6 §10
    b"user.",
    b"security.",
    b"trusted.",
)
XATTR_ACLS = (b"system.posix_acl_access", b"system.posix_acl_default")
XATTR_VALUE_MAX_BYTES = 65535  # u16 in v6, spec rafs-v6 §10
SYMLINK_MAX_BYTES = 4096  # spec rafs-v6 §7
OCI_WHITEOUT = b".wh."
OVERLAY_OPAQUE = (b"trusted.overlay.opaque", b"user.overlay.opaque")
PROGRESS_EVERY = 1024  # names between two reports


class BuildError(NydusError):
    """The image cannot be built; the text names the path and what is wrong with it."""


Xattrs = tuple[tuple[bytes, bytes], ...]


class Node:
    """One name in the tree. The fields behind `link_of` are filled by the later stages."""

    __slots__ = (
        "children",
        "chunk_count",
        "digest",
        "first_chunk",
        "gid",
        "link_of",
        "mode",
        "mtime_ns",
        "name",
        "nlink",
        "number",
        "parent",
        "rdev",
        "size",
        "source",
        "target",
        "uid",
        "xattrs",
    )

    def __init__(self, name: bytes, parent: "Node | None", status: os.stat_result) -> None:
        """Take over what stat says. `parent` is None for the root only."""
        self.name = name
        self.parent = parent
        self.mode = status.st_mode
        self.uid = status.st_uid
        self.gid = status.st_gid
        self.rdev = status.st_rdev
        self.mtime_ns = status.st_mtime_ns
        self.size = status.st_size
        self.nlink = 1
        self.xattrs: Xattrs = ()
        self.children: list[Node] | None = None  # sorted by name; None: not a directory
        self.target = b""  # of a symlink
        self.source: tuple[int, int] | None = None  # (device, inode) where links may exist
        self.link_of: Node | None = None  # first name of the same file
        self.first_chunk = 0  # position in ChunkLedger.references
        self.chunk_count = 0
        self.number = 0  # v5: index, v6: nid
        self.digest = b""  # v5 only

    @property
    def is_directory(self) -> bool:
        """True for a directory."""
        return self.children is not None

    @property
    def is_regular(self) -> bool:
        """True for a regular file."""
        return self.mode & 0o170000 == stat.S_IFREG

    @property
    def is_symlink(self) -> bool:
        """True for a symbolic link."""
        return self.mode & 0o170000 == stat.S_IFLNK

    @property
    def is_device(self) -> bool:
        """True for a character or block device."""
        return self.mode & 0o170000 in (stat.S_IFCHR, stat.S_IFBLK)

    @property
    def relative_path(self) -> bytes:
        """Path below the root, without a leading slash; empty for the root."""
        parts: list[bytes] = []
        node = self
        while node.parent is not None:
            parts.append(node.name)
            node = node.parent
        return b"/".join(reversed(parts))


@dataclass(slots=True)
class Tree:
    """A scanned source."""

    source: bytes  # path of the source directory
    root: Node
    names: int  # entries, the root included
    source_bytes: int  # sizes of regular files, hard links counted once
    has_xattrs: bool
    extra_links: int  # names beyond the first of a file
    foreign_xattrs: int  # attributes left out because no image can name them
    whiteouts: int  # markers left out, see scan()

    def walk(self) -> Iterator[Node]:
        """Yield every node depth first, names in byte order: the order of readdir and of tar."""
        stack = [self.root]
        while stack:
            node = stack.pop()
            yield node
            if node.children:
                stack.extend(reversed(node.children))

    def find(self, path: bytes) -> Node | None:
        """Return the node at an absolute path within the image, None if there is none."""
        node = self.root
        for name in path.split(b"/"):
            if name in (b"", b"."):
                continue
            match = next((child for child in node.children or () if child.name == name), None)
            if match is None:
                return None
            node = match
        return node


def scan(
    source: bytes,
    whiteout_spec: WhiteoutSpec = WhiteoutSpec.NONE,
    report: Callable[[int], None] | None = None,
) -> Tree:
    """Read names, attributes, xattrs and link targets below `source`; file contents are not touched.

    An image of one layer has nothing below it, so whiteout markers of the chosen kind hide nothing and
    are left out, as the reference does. `report` is called now and then with the names seen so far.
    """
    return _Scan(source, whiteout_spec, report).run()


class _Scan:
    """State of one scan."""

    def __init__(
        self, source: bytes, whiteout_spec: WhiteoutSpec, report: Callable[[int], None] | None
    ) -> None:
        self._source = source
        self._spec = whiteout_spec
        self._report = report
        self._links: dict[tuple[int, int], Node] = {}
        self._without_xattrs: set[int] = set()  # devices that answered EOPNOTSUPP
        self._names = 1
        self._bytes = 0
        self._has_xattrs = False
        self._foreign = 0
        self._extra_links = 0
        self._whiteouts = 0

    def run(self) -> Tree:
        try:
            status = os.stat(self._source)  # noqa: PTH116 - bytes, as all names here
        except OSError as exc:
            raise BuildError(f"{os.fsdecode(self._source)}: {exc.strerror}") from exc
        if not stat.S_ISDIR(status.st_mode):
            raise BuildError(f"{os.fsdecode(self._source)}: the source must be a directory")
        root = Node(b"", None, status)
        root.mtime_ns = 0  # made by the build tool, different each time: spec rafs-v6 §7
        root.children = []
        root.xattrs = self._xattrs(self._source + b"/.", status.st_dev, directory=True)
        pending = [root]
        while pending:
            directory = pending.pop()
            relative = directory.relative_path
            try:
                with reachable(self._source, relative) as prefix:
                    self._fill(directory, prefix)
            except OSError as exc:
                path = self._path(relative, os.fsencode(exc.filename or b""))
                raise BuildError(f"{path}: {exc.strerror}") from exc
            pending.extend(child for child in directory.children or () if child.is_directory)
        self._link(root)
        return Tree(
            source=self._source,
            root=root,
            names=self._names,
            source_bytes=self._bytes,
            has_xattrs=self._has_xattrs,
            extra_links=self._extra_links,
            foreign_xattrs=self._foreign,
            whiteouts=self._whiteouts,
        )

    def _path(self, relative: bytes, failed: bytes) -> str:
        """Return the path that failed, in terms of the source even if /proc/self/fd was used."""
        if failed.startswith(b"/proc/self/fd/"):
            failed = b"/".join((self._source, relative, failed.split(b"/", 5)[-1]))
        return os.fsdecode(failed or self._source + b"/" + relative)

    def _fill(self, directory: Node, prefix: bytes) -> None:
        """Read the entries of `directory`, whose path is `prefix`, and their attributes."""
        children = directory.children = []
        subdirectories = 0
        with os.scandir(prefix) as entries:
            for entry in entries:
                name = entry.name
                status = entry.stat(follow_symlinks=False)
                if self._is_whiteout(name, status):
                    self._whiteouts += 1
                    continue
                node = Node(name, directory, status)
                kind = status.st_mode & 0o170000
                if kind == stat.S_IFREG:
                    if status.st_nlink > 1:
                        node.source = (status.st_dev, status.st_ino)
                    else:
                        self._bytes += node.size
                else:
                    node.size = 0
                    if kind == stat.S_IFDIR:
                        node.children = []
                        subdirectories += 1
                    elif kind == stat.S_IFLNK:
                        self._read_target(node, prefix + name)
                if status.st_dev not in self._without_xattrs:
                    node.xattrs = self._xattrs(
                        prefix + name, status.st_dev, directory=kind == stat.S_IFDIR
                    )
                children.append(node)
                self._names += 1
                if self._report is not None and self._names % PROGRESS_EVERY == 0:
                    self._report(self._names)
        children.sort(key=_name)
        directory.nlink = 2 + subdirectories
        directory.size = 0

    def _is_whiteout(self, name: bytes, status: os.stat_result) -> bool:
        if self._spec is WhiteoutSpec.OCI:
            return name.startswith(OCI_WHITEOUT)
        if self._spec is WhiteoutSpec.OVERLAYFS:
            return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0
        return False

    def _read_target(self, node: Node, path: bytes) -> None:
        node.target = os.readlink(path)  # noqa: PTH115 - as above
        node.size = len(node.target)
        if not 1 <= node.size < SYMLINK_MAX_BYTES:
            raise BuildError(f"{os.fsdecode(path)}: a link target of {node.size} bytes")

    def _xattrs(self, path: bytes, device: int, *, directory: bool) -> Xattrs:
        try:
            names = os.listxattr(path, follow_symlinks=False)
        except OSError as exc:
            if exc.errno == errno.EOPNOTSUPP:
                self._without_xattrs.add(device)
                return ()
            raise
        if not names:
            return ()
        found: list[tuple[bytes, bytes]] = []
        for text in names:
            name = os.fsencode(text)
            if not name.startswith(XATTR_PREFIXES) and name not in XATTR_ACLS:
                self._foreign += 1
                continue
            if directory and self._spec is WhiteoutSpec.OVERLAYFS and name in OVERLAY_OPAQUE:
                self._whiteouts += 1
                continue
            value = os.getxattr(path, text, follow_symlinks=False)
            if len(value) > XATTR_VALUE_MAX_BYTES:
                raise BuildError(
                    f"{os.fsdecode(path)}: xattr {os.fsdecode(name)} has {len(value)} bytes, "
                    f"an image takes {XATTR_VALUE_MAX_BYTES}"
                )
            found.append((name, value))
        found.sort()
        self._has_xattrs = self._has_xattrs or bool(found)
        return tuple(found)

    def _link(self, root: Node) -> None:
        """Join the names of one file, in tree order, so that the first name is the same in each run."""
        stack = [root]
        while stack:
            node = stack.pop()
            if node.children:
                stack.extend(reversed(node.children))
            if node.source is None:
                continue
            first = self._links.setdefault(node.source, node)
            if first is node:
                self._bytes += node.size
            else:
                node.link_of = first
                first.nlink += 1
                self._extra_links += 1


def _name(node: Node) -> bytes:
    return node.name
