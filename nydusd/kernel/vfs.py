"""Many mounted images in one session, and the pseudo directories that lead to them. No FUSE import.

Every object has a nodeid, fs_index << 56 | inode number (spec fs-behaviour §4). Index 0 is the pseudo
file system of this file, with the session's root as nodeid 1; indexes 1 to 255 are images. A pseudo
directory on which an image is mounted answers as that image's root, so that the session's root, whose
nodeid the kernel never looks up anew, is just one more of them.

Owns     the mount table, the pseudo directories, and how many files are open per index.
Callers  kernel/namespace.py for requests, daemon/ for attach and detach; all in the trio thread.
Raises   Refusal (ENOENT) for a nodeid whose image was detached; ConfigError, ExistsError, NotFoundError
         and UnsupportedError from attach and detach, which then have changed nothing; else what Tree raises.

The kernel caches names and attributes for ever. After attach, and after detach, whoever called passes
`stale(mountpoint)` to `Session.invalidate`.
"""

import contextlib
import errno
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from nydusd.errors import (
    ConfigError,
    ExistsError,
    FormatError,
    NotFoundError,
    NydusError,
    UnsupportedError,
)
from nydusd.kernel.attributes import Attributes, Statfs
from nydusd.kernel.errno_map import Refusal
from nydusd.kernel.tree import NAME_MAX_BYTES, STATFS_BLOCK_BYTES, Tree
from nydusd.records import Buffer

if TYPE_CHECKING:
    from nydusd.native_relay import ReadCounts
    from nydusd.native_tree import NativeTree
    from nydusd.storage.lazy_blob import LazyBlob
    from nydusd.storage.native_map import NativeMap

INDEX_SHIFT: Final = 56
INDEX_MAX: Final = 255
INO_MASK: Final = (1 << INDEX_SHIFT) - 1
ROOT_NODEID: Final = 1
PSEUDO_MODE: Final = stat.S_IFDIR | 0o777


class Entry(NamedTuple):
    """One object as the kernel is to know it."""

    nodeid: int
    generation: int  # tells apart the images that had this index one after the other
    attributes: Attributes


# One line of a listing: name, cookie behind it, nodeid, generation, attributes. No attributes where only the
# number is known: of `.`, `..`, a broken inode. A plain tuple: there are tens of thousands.
Line = tuple[bytes, int, int, int, Attributes | None]


class Stale(NamedTuple):
    """What a changed mount table makes untrue in the kernel's caches."""

    inodes: tuple[int, ...]  # nodeids whose attributes changed
    entries: tuple[tuple[int, bytes], ...]  # (nodeid of the parent, name) to look up anew


class VfsState(NamedTuple):
    """What a successor must know so that the nodeids that the kernel has stay true. Plain values only."""

    directories: Sequence[tuple[int, int, str]]  # (number, its parent's, name), parents first
    next_directory: int
    mounts: Sequence[tuple[str, int]]  # (mountpoint, index), in the order of attaching
    next_index: int
    indexes: Sequence[tuple[int, int, int]]  # (index, generation of its next image, files open)


class _Mount:
    __slots__ = ("generation", "index", "tree")

    def __init__(self, index: int, generation: int, tree: Tree) -> None:
        self.index = index
        self.generation = generation
        self.tree = tree

    def nodeid(self, ino: int) -> int:
        return self.index << INDEX_SHIFT | ino

    def entry(self, attributes: Attributes) -> Entry:
        return Entry(self.index << INDEX_SHIFT | attributes.ino, self.generation, attributes)


