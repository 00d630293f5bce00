"""Old images as EROFS: what goes in comes out for a reader of EROFS, what cannot is refused with a reason."""

import os
import stat
import struct
from typing import Any

import pytest

from nydusd.errors import UnsupportedError
from nydusd.native_relay import SEGMENT as RELAY_SEGMENT
from nydusd.rafs.erofs_from_v5 import SEGMENT, lay_out
from nydusd.rafs.v5 import open_v5
from tests.support.erofs_reader import ErofsReader
from tests.support.rafs_v5_image import (
    BLOB_ID,
    Image,
    directory,
    link,
    make_image,
    patched_bytes,
    patched_chunk,
    patched_inode,
    regular,
    special,
    symlink,
)

NOW_S = 1_700_000_000
BLAKE3_XATTRS = 0x2 | 0x4 | 0x20  # without EXPLICIT_UID_GID


def laid_out(image: Image) -> ErofsReader:
    return ErofsReader(lay_out(open_v5(image.bootstrap, "boot"), NOW_S).metadata)


def segments_of(image: Image) -> list[tuple[int, ...]]:
    return list(SEGMENT.iter_unpack(lay_out(open_v5(image.bootstrap, "boot"), NOW_S).segments))


def refusal(bootstrap: bytes) -> str:
    with pytest.raises(UnsupportedError) as refused:
        lay_out(open_v5(bootstrap, "image.boot"), NOW_S)
    text = str(refused.value)
    assert "image.boot" in text
    return text


def test_segments_are_as_the_relay_wants_them() -> None:
    made = SEGMENT.pack(1 << 40, 2, 3, 4, 5)
    assert RELAY_SEGMENT.unpack(made) == (1 << 40, 2, 3, 4, 5, 0)


def test_chunks_get_whole_blocks_in_the_order_of_first_use() -> None:
    image = make_image(
        directory(b"/", regular(b"a", b"1" * 5000), regular(b"b", b"2"), regular(b"c", b"3" * 4096))
    )
    assert [(address, length) for address, _, length, _, _ in segments_of(image)] == [
        (0, 4096),
        (4096, 904),
        (8192, 1),
        (12288, 4096),
    ]
    assert [number for *_, number, _ in segments_of(image)] == [0, 1, 2, 3]
    tree = laid_out(image).tree()
    assert tree[b"/a"].runs == [(0, 5000)]  # one run for the kernel, two chunks for us
    assert tree[b"/c"].runs == [(12288, 4096)]


def test_a_file_whose_chunks_lie_apart_keeps_its_index() -> None:
    first, second, third = bytes([1]) * 4096, bytes([2]) * 4096, bytes([3]) * 10
    image = make_image(
        directory(b"/", regular(b"a", first + second), regular(b"b", second + first + third))
    )
    b = image.node(b"b")
    records = [image.node(b"a").chunks[1], image.node(b"a").chunks[0]]
    bootstrap = image.bootstrap
    for ordinal, record in enumerate(records):  # as builders write what they have stored already
        shared = record._replace(file_offset=ordinal * 4096)._asdict()
        bootstrap = patched_chunk(
            Image(bootstrap, image.blob, image.nodes, image.chunk_count), b, ordinal, **shared
        )
    made = lay_out(open_v5(bootstrap, "boot"), NOW_S)
    assert made.device_blocks == 3
    assert ErofsReader(made.metadata).tree()[b"/b"].runs == [(4096, 4096), (0, 4096), (8192, 10)]


def test_an_image_without_data_needs_no_device() -> None:
    image = make_image(directory(b"/", regular(b"empty"), symlink(b"l", b"empty")))
    reader = laid_out(image)
    assert reader.devices == 0
    assert set(reader.tree()) == {b"/", b"/empty", b"/l"}
    assert segments_of(image) == []


