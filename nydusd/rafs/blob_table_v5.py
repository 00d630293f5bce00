"""The blobs of a v5 image: blob table and extended blob table as one (spec rafs-v5 §4.3, §4.4).

Owns     nothing: values.
Callers  rafs.v5, at open.
Raises   FormatError; `source` is the bootstrap's path, for the message.
"""

import os
from typing import NamedTuple

from nydusd.blob.features import checked_blob_id, data_blob_id, data_size, known_features
from nydusd.blob.model import BlobFeature, BlobInfo, Codec, Digester
from nydusd.errors import FormatError
from nydusd.rafs.layout_v5 import (
    BLOB_CHUNKS_MAX,
    BLOB_PLAIN_MAX_BYTES,
    BLOB_STORED_MAX_BYTES,
    EXTENDED_BLOB,
    EXTENDED_BLOB_BYTES,
    ExtendedBlob,
    SuperblockV5,
)
from nydusd.rafs.model import SuperblockFlag
from nydusd.records import Buffer


class BlobEntry(NamedTuple):
    """One entry of the blob table, 8 bytes and an id of any length (spec rafs-v5 §4.3)."""

    readahead_offset: int
    readahead_size: int  # bytes; 0: none
    blob_id: bytes


def read_blobs(
    view: Buffer, layout: SuperblockV5, source: str, extracted_from: str | None
) -> tuple[BlobInfo, ...]:
    """Return the image's blobs. Without an extended table all their counts and sizes are 0.

    extracted_from: id of the blob that the bootstrap was taken out of.
    """
    entries = read_blob_table(view, layout)
    extended = read_extended_blobs(view, layout, len(entries), source)
    file_name = extracted_from or os.path.basename(source)  # noqa: PTH119 - a string, no path to a file
    blobs: list[BlobInfo] = []
    for index, (entry, more) in enumerate(zip(entries, extended, strict=True)):
        features = known_features(more.features)
        blob_id = data_blob_id(
            checked_blob_id(entry.blob_id, source),
            features,
            file_name=file_name,
            extracted=extracted_from is not None,
            source=source,
        )
        blobs.append(
            BlobInfo(
                index=index,
                blob_id=blob_id,
                chunk_size=layout.s_block_size,
                chunk_count=more.chunk_count,
                codec=Codec.NONE if BlobFeature.EXTERNAL in features else codec_of(layout.s_flags),
                digester=digester_of(layout.s_flags),
                features=features,
                compressed_size=more.compressed_size,
                compressed_data_size=data_size(features, more.compressed_size, None, source),
                uncompressed_size=more.uncompressed_size,
                ci=None,
                meta_blob_id=blob_id,
                prefetch_size=0 if entry.readahead_offset else entry.readahead_size,
            )
        )
    return tuple(blobs)


def codec_of(flags: int) -> Codec:
    """Return the codec of all blobs: the first flag counts, LZ4 if there is none (spec rafs-v5 §3)."""
    for flag, codec in (
        (SuperblockFlag.COMPRESSION_NONE, Codec.NONE),
        (SuperblockFlag.COMPRESSION_LZ4, Codec.LZ4_BLOCK),
        (SuperblockFlag.COMPRESSION_GZIP, Codec.GZIP),
        (SuperblockFlag.COMPRESSION_ZSTD, Codec.ZSTD),
    ):
        if flags & flag:
            return codec
    return Codec.LZ4_BLOCK


def digester_of(flags: int) -> Digester:
    """Return the digester of all chunks: BLAKE3 unless only SHA-256 is flagged (spec rafs-v5 §3)."""
    sha256 = flags & SuperblockFlag.HASH_SHA256 and not flags & SuperblockFlag.HASH_BLAKE3
    return Digester.SHA256 if sha256 else Digester.BLAKE3


def read_blob_table(view: Buffer, found: SuperblockV5) -> list[BlobEntry]:
    """Return the blob table's entries in order; zero padding behind the last is none."""
    start = found.s_blob_table_offset
    table = bytes(view[start : start + found.s_blob_table_size])
    entries: list[BlobEntry] = []
    position = 0
    # "More than 8": an entry has an id of a byte at least, padding may have up to 7 bytes.
    while len(table) - position > 8:
        end = table.find(b"\0", position + 8)
        if end < 0:  # the last id has no NUL behind it if it needs no padding
            end = len(table)
        readahead_offset = int.from_bytes(table[position : position + 4], "little")
        readahead_size = int.from_bytes(table[position + 4 : position + 8], "little")
        entries.append(BlobEntry(readahead_offset, readahead_size, table[position + 8 : end]))
        position = end + 1
    return entries


def read_extended_blobs(
    view: Buffer, found: SuperblockV5, blob_count: int, source: str = ""
) -> list[ExtendedBlob]:
    """Return one record per blob; records of zeros if the image has no extended table."""
    start = found.s_extended_blob_table_offset
    if not found.has_extended_blobs:
        return [ExtendedBlob(0, 0, 0, 0)] * blob_count
    if found.s_extended_blob_table_entries < blob_count:
        rule = f"must be {blob_count} at least, one per blob"
        raise FormatError(
            "s_extended_blob_table_entries", found.s_extended_blob_table_entries, rule, source
        )
    records = [EXTENDED_BLOB.read(view, start + EXTENDED_BLOB_BYTES * k) for k in range(blob_count)]
    for record in records:
        for field, limit in (
            ("chunk_count", BLOB_CHUNKS_MAX),
            ("uncompressed_size", BLOB_PLAIN_MAX_BYTES),
            ("compressed_size", BLOB_STORED_MAX_BYTES),
        ):
            if getattr(record, field) > limit:
                rule = f"must be {limit} at most"
                raise FormatError(f"blob {field}", getattr(record, field), rule, source)
    return records
