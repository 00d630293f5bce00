"""Inodes, directories, symlinks and xattrs of v6 (spec rafs-v6 §7, §8, §10), and what one bad record costs."""

import stat
from itertools import islice

import pytest

from nydusd.errors import FormatError, NotFoundError
from nydusd.rafs.model import DirEntry, Inode
from nydusd.rafs.v6 import INO_MAX, RESUME_POINTS_MAX, BootstrapV6, open_v6
from tests.support.rafs_v6_image import (
    BlobSpec,
    Image,
    Node,
    directory,
    make_image,
    regular,
    symlink,
)
from tests.support.tree import walk

SOURCE = "/images/app/image.boot"


def opened(image: Image) -> BootstrapV6:
    return open_v6(image.data(), SOURCE)


def tree(children: dict[bytes, Node]) -> tuple[BootstrapV6, Image]:
    image = make_image(directory(children), [BlobSpec()])
    return opened(image), image


def at(bootstrap: BootstrapV6, path: bytes) -> Inode:
    inode = bootstrap.inode(bootstrap.root_ino)
    for name in path.strip(b"/").split(b"/"):
        child = bootstrap.lookup(inode, name)
        assert child is not None, name
        inode = child
    return inode


def names(count: int) -> dict[bytes, Node]:
    return {f"entry-{number:05}-{'m' * 20}".encode(): regular(0, []) for number in range(count)}


# Inodes


def test_every_field_of_an_extended_inode() -> None:
    node = regular(
        0x1_0000_0001, [(0, 0, 0)] * 4097, uid=70_000, gid=80_000, nlink=3, mtime_s=-5, mtime_ns=7
    )
    bootstrap, image = tree({b"f": node})
    inode = at(bootstrap, b"f")
    assert inode == Inode(
        ino=image.nid(b"/f"),
        mode=0o100644,
        nlink=3,
        uid=70_000,
        gid=80_000,
        rdev=0,
        size=0x1_0000_0001,
        blocks=0x80_0001,
        mtime_s=-5,
        mtime_ns=7,
        position=image.inode(b"/f"),
    )
    assert bootstrap.inode(inode.ino) == inode


def test_every_field_of_a_compact_inode() -> None:
    bootstrap, _ = tree({b"f": regular(9, [(0, 0, 0)], uid=7, gid=8, nlink=2, compact=True)})
    inode = at(bootstrap, b"f")
    assert (inode.uid, inode.gid, inode.nlink, inode.size) == (7, 8, 2, 9)
    assert (inode.mtime_s, inode.mtime_ns) == (0, 0)
    assert bootstrap.extents(inode, 0, 9)[0].length == 9


def test_a_compact_directory_and_symlink_are_read() -> None:
    child = symlink(b"a/b", compact=True, xattrs=[(1, b"k", b"v")])
    bootstrap, _ = tree({b"d": directory({b"l": child}, compact=True)})
    link = at(bootstrap, b"d/l")
    assert bootstrap.readlink(link) == b"a/b"
    assert bootstrap.xattrs(link) == {b"user.k": b"v"}


@pytest.mark.parametrize("kind", [stat.S_IFCHR, stat.S_IFBLK])
def test_devices_have_a_number(kind: int) -> None:
    bootstrap, _ = tree({b"dev": Node(kind | 0o600, rdev=0x0801)})
    assert at(bootstrap, b"dev").rdev == 0x0801


@pytest.mark.parametrize("kind", [stat.S_IFIFO, stat.S_IFSOCK])
def test_other_special_files_have_none(kind: int) -> None:
    bootstrap, _ = tree({b"s": Node(kind | 0o600, rdev=0x0801)})
    assert at(bootstrap, b"s").rdev == 0


def test_a_compact_device_has_no_number() -> None:
    bootstrap, _ = tree({b"dev": Node(stat.S_IFCHR, rdev=0x0801, compact=True)})
    assert at(bootstrap, b"dev").rdev == 0


def test_hard_links_are_one_inode() -> None:
    node = regular(5, [(0, 0, 0)], nlink=2)
    bootstrap, _ = tree({b"a": node, b"b": node})
    assert at(bootstrap, b"a") == at(bootstrap, b"b")


def test_blocks_are_rounded_up_to_512_bytes() -> None:
    files = {str(size).encode(): regular(size, [(0, 0, 0)]) for size in (1, 512, 513)}
    bootstrap, _ = tree(files)
    assert [at(bootstrap, name).blocks for name in files] == [1, 1, 2]


