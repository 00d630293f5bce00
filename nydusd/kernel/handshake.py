"""FUSE_INIT, which the kernel sends once per mount and libfuse insists on (linux/fuse.h).

libfuse meets it on a socket in place of /dev/fuse. So a successor can be given its predecessor's INIT
(docs/design.md §4, Takeover), and we have a say in the reply, which pyfuse3 does not offer.

Owns     nothing: bytes in, bytes out.
Callers  kernel/session.py.
Raises   MountError if the bytes are no INIT or no answer to one.
"""

from typing import Annotated, Final, NamedTuple

from nydusd.errors import FormatError
from nydusd.kernel.mount import MAX_READ_BYTES, MountError
from nydusd.records import At, Record

REQUEST_MAX_BYTES: Final = MAX_READ_BYTES
REPLY_MAX_BYTES: Final = 4096
_OPCODE_INIT: Final = 26
_CACHE_SYMLINKS: Final = 1 << 23
# What the reference asks for (spec fs-behaviour §2). The kernel's default of 12 is less than the readahead
# of a few files: O_DIRECT and readahead count as background, and would wait for each other.
_MAX_BACKGROUND: Final = 65535
_CONGESTION_THRESHOLD: Final = 49149


class RequestHead(NamedTuple):
    """struct fuse_in_header and the start of struct fuse_init_in."""

    length: Annotated[int, At(0, "I")]
    opcode: Annotated[int, At(4, "I")]
    unique: Annotated[int, At(8, "Q")]
    major: Annotated[int, At(40, "I")]
    minor: Annotated[int, At(44, "I")]
    max_readahead: Annotated[int, At(48, "I")]
    flags: Annotated[int, At(52, "I")]


class Reply(NamedTuple):
    """struct fuse_out_header and the start of struct fuse_init_out, as far as we look into it."""

    length: Annotated[int, At(0, "I")]
    error: Annotated[int, At(4, "i")]
    unique: Annotated[int, At(8, "Q")]
    major: Annotated[int, At(16, "I")]
    minor: Annotated[int, At(20, "I")]
    max_readahead: Annotated[int, At(24, "I")]
    flags: Annotated[int, At(28, "I")]
    max_background: Annotated[int, At(32, "H")]
    congestion_threshold: Annotated[int, At(34, "H")]


_REQUEST_HEAD: Final = Record(RequestHead, size_bytes=56)
_REPLY: Final = Record(Reply, size_bytes=36)  # what follows stays as libfuse has it


def check_request(request: bytes) -> RequestHead:
    """Return the head of an INIT request."""
    try:
        head = _REQUEST_HEAD.read(request)
    except FormatError as exc:
        raise MountError(f"the kernel's first request: {exc}") from exc
    if head.opcode != _OPCODE_INIT or head.length != len(request):
        raise MountError(f"the kernel's first request is opcode {head.opcode}, not INIT")
    return head


def amended(reply: bytes, head: RequestHead) -> bytes:
    """Return libfuse's answer with our limits, and with symbolic links kept by the kernel."""
    try:
        given = _REPLY.read(reply)
    except FormatError as exc:
        raise MountError(f"libfuse refused INIT {head.major}.{head.minor}: {exc}") from exc
    if given.error or given.unique != head.unique:
        raise MountError(f"libfuse refused INIT {head.major}.{head.minor}: errno {-given.error}")
    wanted = given._replace(
        flags=given.flags | head.flags & _CACHE_SYMLINKS,
        max_background=_MAX_BACKGROUND,
        congestion_threshold=_CONGESTION_THRESHOLD,
    )
    changed = bytearray(reply)
    changed[: _REPLY.size_bytes] = _REPLY.pack(wanted)
    return bytes(changed)
