"""A bootstrap inside a data blob: where it lies, and how it is taken out (spec blob §3).

Two reads do it, each in one request: the blob's tail, large enough for any TOC, then the bootstrap, if
the tail did not hold it already.

Owns     nothing: pure functions over bytes that storage has read.
Callers  storage.image.
Raises   NotFoundError if the blob holds no bootstrap, FormatError if its tail is broken,
         IntegrityError if the bootstrap is not the one that the TOC names.
"""

from nydusd.blob.model import Codec
from nydusd.blob.segment import SEGMENT_MAX_BYTES, ByteRange, Segment
from nydusd.blob.tar_trailer import (
    BLOB_TOC,
    IMAGE_BOOT,
    TRAILER_BYTES,
    Trailer,
    read_trailer,
    segment_before,
)
from nydusd.blob.toc import TOC_MAX_BYTES, parse_toc
from nydusd.errors import FormatError, NotFoundError
from nydusd.records import Buffer


def tail_range(blob_size: int) -> ByteRange:
    """Return the end of a blob that tells where its bootstrap lies."""
    # 64 KiB at once instead of 4 KiB and maybe more: a round trip costs more than these bytes.
    length = min(blob_size, TOC_MAX_BYTES)
    return ByteRange(blob_size - length, length)


def find_bootstrap(tail: Buffer, blob_size: int, source: str = "") -> Segment:
    """Return the `image.boot` segment of a blob, from its TOC or else from its last tar trailer.

    tail: the bytes of `tail_range(blob_size)`.
    """
    trailer = _last_trailer(tail, source)
    if trailer.name == IMAGE_BOOT:
        found: Segment | None = segment_before(trailer, blob_size - TRAILER_BYTES, source)
    elif trailer.name == BLOB_TOC:
        found = parse_toc(tail, source=source).find(IMAGE_BOOT)
    else:
        found = None
    if found is None:
        raise NotFoundError(f"{source}: the blob holds no bootstrap")
    if found.byte_range.end > blob_size:
        rule = f"above the blob's {blob_size} bytes"
        raise FormatError(f"{IMAGE_BOOT} end", found.byte_range.end, rule, source)
    for field, size in ("stored", found.compressed_size), ("plain", found.uncompressed_size):
        if not 0 < size <= SEGMENT_MAX_BYTES:
            rule = f"must be 1 to {SEGMENT_MAX_BYTES}"
            raise FormatError(f"{IMAGE_BOOT} {field} size", size, rule, source)
    if found.codec not in (Codec.NONE, Codec.ZSTD):
        raise FormatError(f"{IMAGE_BOOT} codec", found.codec.name, "must be none or zstd", source)
    return found


def within_tail(tail: Buffer, blob_size: int, segment: Segment) -> Buffer | None:
    """Return the stored bytes of a segment if the tail holds them all, else None."""
    start = segment.offset - (blob_size - len(tail))
    return tail[start : start + segment.compressed_size] if start >= 0 else None


def extract_bootstrap(stored: Buffer, segment: Segment, source: str = "") -> bytes:
    """Return the plain bootstrap from the stored bytes of its segment, its digest checked if it has one."""
    return segment.extract(stored, source)


def _last_trailer(tail: Buffer, source: str) -> Trailer:
    if len(tail) < TRAILER_BYTES:
        raise NotFoundError(f"{source}: {len(tail)} bytes are too short for an inlined bootstrap")
    try:
        return read_trailer(tail[len(tail) - TRAILER_BYTES :], source)
    except FormatError as exc:
        raise NotFoundError(f"{source}: the blob holds no bootstrap ({exc})") from exc
