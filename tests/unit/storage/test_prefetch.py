"""What prefetch asks for, of blobs whose chunks lie in batches."""

from pathlib import Path

import trio

from nydusd.config.model import PrefetchConfig
from nydusd.storage.image import Image
from nydusd.storage.prefetch import MERGE_FLOOR_BYTES, Prefetcher
from nydusd.storage.stats import BackendStats
from tests.support.memory_backend import MemoryBackend
from tests.support.open_blob import opened_blob
from tests.support.v2_blobs import V2Blob, make_v2_blob

ROOT = 1


class WholeImage:
    """The part of a bootstrap that prefetch asks if everything is to be fetched."""

    root_ino = ROOT

    def prefetch_inodes(self) -> list[int]:
        return [ROOT]


async def prefetched(made: V2Blob, backend: MemoryBackend, folder: Path) -> Prefetcher:
    async with opened_blob(made, backend, folder, bootstrap=made) as blob:  # type: ignore[arg-type]

        async def nothing() -> None:
            await trio.lowlevel.checkpoint()

        image = Image(WholeImage(), [blob], BackendStats("memory"), str(folder), nothing)  # type: ignore[arg-type]
        prefetcher = Prefetcher(image, PrefetchConfig(enable=True, threads=2, batch_size=1))
        await prefetcher.run()
        assert blob.is_complete()
    return prefetcher


async def test_a_batch_is_asked_for_once_whatever_its_chunks_are(tmp_path: Path) -> None:
    large = 2 * MERGE_FLOOR_BYTES
    made = make_v2_blob([[9, 100], [large, 50, 60], [7, 8], 4096])
    backend = MemoryBackend({made.info.blob_id: made.stored})
    progress = (await prefetched(made, backend, tmp_path)).progress
    assert progress.stored_bytes == made.info.compressed_data_size
    assert progress.chunks == len(made.plain)
    # the first, the large one with all that is in it, the rest
    assert progress.requests == 3
    fetched = [length for _, offset, length in backend.reads if offset < progress.stored_bytes]
    assert sum(fetched) == made.info.compressed_data_size
