"""The chunk digest array that a blob carries itself (spec blob §13, blobcache §6).

Needed where the bootstrap has no record of a chunk, e.g. because a snapshotter cut its chunk table off.
"""

import logging

from nydusd.blob.model import DIGEST_BYTES, BlobFeature, BlobInfo, DigestSource
from nydusd.blob.toc import DigestArray
from nydusd.errors import FormatError
from nydusd.storage.backend.base import Backend
from nydusd.storage.cache.blob_meta import fetch_toc

log = logging.getLogger(__name__)


class NoDigests:
    """For blobs whose chunks carry no digest anywhere: nothing can be checked but sizes."""

    def lookup(self, index: int, uncompressed_offset: int) -> tuple[bytes | None, int | None]:  # noqa: ARG002 - the protocol's
        """Return (None, None)."""
        return None, None


async def fetch_digest_array(backend: Backend, info: BlobInfo) -> DigestSource:
    """Return the blob's own digests, checked against its TOC; `NoDigests` if the blob has none.

    Kept in memory, 32 bytes a chunk: unlike a side file it needs no clean-up (spec blobcache §14), and
    only blobs with incomplete bootstraps come here. Raises BackendError, FormatError, IntegrityError.
    """
    toc = (
        await fetch_toc(backend, info)
        if BlobFeature.INLINED_CHUNK_DIGEST in info.features
        else None
    )
    entry = toc.find("blob.digest") if toc is not None else None
    if entry is None:
        log.info("chunks of a blob carry no digest: blob=%s", info.blob_id)
        return NoDigests()
    expected = info.chunk_count * DIGEST_BYTES
    if entry.compressed_size != expected:
        rule = f"must be {expected}"
        raise FormatError("TOC blob.digest size", entry.compressed_size, rule, info.blob_id)
    stored = await backend.read(info.meta_blob_id, entry.offset, entry.compressed_size)
    return DigestArray(entry.extract(stored, info.blob_id), info.chunk_count, info.blob_id)
