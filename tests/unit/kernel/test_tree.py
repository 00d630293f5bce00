import errno
import os
import stat

import pytest

from nydusd.config.model import RafsConfig
from nydusd.errors import (
    BackendError,
    FormatError,
    IntegrityError,
    NotFoundError,
    NydusError,
)
from nydusd.kernel.errno_map import Refusal
from nydusd.kernel.stats import Op
from nydusd.kernel.tree import Tree
from nydusd.rafs.model import SuperblockFlag
from tests.support.fake_bootstrap import MTIME_NS, MTIME_S, FakeImage

NS = 1_000_000_000


@pytest.fixture
def image() -> FakeImage:
    return FakeImage()


def make_tree(image: FakeImage, **settings: bool) -> Tree:
    return Tree(image, RafsConfig(**settings), "/", mounted_at_s=77)


def test_attributes_are_those_of_the_image(image: FakeImage) -> None:
    ino = image.add_file("/f", b"x" * 1000, mode=0o4711, rdev=0, uid=7, gid=8)
    shown = make_tree(image).getattr(ino)
    assert (shown.ino, shown.mode, shown.uid, shown.gid) == (ino, stat.S_IFREG | 0o4711, 7, 8)
    assert (shown.size, shown.blocks) == (1000, 2)
    assert (shown.atime_ns, shown.ctime_ns) == (0, 0)
    assert shown.mtime_ns == MTIME_S * NS + MTIME_NS


@pytest.mark.parametrize("root_ino", [1, 36])
def test_the_root_is_0755_however_it_is_reached(root_ino: int) -> None:
    image = FakeImage(root_ino=root_ino)
    tree = make_tree(image)
    below = image.add_directory("/d")
    up = tree.lookup(below, b"..")
    assert up is not None
    assert (
        tree.getattr(root_ino).mode == tree.root().mode == up.mode == stat.S_IFDIR | 0o755
    )  # 0700 in the image


def test_owners_are_the_daemons_where_the_image_has_none() -> None:
    image = FakeImage(SuperblockFlag(0))
    ino = image.add_file("/f", uid=12345, gid=12345)
    shown = make_tree(image).getattr(ino)
    assert (shown.uid, shown.gid) == (os.geteuid(), os.getegid())


def test_a_time_that_was_not_recorded_is_the_time_of_the_mount(image: FakeImage) -> None:
    shown = make_tree(image).getattr(image.add_file("/f", mtime_s=0, mtime_ns=0))
    assert shown.mtime_ns == shown.atime_ns == shown.ctime_ns == 77 * NS


def test_the_first_nanosecond_of_1970_is_a_recorded_time(image: FakeImage) -> None:
    assert make_tree(image).getattr(image.add_file("/f", mtime_s=0, mtime_ns=1)).mtime_ns == 1


def test_times_before_1970_stay_before_1970(image: FakeImage) -> None:
    ino = image.add_file("/f", mtime_s=(1 << 64) - 10, mtime_ns=5)
    assert make_tree(image).getattr(ino).mtime_ns == -10 * NS + 5


def test_impossible_nanoseconds_do_not_run_into_the_seconds(image: FakeImage) -> None:
    ino = image.add_file("/f", mtime_s=3, mtime_ns=0xFFFF_FFFF)
    assert make_tree(image).getattr(ino).mtime_ns == 4 * NS - 1


@pytest.mark.parametrize("field", ["size", "blocks"])
def test_numbers_that_no_kernel_type_holds_break_only_their_inode(
    image: FakeImage, field: str
) -> None:
    bad = image.add_file("/bad", **{field: 1 << 63})
    good = image.add_file("/good")
    tree = make_tree(image)
    with pytest.raises(FormatError):
        tree.getattr(bad)
    assert tree.getattr(good).ino == good


