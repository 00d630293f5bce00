"""Blobs as local files: their chunk records, their inlined bootstrap, their chunks one by one.

Owns     no open file between calls; the plain bytes of one batch or zran context, for its next chunk.
Callers  check.
Raises   NotFoundError for a blob that is not there, FormatError and IntegrityError for a broken one.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from nydusd import native
from nydusd.blob import encryption
from nydusd.blob.blob_meta import open_stored, stored_range
from nydusd.blob.inline import extract_bootstrap, find_bootstrap, tail_range
from nydusd.blob.model import BlobInfo, Chunk, ChunkTable, DigestSource
from nydusd.blob.segment import ByteRange
from nydusd.errors import FormatError, NotFoundError, NydusError, UnsupportedError
from nydusd.records import Buffer


class BlobFiles:
    """The blobs in a folder, or one blob that stands for the image's only one."""

    def __init__(self, folder: Path | None = None, single: Path | None = None) -> None:
        """Give one of the two."""
        self._folder = folder
        self._single = single
        self._context: tuple[str, int, int] | None = None  # blob, number and place of the last one
        self._plain: Buffer = b""  # that it gave
        self.verified = 0  # chunks that were decoded and found right

    def path_of(self, blob_id: str) -> Path:
        """Return the file of a blob."""
        if self._single is not None:
            return self._single
        assert self._folder is not None
        return self._folder / blob_id

    def chunk_table(self, info: BlobInfo, digests: DigestSource | None) -> ChunkTable:
        """Return a v6 blob's chunks from the records at its end (spec blob §7)."""
        wanted = stored_range(info)
        with _opened(self.path_of(info.meta_blob_id)) as file:
            stored = _read(file, wanted)
        return open_stored(stored, info, digests)

    def check_chunks(
        self,
        info: BlobInfo,
        table: ChunkTable,
        fault: Callable[[str, object], None],
        *,
        verify: bool,
    ) -> str:
        """Check every chunk record against the blob's bounds and, with `verify`, the bytes.

        Return what was left out, and why; empty if nothing was. Records of a v5 image are in its
        bootstrap and were checked with the files that have them; some blobs have chunks without any.
        """
        where = f"blob {info.blob_id}"
        unsupported, why = 0, ""
        try:
            with _opened(self.path_of(info.blob_id)) as file:
                size = os.fstat(file.fileno()).st_size
                if size < info.compressed_data_size:
                    fault(where, f"has {size} bytes, its data takes {info.compressed_data_size}")
                for index in range(len(table)):
                    try:
                        chunk = table.chunk(index)
                    except UnsupportedError as exc:
                        unsupported, why = unsupported + 1, str(exc)
                        continue
                    except FormatError as exc:
                        if info.ci is not None:
                            fault(f"{where}: chunk {index}", exc)
                        continue
                    if verify:
                        self._verify(info, chunk, file, fault)
        except NydusError as exc:
            fault(where, exc)
        return f"{unsupported} chunks not checked, the last because: {why}" if unsupported else ""

    def _verify(
        self,
        info: BlobInfo,
        chunk: Chunk,
        file: BinaryIO,
        fault: Callable[[str, object], None],
    ) -> None:
        """Decode a chunk and compare it with what its record says of it."""
        where = f"blob {info.blob_id}: chunk {chunk.chunk_index}"
        try:
            stored, at, chunk = self._opened(info, chunk, file)
        except FormatError as exc:
            fault(where, exc)
            return
        plain = bytearray(chunk.uncompressed_size)
        offset = chunk.uncompressed_offset
        (result,) = native.decode_to_memory(
            stored, at, [chunk], info.codec, info.digester, plain, offset
        )
        if result.status is native.Status.SAVED:
            self.verified += 1
        else:
            fault(where, result.status.name.lower().replace("_", " "))

    def _opened(self, info: BlobInfo, chunk: Chunk, file: BinaryIO) -> tuple[Buffer, int, Chunk]:
        """Return bytes that the chunk can be decoded from, where they begin, and how it lies in them."""
        context, at = chunk.context, chunk.compressed_offset
        key = (info.blob_id, context.number, at) if context is not None else None
        if key is None or key != self._context:
            stored: Buffer = _read(file, ByteRange(at, chunk.compressed_size))
            stored, (chunk,) = encryption.decrypt_run(stored, at, [chunk], info.cipher_key)
            if context is None:
                return stored, at, chunk
            plain = context.decode(stored)
            if plain is None:
                rule = f"must give {context.uncompressed_size} bytes"
                raise FormatError(f"context {context.number}", "broken", rule)
            self._context, self._plain = key, plain
        return self._plain, 0, chunk.out_of_context()


@contextmanager
def inlined_bootstrap(path: Path) -> Iterator[bytes]:
    """Yield the bootstrap that is stored at the end of blob `path` (spec blob §3)."""
    with _opened(path) as file:
        size = os.fstat(file.fileno()).st_size
        try:
            segment = find_bootstrap(_read(file, tail_range(size)), size, str(path))
        except NotFoundError:
            what = "neither a bootstrap of RAFS v5 or v6 nor a blob that contains one"
            raise FormatError("content", "unknown", what, str(path)) from None
        yield extract_bootstrap(_read(file, segment.byte_range), segment, str(path))


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    try:
        with path.open("rb") as file:
            yield file
    except OSError as exc:
        raise NotFoundError(f"{path}: {exc.strerror}") from exc


def _read(file: BinaryIO, wanted: ByteRange) -> bytes:
    """Return exactly the bytes of a range."""
    data = os.pread(file.fileno(), wanted.length, wanted.offset)
    if len(data) != wanted.length:
        raise FormatError(
            f"bytes at {wanted.offset}", len(data), f"must be {wanted.length}", str(file.name)
        )
    return data
