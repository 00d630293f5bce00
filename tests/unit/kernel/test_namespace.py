import errno
import logging
from typing import Any, cast

import pyfuse3
import pytest
import trio
import trio.testing

from nydusd.config.model import RafsConfig
from nydusd.errors import AuthError, BackendError, NydusError
from nydusd.kernel.namespace import FOR_EVER_S, Namespace
from nydusd.kernel.tree import Tree
from nydusd.kernel.vfs import INDEX_SHIFT, Vfs
from tests.support.fake_bootstrap import FakeImage

CTX = cast(pyfuse3.RequestContext, None)
BASE = 1 << INDEX_SHIFT


@pytest.fixture
def image() -> FakeImage:
    return FakeImage()


@pytest.fixture
def namespace(image: FakeImage) -> Namespace:
    vfs = Vfs()
    vfs.attach("/", Tree(image, RafsConfig(), mounted_at_s=1))
    return Namespace(vfs)


async def test_entries_carry_the_full_nodeid_and_hold_for_ever(
    image: FakeImage, namespace: Namespace
) -> None:
    ino = image.add_file("/f", b"12345", nlink=3)
    entry = await namespace.lookup(1, b"f", CTX)
    assert entry.st_ino == BASE | ino
    assert (entry.entry_timeout, entry.attr_timeout) == (FOR_EVER_S, FOR_EVER_S)
    assert (entry.st_size, entry.st_nlink, entry.st_blksize) == (5, 3, 4096)
    assert (await namespace.getattr(1, CTX)).st_ino == BASE | 36


async def test_a_missing_name_is_a_success_to_be_remembered(namespace: Namespace) -> None:
    entry = await namespace.lookup(1, b"none", CTX)
    assert (entry.st_ino, entry.entry_timeout) == (0, FOR_EVER_S)


async def test_the_handle_is_the_nodeid(image: FakeImage, namespace: Namespace) -> None:
    nodeid = BASE | image.add_file("/f", b"12345")
    opened = await namespace.open(nodeid, 0, CTX)
    assert (opened.fh, opened.keep_cache) == (nodeid, True)
    assert await namespace.opendir(1, CTX) == 1
    assert await namespace.read(opened.fh, 1, 3) == b"234"
    await namespace.release(opened.fh)
    await namespace.releasedir(1)


@pytest.mark.parametrize(
    ("fault", "number"),
    [(BackendError("blob 12: 503"), errno.EIO), (AuthError("blob 12: 401"), errno.EACCES)],
)
async def test_faults_are_an_errno_and_one_line_without_traceback(
    image: FakeImage,
    namespace: Namespace,
    caplog: pytest.LogCaptureFixture,
    fault: NydusError,
    number: int,
) -> None:
    ino = image.add_file("/f", b"12345")
    image.failures.extend([fault] * 50)
    for _ in range(50):
        with pytest.raises(pyfuse3.FUSEError) as answer:
            await namespace.read(BASE | ino, 2, 3)
        assert answer.value.errno == number
    [line] = caplog.records
    assert line.levelno == logging.WARNING
    assert not line.exc_info
    for fact in ("mount=/ ", f"ino={ino}", "offset=2", "size=3", str(fault)):
        assert fact in line.getMessage()


async def test_a_bug_is_eio_with_a_traceback_and_the_next_read_works(
    image: FakeImage, namespace: Namespace, caplog: pytest.LogCaptureFixture
) -> None:
    ino = image.add_file("/f", b"12345")
    image.failures.append(KeyError("bug"))
    with pytest.raises(pyfuse3.FUSEError) as answer:
        await namespace.read(BASE | ino, 0, 5)
    assert answer.value.errno == errno.EIO
    assert caplog.records[0].levelno == logging.ERROR
    assert caplog.records[0].exc_info
    assert await namespace.read(BASE | ino, 0, 5) == b"12345"


async def test_what_posix_refuses_is_not_worth_a_log_line(
    namespace: Namespace, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(pyfuse3.FUSEError) as answer:
        await namespace.getattr(9 << INDEX_SHIFT | 1, CTX)
    assert answer.value.errno == errno.ENOENT
    with pytest.raises(pyfuse3.FUSEError) as answer:
        await namespace.getxattr(1, b"user.none", CTX)
    assert answer.value.errno == errno.ENODATA
    assert caplog.records == []


async def test_waiting_reads_show_as_in_flight(image: FakeImage, namespace: Namespace) -> None:
    nodeid = BASE | image.add_file("/f", b"12345")
    image.gate = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(namespace.read, nodeid, 0, 1)
        nursery.start_soon(namespace.read, nodeid, 1, 1)
        await trio.testing.wait_all_tasks_blocked()
        waiting = namespace.in_flight()
        assert [(one.inode, one.opcode) for one in waiting] == [(nodeid, 15)] * 2
        assert waiting[0].unique != waiting[1].unique
        image.gate.set()
    assert namespace.in_flight() == []


async def test_cancellation_waits_for_reads_until_they_are_unshielded(
    image: FakeImage, namespace: Namespace
) -> None:
    nodeid = BASE | image.add_file("/f", b"12345")
    answers: list[Any] = []

    async def read() -> None:
        answers.append(await namespace.read(nodeid, 0, 5))

    image.gate = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
        await trio.lowlevel.cancel_shielded_checkpoint()
        image.gate.set()
    assert answers == [b"12345"]

    image.gate = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
        namespace.unshield()
    assert answers == [b"12345"]
