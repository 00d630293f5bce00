"""What a blob is made of: its entry in the blob table, its chunks (spec blob §5 to §8, rafs-v6 §6).

Values only. Offsets and sizes are bytes. `compressed_*` are positions in the stored blob object,
`uncompressed_*` positions in its plain address space, which is also the layout of the cache file.
"""

from collections.abc import Sequence
from enum import IntEnum, IntFlag
from typing import NamedTuple, Protocol

from nydusd.records import Buffer

DIGEST_BYTES = 32
NO_DIGEST = bytes(DIGEST_BYTES)  # an all-zero digest means "unknown" (spec rafs-v6 §13)


class Codec(IntEnum):
    """Compression algorithm ids (spec blob §6.1)."""

    NONE = 0
    LZ4_BLOCK = 1
    GZIP = 2
    ZSTD = 3


class Digester(IntEnum):
    """Chunk digest algorithm ids (spec blob §6.2)."""

    BLAKE3 = 0
    SHA256 = 1


class Cipher(IntEnum):
    """Blob encryption ids (spec blob §11)."""

    NONE = 0
    AES_128_XTS = 1


class CipherKey(NamedTuple):
    """What the data of one blob is encrypted with (spec blob §11). Prints as `***`."""

    key: bytes  # of AES-XTS: two halves that differ
    tweak: bytes  # 16 bytes, the same for every unit

    def __repr__(self) -> str:
        """Never the key."""
        return "***"


class BlobFeature(IntFlag):
    """Feature word of a blob table entry (spec blob §5)."""

    ALIGNED = 0x1
    INLINED_FS_META = 0x2
    CHUNK_INFO_V2 = 0x4
    ZRAN = 0x8
    SEPARATE = 0x10
    INLINED_CHUNK_DIGEST = 0x20
    TARFS = 0x40
    BATCH = 0x80
    ENCRYPTED = 0x100
    IS_CHUNKDICT_GENERATED = 0x200
    IS_SEPARATED_WITH_PREFETCH_FILES = 0x400
    EXTERNAL = 0x800
    HAS_TAR_HEADER = 0x1000_0000
    HAS_TOC = 0x2000_0000
    CAP_TAR_TOC = 0x4000_0000


class CiLocation(NamedTuple):
    """Where the chunk-info array ("blob meta") lies in the blob holding it (spec blob §7)."""

    offset: int
    compressed_size: int  # bytes as stored; the 4096-byte header follows directly
    uncompressed_size: int  # records, contexts and dictionaries
    codec: Codec


class BlobInfo(NamedTuple):
    """One blob as an image's blob table describes it, checked (spec rafs-v6 §6, rafs-v5 §4)."""

    index: int  # type: ignore[assignment]  # hides tuple.index(), which makes no sense for a blob
    blob_id: str  # after substitution for inlined bootstraps (spec blob §4)
    chunk_size: int  # bytes, power of two
    chunk_count: int  # 0: unknown (v5, not in the extended blob table)
    codec: Codec
    digester: Digester
    features: BlobFeature
    compressed_size: int  # the whole object where CAP_TAR_TOC, else chunk data only
    compressed_data_size: int  # chunk data: bound of every chunk record (spec blob §2)
    uncompressed_size: int  # size of the plain address space
    ci: CiLocation | None  # None: chunk records are in the bootstrap (v5)
    meta_blob_id: str  # the blob that holds the CI array; blob_id unless SEPARATE
    toc_size: int = 0  # bytes incl. tar header, 0: none or unknown
    toc_digest: bytes = NO_DIGEST
    cipher: Cipher = Cipher.NONE
    cipher_key: CipherKey | None = None  # exactly where there is a cipher
    prefetch_size: int = 0  # bytes from offset 0 to fetch early; v5 readahead_size
    is_numbered: bool = (
        True  # False: chunk numbers hold for this image alone (rafs/v5_unnumbered.py)
    )

    @property
    def has_indexed_map(self) -> bool:
        """True where the cache keeps a chunk map file (spec blobcache §4)."""
        return self.chunk_count > 0 and self.is_numbered


