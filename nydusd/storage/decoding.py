"""From stored bytes to plain, checked ones, in a worker thread (design §4 Trust).

Every chunk that carries a digest or CRC is checked here, before its ready bit is set; nothing turns it off.
Chunks of a context are cut out of its plain bytes, which are decoded once for all of them; contexts of one
read are decoded side by side.
"""

import logging
import os
from collections.abc import Sequence
from typing import Final

import trio

from nydusd import native
from nydusd.blob.model import BlobInfo, Chunk, CipherKey, Context
from nydusd.errors import IntegrityError, NydusError
from nydusd.records import Buffer
from nydusd.storage.cache.files import CacheFile
from nydusd.storage.threads import Workers

log = logging.getLogger(__name__)

_UNSAVED: Final = native.Decoded(native.Status.UNSAVED, 0)  # of every chunk, where there is no file


class Decoded:
    """What became of the chunks of one backend read; each is in exactly one of the first three."""

    __slots__ = ("errors", "plain", "saved", "write_error")

    def __init__(self) -> None:
        """Nothing has become of any chunk yet."""
        self.saved: list[int] = []  # in the cache file, not marked yet
        self.plain: dict[int, Buffer] = {}  # right, but in memory only
        self.errors: dict[int, NydusError] = {}
        self.write_error: str | None = None  # why chunks are in memory only

    def add(self, other: "Decoded") -> None:
        """Take over what became of other chunks of the same read."""
        self.saved += other.saved
        self.plain |= other.plain
        self.errors |= other.errors
        self.write_error = other.write_error or self.write_error


class Decoder:
    """Decodes runs of chunks of one blob."""

    def __init__(self, info: BlobInfo, workers: Workers) -> None:
        """`info` names codec and digest algorithm."""
        self._info = info
        self._workers = workers

    async def decode(
        self, stored: Buffer, offset: int, chunks: Sequence[Chunk], file: CacheFile | None
    ) -> Decoded:
        """Decode and check `chunks` out of the stored bytes that begin at blob offset `offset`.

        They are written to `file`; without one, or where the disk refuses, they are kept in memory.
        Raises FormatError for encrypted chunks without a key, or of a size that none has.
        """
        info = self._info
        if info.cipher_key is not None:
            stored, chunks = await self._workers.run(
                _decrypted, stored, offset, chunks, info.cipher_key
            )
        fd = file.fd if file is not None else None
        outcome = Decoded()

        async def decode_part(part: Sequence[Chunk]) -> None:
            outcome.add(await self._workers.run(_decode, info, stored, offset, part, fd))

        parts = _by_context(chunks)
        if len(parts) == 1:
            await decode_part(parts[0])
        else:
            async with trio.open_nursery() as nursery:
                for part in parts:
                    nursery.start_soon(decode_part, part)
        return outcome

    async def verify(self, chunks: Sequence[Chunk], file: CacheFile) -> set[int]:
        """Return the indices of those chunks that the cache file holds right."""
        results = await self._workers.run(
            native.verify_file, file.fd, chunks, int(self._info.digester)
        )
        right: set[int] = set()
        for chunk, result in zip(chunks, results, strict=True):
            if result.status is native.Status.SAVED:
                right.add(chunk.chunk_index)
            else:
                log.warning(
                    "cached chunk is damaged, fetched again: blob=%s chunk=%d check=%s",
                    self._info.blob_id,
                    chunk.chunk_index,
                    result.status.name,
                )
        return right


def _decrypted(
    stored: Buffer, offset: int, chunks: Sequence[Chunk], key: CipherKey
) -> tuple[Buffer, Sequence[Chunk]]:
    from nydusd.blob.encryption import decrypt_run  # few images have a key

    return decrypt_run(stored, offset, chunks, key)


def _by_context(chunks: Sequence[Chunk]) -> list[list[Chunk]]:
    """Return the chunks in parts: those stored by themselves, then those of each context."""
    parts: dict[int | None, list[Chunk]] = {}
    for chunk in chunks:
        number = chunk.context.number if chunk.context is not None else None
        parts.setdefault(number, []).append(chunk)
    return list(parts.values())


def _decode(
    info: BlobInfo, stored: Buffer, offset: int, chunks: Sequence[Chunk], fd: int | None
) -> Decoded:
    """Decode one part in this worker thread, which holds no more than one context's plain bytes."""
    outcome = Decoded()
    context = chunks[0].context
    if context is None:
        runs = chunks
    else:
        begin = context.compressed_offset - offset
        plain = context.decode(memoryview(stored)[begin : begin + context.compressed_size])
        if plain is None:
            for chunk in chunks:
                outcome.errors[chunk.chunk_index] = _broken_context(info, context)
            return outcome
        # From here on they are chunks that are stored raw, in a blob that is the context's plain bytes.
        stored, offset = plain, 0
        runs = [chunk.out_of_context() for chunk in chunks]
    codec, digester = int(info.codec), int(info.digester)
    results: Sequence[native.Decoded] = [_UNSAVED] * len(runs)
    if fd is not None:
        results = native.decode_to_file(stored, offset, runs, codec, digester, fd)
    for chunk, run, result in zip(chunks, runs, results, strict=True):
        index, status = chunk.chunk_index, result.status
        if status is native.Status.SAVED:
            outcome.saved.append(index)
            continue
        if status is native.Status.UNSAVED:
            if fd is not None:
                outcome.write_error = os.strerror(result.errno)
            room, at = bytearray(run.uncompressed_size), run.uncompressed_offset
            (result,) = native.decode_to_memory(stored, offset, (run,), codec, digester, room, at)
            if (status := result.status) is native.Status.SAVED:
                outcome.plain[index] = room
                continue
        outcome.errors[index] = _broken(info, chunk, status)
    return outcome


def _broken(info: BlobInfo, chunk: Chunk, status: native.Status) -> NydusError:
    """Return the error for a chunk whose stored bytes are not what the image says."""
    what = {
        native.Status.DIGEST_MISMATCH: f"digest differs from {(chunk.digest or b'').hex()}",
        native.Status.CRC_MISMATCH: f"CRC-32C differs from {chunk.crc32 or 0:#010x}",
    }.get(status, f"{info.codec.name.lower()} data does not decode to its size")
    return IntegrityError(
        f"blob {info.blob_id}: chunk {chunk.chunk_index} at {chunk.compressed_offset}"
        f"+{chunk.compressed_size}: {what}"
    )


def _broken_context(info: BlobInfo, context: Context) -> NydusError:
    return IntegrityError(
        f"blob {info.blob_id}: context {context.number} at {context.compressed_offset}"
        f"+{context.compressed_size}: does not decode to its {context.uncompressed_size} bytes"
    )
