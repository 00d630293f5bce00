"""The rules of a blob table entry that both formats share (spec blob §2, §4, §5).

Owns     feature words, the id under which a blob is fetched, how much of an object is chunk data.
Callers  rafs/layout_v5.py and rafs/layout_v6.py, at open, once per blob.
Raises   FormatError. `source` is the bootstrap's path, for the message.
"""

from typing import Final

from nydusd.blob.model import BlobFeature
from nydusd.errors import FormatError

TAR_HEADER_BYTES: Final = 512
BLOB_ID_BYTES_MAX: Final = 128  # 64 in v6; v5 sets no bound, the names of cache files do

_COMPATIBLE_BITS: Final = 0x0FFF_0000  # unknown ones are of no concern to a reader
_RESERVED_BITS: Final = 0x8000_F000  # 12 to 15: unknown incompatible features; 31: never on disk
_KNOWN: Final = BlobFeature(sum(BlobFeature))
_NEEDS_V2: Final = BlobFeature.ZRAN | BlobFeature.BATCH | BlobFeature.ENCRYPTED


def strict_features(word: int, source: str = "") -> BlobFeature:
    """Return the features of a v6 entry; what a reader must know and does not is refused."""
    if word & _RESERVED_BITS:
        raise FormatError("blob features", f"{word:#x}", "bits 12-15 and 31 must be clear", source)
    features = BlobFeature(word & ~_COMPATIBLE_BITS) & _KNOWN
    if features & _NEEDS_V2 and BlobFeature.CHUNK_INFO_V2 not in features:
        rule = "ZRAN, BATCH and ENCRYPTED need CHUNK_INFO_V2"
        raise FormatError("blob features", f"{word:#x}", rule, source)
    if BlobFeature.ENCRYPTED in features and BlobFeature.SEPARATE in features:
        # Key and meta blob digest share one field: taken for an id, a key would show up in URLs.
        raise FormatError("blob features", f"{word:#x}", "ENCRYPTED excludes SEPARATE", source)
    return features


def known_features(word: int) -> BlobFeature:
    """Return the features of a v5 entry, unknown bits dropped (spec blob §5)."""
    return BlobFeature(word & int(_KNOWN))


def data_size(
    features: BlobFeature, compressed_size: int, ci_offset: int | None, source: str = ""
) -> int:
    """Return how many bytes of the object are chunk data (spec blob §2).

    `compressed_size` as the table has it; `ci_offset` None without a CI array (all of v5).
    """
    if BlobFeature.SEPARATE in features or BlobFeature.CAP_TAR_TOC not in features:
        return compressed_size
    end = compressed_size if ci_offset is None else ci_offset
    if BlobFeature.HAS_TAR_HEADER not in features:
        return end
    if end < TAR_HEADER_BYTES:
        raise FormatError("end of chunk data", end, "a tar header must precede it", source)
    return end - TAR_HEADER_BYTES


def checked_blob_id(raw: bytes, source: str = "") -> str:
    """Return a blob id fit to be a file name and a part of a URL.

    Ids are digests in hex, but external objects may bear other names (spec rafs-v6 §6.1). Any that
    could leave the cache directory, hide in it or break a log line is refused.
    """
    try:
        blob_id = raw.decode()
    except UnicodeDecodeError:
        raise FormatError("blob id", raw[:BLOB_ID_BYTES_MAX], "not UTF-8", source) from None
    plain = bool(blob_id) and blob_id.isprintable() and "/" not in blob_id
    if not plain or blob_id.startswith(".") or len(raw) > BLOB_ID_BYTES_MAX:
        rule = f"must be a plain file name, not hidden, of at most {BLOB_ID_BYTES_MAX} bytes"
        raise FormatError("blob id", repr(blob_id[:BLOB_ID_BYTES_MAX]), rule, source)
    return blob_id


def id_from_file_name(file_name: str, source: str = "") -> str:
    """Return the blob id that a bootstrap's file name stands for: its part up to the first dot."""
    return checked_blob_id(file_name.partition(".")[0].encode(errors="surrogateescape"), source)


def data_blob_id(
    entry_id: str, features: BlobFeature, *, file_name: str, extracted: bool, source: str = ""
) -> str:
    """Return the id under which a blob's chunk data is fetched (spec blob §4).

    A bootstrap inside a blob cannot contain that blob's digest: the name of the file it lies in
    (`extracted`: pulled out of a blob, into a file of this name) stands for it.
    """
    inlined = BlobFeature.INLINED_FS_META in features
    old = BlobFeature.CAP_TAR_TOC not in features
    own_blob = inlined and not features & (BlobFeature.EXTERNAL | BlobFeature.SEPARATE)
    if (own_blob or old) and (inlined or (extracted and old)):
        return id_from_file_name(file_name, source)
    return entry_id


def meta_blob_id(
    data_id: str, features: BlobFeature, meta_digest: bytes, *, file_name: str, source: str = ""
) -> str:
    """Return the id of the blob that holds the CI array (spec blob §4)."""
    if BlobFeature.SEPARATE not in features:
        return data_id
    if BlobFeature.INLINED_FS_META in features:
        return id_from_file_name(file_name, source)
    if not any(meta_digest):
        raise FormatError("blob_meta_digest", 0, "SEPARATE needs the meta blob's id", source)
    return meta_digest.hex()