def test_lookup_finds_names_and_says_no_with_a_value(image: FakeImage) -> None:
    ino = image.add_file(b"/d/\xff\xfe")
    tree = make_tree(image)
    found = tree.lookup(image.ino("/d"), b"\xff\xfe")
    assert found is not None
    assert found.ino == ino
    assert tree.lookup(image.ino("/d"), b"other") is None
    assert tree.stats.fop_hits[Op.LOOKUP] == 2


def test_hard_links_are_one_inode(image: FakeImage) -> None:
    image.add_file("/a")
    image.add_link("/b", "/a")
    tree = make_tree(image)
    assert tree.lookup(36, b"a") == tree.lookup(36, b"b")


@pytest.mark.parametrize(
    ("call", "number"),
    [
        (lambda tree, file: tree.lookup(file, b"x"), errno.ENOTDIR),
        (lambda tree, file: list(tree.readdir(file)), errno.ENOTDIR),
        (lambda tree, file: tree.readlink(file), errno.EINVAL),
    ],
)
def test_a_wrong_kind_of_inode_is_refused_by_its_posix_number(
    image: FakeImage, call: object, number: int
) -> None:
    file = image.add_file("/f")
    with pytest.raises(Refusal) as refusal:
        call(make_tree(image), file)  # type: ignore[operator]
    assert refusal.value.errno == number


def test_a_broken_inode_costs_only_its_own_attributes(image: FakeImage) -> None:
    image.add_file("/d/a")
    image.bootstrap.broken.add(image.add_file("/d/b"))
    image.add_file("/d/c")
    tree = make_tree(image)
    listed = {entry.name: shown is not None for entry, shown in tree.readdir(image.ino("/d"))}
    assert listed == {b".": False, b"..": False, b"a": True, b"b": False, b"c": True}
    with pytest.raises(FormatError):
        tree.lookup(image.ino("/d"), b"b")
    assert tree.stats.fop_errors[Op.LOOKUP] == 1


def test_a_listing_goes_on_behind_the_cookie(image: FakeImage) -> None:
    for number in range(50):
        image.add_file(f"/d/{number:02}")
    tree = make_tree(image)
    whole = [entry for entry, _ in tree.readdir(image.ino("/d"))]
    for position, entry in enumerate(whole, 1):
        rest = [entry for entry, _ in tree.readdir(image.ino("/d"), entry.cookie)]
        assert rest == whole[position:]


@pytest.mark.parametrize("name", [b"", b"a/b", b"nul\0", b"x" * 256])
def test_a_name_that_no_path_can_hold_is_left_out(image: FakeImage, name: bytes) -> None:
    image.add_file("/d/good")
    image.bootstrap.names[image.ino("/d")][name] = image.ino("/d/good")
    tree = make_tree(image)
    assert [entry.name for entry, _ in tree.readdir(image.ino("/d"))] == [b".", b"..", b"good"]


async def test_reads_are_clipped_at_the_end_of_the_file(image: FakeImage) -> None:
    ino = image.add_file("/f", b"0123456789")
    tree = make_tree(image)
    assert await tree.read(ino, 0, 100) == b"0123456789"
    assert await tree.read(ino, 7, 100) == b"789"
    assert await tree.read(ino, 10, 1) == b""
    assert await tree.read(ino, 1 << 62, 4096) == b""
    assert await tree.read(ino, 3, 0) == b""
    assert image.reads == [(ino, 0, 10), (ino, 7, 3)]


async def test_reading_two_files_of_six_bytes_counts_exactly_that(image: FakeImage) -> None:
    first, second = image.add_file("/a", b"123456"), image.add_file("/b", b"abcdef")
    tree = make_tree(image, iostats_files=True, access_pattern=True, latest_read_files=True)
    await tree.read(first, 0, 4096)
    assert (tree.stats.data_read, tree.stats.fop_hits[Op.READ]) == (6, 1)
    await tree.read(second, 0, 4096)
    assert (tree.stats.data_read, tree.stats.fop_hits[Op.READ]) == (12, 2)
    assert tree.stats.block_count_read[0] == 2
    assert sum(tree.stats.read_latency_dist) == 2
    assert tree.stats.latest == {first, second}
    assert tree.stats.patterns[first].nr_read == 1
    assert tree.stats.files[second].data_read == 6


