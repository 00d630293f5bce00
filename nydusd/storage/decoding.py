"""From stored bytes to plain, checked ones, in a worker thread (design §4 Trust).

Every chunk that carries a digest or CRC is checked here, before its ready bit is set; nothing turns it off.
Chunks of a context are cut out of its plain bytes, which are decoded once for all of them; contexts of one
read are decoded side by side.
"""

import logging
import os
from collections.abc import Sequence

import trio

from nydusd import native
from nydusd.blob.model import BlobInfo, Chunk, CipherKey, Context
from nydusd.errors import IntegrityError, NydusError
from nydusd.records import Buffer
from nydusd.storage.cache.files import CacheFile
from nydusd.storage.threads import Workers

log = logging.getLogger(__name__)


class Decoded:
    """What became of the chunks of one backend read; each is in exactly one of the first three."""

    __slots__ = ("errors", "plain", "saved", "write_error")

    def __init__(self) -> None:
        """Nothing has become of any chunk yet."""
        self.saved: list[int] = []  # in the cache file, not marked yet
        self.plain: dict[int, Buffer] = {}  # right, but in memory only
        self.errors: dict[int, NydusError] = {}
        self.write_error: str | None = None  # why chunks are in memory only


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
        outcome = Decoded()
        if self._info.cipher_key is not None:
            stored, chunks = await self._workers.run(
                _decrypted, stored, offset, chunks, self._info.cipher_key
            )
        alone: list[Chunk] = []
        members: dict[int, list[Chunk]] = {}
        for chunk in chunks:
            if chunk.context is None:
                alone.append(chunk)
            else:
                members.setdefault(chunk.context.number, []).append(chunk)
        async with trio.open_nursery() as nursery:
            for group in members.values():
                nursery.start_soon(self._decode_context, stored, offset, group, file, outcome)
            if alone:
                await self._decode_alone(stored, offset, alone, file, outcome)
        return outcome

    async def _decode_alone(
        self,
        stored: Buffer,
        offset: int,
        chunks: Sequence[Chunk],
        file: CacheFile | None,
        outcome: Decoded,
    ) -> None:
        unsaved: Sequence[Chunk] = chunks
        if file is not None:
            unsaved = await self._to_file(stored, offset, chunks, file, outcome)
        for chunk in unsaved:
            await self._to_memory(stored, offset, chunk, outcome)

    async def _decode_context(
        self,
        stored: Buffer,
        offset: int,
        chunks: Sequence[Chunk],
        file: CacheFile | None,
        outcome: Decoded,
    ) -> None:
        """Do the same with chunks of one context."""
        context = chunks[0].context
        assert context is not None
        plain = await self._workers.run(_plain_of, stored, offset, context)
        if plain is None:
            broken = IntegrityError(
                f"blob {self._info.blob_id}: context {context.number} at {context.compressed_offset}"
                f"+{context.compressed_size} does not decode to {context.uncompressed_size} bytes"
            )
            outcome.errors.update((chunk.chunk_index, broken) for chunk in chunks)
            return
        # From here on they are chunks that are stored raw, in a blob that is the context's plain bytes.
        raw = [
            chunk._replace(
                compressed_offset=chunk.context_offset,
                compressed_size=chunk.uncompressed_size,
                is_compressed=False,
                is_encrypted=False,
            )
            for chunk in chunks
        ]
        await self._decode_alone(plain, 0, raw, file, outcome)

    async def _to_file(
        self,
        stored: Buffer,
        offset: int,
        chunks: Sequence[Chunk],
        file: CacheFile,
        outcome: Decoded,
    ) -> list[Chunk]:
        results = await self._workers.run(
            native.decode_to_file,
            stored,
            offset,
            chunks,
            int(self._info.codec),
            int(self._info.digester),
            file.fd,
        )
        unsaved: list[Chunk] = []
        for chunk, result in zip(chunks, results, strict=True):
            if result.status is native.Status.SAVED:
                outcome.saved.append(chunk.chunk_index)
            elif result.status is native.Status.UNSAVED:
                unsaved.append(chunk)
                outcome.write_error = os.strerror(result.errno)
            else:
                outcome.errors[chunk.chunk_index] = self._broken(chunk, result.status)
        return unsaved

    async def _to_memory(self, stored: Buffer, offset: int, chunk: Chunk, outcome: Decoded) -> None:
        plain = bytearray(chunk.uncompressed_size)
        (result,) = await self._workers.run(
            native.decode_to_memory,
            stored,
            offset,
            (chunk,),
            int(self._info.codec),
            int(self._info.digester),
            plain,
            chunk.uncompressed_offset,
        )
        if result.status is native.Status.SAVED:
            outcome.plain[chunk.chunk_index] = plain
        else:
            outcome.errors[chunk.chunk_index] = self._broken(chunk, result.status)

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

    def _broken(self, chunk: Chunk, status: native.Status) -> NydusError:
        """Return the error for a chunk whose stored bytes are not what the image says."""
        what = {
            native.Status.DIGEST_MISMATCH: f"digest differs from {(chunk.digest or b'').hex()}",
            native.Status.CRC_MISMATCH: f"CRC-32C differs from {chunk.crc32 or 0:#010x}",
        }.get(status, f"{self._info.codec.name.lower()} data does not decode to its size")
        return IntegrityError(
            f"blob {self._info.blob_id}: chunk {chunk.chunk_index} at {chunk.compressed_offset}"
            f"+{chunk.compressed_size}: {what}"
        )


def _decrypted(
    stored: Buffer, offset: int, chunks: Sequence[Chunk], key: CipherKey
) -> tuple[Buffer, Sequence[Chunk]]:
    from nydusd.blob.encryption import decrypt_run  # few images have a key

    return decrypt_run(stored, offset, chunks, key)


def _plain_of(stored: Buffer, offset: int, context: Context) -> Buffer | None:
    begin = context.compressed_offset - offset
    return context.decode(memoryview(stored)[begin : begin + context.compressed_size])
