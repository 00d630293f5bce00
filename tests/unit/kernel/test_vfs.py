import errno
import json
import os
import stat

import pytest

from nydusd.config.model import RafsConfig
from nydusd.errors import (
    ConfigError,
    ExistsError,
    FormatError,
    NotFoundError,
    UnsupportedError,
)
from nydusd.kernel.errno_map import Refusal
from nydusd.kernel.tree import Tree
from nydusd.kernel.vfs import INDEX_MAX, INDEX_SHIFT, ROOT_NODEID, Entry, Vfs, VfsState
from tests.support.fake_bootstrap import FakeImage

ROOT_INO = 36


def make_tree(content: bytes = b"content") -> Tree:
    image = FakeImage(root_ino=ROOT_INO)
    image.add_file("/file", content)
    return Tree(image, RafsConfig(), mounted_at_s=1)


def walk(vfs: Vfs, path: str) -> Entry:
    here = vfs.getattr(ROOT_NODEID)
    nodeid = ROOT_NODEID
    for name in os.fsencode(path).split(b"/"):
        if name:
            found = vfs.lookup(nodeid, name)
            assert found is not None
            here, nodeid = found, found.nodeid
    return here


def names(vfs: Vfs, nodeid: int, after: int = 0) -> list[bytes]:
    return [name for name, *_ in vfs.readdir(nodeid, after)]


def mode_of(entry: Entry) -> int:
    assert entry.attributes is not None
    return entry.attributes.mode


@pytest.fixture
def vfs() -> Vfs:
    return Vfs()


def test_an_empty_session_is_one_open_directory(vfs: Vfs) -> None:
    root = vfs.getattr(ROOT_NODEID)
    assert root.nodeid == ROOT_NODEID
    assert mode_of(root) == stat.S_IFDIR | 0o777
    assert names(vfs, ROOT_NODEID) == []
    assert vfs.access(ROOT_NODEID, 7, 1000, 1000)
    assert (vfs.statfs().block_bytes, vfs.statfs().files) == (512, 0)


async def test_an_image_at_the_root_answers_for_nodeid_1(vfs: Vfs) -> None:
    index = vfs.attach("/", make_tree())
    base = index << INDEX_SHIFT
    root = vfs.getattr(ROOT_NODEID)
    assert root.nodeid == base | ROOT_INO
    assert mode_of(root) == stat.S_IFDIR | 0o755
    file = walk(vfs, "/file")
    assert file.nodeid == base | ROOT_INO + 1
    assert await vfs.read(file.nodeid, 0, 100) == b"content"
    assert names(vfs, ROOT_NODEID) == [b".", b"..", b"file"]


def test_directories_lead_to_a_deep_mountpoint(vfs: Vfs) -> None:
    index = vfs.attach("/a/b/c", make_tree())
    assert names(vfs, ROOT_NODEID) == [b"a"]
    assert mode_of(walk(vfs, "/a/b")) == stat.S_IFDIR | 0o777
    assert walk(vfs, "/a/b/c").nodeid == index << INDEX_SHIFT | ROOT_INO
    [line] = vfs.readdir(walk(vfs, "/a/b").nodeid, 0)
    assert line[2:] == walk(vfs, "/a/b/c")


def test_pseudo_directories_list_in_the_order_of_creation_without_dots(vfs: Vfs) -> None:
    for name in ("z", "a", "m"):
        vfs.attach(f"/{name}", make_tree())
    assert names(vfs, ROOT_NODEID) == [b"z", b"a", b"m"]
    assert names(vfs, ROOT_NODEID, after=2) == [b"m"]
    assert vfs.lookup(ROOT_NODEID, b"..") is not None


def test_a_missing_name_in_a_pseudo_directory_must_not_be_remembered(vfs: Vfs) -> None:
    with pytest.raises(Refusal) as refusal:
        vfs.lookup(ROOT_NODEID, b"later")
    assert refusal.value.errno == errno.ENOENT
    vfs.attach("/later", make_tree())
    assert walk(vfs, "/later")


