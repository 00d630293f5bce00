"""The record of a chunk in a bootstrap, which both formats share (spec rafs-v5 §7, rafs-v6 §11.2)."""

from nydusd.builder.ledger import ChunkLedger
from nydusd.rafs.layout_v5 import CHUNK_COMPRESSED, CHUNK_HAS_CRC32, ChunkRecord


def chunk_record(ledger: ChunkLedger, number: int, file_offset: int | None = None) -> ChunkRecord:
    """Return a chunk as both formats record it (spec rafs-v5 §7).

    `file_offset`: in the file that the record is for; None for the file that brought the chunk.
    """
    row = ledger.row(number)
    return ChunkRecord(
        block_id=row.digest,
        blob_index=0,
        flags=CHUNK_HAS_CRC32 | (CHUNK_COMPRESSED if row.is_compressed else 0),
        compressed_size=row.compressed_size,
        uncompressed_size=row.uncompressed_size,
        compressed_offset=row.compressed_offset,
        uncompressed_offset=row.uncompressed_offset,
        file_offset=row.file_offset if file_offset is None else file_offset,
        index=number,
        crc32=row.crc32,
    )
