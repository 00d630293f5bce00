"""RAFS v5 bootstraps made in the test: what is told of a good one, and how a bad one fails."""

import mmap
import os
import stat
import struct
from pathlib import Path

import pytest

from nydusd.blob.model import BlobFeature, Codec, Digester
from nydusd.errors import FormatError, NotFoundError, UnsupportedError
from nydusd.rafs.layout_v5 import I_FLAG_HAS_HOLE
from nydusd.rafs.model import DirEntry, Extent, Inode
from nydusd.rafs.v5 import BootstrapV5, open_v5
from tests.support.rafs_v5_image import (
    BLOB_ID,
    CHUNK_SIZE,
    Image,
    Node,
    directory,
    link,
    make_image,
    name_position,
    patched_bytes,
    patched_chunk,
    patched_inode,
    patched_superblock,
    regular,
    special,
    symlink,
)

CONTENT = bytes(range(256)) * 40  # 10,240 bytes: three chunks, the last a short one


def open_image(image: Image, **options: str) -> BootstrapV5:
    return open_v5(image.bootstrap, "image.boot", **options)


def child(bootstrap: BootstrapV5, name: bytes) -> Inode:
    found = bootstrap.lookup(bootstrap.inode(1), name)
    assert found is not None
    return found


def small_image(*more: Node) -> Image:
    return make_image(directory(b"/", regular(b"a", CONTENT), regular(b"z", b"end"), *more))


def names_of(bootstrap: BootstrapV5, ino: int = 1) -> list[bytes]:
    return [entry.name for entry in bootstrap.entries(bootstrap.inode(ino))]


# What a good image tells


def test_an_inode_has_the_attributes_of_its_record() -> None:
    image = small_image(regular(b"f", b"x" * 700, uid=7, gid=8, mtime=(-5, 999_999_999)))
    position = image.node(b"f").position
    assert child(open_image(image), b"f") == Inode(
        ino=3,
        mode=stat.S_IFREG | 0o644,
        nlink=1,
        uid=7,
        gid=8,
        rdev=0,
        size=700,
        blocks=2,
        mtime_s=-5,
        mtime_ns=999_999_999,
        position=position,
    )


def test_only_devices_have_a_device_number() -> None:
    device = special(b"dev", stat.S_IFCHR | 0o600, rdev=0x0105)
    pipe = special(b"pipe", stat.S_IFIFO | 0o600, rdev=0xFFFF_FFFF)
    bootstrap = open_image(small_image(device, pipe))
    assert child(bootstrap, b"dev").rdev == 0x0105
    assert child(bootstrap, b"pipe").rdev == 0


def test_without_explicit_owners_all_belongs_to_this_process() -> None:
    image = make_image(directory(b"/", regular(b"a", uid=7, gid=8)), flags=0x2 | 0x4)
    inode = child(open_image(image), b"a")
    assert (inode.uid, inode.gid) == (os.geteuid(), os.getegid())


def test_lookup_finds_every_name_and_no_other() -> None:
    names = [b"%03d" % number for number in range(0, 200, 2)]
    bootstrap = open_image(make_image(directory(b"/", *(regular(name) for name in names))))
    for name in names:
        assert child(bootstrap, name).size == 0
    root = bootstrap.inode(1)
    for name in (b"", b"\xff", b"-", b"001", b"0000", b"999"):
        assert bootstrap.lookup(root, name) is None


def test_dots_are_the_directory_and_its_parent() -> None:
    image = make_image(directory(b"/", directory(b"d", directory(b"e"))))
    bootstrap = open_image(image)
    root, outer = bootstrap.inode(1), child(bootstrap, b"d")
    inner = bootstrap.lookup(outer, b"e")
    assert inner is not None
    assert bootstrap.lookup(inner, b".") == inner
    assert bootstrap.lookup(inner, b"..") == outer
    assert bootstrap.lookup(outer, b"..") == root
    assert bootstrap.lookup(root, b"..") == root
    assert next(bootstrap.entries(inner, after=1)) == DirEntry(b"..", outer.ino, 2)


