import errno
import struct

import pytest

from nydusd.config.model import RafsConfig
from nydusd.errors import BackendError, FormatError, NydusError
from nydusd.kernel import wire
from nydusd.kernel.errno_map import Refusal
from nydusd.kernel.namespace import Namespace
from nydusd.kernel.tree import Tree
from nydusd.kernel.vfs import INDEX_SHIFT, Vfs
from nydusd.kernel.wire import FOR_EVER_S, Opcode
from tests.support.fake_bootstrap import FakeImage
from tests.support.fuse_requests import (
    attr_of,
    entry_of,
    lines_of,
    lookup_message,
    make_message,
    span_message,
)

BASE = 1 << INDEX_SHIFT
KEEP_CACHE, CACHE_DIR = 2, 8


@pytest.fixture
def image() -> FakeImage:
    return FakeImage()


@pytest.fixture
def vfs(image: FakeImage) -> Vfs:
    vfs = Vfs()
    vfs.attach("/", Tree(image, RafsConfig(), mounted_at_s=1))
    return vfs


@pytest.fixture
def namespace(vfs: Vfs) -> Namespace:
    return Namespace(vfs)


def answer(namespace: Namespace, message: bytes) -> bytes:
    payload = namespace.answer(wire.parse(message))
    assert payload is not None
    return bytes(payload)


def refused(namespace: Namespace, message: bytes) -> int:
    with pytest.raises(Refusal) as refusal:
        namespace.answer(wire.parse(message))
    return refusal.value.errno


def test_entries_carry_the_full_nodeid_and_hold_for_ever(
    image: FakeImage, namespace: Namespace
) -> None:
    ino = image.add_file("/f", b"12345", nlink=3)
    entry = entry_of(answer(namespace, lookup_message(1, b"f")))
    assert entry.nodeid == entry.attr.ino == BASE | ino
    assert (entry.entry_valid, entry.attr_valid) == (FOR_EVER_S, FOR_EVER_S)
    assert (entry.attr.size, entry.attr.nlink) == (5, 3)
    assert attr_of(answer(namespace, make_message(Opcode.GETATTR, 1)))[1].ino == BASE | 36


def test_a_missing_name_is_a_success_to_be_remembered(namespace: Namespace) -> None:
    assert answer(namespace, lookup_message(1, b"none")) == wire.NO_ENTRY


def test_a_missing_mountpoint_is_not_remembered() -> None:
    assert refused(Namespace(Vfs()), lookup_message(1, b"image")) == errno.ENOENT


async def test_the_handle_is_the_nodeid(image: FakeImage, namespace: Namespace) -> None:
    nodeid = BASE | image.add_file("/f", b"12345")
    opened = answer(namespace, make_message(Opcode.OPEN, nodeid, bytes(8)))
    assert opened == struct.pack("=QII", nodeid, KEEP_CACHE, 0)
    assert await namespace.read(nodeid, nodeid, 1, 3) == b"234"
    assert answer(namespace, make_message(Opcode.RELEASE, nodeid, bytes(24))) == b""


def test_listings_of_images_are_kept_and_those_that_mounts_change_are_not(
    image: FakeImage, namespace: Namespace
) -> None:
    nodeid = BASE | image.add_directory("/d")
    for one, flags in ((nodeid, KEEP_CACHE | CACHE_DIR), (1, 0)):
        opened = answer(namespace, make_message(Opcode.OPENDIR, one, bytes(8)))
        assert opened == struct.pack("=QII", one, flags, 0)


@pytest.mark.parametrize("opcode", [Opcode.READDIR, Opcode.READDIRPLUS])
def test_a_listing_in_small_parts_is_whole(
    image: FakeImage, namespace: Namespace, opcode: Opcode
) -> None:
    names = [b"name-%03d" % number for number in range(100)]
    for name in names:
        image.add_file(b"/" + name)
    plus = opcode is Opcode.READDIRPLUS
    found: list[bytes] = []
    after = 0
    while lines := lines_of(answer(namespace, span_message(opcode, 1, after, 1000)), plus=plus):
        found += [line.name for line in lines]
        after = lines[-1].cookie
    assert found == [b".", b"..", *names]


