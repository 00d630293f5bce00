"""Blobs made in the test: chunks of random but repeatable bytes, stored raw or compressed, with records."""

import random
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field

import blake3
import zstandard

from nydusd.blob.model import BlobFeature, BlobInfo, Chunk, Codec, Digester, PlainLayout
from nydusd.errors import FormatError
from nydusd.rafs.model import Extent

ALIGN = 4096


def make_info(blob_id: str = "ab" * 32, **changes: object) -> BlobInfo:
    fields: dict[str, object] = {
        "index": 0,
        "blob_id": blob_id,
        "chunk_size": 1 << 20,
        "chunk_count": 1,
        "codec": Codec.ZSTD,
        "digester": Digester.BLAKE3,
        "features": BlobFeature.ALIGNED | BlobFeature.CAP_TAR_TOC,
        "compressed_size": 0,
        "compressed_data_size": 0,
        "uncompressed_size": 0,
        "ci": None,
        "meta_blob_id": blob_id,
    }
    return BlobInfo(**{**fields, **changes})  # type: ignore[arg-type]


class ListTable:
    """A ChunkTable over a list."""

    def __init__(self, chunks: Sequence[Chunk]) -> None:
        self.chunks = list(chunks)

    def __len__(self) -> int:
        return len(self.chunks)

    def chunk(self, index: int) -> Chunk:
        if not 0 <= index < len(self.chunks):
            raise FormatError("chunk index", index, f"must be below {len(self.chunks)}")
        return self.chunks[index]

    def claim(self, index: int) -> tuple[int, int]:
        chunk = self.chunk(index)
        return chunk.uncompressed_offset, chunk.uncompressed_size

    def locate(self, uncompressed_offset: int) -> int | None:
        found = self.within(uncompressed_offset, uncompressed_offset + 1)
        return found[0] if found else None

    def within(self, start: int, end: int) -> list[int]:
        return [
            chunk.chunk_index
            for chunk in sorted(self.chunks, key=lambda c: c.uncompressed_offset)
            if start < end and chunk.uncompressed_offset < end and chunk.uncompressed_end > start
        ]

    def layout(self) -> PlainLayout | None:
        starts = [chunk.uncompressed_offset for chunk in self.chunks]
        if starts != sorted(set(starts)) or any(start % ALIGN for start in starts):
            return None
        ends = [-(-chunk.uncompressed_end // ALIGN) * ALIGN for chunk in self.chunks]
        blocks = array("I", [start // ALIGN for start in starts])
        return PlainLayout(memoryview(blocks), is_dense=starts == [0, *ends[:-1]])


class TableBootstrap:
    """The part of a bootstrap that a blob asks: its chunk table, as v5 has it."""

    def __init__(self, table: ListTable) -> None:
        self.table = table

    def chunk_table(self, blob_index: int) -> ListTable:
        return self.table

    def digests(self, blob_index: int) -> None:
        return None


class SilentBootstrap:
    """The part of a v6 bootstrap that a blob asks: it has no records and no digests of chunks."""

    def chunk_table(self, blob_index: int) -> None:
        return None

    def digests(self, blob_index: int) -> None:
        return None


@dataclass
class MadeBlob:
    info: BlobInfo
    stored: bytes
    chunks: list[Chunk]
    plain: list[bytes]
    table: ListTable = field(init=False)

    def __post_init__(self) -> None:
        self.table = ListTable(self.chunks)

    def extent(self, index: int, offset: int = 0, length: int | None = None) -> Extent:
        chunk = self.chunks[index]
        size = chunk.uncompressed_size - offset if length is None else length
        return Extent(0, index, chunk.uncompressed_offset, chunk.uncompressed_size, offset, size)

    def bytes_of(self, extents: Sequence[Extent]) -> bytes:
        return b"".join(self.plain[e.chunk_index][e.offset : e.offset + e.length] for e in extents)


def make_blob(
    sizes: Sequence[int], *, codec: Codec = Codec.ZSTD, seed: int = 1, blob_id: str = "ab" * 32
) -> MadeBlob:
    rng = random.Random(seed)
    chunks: list[Chunk] = []
    plains: list[bytes] = []
    stored = bytearray()
    position = 0
    for index, size in enumerate(sizes):
        plain = rng.randbytes(max(size // 2, 1)) + bytes(size - max(size // 2, 1))
        packed = zstandard.ZstdCompressor().compress(plain) if codec is Codec.ZSTD else plain
        is_compressed = len(packed) < len(plain)
        raw = packed if is_compressed else plain
        chunks.append(
            Chunk(
                index,
                len(stored),
                len(raw),
                position,
                size,
                is_compressed,
                digest=blake3.blake3(plain).digest(),
            )
        )
        stored += raw
        plains.append(plain)
        position += -(-size // ALIGN) * ALIGN
    info = make_info(
        blob_id,
        chunk_count=len(chunks),
        codec=codec,
        compressed_size=len(stored),
        compressed_data_size=len(stored),
        uncompressed_size=position,
    )
    return MadeBlob(info, bytes(stored), chunks, plains)