def test_listing_goes_on_behind_any_cookie() -> None:
    bootstrap = open_image(small_image(directory(b"d"), symlink(b"s", b"a")))
    root = bootstrap.inode(1)
    whole = list(bootstrap.entries(root))
    assert whole == [
        DirEntry(b".", 1, 1),
        DirEntry(b"..", 1, 2),
        DirEntry(b"a", 2, 3),
        DirEntry(b"d", 3, 4),
        DirEntry(b"s", 4, 5),
        DirEntry(b"z", 5, 6),
    ]
    for position, entry in enumerate(whole):
        assert list(bootstrap.entries(root, entry.cookie)) == whole[position + 1 :]
    assert list(bootstrap.entries(root, 1 << 62)) == []


@pytest.mark.parametrize("kind", ["regular", "symlink"])
def test_names_of_one_file_share_its_inode(kind: str) -> None:
    first = regular(b"a", b"shared") if kind == "regular" else symlink(b"a", b"target")
    image = make_image(directory(b"/", directory(b"d", link(b"again", first)), first))
    bootstrap = open_image(image)
    again = bootstrap.lookup(child(bootstrap, b"d"), b"again")
    assert again == child(bootstrap, b"a")
    assert again is not None
    assert again.nlink == 2
    listed = [entry.ino for entry in bootstrap.entries(child(bootstrap, b"d"))]
    assert listed == [child(bootstrap, b"d").ino, 1, again.ino]


def test_a_link_before_the_first_record_of_its_file_is_accepted() -> None:
    # i_parent > i_ino: the file's first record lies below a later directory in images of old builders.
    first = symlink(b"a", b"target")
    image = make_image(directory(b"/", first, directory(b"d", link(b"again", first))))
    first.name = b"a"
    broken = patched_inode(image, first, i_parent=image.node(b"d").index)
    assert child(open_v5(broken, "image.boot"), b"a").nlink == 2


def test_targets_and_xattrs_come_out_as_they_went_in() -> None:
    xattrs = [(b"user.b", b""), (b"security.capability", b"\0\1\0"), (b"user.a", b"text")]
    link_node = symlink(b"l", b"\xff/" * 999, xattrs=xattrs)
    image = small_image(link_node, regular(b"x", CONTENT, xattrs=xattrs))
    bootstrap = open_image(image)
    assert bootstrap.readlink(child(bootstrap, b"l")) == b"\xff/" * 999
    for name in (b"l", b"x"):
        assert list(bootstrap.xattrs(child(bootstrap, name)).items()) == xattrs
    assert bootstrap.xattrs(child(bootstrap, b"a")) == {}
    assert len(bootstrap.extents(child(bootstrap, b"x"), 0, len(CONTENT))) == 3


def test_a_pair_without_a_name_is_skipped() -> None:
    image = small_image(regular(b"x", xattrs=[(b"user.a", b"1"), (b"user.b", b"2")]))
    node = image.node(b"x")
    area = name_position(node) + 8
    assert image.bootstrap[area + 12 : area + 18] == b"user.a"
    broken = patched_bytes(image.bootstrap, area + 18, b"=")  # the NUL between name and value
    bootstrap = open_v5(broken, "image.boot")
    assert bootstrap.xattrs(child(bootstrap, b"x")) == {b"user.b": b"2"}


