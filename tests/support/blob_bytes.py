"""Blobs byte by byte: records, headers, tails. Packed here by the spec alone, not by the code under test."""

import hashlib
import struct
from dataclasses import dataclass

import zstandard

from nydusd.blob.model import BlobFeature, BlobInfo, CiLocation, Codec, Digester

MAGIC = 0xB10BB10B
MIB = 1 << 20
PLAIN = BlobFeature(0)


@dataclass(frozen=True)
class Row:
    """One chunk record, whatever its kind."""

    compressed_offset: int
    compressed_size: int
    uncompressed_offset: int
    uncompressed_size: int
    flags: int = 0
    extra: int = 0

    def v1(self) -> bytes:
        plain, stored = self.uncompressed_size - 1, self.compressed_size - 1
        first = (plain >> 20) << 8 | (self.uncompressed_offset >> 12) << 12
        second = self.compressed_offset | (stored >> 20) << 40
        return struct.pack(
            "<QQ", first | (plain & 0xFFFFF) << 44, second | (stored & 0xFFFFF) << 44
        )

    def v2(self) -> bytes:
        first = self.uncompressed_offset >> 12 | (self.uncompressed_size - 1) << 32
        second = self.compressed_offset | self.compressed_size << 40
        return struct.pack("<QQQ", first | self.flags << 56, second, self.extra)


ROWS = (
    Row(0, 900, 0, 5000),
    Row(900, 4096, 8192, 4096),
    Row(4996, 1, 16384, 4097),  # 12288 to 16384 is a hole
)


def pack_rows(rows: tuple[Row, ...], features: BlobFeature) -> bytes:
    v2 = BlobFeature.CHUNK_INFO_V2 in features
    return b"".join(row.v2() if v2 else row.v1() for row in rows)


def make_info(
    rows: tuple[Row, ...] = ROWS,
    *,
    codec: Codec = Codec.ZSTD,
    more: BlobFeature = PLAIN,
    context_bytes: int = 0,
    stored: bytes | None = None,
    **changes: object,
) -> BlobInfo:
    """Return the blob table's entry for these rows; `stored`: its CI array as the blob has it."""
    features = BlobFeature.ALIGNED | BlobFeature.CAP_TAR_TOC | more
    plain_size = len(pack_rows(rows, features)) + context_bytes
    data_size = max((row.compressed_offset + row.compressed_size for row in rows), default=0)
    info = BlobInfo(
        index=0,
        blob_id="ab" * 32,
        chunk_size=MIB,
        chunk_count=len(rows),
        codec=codec,
        digester=Digester.BLAKE3,
        features=features,
        compressed_size=data_size + plain_size + 4096,
        compressed_data_size=data_size,
        uncompressed_size=max(
            (row.uncompressed_offset + row.uncompressed_size for row in rows), default=0
        ),
        ci=CiLocation(
            data_size,
            plain_size if stored is None else len(stored),
            plain_size,
            Codec.NONE if stored is None else codec,
        ),
        meta_blob_id="ab" * 32,
    )
    return info._replace(**changes)  # type: ignore[arg-type]


def make_header(info: BlobInfo, **fields: int) -> bytes:
    """Return the 4096 bytes that belong to this blob, but for `fields`."""
    assert info.ci is not None
    values = {
        "magic": MAGIC,
        "features": int(info.features),
        "compressor": int(info.ci.codec),
        "entries": info.chunk_count,
        "offset": info.ci.offset,
        "stored_size": info.ci.compressed_size,
        "plain_size": info.ci.uncompressed_size,
        "context_offset": 0,
        "context_size": 0,
        "context_count": 0,
        "magic2": MAGIC,
    }
    assert not fields.keys() - values.keys()
    return struct.pack("<4I5QI4032xI", *(values | fields).values())


def make_trailer(name: bytes, size: int, **fields: bytes) -> bytes:
    """Return a tar header as the reference writes it behind a segment."""
    raw = bytearray(512)
    raw[: len(name)] = name
    raw[124:136] = b"%011o\0" % size
    raw[136:148] = b"00000000000\0"
    raw[156] = ord("0")
    raw[257:265] = b"ustar  \0"
    places = {"size_field": 124, "typeflag": 156, "magic": 257}
    for field, value in fields.items():
        if field != "checksum":
            raw[places[field] : places[field] + len(value)] = value
    raw[148:156] = b" " * 8
    raw[148:156] = fields.get("checksum", b"%06o\0 " % sum(raw))
    return bytes(raw)


def make_toc_entry(
    name: bytes, content: bytes, offset: int = 0, *, stored: bytes | None = None, flags: int = 1
) -> bytes:
    held = content if stored is None else stored
    digest = hashlib.sha256(content).digest()
    return struct.pack("<I4x16s32sQQQ48x", flags, name, digest, offset, len(held), len(content))


def make_toc(*entries: bytes) -> bytes:
    """Return entries and their trailer, as they end a blob."""
    content = b"".join(entries)
    return content + make_trailer(b"rafs.blob.toc", len(content))


def make_inlined_blob(data: bytes, bootstrap: bytes, *, toc: bool = False) -> bytes:
    """Return a blob that contains its bootstrap: plain, or zstd where a TOC says so."""
    blob = data + make_trailer(b"image.blob", len(data)) if data else b""
    stored = zstandard.ZstdCompressor().compress(bootstrap) if toc else bootstrap
    entry = make_toc_entry(b"image.boot", bootstrap, len(blob), stored=stored, flags=2)
    blob += stored + make_trailer(b"image.boot", len(stored))
    return blob + make_toc(entry) if toc else blob