async def test_a_failed_read_counts_as_an_error_of_no_bytes_and_the_next_one_works(
    image: FakeImage,
) -> None:
    ino = image.add_file("/f", b"123456")
    image.failures.append(BackendError("503"))
    tree = make_tree(image)
    with pytest.raises(BackendError):
        await tree.read(ino, 0, 6)
    assert (tree.stats.fop_errors[Op.READ], tree.stats.data_read) == (1, 0)
    assert await tree.read(ino, 0, 6) == b"123456"


async def test_a_short_answer_is_an_error_and_never_a_short_file(image: FakeImage) -> None:
    ino = image.add_file("/f", b"123", size=6)
    with pytest.raises(IntegrityError):
        await make_tree(image).read(ino, 0, 6)


async def test_a_missing_blob_does_not_deny_the_file(image: FakeImage) -> None:
    ino = image.add_file("/f", b"123456")
    image.failures.append(NotFoundError("no such blob"))
    with pytest.raises(NydusError, match="no such blob") as fault:
        await make_tree(image).read(ino, 0, 6)
    assert not isinstance(fault.value, NotFoundError)


async def test_only_regular_files_are_read(image: FakeImage) -> None:
    image.add_symlink("/l", b"x")
    tree = make_tree(image)
    for ino, number in ((36, errno.EISDIR), (image.ino("/l"), errno.EINVAL)):
        with pytest.raises(Refusal) as refusal:
            await tree.read(ino, 0, 1)
        assert refusal.value.errno == number
    assert tree.stats.fop_errors[Op.READ] == 0


@pytest.mark.parametrize(
    ("flags", "configured", "enabled"),
    [
        (SuperblockFlag(0), False, False),
        (SuperblockFlag(0), True, True),
        (SuperblockFlag.HAS_XATTR, False, True),
    ],
)
def test_xattrs_are_on_by_configuration_or_by_the_image(
    flags: SuperblockFlag, configured: bool, enabled: bool
) -> None:
    image = FakeImage(flags)
    ino = image.add_file("/f")
    image.set_xattr("/f", b"user.a", b"1")
    tree = make_tree(image, enable_xattr=configured)
    if enabled:
        assert tree.listxattr(ino) == [b"user.a"]
        assert tree.getxattr(ino, b"user.a") == b"1"
        assert tree.getxattr(ino, b"user.b") is None
        assert tree.stats.fop_hits[Op.GETXATTR] == 2
    else:
        with pytest.raises(Refusal) as refusal:
            tree.getxattr(ino, b"user.a")
        assert refusal.value.errno == errno.EOPNOTSUPP
        assert tree.stats.fop_errors[Op.GETXATTR] == 1


@pytest.mark.parametrize(
    ("mode", "mask", "uid", "gid", "allowed"),
    [
        (0o000, os.F_OK, 5, 5, True),
        (0o000, os.R_OK | os.W_OK, 0, 0, True),
        (0o600, os.X_OK, 0, 0, False),
        (0o601, os.X_OK, 0, 0, True),
        (0o400, os.R_OK, 1000, 5, True),
        (0o400, os.R_OK, 5, 1001, False),
        (0o040, os.R_OK, 5, 1001, True),
        (0o040, os.R_OK, 1000, 1001, False),  # the owner's bits decide for the owner
        (0o004, os.R_OK, 5, 5, True),
        (0o004, os.R_OK | os.X_OK, 5, 5, False),
    ],
)
def test_access_goes_by_the_mode_bits(
    image: FakeImage, mode: int, mask: int, uid: int, gid: int, allowed: bool
) -> None:
    tree = make_tree(image)
    assert tree.access(image.add_file("/f", mode=mode), mask, uid, gid) is allowed
