"""The tree frontend: pyfuse3's operations on a `Vfs`. Find, call, translate; no file system logic here.

Owns     nothing but the translation into pyfuse3's types.
Callers  pyfuse3, in the trio thread.
Raises   FUSEError, see kernel/operations.py.

The kernel may keep names and attributes for ever: an image does not change, and where the mount table
does, kernel/vfs.py says what to invalidate. A file handle is the nodeid, so that a successor knows the
files its predecessor opened. What is not here is answered ENOSYS by pyfuse3, which the kernel remembers:
right for FLUSH, FSYNC, LSEEK and all that writes, which a read-only mount never asks for anyway.
"""

import errno
from collections.abc import Sequence
from typing import Final, cast

import pyfuse3

from nydusd.errors import NydusError
from nydusd.kernel.operations import OPCODE_READ, GuardedOperations, answered
from nydusd.kernel.vfs import ROOT_NODEID, Entry, Vfs

# Seconds; spec fs-behaviour §5. Not just speed: a crashed daemon's mountpoint can be stat'ed only from the
# kernel's cache (spec api §8.3).
FOR_EVER_S: Final = float(1 << 32)


class Namespace(GuardedOperations):
    """Serves a `Vfs`."""

    def __init__(self, vfs: Vfs) -> None:
        """`vfs` may gain and lose mounts at any time."""
        super().__init__()
        self._vfs = vfs
        self._no_such_name = pyfuse3.EntryAttributes()  # nodeid 0: "no", to be remembered
        self._no_such_name.entry_timeout = FOR_EVER_S

    def describe(self, nodeid: int) -> str:
        """Mount and inode number."""
        return self._vfs.describe(nodeid)

    @answered
    async def lookup(
        self, parent_inode: int, name: bytes, _ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        """Return the entry of that name, or the negative entry."""
        entry = self._vfs.lookup(parent_inode, name)
        return self._no_such_name if entry is None else _attributes(entry)

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        """Do nothing: nodeids come from the image, nothing is counted (spec fs-behaviour §6)."""

    @answered
    async def getattr(self, inode: int, _ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        """Return the attributes."""
        return _attributes(self._vfs.getattr(inode))

    @answered
    async def readlink(self, inode: int, _ctx: pyfuse3.RequestContext) -> bytes:
        """Return the target."""
        return self._vfs.readlink(inode)

    @answered
    async def opendir(self, inode: int, _ctx: pyfuse3.RequestContext) -> int:
        """Return the nodeid as the handle."""
        self._vfs.open(inode)
        return inode

    @answered
    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        """Fill the reply with entries and their attributes.

        A fault in the middle ends this reply only: the kernel asks on from there, and gets the error.
        """
        told = False
        try:
            for name, cookie, entry in self._vfs.readdir(fh, start_id):
                if not pyfuse3.readdir_reply(token, name, _attributes(entry), cookie):
                    return
                told = True
        except NydusError:
            if not told:
                raise

    @answered
    async def releasedir(self, fh: int) -> None:
        """Forget the handle."""
        self._vfs.release(fh)

    @answered
    async def open(
        self,
        inode: int,
        _flags: int,  # not inspected: the kernel knows that the mount is read-only
        _ctx: pyfuse3.RequestContext,
    ) -> pyfuse3.FileInfo:
        """Return the nodeid as the handle; pages in the kernel stay valid from one open to the next."""
        self._vfs.open(inode)
        return pyfuse3.FileInfo(fh=inode, keep_cache=True)

    @answered
    async def read(self, fh: int, off: int, size: int) -> bytes:
        """Return file bytes."""
        answer = await self.patient(OPCODE_READ, fh, self._vfs.read(fh, off, size))
        return cast(bytes, answer)  # any buffer will do for pyfuse3, whatever its type hints say

    @answered
    async def release(self, fh: int) -> None:
        """Forget the handle."""
        self._vfs.release(fh)

    @answered
    async def getxattr(self, inode: int, name: bytes, _ctx: pyfuse3.RequestContext) -> bytes:
        """Return the value."""
        value = self._vfs.getxattr(inode, name)
        if value is None:
            raise pyfuse3.FUSEError(errno.ENODATA)
        return value

    @answered
    async def listxattr(self, inode: int, _ctx: pyfuse3.RequestContext) -> Sequence[bytes]:
        """Return the names."""
        return self._vfs.listxattr(inode)

    @answered
    async def access(self, inode: int, mode: int, ctx: pyfuse3.RequestContext) -> bool:
        """Tell whether the caller may; False is EACCES."""
        return self._vfs.access(inode, mode, ctx.uid, ctx.gid)

    async def statfs(self, _ctx: pyfuse3.RequestContext) -> pyfuse3.StatvfsData:
        """Return what `df -i` shows; pyfuse3 does not say which object was asked."""
        return await self._statfs(ROOT_NODEID)

    @answered
    async def _statfs(self, _nodeid: int) -> pyfuse3.StatvfsData:
        """Return block size, longest name and number of files; everything else is 0."""
        shown = self._vfs.statfs()
        reply = pyfuse3.StatvfsData()
        reply.f_bsize = shown.block_bytes
        reply.f_namemax = shown.name_max_bytes
        reply.f_files = shown.files
        return reply


def _attributes(entry: Entry) -> pyfuse3.EntryAttributes:
    """Return pyfuse3's form of an entry.

    Without attributes it has no file type: the kernel then lists the name but keeps nothing of it, and a
    later stat asks again.
    """
    reply = pyfuse3.EntryAttributes()
    reply.st_ino = entry.nodeid
    reply.generation = entry.generation
    shown = entry.attributes
    if shown is None:
        reply.st_mode = 0
        return reply
    reply.entry_timeout = reply.attr_timeout = FOR_EVER_S
    reply.st_mode = shown.mode
    reply.st_nlink = shown.nlink
    reply.st_uid = shown.uid
    reply.st_gid = shown.gid
    reply.st_rdev = shown.rdev
    reply.st_size = shown.size
    reply.st_blocks = shown.blocks
    reply.st_mtime_ns = shown.mtime_ns
    if shown.atime_ns:
        reply.st_atime_ns = shown.atime_ns
    if shown.ctime_ns:
        reply.st_ctime_ns = shown.ctime_ns
    return reply
