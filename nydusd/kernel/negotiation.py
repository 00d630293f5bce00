"""FUSE_INIT, which the kernel sends once per mount: what we ask of it, and why (linux/fuse.h).

Owns     nothing: bytes in, bytes out. The one table of negotiated features is here.
Callers  kernel/session.py.
Raises   MountError if the bytes are no INIT, or of a kernel that we cannot speak to.

A successor of a killed server sees no INIT: it is given the predecessor's, to know the same kernel.
"""

import struct
from enum import IntFlag
from typing import Final, NamedTuple

from nydusd.errors import FormatError
from nydusd.kernel import wire
from nydusd.kernel.mount import MountError
from nydusd.units import MIB

# The kernel wants room for its longest request: a header, struct fuse_write_in and MAX_WRITE_BYTES, but
# never less than FUSE_MIN_READ_BUFFER, which is this.
REQUEST_MAX_BYTES: Final = 8192
MAJOR: Final = 7
MINOR_OLDEST: Final = 23  # Linux 3.15: since then all records that we use have their present size
MINOR: Final = 45  # what we know of; the kernel uses the smaller of this and its own


class Feature(IntFlag):
    """FUSE_* bits of INIT. The comment tells why we want one, or why not."""

    # ---- wanted ----
    # Several reads of one file at once: readahead does not wait for its forerunner.
    ASYNC_READ = 1 << 0
    # Names come with attributes: `find -printf %s` needs no LOOKUP for each.
    DO_READDIRPLUS = 1 << 13
    # O_DIRECT: the parts of a large read run side by side, and io_submit does not wait for any.
    ASYNC_DIO = 1 << 15
    # Lookups in one directory run side by side; without, a mutex per directory.
    PARALLEL_DIROPS = 1 << 18
    ABORT_ERROR = 1 << 21  # tells whoever reads the log an abort from an umount
    MAX_PAGES = 1 << 22  # requests of more than 32 pages: see MAX_PAGES_COUNT
    CACHE_SYMLINKS = 1 << 23  # targets never change
    INIT_EXT = 1 << 30  # the kernel looks at our upper 32 bits, and we at its

    # ---- not wanted, for images do not change ----
    ATOMIC_O_TRUNC = 1 << 3
    BIG_WRITES = 1 << 5
    AUTO_INVAL_DATA = 1 << 12  # would drop pages when a getattr shows another mtime
    WRITEBACK_CACHE = 1 << 16
    EXPLICIT_INVAL_DATA = 1 << 25  # the opposite promise; nothing asks for attributes anew anyway
    HANDLE_KILLPRIV_V2 = 1 << 28

    # ---- not wanted, for what it would cost or change ----
    # NFS handles: the kernel would look up "." of nodeids that it has forgotten.
    EXPORT_SUPPORT = 1 << 4
    # No reply is spliced: pages of a cache file would have to be copied all the same.
    SPLICE_WRITE = 1 << 7
    SPLICE_MOVE = 1 << 8
    SPLICE_READ = 1 << 9
    # Attributes with the first page of a listing only. Of 15,600 names of a `find -printf %s` 1,300 were
    # looked up one by one then; we read their inodes anyway, for the type.
    READDIRPLUS_AUTO = 1 << 14
    NO_OPEN_SUPPORT = 1 << 17  # would save two requests a file, but vfs.py must know of open files
    # The reply says which listing may be kept: not those of directories that lead to mounts.
    NO_OPENDIR_SUPPORT = 1 << 24
    # Modes decide, as with the reference. ACLs of an image are shown, not applied.
    POSIX_ACL = 1 << 20
    MAP_ALIGNMENT = 1 << 26  # DAX

    # ---- the upper word: not asked for, only looked at ----
    HAS_RESEND = 1 << 39  # the kernel can be asked for the requests that a dead server had read


WANTED: Final = (
    Feature.ASYNC_READ
    | Feature.DO_READDIRPLUS
    | Feature.ASYNC_DIO
    | Feature.PARALLEL_DIROPS
    | Feature.ABORT_ERROR
    | Feature.MAX_PAGES
    | Feature.CACHE_SYMLINKS
    | Feature.INIT_EXT
)
# Requests that nobody sleeps for (readahead, O_DIRECT). The kernel's default of 12 is less than the readahead
# of a few files, which would wait for each other. As the reference has it (spec fs-behaviour §2).
MAX_BACKGROUND: Final = 65535
CONGESTION_THRESHOLD: Final = 49149
MAX_WRITE_BYTES: Final = 4096  # nothing is written; the least there is keeps request buffers small
TIME_GRAN_NS: Final = 1  # images record nanoseconds
MAX_PAGES_COUNT: Final = (
    256  # reads of up to 1 MiB, a chunk of most images (at most max_read of the mount)
)
MAX_READAHEAD_BYTES: Final = MIB  # here only a bound; session.py sets the mount's own window

# struct fuse_init_in: major, minor, max_readahead, flags, and since 7.36 flags2
_IN: Final = struct.Struct("=IIII")
_IN_FLAGS2: Final = struct.Struct("=I")
# struct fuse_init_out: major, minor, max_readahead, flags, max_background, congestion_threshold, max_write,
# time_gran, max_pages, map_alignment, flags2, unused[7]
_OUT: Final = struct.Struct("=IIIIHHIIHHI28x")


class Init(NamedTuple):
    """What the kernel said."""

    unique: int
    minor: int
    max_readahead: int
    offered: Feature


def check_request(message: bytes) -> Init:
    """Return what an INIT request says."""
    try:
        request = wire.parse(message)
    except FormatError as exc:
        raise MountError(f"the kernel's first request: {exc}") from exc
    if request.opcode != wire.Opcode.INIT:
        raise MountError(f"the kernel's first request is {wire.title(request.opcode)}, not INIT")
    if len(message) < wire.HEADER_BYTES + _IN.size:
        raise MountError(f"the kernel's INIT is cut short: {len(message)} bytes")
    major, minor, max_readahead, flags = _IN.unpack_from(message, wire.HEADER_BYTES)
    if major != MAJOR or minor < MINOR_OLDEST:
        raise MountError(
            f"the kernel speaks FUSE {major}.{minor}, we {MAJOR}.{MINOR_OLDEST} to {MAJOR}.{MINOR}"
        )
    at = wire.HEADER_BYTES + _IN.size
    if flags & Feature.INIT_EXT and len(message) >= at + _IN_FLAGS2.size:
        flags |= _IN_FLAGS2.unpack_from(message, at)[0] << 32
    return Init(request.unique, minor, max_readahead, Feature(flags))


def answer(init: Init) -> bytes:
    """Return our whole reply: of what we want, that which the kernel offers."""
    agreed = int(WANTED & init.offered)
    payload = _OUT.pack(
        MAJOR,
        min(MINOR, init.minor),
        min(MAX_READAHEAD_BYTES, init.max_readahead),
        agreed & 0xFFFF_FFFF,
        MAX_BACKGROUND,
        CONGESTION_THRESHOLD,
        MAX_WRITE_BYTES,
        TIME_GRAN_NS,
        MAX_PAGES_COUNT if agreed & Feature.MAX_PAGES else 0,
        0,
        agreed >> 32,
    )
    return wire.reply_header(init.unique, len(payload)) + payload
