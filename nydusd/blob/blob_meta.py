"""A blob's chunk records as the blob keeps them: the CI array and its header (spec blob §7, §8).

The stored form is `CI (maybe compressed) | header` inside a blob; the cached form, `<id>.blob.meta`, is
`decoded CI | zeros to 4 KiB | header` (spec blobcache §5). Records are decoded when asked for: opening
a table costs the same for any number of chunks.

Owns     the layout of both forms. A `CiTable` keeps the buffer it was opened on.
Callers  storage reads the bytes, keeps the cached form, asks the table; inspection commands.
Raises   FormatError for bytes that break a rule, UnsupportedError for chunks that cannot be served yet.
"""

import struct
from bisect import bisect_left, bisect_right
from typing import Annotated, NamedTuple, Protocol

from nydusd import native
from nydusd.blob import encryption
from nydusd.blob.model import (
    BlobFeature,
    BlobInfo,
    Chunk,
    CiLocation,
    Cipher,
    Context,
    DigestSource,
    PlainLayout,
)
from nydusd.blob.segment import ByteRange, decompress
from nydusd.errors import FormatError, UnsupportedError
from nydusd.records import At, Buffer, Record
from nydusd.units import KIB, MIB

HEADER_BYTES = 4 * KIB
PAGE_BYTES = 4 * KIB
MAGIC = 0xB10B_B10B
V1_BYTES = 16
V2_BYTES = 24
CONTEXT_BYTES = 40
CHUNKS_MAX = 1 << 24  # spec blob §7
V1_LIMIT_BYTES = 256 * MIB
V2_LIMIT_BYTES = 384 * MIB

_CONTEXTS = BlobFeature.ZRAN | BlobFeature.BATCH  # what follows the records, if one of these is set


class MetaHeader(NamedTuple):
    """The header behind the CI array, 4096 bytes (spec blob §7)."""

    magic: Annotated[int, At(0, "I")]
    features: Annotated[int, At(4, "I")]  # informative: the blob table's word counts
    ci_compressor: Annotated[int, At(8, "I")]
    ci_entries: Annotated[int, At(12, "I")]
    ci_offset: Annotated[int, At(16, "Q")]
    ci_compressed_size: Annotated[int, At(24, "Q")]
    ci_uncompressed_size: Annotated[int, At(32, "Q")]
    context_offset: Annotated[int, At(40, "Q")]  # from the start of the decoded CI
    context_size: Annotated[int, At(48, "Q")]  # bytes, dictionaries included
    context_count: Annotated[int, At(56, "I")]
    magic2: Annotated[int, At(4092, "I")]


META_HEADER = Record(MetaHeader, size_bytes=HEADER_BYTES)


def stored_range(info: BlobInfo) -> ByteRange:
    """Return the bytes of blob `info.meta_blob_id` that hold CI array and header, as one request."""
    ci = check_ci_size(info)
    return ByteRange(ci.offset, ci.compressed_size + HEADER_BYTES)


def check_ci_size(info: BlobInfo) -> CiLocation:
    """Return where a blob's CI array lies, its sizes checked against the chunk count (spec blob §7).

    Raises UnsupportedError if the blob has no CI array (v5, external).
    """
    ci = info.ci
    if ci is None:
        raise UnsupportedError(f"blob {info.blob_id} has no chunk-info array")
    source = _source(info)
    v2 = BlobFeature.CHUNK_INFO_V2 in info.features
    contexts = bool(info.features & _CONTEXTS)
    if contexts and not v2:
        raise FormatError("features", info.features, "ZRAN and BATCH need CHUNK_INFO_V2", source)
    if not 0 < info.chunk_count <= CHUNKS_MAX:
        raise FormatError("chunk count", info.chunk_count, f"must be 1 to {CHUNKS_MAX}", source)
    records = info.chunk_count * (V2_BYTES if v2 else V1_BYTES)
    if BlobFeature.IS_CHUNKDICT_GENERATED not in info.features:
        if contexts and ci.uncompressed_size < records:
            raise FormatError("CI size", ci.uncompressed_size, f"must be {records} or more", source)
        if not contexts and ci.uncompressed_size != records:
            raise FormatError("CI size", ci.uncompressed_size, f"must be {records}", source)
    limit = V2_LIMIT_BYTES if v2 else V1_LIMIT_BYTES
    if round_to_page(ci.uncompressed_size) > limit:
        raise FormatError("CI size", ci.uncompressed_size, f"must be {limit} at most", source)
    if ci.compressed_size > limit:
        raise FormatError("CI stored size", ci.compressed_size, f"must be {limit} at most", source)
    return ci


