"""Table of contents at the end of a blob, and the digest array that it names (spec blob §13).

Owns     nothing: values and pure functions over bytes that storage has read.
Callers  storage (cached `.blob.toc` and `.blob.digest` files, blob tails), inline of this room.
Raises   FormatError for bytes that are no TOC, IntegrityError if a digest differs.
"""

from typing import Annotated, NamedTuple

from nydusd.blob.model import DIGEST_BYTES, NO_DIGEST, Codec
from nydusd.blob.segment import ByteRange, Segment, check_sha256
from nydusd.blob.tar_trailer import BLOB_TOC, IMAGE_BLOB, TRAILER_BYTES, read_trailer
from nydusd.errors import FormatError
from nydusd.records import At, Buffer, Record
from nydusd.units import KIB

ENTRY_BYTES = 128
TOC_MAX_BYTES = 64 * KIB  # with its tar header (spec blob §13)
TOC_GUESS_BYTES = 4 * KIB  # read from the tail where the size is not known

_CODEC_MASK = 0xF
CODEC_FLAGS = {Codec.NONE: 1, Codec.ZSTD: 2, Codec.LZ4_BLOCK: 4}
_CODECS = {flag: codec for codec, flag in CODEC_FLAGS.items()}
CODEC_FLAGS = {codec: flag for flag, codec in _CODECS.items()}  # what a writer puts down


class TocEntry(NamedTuple):
    """One entry, 128 bytes (spec blob §13). The 48 reserved bytes are not always zero."""

    flags: Annotated[int, At(0, "I")]  # how the content is stored: 1 plain, 2 zstd, 4 lz4
    name: Annotated[bytes, At(8, "16s")]  # NUL padded, or none if 16 bytes long
    digest: Annotated[bytes, At(24, "32s")]  # SHA-256 of the plain content
    offset: Annotated[int, At(56, "Q")]
    compressed_size: Annotated[int, At(64, "Q")]
    uncompressed_size: Annotated[int, At(72, "Q")]


TOC_ENTRY = Record(TocEntry, size_bytes=ENTRY_BYTES)


class Toc(NamedTuple):
    """What a blob's TOC lists, in its order."""

    segments: tuple[Segment, ...]

    def find(self, name: str) -> Segment | None:
        """Return the first entry of that name, None if there is none.

        `image.blob` is listed, but old builders wrote a wrong offset and digest there: use neither.
        """
        return next((segment for segment in self.segments if segment.name == name), None)


def toc_range(blob_size: int, toc_size: int = 0, source: str = "") -> ByteRange:
    """Return the bytes of a blob's tail to read for its TOC.

    toc_size: from the blob table, with tar header; 0 where it is not known.
    """
    if toc_size:
        if not TRAILER_BYTES <= toc_size <= TOC_MAX_BYTES or toc_size % ENTRY_BYTES:
            rule = f"must be a multiple of {ENTRY_BYTES}, {TRAILER_BYTES} to {TOC_MAX_BYTES}"
            raise FormatError("blob_toc_size", toc_size, rule, source)
        if toc_size > blob_size:
            raise FormatError("blob_toc_size", toc_size, f"above the blob's {blob_size}", source)
        return ByteRange(blob_size - toc_size, toc_size)
    length = min(TOC_GUESS_BYTES, blob_size - blob_size % ENTRY_BYTES)
    return ByteRange(blob_size - length, length)


def parse_toc(stored: Buffer, digest: bytes = NO_DIGEST, source: str = "") -> Toc:
    """Return the TOC that ends `stored`: a blob's tail, or a cached `.blob.toc` file.

    digest: from the blob table, of entries and tar header together; all zero: not known. With a
    digest `stored` must be exactly those bytes. Raises IntegrityError if they differ.
    """
    if digest != NO_DIGEST:
        check_sha256(stored, digest, f"{source}: TOC")
    position = len(stored) - TRAILER_BYTES
    if position < 0:
        raise FormatError("TOC length", len(stored), f"must be {TRAILER_BYTES} at least", source)
    trailer = read_trailer(stored[position:], source)
    if trailer.name != BLOB_TOC:
        raise FormatError("last tar trailer", repr(trailer.name), f"must be {BLOB_TOC}", source)
    if trailer.size % ENTRY_BYTES or trailer.size > min(position, TOC_MAX_BYTES):
        rule = f"must be a multiple of {ENTRY_BYTES} within the {position} bytes before its trailer"
        raise FormatError("TOC size", trailer.size, rule, source)
    offsets = range(position - trailer.size, position, ENTRY_BYTES)
    return Toc(tuple(_segment(TOC_ENTRY.read(stored, offset), source) for offset in offsets))


def _segment(entry: TocEntry, source: str) -> Segment:
    raw_name = entry.name.rstrip(b"\0")
    if not raw_name.isascii() or b"\0" in raw_name:
        raise FormatError("TOC entry name", repr(raw_name), "must be ASCII text", source)
    name = raw_name.decode("ascii")
    codec = _CODECS.get(entry.flags & _CODEC_MASK)
    if codec is None:
        raise FormatError(f"TOC flags of {name}", entry.flags, "must be 1, 2 or 4", source)
    plain = codec is Codec.NONE and name != IMAGE_BLOB  # its sizes differ though flags say plain
    if plain and entry.compressed_size != entry.uncompressed_size:
        rule = f"must be {entry.uncompressed_size}, for it is not compressed"
        raise FormatError(f"TOC stored size of {name}", entry.compressed_size, rule, source)
    return Segment(
        name, entry.offset, entry.compressed_size, entry.uncompressed_size, codec, entry.digest
    )


class DigestArray:
    """The `blob.digest` segment as a DigestSource: 32 bytes per chunk, by chunk index."""

    __slots__ = ("_digests",)

    def __init__(self, digests: Buffer, chunk_count: int, source: str = "") -> None:
        """`digests` is kept, not copied. Raises FormatError unless it holds `chunk_count` digests."""
        if len(digests) != chunk_count * DIGEST_BYTES:
            rule = f"must be {DIGEST_BYTES} for each of {chunk_count} chunks"
            raise FormatError("blob.digest length", len(digests), rule, source)
        self._digests = digests

    def lookup(self, index: int, uncompressed_offset: int) -> tuple[bytes | None, int | None]:  # noqa: ARG002 - the array has no offsets
        """Return (digest, None) of chunk `index`; a digest of zeros or a chunk out of range is unknown."""
        start = index * DIGEST_BYTES
        digest = bytes(self._digests[start : start + DIGEST_BYTES]) if index >= 0 else b""
        return (digest if len(digest) == DIGEST_BYTES and digest != NO_DIGEST else None), None