def test_extents_cover_what_is_asked_and_end_with_the_file() -> None:
    image = small_image()
    bootstrap = open_image(image)
    inode = child(bootstrap, b"a")
    size = len(CONTENT)
    for offset, length in (
        (0, size),
        (0, 1),
        (4095, 2),
        (4096, 4096),
        (5000, 1 << 40),
        (size - 1, 1),
    ):
        extents = bootstrap.extents(inode, offset, length)
        position = offset
        for extent in extents:
            assert extent.blob_index == 0
            assert position == extent.chunk_index * CHUNK_SIZE + extent.offset
            assert extent.chunk_offset == extent.chunk_index * CHUNK_SIZE
            assert extent.offset + extent.length <= extent.chunk_size
            position += extent.length
        assert position == min(offset + length, size)
    for offset, length in ((size, 1), (size + 5, 5), (0, 0), (-1, 5)):
        assert bootstrap.extents(inode, offset, length) == []


def test_an_extent_says_what_its_chunk_record_says() -> None:
    image = small_image()
    assert open_image(image).extents(child(open_image(image), b"z"), 1, 9) == [
        Extent(0, 3, len(CONTENT), 3, 1, 2)
    ]


def test_the_prefetch_table_ends_at_its_first_zero() -> None:
    image = make_image(directory(b"/", regular(b"a")), prefetch=(2, 1))
    assert open_image(image).prefetch_inodes() == [2, 1]
    table = image.bootstrap.index(struct.pack("<2I", 2, 1), 8192)
    ended = patched_bytes(image.bootstrap, table + 4, bytes(4))
    assert open_v5(ended, "image.boot").prefetch_inodes() == [2]
    outside = patched_bytes(image.bootstrap, table, struct.pack("<I", 77))
    assert open_v5(outside, "image.boot").prefetch_inodes() == [1]


def test_a_blob_is_what_tables_and_flags_say() -> None:
    image = make_image(directory(b"/", regular(b"a", CONTENT)), flags=0x1 | 0x8, readahead=(0, 99))
    (blob,) = open_image(image).blobs
    assert blob.blob_id == blob.meta_blob_id == BLOB_ID.decode()
    assert (blob.codec, blob.digester) == (Codec.NONE, Digester.SHA256)
    assert blob.features == BlobFeature.CAP_TAR_TOC
    assert blob.chunk_size == CHUNK_SIZE
    assert blob.chunk_count == image.chunk_count == 3
    assert blob.compressed_size == blob.compressed_data_size == len(image.blob)
    assert blob.uncompressed_size == len(CONTENT)
    assert blob.ci is None
    assert blob.prefetch_size == 99


@pytest.mark.parametrize(
    ("flags", "codec", "digester"),
    [
        (0, Codec.LZ4_BLOCK, Digester.BLAKE3),
        (0x1 | 0x80 | 0x4 | 0x8, Codec.NONE, Digester.BLAKE3),
        (0x40 | 0x80 | 0x8, Codec.GZIP, Digester.SHA256),
        (0x80, Codec.ZSTD, Digester.BLAKE3),
    ],
)
def test_the_first_flag_counts(flags: int, codec: Codec, digester: Digester) -> None:
    (blob,) = open_image(make_image(directory(b"/"), flags=flags)).blobs
    assert (blob.codec, blob.digester) == (codec, digester)


def test_blobs_of_other_builders_are_stored_plain() -> None:
    (blob,) = open_image(make_image(directory(b"/"), features=0x4000_0800)).blobs
    assert blob.codec is Codec.NONE
    assert BlobFeature.EXTERNAL in blob.features


def test_several_blobs_are_told_apart_from_padding() -> None:
    ids = (b"a" * 64, b"b" * 61, b"c" * 60)
    image = make_image(directory(b"/"), blob_ids=ids)
    assert [blob.blob_id for blob in open_image(image).blobs] == [name.decode() for name in ids]


def test_a_bootstrap_inside_its_blob_takes_the_name_of_its_file() -> None:
    image = make_image(directory(b"/"), features=0x4000_0002)
    taken_out = open_v5(image.bootstrap, "/cache/xyz.image.boot", extracted_from="ef" * 32)
    assert taken_out.blobs[0].blob_id == "ef" * 32
    plain = open_v5(image.bootstrap, "/images/cafe.boot")
    assert plain.blobs[0].blob_id == "cafe"


