"""EROFS metadata of v5 images, kept in the cache directory under the digest of their bootstrap.

The file is what mount(2) takes as EROFS: metadata from its start, whose first 1024 bytes are nothing to
the kernel and hold our header; behind it the segments of the device. What it says is bound to the
bootstrap by its digest, to this program by a version that is part of its name, too (so that two programs
never replace each other's files under a mount), and to its bytes by a checksum.

Owns     files `<blake3 of the bootstrap>.v<version>.erofs`. Nobody else removes them: they can go at any
         time, a mounted one stays open.
Callers  worker threads: reading and checking takes milliseconds, making it some 8 us per inode.
Raises   UnsupportedError if the image cannot be laid out. A file that is damaged, foreign or of another
         owner is made anew; a disk that is full or read-only is no error, there is no file then.
"""

import gc
import logging
import mmap
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Final, NamedTuple

from nydusd import native
from nydusd.blob.model import Digester
from nydusd.errors import FormatError
from nydusd.rafs.erofs_from_v5 import SEGMENT, lay_out
from nydusd.rafs.layout_v6 import BLOCK_SIZE, SUPERBLOCK_OFFSET
from nydusd.rafs.model import Bootstrap
from nydusd.rafs.v5 import BootstrapV5
from nydusd.records import At, Record
from nydusd.storage.cache.files import replace_file
from nydusd.storage.lazy_blob import LazyBlob
from nydusd.storage.segment_device import SegmentDevice

log = logging.getLogger(__name__)

SUFFIX: Final = ".erofs"
VERSION: Final = 1  # of the header, and of what lay_out makes of the same bootstrap
MAGIC: Final = b"nydusd\0E"
ANY_OWNER: Final = (
    1 << 32
) - 1  # uid and gid in the header of images that name the owners themselves
AT_ONCE_INODES_MAX: Final = 20_000  # 0.2 s, once; with more, who is in a hurry mounts otherwise


class Header(NamedTuple):
    """What the file says of itself, 128 bytes at 0."""

    magic: Annotated[bytes, At(0, "8s")]
    version: Annotated[int, At(8, "I")]
    device_blocks: Annotated[int, At(12, "I")]  # 0: EROFS is mounted without a device
    metadata_bytes: Annotated[int, At(16, "Q")]  # where the segments begin
    segment_count: Annotated[int, At(24, "Q")]
    uid: Annotated[int, At(32, "I")]
    gid: Annotated[int, At(36, "I")]
    bootstrap: Annotated[bytes, At(40, "32s")]  # BLAKE3
    content: Annotated[bytes, At(72, "32s")]  # BLAKE3 of all behind the first 1024 bytes
    crc32: Annotated[int, At(104, "I")]  # CRC-32C of the fields above


HEADER: Final = Record(Header, size_bytes=128)
_CHECKED_BYTES: Final = 104


class SynthesisedImage(NamedTuple):
    """What EROFS is mounted on."""

    metadata_path: Path
    devices: tuple[SegmentDevice, ...]  # as EROFS counts them: one, or none if no file has data


def is_quick(bootstrap: Bootstrap) -> bool:
    """Tell whether `synthesise` takes no longer than a mount may wait for it."""
    return isinstance(bootstrap, BootstrapV5) and bootstrap.raw().slots <= AT_ONCE_INODES_MAX


def open_synthesised(
    bootstrap: Bootstrap, directory: Path | None, blobs: Sequence[LazyBlob]
) -> SynthesisedImage | None:
    """Return the image that an earlier `synthesise` has left; None if there is none that can be trusted."""
    if directory is None or not isinstance(bootstrap, BootstrapV5):
        return None
    return _open(_Identity.of(bootstrap), directory, blobs)


def synthesise(
    bootstrap: Bootstrap, directory: Path | None, blobs: Sequence[LazyBlob]
) -> SynthesisedImage | None:
    """Make the metadata and return the image; None if there is no place to keep it.

    Raises UnsupportedError if the kernel cannot show this image so; the reason is in the text.
    """
    if directory is None or not isinstance(bootstrap, BootstrapV5):
        return None
    identity = _Identity.of(bootstrap)
    metadata, segments, device_blocks = lay_out(bootstrap, int(time.time()))
    release_pages(bootstrap)
    if not is_quick(bootstrap):
        # The interpreter keeps freed tuples for later ones, and with them all memory around: 18 MiB after
        # 100,000 inodes (measured). This lets them go.
        gc.collect()
    content = memoryview(metadata + segments)
    header = Header(
        magic=MAGIC,
        version=VERSION,
        device_blocks=device_blocks,
        metadata_bytes=len(metadata),
        segment_count=len(segments) // SEGMENT.size,
        uid=identity.uid,
        gid=identity.gid,
        bootstrap=identity.digest,
        content=native.digest(Digester.BLAKE3, content[SUPERBLOCK_OFFSET:]),
        crc32=0,
    )
    crc32 = native.crc32c(HEADER.pack(header)[:_CHECKED_BYTES])
    HEADER.pack_into(content, 0, header._replace(crc32=crc32))
    path = identity.path(directory)
    try:
        replace_file(path, [content])
    except OSError as exc:
        log.warning("EROFS metadata is not kept: file=%s reason=%s", path, exc.strerror)
        return None
    return _open(identity, directory, blobs)


