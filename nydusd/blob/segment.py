"""Runs of bytes in a blob that hold metadata, and how each becomes plain (spec blob §2, §13).

Owns     nothing: values and pure functions.
Callers  toc, tar_trailer, inline and blob_meta of this room; storage reads the ranges that they name.
Raises   FormatError if bytes do not decode to the size they promise, IntegrityError if a digest differs.
Cancel   nothing waits here. Decoding large segments takes time: call `extract` in a worker thread.
"""

from typing import NamedTuple

from nydusd.blob.model import NO_DIGEST, Codec
from nydusd.errors import FormatError, IntegrityError
from nydusd.records import Buffer
from nydusd.units import GIB

SEGMENT_MAX_BYTES = (
    GIB  # far above any real bootstrap or chunk-info array; bounds what one decode may take
)


class ByteRange(NamedTuple):
    """Bytes [offset, offset + length) of a stored blob, to be read by whoever can."""

    offset: int
    length: int

    @property
    def end(self) -> int:
        """First byte behind the range."""
        return self.offset + self.length


class Segment(NamedTuple):
    """One named run of a blob: where it lies, how it is stored, what it must decode to."""

    name: str  # as the tar trailer or the TOC has it, e.g. "image.boot"
    offset: int
    compressed_size: int
    uncompressed_size: int
    codec: Codec = Codec.NONE
    digest: bytes = NO_DIGEST  # SHA-256 of the plain bytes; all zero: not known

    @property
    def byte_range(self) -> ByteRange:
        """What to read from the blob."""
        return ByteRange(self.offset, self.compressed_size)

    def extract(self, stored: Buffer, source: str = "") -> bytes:
        """Return the plain bytes of the segment, digest checked where one is known.

        stored: exactly the bytes of `byte_range`. Never produces more than `uncompressed_size` bytes.
        """
        if len(stored) != self.compressed_size:
            raise FormatError(
                f"{self.name} length", len(stored), f"must be {self.compressed_size}", source
            )
        plain = decompress(stored, self.codec, self.uncompressed_size, self.name, source)
        check_sha256(plain, self.digest, f"{source}: {self.name}")
        return plain


def decompress(
    stored: Buffer, codec: Codec, size_bytes: int, field: str, source: str = ""
) -> bytes:
    """Return the `size_bytes` plain bytes of a stored run of metadata.

    Takes no more memory than the result. Raises FormatError if the run is broken or decodes to any
    other size, or if the size is above `SEGMENT_MAX_BYTES`.
    """
    if not 0 <= size_bytes <= SEGMENT_MAX_BYTES:
        raise FormatError(f"{field} size", size_bytes, f"above {SEGMENT_MAX_BYTES}", source)
    if codec is Codec.NONE:
        if len(stored) != size_bytes:
            rule = f"must be {size_bytes} for a segment that is not compressed"
            raise FormatError(f"{field} stored size", len(stored), rule, source)
        return bytes(stored)
    from nydusd import native  # loaded by the first decode: a cached mount may never need it

    plain = native.decompress(codec, stored, size_bytes)
    if plain is None:
        rule = f"must decode to {size_bytes} bytes, as {codec.name}"
        raise FormatError(field, f"{len(stored)} stored bytes", rule, source)
    return plain


def check_sha256(plain: Buffer, digest: bytes, what: str) -> None:
    """Raise IntegrityError unless `plain` has that SHA-256; an all-zero digest means "not known"."""
    if digest == NO_DIGEST:
        return
    import hashlib  # loads OpenSSL, which a mount from a warm cache never needs

    found = hashlib.sha256(plain).digest()
    if found != digest:
        raise IntegrityError(f"{what} has sha256 {found.hex()}, expected {digest.hex()}")
