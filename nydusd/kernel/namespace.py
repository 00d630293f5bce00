"""The tree frontend: a `Vfs` as the server's file system. Find, call, pack; no file system logic here.

Owns     the registration of files and trees with the relay.
Callers  kernel/server.py, in the trio thread.
Raises   Refusal, and what Vfs and Tree raise.

The kernel may keep names, attributes and pages for ever: an image does not change, and where the mount
table does, kernel/vfs.py says what to invalidate. A file handle is the nodeid, so that a successor knows
the files its predecessor opened.

Names and attributes of v6 images the relay shows by itself (native/tree_v6.h), and their files as far as
bytes are ready, once the first read has loaded the blob's records; it tells Python of what it has counted.
Of other images it answers for files whose first read did not cover all of them, each told to it by itself.
Neither where operations are counted per file: the relay does not know how.
"""

import errno
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from nydusd.errors import NydusError
from nydusd.kernel import wire
from nydusd.kernel.errno_map import Refusal
from nydusd.kernel.server import unserved
from nydusd.kernel.vfs import INDEX_SHIFT, Vfs
from nydusd.kernel.wire import Opcode, OpenFlag, Request
from nydusd.records import Buffer

if TYPE_CHECKING:
    from nydusd.kernel.native_files import NativeFiles
    from nydusd.kernel.native_window import NativeWindow
    from nydusd.native_relay import Relay

_KEEP_FILE: Final = int(OpenFlag.KEEP_CACHE)
_KEEP_LISTING: Final = OpenFlag.KEEP_CACHE | OpenFlag.CACHE_DIR