def test_a_fault_in_the_middle_of_a_listing_ends_one_reply(
    image: FakeImage, vfs: Vfs, namespace: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(5):
        image.add_file(f"/{number}")
    entries = image.bootstrap.entries

    def failing_at_four(directory, after):
        for entry in entries(directory, after):
            if entry.cookie == 4:
                raise FormatError("name", "?", "must be one")
            yield entry

    monkeypatch.setattr(image.bootstrap, "entries", failing_at_four)
    lines = lines_of(answer(namespace, span_message(Opcode.READDIR, 1, 0, 4096)), plus=False)
    assert [line.cookie for line in lines] == [1, 2, 3]
    with pytest.raises(FormatError):
        namespace.answer(wire.parse(span_message(Opcode.READDIR, 1, 3, 4096)))


def test_extended_attributes(image: FakeImage, namespace: Namespace) -> None:
    nodeid = BASE | image.add_file("/f")
    image.set_xattr("/f", b"user.one", b"value")
    image.set_xattr("/f", b"user.two", b"")

    def get(name: bytes, room: int) -> bytes:
        return make_message(Opcode.GETXATTR, nodeid, struct.pack("=II", room, 0) + name + b"\0")

    def names(room: int) -> bytes:
        return make_message(Opcode.LISTXATTR, nodeid, struct.pack("=II", room, 0))

    assert answer(namespace, get(b"user.one", 100)) == b"value"
    assert answer(namespace, get(b"user.one", 0)) == struct.pack("=II", 5, 0)
    assert refused(namespace, get(b"user.one", 4)) == errno.ERANGE
    assert refused(namespace, get(b"user.none", 100)) == errno.ENODATA
    assert answer(namespace, names(100)) == b"user.one\0user.two\0"
    assert answer(namespace, names(0)) == struct.pack("=II", 18, 0)
    assert refused(namespace, names(17)) == errno.ERANGE


def test_access_is_judged_by_who_asks(image: FakeImage, namespace: Namespace) -> None:
    nodeid = BASE | image.add_file("/f", mode=0o400)
    body = struct.pack("=II", 4, 0)
    assert answer(namespace, make_message(Opcode.ACCESS, nodeid, body, uid=1000)) == b""
    assert refused(namespace, make_message(Opcode.ACCESS, nodeid, body, uid=1)) == errno.EACCES


def test_what_the_kernel_never_needs_is_refused_for_ever_and_the_rest_is_not(
    namespace: Namespace,
) -> None:
    for_ever = (Opcode.FLUSH, Opcode.FSYNC, Opcode.LSEEK, Opcode.STATX, Opcode.POLL, 4711)
    assert {refused(namespace, make_message(one)) for one in for_ever} == {errno.ENOSYS}
    assert refused(namespace, make_message(Opcode.IOCTL)) == errno.ENOTTY
    for writing in (Opcode.SETATTR, Opcode.WRITE, Opcode.CREATE, Opcode.SETXATTR, Opcode.MKDIR):
        assert refused(namespace, make_message(writing)) == errno.EROFS


def test_no_operation_that_some_image_has_is_ever_switched_off(image: FakeImage) -> None:
    """ENOSYS would end it for all mounts of the session."""
    bare = Namespace(Vfs())
    without = Vfs()
    plain = FakeImage(flags=type(image.bootstrap.superblock.flags)(0))
    without.attach("/", Tree(plain, RafsConfig(), mounted_at_s=1))
    size = struct.pack("=II", 100, 0)
    for opcode, body in (
        (Opcode.READLINK, b""),
        (Opcode.GETXATTR, size + b"user.one\0"),
        (Opcode.LISTXATTR, size),
    ):
        for namespace in (bare, Namespace(without)):
            assert refused(namespace, make_message(opcode, 1, body)) != errno.ENOSYS


def test_forgetting_wants_no_reply(namespace: Namespace) -> None:
    for opcode in (Opcode.FORGET, Opcode.BATCH_FORGET):
        assert namespace.answer(wire.parse(make_message(opcode, 5, bytes(16)))) is None


def test_a_detached_image_is_gone(image: FakeImage, vfs: Vfs, namespace: Namespace) -> None:
    nodeid = BASE | image.add_file("/f", b"12345")
    vfs.detach("/")
    assert refused(namespace, make_message(Opcode.GETATTR, nodeid)) == errno.ENOENT
    with pytest.raises(Refusal):
        namespace.read_now(nodeid, nodeid, 0, 5)


async def test_bytes_that_are_there_need_no_waiting(image: FakeImage, namespace: Namespace) -> None:
    nodeid = BASE | image.add_file("/f", b"12345")
    assert namespace.read_now(nodeid, nodeid, 0, 5) is None
    image.is_cached = True
    assert namespace.read_now(nodeid, nodeid, 1, 100) == b"2345"
    assert namespace.read_now(nodeid, nodeid, 5, 100) == b""


async def test_faults_of_reads_come_as_they_are(image: FakeImage, namespace: Namespace) -> None:
    nodeid = BASE | image.add_file("/f", b"12345")
    image.failures.append(BackendError("blob 12: 503"))
    with pytest.raises(NydusError, match="503"):
        await namespace.read(nodeid, nodeid, 0, 5)
    assert await namespace.read(nodeid, nodeid, 0, 5) == b"12345"
