"""One mounted RAFS image as a file system: names, attributes, bytes, without one FUSE import.

Owns     the presentation of an image's inodes (spec fs-behaviour §7) and the mount's counters (§19).
         Not the image: who opened it closes it, after the last call here has returned.
Callers  kernel/vfs.py, in the trio thread. All but `read` are synchronous and touch no disk but the
         mapped bootstrap.
Raises   FormatError for an inode or directory whose bytes are broken (only that one is lost),
         NotFoundError for an inode number that cannot exist, Refusal for what POSIX refuses, and from
         `read` whatever the image raises.
Cancel   a cancelled `read` leaves nothing behind and is not counted.
"""

import errno
import logging
import os
import stat
import time
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Final, Protocol

from nydusd.config.model import RafsConfig
from nydusd.errors import FormatError, IntegrityError, NotFoundError, NydusError
from nydusd.kernel.attributes import Attributes, Statfs
from nydusd.kernel.errno_map import Refusal
from nydusd.kernel.stats import FsStats, Op
from nydusd.rafs.model import Bootstrap, DirEntry, Inode, SuperblockFlag
from nydusd.records import Buffer

if TYPE_CHECKING:
    from nydusd.native_relay import ReadCounts
    from nydusd.native_tree import NativeTree
    from nydusd.storage.lazy_blob import LazyBlob
    from nydusd.storage.native_map import NativeMap

log = logging.getLogger(__name__)

INO_MAX: Final = (1 << 56) - 1  # the top byte of a nodeid is the fs_index (spec fs-behaviour §4)
ROOT_PERMISSIONS: Final = 0o755
STATFS_BLOCK_BYTES: Final = 512
NAME_MAX_BYTES: Final = 255
_OFF_MAX: Final = (1 << 63) - 1
_NS_PER_S: Final = 1_000_000_000
_INODES_KEPT: Final = 256  # decoded inodes; a reader asks for the same one again and again


class FileReader(Protocol):
    """An image: its metadata and a way to the bytes of its files. storage/image.py has the real one."""

    bootstrap: Bootstrap

    async def read(self, inode: Inode, offset: int, size: int) -> Buffer:
        """Return exactly file bytes [offset, offset + size), which the caller has clipped to the file.

        Raises BackendError, IntegrityError, FormatError, UnsupportedError or ClosedError.
        """
        ...

    def read_now(self, inode: Inode, offset: int, size: int) -> Buffer | None:
        """Return the same bytes, None if they cannot be had without waiting. Raises as `read`."""
        ...

    def native_map(self, inode: Inode) -> "NativeMap | None":
        """Return where the relay finds the file's bytes; None: only `read` does."""
        ...

    @property
    def blobs(self) -> "Sequence[LazyBlob]":
        """The blobs in blob table order. Asked for where the relay shows the tree."""
        ...


