"""Bootstraps that lie inside a data blob: fetched from the blob's tail, kept beside the cache (spec blob §3).

The path given as bootstrap then *names* the blob: its file name up to the first dot is the blob id.
"""

import logging
from mmap import mmap
from pathlib import Path

from nydusd.blob.inline import extract_bootstrap, find_bootstrap, tail_range, within_tail
from nydusd.errors import BackendError, FormatError, NotFoundError
from nydusd.rafs.bootstrap import inlining_blob_id, open_bootstrap, open_mapped
from nydusd.rafs.model import Bootstrap
from nydusd.storage.backend.base import Backend
from nydusd.storage.cache.files import BOOT_SUFFIX, replace_file
from nydusd.storage.threads import Workers

log = logging.getLogger(__name__)


async def open_inline_bootstrap(
    path: Path, backend: Backend, directory: Path | None, workers: Workers
) -> Bootstrap:
    """Return the bootstrap inside the blob that `path` names; from `<id>.image.boot` if a mount left it.

    Needs the backend once; the extracted file is written aside and renamed. Raises NotFoundError if the
    blob holds no bootstrap: then `path` is neither a bootstrap nor names one.
    """
    blob_id = inlining_blob_id(path)
    kept = directory / f"{blob_id}{BOOT_SUFFIX}" if directory is not None else None
    if kept is not None and kept.exists():
        try:
            return open_bootstrap(kept, extracted_from=blob_id)
        except FormatError as exc:
            log.warning("extracted bootstrap is fetched again: file=%s reason=%s", kept, exc)
    try:
        size = await backend.size(blob_id)
    except BackendError as exc:
        what = f"{path}: neither RAFS v5 nor v6, and no blob of that name can be had"
        raise BackendError(f"{what} ({exc})", temporary=exc.temporary) from exc
    at = tail_range(size)
    tail = await backend.read(blob_id, at.offset, at.length)
    try:
        segment = find_bootstrap(tail, size, blob_id)
    except NotFoundError as exc:
        raise FormatError(
            "file", "no bootstrap", f"nor one inside a blob ({exc})", str(path)
        ) from exc
    stored = within_tail(tail, size, segment)
    if stored is None:
        stored = await backend.read(blob_id, segment.offset, segment.compressed_size)
    plain = await workers.run(extract_bootstrap, stored, segment, blob_id)
    if kept is not None:
        try:
            await workers.run(replace_file, kept, [plain])
        except OSError as exc:
            log.warning("bootstrap kept in memory only: file=%s reason=%s", kept, exc.strerror)
        else:
            return open_bootstrap(kept, extracted_from=blob_id)
    data = mmap(-1, len(plain))
    data.write(plain)
    return open_mapped(data, f"bootstrap in blob {blob_id}", blob_id)