def test_attributes_are_those_that_the_tree_frontend_shows() -> None:
    device = special(b"d", stat.S_IFBLK | 0o600, rdev=os.makedev(259, 300_000))
    pipe = special(b"p", stat.S_IFIFO | 0o640, rdev=0xFFFF_FFFF)  # as images from tar have it
    old = regular(b"o", mtime=(-5, 7))
    unknown = regular(b"u", mtime=(0, 0))
    second_0 = regular(b"z", mtime=(0, 1))
    root = directory(b"/", device, pipe, old, unknown, second_0, uid=3, gid=4, mtime=(0, 0))
    root.mode = stat.S_IFDIR | 0o1700
    tree = laid_out(make_image(root)).tree()
    shown = tree[b"/"]
    assert (shown.mode, shown.uid, shown.gid) == (stat.S_IFDIR | 0o755, 3, 4)
    assert shown.mtime == (NOW_S, 0)
    assert tree[b"/d"].rdev == device.rdev
    assert (tree[b"/p"].mode, tree[b"/p"].rdev) == (pipe.mode, 0)
    assert tree[b"/o"].mtime == (-5, 7)
    assert tree[b"/u"].mtime == (NOW_S, 0)
    assert tree[b"/z"].mtime == (0, 1)


def test_without_explicit_owners_everything_is_ours() -> None:
    image = make_image(directory(b"/", regular(b"a", uid=77, gid=78)), flags=BLAKE3_XATTRS)
    shown = laid_out(image).tree()[b"/a"]
    assert (shown.uid, shown.gid) == (os.geteuid(), os.getegid())


@pytest.mark.parametrize("first_is_later", [False, True])
def test_names_of_one_file_lead_to_one_inode(first_is_later: bool) -> None:
    a = regular(b"a", b"text", xattrs=[(b"user.n", b"v")])
    if first_is_later:  # met below a directory that is walked later, as old builders numbered
        sub = directory(b"b", a)
        root = directory(b"/", sub, regular(b"z"))
        image = make_image(root)
        z = image.node(b"z")
        bootstrap = patched_inode(image, z, i_ino=a.index, i_nlink=2)
        image = Image(bootstrap, image.blob, image.nodes, image.chunk_count)
        image = Image(
            patched_inode(image, a, i_nlink=2), image.blob, image.nodes, image.chunk_count
        )
        names = (b"/b/a", b"/z")
    else:
        image = make_image(directory(b"/", a, directory(b"sub", link(b"y", a))))
        names = (b"/a", b"/sub/y")
    tree = laid_out(image).tree()
    one, other = (tree[name] for name in names)
    assert one == other
    assert (one.nlink, one.size, one.xattrs) == (2, 4, {b"user.n": b"v"})


def test_a_directory_of_many_blocks_lists_everything() -> None:
    names = [b"%0*d" % (3 + number % 200, number) for number in range(1500)]
    big = directory(b"big", *(regular(name) for name in names))
    reader = laid_out(make_image(directory(b"/", big, directory(b"empty"))))
    tree = reader.tree()
    assert {path.removeprefix(b"/big/") for path in tree if path.startswith(b"/big/")} == set(names)
    assert tree[b"/big"].size > 10 * 4096
    assert [name for name, _, _ in reader.entries(tree[b"/empty"].nid)] == [b".", b".."]


def test_dots_are_sorted_among_the_names() -> None:
    names = [b"!x", b"-", b".-x", b"...", b"..x", b"a"]
    reader = laid_out(make_image(directory(b"/", *(regular(name) for name in names))))
    listed = [name for name, _, _ in reader.entries(reader.root_nid)]
    assert listed == [b"!x", b"-", b".", b".-x", b"..", b"...", b"..x", b"a"]


@pytest.mark.parametrize("size", [1, 3900, 4000, 4032, 4033, 4095])
def test_targets_of_any_length_are_whole(size: int) -> None:
    targets = {b"l%02d" % number: bytes([97 + number]) * size for number in range(9)}
    image = make_image(
        directory(b"/", *(symlink(name, target) for name, target in targets.items()))
    )
    tree = laid_out(image).tree()
    assert {name: tree[b"/" + name].target for name in targets} == targets