@pytest.mark.parametrize("ino", [-1, 1 << 40, INO_MAX, 1 << 63])
def test_an_inode_number_outside_the_file_is_not_found(ino: int) -> None:
    bootstrap, _ = tree({})
    with pytest.raises(NotFoundError, match=SOURCE):
        bootstrap.inode(ino)


def test_an_inode_may_end_with_the_file_but_not_behind_it() -> None:
    bootstrap, image = tree({})
    last = (len(image.data()) - image.inode(b"/")) // 32 + bootstrap.root_ino - 1
    with pytest.raises(FormatError, match="no known file type"):
        bootstrap.inode(last)  # 32 zero bytes: within the file, but no inode
    image.patch(len(image.data()) - 32, "<H", 1)
    with pytest.raises(FormatError, match="ends outside the file"):
        opened(image).inode(last)


@pytest.mark.parametrize(
    ("offset", "code", "value", "says"),
    [
        (0, "<H", 3 << 1 | 1, "i_format"),
        (0, "<H", 1 << 4 | 4 << 1 | 1, "i_format"),
        (0, "<H", 2 << 1 | 1, "i_format"),
        (4, "<H", 0o644, "no known file type"),
        (4, "<H", 0o170644, "no known file type"),
        (4, "<H", 0o40644, "not that of a file of mode 0o40644"),
        (8, "<Q", (1 << 64) - 256, "must be at most"),
        (8, "<Q", 1 << 62, "index entries end outside the file"),
        (16, "<I", 0x08, "must say index entries"),
        (40, "<I", 1_000_000_000, "a second or more"),
    ],
)
def test_a_bad_inode_fails_alone(offset: int, code: str, value: int, says: str) -> None:
    _, image = tree({b"bad": regular(5, [(0, 0, 0)]), b"good": regular(6, [(0, 1, 0)])})
    image.patch(image.inode(b"/bad") + offset, code, value)
    bootstrap = opened(image)
    root = bootstrap.inode(bootstrap.root_ino)
    assert [entry.name for entry in bootstrap.entries(root)] == [b".", b"..", b"bad", b"good"]
    with pytest.raises(FormatError, match=says) as caught:
        bootstrap.lookup(root, b"bad")
    assert SOURCE in str(caught.value)
    with pytest.raises(FormatError, match=says):
        bootstrap.inode(image.nid(b"/bad"))
    assert at(bootstrap, b"good").size == 6


# Directories


def test_dots_stand_among_the_names_in_byte_order() -> None:
    bootstrap, _ = tree({name: regular(0, []) for name in (b"!x", b"-x", b".-x", b".x", b"a")})
    root = bootstrap.inode(bootstrap.root_ino)
    entries = list(bootstrap.entries(root))
    assert [entry.name for entry in entries] == [b"!x", b"-x", b".", b".-x", b"..", b".x", b"a"]
    assert [entry.cookie for entry in entries] == [1, 2, 3, 4, 5, 6, 7]


@pytest.mark.parametrize("count", [0, 1, 84, 85, 300, 1200])
def test_every_listed_name_is_found_and_no_other(count: int) -> None:
    children = names(count)
    bootstrap, image = tree({b"d": directory(children)})
    inode = at(bootstrap, b"d")
    assert [entry.name for entry in bootstrap.entries(inode)] == sorted([*children, b".", b".."])
    for entry in bootstrap.entries(inode):
        child = bootstrap.lookup(inode, entry.name)
        assert child is not None
        assert child.ino == entry.ino
    for absent in (
        b"",
        b"\0",
        b"a",
        b"entry-",
        b"entry-00000",
        b"zzz",
        b"\xff" * 255,
        b"...",
        b"-",
    ):
        assert bootstrap.lookup(inode, absent) is None
    assert image.nid(b"/d") == inode.ino


def test_a_directory_whose_tail_is_not_inlined_is_read() -> None:
    bootstrap, _ = tree({b"d": directory(names(200), inline=False)})
    assert len(list(bootstrap.entries(at(bootstrap, b"d")))) == 202
    assert bootstrap.lookup(at(bootstrap, b"d"), b"entry-00199-" + b"m" * 20) is not None


def test_names_of_every_length_are_read() -> None:
    children = {b"x" * length: regular(0, []) for length in range(1, 256)}
    bootstrap, _ = tree(children)
    root = bootstrap.inode(bootstrap.root_ino)
    assert {entry.name for entry in bootstrap.entries(root)} == {*children, b".", b".."}
    assert all(bootstrap.lookup(root, name) for name in children)