class _PseudoDirectory:
    __slots__ = ("children", "ino", "mount", "name", "parent")

    def __init__(self, ino: int, parent: "_PseudoDirectory | None", name: bytes) -> None:
        self.ino = ino
        self.parent = parent
        self.name = name
        self.children: dict[bytes, _PseudoDirectory] = {}  # in creation order
        self.mount: _Mount | None = None

    def entry(self) -> Entry:
        """The image's root if one is mounted here, else the directory itself, as of now."""
        if self.mount is not None:
            return self.mount.entry(self.mount.tree.root())
        now_ns = time.time_ns()
        return Entry(
            self.ino, 0, Attributes(self.ino, PSEUDO_MODE, 0, 0, 0, 0, 0, 0, now_ns, now_ns, now_ns)
        )

    def path(self) -> str:
        names = []
        here = self
        while here.parent is not None:
            names.append(here.name)
            here = here.parent
        return "/" + b"/".join(reversed(names)).decode("utf-8", "surrogateescape")

    def mounts_below(self) -> Iterator[_Mount]:
        for child in self.children.values():
            if child.mount is not None:
                yield child.mount
            yield from child.mounts_below()


class Vfs:
    """The session's name space. Every request names its object by nodeid."""

    def __init__(self) -> None:
        """An empty session: one pseudo root.

        on_attach: called with the index of an image that is there now. on_detach: of one that is going,
        before its owner may close it.
        """
        self.on_attach: Callable[[int], None] | None = None
        self.on_detach: Callable[[int], None] | None = None
        self._root = _PseudoDirectory(ROOT_NODEID, None, b"")
        self._pseudo = {ROOT_NODEID: self._root}
        self._next_pseudo_ino = ROOT_NODEID + 1
        self._mounts: dict[int, _Mount] = {}
        self._by_mountpoint: dict[str, _PseudoDirectory] = {}
        self._next_index = 1
        self._generations = [0] * (INDEX_MAX + 1)
        self._open_files = [0] * (INDEX_MAX + 1)
        self._awaited: dict[
            str, int
        ] = {}  # by mountpoint: indexes of a predecessor's, to be attached

    # --- the mount table -------------------------------------------------------------------------

    def attach(self, mountpoint: str, tree: Tree, *, index: int | None = None) -> int:
        """Mount `tree` at an absolute path of the session and return its index.

        index: the place to take; default: what `restore` keeps for the mountpoint, else the next one
        whose turn it is, so that one just freed comes last.
        Raises ConfigError for a path that is none, ExistsError if the place is taken or an image is
        mounted above or below it, UnsupportedError if no index is free.
        """
        names = _split(mountpoint)
        here: _PseudoDirectory | None = self._root
        for name in names:
            if here is None:
                break
            if here.mount is not None:
                raise ExistsError(
                    f"{mountpoint}: {here.path()} is a mounted image, nothing is mounted inside it"
                )
            here = here.children.get(name)
        if here is not None and here.mount is not None:
            raise ExistsError(f"{mountpoint} is mounted already")
        if here is not None and any(here.mounts_below()):
            raise ExistsError(f"{mountpoint}: images are mounted below it")
        path = "/" + b"/".join(names).decode("utf-8", "surrogateescape")
        if index is None:
            index = self._awaited.get(path) or self._free_index()
        elif not 1 <= index <= INDEX_MAX or not self._is_free(index):
            raise ExistsError(f"{mountpoint}: index {index} cannot be had")
        tree.root()  # an image without a readable root is refused before anything changes
        directory = self._make_directories(names)
        mount = _Mount(index, self._generations[index], tree)
        self._awaited.pop(path, None)
        self._next_index = index % INDEX_MAX + 1
        self._generations[index] += 1
        directory.mount = mount
        self._mounts[index] = mount
        self._by_mountpoint[path] = directory
        if self.on_attach is not None:
            self.on_attach(index)
        return index

    def detach(self, mountpoint: str) -> Tree:
        """Unmount and return the tree, which no new request reaches. Its directories stay visible.

        Reads that are under way still use it. Requests for the old index get ENOENT, for good: while
        files of it are open the index is not given to another image.
        Raises NotFoundError if nothing is mounted there.
        """
        directory = self._mounted(mountpoint)
        mount = directory.mount
        assert mount is not None
        directory.mount = None
        del self._mounts[mount.index]
        del self._by_mountpoint[directory.path()]
        if self.on_detach is not None:
            self.on_detach(mount.index)
        # From here on every release comes by us.
        opened = self._open_files[mount.index] + mount.tree.opened_natively
        self._open_files[mount.index] = max(0, opened)
        return mount.tree

    def stale(self, mountpoint: str) -> Stale:
        """Return what attaching or detaching here makes untrue in the kernel.

        Ask while the image is attached. Raises NotFoundError if nothing is.
        """
        directory = self._mounted(mountpoint)
        if directory.parent is not None:
            return Stale((), ((directory.parent.ino, directory.name),))
        mount = directory.mount
        assert mount is not None
        names = [*directory.children]
        # A root that cannot be listed: the kernel did not list it either, only looked up single names.
        with contextlib.suppress(NydusError):
            names += [entry.name for entry, _ in mount.tree.readdir(mount.tree.root_ino)]
        entries = ((ROOT_NODEID, name) for name in names if name not in (b".", b".."))
        return Stale((ROOT_NODEID,), tuple(entries))

    def mountpoints(self) -> dict[str, Tree]:
        """Return the images by mountpoint, in the order of attaching."""
        return {
            path: directory.mount.tree
            for path, directory in self._by_mountpoint.items()
            if directory.mount is not None
        }

    def index(self, mountpoint: str) -> int:
        """Return the index of the image mounted there. Raises NotFoundError."""
        mount = self._mounted(mountpoint).mount
        assert mount is not None
        return mount.index

    def export(self) -> VfsState:
        """Return what a successor needs besides the images themselves."""
        directories = [
            (one.ino, one.parent.ino, one.name.decode("utf-8", "surrogateescape"))
            for one in self._pseudo.values()
            if one.parent is not None
        ]
        generations, opened = list(self._generations), list(self._open_files)
        for index, mount in self._mounts.items():
            generations[index] = mount.generation  # the successor attaches the same image again
            opened[index] = max(0, opened[index] + mount.tree.opened_natively)
        mounts = [(path, self.index(path)) for path in self._by_mountpoint]
        return VfsState(
            directories,
            self._next_pseudo_ino,
            [*mounts, *self._awaited.items()],
            self._next_index,
            [
                (index, generations[index], opened[index])
                for index in range(1, INDEX_MAX + 1)
                if generations[index] or opened[index]
            ],
        )

    def restore(self, state: VfsState) -> None:
        """Take over a predecessor's directories, and keep the index of each of its mounts for it.

        For an empty session; `attach` all of `state.mounts` then. Raises FormatError for a state that
        contradicts itself; the session is of no use then.
        """
        for ino, parent_ino, name in state.directories:
            parent = self._pseudo.get(parent_ino)
            if (
                parent is None
                or not ROOT_NODEID < ino < state.next_directory
                or ino in self._pseudo
            ):
                raise FormatError("directory of the session", ino, f"cannot be in {parent_ino}")
            raw = name.encode("utf-8", "surrogateescape")
            parent.children[raw] = self._pseudo[ino] = _PseudoDirectory(ino, parent, raw)
        for index, generation, open_files in state.indexes:
            if not 1 <= index <= INDEX_MAX or generation < 0 or open_files < 0:
                raise FormatError("mount index", index, f"must be 1 to {INDEX_MAX}, with counts")
            self._generations[index] = generation
            self._open_files[index] = open_files
        for path, index in state.mounts:
            if not 1 <= index <= INDEX_MAX or index in self._awaited.values():
                raise FormatError(f"index of {path}", index, f"must be 1 to {INDEX_MAX}, its own")
            self._awaited[path] = index
        if not 1 <= state.next_index <= INDEX_MAX:
            raise FormatError("next index", state.next_index, f"must be 1 to {INDEX_MAX}")
        self._next_pseudo_ino = state.next_directory
        self._next_index = state.next_index

    # --- requests --------------------------------------------------------------------------------

    def lookup(self, parent: int, name: bytes) -> Entry | None:
        """Return the child of that name.

        None is an image's "no", which holds as long as the mount; a pseudo directory, where a mountpoint
        may appear, refuses with ENOENT instead.
        """
        place = self._place(parent)
        if isinstance(place, _PseudoDirectory):
            return self._pseudo_lookup(place, name)
        mount, ino = place
        attributes = mount.tree.lookup(ino, name)
        return None if attributes is None else mount.entry(attributes)

    def getattr(self, nodeid: int) -> Entry:
        """Return the object's entry."""
        place = self._place(nodeid)
        if isinstance(place, _PseudoDirectory):
            return place.entry()
        mount, ino = place
        return mount.entry(mount.tree.getattr(ino))

    def readlink(self, nodeid: int) -> bytes:
        """Return a symbolic link's target."""
        mount, ino = self._in_image(nodeid)
        return mount.tree.readlink(ino)

    def readdir(self, nodeid: int, after: int) -> Iterator[Line]:
        """Yield the entries behind cookie `after`. Errors come with the first one, or in between."""
        place = self._place(nodeid)
        if isinstance(place, _PseudoDirectory):
            children = list(place.children.values())
            for position, child in enumerate(children[after:], after + 1):
                yield child.name, position, *child.entry()
            return
        mount, directory = place
        high, generation = mount.index << INDEX_SHIFT, mount.generation
        for (name, ino, cookie), attributes in mount.tree.readdir(directory, after):
            yield name, cookie, high | ino, generation, attributes

    async def read(self, nodeid: int, offset: int, size: int) -> Buffer:
        """Return file bytes [offset, offset + size), fewer only at the end of the file.

        Cancel: as Tree.read.
        """
        mount, ino = self._in_image(nodeid)
        return await mount.tree.read(ino, offset, size)

    def read_now(self, nodeid: int, offset: int, size: int) -> Buffer | None:
        """Return file bytes as `read`, None if that means waiting."""
        mount, ino = self._in_image(nodeid)
        return mount.tree.read_now(ino, offset, size)

    def native_tree(self, index: int) -> "NativeTree | None":
        """Return the image at `index` as the relay can show it, None if it cannot or there is none."""
        mount = self._mounts.get(index)
        return None if mount is None else mount.tree.native_tree(index, mount.generation)

    def blobs(self, index: int) -> "Sequence[LazyBlob]":
        """Return the blobs of the image at `index`; none if there is no image."""
        mount = self._mounts.get(index)
        return () if mount is None else mount.tree.image.blobs

    def indexes(self) -> list[int]:
        """Return where images are."""
        return [*self._mounts]

    def native_map(self, nodeid: int) -> "tuple[NativeMap | None, ReadCounts] | None":
        """Return where the relay finds a file's bytes, None as the map if nowhere, and where it counts.

        None: the image is gone, or Python must see every read of it.
        """
        mount = self._mounts.get(nodeid >> INDEX_SHIFT)
        return None if mount is None else mount.tree.native_map(nodeid & INO_MASK)

    def getxattr(self, nodeid: int, name: bytes) -> bytes | None:
        """Return an extended attribute's value, None if there is none of that name."""
        mount, ino = self._in_image(nodeid)
        return mount.tree.getxattr(ino, name)

    def listxattr(self, nodeid: int) -> list[bytes]:
        """Return the names of the extended attributes."""
        mount, ino = self._in_image(nodeid)
        return mount.tree.listxattr(ino)

    def access(self, nodeid: int, mask: int, uid: int, gid: int) -> bool:
        """Tell whether the caller may do `mask`; pseudo directories are open to all."""
        place = self._place(nodeid)
        if isinstance(place, _PseudoDirectory):
            return True
        mount, ino = place
        return mount.tree.access(ino, mask, uid, gid)

    def statfs(self) -> Statfs:
        """Return what statfs shows for the whole session: FUSE does not say which mount is meant."""
        if self._root.mount is not None:
            return self._root.mount.tree.statfs()
        return Statfs(STATFS_BLOCK_BYTES, NAME_MAX_BYTES, 0)

    def open(self, nodeid: int) -> None:
        """Note one more open file or directory. Raises Refusal for a stale nodeid."""
        self._place(nodeid)
        self._open_files[nodeid >> INDEX_SHIFT] += 1

    def release(self, nodeid: int) -> None:
        """Note its closing. Files that a predecessor opened close here without having been counted."""
        index = nodeid >> INDEX_SHIFT
        self._open_files[index] = max(0, self._open_files[index] - 1)

    def describe(self, nodeid: int) -> str:
        """Return words for a log line: mount and inode number."""
        mount = self._mounts.get(nodeid >> INDEX_SHIFT)
        where = "none" if mount is None else mount.tree.stats.mountpoint
        return f"mount={where} ino={nodeid & INO_MASK}"

    # --- how it is found -------------------------------------------------------------------------

    def _place(self, nodeid: int) -> _PseudoDirectory | tuple[_Mount, int]:
        """Return the pseudo directory, or the mount and the image's own inode number."""
        index = nodeid >> INDEX_SHIFT
        if index:
            mount = self._mounts.get(index)
            if mount is None:
                raise Refusal(errno.ENOENT, f"nothing is mounted at index {index} any more")
            return mount, nodeid & INO_MASK
        directory = self._pseudo.get(nodeid)
        if directory is None:
            raise Refusal(errno.ENOENT, f"no pseudo directory {nodeid}")
        if directory.mount is not None:
            return directory.mount, directory.mount.tree.root_ino
        return directory

    def _in_image(self, nodeid: int) -> tuple[_Mount, int]:
        place = self._place(nodeid)
        if isinstance(place, _PseudoDirectory):
            # Not ENOSYS: one such answer would switch the operation off for the images as well.
            raise Refusal(errno.EOPNOTSUPP, f"{place.path()} is a directory that leads to mounts")
        return place

    def _pseudo_lookup(self, directory: _PseudoDirectory, name: bytes) -> Entry:
        if name == b".":
            return directory.entry()
        if name == b"..":
            return (directory.parent or directory).entry()
        child = directory.children.get(name)
        if child is None:
            raise Refusal(errno.ENOENT, f"{directory.path()} leads to no mount of that name")
        return child.entry()

    def _mounted(self, mountpoint: str) -> _PseudoDirectory:
        here: _PseudoDirectory | None = self._root
        for name in _split(mountpoint):
            here = here.children.get(name) if here is not None else None
        if here is None or here.mount is None:
            raise NotFoundError(f"nothing is mounted at {mountpoint}")
        return here

    def _make_directories(self, names: list[bytes]) -> _PseudoDirectory:
        here = self._root
        for name in names:
            child = here.children.get(name)
            if child is None:
                child = _PseudoDirectory(self._next_pseudo_ino, here, name)
                self._next_pseudo_ino += 1
                here.children[name] = self._pseudo[child.ino] = child
            here = child
        return here

    def _is_free(self, index: int) -> bool:
        return (
            index not in self._mounts
            and not self._open_files[index]
            and index not in self._awaited.values()
        )

    def _free_index(self) -> int:
        for step in range(INDEX_MAX):
            index = (self._next_index - 1 + step) % INDEX_MAX + 1
            if self._is_free(index):
                return index
        raise UnsupportedError(
            f"{INDEX_MAX} images are mounted in this session or have files open; no more fit"
        )


def _split(mountpoint: str) -> list[bytes]:
    """Return the names of an absolute path. Raises ConfigError."""
    path = mountpoint.encode("utf-8", "surrogateescape")
    names = [name for name in path.split(b"/") if name]
    if not path.startswith(b"/"):
        raise ConfigError(f"mountpoint {mountpoint!r} must be absolute")
    for name in names:
        if name in (b".", b"..") or b"\0" in name or len(name) > NAME_MAX_BYTES:
            raise ConfigError(f"mountpoint {mountpoint!r} holds a name that no directory can have")
    return names
