"""A v5 image laid out for the kernel, its device as an ordinary file with every byte in it."""

from collections.abc import Sequence
from pathlib import Path

from nydusd import native
from nydusd.blob.model import ChunkTable
from nydusd.rafs.erofs_from_v5 import SEGMENT, ErofsImage
from nydusd.rafs.v5 import BootstrapV5

NOW_S = 1_700_000_000


def write_device(
    image: ErofsImage, bootstrap: BootstrapV5, blobs: Sequence[bytes], path: Path
) -> None:
    """Decode each segment's chunk to its device address. Segments must say what chunk records say."""
    tables: list[ChunkTable] = [bootstrap.chunk_table(blob.index) for blob in bootstrap.blobs]
    with path.open("wb") as file:
        file.truncate(image.device_blocks * 4096)
        for address, plain_offset, length, number, blob in SEGMENT.iter_unpack(image.segments):
            assert tables[blob].claim(number) == (plain_offset, length)
            chunk = tables[blob].chunk(number)
            plain = blobs[blob][chunk.compressed_offset : chunk.compressed_end]
            if chunk.is_compressed:
                decoded = native.decompress(bootstrap.blobs[blob].codec, plain, length)
                assert decoded is not None
                plain = decoded
            assert len(plain) == length
            file.seek(address)
            file.write(plain)