def test_unknown_blob_features_are_dropped() -> None:
    (blob,) = open_image(make_image(directory(b"/"), features=0xCFFF_F000)).blobs
    assert blob.features == BlobFeature.CAP_TAR_TOC


def test_an_empty_image_has_a_root_and_nothing_else() -> None:
    image = make_image(directory(b"/"), blob_ids=(), extended=False)
    bootstrap = open_image(image)
    assert bootstrap.blobs == ()
    assert names_of(bootstrap) == [b".", b".."]
    assert bootstrap.superblock.inode_count == 1


def test_a_mapped_file_is_closed_with_the_bootstrap(tmp_path: Path) -> None:
    path = tmp_path / "image.boot"
    path.write_bytes(small_image().bootstrap)
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    bootstrap = open_v5(mapped, str(path))
    assert len(bootstrap.chunk_table(0)) == 4
    bootstrap.close()
    assert mapped.closed


# What a bad image does


@pytest.mark.parametrize(
    "fields",
    [
        {"s_magic": 0},
        {"s_fs_version": 0x400},
        {"s_sb_size": 4096},
        {"s_block_size": 0},
        {"s_block_size": 5000},
        {"s_block_size": 2048},
        {"s_block_size": 32 << 20},
        {"s_flags": 0x400},
        {"s_flags": 1 << 40},
        {"s_inodes_count": 99},
        {"s_inode_table_entries": 0},
        {"s_inode_table_entries": 0x3FFF_FFFF},
        {"s_inode_table_offset": 8196},
        {"s_inode_table_offset": 0},
        {"s_inode_table_offset": 1 << 63},
        {"s_prefetch_table_offset": 8192},
        {"s_prefetch_table_entries": 0xFFFF_FFFF},
        {"s_blob_table_offset": 8192},
        {"s_blob_table_size": 0xFFFF_FFFF},
        {"s_extended_blob_table_offset": 8},
        {"s_extended_blob_table_offset": 1 << 63},
        {"s_extended_blob_table_entries": 0x0400_0000},
    ],
    ids=str,
)
def test_a_superblock_that_breaks_a_rule_is_refused(fields: dict[str, int]) -> None:
    image = make_image(directory(b"/", regular(b"a", CONTENT)), prefetch=(1,))
    with pytest.raises(FormatError, match=r"image\.boot: "):
        open_v5(patched_superblock(image.bootstrap, **fields), "image.boot")


@pytest.mark.parametrize("size", [0, 8, 8191, 8192, 8200, 8201, -8, -1])
def test_a_short_file_is_refused(size: int) -> None:
    bootstrap = make_image(directory(b"/")).bootstrap
    cut = bootstrap[:size] if size < 8193 and size >= 0 else bootstrap[: len(bootstrap) + size]
    if size > 8192:
        cut = bootstrap[:size]
    with pytest.raises(FormatError):
        open_v5(cut, "image.boot")


def test_fewer_extended_records_than_blobs_are_refused() -> None:
    image = make_image(directory(b"/"), blob_ids=(b"a" * 8, b"b" * 8))
    broken = patched_superblock(image.bootstrap, s_extended_blob_table_entries=1)
    with pytest.raises(FormatError, match="must be 2 at least"):
        open_v5(broken, "image.boot")


@pytest.mark.parametrize("blob_id", [b"../../etc", b"a/b", b".hidden", b"\xff\xfe", b"a\nb"])
def test_a_blob_id_that_is_no_file_name_is_refused(blob_id: bytes) -> None:
    with pytest.raises(FormatError, match="blob id"):
        open_image(make_image(directory(b"/"), blob_ids=(blob_id,)))


