"""The FUSE protocol as bytes: requests parsed, replies packed (linux/fuse.h, 7.23 and later). Pure.

Owns     nothing: buffers in, values out; values in, bytes out.
Callers  kernel/server.py and the file systems that it serves.
Raises   FormatError for a request that is shorter than its kind must be, or whose length field lies.

Numbers are in the machine's byte order: the kernel is on the same machine. Every record is used whole, so
its layout is one `struct.Struct`; the field order stands beside it. A request's body begins behind its
header, at HEADER_BYTES of `Request.message`; nothing is copied out of it but names.
"""

import struct
from enum import IntEnum
from typing import Final, NamedTuple

from nydusd.errors import FormatError
from nydusd.kernel.attributes import Attributes, Statfs

ROOT_NODEID: Final = 1
NAME_MAX_BYTES: Final = 1024  # FUSE_NAME_MAX: the kernel refuses a listing with a longer one
BLOCK_BYTES: Final = 4096  # st_blksize of everything
LISTING_MAX_BYTES: Final = 1 << 20  # whatever there is room for; the kernel asks on


class Opcode(IntEnum):
    """What a request asks for: those that a read-only server is asked, and those that it must know of."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    READLINK = 5
    SYMLINK = 6
    MKNOD = 8
    MKDIR = 9
    UNLINK = 10
    RMDIR = 11
    RENAME = 12
    LINK = 13
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    FSYNC = 20
    SETXATTR = 21
    GETXATTR = 22
    LISTXATTR = 23
    REMOVEXATTR = 24
    FLUSH = 25
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    FSYNCDIR = 30
    GETLK = 31
    SETLK = 32
    SETLKW = 33
    ACCESS = 34
    CREATE = 35
    INTERRUPT = 36
    BMAP = 37
    DESTROY = 38
    IOCTL = 39
    POLL = 40
    BATCH_FORGET = 42
    FALLOCATE = 43
    READDIRPLUS = 44
    RENAME2 = 45
    LSEEK = 46
    COPY_FILE_RANGE = 47
    TMPFILE = 51
    STATX = 52


class OpenFlag(IntEnum):
    """FOPEN_*: what the kernel may keep of an object that is being opened."""

    KEEP_CACHE = 1 << 1  # pages of earlier opens
    CACHE_DIR = 1 << 3  # the listing, for whoever lists again


RESENT: Final = (
    1 << 63
)  # in `unique`: a predecessor had read this request; the reply must carry it too

# ---- requests -----------------------------------------------------------------------------------

# struct fuse_in_header: len, opcode, unique, nodeid, uid, gid, pid, total_extlen, padding
_IN_HEADER: Final = struct.Struct("=IIQQIIIHH")
HEADER_BYTES: Final = _IN_HEADER.size


class Request(NamedTuple):
    """One request, its header taken apart."""

    opcode: int
    unique: int
    nodeid: int
    uid: int
    gid: int
    pid: int  # the thread that asks, as numbered where the session was mounted; 0: not visible from there
    message: bytes  # header included


class Span(NamedTuple):
    """READ, READDIR and READDIRPLUS: what part of an open object. `offset` of a listing is a cookie."""

    fh: int
    offset: int
    size: int


_SPAN: Final = struct.Struct("=QQI")  # the start of struct fuse_read_in: fh, offset, size
_SPAN_BODY_BYTES: Final = 24  # all of it as before 7.9: … read_flags
_U32: Final = struct.Struct("=I")
_U64: Final = struct.Struct("=Q")
_XATTR_NAME_AT: Final = HEADER_BYTES + 8  # behind struct fuse_getxattr_in: size, padding


def parse(message: bytes) -> Request:
    """Return a request whose length is what its header says. Its opcode may be any number."""
    if len(message) < HEADER_BYTES:
        raise FormatError(
            "FUSE request", f"{len(message)} bytes", f"must be {HEADER_BYTES} or more"
        )
    length, opcode, unique, nodeid, uid, gid, pid, _, _ = _IN_HEADER.unpack_from(message)
    if length != len(message):
        raise FormatError("FUSE request", f"{len(message)} bytes", f"must be {length}, it says")
    return Request(opcode, unique, nodeid, uid, gid, pid, message)


def span(request: Request) -> Span:
    """Return what part READ, READDIR or READDIRPLUS asks for."""
    if len(request.message) < HEADER_BYTES + _SPAN_BODY_BYTES:
        raise _short(request, _SPAN_BODY_BYTES)
    return Span._make(_SPAN.unpack_from(request.message, HEADER_BYTES))


def name(request: Request) -> bytes:
    """Return the name that LOOKUP asks for."""
    return _text(request, HEADER_BYTES)


def xattr_name(request: Request) -> bytes:
    """Return the name that GETXATTR asks for."""
    return _text(request, _XATTR_NAME_AT)


def xattr_size(request: Request) -> int:
    """Return how many bytes GETXATTR or LISTXATTR has room for; 0 asks for the length only."""
    return _number(request, _U32)


def access_mask(request: Request) -> int:
    """Return what ACCESS asks for: R_OK, W_OK, X_OK."""
    return _number(request, _U32)


def handle(request: Request) -> int:
    """Return the file handle of RELEASE or RELEASEDIR."""
    return _number(request, _U64)


def interrupted(request: Request) -> int:
    """Return the `unique` of the request that INTERRUPT speaks of."""
    return _number(request, _U64)


def _number(request: Request, record: struct.Struct) -> int:
    """Return the number that the body begins with."""
    if len(request.message) < HEADER_BYTES + record.size:
        raise _short(request, record.size)
    number: int = record.unpack_from(request.message, HEADER_BYTES)[0]
    return number


def _text(request: Request, at: int) -> bytes:
    """Return the NUL-terminated bytes at `at`."""
    text, end, _ = request.message[at:].partition(b"\0")
    if not text or not end:
        raise FormatError(
            f"name in {title(request.opcode)}", text[:80], "must be one or more bytes and NUL"
        )
    return text


def _short(request: Request, body_bytes: int) -> FormatError:
    given = len(request.message) - HEADER_BYTES
    return FormatError(title(request.opcode), f"{given} bytes", f"must be {body_bytes} or more")


def title(opcode: int) -> str:
    """Return an opcode's name for a log line."""
    try:
        return Opcode(opcode).name
    except ValueError:
        return f"opcode {opcode}"


