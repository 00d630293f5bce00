"""Tar headers that stand *behind* the segments of a blob (spec blob §2).

A segment is followed by a 512-byte header with its name and size; nothing is padded, so a blob is read
from its end. Numbers that the reference does not fill in (mode, uid, gid) are ignored.

Owns     nothing: pure functions over bytes.
Callers  toc and inline of this room, the builder, inspection commands.
Raises   FormatError for anything that is not such a header.
"""

from collections.abc import Generator
from typing import NamedTuple

from nydusd.blob.segment import ByteRange, Segment
from nydusd.errors import FormatError
from nydusd.records import Buffer

TRAILER_BYTES = 512

IMAGE_BLOB = "image.blob"
BLOB_META = "blob.meta"
BLOB_META_HEADER = "blob.meta.header"
BLOB_DIGEST = "blob.digest"
IMAGE_BOOT = "image.boot"
BLOB_TOC = "rafs.blob.toc"

SEGMENTS_MAX = 64  # a blob has at most five; a longer chain is not one of ours

_NAME = slice(0, 100)
_SIZE = slice(124, 136)
_MTIME = slice(136, 148)
_CHECKSUM = slice(148, 156)
_TYPE = 156
_MAGIC = slice(257, 265)
_REGULAR = ord("0")
_GNU = b"ustar  \x00"
_BINARY = 0x80  # first byte of a GNU base-256 number
_OCTAL_MAX = 8**11  # 8 GiB: what eleven digits cannot hold


class Trailer(NamedTuple):
    """What a tar trailer says of the segment before it."""

    name: str
    size: int  # bytes


def read_trailer(header: Buffer, source: str = "") -> Trailer:
    """Return name and size from the 512 bytes of a trailer.

    Demands a GNU header of a regular file and a right checksum.
    """
    raw = bytes(header)
    if len(raw) != TRAILER_BYTES:
        raise FormatError("tar trailer length", len(raw), f"must be {TRAILER_BYTES}", source)
    if raw[_MAGIC] != _GNU:
        raise FormatError("tar trailer magic", raw[_MAGIC].hex(), "must be GNU's 'ustar  '", source)
    if raw[_TYPE] != _REGULAR:
        raise FormatError("tar trailer type", raw[_TYPE], "must be '0', a regular file", source)
    checksum = _number(raw[_CHECKSUM], "tar trailer checksum", source)
    if checksum != _checksum(raw):
        raise FormatError("tar trailer checksum", checksum, f"must be {_checksum(raw)}", source)
    name = raw[_NAME].rstrip(b"\0")
    if not name.isascii() or b"\0" in name:
        raise FormatError("tar trailer name", repr(name), "must be ASCII text", source)
    return Trailer(name.decode("ascii"), _number(raw[_SIZE], "tar trailer size", source))


def write_trailer(trailer: Trailer) -> bytes:
    """Return the 512 bytes of a trailer, with the fields that the reference fills in."""
    raw = bytearray(TRAILER_BYTES)
    name = trailer.name.encode("ascii")
    raw[: len(name)] = name
    if trailer.size < _OCTAL_MAX:
        raw[_SIZE] = b"%011o\0" % trailer.size
    else:
        raw[_SIZE] = bytes([_BINARY]) + trailer.size.to_bytes(11, "big")
    raw[_MTIME] = b"%011o\0" % 0
    raw[_TYPE] = _REGULAR
    raw[_MAGIC] = _GNU
    raw[_CHECKSUM] = b"%06o\0 " % _checksum(raw)
    return bytes(raw)


def walk_back(
    blob_size: int, source: str = ""
) -> Generator[ByteRange, Buffer, tuple[Segment, ...]]:
    """Yield the 512-byte ranges to read, be sent their bytes, return all segments in file order.

    blob_size: bytes of the whole object. Raises FormatError if the chain does not end exactly at 0.
    """
    found: list[Segment] = []
    end = blob_size
    while end > 0:
        if len(found) == SEGMENTS_MAX:
            raise FormatError("tar trailers", len(found), "too many segments for a blob", source)
        header = yield trailer_range(end, source)
        segment = segment_before(read_trailer(header, source), end - TRAILER_BYTES, source)
        found.append(segment)
        end = segment.offset
    return tuple(reversed(found))


def trailer_range(end: int, source: str = "") -> ByteRange:
    """Return where the trailer lies that ends at byte `end` of a blob."""
    if end < TRAILER_BYTES:
        raise FormatError("blob", f"{end} bytes", "too short for a tar trailer", source)
    return ByteRange(end - TRAILER_BYTES, TRAILER_BYTES)


def segment_before(trailer: Trailer, position: int, source: str = "") -> Segment:
    """Return the segment that the trailer at byte `position` of a blob describes, stored plain."""
    if trailer.size > position:
        rule = f"must fit into the {position} bytes before its trailer"
        raise FormatError(f"{trailer.name} size", trailer.size, rule, source)
    return Segment(trailer.name, position - trailer.size, trailer.size, trailer.size)


def _number(field: bytes, name: str, source: str) -> int:
    if field[0] == _BINARY:  # 0xff, a negative number, is refused as bad octal
        return int.from_bytes(field[1:], "big")
    digits = field.strip(b"\0 ")
    if not digits or digits.strip(b"01234567"):
        raise FormatError(name, repr(field), "must be an octal or base-256 number", source)
    return int(digits, 8)


def _checksum(raw: bytes | bytearray) -> int:
    return sum(raw) - sum(raw[_CHECKSUM]) + len(b"        ") * ord(" ")