@pytest.mark.parametrize(
    "fields",
    [
        {"i_mode": stat.S_IFREG | 0o644},
        {"i_mode": 0},
        {"i_ino": 2},
        {"i_child_index": 1},
        {"i_child_count": 7},
        {"i_nlink": 0},
        {"i_name_size": 0},
    ],
    ids=str,
)
def test_a_bad_root_is_refused_at_open(fields: dict[str, int]) -> None:
    image = small_image()
    with pytest.raises(FormatError):
        open_v5(patched_inode(image, image.nodes[0], **fields), "image.boot")


@pytest.mark.parametrize(
    "fields",
    [
        {"i_ino": 0},
        {"i_ino": 77},
        {"i_ino": 1 << 60},
        {"i_ino": 1},
        {"i_parent": 0},
        {"i_parent": 2},
        {"i_nlink": 0},
        {"i_mode": 0o170644},
        {"i_mode": 0x1_0000 | 0o100644},
        {"i_mtime_nsec": 1_000_000_000},
        {"i_size": CHUNK_SIZE * 3 + 1},
        {"i_size": 1 << 63},
        {"i_child_count": 2},
        {"i_child_count": 0xFFFF_FFFF, "i_size": 0xFFFF_FFFF * CHUNK_SIZE},
        {"i_symlink_size": 65535},
        {"i_flags": 0x4},
    ],
    ids=str,
)
def test_a_bad_inode_fails_alone(fields: dict[str, int]) -> None:
    image = small_image()
    bootstrap = open_v5(patched_inode(image, image.node(b"a"), **fields), "image.boot")
    with pytest.raises(FormatError, match=r"image\.boot: inode"):
        bootstrap.lookup(bootstrap.inode(1), b"a")
    assert child(bootstrap, b"z").size == 3
    assert names_of(bootstrap) == [b".", b"..", b"a", b"z"]
    for entry in bootstrap.entries(bootstrap.inode(1)):
        assert 1 <= entry.ino < 1 << 56


@pytest.mark.parametrize("name", [b"", b"\0", b"/", b"."])
def test_a_child_without_a_usable_name_is_left_out_and_hides_nobody(name: bytes) -> None:
    image = small_image(regular(b"m"), regular(b"n"), regular(b"o"))
    node = image.node(b"n")  # where a binary search looks first
    broken = patched_inode(image, node, i_name_size=len(name))
    broken = patched_bytes(broken, name_position(node), name)
    bootstrap = open_v5(broken, "image.boot")
    assert names_of(bootstrap) == [b".", b"..", b"a", b"m", b"o", b"z"]
    for known in (b"a", b"m", b"o", b"z"):
        assert child(bootstrap, known).nlink == 1
    with pytest.raises(FormatError, match="name"):
        bootstrap.lookup(bootstrap.inode(1), b"n")


@pytest.mark.parametrize("slot", [0, 1, 1024, 1 << 29, 0xFFFF_FFFF, 0x1FFF_FFFF])
def test_a_record_outside_the_file_fails_alone(slot: int) -> None:
    image = small_image()
    slots = struct.Struct("<I")
    bootstrap = open_v5(patched_bytes(image.bootstrap, 8192 + 4, slots.pack(slot)), "image.boot")
    with pytest.raises(FormatError, match="inode table slot"):
        bootstrap.inode(2)
    assert names_of(bootstrap) == [b".", b"..", b"z"]
    assert child(bootstrap, b"z").size == 3


@pytest.mark.parametrize("ino", [0, 4, -1, 1 << 56])
def test_an_inode_number_outside_the_image_is_not_found(ino: int) -> None:
    with pytest.raises(NotFoundError):
        open_image(small_image()).inode(ino)


