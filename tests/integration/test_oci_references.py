"""Images that reference OCI layers: what their caches hold, next to the reference's and the builder's.

That every file has its bytes is test_vectors_in_process' business.
"""

import json
from pathlib import Path

import pytest
import trio
import zstandard

from nydusd.config.load import load
from nydusd.config.model import Config
from nydusd.storage.image import Image
from nydusd.storage.pool import open_pool
from nydusd.storage.prefetch import Prefetcher
from tests.support.vectors import each_vector, vector

CACHES = each_vector("targz-ref*/cache", "v6-batch*/cache", "v6-encrypt*/cache")


def configured(folder: Path, cache: Path) -> Config:
    spec = json.loads((folder / "vector.json").read_text())
    text = json.dumps(spec["daemon"]["config"])
    return load(text.replace("@DIR@", str(folder)).replace("@CACHE@", str(cache)), "vector.json")


def files_of(folder: Path) -> dict[str, bytes]:
    """Contents by name; what a vector keeps compressed is unpacked."""
    found = {}
    for path in folder.iterdir():
        content = path.read_bytes()
        if path.suffix == ".zst":
            content = zstandard.ZstdDecompressor().decompressobj().decompress(content)
        found[path.name.removesuffix(".zst")] = content
    return found


def all_set(chunk_map: bytes) -> bytes:
    """The same map as the next daemon to open it leaves it: complete ones bear a mark."""
    return chunk_map[:12] + b"PAMM" + chunk_map[16:]


@pytest.mark.parametrize("cache", CACHES)
async def test_prefetch_alone_fills_the_cache_as_a_walk_with_the_reference_does(
    cache: Path, tmp_path: Path
) -> None:
    folder = cache.parent
    config = configured(folder, tmp_path)
    async with open_pool() as pool:
        image = await pool.open_image(folder / "bootstrap", config)
        await prefetched(image, config)
        assert all(blob.is_complete() for blob in image.blobs)
        await image.aclose()
    ours, theirs = files_of(tmp_path), files_of(cache)
    assert ours.keys() == theirs.keys()
    for name, content in theirs.items():
        if name.endswith(".chunk_map"):
            assert all_set(ours[name]) == all_set(content)
        else:
            assert ours[name] == content, name


async def prefetched(image: Image, config: Config) -> None:
    with trio.fail_after(60):
        settings = config.rafs.prefetch._replace(threads=4, batch_size=1 << 20)
        await Prefetcher(image, settings, files=(b"/",)).run()


async def test_what_the_reference_has_cached_of_a_layer_is_used(tmp_path: Path) -> None:
    folder = vector("targz-ref-fat")
    for name, content in files_of(folder / "cache-partial").items():
        (tmp_path / name).write_bytes(content)
    (chunk_map,) = (content for name, content in files_of(tmp_path).items() if "chunk_map" in name)
    ready = sum(byte.bit_count() for byte in chunk_map[4096:])
    config = configured(folder, tmp_path)
    async with open_pool() as pool:
        image = await pool.open_image(folder / "bootstrap", config)
        (blob,) = image.blobs
        assert 0 < ready < blob.info.chunk_count
        present = [index for index in range(blob.info.chunk_count) if blob.is_ready(index)]
        assert len(present) == ready
        with trio.fail_after(20):
            table = await blob.chunk_table()
            for index in present:
                offset, size = table.claim(index)
                assert len(await blob.read_plain(offset, size)) == size
        assert image.backend_stats.read_count == 0
        await image.aclose()


async def test_images_of_one_layer_share_its_cache(tmp_path: Path) -> None:
    one, other = vector("merge3-zran"), vector("merge3-zran-inline")
    async with open_pool() as pool:
        first = await pool.open_image(one / "bootstrap", configured(one, tmp_path))
        await prefetched(first, configured(one, tmp_path))
        second = await pool.open_image(other / "bootstrap", configured(other, tmp_path))
        assert {blob.info.blob_id for blob in second.blobs} == {
            blob.info.blob_id for blob in first.blobs
        }
        assert all(blob.is_complete() for blob in second.blobs)
        await second.aclose()
        await first.aclose()
    assert len(list(files_of(tmp_path))) == 3 * len(first.blobs)