def check_header(header: Buffer, info: BlobInfo) -> MetaHeader:
    """Return the header if it is that of this blob (spec blob §7), else raise FormatError.

    header: 4096 plain bytes, from the blob's tail or from the end of a `.blob.meta` file.
    """
    ci = check_ci_size(info)
    source = _source(info)
    if len(header) != HEADER_BYTES:
        raise FormatError("CI header length", len(header), f"must be {HEADER_BYTES}", source)
    found = META_HEADER.read(header)
    for field, value in ("magic", found.magic), ("second magic", found.magic2):
        if value != MAGIC:
            raise FormatError(f"CI header {field}", f"{value:#x}", f"must be {MAGIC:#x}", source)
    expected = {
        "ci_compressor": ci.codec,
        "ci_offset": ci.offset,
        "ci_compressed_size": ci.compressed_size,
        "ci_uncompressed_size": ci.uncompressed_size,
    }
    if BlobFeature.IS_CHUNKDICT_GENERATED not in info.features:
        expected["ci_entries"] = info.chunk_count
    for field, want in expected.items():
        value = getattr(found, field)
        if value != want:
            raise FormatError(f"CI header {field}", value, f"the blob table says {want}", source)
    if BlobFeature.ZRAN in info.features:
        _check_zran_header(found, info, source)
    return found


def _check_zran_header(found: MetaHeader, info: BlobInfo, source: str) -> None:
    records = info.chunk_count * V2_BYTES
    if found.context_offset != records:
        raise FormatError("zran context offset", found.context_offset, f"must be {records}", source)
    if found.context_offset + found.context_size > found.ci_uncompressed_size:
        raise FormatError("zran context size", found.context_size, "ends behind the CI", source)
    fits = found.context_count * CONTEXT_BYTES <= found.context_size
    if found.context_count > info.chunk_count or not fits:
        rule = f"too many for {info.chunk_count} chunks and {found.context_size} bytes"
        raise FormatError("zran context count", found.context_count, rule, source)


def open_header(stored: Buffer, info: BlobInfo) -> bytes:
    """Return the plain header from what stands behind the stored CI array, checked by `check_header`."""
    header = bytes(stored)
    if info.cipher is not Cipher.NONE:
        header = bytes(encryption.decrypt(stored, info.cipher_key))
    check_header(header, info)
    return header


def decode_ci(stored: Buffer, info: BlobInfo) -> bytes:
    """Return the decoded CI array from its stored bytes, without header. Takes no more than it may be long."""
    ci = check_ci_size(info)
    if len(stored) != ci.compressed_size:
        rule = f"must be {ci.compressed_size}"
        raise FormatError("CI stored length", len(stored), rule, _source(info))
    if info.cipher is not Cipher.NONE:
        stored = encryption.decrypt(stored, info.cipher_key)
    return decompress(stored, ci.codec, ci.uncompressed_size, "CI", _source(info))


def meta_file_size(info: BlobInfo) -> int:
    """Return how long this blob's `.blob.meta` file must be (spec blobcache §5)."""
    return round_to_page(check_ci_size(info).uncompressed_size) + HEADER_BYTES


def compose_meta_file(ci: bytes, header: bytes) -> list[bytes]:
    """Return the parts of a `.blob.meta` file in the order in which they must reach the disk.

    ci: decoded. The header comes last: for other daemons it is the sign that the file is whole.
    """
    return [ci, bytes(round_to_page(len(ci)) - len(ci)), header]


def open_meta(view: Buffer, info: BlobInfo, digests: DigestSource | None = None) -> "CiTable":
    """Return the chunks of a `.blob.meta` file (or its bytes in memory), which is kept, not copied.

    Raises FormatError if the file is short, foreign or corrupt: fetch the records again then.
    """
    size = meta_file_size(info)
    if len(view) != size:
        raise FormatError("blob meta length", len(view), f"must be {size}", _source(info))
    return _open_table(view, check_header(view[size - HEADER_BYTES :], info), info, digests)


def open_stored(stored: Buffer, info: BlobInfo, digests: DigestSource | None = None) -> "CiTable":
    """Return the chunks from the bytes of `stored_range`, as the blob has them."""
    at = check_ci_size(info).compressed_size
    header = check_header(open_header(stored[at:], info), info)
    return _open_table(decode_ci(stored[:at], info), header, info, digests)


