import stat

import pytest

from nydusd.errors import BackendError, FormatError
from nydusd.native_relay import SEGMENT
from nydusd.rafs.model import Extent, Inode, Superblock, SuperblockFlag
from nydusd.storage.image import NATIVE_CHUNKS_MAX, Image
from nydusd.storage.stats import BackendStats
from tests.support.blobs import make_blob
from tests.support.memory_backend import MemoryBackend


class OneFile:
    """A bootstrap with one file whose extents are given."""

    superblock = Superblock(6, SuperblockFlag(0), 1 << 20, 1, {})

    def __init__(self, extents: list[Extent]) -> None:
        self.all = extents
        self.size = sum(e.length for e in extents)
        self.inode_value = Inode(7, stat.S_IFREG | 0o644, 1, 0, 0, 0, self.size, 0, 0, 0, 0)

    def extents(self, inode: Inode, offset: int, size: int) -> list[Extent]:
        end, found, position = min(offset + size, inode.size), [], 0
        for e in self.all:
            low, high = max(offset, position), min(end, position + e.length)
            if low < high:
                found.append(e._replace(offset=e.offset + low - position, length=high - low))
            position += e.length
        return found


async def nothing() -> None:
    return None


def image_of(bootstrap, *blobs) -> Image:
    return Image(bootstrap, blobs, BackendStats("memory"), "/cache", nothing)


async def test_a_file_over_two_blobs_reads_in_file_order(open_blob):
    one = make_blob([5000, 6000], seed=1, blob_id="aa" * 32)
    two = make_blob([7000], seed=2, blob_id="bb" * 32)
    extents = [one.extent(1), two.extent(0)._replace(blob_index=1), one.extent(0)]
    whole = one.plain[1] + two.plain[0] + one.plain[0]
    backend = MemoryBackend({one.info.blob_id: one.stored, two.info.blob_id: two.stored})
    bootstrap = OneFile(extents)
    async with open_blob(one, backend) as first, open_blob(two, backend) as second:
        image = image_of(bootstrap, first, second)
        inode = bootstrap.inode_value
        for offset, size in [(0, 18_000), (0, 99_999), (5999, 2), (17_999, 5), (12_999, 2)]:
            assert bytes(await image.read(inode, offset, size)) == whole[offset : offset + size]
        assert await image.read(inode, 18_000, 10) == b""
        assert await image.read(inode, 1 << 62, 10) == b""
        assert await image.read(inode, 0, 0) == b""
        assert image.cache_stats is not None
        assert image.cache_stats.entries_count == 3


async def test_extents_that_are_too_short_for_the_file_are_an_error_not_a_short_read(open_blob):
    made = make_blob([5000])
    backend = MemoryBackend({made.info.blob_id: made.stored})
    bootstrap = OneFile([made.extent(0)])
    async with open_blob(made, backend) as blob:
        longer = bootstrap.inode_value._replace(size=6000)
        with pytest.raises(FormatError, match="inode 7"):
            await image_of(bootstrap, blob).read(longer, 0, 6000)


async def test_a_blob_index_out_of_range_is_an_error(open_blob):
    made = make_blob([5000])
    bootstrap = OneFile([made.extent(0)._replace(blob_index=3)])
    async with open_blob(made, MemoryBackend({})) as blob:
        with pytest.raises(FormatError, match="blob index"):
            await image_of(bootstrap, blob).read(bootstrap.inode_value, 0, 10)


async def test_the_error_of_one_blob_reaches_the_reader(open_blob):
    made = make_blob([5000])
    bootstrap = OneFile([made.extent(0)])
    backend = MemoryBackend({made.info.blob_id: made.stored})
    backend.failures.append(BackendError("gone"))
    async with open_blob(made, backend) as blob:
        image = image_of(bootstrap, blob)
        with pytest.raises(BackendError, match="gone"):
            await image.read(bootstrap.inode_value, 0, 10)
        assert bytes(await image.read(bootstrap.inode_value, 0, 10)) == made.plain[0][:10]


