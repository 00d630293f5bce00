"""The plain address space of a made blob."""

from tests.support.blobs import MadeBlob


def plain_of(made: MadeBlob, *, extra: int = 0) -> bytes:
    """The whole space up to the blob's last block, and `extra` zeros behind it."""
    end = -(-made.info.uncompressed_size // 4096) * 4096
    space = bytearray(end + extra)
    for chunk, plain in zip(made.chunks, made.plain, strict=True):
        space[chunk.uncompressed_offset : chunk.uncompressed_end] = plain
    return bytes(space)