class Context(Protocol):
    """Stored bytes that decode as a whole and give several chunks (spec blob §9 zran, §10 batch).

    Values: checked against the blob's bounds when made, equal in nothing but `number` if in that.
    """

    @property
    def number(self) -> int:
        """Its place among the blob's contexts."""

    @property
    def compressed_offset(self) -> int:
        """Where its stored bytes begin in the blob. Those of zran contexts overlap."""

    @property
    def compressed_size(self) -> int:
        """How many they are."""

    @property
    def uncompressed_size(self) -> int:
        """How many bytes they give, 1 to 16 MiB."""

    def decode(self, stored: Buffer) -> Buffer | None:
        """Return the plain bytes of the stored ones, None if these do not give just as many.

        stored: exactly the context's. For worker threads; the bytes are not checked by any digest yet.
        """


class Chunk(NamedTuple):
    """One chunk of a blob, from whichever record describes it (spec blob §8, rafs-v5 §7).

    Of a chunk in a context the stored range is the context's: what must be fetched to have it.
    """

    chunk_index: int  # number of the chunk within its blob = bit in the chunk map
    compressed_offset: int
    compressed_size: int
    uncompressed_offset: int
    uncompressed_size: int
    is_compressed: bool
    digest: bytes | None = None  # of the plain bytes; None: not known
    crc32: int | None = None  # CRC-32C of the plain bytes; None: not known
    context: Context | None = None  # None: the chunk is stored by itself
    context_offset: int = 0  # of its plain bytes among the context's
    is_encrypted: bool = False  # as stored, by the blob's cipher; stored sizes count what that adds

    @property
    def compressed_end(self) -> int:
        """First byte of the stored blob behind this chunk."""
        return self.compressed_offset + self.compressed_size

    @property
    def uncompressed_end(self) -> int:
        """First byte of the plain address space behind this chunk."""
        return self.uncompressed_offset + self.uncompressed_size

    def out_of_context(self) -> "Chunk":
        """Return the chunk as it lies, raw, in the plain bytes of its context."""
        return self._replace(
            compressed_offset=self.context_offset,
            compressed_size=self.uncompressed_size,
            is_compressed=False,
            is_encrypted=False,
            context=None,
        )


BLOCK_BYTES = 4096  # the unit of a layout, and of every device made of blobs


class PlainLayout(NamedTuple):
    """Where the chunks of a blob lie in its plain address space, in blocks."""

    blocks: "memoryview[int]"  # u32 per chunk, by its number: its first block; ascending
    is_dense: bool  # no whole block before the last chunk's end that no chunk covers, and no other behind it


class ChunkTable(Protocol):
    """All chunks of one blob. Every chunk that it returns has been checked against the blob's bounds.

    Chunks are numbered as in the chunk map. Reading is cheap (no I/O but page faults of a mapped
    file). Raises FormatError for a record that breaks a rule; the other records stay usable.
    """

    def __len__(self) -> int:
        """Number of chunks, equal to the blob's chunk_count where that is known."""
        ...

    def chunk(self, index: int) -> Chunk:
        """Return chunk `index`, with digest and CRC where any record carries them.

        Raises FormatError if there is no such chunk or its record is not valid.
        """
        ...

    def claim(self, index: int) -> tuple[int, int]:
        """Return (uncompressed_offset, uncompressed_size) of chunk `index`, as its record says.

        For the hot path: enough to compare an Extent with, without building a Chunk. Unlike `chunk` it
        checks nothing but the index. Raises FormatError if there is no such chunk.
        """
        ...

    def locate(self, uncompressed_offset: int) -> int | None:
        """Return the index of the chunk that covers a plain offset, None in a hole or past the end."""
        ...

    def within(self, start: int, end: int) -> Sequence[int]:
        """Return the chunks that cover plain bytes [start, end), ascending by offset.

        Costs the same in a table of any size, but for the first call. Raises FormatError if chunks overlap.
        """
        ...

    def layout(self) -> PlainLayout | None:
        """Return where the chunks lie; None unless all begin on blocks, in the order of their numbers."""
        ...


class DigestSource(Protocol):
    """Digests and CRCs of one blob's chunks, kept apart from the records (spec rafs-v6 §11.2)."""

    def lookup(self, index: int, uncompressed_offset: int) -> tuple[bytes | None, int | None]:
        """Return (digest, CRC-32C) of chunk `index`, each None where unknown.

        `uncompressed_offset` is part of the key: a record for other bytes is no answer.
        """
        ...


def describe_blobs(blobs: Sequence[BlobInfo]) -> str:
    """Return blob ids shortened to 12 digits, for log lines."""
    return ",".join(blob.blob_id[:12] for blob in blobs)