class Namespace:
    """Serves a `Vfs`."""

    def __init__(self, vfs: Vfs) -> None:
        """`vfs` may gain and lose mounts at any time."""
        self._vfs = vfs
        self._native: NativeFiles | None = None  # from attach_relay on
        self._window: NativeWindow | None = None
        vfs.on_attach = self._show_image
        vfs.on_detach = self._forget_image
        self._operations: dict[int, Callable[[Request], Buffer | None]] = {
            Opcode.LOOKUP: self._lookup,
            Opcode.GETATTR: self._getattr,
            Opcode.READLINK: self._readlink,
            Opcode.OPENDIR: self._opendir,
            Opcode.READDIR: self._readdir,
            Opcode.READDIRPLUS: self._readdir,
            Opcode.RELEASEDIR: self._release,
            Opcode.OPEN: self._open,
            Opcode.RELEASE: self._release,
            Opcode.GETXATTR: self._getxattr,
            Opcode.LISTXATTR: self._listxattr,
            Opcode.ACCESS: self._access,
            Opcode.STATFS: self._statfs,
            # Nodeids come from the image, nothing is counted (spec fs-behaviour §6).
            Opcode.FORGET: _nothing,
            Opcode.BATCH_FORGET: _nothing,
        }

    def describe(self, nodeid: int) -> str:
        """Mount and inode number."""
        return self._vfs.describe(nodeid)

    def answer(self, request: Request) -> Buffer | None:
        """Return the reply's payload."""
        operation = self._operations.get(request.opcode)
        if operation is None:
            raise unserved(request)
        return operation(request)

    # ---- names and attributes -----------------------------------------------------------------

    def _lookup(self, request: Request) -> bytes:
        entry = self._vfs.lookup(request.nodeid, wire.name(request))
        return wire.NO_ENTRY if entry is None else wire.entry_out(*entry)

    def _getattr(self, request: Request) -> bytes:
        nodeid, _, attributes = self._vfs.getattr(request.nodeid)
        return wire.attr_out(nodeid, attributes)

    def _readlink(self, request: Request) -> bytes:
        return self._vfs.readlink(request.nodeid)

    def _getxattr(self, request: Request) -> bytes:
        value = self._vfs.getxattr(request.nodeid, wire.xattr_name(request))
        if value is None:
            raise Refusal(errno.ENODATA, "no such attribute")
        return _fitting(value, request)

    def _listxattr(self, request: Request) -> bytes:
        names = self._vfs.listxattr(request.nodeid)
        return _fitting(b"".join(name + b"\0" for name in names), request)

    def _access(self, request: Request) -> bytes:
        mask = wire.access_mask(request)
        if not self._vfs.access(request.nodeid, mask, request.uid, request.gid):
            raise Refusal(errno.EACCES, "not by mode bits")
        return b""

    def _statfs(self, _request: Request) -> bytes:
        return wire.statfs_out(self._vfs.statfs())

    # ---- directories --------------------------------------------------------------------------

    def _opendir(self, request: Request) -> bytes:
        nodeid = request.nodeid
        self._vfs.open(nodeid)
        # Of pseudo directories, the session's root among them, nothing is kept: mounts come and go.
        return wire.open_out(nodeid, _KEEP_LISTING if nodeid >> INDEX_SHIFT else 0)

    def _readdir(self, request: Request) -> Buffer:
        """Fill the reply with names, and with attributes if they are wanted.

        A fault in the middle ends this reply only: the kernel asks on from there, and gets the error.
        """
        _, after, size = wire.span(request)
        listing = wire.Listing(size, plus=request.opcode == Opcode.READDIRPLUS)
        told = False
        try:
            for line in self._vfs.readdir(request.nodeid, after):
                if not listing.add(*line):
                    break
                told = True
        except NydusError:
            if not told:
                raise
        return listing.payload

    # ---- files --------------------------------------------------------------------------------

    def _open(self, request: Request) -> bytes:
        """Open without a look at the flags: the kernel knows that the mount is read-only."""
        self._vfs.open(request.nodeid)
        return wire.open_out(request.nodeid, _KEEP_FILE)

    def _release(self, request: Request) -> bytes:
        self._vfs.release(request.nodeid)
        return b""

    def read_now(self, nodeid: int, _fh: int, offset: int, size: int) -> Buffer | None:
        """Return file bytes if the page cache has them."""
        content = self._vfs.read_now(nodeid, offset, size)
        if content is not None:
            self._offer(nodeid, offset, size, len(content))
        return content

    async def read(self, nodeid: int, _fh: int, offset: int, size: int) -> Buffer | None:
        """Return file bytes.

        Cancel: as Vfs.read.
        """
        content = await self._vfs.read(nodeid, offset, size)
        self._offer(nodeid, offset, size, len(content))
        return content

    # ---- files that the relay answers for -----------------------------------------------------

    def attach_relay(self, relay: "Relay") -> None:
        """Register files with this relay from now on."""
        from nydusd.kernel.native_files import NativeFiles
        from nydusd.kernel.native_window import NativeWindow

        self._native = NativeFiles(relay)
        self._window = NativeWindow(self._native)
        for index in self._vfs.indexes():
            self._show_image(index)

    def close(self) -> None:
        """Take everything back from the relay, before it is closed."""
        if self._native is not None:
            self._native.close()
            self._native = self._window = None

    def touched(self, source: int, chunk: int) -> None:
        """Pass it on to the blob."""
        if self._native is not None:
            self._native.touched(source, chunk)

    def _offer(self, nodeid: int, offset: int, size: int, got: int) -> None:
        """Have the relay answer next time: for the image's files, if it shows the tree, or for this one.

        For one only if it was read in part: more of it will be. A whole small one is in the kernel now.
        """
        window = self._window
        if self._native is None or window is None:
            return
        index = nodeid >> INDEX_SHIFT
        if self._native.shows(index):
            self._native.add_blobs(index, self._vfs.blobs(index))
            return
        if (offset == 0 and got < size) or nodeid in window:
            return
        found = self._vfs.native_map(nodeid)
        if found is not None:
            window.add(nodeid, *found)

    def _show_image(self, index: int) -> None:
        """Have the relay answer for names and attributes of an image, if it can."""
        if self._native is None:
            return
        tree = self._vfs.native_tree(index)
        if tree is not None:
            self._native.add_tree(tree)

    def _forget_image(self, index: int) -> None:
        if self._native is not None:
            self._native.drop_tree(index)
        if self._window is not None:
            self._window.drop_where(lambda nodeid: nodeid >> INDEX_SHIFT == index)


def _fitting(value: bytes, request: Request) -> bytes:
    """Return the value, or its length if only that is wanted."""
    payload = wire.xattr_out(value, wire.xattr_size(request))
    if payload is None:
        raise Refusal(errno.ERANGE, "the caller's buffer is too small")
    return payload


def _nothing(_request: Request) -> None:
    """Give no reply: none is due."""
