"""What a caller asks of the builder and what it gets back. Values only.

Defaults are those of the reference command line (spec blob §6, rafs-v6 §4).
"""

from dataclasses import dataclass
from enum import Enum

from nydusd.blob.features import checked_blob_id
from nydusd.blob.model import Codec, Digester
from nydusd.errors import ConfigError, FormatError
from nydusd.units import KIB, MIB

CHUNK_MIN_BYTES = 4 * KIB
CHUNK_MAX_BYTES = 16 * MIB  # spec rafs-v6 §4
BLOB_ID_MAX_BYTES = 64  # width of the id in device slot and blob table, spec rafs-v6 §5


class WhiteoutSpec(Enum):
    """Which marker files mean "removed from the layer below"."""

    OCI = "oci"
    OVERLAYFS = "overlayfs"
    NONE = "none"


class PrefetchPolicy(Enum):
    """Where the list of files to fetch early is written down."""

    FS = "fs"  # prefetch table of the bootstrap
    BLOB = "blob"  # these files first in the blob; v5 also notes their length
    NONE = "none"


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """How to turn a directory into an image. Raises ConfigError for values no reader accepts."""

    fs_version: int = 6
    codec: Codec = Codec.ZSTD
    digester: Digester = Digester.BLAKE3
    chunk_size: int = MIB  # bytes, power of two
    aligned_chunk: bool = False  # v5 only: chunks start on 4 KiB; v6 always does
    repeatable: bool = False
    whiteout_spec: WhiteoutSpec = WhiteoutSpec.OCI
    prefetch_policy: PrefetchPolicy = PrefetchPolicy.NONE
    prefetch_paths: tuple[bytes, ...] = ()  # absolute within the image
    blob_id: str | None = None  # None: sha256 of what is written (spec blob §4)
    inline_meta: bool = False  # the bootstrap goes into the blob
    blob_toc: bool = False  # a table of contents ends the blob (v6 only)
    threads: int = 2  # that digest and compress

    def __post_init__(self) -> None:
        """Refuse what the format cannot express."""
        if self.fs_version not in {5, 6}:
            raise ConfigError(f"fs-version is {self.fs_version}, must be 5 or 6")
        size = self.chunk_size
        if not CHUNK_MIN_BYTES <= size <= CHUNK_MAX_BYTES or size & (size - 1):
            raise ConfigError(
                f"chunk-size is {size:#x}, must be a power of two from 0x1000 to 0x1000000"
            )
        if self.codec not in {Codec.NONE, Codec.LZ4_BLOCK, Codec.ZSTD}:
            raise ConfigError(f"compressor {self.codec.name.lower()} cannot be written")
        if self.blob_toc and self.fs_version == 5:
            raise ConfigError("feature blob-toc needs fs-version 6")
        if self.aligned_chunk and self.fs_version == 6:
            raise ConfigError("aligned-chunk is for fs-version 5 only (6 always aligns)")
        if self.blob_id is not None:
            _check_blob_id(self.blob_id)
        if self.threads < 1:
            raise ConfigError(f"threads is {self.threads}, must be at least 1")


def _check_blob_id(blob_id: str) -> None:
    """Refuse what readers refuse (spec rafs-v6 §6.1)."""
    try:
        checked_blob_id(blob_id.encode(errors="surrogateescape"))
    except FormatError as exc:
        raise ConfigError(f"blob-id {exc.value} {exc.rule}") from exc
    if len(blob_id.encode()) > BLOB_ID_MAX_BYTES:
        raise ConfigError(f"blob-id has {len(blob_id)} characters, at most {BLOB_ID_MAX_BYTES} fit")


@dataclass(frozen=True, slots=True)
class BuildResult:
    """What was written, for the caller and for `--output-json`."""

    bootstrap: str  # path as given; empty where it is only inside the blob
    blob_ids: tuple[str, ...]  # one, or none for an image without file data
    blob_path: str  # where the blob lies; empty if there is none
    blob_size: int  # bytes of the blob object
    compressed_size: int  # bytes of chunk data as stored
    uncompressed_size: int  # bytes of the plain address space
    inodes: int  # directory entries, the root included
    chunks: int  # distinct
    dedup_chunks: int  # references to a chunk that was there already
    dedup_bytes: int
    source_bytes: int  # sum of file sizes, hard links counted once
    seconds: dict[str, float]  # by phase
