"""The blob table of a v6 bootstrap and the device slots beside it (spec rafs-v6 §5, §6).

Owns     the two records, every check of their numbers, and BlobInfo made of them.
Callers  rafs/v6.py at open, once; the builder for the records.
Raises   FormatError, naming bootstrap and blob. No text of it shows a key.
"""

from collections.abc import Iterable
from pathlib import PurePath
from typing import Annotated, Final, NamedTuple

from nydusd.blob.features import (
    checked_blob_id,
    data_blob_id,
    data_size,
    meta_blob_id,
    strict_features,
)
from nydusd.blob.model import NO_DIGEST, BlobFeature, BlobInfo, CiLocation, Cipher, Codec, Digester
from nydusd.rafs.layout_v6 import (
    BLOB_ENTRY_BYTES,
    SLOT_BYTES,
    SLOTS_OFFSET,
    BootstrapBytes,
    Geometry,
    Rules,
)
from nydusd.records import At, Record
from nydusd.units import KIB, TIB

CHUNKS_PER_BLOB_MAX: Final = 1 << 24
COMPRESSED_SIZE_MAX: Final = 1 * TIB
UNCOMPRESSED_SIZE_MAX: Final = 16 * TIB
CI_END_MAX: Final = 1 << 63
CI_V1_BYTES: Final = 16
CI_V2_BYTES: Final = 24
TOC_BYTES_MIN: Final = 512  # spec blob §13, as the next two
TOC_BYTES_MAX: Final = 64 * KIB
TOC_ENTRY_BYTES: Final = 128

# Blobs whose CI array has more than chunk records, and such as have none or one of another length.
_CI_WITH_MORE: Final = BlobFeature.ZRAN | BlobFeature.BATCH | BlobFeature.ENCRYPTED
_CI_UNRELATED: Final = BlobFeature.TARFS | BlobFeature.IS_CHUNKDICT_GENERATED | BlobFeature.EXTERNAL


class DeviceSlot(NamedTuple):
    """One device of the EROFS device table, 128 bytes (spec rafs-v6 §5)."""

    blob_id: Annotated[bytes, At(0, "64s")]
    blocks: Annotated[int, At(64, "I")]
    mapped_blkaddr: Annotated[int, At(68, "I")]  # in the unified block space; 0: not placed


class BlobEntry(NamedTuple):
    """One blob of the blob table, 256 bytes (spec rafs-v6 §6.1)."""

    blob_id: Annotated[bytes, At(0, "64s")]
    blob_index: Annotated[int, At(64, "I")]
    chunk_size: Annotated[int, At(68, "I")]
    chunk_count: Annotated[int, At(72, "I")]
    compression_algo: Annotated[int, At(76, "I")]
    digest_algo: Annotated[int, At(80, "I")]
    features: Annotated[int, At(84, "I")]
    compressed_size: Annotated[int, At(88, "Q")]
    uncompressed_size: Annotated[int, At(96, "Q")]
    blob_toc_size: Annotated[int, At(104, "I")]
    ci_compressor: Annotated[int, At(108, "I")]
    ci_offset: Annotated[int, At(112, "Q")]
    ci_compressed_size: Annotated[int, At(120, "Q")]
    ci_uncompressed_size: Annotated[int, At(128, "Q")]
    blob_toc_digest: Annotated[bytes, At(136, "32s")]
    blob_meta_digest: Annotated[bytes, At(168, "32s")]  # of an encrypted blob: the key
    blob_meta_size: Annotated[int, At(200, "Q")]  # of an encrypted blob: IV bytes 0 to 7
    cipher_iv: Annotated[bytes, At(208, "8s")]  # IV bytes 8 to 15
    cipher_algo: Annotated[int, At(216, "I")]

    def __repr__(self) -> str:
        """Show no field that may hold key or IV."""
        return f"BlobEntry({self.blob_id!r}, index={self.blob_index}, features={self.features:#x})"


DEVICE_SLOT: Final = Record(DeviceSlot, size_bytes=SLOT_BYTES)
BLOB_ENTRY: Final = Record(BlobEntry, size_bytes=BLOB_ENTRY_BYTES)


