"""What stands behind the chunk data of a blob (spec blob §2, §4, §7, §13).

Owns     the position and the running SHA-256 of the blob being written, not the file.
Callers  build.
Raises   OSError of the file.

Order: data, CI array and header, digests, bootstrap, table of contents. Each segment is followed by
its tar trailer where the image has any (inlined bootstrap or table of contents).
"""

import hashlib
from dataclasses import dataclass
from typing import BinaryIO

from nydusd import native
from nydusd.blob.blob_meta import HEADER_BYTES, MAGIC, META_HEADER, MetaHeader, pack_v1
from nydusd.blob.model import NO_DIGEST, BlobFeature, CiLocation, Codec
from nydusd.blob.tar_trailer import (
    BLOB_DIGEST,
    BLOB_META,
    BLOB_META_HEADER,
    BLOB_TOC,
    IMAGE_BLOB,
    IMAGE_BOOT,
    Trailer,
    write_trailer,
)
from nydusd.blob.toc import CODEC_FLAGS, TOC_ENTRY, TocEntry
from nydusd.builder.ledger import ChunkLedger
from nydusd.builder.options import BuildOptions

UNKNOWN_BLOB_ID = "x" * 64  # a bootstrap cannot name the blob that it is part of, spec blob §4


@dataclass(frozen=True, slots=True)
class BlobDescription:
    """The blob as a bootstrap describes it."""

    blob_id: str
    features: BlobFeature
    chunk_count: int
    compressed_size: int  # bytes written when the bootstrap was made: all of it, if that is outside
    uncompressed_size: int
    ci: CiLocation | None
    toc_size: int  # bytes with its tar header; 0: none, or written after the bootstrap
    toc_digest: bytes
    prefetch_size: int  # bytes at offset 0 worth fetching early


def features_of(options: BuildOptions) -> BlobFeature:
    """Return the feature word of the blob that these options give (spec blob §5)."""
    features = BlobFeature.CAP_TAR_TOC
    if options.fs_version == 6 or options.aligned_chunk:
        features |= BlobFeature.ALIGNED
    if options.inline_meta:
        features |= BlobFeature.INLINED_FS_META | BlobFeature.HAS_TAR_HEADER
    if options.blob_toc:
        features |= (
            BlobFeature.HAS_TAR_HEADER | BlobFeature.HAS_TOC | BlobFeature.INLINED_CHUNK_DIGEST
        )
    return features


class BlobWriter:
    """Appends to the blob file and knows what was appended."""

    def __init__(self, file: BinaryIO, options: BuildOptions) -> None:
        """`file`: open for writing at its start, and empty."""
        self._file = file
        self._options = options
        self._features = features_of(options)
        self._trailers = BlobFeature.HAS_TAR_HEADER in self._features
        self._sha256 = hashlib.sha256()
        self._toc: list[TocEntry] = []
        self._ci: CiLocation | None = None
        self._toc_size = 0
        self._toc_digest = NO_DIGEST
        self.position = 0

    def write(self, data: bytes | memoryview) -> None:
        """Append bytes."""
        self._sha256.update(data)
        self._file.write(data)
        self.position += len(data)

    @property
    def sha256(self) -> str:
        """Digest of all that was written so far, in hex."""
        return self._sha256.hexdigest()

    def end_data(self, ledger: ChunkLedger) -> None:
        """Close the chunk data and append what describes it.

        Without data an inlined bootstrap still follows an (empty) data segment: a blob that began with
        the bootstrap would be taken for one.
        """
        size = self.position
        if self._trailers:
            self._trailer(IMAGE_BLOB, size)
            self._entry(
                IMAGE_BLOB, 0, size, ledger.uncompressed_size, Codec.NONE, self._sha256.digest()
            )
        if len(ledger) == 0:
            return
        if self._options.fs_version == 6:
            self._chunk_info(ledger)
        if BlobFeature.INLINED_CHUNK_DIGEST in self._features:
            digests = ledger.digests
            offset = self.position
            self.write(digests)
            self._trailer(BLOB_DIGEST, len(digests))
            self._entry(
                BLOB_DIGEST, offset, len(digests), len(digests), Codec.NONE, _sha256(digests)
            )

    def bootstrap(self, plain: bytes | memoryview) -> None:
        """Append the bootstrap; zstd where a table of contents can say so (spec blob §2)."""
        codec, stored = Codec.NONE, plain
        if self._options.blob_toc:
            packed = native.compress(Codec.ZSTD, plain)
            if packed is not None and len(packed) < len(plain):
                codec, stored = Codec.ZSTD, packed
        offset = self.position
        self.write(stored)
        self._trailer(IMAGE_BOOT, len(stored))
        self._entry(IMAGE_BOOT, offset, len(stored), len(plain), codec, _sha256(plain))

    def end(self) -> None:
        """Append the table of contents, if there is to be one."""
        if self._options.blob_toc:
            entries = b"".join(TOC_ENTRY.pack(entry) for entry in self._toc)
            toc = entries + write_trailer(Trailer(BLOB_TOC, len(entries)))
            self.write(toc)
            self._toc_size, self._toc_digest = len(toc), _sha256(toc)

    def describe(self, ledger: ChunkLedger, prefetch_size: int, blob_id: str) -> BlobDescription:
        """Return the blob as far as it is written."""
        return BlobDescription(
            blob_id=blob_id,
            features=self._features,
            chunk_count=len(ledger),
            compressed_size=self.position,
            uncompressed_size=ledger.uncompressed_size,
            ci=self._ci,
            toc_size=self._toc_size,
            toc_digest=self._toc_digest,
            prefetch_size=prefetch_size,
        )

    def _chunk_info(self, ledger: ChunkLedger) -> None:
        """Append CI array and header, which share a trailer (spec blob §7)."""
        plain = bytearray()
        for number in range(len(ledger)):
            row = ledger.row(number)
            plain += pack_v1(
                row.compressed_offset,
                row.compressed_size,
                row.uncompressed_offset,
                row.uncompressed_size,
            )
        codec, stored = self._options.codec, bytes(plain)
        if codec is not Codec.NONE:
            packed = native.compress(codec, stored)
            if packed is None or len(packed) >= len(stored):
                codec = Codec.NONE
            else:
                stored = packed
        offset = self.position
        self._ci = CiLocation(offset, len(stored), len(plain), codec)
        header = META_HEADER.pack(
            MetaHeader(
                magic=MAGIC,
                features=self._features,
                ci_compressor=codec,
                ci_entries=len(ledger),
                ci_offset=offset,
                ci_compressed_size=len(stored),
                ci_uncompressed_size=len(plain),
                context_offset=0,
                context_size=0,
                context_count=0,
                magic2=MAGIC,
            )
        )
        self.write(stored)
        self.write(header)
        self._entry(BLOB_META, offset, len(stored), len(plain), codec, _sha256(plain))
        self._entry(
            BLOB_META_HEADER,
            offset + len(stored),
            HEADER_BYTES,
            HEADER_BYTES,
            Codec.NONE,
            _sha256(header),
        )
        self._trailer(BLOB_META, len(stored) + HEADER_BYTES)

    def _trailer(self, name: str, size: int) -> None:
        if self._trailers:
            self.write(write_trailer(Trailer(name, size)))

    def _entry(
        self, name: str, offset: int, stored: int, plain: int, codec: Codec, digest: bytes
    ) -> None:
        self._toc.append(TocEntry(CODEC_FLAGS[codec], name.encode(), digest, offset, stored, plain))


def _sha256(data: bytes | bytearray | memoryview) -> bytes:
    return hashlib.sha256(data).digest()
