"""Whole v6 blobs with records of 24 bytes, made in the test: ordinary chunks, batches, encrypted or not.

    made = make_v2_blob([5000, [9, 100, 700], 70_000], key=xts_twin.KEY)

is chunk 0 by itself, chunks 1 to 3 in batch 0, chunk 4 by itself; written from the spec's text (spec blob
§7, §8, §10, §11), not from the code under test.
"""

import random
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import blake3
import zstandard

from nydusd import native
from nydusd.blob.model import BlobFeature, BlobInfo, CiLocation, Cipher, CipherKey, Codec, Digester
from nydusd.rafs.model import Extent
from tests.support import native_twins, xts_twin
from tests.support.blob_bytes import Row, make_header
from tests.support.rafs_v6_image import BlobSpec, ChunkRow

BLOCK = 4096
CHUNK_SIZE = 1 << 20
COMPRESSED, BATCH, ENCRYPTED, HAS_CRC = 0x01, 0x04, 0x08, 0x10


_crc32c = cache(native_twins.crc32c)  # bit by bit, that is: slow


@dataclass
class V2Blob:
    info: BlobInfo
    stored: bytes  # the whole object
    plain: list[bytes]  # by chunk
    rows: list[Row]
    contexts: list[tuple[int, int]]  # stored and plain size of each batch
    batches: list[range]  # the chunks of each

    def extent(self, index: int, offset: int = 0, length: int | None = None) -> Extent:
        row = self.rows[index]
        size = row.uncompressed_size - offset if length is None else length
        return Extent(0, index, row.uncompressed_offset, row.uncompressed_size, offset, size)

    def stored_range(self, batch: int) -> tuple[int, int]:
        """Return offset and length of a batch in the object."""
        return self.rows[self.batches[batch][0]].compressed_offset, self.contexts[batch][0]

    def lookup(self, index: int, uncompressed_offset: int) -> tuple[bytes | None, int | None]:
        """Be the image's chunk table (DigestSource)."""
        if not 0 <= index < len(self.rows):
            return None, None
        if self.rows[index].uncompressed_offset != uncompressed_offset:
            return None, None
        return blake3.blake3(self.plain[index]).digest(), _crc32c(self.plain[index])

    def digests(self, blob_index: int) -> "V2Blob":
        """Be the part of a bootstrap that a blob asks: digests, but no records."""
        return self

    def chunk_table(self, blob_index: int) -> None:
        return None

    def spec(self) -> BlobSpec:
        """Return the entry of a bootstrap's blob table."""
        info, ci = self.info, self.info.ci
        assert ci is not None
        key = info.cipher_key or CipherKey(bytes(32), bytes(16))
        return BlobSpec(
            info.blob_id,
            chunk_count=info.chunk_count,
            codec=info.codec,
            digester=info.digester,
            features=info.features,
            compressed_size=info.compressed_size,
            uncompressed_size=info.uncompressed_size,
            ci_codec=ci.codec,
            ci_offset=ci.offset,
            ci_compressed_size=ci.compressed_size,
            ci_uncompressed_size=ci.uncompressed_size,
            meta_digest=key.key,
            meta_size=int.from_bytes(key.tweak[:8], "little"),
            cipher_iv=key.tweak[8:],
            cipher=info.cipher,
            slot_blocks=info.uncompressed_size // BLOCK,
        )

    def chunk_rows(self) -> list[ChunkRow]:
        """Return the records of a bootstrap's chunk table."""
        return [
            ChunkRow(
                0,
                index,
                row.uncompressed_offset,
                digest=blake3.blake3(self.plain[index]).digest(),
                flags=HAS_CRC,
                crc32=_crc32c(self.plain[index]),
            )
            for index, row in enumerate(self.rows)
        ]


