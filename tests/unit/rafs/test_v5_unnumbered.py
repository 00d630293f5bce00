"""v5 images from before chunks had numbers: the chunks are numbered by where they lie."""

import pytest

from nydusd.blob.model import BlobFeature
from nydusd.errors import FormatError
from nydusd.rafs.layout_v5 import INODE_SLOT_BYTES
from nydusd.rafs.v5 import open_v5
from tests.support.rafs_v5_image import (
    Image,
    Node,
    directory,
    link,
    make_image,
    patched_bytes,
    patched_chunk,
    patched_inode,
    regular,
)

CONTENT = bytes(range(256)) * 40  # three chunks


def old_image(*more: Node) -> Image:
    a = regular(b"a", CONTENT, xattrs=[(b"user.a", b"1")])
    return make_image(
        directory(b"/", a, link(b"b", a), directory(b"d", regular(b"z", b"end")), *more),
        extended=False,
    )


def test_count_and_sizes_are_those_of_the_chunks_in_use() -> None:
    image = old_image()
    (blob,) = open_v5(image.bootstrap, "image.boot").blobs
    assert blob.chunk_count == image.chunk_count == 4
    assert blob.uncompressed_size == len(CONTENT) + 3
    assert blob.compressed_size == blob.compressed_data_size == len(image.blob)
    assert blob.features == BlobFeature(0)


def test_such_numbers_never_reach_a_chunk_map_on_disk() -> None:
    (blob,) = open_v5(old_image().bootstrap, "image.boot").blobs
    assert not blob.has_indexed_map
    (numbered,) = open_v5(make_image(directory(b"/", regular(b"a", b"x"))).bootstrap, "boot").blobs
    assert numbered.has_indexed_map


def test_extents_and_table_agree_on_numbers() -> None:
    image = old_image()
    bootstrap = open_v5(image.bootstrap, "image.boot")
    table = bootstrap.chunk_table(0)
    assert len(table) == 4
    seen = []
    for ino in (2, 5):
        inode = bootstrap.inode(ino)
        for extent in bootstrap.extents(inode, 0, inode.size):
            assert table.claim(extent.chunk_index) == (extent.chunk_offset, extent.chunk_size)
            chunk = table.chunk(extent.chunk_index)
            assert chunk.chunk_index == extent.chunk_index
            assert table.locate(chunk.uncompressed_offset) == extent.chunk_index
            seen.append(extent.chunk_index)
    assert seen == [0, 1, 2, 3]


def test_an_image_without_blobs_needs_no_numbers() -> None:
    image = make_image(directory(b"/", regular(b"a")), blob_ids=(), extended=False)
    bootstrap = open_v5(image.bootstrap, "image.boot")
    assert bootstrap.blobs == ()
    assert bootstrap.extents(bootstrap.inode(2), 0, 10) == []


@pytest.mark.parametrize(
    "fields",
    [
        {"uncompressed_offset": (1 << 64) - 1},
        {"compressed_offset": 1 << 40},
    ],
    ids=str,
)
def test_a_chunk_beyond_all_limits_fails_alone(fields: dict[str, int]) -> None:
    image = old_image()
    broken = patched_chunk(image, image.node(b"z"), **fields)
    bootstrap = open_v5(broken, "image.boot")
    table = bootstrap.chunk_table(0)
    assert len(table) == 3
    inode = bootstrap.inode(5)
    with pytest.raises(FormatError, match="chunk index"):
        table.claim(bootstrap.extents(inode, 0, 3)[0].chunk_index)
    assert bootstrap.blobs[0].uncompressed_size == len(CONTENT)


@pytest.mark.parametrize(
    "fields",
    [{"i_child_count": 0xFFFF_FFFF}, {"i_flags": 4, "i_symlink_size": 65535}, {"i_flags": 4}],
    ids=str,
)
def test_a_file_that_crosses_the_end_is_passed_over(fields: dict[str, int]) -> None:
    image = old_image()
    bootstrap = open_v5(patched_inode(image, image.node(b"z"), **fields), "image.boot")
    assert bootstrap.blobs[0].chunk_count == 3


def test_a_slot_outside_the_file_is_passed_over() -> None:
    image = old_image()
    slot = 8192 + (image.node(b"z").index - 1) * INODE_SLOT_BYTES
    for value in (b"\0" * 4, b"\xff" * 4):
        bootstrap = open_v5(patched_bytes(image.bootstrap, slot, value), "image.boot")
        assert bootstrap.blobs[0].chunk_count == 3


def test_inodes_that_share_one_record_cannot_make_the_walk_long() -> None:
    image = make_image(
        directory(b"/", regular(b"a", bytes(4096 * 50)), *(regular(b"%d" % n) for n in range(60))),
        extended=False,
    )
    assert image.node(b"a").index == 62
    large = image.bootstrap[
        8192 + 61 * 4 : 8192 + 62 * 4
    ]  # its slot, put into all others but the root's
    with pytest.raises(FormatError, match="inodes overlap"):
        open_v5(patched_bytes(image.bootstrap, 8196, large * 60), "image.boot")