def is_synthesised(path: Path) -> bool:
    """Tell whether a file says of itself that `synthesise` made it. Raises OSError."""
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


class _Identity(NamedTuple):
    """What the file depends on."""

    digest: bytes
    uid: int
    gid: int

    @classmethod
    def of(cls, bootstrap: BootstrapV5) -> "_Identity":
        raw = bootstrap.raw()
        if isinstance(raw.data, mmap.mmap):
            with suppress(OSError):  # advice only: one large read instead of many small ones
                raw.data.madvise(mmap.MADV_WILLNEED)
        digest = native.digest(Digester.BLAKE3, raw.data)
        release_pages(bootstrap)
        return cls(digest, *(raw.owner or (ANY_OWNER, ANY_OWNER)))

    def path(self, directory: Path) -> Path:
        return directory / f"{self.digest.hex()}.v{VERSION}{SUFFIX}"


def _open(
    identity: _Identity, directory: Path, blobs: Sequence[LazyBlob]
) -> SynthesisedImage | None:
    path = identity.path(directory)
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            header = _check(file.fileno(), size, identity, str(path))
            segments = _map_segments(file.fileno(), header)
    except FileNotFoundError:
        return None
    except OSError as exc:
        log.warning("EROFS metadata cannot be read: file=%s reason=%s", path, exc.strerror)
        return None
    except FormatError as exc:
        log.info("EROFS metadata is made anew: file=%s reason=%s", path, exc)
        return None
    if segments is None:
        return SynthesisedImage(path, ())
    name = f"v5:{identity.digest.hex()[:12]}"
    device = SegmentDevice(name, header.device_blocks * BLOCK_SIZE, segments, blobs)
    return SynthesisedImage(path, (device,))


def _check(fd: int, size: int, identity: _Identity, source: str) -> Header:
    """Return the header of a file whose every byte was written by this program for this bootstrap."""
    if size < SUPERBLOCK_OFFSET:
        raise FormatError("size", size, "less than a header", source)
    # Mapped for the length of the check only: what stays mapped counts as ours.
    with mmap.mmap(fd, size, access=mmap.ACCESS_READ) as data:
        header = HEADER.read(data)
        for field, value, wanted in (
            ("magic", header.magic, MAGIC),
            ("version", header.version, VERSION),
            ("crc32", header.crc32, native.crc32c(data[:_CHECKED_BYTES])),
            ("bootstrap", header.bootstrap, identity.digest),
            ("owner", (header.uid, header.gid), (identity.uid, identity.gid)),
            ("size", size, header.metadata_bytes + header.segment_count * SEGMENT.size),
        ):
            if value != wanted:
                raise FormatError(field, value, f"must be {wanted!r}", source)
        if header.metadata_bytes % BLOCK_SIZE or header.metadata_bytes > size:
            raise FormatError("metadata_bytes", header.metadata_bytes, "not whole blocks", source)
        if bool(header.device_blocks) != bool(header.segment_count):
            rule = f"but there are {header.segment_count} segments"
            raise FormatError("device_blocks", header.device_blocks, rule, source)
        with memoryview(data) as view, view[SUPERBLOCK_OFFSET:] as content:
            if native.digest(Digester.BLAKE3, content) != header.content:
                raise FormatError("content", "damaged", "must have the digest named", source)
    return header


def _map_segments(fd: int, header: Header) -> memoryview | None:
    if not header.segment_count:
        return None
    size = header.segment_count * SEGMENT.size
    # metadata_bytes are whole blocks of 4 KiB; where pages are larger, the map begins before them.
    before = header.metadata_bytes % mmap.ALLOCATIONGRANULARITY
    offset = header.metadata_bytes - before
    data = mmap.mmap(fd, before + size, access=mmap.ACCESS_READ, offset=offset)
    return memoryview(data)[before:]


def release_pages(bootstrap: BootstrapV5) -> None:
    """Give back the pages of a bootstrap that was read from end to end; what is used comes again."""
    data = bootstrap.raw().data
    if isinstance(data, mmap.mmap):
        with suppress(OSError):  # advice only
            data.madvise(mmap.MADV_DONTNEED)