async def test_bytes_are_had_without_waiting_once_they_are_cached(open_blob):
    made = make_blob([5000, 6000])
    bootstrap = OneFile([made.extent(1), made.extent(0)])
    async with open_blob(made, MemoryBackend({made.info.blob_id: made.stored})) as blob:
        image = image_of(bootstrap, blob)
        inode = bootstrap.inode_value
        assert image.read_now(inode, 0, 100) is None
        assert await image.read(inode, 0, 100) == image.read_now(inode, 0, 100)
        assert image.read_now(inode, 0, 11_000) is None  # not all of it
        whole = await image.read(inode, 0, 11_000)
        assert image.read_now(inode, 0, 99_999) == whole == made.plain[1] + made.plain[0]
        assert image.read_now(inode, 11_000, 1) == b""


async def test_the_map_for_the_relay_covers_the_file_in_its_order(open_blob):
    one = make_blob([5000, 6000], seed=1, blob_id="aa" * 32)
    two = make_blob([7000], seed=2, blob_id="bb" * 32)
    extents = [one.extent(1), two.extent(0)._replace(blob_index=1), one.extent(0, 1000, 2000)]
    bootstrap = OneFile(extents)
    backend = MemoryBackend({one.info.blob_id: one.stored, two.info.blob_id: two.stored})
    async with open_blob(one, backend) as first, open_blob(two, backend) as second:
        image = image_of(bootstrap, first, second)
        inode = bootstrap.inode_value
        assert image.native_map(inode) is None  # the records are not loaded
        await image.read(inode, 0, 15_000)
        found = image.native_map(inode)
        assert found is not None
        assert (found.size, found.sources, found.blocks) == (15_000, (first, second), None)
        assert found.segments is not None
        assert list(SEGMENT.iter_unpack(found.segments)) == [
            (0, 8192, 6000, 1, 0, 0),
            (6000, 0, 7000, 0, 1, 0),
            (13_000, 1000, 2000, 0, 0, 0),
        ]
        assert not found.zero_gaps


async def test_a_file_whose_claims_are_not_the_blobs_has_no_map(open_blob):
    """The relay serves what lies there, whoever claims it."""
    made = make_blob([5000, 6000])
    wrong = made.extent(1)._replace(chunk_offset=made.chunks[1].uncompressed_offset + 4096)
    good, bad = OneFile([made.extent(0)]), OneFile([made.extent(0), wrong])
    nowhere = OneFile([made.extent(0)._replace(blob_index=3)])
    async with open_blob(made, MemoryBackend({made.info.blob_id: made.stored})) as blob:
        await image_of(good, blob).read(good.inode_value, 0, 10)
        assert image_of(good, blob).native_map(good.inode_value) is not None
        assert image_of(bad, blob).native_map(bad.inode_value) is None
        assert image_of(nowhere, blob).native_map(nowhere.inode_value) is None
        longer = good.inode_value._replace(size=6000)
        assert image_of(good, blob).native_map(longer) is None


async def test_a_file_of_very_many_chunks_is_left_to_python(open_blob):
    made = make_blob([5000])
    bootstrap = OneFile([made.extent(0)])
    async with open_blob(made, MemoryBackend({made.info.blob_id: made.stored})) as blob:
        image = image_of(bootstrap, blob)
        await image.read(bootstrap.inode_value, 0, 10)
        huge = bootstrap.inode_value._replace(size=(NATIVE_CHUNKS_MAX << 20) + 1)
        assert image.native_map(huge) is None


@pytest.mark.parametrize(
    "changes",
    [{"chunk_offset": 4096}, {"length": 5001}, {"offset": 1}, {"length": 0}, {"blob_index": 1}],
    ids=str,
)
async def test_a_file_that_contradicts_its_blob_has_no_native_map(open_blob, changes):
    made = make_blob([5000, 6000])
    backend = MemoryBackend({made.info.blob_id: made.stored})
    bootstrap = OneFile([made.extent(1), made.extent(0)])
    async with open_blob(made, backend) as blob:
        image = image_of(bootstrap, blob)
        await image.read(bootstrap.inode_value, 0, 11_000)
        assert image.native_map(bootstrap.inode_value) is not None
        bootstrap.all[1] = bootstrap.all[1]._replace(**changes)
        bootstrap.extents = lambda inode, offset, size: bootstrap.all  # type: ignore[method-assign]
        assert image.native_map(bootstrap.inode_value) is None