async def test_after_detach_the_old_index_is_unknown_and_the_directory_stays(vfs: Vfs) -> None:
    tree = make_tree()
    vfs.attach("/m", tree)
    file = walk(vfs, "/m/file").nodeid
    assert vfs.detach("/m") is tree
    with pytest.raises(Refusal) as refusal:
        await vfs.read(file, 0, 1)
    assert refusal.value.errno == errno.ENOENT
    assert mode_of(walk(vfs, "/m")) == stat.S_IFDIR | 0o777
    assert vfs.mountpoints() == {}


def test_attach_again_at_the_same_place_gets_a_new_index(vfs: Vfs) -> None:
    first = vfs.attach("/a/b/c", make_tree())
    vfs.detach("/a/b/c")
    second = vfs.attach("/a/b/c/", make_tree())
    assert (first, second) == (1, 2)
    assert walk(vfs, "/a/b/c").nodeid == second << INDEX_SHIFT | ROOT_INO
    assert list(vfs.mountpoints()) == ["/a/b/c"]


def test_three_hundred_mounts_one_after_the_other_reuse_an_index_as_another_generation(
    vfs: Vfs,
) -> None:
    seen = set()
    for _ in range(300):
        vfs.attach("/m", make_tree())
        entry = walk(vfs, "/m/file")
        seen.add((entry.nodeid, entry.generation))
        vfs.detach("/m")
    assert len(seen) == 300


def test_an_index_with_open_files_is_never_given_to_another_image(vfs: Vfs) -> None:
    first = vfs.attach("/m", make_tree())
    file = walk(vfs, "/m/file").nodeid
    vfs.open(file)
    vfs.detach("/m")
    for _ in range(600):
        assert vfs.attach("/m", make_tree()) != first
        vfs.detach("/m")
    vfs.release(file)
    assert first in [(vfs.attach("/m", make_tree()), vfs.detach("/m"))[0] for _ in range(255)]


def test_the_256th_image_is_refused_and_nothing_changes(vfs: Vfs) -> None:
    for number in range(INDEX_MAX):
        vfs.attach(f"/{number}", make_tree())
    with pytest.raises(UnsupportedError, match="255"):
        vfs.attach("/more", make_tree())
    assert b"more" not in names(vfs, ROOT_NODEID)
    vfs.detach("/77")
    assert vfs.attach("/more", make_tree()) == 78


def test_a_restored_mount_takes_its_old_index(vfs: Vfs) -> None:
    assert vfs.attach("/m", make_tree(), index=200) == 200
    assert vfs.attach("/n", make_tree()) == 201
    with pytest.raises(ExistsError):
        vfs.attach("/o", make_tree(), index=200)


@pytest.mark.parametrize(
    ("present", "wanted"), [("/a", "/a"), ("/a", "/a/b"), ("/a/b", "/a"), ("/a", "/"), ("/", "/a")]
)
def test_images_do_not_cover_each_other(vfs: Vfs, present: str, wanted: str) -> None:
    vfs.attach(present, make_tree())
    with pytest.raises(ExistsError):
        vfs.attach(wanted, make_tree())
    assert list(vfs.mountpoints()) == [present]


@pytest.mark.parametrize("path", ["", "relative", "/a/../b", "/.", "/nul\0", "/" + "x" * 256])
def test_a_path_that_is_none_is_refused(vfs: Vfs, path: str) -> None:
    with pytest.raises(ConfigError):
        vfs.attach(path, make_tree())


def test_detaching_what_is_not_mounted_is_an_error(vfs: Vfs) -> None:
    vfs.attach("/a/b", make_tree())
    for path in ("/", "/a", "/x"):
        with pytest.raises(NotFoundError):
            vfs.detach(path)


def test_what_a_mount_makes_stale_is_its_name_in_its_parent(vfs: Vfs) -> None:
    vfs.attach("/a/b", make_tree())
    assert vfs.stale("/a/b") == ((), ((walk(vfs, "/a").nodeid, b"b"),))


def test_what_a_mount_at_the_root_makes_stale_is_the_root_and_its_names(vfs: Vfs) -> None:
    vfs.attach("/old", make_tree())
    vfs.detach("/old")
    vfs.attach("/", make_tree())
    stale = vfs.stale("/")
    assert stale.inodes == (ROOT_NODEID,)
    assert set(stale.entries) == {(ROOT_NODEID, b"old"), (ROOT_NODEID, b"file")}