# ---- replies ------------------------------------------------------------------------------------

_OUT_HEADER: Final = struct.Struct("=IiQ")  # struct fuse_out_header: len, error, unique
OUT_HEADER_BYTES: Final = _OUT_HEADER.size

# Seconds; spec fs-behaviour §5. Not just speed: a crashed daemon's mountpoint can be stat'ed only from the
# kernel's cache (spec api §8.3).
FOR_EVER_S: Final = 1 << 32

# struct fuse_attr: ino, size, blocks, atime, mtime, ctime, atimensec, mtimensec, ctimensec, mode, nlink, uid,
# gid, rdev, blksize, flags. Seconds are signed: the kernel takes them as time64_t.
_ATTR: Final = "QQQqqqIIIIIIIIII"
# struct fuse_entry_out: nodeid, generation, entry_valid, attr_valid, entry_valid_nsec, attr_valid_nsec, attr
_ENTRY: Final = "QQQQII" + _ATTR
_ENTRY_OUT: Final = struct.Struct("=" + _ENTRY)
# struct fuse_attr_out: attr_valid, attr_valid_nsec, dummy, attr
_ATTR_OUT: Final = struct.Struct("=QII" + _ATTR)
# struct fuse_dirent: ino, off, namelen, type; the name follows, padded to 8 bytes
_DIRENT: Final = struct.Struct("=QQII")
_DIRENTPLUS: Final = struct.Struct("=" + _ENTRY + "QQII")
_OPEN_OUT: Final = struct.Struct("=QII")  # fh, open_flags, padding
# struct fuse_kstatfs: blocks, bfree, bavail, files, ffree, bsize, namelen, frsize, padding, spare
_STATFS_OUT: Final = struct.Struct("=QQQQQIII28x")
_GETXATTR_OUT: Final = struct.Struct("=II")  # size, padding

_NS_PER_S: Final = 1_000_000_000

# "No such name", to be remembered: a negative entry has nodeid 0.
NO_ENTRY: Final = _ENTRY_OUT.pack(0, 0, FOR_EVER_S, 0, 0, 0, *(0,) * 16)


def reply_header(unique: int, payload_bytes: int) -> bytes:
    """Return the header of a reply with a payload of this length."""
    return _OUT_HEADER.pack(OUT_HEADER_BYTES + payload_bytes, 0, unique)


def refusal(unique: int, number: int) -> bytes:
    """Return a whole reply that says errno `number`."""
    return _OUT_HEADER.pack(OUT_HEADER_BYTES, -number, unique)