def _open_table(
    ci: Buffer, header: MetaHeader, info: BlobInfo, digests: DigestSource | None
) -> "CiTable":
    if BlobFeature.CHUNK_INFO_V2 not in info.features:
        return CiTableV1(ci, info, digests)
    return CiTableV2(ci, info, digests, _open_contexts(ci, header, info))


def open_ci(ci: Buffer, info: BlobInfo, digests: DigestSource | None = None) -> "CiTable":
    """Return the chunks of a decoded CI array, which is kept; bytes behind it do not matter.

    Without the header nothing is known of contexts: chunks that lie in one are not served.
    """
    kind = CiTableV2 if BlobFeature.CHUNK_INFO_V2 in info.features else CiTableV1
    return kind(ci, info, digests)


class ContextTable(Protocol):
    """The contexts behind a blob's chunk records."""

    def context(self, number: int, stored_offset: int) -> Context:
        """Return context `number`, checked. Raises FormatError if there is none, or it breaks a rule.

        stored_offset: the place in the blob that the chunk's own record names.
        """
        ...


def _open_contexts(ci: Buffer, header: MetaHeader, info: BlobInfo) -> ContextTable | None:
    if info.features & _CONTEXTS == _CONTEXTS:
        raise FormatError(
            "features", info.features, "ZRAN and BATCH exclude each other", _source(info)
        )
    area = memoryview(ci)[header.context_offset : header.context_offset + header.context_size]
    if BlobFeature.ZRAN in info.features:
        from nydusd.blob.zran import ZranContexts  # images of their own kind

        return ZranContexts(area, header.context_count, info)
    if BlobFeature.BATCH in info.features:
        from nydusd.blob.batch import Batches  # the same

        return Batches(area, header.context_count, info)
    return None