class Tree:
    """The file system model of one image. Inodes are named by the image's own numbers."""

    def __init__(
        self,
        image: FileReader,
        config: RafsConfig,
        mountpoint: str = "/",
        *,
        mounted_at_s: int | None = None,
    ) -> None:
        """`mountpoint` is the place inside the session; `mounted_at_s` (epoch, default now) stands in for
        times that the image does not record.
        """
        superblock = image.bootstrap.superblock
        self.image = image
        self.root_ino = image.bootstrap.root_ino
        if not 0 <= self.root_ino <= INO_MAX:
            raise FormatError("root inode", self.root_ino, "must be below 2^56")
        self.stats = FsStats(
            mountpoint,
            files_enabled=config.iostats_files,
            pattern_enabled=config.access_pattern,
            latest_enabled=config.latest_read_files,
        )
        self.xattr_enabled = config.enable_xattr or SuperblockFlag.HAS_XATTR in superblock.flags
        self._explicit_ids = SuperblockFlag.EXPLICIT_UID_GID in superblock.flags
        self._euid, self._egid = os.geteuid(), os.getegid()
        self._mounted_at_ns = _NS_PER_S * (
            int(time.time()) if mounted_at_s is None else mounted_at_s
        )
        self._native: NativeTree | None = None  # from native_tree on
        self._opened_before = 0  # natively, of trees before that
        # lru_cache keeps no exceptions: a broken inode is looked at anew each time.
        self._inode = lru_cache(_INODES_KEPT)(image.bootstrap.inode)

    def lookup(self, parent: int, name: bytes) -> Attributes | None:
        """Return the child of that name, None if there is none (a hit all the same, spec §19)."""
        try:
            inode = self.image.bootstrap.lookup(self._directory(parent), name)
            found = None if inode is None else self.present(inode)
        except NydusError:
            self.stats.count(Op.LOOKUP, parent, failed=True)
            raise
        self.stats.count(Op.LOOKUP, parent)
        return found

    def getattr(self, ino: int) -> Attributes:
        """Return an inode's attributes."""
        try:
            found = self.present(self._inode(ino))
        except NydusError:
            self.stats.count(Op.GETATTR, ino, failed=True)
            raise
        self.stats.count(Op.GETATTR, ino)
        return found

    def root(self) -> Attributes:
        """Return the root's attributes, uncounted: for whoever shows this tree inside another one."""
        return self.present(self._inode(self.root_ino))

    def readlink(self, ino: int) -> bytes:
        """Return a symbolic link's target."""
        try:
            inode = self._inode(ino)
            if not stat.S_ISLNK(inode.mode):
                raise Refusal(errno.EINVAL, f"inode {ino} is no symbolic link")
            target = self.image.bootstrap.readlink(inode)
        except NydusError:
            self.stats.count(Op.READLINK, ino, failed=True)
            raise
        self.stats.count(Op.READLINK, ino)
        return target

    def readdir(self, ino: int, after: int = 0) -> Iterator[tuple[DirEntry, Attributes | None]]:
        """Yield a directory's entries behind cookie `after`, with their attributes.

        None stands for attributes that are not known: of `.` and `..`, which the kernel knows itself,
        and of an inode whose record is broken, so that only that one is lost. A name that no path can
        hold is left out. Counts one operation when the first entry is asked for.
        """
        try:
            entries = self.image.bootstrap.entries(self._directory(ino), after)
        except NydusError:
            self.stats.count(Op.READDIRPLUS, ino, failed=True)
            raise
        self.stats.count(Op.READDIRPLUS, ino)
        for entry in entries:
            name, child, _ = entry
            if name == b"." or name == b"..":
                yield entry, None
            elif _impossible(name) or not 0 <= child <= INO_MAX:
                log.debug("entry left out: directory=%s name=%r ino=%s", ino, name, child)
            else:
                yield entry, self._present_or_none(child)

    def read_now(self, ino: int, offset: int, size: int) -> Buffer | None:
        """Return what `read` would, if it need not wait, and None, uncounted, if it must."""
        inode = self._readable(ino, offset, size)
        started_s = time.monotonic()
        wanted = min(size, inode.size - offset)
        if wanted <= 0:
            self.stats.count_read(ino, 0, started_s)
            return b""
        try:
            content = self.image.read_now(inode, offset, wanted)
        except NydusError as exc:
            raise self._failed(ino, started_s, exc) from exc
        if content is None:
            return None
        return self._counted(ino, content, wanted, offset, started_s)

    async def read(self, ino: int, offset: int, size: int) -> Buffer:
        """Return file bytes [offset, offset + size), fewer only at the end of the file. No copy here."""
        inode = self._readable(ino, offset, size)
        started_s = time.monotonic()
        wanted = min(size, inode.size - offset)
        if wanted <= 0:
            self.stats.count_read(ino, 0, started_s)
            return b""
        try:
            content = await self.image.read(inode, offset, wanted)
        except NydusError as exc:
            raise self._failed(ino, started_s, exc) from exc
        return self._counted(ino, content, wanted, offset, started_s)

    def _readable(self, ino: int, offset: int, size: int) -> Inode:
        """Return the inode of a regular file. What is refused here is not counted (spec fs-behaviour §19)."""
        inode = self._inode(ino)
        if not stat.S_ISREG(inode.mode):
            is_directory = stat.S_ISDIR(inode.mode)
            raise Refusal(
                errno.EISDIR if is_directory else errno.EINVAL, f"inode {ino} is no regular file"
            )
        if offset < 0 or size < 0:
            raise Refusal(errno.EINVAL, f"read of {size} bytes at {offset}")
        return inode

    def _counted(
        self, ino: int, content: Buffer, wanted: int, offset: int, started_s: float
    ) -> Buffer:
        if len(content) != wanted:
            self.stats.count_read(ino, 0, started_s, failed=True)
            raise IntegrityError(
                f"inode {ino}: {len(content)} of {wanted} bytes at offset {offset}"
            )
        self.stats.count_read(ino, wanted, started_s)
        return content

    def _failed(self, ino: int, started_s: float, exc: NydusError) -> NydusError:
        self.stats.count_read(ino, 0, started_s, failed=True)
        if isinstance(exc, NotFoundError):
            # A missing blob is a fault behind the file; ENOENT would deny the file itself.
            return NydusError(str(exc))
        return exc

    def native_tree(self, index: int, generation: int) -> "NativeTree | None":
        """Return the tree as the relay can show it, at a place of the session; None: only Python can.

        What it counts, counts here, too. Not where operations are counted per file.
        """
        if self.stats.counts_per_file:
            return None
        mapped = self.image.bootstrap.mapped_tree()
        if mapped is None:
            return None
        from nydusd.native_tree import NativeTree  # not for those whose trees are not shown by us

        native = NativeTree(
            mapped,
            index=index,
            generation=generation,
            mounted_at_s=self._mounted_at_ns // _NS_PER_S,
            owner=None if self._explicit_ids else (self._euid, self._egid),
            reads=self.stats.native_reads().buffer,
        )
        self.stats.add_names(native)
        self._opened_before = self.opened_natively
        self._native = native
        return native

    @property
    def opened_natively(self) -> int:
        """Files and directories that were opened without a call here, less those released so."""
        return self._opened_before + (0 if self._native is None else self._native.counts.open)

    def native_map(self, ino: int) -> "tuple[NativeMap | None, ReadCounts] | None":
        """Return where the relay finds the file's bytes and counts its reads.

        None: reads are counted per file here, which only Python does.
        """
        if self.stats.counts_per_file:
            return None
        return self.image.native_map(self._inode(ino)), self.stats.native_reads()

    def getxattr(self, ino: int, name: bytes) -> bytes | None:
        """Return an extended attribute's value, None if there is no such name (a hit, spec §19)."""
        return self._xattrs(ino, Op.GETXATTR).get(name)

    def listxattr(self, ino: int) -> list[bytes]:
        """Return the names of an inode's extended attributes, unfiltered but for impossible ones."""
        return [name for name in self._xattrs(ino, Op.LISTXATTR) if name and b"\0" not in name]

    def access(self, ino: int, mask: int, uid: int, gid: int) -> bool:
        """Tell whether `uid` and its primary `gid` may do `mask` (R_OK, W_OK, X_OK), by mode bits alone.

        The kernel mounts with default_permissions and hardly ever asks (spec fs-behaviour §11).
        """
        try:
            allowed = _permits(self.present(self._inode(ino)), mask, uid, gid)
        except NydusError:
            self.stats.count(Op.ACCESS, ino, failed=True)
            raise
        self.stats.count(Op.ACCESS, ino, failed=not allowed)
        return allowed

    def statfs(self) -> Statfs:
        """Return what statfs shows."""
        files = self.image.bootstrap.superblock.inode_count
        return Statfs(STATFS_BLOCK_BYTES, NAME_MAX_BYTES, files)

    def present(self, inode: Inode) -> Attributes:
        """Return what stat shows of an inode (spec fs-behaviour §7). Raises FormatError.

        The root is 0755 wherever it appears; the reference shows so only in some places.
        """
        ino, mode, nlink, uid, gid, rdev, size, blocks, mtime_s, mtime_ns, _ = inode
        if not 0 <= ino <= INO_MAX:
            raise FormatError("inode number", ino, "must be below 2^56")
        if not 0 <= size <= _OFF_MAX or not 0 <= blocks <= _OFF_MAX:
            raise FormatError(
                f"inode {ino}", f"{size} bytes in {blocks} blocks", "must be below 2^63"
            )
        if ino == self.root_ino:
            mode = stat.S_IFMT(mode) | ROOT_PERMISSIONS
        if not self._explicit_ids:
            uid, gid = self._euid, self._egid
        if mtime_s == 0 and mtime_ns == 0:
            written_ns = others_ns = self._mounted_at_ns
        else:
            if mtime_s > _OFF_MAX:  # stored as u64, meant as time_t: a time before 1970
                mtime_s -= 1 << 64
            written_ns = mtime_s * _NS_PER_S + min(mtime_ns, _NS_PER_S - 1)
            others_ns = 0
        # fmt: off
        return Attributes(
            ino, mode, nlink, uid, gid, rdev, size, blocks, others_ns, written_ns, others_ns
        )
        # fmt: on

    def _directory(self, ino: int) -> Inode:
        inode = self._inode(ino)
        if not stat.S_ISDIR(inode.mode):
            raise Refusal(errno.ENOTDIR, f"inode {ino} is no directory")
        return inode

    def _present_or_none(self, ino: int) -> Attributes | None:
        try:
            # Past the cache: a listing asks once for many and would push out what readers need.
            return self.present(self.image.bootstrap.inode(ino))
        except NydusError as exc:
            log.debug("attributes unknown: ino=%s %s", ino, exc)
            return None

    def _xattrs(self, ino: int, op: Op) -> dict[bytes, bytes]:
        try:
            if not self.xattr_enabled:
                raise Refusal(errno.EOPNOTSUPP, "extended attributes are off for this mount")
            found = self.image.bootstrap.xattrs(self._inode(ino))
        except NydusError:
            self.stats.count(op, ino, failed=True)
            raise
        self.stats.count(op, ino)
        return found


def _impossible(name: bytes) -> bool:
    """Whether a path cannot hold this name; the kernel would refuse the whole listing for one such."""
    return not 0 < len(name) <= NAME_MAX_BYTES or b"/" in name or b"\0" in name


def _permits(attributes: Attributes, mask: int, uid: int, gid: int) -> bool:
    """Judge by mode bits alone, without supplementary groups."""
    mode = attributes.mode
    if uid == 0:
        return not mask & os.X_OK or bool(mode & 0o111)
    if uid == attributes.uid:
        granted = mode >> 6
    elif gid == attributes.gid:
        granted = mode >> 3
    else:
        granted = mode
    return mask & granted & 0o7 == mask & 0o7
