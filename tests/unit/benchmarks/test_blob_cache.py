import pytest

from benchmarks.blob_cache import BlobCache, choose_victim
from nydusd.builder.build import build_image
from nydusd.builder.options import BuildOptions
from nydusd.rafs.model import Extent
from nydusd.storage.cache.chunk_map import ChunkMap

CHUNKS = 21


@pytest.fixture
def cache(tmp_path):
    """A cache of CHUNKS chunks of 4 KiB, all there."""
    found = BlobCache(tmp_path, "blob", CHUNKS)
    found.data.write_bytes(b"x" * 4096 * CHUNKS)
    chunk_map = opened(tmp_path)
    for chunk in range(CHUNKS):
        chunk_map.mark([chunk])
    chunk_map.close()
    opened(tmp_path).close()  # only an open writes the complete flag
    return found


def opened(folder):
    return ChunkMap.open(folder / "blob.blob.data.chunk_map", CHUNKS, trusted=True)


def test_a_cache_that_was_never_written_lacks_everything(tmp_path):
    assert BlobCache(tmp_path, "blob", CHUNKS).absent() == CHUNKS


@pytest.mark.parametrize("chunk", [0, 7, 8, CHUNKS - 1])
def test_the_daemon_finds_the_chunk_that_was_taken_out_absent_and_no_other(tmp_path, cache, chunk):
    assert cache.absent() == 0
    cache.take_out(Extent(0, chunk, chunk * 4096, 4096, 0, 100))
    chunk_map = opened(tmp_path)
    assert [i for i in range(CHUNKS) if not chunk_map.is_ready(i)] == [chunk]
    chunk_map.close()
    assert cache.absent() == 1
    data = cache.data.read_bytes()
    assert data.index(b"\0") == chunk * 4096
    assert data.count(b"\0") == 4096


def test_the_victim_is_a_small_file_whose_chunk_nobody_shares(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    (source / "twin1").write_bytes(b"same" * 100)
    (source / "twin2").write_bytes(b"same" * 100)
    (source / "large").write_bytes(b"l" * (1 << 20))
    (source / "alone").write_bytes(b"own content")
    (source / "linked1").write_bytes(b"has two names")
    (source / "linked2").hardlink_to(source / "linked1")
    (tmp_path / "blobs").mkdir()
    build_image(source, BuildOptions(), tmp_path / "bootstrap", tmp_path / "blobs")
    victim, chunk_count = choose_victim(tmp_path / "bootstrap")
    assert str(victim.path) == "alone"
    assert chunk_count == 4