def entry_out(nodeid: int, generation: int, attributes: Attributes) -> bytes:
    """Return the payload of LOOKUP: what the kernel is to know for ever of `nodeid`."""
    _, mode, nlink, uid, gid, rdev, size, blocks, atime_ns, mtime_ns, ctime_ns = attributes
    # fmt: off
    return _ENTRY_OUT.pack(
        nodeid, generation, FOR_EVER_S, FOR_EVER_S, 0, 0,
        nodeid, size, blocks, atime_ns // _NS_PER_S, mtime_ns // _NS_PER_S, ctime_ns // _NS_PER_S,
        atime_ns % _NS_PER_S, mtime_ns % _NS_PER_S, ctime_ns % _NS_PER_S,
        mode, nlink, uid, gid, rdev, BLOCK_BYTES, 0,
    )
    # fmt: on


def attr_out(nodeid: int, attributes: Attributes) -> bytes:
    """Return the payload of GETATTR."""
    _, mode, nlink, uid, gid, rdev, size, blocks, atime_ns, mtime_ns, ctime_ns = attributes
    # fmt: off
    return _ATTR_OUT.pack(
        FOR_EVER_S, 0, 0,
        nodeid, size, blocks, atime_ns // _NS_PER_S, mtime_ns // _NS_PER_S, ctime_ns // _NS_PER_S,
        atime_ns % _NS_PER_S, mtime_ns % _NS_PER_S, ctime_ns % _NS_PER_S,
        mode, nlink, uid, gid, rdev, BLOCK_BYTES, 0,
    )
    # fmt: on


def open_out(fh: int, flags: int = 0) -> bytes:
    """Return the payload of OPEN and OPENDIR; `flags` are `OpenFlag`s."""
    return _OPEN_OUT.pack(fh, flags, 0)


def statfs_out(shown: Statfs) -> bytes:
    """Return the payload of STATFS."""
    return _STATFS_OUT.pack(0, 0, 0, shown.files, 0, shown.block_bytes, shown.name_max_bytes, 0)


def xattr_out(value: bytes, room: int) -> bytes | None:
    """Return the payload of GETXATTR or LISTXATTR: the length if `room` is 0, None if it is too small."""
    if room == 0:
        return _GETXATTR_OUT.pack(len(value), 0)
    return value if len(value) <= room else None


class Listing:
    """The payload of READDIR or READDIRPLUS as it fills up: never longer than the kernel has room for."""

    __slots__ = ("_end", "_plus", "_room", "_size")

    def __init__(self, size: int, *, plus: bool) -> None:
        """`plus`: each name comes with all that LOOKUP would tell of it."""
        self._size = min(size, LISTING_MAX_BYTES)
        self._room = bytearray(self._size)
        self._end = 0
        self._plus = plus

    def add(
        self, line: bytes, cookie: int, nodeid: int, generation: int, attributes: Attributes | None
    ) -> bool:
        """Add a name, or tell by False that it does not fit and is not added.

        cookie: position behind this name. attributes: None if only the number is known; the kernel then
        lists the name, keeps nothing of it, and a later stat asks again.
        """
        start = self._end
        length = len(line)
        if not self._plus:
            at = start + _DIRENT.size
            end = at + length + -length % 8
            if end > self._size:
                return False
            kind = 0 if attributes is None else attributes.mode >> 12
            _DIRENT.pack_into(self._room, start, nodeid, cookie, length, kind)
        else:
            at = start + _DIRENTPLUS.size
            end = at + length + -length % 8
            if end > self._size:
                return False
            if attributes is None:
                _DIRENTPLUS.pack_into(self._room, start, *(0,) * 22, nodeid, cookie, length, 0)
            else:
                _, mode, nlink, uid, gid, rdev, size, blocks, atime_ns, mtime_ns, ctime_ns = (
                    attributes
                )
                # fmt: off
                _DIRENTPLUS.pack_into(
                    self._room, start,
                    nodeid, generation, FOR_EVER_S, FOR_EVER_S, 0, 0,
                    nodeid, size, blocks,
                    atime_ns // _NS_PER_S, mtime_ns // _NS_PER_S, ctime_ns // _NS_PER_S,
                    atime_ns % _NS_PER_S, mtime_ns % _NS_PER_S, ctime_ns % _NS_PER_S,
                    mode, nlink, uid, gid, rdev, BLOCK_BYTES, 0,
                    nodeid, cookie, length, mode >> 12,
                )
                # fmt: on
        self._room[at : at + length] = line
        self._end = end
        return True

    @property
    def payload(self) -> memoryview:
        """What was added so far; nothing says that the listing is at its end."""
        return memoryview(self._room)[: self._end]
