"""The typed edge of native/erofs_check.h: whether the kernel's EROFS shows a bootstrap as we do.

Callers  nydusd/rafs; in a worker thread, for it reads the whole of a bootstrap's tree. The GIL is free.
Raises   FormatError, naming the first fault; MemoryError.
"""

import struct
from collections.abc import Sequence
from typing import Final, NamedTuple

from nydusd._native import ffi, lib
from nydusd.errors import FormatError
from nydusd.native import Buffer

CLAIMS_MAX: Final = 1 << 22  # 32 MiB, for an image of 4 TiB in chunks of 1 MiB

_IMAGE: Final = struct.Struct("=QQII")
_BLOB: Final = struct.Struct("=II")
_WALK: Final = struct.Struct("=QQQ")
_CLAIM: Final = struct.Struct("=II")
_NO_MEMORY: Final = 1
_RULES: Final = {  # nd_erofs_fault, but for memory
    2: "must lie within the file",
    3: "must have a form, type and size that EROFS and we read alike",
    4: "must list possible names in order, with true types",
    5: "must be reached by one path only",
    6: "must be a target of 1 to 4095 bytes without NUL",
    7: "must have xattrs that EROFS and we read alike",
    8: "must leave room for the others: parts of the file overlap",
    9: "must have chunk indexes that name one chunk and its one place within the blob",
}


class ErofsBlob(NamedTuple):
    """What chunk indexes are checked against."""

    blocks: int  # of 4096 bytes: the plain address space
    chunks: int


class ErofsWalk(NamedTuple):
    """What was met on the way."""

    inodes: int
    with_xattrs: int
    claims: tuple[
        memoryview, ...
    ]  # per blob: u32 pairs (block, size), size 0: no file names the chunk


def check_erofs(
    bootstrap: Buffer, meta_offset: int, root_nid: int, chunk_size: int, blobs: Sequence[ErofsBlob]
) -> ErofsWalk:
    """Walk all of a v6 tree (spec rafs-v6 §7 to §11) and return what its files say of chunks."""
    total = sum(blob.chunks for blob in blobs)
    if total > CLAIMS_MAX:
        raise FormatError("chunks of all blobs", total, f"must be at most {CLAIMS_MAX}")
    claims, walk = bytearray(_CLAIM.size * total), bytearray(_WALK.size)
    image = _IMAGE.pack(meta_offset, root_nid, chunk_size, len(blobs))
    table = b"".join(_BLOB.pack(*blob) for blob in blobs)
    with ffi.from_buffer("uint8_t[]", bootstrap) as source:
        fault = lib.nd_erofs_check(
            source,
            len(source),
            ffi.from_buffer("nd_erofs_image *", image),
            ffi.from_buffer("nd_erofs_blob[]", table),
            ffi.from_buffer("nd_erofs_claim[]", claims, require_writable=True),
            ffi.from_buffer("nd_erofs_walk *", walk, require_writable=True),
        )
    inodes, with_xattrs, nid = _WALK.unpack(walk)
    if fault == _NO_MEMORY:
        raise MemoryError
    if fault:
        raise FormatError("inode", nid, _RULES[fault])
    by_blob, start = [], 0
    for blob in blobs:
        end = start + _CLAIM.size * blob.chunks
        by_blob.append(memoryview(claims)[start:end].toreadonly())
        start = end
    return ErofsWalk(inodes, with_xattrs, tuple(by_blob))
