"""Opens a bootstrap: maps the file, tells v5 from v6, hands it to the parser.

Owns     the mapping until the parser has it; a parser that refuses leaves nothing open.
Callers  storage, at mount; tools.
Raises   NotFoundError if the file cannot be opened, FormatError if it is no bootstrap or a broken one.
         One line of text each, with the file's path.

A file that is neither may stand for a blob that contains its bootstrap (spec blob §3): storage asks
`sniff_file` first, fetches that blob and opens what blob/inline.py finds in it, with `extracted_from`.
"""

import os
from mmap import ACCESS_READ, MADV_RANDOM, mmap
from pathlib import Path
from stat import S_ISREG
from struct import Struct
from typing import Final

from nydusd.blob.features import id_from_file_name
from nydusd.errors import FormatError, NotFoundError
from nydusd.rafs.model import Bootstrap
from nydusd.records import Buffer
from nydusd.units import MIB

V5_MAGIC_OFFSET: Final = 0
V5_MAGIC: Final = 0x5241_4653
V6_MAGIC_OFFSET: Final = 1024
V6_MAGIC: Final = 0xE0F5_E1E2
SNIFF_BYTES: Final = V6_MAGIC_OFFSET + 4

# The kernel maps up to 2 MiB around each fault: 31 MiB more memory after the start of an image of 500,000
# files (measured). In a small bootstrap that costs little and saves a cold walk its single-page reads.
READ_AROUND_MAX_BYTES: Final = 8 * MIB

_U32: Final = Struct("<I")


def sniff(head: Buffer) -> int | None:
    """Return 5 or 6, the version whose magic the first bytes of a bootstrap show; None for neither.

    Needs SNIFF_BYTES. It promises no more than that the parser of this version should be asked.
    """
    for version, offset, magic in ((5, V5_MAGIC_OFFSET, V5_MAGIC), (6, V6_MAGIC_OFFSET, V6_MAGIC)):
        if len(head) >= offset + _U32.size and _U32.unpack_from(head, offset)[0] == magic:
            return version
    return None


def sniff_file(path: Path) -> int | None:
    """Return what `sniff` says of a file's first bytes."""
    fd = _open(path)
    try:
        return sniff(os.pread(fd, SNIFF_BYTES, 0))
    except OSError as exc:
        raise NotFoundError(f"bootstrap {path} cannot be read: {exc.strerror}") from exc
    finally:
        os.close(fd)


def inlining_blob_id(path: Path) -> str:
    """Return the id of the blob that `path` stands for when it is no bootstrap itself (spec blob §3)."""
    return id_from_file_name(path.name, str(path))


def open_bootstrap(path: Path, *, extracted_from: str | None = None) -> Bootstrap:
    """Map and open the bootstrap in a file.

    extracted_from: id of the blob that the file was pulled out of. Without it, the file's name up to
    the first dot is the id of the blob that says it contains its own bootstrap.
    """
    data = map_file(path)
    try:
        return open_mapped(data, str(path), extracted_from)
    except BaseException:
        data.close()
        raise


def open_mapped(data: mmap, source: str, extracted_from: str | None = None) -> Bootstrap:
    """Open a bootstrap that is mapped already; it is the caller's to unmap if this raises."""
    # Imported when known: one image needs one parser, and the time to RUNNING pays for both.
    match sniff(data):
        case 5:
            from nydusd.rafs.v5 import open_v5

            return open_v5(data, source, extracted_from)
        case 6:
            from nydusd.rafs.v6 import open_v6

            return open_v6(data, source, extracted_from)
        case _:
            found = f"{_U32.unpack_from(data, 0)[0]:#x} at 0, {_U32.unpack_from(data, 1024)[0]:#x} at 1024"
            raise FormatError("magic", found, "neither RAFS v5 nor v6", source)


def _open(path: Path) -> int:
    # O_NONBLOCK: a FIFO at this place would block the daemon for ever. Regular files ignore it.
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as exc:
        raise NotFoundError(f"bootstrap {path} cannot be opened: {exc.strerror}") from exc
    if not S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise FormatError("bootstrap", "no regular file", "must be one", str(path))
    return fd


def map_file(path: Path) -> mmap:
    """Map a file that may be a bootstrap. Raises NotFoundError, FormatError."""
    fd = _open(path)
    try:
        size = os.fstat(fd).st_size
        if size < SNIFF_BYTES:
            raise FormatError("file size", size, "too short for a bootstrap", str(path))
        data = mmap(fd, size, access=ACCESS_READ)
        if size > READ_AROUND_MAX_BYTES:
            data.madvise(MADV_RANDOM)
    except OSError as exc:
        raise NotFoundError(f"bootstrap {path} cannot be mapped: {exc.strerror}") from exc
    else:
        return data
    finally:
        os.close(fd)
