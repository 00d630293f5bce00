"""From plain bytes to stored chunks: digest, CRC-32C, compression.

Owns     nothing. A `Batch` lends its buffer to one worker at a time.
Callers  worker threads of chunk_stream; every heavy call releases the GIL.
Raises   nothing of its own.
"""

from typing import NamedTuple

from nydusd import native
from nydusd.blob.model import Codec, Digester
from nydusd.builder.ledger import ChunkLedger

HOLE = -1  # `Piece.start` of bytes that are zeros and were never read


class Piece(NamedTuple):
    """One chunk of a file: where its plain bytes lie in the batch's buffer."""

    start: int  # HOLE: zeros
    length: int
    file_offset: int
    times: int  # how often the file has it in a row; more than 1 for holes only


class Encoded(NamedTuple):
    """One chunk ready to be stored."""

    digest: bytes
    crc32: int
    stored: bytes | memoryview  # empty if the chunk was known already
    is_compressed: bool


class Batch:
    """A buffer and the pieces read into it."""

    __slots__ = ("buffer", "pieces", "used", "view")

    def __init__(self, size_bytes: int) -> None:
        """`size_bytes`: at least one chunk."""
        self.buffer = bytearray(size_bytes)
        self.view = memoryview(self.buffer)
        self.used = 0
        self.pieces: list[Piece] = []

    def clear(self) -> None:
        """Make the batch ready to be filled again."""
        self.used = 0
        self.pieces.clear()


class Encoder:
    """How the chunks of one image are digested and compressed. Many threads may use one."""

    def __init__(self, codec: Codec, digester: Digester, chunk_size: int) -> None:
        """`chunk_size`: longest piece, in bytes."""
        self._codec = codec
        self._digester = digester
        self._zeros = memoryview(bytes(chunk_size))

    def encode(self, batch: Batch, ledger: ChunkLedger) -> list[Encoded]:
        """Return one `Encoded` per piece, in order.

        A piece that is in the ledger, or came earlier in the batch, is not compressed again. The
        answer for a chunk that another worker has at the same time is the same bytes twice; the
        caller, who settles batches in order, keeps the first.
        """
        codec, digester = self._codec, self._digester
        digest_of, crc_of, compress = native.digest, native.crc32c, native.compress
        seen: set[bytes] = set()
        answers: list[Encoded] = []
        for start, length, _, _ in batch.pieces:
            plain = self._zeros[:length] if start == HOLE else batch.view[start : start + length]
            digest = digest_of(digester, plain)
            if digest in seen or ledger.position_of(digest) is not None:
                answers.append(Encoded(digest, 0, b"", False))
                continue
            seen.add(digest)
            packed = compress(codec, plain) if codec is not Codec.NONE else None
            if packed is None or len(packed) >= length:
                answers.append(Encoded(digest, crc_of(plain), plain, False))
            else:
                answers.append(Encoded(digest, crc_of(plain), packed, True))
        return answers
