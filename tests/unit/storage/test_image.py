import stat

import pytest

from nydusd.errors import BackendError, FormatError
from nydusd.rafs.model import Extent, Inode
from nydusd.storage.image import Image
from nydusd.storage.stats import BackendStats
from tests.support.blobs import make_blob
from tests.support.memory_backend import MemoryBackend


class OneFile:
    """A bootstrap with one file whose extents are given."""

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