def read_blobs(
    data: BootstrapBytes, geometry: Geometry, source: str, extracted_from: str | None
) -> tuple[BlobInfo, ...]:
    """Return the blob table, each entry checked and compared with its device slot.

    `extracted_from`: id of the blob that the bootstrap was pulled out of; None for a file of its own.
    """
    table = geometry.blob_table
    bootstrap_name = PurePath(source).name if extracted_from is None else extracted_from
    blobs = []
    for index in range(table.size // BLOB_ENTRY_BYTES):
        where = f"{source}: blob {index}"
        entry = BLOB_ENTRY.read(data, table.offset + index * BLOB_ENTRY_BYTES)
        slot = DEVICE_SLOT.read(data, SLOTS_OFFSET + index * SLOT_BYTES)
        _check_slot(slot, entry, where)
        features = strict_features(entry.features, where)
        _check_kind(entry, features, geometry, where)
        _check_numbers(entry, index, features, geometry, where)
        blob_id = data_blob_id(
            checked_blob_id(entry.blob_id.rstrip(b"\0"), where),
            features,
            file_name=bootstrap_name,
            extracted=extracted_from is not None,
            source=where,
        )
        meta_id = meta_blob_id(
            blob_id, features, entry.blob_meta_digest, file_name=bootstrap_name, source=where
        )
        blobs.append(_blob_info(entry, features, blob_id, meta_id, where))
    _refuse_twins(blobs, source)
    return tuple(blobs)


def _blob_info(
    entry: BlobEntry, features: BlobFeature, blob_id: str, meta_id: str, where: str
) -> BlobInfo:
    ci = None
    if entry.ci_compressed_size and entry.ci_uncompressed_size:
        ci = CiLocation(
            offset=entry.ci_offset,
            compressed_size=entry.ci_compressed_size,
            uncompressed_size=entry.ci_uncompressed_size,
            codec=Codec(entry.ci_compressor),
        )
    cipher, key = Cipher(entry.cipher_algo), None
    if cipher is not Cipher.NONE:
        from nydusd.blob.encryption import checked_key  # few images have a key

        tweak = entry.blob_meta_size.to_bytes(8, "little") + entry.cipher_iv
        key = checked_key(entry.blob_meta_digest, tweak, where)
    new = BlobFeature.CAP_TAR_TOC in features  # before, the TOC fields were reserved (spec §18)
    return BlobInfo(
        index=entry.blob_index,
        blob_id=blob_id,
        chunk_size=entry.chunk_size,
        chunk_count=entry.chunk_count,
        codec=Codec(entry.compression_algo),
        digester=Digester(entry.digest_algo),
        features=features,
        compressed_size=entry.compressed_size,
        compressed_data_size=data_size(
            features, entry.compressed_size, ci.offset if ci else None, where
        ),
        uncompressed_size=entry.uncompressed_size,
        ci=ci,
        meta_blob_id=meta_id,
        toc_size=entry.blob_toc_size if new else 0,
        toc_digest=entry.blob_toc_digest if new else NO_DIGEST,
        cipher=cipher,
        cipher_key=key,
    )


def _check_slot(slot: DeviceSlot, entry: BlobEntry, where: str) -> None:
    require = Rules(where).require
    name = slot.blob_id.rstrip(b"\0")
    same = name == entry.blob_id.rstrip(b"\0")
    require(same, "id in the device slot", name, "must be that in the blob table")
    require(slot.blocks > 0, "blocks in the device slot", slot.blocks, "must not be 0")


def _check_kind(entry: BlobEntry, features: BlobFeature, geometry: Geometry, where: str) -> None:
    """Check algorithms, and features against each other and against the image's mode."""
    require = Rules(where).require
    for kind, field, number in (
        (Codec, "compression_algo", entry.compression_algo),
        (Codec, "ci_compressor", entry.ci_compressor),
        (Digester, "digest_algo", entry.digest_algo),
        (Cipher, "cipher_algo", entry.cipher_algo),
    ):
        require(number in {int(member) for member in kind}, field, number, "not a known algorithm")
    named = entry.cipher_algo != Cipher.NONE
    agree = named == (BlobFeature.ENCRYPTED in features)
    require(agree, "cipher_algo", entry.cipher_algo, "must agree with the feature ENCRYPTED")

    shown = f"{entry.features:#x}"
    tarfs = BlobFeature.TARFS in features
    require(tarfs == geometry.tarfs, "features", shown, "TARFS must be that of the superblock")
    if tarfs:
        require(BlobFeature.CAP_TAR_TOC in features, "features", shown, "TARFS needs CAP_TAR_TOC")
        require(BlobFeature.ALIGNED not in features, "features", shown, "TARFS excludes ALIGNED")
    else:
        aligned = bool(features & (BlobFeature.ALIGNED | BlobFeature.EXTERNAL))
        require(aligned, "features", shown, "must have ALIGNED")


def _check_numbers(
    entry: BlobEntry, index: int, features: BlobFeature, geometry: Geometry, where: str
) -> None:
    require = Rules(where).require
    require(entry.blob_index == index, "blob_index", entry.blob_index, f"must be {index}")
    same = entry.chunk_size == geometry.chunk_size
    require(same, "chunk_size", entry.chunk_size, f"must be the image's, {geometry.chunk_size}")
    for field, number, limit in (
        ("chunk_count", entry.chunk_count, CHUNKS_PER_BLOB_MAX),
        ("compressed_size", entry.compressed_size, COMPRESSED_SIZE_MAX),
        ("uncompressed_size", entry.uncompressed_size, UNCOMPRESSED_SIZE_MAX),
        ("end of the CI array", entry.ci_offset + entry.ci_compressed_size, CI_END_MAX),
        ("ci_compressed_size", entry.ci_compressed_size, entry.ci_uncompressed_size),
    ):
        require(number <= limit, field, number, f"must be at most {limit}")

    if BlobFeature.CAP_TAR_TOC in features and entry.blob_toc_size:
        toc = entry.blob_toc_size
        fits = TOC_BYTES_MIN <= toc <= TOC_BYTES_MAX and toc % TOC_ENTRY_BYTES == 0
        require(fits, "blob_toc_size", toc, "cannot be that of a table of contents")

    if not features & _CI_UNRELATED:
        record_bytes = CI_V2_BYTES if BlobFeature.CHUNK_INFO_V2 in features else CI_V1_BYTES
        size, records = entry.ci_uncompressed_size, entry.chunk_count * record_bytes
        fits = size >= records if features & _CI_WITH_MORE else size == records
        rule = f"but {entry.chunk_count} chunk records take {records}"
        require(fits, "ci_uncompressed_size", size, rule)


def _refuse_twins(blobs: Iterable[BlobInfo], source: str) -> None:
    """Refuse two entries of one id, which would share a cache file."""
    require = Rules(source).require
    seen: set[str] = set()
    for blob in blobs:
        require(blob.blob_id not in seen, "blob id", blob.blob_id, "is that of two blobs")
        seen.add(blob.blob_id)