def test_a_listing_resumes_behind_any_cookie() -> None:
    bootstrap, _ = tree({b"d": directory(names(300))})
    inode = at(bootstrap, b"d")
    whole = list(bootstrap.entries(inode))
    for after in [*range(len(whole) + 2), *reversed(range(len(whole)))]:
        assert list(bootstrap.entries(inode, after)) == whole[after:]


def test_listings_in_small_pieces_do_not_disturb_each_other() -> None:
    directories = {
        f"d{number}".encode(): directory(names(200)) for number in range(RESUME_POINTS_MAX + 3)
    }
    bootstrap, _ = tree(directories)
    found: dict[bytes, list[bytes]] = {name: [] for name in directories}
    cookies = dict.fromkeys(directories, 0)
    for _ in range(-(-202 // 7)):
        for name in directories:
            piece = list(islice(bootstrap.entries(at(bootstrap, name), cookies[name]), 7))
            found[name] += [entry.name for entry in piece]
            cookies[name] = piece[-1].cookie
    assert all(listed == sorted([*names(200), b".", b".."]) for listed in found.values())


def test_dot_is_the_directory_and_dot_dot_its_parent() -> None:
    bootstrap, _ = tree({b"a": directory({b"b": directory()})})
    root, a, b = bootstrap.inode(bootstrap.root_ino), at(bootstrap, b"a"), at(bootstrap, b"a/b")
    assert bootstrap.lookup(b, b".") == b
    assert bootstrap.lookup(b, b"..") == a
    assert bootstrap.lookup(a, b"..") == root
    assert bootstrap.lookup(root, b"..") == root


def test_a_file_has_no_children() -> None:
    bootstrap, _ = tree({b"f": regular(0, [])})
    inode = at(bootstrap, b"f")
    assert bootstrap.lookup(inode, b"x") is None
    assert bootstrap.lookup(inode, b"..") is None
    assert list(bootstrap.entries(inode)) == []


def test_an_entry_that_points_outside_the_file_fails_alone() -> None:
    _, image = tree({b"a": regular(0, []), b"b": regular(0, [])})
    image.patch(image.block(b"/", 0) + 2 * 12, "<Q", 0x7FFF_FFFF)
    bootstrap = opened(image)
    root = bootstrap.inode(bootstrap.root_ino)
    assert [entry.name for entry in bootstrap.entries(root)] == [b".", b"..", b"a", b"b"]
    with pytest.raises(FormatError, match="lies outside the file"):
        bootstrap.lookup(root, b"a")
    assert bootstrap.lookup(root, b"b") is not None


@pytest.mark.parametrize("nid", [1 << 56, (1 << 64) - 1])
def test_a_nid_too_large_for_a_nodeid_names_no_inode(nid: int) -> None:
    _, image = tree({b"a": regular(0, [])})
    image.patch(image.block(b"/", 0) + 2 * 12, "<Q", nid)
    bootstrap = opened(image)
    root = bootstrap.inode(bootstrap.root_ino)
    *_, entry = bootstrap.entries(root)
    assert entry.ino == INO_MAX
    with pytest.raises(NotFoundError):
        bootstrap.inode(entry.ino)
    with pytest.raises(FormatError, match="nid"):
        bootstrap.lookup(root, b"a")


def test_a_directory_loop_costs_no_more_than_its_steps() -> None:
    _, image = tree({b"d": directory({b"up": directory()})})
    image.patch(image.block(b"/d", 0) + 2 * 12, "<Q", image.nid(b"/"))
    bootstrap = opened(image)
    inode = bootstrap.inode(bootstrap.root_ino)
    for name in (b"d", b"up") * 500:
        child = bootstrap.lookup(inode, name)
        assert child is not None
        inode = child
    assert inode.ino == bootstrap.root_ino


@pytest.mark.parametrize("first", [0, 11, 13, 12 * 400, 0xFFFF])
def test_a_block_without_a_sound_first_name_is_refused(first: int) -> None:
    _, image = tree({b"a": regular(0, [])})
    image.patch(image.block(b"/", 0) + 8, "<H", first)
    bootstrap = opened(image)
    root = bootstrap.inode(bootstrap.root_ino)
    with pytest.raises(FormatError, match="directory block"):
        list(bootstrap.entries(root))
    with pytest.raises(FormatError, match="directory block"):
        bootstrap.lookup(root, b"a")


def test_entries_before_a_bad_name_are_listed() -> None:
    _, image = tree({b"a": regular(0, []), b"b": regular(0, []), b"c": regular(0, [])})
    image.patch(image.block(b"/", 0) + 4 * 12 + 8, "<H", 0xFFF0)
    bootstrap = opened(image)
    listing = bootstrap.entries(bootstrap.inode(bootstrap.root_ino))
    assert [next(listing).name for _ in range(3)] == [b".", b"..", b"a"]
    with pytest.raises(FormatError, match="name 3 of the directory block"):
        next(listing)


def test_blocks_before_a_bad_one_are_listed() -> None:
    _, image = tree({b"d": directory(names(300))})
    image.patch(image.block(b"/d", 1) + 8, "<H", 0)
    bootstrap = opened(image)
    seen: list[DirEntry] = []
    with pytest.raises(FormatError, match="holds no entries"):
        seen.extend(bootstrap.entries(at(bootstrap, b"d")))
    assert len(seen) > 80


@pytest.mark.parametrize("bad", [b"a/c", b"a\0c", b"/bc"])
def test_a_name_that_no_kernel_would_take_is_refused(bad: bytes) -> None:
    _, image = tree({b"abc": regular(0, []), b"z": regular(0, [])})
    image.patch(image.block(b"/", 0) + 4 * 12 + 3, "3s", bad)
    bootstrap = opened(image)
    with pytest.raises(FormatError, match="cannot be a name"):
        list(bootstrap.entries(bootstrap.inode(bootstrap.root_ino)))


def test_a_name_longer_than_255_bytes_is_refused() -> None:
    _, image = tree({b"a" * 200: regular(0, []), b"b" * 100: regular(0, [])})
    image.patch(image.block(b"/", 0) + 3 * 12 + 8, "<H", 4 * 12 + 3 + 290)
    bootstrap = opened(image)
    with pytest.raises(FormatError, match="cannot be a name"):
        list(bootstrap.entries(bootstrap.inode(bootstrap.root_ino)))


@pytest.mark.parametrize("size", [1 << 20, 1 << 40, (1 << 63) - 1])
def test_directory_data_outside_the_file_is_refused(size: int) -> None:
    _, image = tree({b"d": directory({b"x": regular(0, [])}), b"e": regular(0, [])})
    image.patch(image.inode(b"/d") + 8, "<Q", size)
    bootstrap = opened(image)
    inode = at(bootstrap, b"d")
    with pytest.raises(FormatError, match="its data ends outside the file"):
        list(bootstrap.entries(inode))
    with pytest.raises(FormatError, match="its data ends outside the file"):
        bootstrap.lookup(inode, b"x")
    assert at(bootstrap, b"e").size == 0


def test_directory_blocks_outside_the_file_are_refused() -> None:
    _, image = tree({b"d": directory(names(200))})
    image.patch(image.inode(b"/d") + 16, "<I", 0xFFFF_FFF0)
    bootstrap = opened(image)
    with pytest.raises(FormatError, match="its data ends outside the file"):
        list(bootstrap.entries(at(bootstrap, b"d")))


def test_an_empty_directory_record_lists_nothing() -> None:
    _, image = tree({b"d": directory()})
    image.patch(image.inode(b"/d") + 8, "<Q", 0)
    bootstrap = opened(image)
    assert list(bootstrap.entries(at(bootstrap, b"d"))) == []
    assert bootstrap.lookup(at(bootstrap, b"d"), b"x") is None


def test_a_cut_bootstrap_gives_errors_for_what_is_gone_and_the_rest_as_before() -> None:
    whole, image = tree(names(400))
    inodes = dict(walk(whole))
    image.cut(len(image.data()) // 8192 * 4096)
    cut = opened(image)
    gone = 0
    for path, inode in inodes.items():
        try:
            assert cut.inode(inode.ino) == inode, path
        except (FormatError, NotFoundError):
            gone += 1
    assert 0 < gone < len(inodes)


# Symlinks


@pytest.mark.parametrize("length", [1, 40, 2000, 4000, 4095, 4096])
@pytest.mark.parametrize("inline", [True, False])
def test_targets_of_every_length_are_read(length: int, inline: bool) -> None:
    target = bytes(1 + number % 255 for number in range(length))
    bootstrap, _ = tree({b"l": symlink(target, inline=inline)})
    inode = at(bootstrap, b"l")
    assert (inode.size, bootstrap.readlink(inode)) == (length, target)


@pytest.mark.parametrize("size", [0, 4097, 1 << 40])
def test_a_symlink_of_impossible_size_is_refused(size: int) -> None:
    _, image = tree({b"l": symlink(b"target")})
    image.patch(image.inode(b"/l") + 8, "<Q", size)
    bootstrap = opened(image)
    with pytest.raises(FormatError, match="for a symlink"):
        at(bootstrap, b"l")


def test_a_target_outside_the_file_is_refused() -> None:
    _, image = tree({b"l": symlink(b"target", inline=False)})
    image.patch(image.inode(b"/l") + 16, "<I", 0xFFFF_FFFF)
    bootstrap = opened(image)
    with pytest.raises(FormatError, match="outside the file"):
        bootstrap.readlink(at(bootstrap, b"l"))


def test_only_symlinks_have_a_target() -> None:
    bootstrap, _ = tree({b"f": regular(0, [])})
    with pytest.raises(FormatError, match="not that of a symlink"):
        bootstrap.readlink(at(bootstrap, b"f"))


# Xattrs

ALL_PREFIXES = [
    (1, b"user-suffix", b"u" * 300),
    (2, b"", b"acl"),
    (3, b"", b"default"),
    (4, b"overlay.opaque", b"y"),
    (6, b"capability", b""),
]


@pytest.mark.parametrize("compact", [True, False])
def test_xattrs_of_every_prefix_in_the_order_of_the_image(compact: bool) -> None:
    node = regular(5, [(0, 0, 0)], xattrs=ALL_PREFIXES, compact=compact)
    bootstrap, _ = tree({b"f": node})
    inode = at(bootstrap, b"f")
    assert list(bootstrap.xattrs(inode).items()) == [
        (b"user.user-suffix", b"u" * 300),
        (b"system.posix_acl_access", b"acl"),
        (b"system.posix_acl_default", b"default"),
        (b"trusted.overlay.opaque", b"y"),
        (b"security.capability", b""),
    ]
    assert bootstrap.extents(inode, 0, 5)[0].length == 5, "the index array is behind the xattrs"


def test_directories_and_symlinks_with_xattrs_keep_their_inline_data() -> None:
    linked = symlink(b"there", xattrs=ALL_PREFIXES)
    bootstrap, _ = tree({b"d": directory({b"l": linked}, xattrs=[(1, b"k", b"v" * 65)])})
    assert bootstrap.xattrs(at(bootstrap, b"d")) == {b"user.k": b"v" * 65}
    assert bootstrap.readlink(at(bootstrap, b"d/l")) == b"there"


def test_an_inode_without_xattrs_has_none() -> None:
    bootstrap, _ = tree({b"f": regular(0, [])})
    assert bootstrap.xattrs(at(bootstrap, b"f")) == {}


@pytest.mark.parametrize(
    ("name_len", "index", "value_size"),
    [(255, 1, 1), (1, 1, 0xFFFF), (1, 5, 1), (1, 0, 1), (1, 7, 1)],
)
def test_a_bad_xattr_costs_the_xattrs_but_not_the_inode(
    name_len: int, index: int, value_size: int
) -> None:
    _, image = tree({b"f": regular(5, [(0, 0, 0)], xattrs=[(1, b"k", b"v")])})
    image.patch(image.inode(b"/f") + 64 + 12, "<BBH", name_len, index, value_size)
    bootstrap = opened(image)
    inode = at(bootstrap, b"f")
    with pytest.raises(FormatError, match=f"xattr at .* of inode {inode.ino}"):
        bootstrap.xattrs(inode)
    assert bootstrap.extents(inode, 0, 5)


def test_xattrs_outside_the_file_are_refused() -> None:
    _, image = tree({b"d": directory()})
    image.patch(image.inode(b"/d") + 2, "<H", 0xFFFF)
    bootstrap = opened(image)
    inode = bootstrap.inode(image.nid(b"/d"))
    with pytest.raises(FormatError, match="xattrs end outside the file"):
        bootstrap.xattrs(inode)
    with pytest.raises(FormatError, match="outside the file"):
        list(bootstrap.entries(inode))


def test_an_xattr_name_with_a_nul_is_refused() -> None:
    _, image = tree({b"f": regular(0, [], xattrs=[(1, b"a\0b", b"v")])})
    bootstrap = opened(image)
    with pytest.raises(FormatError, match="xattr"):
        bootstrap.xattrs(at(bootstrap, b"f"))