class CiTable:
    """The chunks of a blob in a decoded CI array, as a ChunkTable.

    Numbers are those of the chunk map. Digest and CRC come from `digests` (the bootstrap's chunk table
    or the blob's digest array), a CRC of the record itself counts where that has none.
    """

    __slots__ = ("_ci", "_count", "_digests", "_end", "_info", "_layout", "_relaxed", "_source")

    record_bytes: int

    def __init__(self, ci: Buffer, info: BlobInfo, digests: DigestSource | None = None) -> None:
        """Callers use `open_ci` or `open_meta`, which pick the kind of record."""
        self._relaxed = BlobFeature.IS_CHUNKDICT_GENERATED in info.features
        self._count = info.chunk_count
        self._source = _source(info)
        declared = check_ci_size(info).uncompressed_size
        if self._relaxed:
            self._count = min(self._count, declared // self.record_bytes)
        if len(ci) < declared:
            raise FormatError("CI length", len(ci), f"must be {declared}", self._source)
        self._ci = ci
        self._info = info
        self._digests = digests
        self._end = round_to_page(info.uncompressed_size)
        self._layout: PlainLayout | None = None  # not looked at yet

    def __len__(self) -> int:
        """Number of records."""
        return self._count

    def chunk(self, index: int) -> Chunk:
        """Return chunk `index`, checked; see ChunkTable.

        Raises UnsupportedError if it lies in a context, and those are not known.
        """
        raise NotImplementedError

    def claim(self, index: int) -> tuple[int, int]:
        """Return (uncompressed_offset, uncompressed_size) of chunk `index`; see ChunkTable."""
        raise NotImplementedError

    def locate(self, uncompressed_offset: int) -> int | None:
        """Return the chunk that covers a plain offset; see ChunkTable."""
        found = self.within(uncompressed_offset, uncompressed_offset + 1)
        return found[0] if found else None

    def within(self, start: int, end: int) -> range:
        """Return the chunks that cover plain bytes [start, end); see ChunkTable.

        Raises FormatError if the records do not ascend, which all known builders see to: among such
        records a search would miss chunks, and their bytes would read as a hole.
        """
        layout = self.layout()
        if layout is None:
            raise FormatError("CI records", "unsorted", "must ascend by plain offset", self._source)
        if not 0 <= start < end:
            return range(0)
        first = bisect_right(layout.blocks, start // PAGE_BYTES)
        if first and sum(self.claim(first - 1)) > start:
            first -= 1
        return range(first, bisect_left(layout.blocks, -(-end // PAGE_BYTES), first))

    def layout(self) -> PlainLayout | None:
        """Return where the chunks lie, None if their records do not ascend; see ChunkTable.

        The first call looks at all records, once and natively (2 ms for 500,000): no hot path.
        """
        if self._layout is None:
            found = native.chunk_layout(self._ci, self.record_bytes, self._count)
            whole = not found.holes and found.end_block * PAGE_BYTES == self._end
            self._layout = PlainLayout(found.blocks, is_dense=whole)
        return self._layout if len(self._layout.blocks) == self._count else None

    def contradicted(self, claims: Buffer) -> int | None:
        """Return the first chunk whose record is not what files claim of it, None if there is none.

        claims: as native.contradicted_chunk takes them, for all chunks. One native pass, no hot path.
        """
        return native.contradicted_chunk(self._ci, self.record_bytes, claims)

    @property
    def records(self) -> Buffer:
        """The records as they are stored, `record_bytes` each, and whatever follows them."""
        return self._ci

    def _check_index(self, index: int) -> None:
        if not 0 <= index < self._count:
            raise FormatError("chunk index", index, f"must be below {self._count}", self._source)

    def _checked(self, chunk: Chunk) -> Chunk:
        """Return the chunk with its digests, if it lies within the blob's bounds (spec blob §8)."""
        info = self._info
        where = f"chunk {chunk.chunk_index}"
        raw = chunk.uncompressed_size
        if chunk.is_encrypted:
            raw, least = encryption.stored_size(raw), encryption.UNIT_MIN_BYTES
            if chunk.compressed_size < least:
                rule = f"must be {least} or more, for it is encrypted"
                raise FormatError(f"{where} stored size", chunk.compressed_size, rule, self._source)
        if not chunk.is_compressed and chunk.compressed_size != raw:
            rule = f"must be {raw}, for it is not compressed"
            raise FormatError(f"{where} stored size", chunk.compressed_size, rule, self._source)
        if chunk.compressed_size == 0 and BlobFeature.SEPARATE not in info.features:
            raise FormatError(f"{where} stored size", 0, "must not be zero", self._source)
        if not self._relaxed:
            if chunk.uncompressed_size > info.chunk_size:
                rule = f"must be {info.chunk_size} at most"
                raise FormatError(f"{where} size", chunk.uncompressed_size, rule, self._source)
            if chunk.compressed_end > info.compressed_data_size:
                rule = f"above the {info.compressed_data_size} bytes of chunk data"
                raise FormatError(f"{where} stored end", chunk.compressed_end, rule, self._source)
            if chunk.uncompressed_end > self._end:
                rule = f"above the blob's {self._end} plain bytes"
                raise FormatError(f"{where} end", chunk.uncompressed_end, rule, self._source)
        if self._digests is None:
            return chunk
        digest, crc32 = self._digests.lookup(chunk.chunk_index, chunk.uncompressed_offset)
        return chunk._replace(digest=digest, crc32=chunk.crc32 if crc32 is None else crc32)


_V1_RECORD = struct.Struct("<QQ")
_PLAIN_WORD = struct.Struct("<Q")


class CiTableV1(CiTable):
    """Records of 16 bytes: both sizes minus one, compressed where they differ (spec blob §8)."""

    __slots__ = ()

    record_bytes = V1_BYTES

    def chunk(self, index: int) -> Chunk:
        """Return chunk `index`, checked."""
        self._check_index(index)
        plain, stored = _V1_RECORD.unpack_from(self._ci, index * V1_BYTES)
        uncompressed_size = ((plain >> 44) | ((plain & 0xF00) << 12)) + 1
        compressed_size = ((stored >> 44) | ((stored & 0xF00_0000_0000) >> 20)) + 1
        return self._checked(
            Chunk(
                chunk_index=index,
                compressed_offset=stored & 0xFF_FFFF_FFFF,
                compressed_size=compressed_size,
                uncompressed_offset=plain & 0xFFF_FFFF_F000,
                uncompressed_size=uncompressed_size,
                is_compressed=compressed_size != uncompressed_size,
            )
        )

    def claim(self, index: int) -> tuple[int, int]:
        """Return (uncompressed_offset, uncompressed_size) of chunk `index`."""
        self._check_index(index)
        (plain,) = _PLAIN_WORD.unpack_from(self._ci, index * V1_BYTES)
        return plain & 0xFFF_FFFF_F000, ((plain >> 44) | ((plain & 0xF00) << 12)) + 1


def pack_v1(
    compressed_offset: int, compressed_size: int, uncompressed_offset: int, uncompressed_size: int
) -> bytes:
    """Return the V1 record of a chunk. Plain offsets must be multiples of 4 KiB, sizes 1 to 16 MiB."""
    plain, stored = uncompressed_size - 1, compressed_size - 1
    return _V1_RECORD.pack(
        (plain & 0xF_FFFF) << 44 | uncompressed_offset | (plain >> 20) << 8,
        (stored & 0xF_FFFF) << 44 | (stored >> 20) << 40 | compressed_offset,
    )


_V2_RECORD = struct.Struct("<QQQ")

V2_COMPRESSED = 0x01
V2_ZRAN = 0x02
V2_BATCH = 0x04
V2_ENCRYPTED = 0x08
V2_HAS_CRC32 = 0x10
_V2_IN_CONTEXT = V2_ZRAN | V2_BATCH


class CiTableV2(CiTable):
    """Records of 24 bytes: flags, plain size minus one, stored size, CRC or context (spec blob §8)."""

    __slots__ = ("_contexts", "_encrypted")

    record_bytes = V2_BYTES

    def __init__(
        self,
        ci: Buffer,
        info: BlobInfo,
        digests: DigestSource | None = None,
        contexts: ContextTable | None = None,
    ) -> None:
        """contexts: where chunks lie that are not stored by themselves."""
        super().__init__(ci, info, digests)
        self._contexts = contexts
        self._encrypted = BlobFeature.ENCRYPTED in info.features

    def chunk(self, index: int) -> Chunk:
        """Return chunk `index`, checked."""
        self._check_index(index)
        plain, stored, word = _V2_RECORD.unpack_from(self._ci, index * V2_BYTES)
        flags = plain >> 56
        if flags & _V2_IN_CONTEXT:
            kind = BlobFeature.ZRAN if flags & V2_ZRAN else BlobFeature.BATCH
            self._check_flag(index, flags, kind)
            return self._checked(self._in_context(index, plain, stored, word))
        if flags & V2_ENCRYPTED:
            self._check_flag(index, flags, BlobFeature.ENCRYPTED)
        crc32: int | None = None
        if flags & V2_HAS_CRC32:
            crc32 = word & 0xFFFF_FFFF
            if crc32 == 0:  # the reference refuses it too: it stands for "forgot to fill it in"
                raise FormatError(f"chunk {index} crc32", 0, "must not be zero", self._source)
        return self._checked(
            Chunk(
                chunk_index=index,
                compressed_offset=stored & 0xFF_FFFF_FFFF,
                compressed_size=stored >> 40,
                uncompressed_offset=(plain & 0xFFFF_FFFF) << 12,
                uncompressed_size=((plain >> 32) & 0xFF_FFFF) + 1,
                is_compressed=bool(flags & V2_COMPRESSED),
                crc32=crc32,
                is_encrypted=bool(flags & V2_ENCRYPTED),
            )
        )

    def _check_flag(self, index: int, flags: int, needed: BlobFeature) -> None:
        if needed not in self._info.features:
            rule = f"needs the feature {needed.name}"
            raise FormatError(f"chunk {index} flags", f"{flags:#x}", rule, self._source)

    def _in_context(self, index: int, plain: int, stored: int, word: int) -> Chunk:
        """Return a chunk that is cut out of a context; its own stored size says nothing of use."""
        if self._contexts is None:
            raise UnsupportedError(f"{self._source}: chunk {index}: its context is not known")
        context = self._contexts.context(word >> 32, stored & 0xFF_FFFF_FFFF)
        offset = word & 0xFFFF_FFFF
        size = ((plain >> 32) & 0xFF_FFFF) + 1
        if offset + size > context.uncompressed_size:
            rule = f"above the {context.uncompressed_size} bytes of context {context.number}"
            raise FormatError(
                f"chunk {index} end in its context", offset + size, rule, self._source
            )
        return Chunk(
            chunk_index=index,
            compressed_offset=context.compressed_offset,
            compressed_size=context.compressed_size,
            uncompressed_offset=(plain & 0xFFFF_FFFF) << 12,
            uncompressed_size=size,
            is_compressed=True,
            context=context,
            context_offset=offset,
            is_encrypted=self._encrypted,  # by the blob's word alone (spec blob §10)
        )

    def claim(self, index: int) -> tuple[int, int]:
        """Return (uncompressed_offset, uncompressed_size) of chunk `index`."""
        self._check_index(index)
        (plain,) = _PLAIN_WORD.unpack_from(self._ci, index * V2_BYTES)
        return (plain & 0xFFFF_FFFF) << 12, ((plain >> 32) & 0xFF_FFFF) + 1


def round_to_page(size: int) -> int:
    """Round up to the next multiple of 4 KiB."""
    return -(-size // PAGE_BYTES) * PAGE_BYTES


def _source(info: BlobInfo) -> str:
    return f"blob {info.blob_id}"
