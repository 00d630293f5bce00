"""The chunk records of a v6 blob: from `<id>.blob.meta`, else from the blob's end (spec blobcache §5).

Owns     nothing but the mapping that a returned table holds.
Callers  LazyBlob, one call at a time per blob.
Raises   BackendError if the records cannot be fetched, FormatError or IntegrityError if they are not right.

A side file that is short, foreign or corrupt counts as absent and is replaced. What comes from the
backend is checked against the blob table, and against the blob's TOC where the image names one.
"""

import logging
import mmap
import os
from pathlib import Path

from nydusd.blob.blob_meta import CiTable, compose_meta_file, decode_ci, open_header, open_meta
from nydusd.blob.model import BlobFeature, BlobInfo, CiLocation
from nydusd.blob.segment import check_sha256
from nydusd.blob.toc import Toc, parse_toc, toc_range
from nydusd.errors import FormatError, UnsupportedError
from nydusd.storage.backend.base import Backend
from nydusd.storage.cache.files import META_SUFFIX, replace_file
from nydusd.storage.threads import Workers

log = logging.getLogger(__name__)

CI_HEADER_BYTES = 4096
UNSERVED = ((BlobFeature.TARFS, "tarfs"),)


def refuse_unserved(info: BlobInfo) -> None:
    """Raise UnsupportedError for kinds of blob whose data cannot be read yet."""
    for feature, name in UNSERVED:
        if feature in info.features:
            raise UnsupportedError(f"blob {info.blob_id}: {name} blobs are not supported yet")


def load_cached_table(directory: Path | None, info: BlobInfo) -> CiTable | None:
    """Return the table of an existing `.blob.meta`, None if there is none that can be trusted."""
    if directory is None:
        return None
    path = directory / f"{info.blob_id}{META_SUFFIX}"
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            view = memoryview(mmap.mmap(file.fileno(), size, prot=mmap.PROT_READ)) if size else None
    except FileNotFoundError:
        return None
    except OSError as exc:
        log.warning("blob meta cannot be read: file=%s reason=%s", path, exc.strerror)
        return None
    if view is None:  # another process is between creating and filling it
        return None
    try:
        return open_meta(view, info)
    except FormatError as exc:
        log.info("blob meta is fetched again: file=%s reason=%s", path, exc)
        return None


async def fetch_table(
    backend: Backend, workers: Workers, directory: Path | None, info: BlobInfo
) -> CiTable:
    """Fetch, check and keep the blob's chunk records; return their table.

    The file is written aside and renamed, so that other daemons see it whole or not at all; if it cannot
    be written, the records stay in memory.
    """
    ci = info.ci
    if ci is None:
        raise FormatError("blob.ci", "absent", "a v6 blob needs a chunk-info array", info.blob_id)
    stored = await backend.read(info.meta_blob_id, ci.offset, ci.compressed_size + CI_HEADER_BYTES)
    toc = await fetch_toc(backend, info)
    parts = await workers.run(_decode_meta, bytes(stored), ci, info, toc)
    if directory is not None:
        path = directory / f"{info.blob_id}{META_SUFFIX}"
        try:
            await workers.run(replace_file, path, parts)
        except OSError as exc:
            log.warning("blob meta kept in memory only: file=%s reason=%s", path, exc.strerror)
        else:
            table = load_cached_table(directory, info)
            if table is not None:
                return table
    return open_meta(memoryview(b"".join(parts)), info)


def _decode_meta(stored: bytes, ci: CiLocation, info: BlobInfo, toc: Toc | None) -> list[bytes]:
    header = open_header(stored[ci.compressed_size :], info)
    records = decode_ci(stored[: ci.compressed_size], info)
    entry = toc.find("blob.meta") if toc is not None else None
    if entry is not None:
        check_sha256(records, entry.digest, f"blob {info.meta_blob_id}: blob.meta")
    return compose_meta_file(records, header)


async def fetch_toc(backend: Backend, info: BlobInfo) -> Toc | None:
    """Return the blob's TOC, checked against the blob table's digest; None if the image names none."""
    if not info.toc_size:
        return None
    at = toc_range(await backend.size(info.meta_blob_id), info.toc_size, info.meta_blob_id)
    stored = await backend.read(info.meta_blob_id, at.offset, at.length)
    return parse_toc(bytes(stored), info.toc_digest, info.meta_blob_id)