def test_a_pseudo_directory_that_the_kernel_knows_becomes_the_image_mounted_there(vfs: Vfs) -> None:
    vfs.attach("/m", make_tree())
    vfs.detach("/m")
    pseudo = walk(vfs, "/m").nodeid
    vfs.attach("/m", make_tree())
    assert names(vfs, pseudo) == [b".", b"..", b"file"]


def test_pseudo_directories_have_no_xattrs_and_do_not_switch_them_off_for_images(vfs: Vfs) -> None:
    with pytest.raises(Refusal) as refusal:
        vfs.getxattr(ROOT_NODEID, b"user.a")
    assert refusal.value.errno == errno.EOPNOTSUPP


@pytest.mark.parametrize("nodeid", [0, 2, 99, 5 << INDEX_SHIFT | 1])
def test_an_unknown_nodeid_is_enoent(vfs: Vfs, nodeid: int) -> None:
    with pytest.raises(Refusal) as refusal:
        vfs.getattr(nodeid)
    assert refusal.value.errno == errno.ENOENT


def handed_over(vfs: Vfs) -> VfsState:
    """What arrives at a successor: plain values, through JSON."""
    return VfsState(*json.loads(json.dumps(vfs.export())))


def test_a_successor_gives_every_object_its_number_again(vfs: Vfs) -> None:
    vfs.attach("/gone", make_tree())
    vfs.detach("/gone")
    for place in ("/b", "/a/x", "/a/\udcff"):
        vfs.attach(place, make_tree())
    vfs.open(walk(vfs, "/b").nodeid)
    successor = Vfs()
    state = handed_over(vfs)
    successor.restore(state)
    for place, _ in state.mounts:
        successor.attach(place, make_tree())
    for place in ("/", "/a", "/b/file", "/a/x/file", "/gone", "/a/\udcff"):
        before, after = walk(vfs, place), walk(successor, place)
        assert after[:2] == before[:2], place
    assert names(successor, ROOT_NODEID) == names(vfs, ROOT_NODEID)
    assert handed_over(successor) == state
    assert successor.attach("/new", make_tree()) == vfs.attach("/new", make_tree())


def test_the_index_of_a_mount_that_does_not_come_back_is_not_given_away(vfs: Vfs) -> None:
    taken = vfs.attach("/image", make_tree())
    successor = Vfs()
    successor.restore(handed_over(vfs))
    given = {successor.attach(f"/other-{number}", make_tree()) for number in range(254)}
    assert taken not in given
    with pytest.raises(UnsupportedError):
        successor.attach("/one-more", make_tree())
    assert successor.attach("/image", make_tree()) == taken


def test_files_that_a_predecessor_opened_keep_their_index(vfs: Vfs) -> None:
    index = vfs.attach("/image", make_tree())
    nodeid = walk(vfs, "/image/file").nodeid
    vfs.open(nodeid)
    successor = Vfs()
    successor.restore(handed_over(vfs))
    successor.attach("/image", make_tree())
    successor.detach("/image")
    with pytest.raises(ExistsError):
        successor.attach("/new", make_tree(), index=index)
    successor.release(nodeid)
    assert successor.attach("/new", make_tree(), index=index) == index


@pytest.mark.parametrize(
    "change",
    [
        {"directories": [(2, 7, "a")]},
        {"directories": [(1, 1, "a")]},
        {"directories": [(9, 1, "a")]},
        {"indexes": [(0, 1, 0)]},
        {"indexes": [(256, 1, 0)]},
        {"indexes": [(1, -1, 0)]},
        {"mounts": [("/a", 0)]},
        {"mounts": [("/a", 1), ("/b", 1)]},
        {"next_index": 0},
    ],
)
def test_a_state_that_contradicts_itself_is_refused(change: dict[str, object]) -> None:
    state = VfsState([], 2, [], 1, [])._replace(**change)
    with pytest.raises(FormatError):
        Vfs().restore(state)


def test_detaching_is_told_before_the_image_may_be_closed(vfs: Vfs) -> None:
    told: list[int] = []
    vfs.on_detach = told.append
    index = vfs.attach("/image", make_tree())
    vfs.detach("/image")
    assert told == [index]