def make_v2_blob(
    groups: Sequence[int | Sequence[int]],
    *,
    codec: Codec = Codec.ZSTD,
    key: CipherKey | None = None,
    seed: int = 1,
    blob_id: str = "cd" * 32,
    compresses_records: bool = True,
) -> V2Blob:
    rng = random.Random(seed)
    data, position = bytearray(), 0
    plains: list[bytes] = []
    rows: list[Row] = []
    contexts: list[tuple[int, int]] = []
    batches: list[range] = []

    def store(plain: bytes) -> tuple[bytes, int]:
        packed = compress(codec, plain)
        held = plain if packed is None else packed
        return (held if key is None else xts_twin.encrypt(held, key)), packed is not None

    for group in groups:
        sizes = [group] if isinstance(group, int) else list(group)
        members = [_content(rng, size) for size in sizes]
        stored, is_compressed = store(b"".join(members))
        offset = 0
        if not isinstance(group, int):
            batches.append(range(len(rows), len(rows) + len(sizes)))
            contexts.append((len(stored), sum(sizes)))
        for member in members:
            if isinstance(group, int):
                flags = (COMPRESSED if is_compressed else 0) | HAS_CRC | (ENCRYPTED if key else 0)
                extra = _crc32c(member)
                row = Row(len(data), len(stored), position, len(member), flags, extra)
            else:
                flags = COMPRESSED | BATCH | (ENCRYPTED if key else 0)
                extra = (len(contexts) - 1) << 32 | offset
                row = Row(len(data), 0, position, len(member), flags, extra)
            rows.append(row)
            plains.append(member)
            offset += len(member)
            position += -(-len(member) // BLOCK) * BLOCK
        data += stored

    made = V2Blob(
        _info(blob_id, codec, key, uncompressed_size=position),
        bytes(data),
        plains,
        rows,
        contexts,
        batches,
    )
    _add_records(made, compresses=compresses_records)
    return made


def _info(blob_id: str, codec: Codec, key: CipherKey | None, *, uncompressed_size: int) -> BlobInfo:
    return BlobInfo(
        index=0,
        blob_id=blob_id,
        chunk_size=CHUNK_SIZE,
        chunk_count=0,
        codec=codec,
        digester=Digester.BLAKE3,
        features=BlobFeature.ALIGNED | BlobFeature.CAP_TAR_TOC | BlobFeature.CHUNK_INFO_V2,
        compressed_size=0,
        compressed_data_size=0,
        uncompressed_size=uncompressed_size,
        ci=None,
        meta_blob_id=blob_id,
        cipher=Cipher.AES_128_XTS if key else Cipher.NONE,
        cipher_key=key,
    )


def _add_records(made: V2Blob, *, compresses: bool) -> None:
    """Put chunk records, contexts and header behind the data."""
    records = b"".join(row.v2() for row in made.rows)
    table = b"".join(struct.pack("<II32x", *context) for context in made.contexts)
    packed = compress(Codec.ZSTD, records + table) if compresses else None
    ci = packed or records + table
    key, data = made.info.cipher_key, made.stored
    if key is not None:
        ci = xts_twin.encrypt(ci, key)
    codec = Codec.ZSTD if packed else Codec.NONE
    made.info = made.info._replace(
        chunk_count=len(made.rows),
        features=made.info.features
        | (BlobFeature.BATCH if made.contexts else BlobFeature(0))
        | (BlobFeature.ENCRYPTED if key else BlobFeature(0)),
        compressed_size=len(data) + len(ci) + 4096,
        compressed_data_size=len(data),
        ci=CiLocation(len(data), len(ci), len(records + table), codec),
    )
    header = make_header(
        made.info,
        context_offset=len(records) if made.contexts else 0,
        context_size=len(table),
        context_count=len(made.contexts),
    )
    made.stored = data + ci + (header if key is None else xts_twin.encrypt(header, key))


def compress(codec: Codec, plain: bytes) -> bytes | None:
    """Return `plain` compressed, None if it is stored as it is."""
    packed: bytes | None = None
    if codec is Codec.ZSTD:
        packed = zstandard.ZstdCompressor().compress(plain)
    elif codec is Codec.LZ4_BLOCK:
        packed = native.compress(codec, plain)
    return packed if packed is not None and len(packed) < len(plain) else None


def _content(rng: random.Random, size: int) -> bytes:
    """Half of it does not compress, half of it does."""
    noise = rng.randbytes(-(-size // 2))
    return noise + bytes(size - len(noise))