def test_xattrs_of_all_prefixes_and_of_several_blocks_are_kept() -> None:
    xattrs = [
        (b"user.a", b""),
        (b"trusted.overlay.opaque", b"y"),
        (b"security.capability", bytes(20)),
        (b"system.posix_acl_access", b"\2\0\0\0"),
        (b"system.posix_acl_default", b"\2\0\0\0"),
        (b"user.large", b"v" * 9000),
    ]
    nodes = [
        regular(b"file", b"text" * 2000, xattrs=xattrs),
        symlink(b"link", b"t" * 90, xattrs=xattrs),
        directory(b"dir", regular(b"x"), xattrs=xattrs),
    ]
    tree = laid_out(make_image(directory(b"/", *nodes, xattrs=xattrs))).tree()
    for path in (b"/", b"/file", b"/link", b"/dir"):
        assert tree[path].xattrs == dict(xattrs)
    assert tree[b"/link"].target == b"t" * 90
    assert tree[b"/file"].runs == [(0, 8000)]


def test_an_image_with_its_own_chunk_numbers_is_laid_out_by_ours() -> None:
    image = make_image(
        directory(b"/", regular(b"a", b"1" * 5000), regular(b"b", b"2" * 5000)), extended=False
    )
    bootstrap = open_v5(image.bootstrap, "boot")
    table = bootstrap.chunk_table(0)
    made = segments_of(image)
    assert len(made) == 4
    for _, plain, length, number, blob in made:
        assert blob == 0
        assert table.claim(number) == (plain, length)


# ---- what cannot be laid out --------------------------------------------------------------------


def plain_image() -> Image:
    return make_image(
        directory(
            b"/",
            regular(b"a", b"1" * 5000),
            directory(b"d", regular(b"x", b"2"), directory(b"e")),
            symlink(b"l", b"target"),
        )
    )


@pytest.mark.parametrize(
    ("name", "fields", "reason"),
    [
        (b"a", {"i_ino": 999}, "i_ino is 999"),
        (b"a", {"i_ino": 0}, "i_ino is 0"),
        (b"a", {"i_mode": 0o644}, "i_mode"),
        (b"a", {"i_nlink": 0}, "i_nlink"),
        (b"a", {"i_size": 1 << 63}, "i_size"),
        (b"a", {"i_size": 5000 + 4096}, "chunk count"),
        (b"a", {"i_mtime_nsec": 10**9}, "i_mtime_nsec"),
        (b"a", {"i_parent": 0}, "i_parent"),
        (b"a", {"i_child_count": 0xFFFF_FFFF}, "chunk count"),
        (b"a", {"i_child_count": 3, "i_flags": 8}, "3 chunks"),  # HAS_HOLE lets any number pass
        (b"a", {"i_name_size": 0}, "i_name_size"),
        (b"a", {"i_name_size": 256}, "i_name_size"),
        (b"d", {"i_child_index": 1}, "children"),
        (b"d", {"i_child_count": 9}, "children"),
        (b"d", {"i_child_index": 2, "i_child_count": 1}, "children"),
        (b"d", {"i_parent": 2}, "another directory"),
        (b"e", {"i_parent": 1}, "another directory"),
        (b"e", {"i_ino": 3}, "several names"),
        (b"l", {"i_symlink_size": 0}, "i_symlink_size"),
        (b"l", {"i_symlink_size": 5000}, ""),
    ],
)
def test_a_broken_inode_is_refused_with_its_number_and_the_reason(
    name: bytes, fields: dict[str, Any], reason: str
) -> None:
    image = plain_image()
    text = refusal(patched_inode(image, image.node(name), **fields))
    assert reason in text
    assert "inode" in text


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"file_offset": 1}, "as chunk 1"),
        ({"uncompressed_size": 905}, "as chunk 1"),
        ({"blob_index": 1}, "of blob 1"),
        ({"index": 77}, "chunk 77"),
        ({"index": 0}, "as no other does"),
    ],
)
def test_a_chunk_that_contradicts_its_file_or_its_blob_is_refused(
    fields: dict[str, Any], reason: str
) -> None:
    image = plain_image()
    assert reason in refusal(patched_chunk(image, image.node(b"a"), 1, **fields))


