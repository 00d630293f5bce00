"""Parts of EROFS metadata that are written the same way whatever they are written for (spec rafs-v6 §7 to §11).

Owns     the bytes of directory blocks and xattr areas, and the arithmetic of their sizes.
Callers  the builder for v6 bootstraps, rafs/erofs_from_v5.py for old images.
Raises   nothing.
"""

import stat
from collections.abc import Iterable, Sequence
from itertools import accumulate
from struct import Struct
from typing import Final

from nydusd.rafs.layout_v6 import (
    BLOCK_SIZE,
    DIRENT,
    EXTENDED_INODE,
    XATTR_ENTRY,
    XATTR_ENTRY_BYTES,
    XATTR_HEADER_BYTES,
    XATTR_PREFIXES,
    XattrEntry,
)

BLOCK_BITS: Final = BLOCK_SIZE.bit_length() - 1
CHUNK_BITS_MAX: Final = 31  # the exponent in i_u has five bits, spec rafs-v6 §11.1
# i_xattr_icount is 16 bits wide.
XATTR_AREA_MAX_BYTES: Final = XATTR_HEADER_BYTES + XATTR_ENTRY_BYTES * 65534
XATTR_SUFFIX_MAX_BYTES: Final = 255
XATTR_VALUE_MAX_BYTES: Final = 65535
FILE_TYPES: Final = {  # of a dirent, by the kind bits of the mode
    stat.S_IFREG: 1,
    stat.S_IFDIR: 2,
    stat.S_IFCHR: 3,
    stat.S_IFBLK: 4,
    stat.S_IFIFO: 5,
    stat.S_IFSOCK: 6,
    stat.S_IFLNK: 7,
}

_DIRENT: Final = Struct(f"<{DIRENT.codes}")


def align(value: int, unit: int) -> int:
    """Return the next multiple of `unit`, or `value` itself."""
    return -(-value // unit) * unit


def split_xattr(name: bytes) -> tuple[int, bytes] | None:
    """Return (name_index, suffix) of a full name, None if EROFS cannot name it."""
    for index, prefix in XATTR_PREFIXES.items():
        if prefix.endswith(b"."):
            if name.startswith(prefix):
                return index, name[len(prefix) :]
        elif name == prefix:
            return index, b""
    return None


def pack_xattrs(xattrs: Iterable[tuple[int, bytes, bytes]]) -> bytes:
    """Return the xattr area of (name_index, suffix, value) each, empty for none (spec rafs-v6 §10)."""
    area = bytearray(XATTR_HEADER_BYTES)
    for index, suffix, value in xattrs:
        area += XATTR_ENTRY.pack(XattrEntry(len(suffix), index, len(value)))
        area += suffix
        area += value
        area += bytes(-len(area) % XATTR_ENTRY_BYTES)
    return bytes(area) if len(area) > XATTR_HEADER_BYTES else b""


def xattr_count(area_bytes: int) -> int:
    """Return i_xattr_icount of an inode whose xattr area has that size."""
    return (area_bytes - XATTR_HEADER_BYTES) // XATTR_ENTRY_BYTES + 1 if area_bytes else 0


def index_offset(xattr_bytes: int) -> int:
    """Return where the chunk index array starts, relative to the inode (spec rafs-v6 §11.1)."""
    return align(EXTENDED_INODE.size_bytes + xattr_bytes, 8)


def directory_blocks(names: Sequence[bytes]) -> list[tuple[int, int]]:
    """Return (end, bytes used) of each block that holds the sorted `names`.

    `end`: index of the first name that is not in the block any more. Dirents never cross blocks.
    """
    blocks: list[tuple[int, int]] = []
    used = 0
    for position, name in enumerate(names):
        needed = DIRENT.size_bytes + len(name)
        # A block is never filled to its last byte: readers are known that run on into the next one
        # when the last name of a directory ends there.
        if used + needed >= BLOCK_SIZE:
            blocks.append((position, used))
            used = 0
        used += needed
    blocks.append((len(names), used))
    return blocks


def pack_directory_block(
    names: Sequence[bytes], nids: Iterable[int], file_types: Iterable[int]
) -> bytes:
    """Return one directory block: dirents, then names (spec rafs-v6 §8)."""
    offsets = accumulate(map(len, names), initial=DIRENT.size_bytes * len(names))
    return b"".join([*map(_DIRENT.pack, nids, offsets, file_types), *names])