def test_a_directory_has_one_place() -> None:
    image = make_image(directory(b"/", directory(b"d", directory(b"e")), directory(b"x")))
    outer, inner, other = (image.node(name) for name in (b"d", b"e", b"x"))
    twice = patched_inode(image, other, i_child_index=inner.index, i_child_count=1)
    bootstrap = open_v5(twice, "image.boot")
    with pytest.raises(FormatError, match="must not be linked"):
        bootstrap.lookup(child(bootstrap, b"x"), b"e")
    assert bootstrap.lookup(child(bootstrap, b"d"), b"e") is not None
    upwards = open_v5(patched_inode(image, inner, i_ino=outer.index), "image.boot")
    with pytest.raises(FormatError, match="must not be linked"):
        upwards.lookup(child(upwards, b"d"), b"e")


def test_a_parent_that_is_no_directory_is_refused() -> None:
    image = make_image(directory(b"/", regular(b"a"), directory(b"d")))
    bootstrap = open_v5(patched_inode(image, image.node(b"d"), i_parent=2), "image.boot")
    with pytest.raises(FormatError, match="linked"):
        bootstrap.lookup(bootstrap.inode(1), b"d")
    with pytest.raises(FormatError, match="must be a directory"):
        bootstrap.lookup(bootstrap.inode(3), b"..")


def test_a_file_is_no_directory_and_no_link() -> None:
    bootstrap = open_image(small_image())
    inode, root = child(bootstrap, b"a"), bootstrap.inode(1)
    with pytest.raises(FormatError):
        bootstrap.lookup(inode, b"x")
    with pytest.raises(FormatError):
        list(bootstrap.entries(inode))
    with pytest.raises(FormatError):
        bootstrap.readlink(inode)
    with pytest.raises(FormatError):
        bootstrap.extents(root, 0, 1) or bootstrap.extents(root._replace(size=1), 0, 1)


@pytest.mark.parametrize(
    ("position", "new"),
    [(0, b"\xff" * 8), (0, b"\x0b"), (8, b"\xff\xff\xff\xff"), (8, b"\x0a"), (23, b"\xff\xff")],
)
def test_xattrs_that_leave_their_table_are_refused(position: int, new: bytes) -> None:
    image = small_image(regular(b"x", xattrs=[(b"user.a", b"1"), (b"user.b", b"2")]))
    area = name_position(image.node(b"x")) + 8
    bootstrap = open_v5(patched_bytes(image.bootstrap, area + position, new), "image.boot")
    with pytest.raises(FormatError, match="xattr"):
        bootstrap.xattrs(child(bootstrap, b"x"))


@pytest.mark.parametrize(
    "fields",
    [
        {"file_offset": 0},
        {"file_offset": 1 << 40},
        {"uncompressed_size": 4095},
        {"uncompressed_size": 0},
        {"blob_index": 1},
    ],
    ids=str,
)
def test_a_chunk_that_holds_other_bytes_of_the_file_is_refused(fields: dict[str, int]) -> None:
    image = small_image()
    broken = patched_chunk(image, image.node(b"a"), 1, **fields)
    bootstrap = open_v5(broken, "image.boot")
    inode = child(bootstrap, b"a")
    with pytest.raises(FormatError, match="chunk 1"):
        bootstrap.extents(inode, 0, len(CONTENT))
    assert len(bootstrap.extents(inode, 0, CHUNK_SIZE)) == 1


def test_a_hole_is_refused_and_what_lies_before_it_is_not() -> None:
    image = small_image(regular(b"h", CONTENT, i_flags=I_FLAG_HAS_HOLE))
    whole = open_image(image)
    assert len(whole.extents(child(whole, b"h"), 0, len(CONTENT))) == 3
    sparse = patched_chunk(image, image.node(b"h"), 1, file_offset=8192, uncompressed_size=2048)
    bootstrap = open_v5(sparse, "image.boot")
    inode = child(bootstrap, b"h")
    assert [extent.length for extent in bootstrap.extents(inode, 9, 4087)] == [4087]
    assert [extent.length for extent in bootstrap.extents(inode, 8192, 9)] == [9]
    with pytest.raises(UnsupportedError, match="holes"):
        bootstrap.extents(inode, 4000, 5000)