def test_names_that_no_path_can_hold_are_refused() -> None:
    image = make_image(directory(b"/", regular(b"abc"), regular(b"abd")))
    start = image.node(b"abd").position + 128
    for name in (b"a/d", b"a\0d"):
        assert "no path" in refusal(patched_bytes(image.bootstrap, start, name))
    assert "not in order" in refusal(patched_bytes(image.bootstrap, start, b"abb"))
    assert "not in order" in refusal(patched_bytes(image.bootstrap, start, b"abc"))
    dots = make_image(directory(b"/", regular(b".a"), regular(b"z")))
    start = dots.node(b".a").position + 128
    assert "itself" in refusal(patched_bytes(dots.bootstrap, start, b".."))


@pytest.mark.parametrize(
    ("xattr", "reason"),
    [
        ((b"system.other", b"v"), "system.other"),
        ((b"system.posix_acl_access2", b"v"), "posix_acl_access2"),
        ((b"user.large", bytes(65536)), "65536 bytes"),
        ((b"user." + b"n" * 256, b"v"), "cannot name"),
    ],
)
def test_xattrs_that_erofs_has_no_room_for_are_refused(
    xattr: tuple[bytes, bytes], reason: str
) -> None:
    assert reason in refusal(make_image(directory(b"/", regular(b"a", xattrs=[xattr]))).bootstrap)


def test_more_xattrs_than_an_inode_counts_are_refused() -> None:
    xattrs = [(b"user.%d" % number, bytes(65000)) for number in range(5)]
    image = make_image(directory(b"/", regular(b"a", xattrs=xattrs)))
    assert "bytes of xattrs" in refusal(image.bootstrap)


def test_xattrs_that_the_superblock_denies_are_refused() -> None:
    image = make_image(directory(b"/", regular(b"a", xattrs=[(b"user.a", b"v")])), flags=0x2 | 0x14)
    assert "denies" in refusal(image.bootstrap)


def test_a_target_with_nul_is_refused() -> None:
    assert "NUL" in refusal(make_image(directory(b"/", symlink(b"l", b"a\0b"))).bootstrap)


def test_directories_that_share_their_children_cost_no_more_than_others() -> None:
    folders = [directory(b"d%03d" % number) for number in range(100)]
    files = [regular(b"f%03d" % number) for number in range(100)]
    last = directory(b"z", *files)
    image = make_image(directory(b"/", *folders, last))
    bootstrap = image.bootstrap
    for folder in folders:
        patched = Image(bootstrap, image.blob, image.nodes, image.chunk_count)
        bootstrap = patched_inode(
            patched, folder, i_child_index=files[0].index, i_child_count=len(files)
        )
    assert "shares its children" in refusal(bootstrap)


def test_inodes_that_lie_over_each_other_cost_no_more_than_others() -> None:
    # Each inode's xattr table begins in the digest of the next one and takes 50 kB of what follows: a
    # quarter of a gigabyte together, out of a bootstrap of 700 kB.
    files = [regular(b"f%04d" % number) for number in range(5000)]
    image = make_image(directory(b"/", *files))
    bootstrap = bytearray(image.bootstrap)
    for file in files[:-400]:
        struct.pack_into("<Q", bootstrap, file.position + 80, 0x4)
        struct.pack_into("<QI7s", bootstrap, file.position + 136, 50_000, 49_996, b"user.a")
    assert "overlaps" in refusal(bytes(bootstrap))


def test_a_blob_number_outside_the_table_is_refused_even_with_two_blobs() -> None:
    image = make_image(
        directory(b"/", regular(b"a", b"text")), blob_ids=(BLOB_ID, b"0ther" * 12 + b"1234")
    )
    assert "blob 2" in refusal(patched_chunk(image, image.node(b"a"), blob_index=2))
    assert "chunk 0 of blob 1" in refusal(patched_chunk(image, image.node(b"a"), blob_index=1))
