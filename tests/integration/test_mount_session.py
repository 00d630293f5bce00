"""The life of a session: how it begins, how it ends, and what is left behind in each case."""

import concurrent.futures
import contextlib
import errno
import mmap
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from nydusd.kernel import mount as calls
from nydusd.kernel import private_mount
from nydusd.kernel.namespace import Namespace
from nydusd.kernel.session import Session
from nydusd.kernel.vfs import Vfs
from tests.support.mount_runner import BIG
from tests.support.mounts import (
    ServedMount,
    is_mounted,
    served,
    temporary_mountpoint,
    umount_lazily,
    wait_until,
)

READER = "import sys; open(sys.argv[1], 'rb', buffering=0).read(4096)"


@pytest.fixture
def rich() -> Iterator[ServedMount]:
    with served("rich=/") as mount:
        yield mount


@contextlib.contextmanager
def opened(path: Path, flags: int = 0) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY | flags)
    try:
        yield fd
    finally:
        with contextlib.suppress(OSError):  # the FLUSH of this close, when the session is over
            os.close(fd)


def devices_listed() -> set[str]:
    """The st_dev of everything that is mounted where somebody can see it."""
    return {line.split()[2] for line in Path("/proc/self/mountinfo").read_text().splitlines()}


def read_4k(fd: int, offset: int = 0) -> bytes:
    buffer = mmap.mmap(-1, 4096)
    return buffer[: os.preadv(fd, [buffer], offset)]


@contextlib.contextmanager
def waiting_reader(mount: ServedMount) -> Iterator[subprocess.Popen[bytes]]:
    """A process whose read of /big waits behind the closed gate."""
    mount.do("gate", "/", False)
    reader = subprocess.Popen([sys.executable, "-c", READER, mount.path / "big"])
    try:
        wait_until(lambda: mount.do("in_flight"), "the read is in flight")
        yield reader
    finally:
        reader.kill()
        reader.wait()


def test_stop_answers_the_requests_in_flight_and_unmounts(rich: ServedMount) -> None:
    rich.do("gate", "/", False)
    with (
        opened(rich.path / "big", os.O_DIRECT) as fd,
        concurrent.futures.ThreadPoolExecutor(4) as pool,
    ):
        reads = [pool.submit(read_4k, fd, part * 4096) for part in range(4)]
        wait_until(lambda: len(rich.do("in_flight")) == 4, "all reads are in flight")
        rich.do("stop")
        rich.do("gate", "/", True)
        assert [read.result() for read in reads] == [
            BIG[part * 4096 : part * 4096 + 4096] for part in range(4)
        ]
    rich.expect("ended")
    assert rich.expect("unmounted") is True
    assert rich.wait_end() == 0
    assert not is_mounted(rich.path)


def test_stop_does_not_wait_for_ever(rich: ServedMount) -> None:
    rich.do("gate", "/", False)
    with (
        opened(rich.path / "big", os.O_DIRECT) as fd,
        concurrent.futures.ThreadPoolExecutor(1) as pool,
    ):
        read = pool.submit(read_4k, fd)
        wait_until(lambda: rich.do("in_flight"), "the read is in flight")
        rich.do("stop", 0.05)
        rich.expect("ended")
        assert rich.wait_end() == 0
        with pytest.raises(OSError, match=r"not connected|abort") as failure:
            read.result()
    assert failure.value.errno in (errno.ENOTCONN, errno.ECONNABORTED)
    assert "1 requests were not answered" in rich.log()


def test_unmount_from_inside_ends_the_session(rich: ServedMount) -> None:
    rich.send("unmount")
    said = {rich.process.stdout.readline() for _ in range(2)}  # type: ignore[union-attr]
    assert said == {b'["done", true]\n', b'["ended", null]\n'}
    assert rich.wait_end() == 0


def test_unmount_from_outside_ends_the_session(rich: ServedMount) -> None:
    assert os.listdir(rich.path)
    umount_lazily(rich.path)
    rich.expect("ended")
    assert rich.expect("unmounted") is False
    assert rich.wait_end() == 0


def test_unmount_from_outside_ends_the_session_when_the_last_file_is_closed(
    rich: ServedMount,
) -> None:
    with opened(rich.path / "big", os.O_DIRECT) as fd:
        umount_lazily(rich.path)
        assert not is_mounted(rich.path)
        assert read_4k(fd, 1 << 20) == BIG[1 << 20 : (1 << 20) + 4096]
        assert rich.do("in_flight") == []
    rich.expect("ended")
    assert rich.wait_end() == 0


def test_an_aborted_connection_ends_the_session_and_leaves_no_dead_mount(
    rich: ServedMount, tmp_path: Path
) -> None:
    subprocess.run(["mount", "-t", "fusectl", "fusectl", tmp_path], check=True)
    try:
        (tmp_path / str(rich.connection_id) / "abort").write_text("1")
    finally:
        umount_lazily(tmp_path)
    rich.expect("ended")
    # Only an identity that is never given again tells this dead mount from somebody else's.
    assert rich.expect("unmounted") is calls.identify(Path("/")).unique
    assert rich.wait_end() == 0
    assert "somebody aborted the session" in rich.log()


def test_a_killed_daemon_leaves_its_mount_and_stat_still_answers(rich: ServedMount) -> None:
    os.stat(rich.path / "etc/hosts")
    rich.process.kill()
    rich.wait_end()
    assert is_mounted(rich.path)
    assert os.stat(rich.path).st_ino >> 56 == 1
    assert os.path.realpath(rich.path) == str(rich.path)
    with pytest.raises(OSError, match="not connected"):
        os.listdir(rich.path / "usr")


def test_stat_answers_while_a_supervisor_holds_the_descriptors_of_a_killed_daemon() -> None:
    """Without the cached root this stat would wait for ever (spec api §8.3)."""
    with served("rich=/") as mount:
        inheritance = mount.hand_over()
        try:
            mount.process.kill()
            mount.wait_end()
            done = subprocess.run(["stat", mount.path], capture_output=True, timeout=10, check=True)
            assert b"directory" in done.stdout
            umount_lazily(mount.path)
        finally:
            inheritance.close()


def test_a_successor_goes_on_where_a_killed_daemon_stopped(rich: ServedMount) -> None:
    # Closing a file asks the server to flush it until one has said that it never needs that. Starting the
    # successor closes our files in the child, and must not ask a server that is dead.
    assert (rich.path / "empty").read_bytes() == b""
    inheritance = rich.hand_over()
    with opened(rich.path / "big", os.O_DIRECT) as fd:
        rich.process.kill()
        rich.wait_end()
        successor = ServedMount(rich.path, "rich=/", inherited=inheritance)
        inheritance.close()
        try:
            assert read_4k(fd, 1 << 20) == BIG[1 << 20 : (1 << 20) + 4096]
            assert (rich.path / "usr/hard").read_bytes() == b"127.0.0.1 localhost\n"
            assert len(os.listdir(rich.path / "many")) == 500
            again = successor.hand_over()
            again.close()
            assert again.told["session"] == inheritance.told["session"]
            successor.do("stop")
            successor.expect("ended")
            assert successor.expect("unmounted") is True
        finally:
            successor.end()


def test_somebody_elses_mount_at_the_same_place_is_left_alone(rich: ServedMount) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", rich.path], check=True)
    rich.do("stop")
    rich.expect("ended")
    assert rich.expect("unmounted") is False
    assert rich.wait_end() == 0
    assert os.statvfs(rich.path).f_blocks > 0
    umount_lazily(rich.path)
    assert is_mounted(rich.path)  # ours, dead, below it


def test_a_killed_reader_makes_no_noise(rich: ServedMount) -> None:
    with waiting_reader(rich) as reader:
        reader.kill()
        reader.wait()
        rich.do("gate", "/", True)
        wait_until(lambda: not rich.do("in_flight"), "the read is answered")
    assert os.listdir(rich.path)
    assert "ERROR" not in rich.log()
    assert "Traceback" not in rich.log()


def test_three_hundred_images_one_after_the_other_show_no_stale_name() -> None:
    with served() as mount:
        for number in range(300):
            kind = ("rich", "plain")[number % 2]
            mount.do("attach", kind, "/image")
            wanted = "etc" if kind == "rich" else "plain"
            assert wanted in os.listdir(mount.path / "image")
            assert (mount.path / "image" / wanted).exists()
            other = "plain" if kind == "rich" else "etc"
            assert not (mount.path / "image" / other).exists()
            mount.do("detach", "/image")
            assert os.listdir(mount.path / "image") == []


def test_a_deep_mountpoint_is_there_at_once_again_and_again() -> None:
    with served() as mount:
        place = mount.path / "a/b/c"
        assert not place.exists()
        for _ in range(3):
            mount.do("attach", "rich", "/a/b/c")
            assert (place / "etc/hosts").read_bytes() == b"127.0.0.1 localhost\n"
            assert os.stat(place).st_mode & 0o777 == 0o755
            mount.do("detach", "/a/b/c")
            assert os.stat(place).st_mode & 0o777 == 0o777
            assert not (place / "etc").exists()


def test_an_open_file_of_a_detached_image_fails_and_the_session_lives() -> None:
    with served("rich=/one") as mount:
        with opened(mount.path / "one/big", os.O_DIRECT) as fd:
            assert read_4k(fd) == BIG[:4096]
            mount.do("detach", "/one")
            mount.do("attach", "plain", "/one")
            with pytest.raises(FileNotFoundError):
                read_4k(fd)
        assert os.listdir(mount.path / "one") == ["plain"]


def test_an_image_attached_at_the_root_replaces_what_the_kernel_knew() -> None:
    with served() as mount:
        assert os.listdir(mount.path) == []
        mount.do("attach", "plain", "/")
        assert os.listdir(mount.path) == ["plain"]
        assert os.stat(mount.path).st_mode & 0o777 == 0o755
        mount.do("detach", "/")
        assert not (mount.path / "plain").exists()


@pytest.mark.parametrize("place", ["missing", "file"])
def test_a_mountpoint_that_is_none_is_told_by_name(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(calls.MountError, match=f"{tmp_path}/{place}"):
        Session.mount(tmp_path / place)


def test_a_mount_that_nobody_serves_yet_is_known_and_can_be_taken_off() -> None:
    with temporary_mountpoint() as path:
        session = Session.mount(path)
        try:
            assert calls.is_listed(path)
            assert not session.is_over
            assert session.connection_id == int(
                next(
                    line.split()[2].partition(":")[2]
                    for line in Path("/proc/self/mountinfo").read_text().splitlines()
                    if line.split()[4] == str(path)
                )
            )
            assert session.unmount()
            assert session.is_over
            assert not session.unmount()
        finally:
            session.close()
        assert not calls.is_listed(path)


def test_fusermount_mounts_as_well() -> None:
    with temporary_mountpoint() as path:
        fd = calls._mount_by_fusermount(path)
        session = Session([fd], calls.identify(path), mountpoint=path)
        try:
            assert not os.get_blocking(fd)
            assert not os.get_inheritable(fd)
            assert is_mounted(path)
            calls._detach_by_fusermount(path)
            assert session.is_over
        finally:
            session.close()


def test_a_mountpoint_with_odd_bytes_in_its_name_works(tmp_path: Path) -> None:
    with temporary_mountpoint() as path:
        odd = path / "with space\\and\nnewline"
        odd.mkdir()
        session = Session.mount(odd)
        try:
            assert calls.is_listed(odd)
        finally:
            assert session.unmount()
            session.close()


async def test_one_process_serves_several_sessions() -> None:
    with temporary_mountpoint() as one, temporary_mountpoint() as other:
        sessions = [Session.mount(one), Session.mount(other)]
        try:
            async with trio.open_nursery() as nursery:
                for session in sessions:
                    await nursery.start(session.serve, Namespace(Vfs()))
                for session in sessions:
                    await session.prime()
                    session.stop()
        finally:
            for session in sessions:
                assert session.unmount()
                session.close()


async def test_a_session_that_was_stopped_can_be_served_again() -> None:
    with temporary_mountpoint() as path:
        session = Session.mount(path)
        namespace = Namespace(Vfs())
        try:
            for _ in range(3):
                async with trio.open_nursery() as nursery:
                    await nursery.start(session.serve, namespace)
                    await trio.to_thread.run_sync(os.statvfs, path)
                    session.stop()
        finally:
            assert session.unmount()
            namespace.close()
            session.close()


@pytest.mark.parametrize("threads", [1, 1024])
async def test_any_number_of_threads_that_can_be_asked_for_serves(threads: int) -> None:
    with temporary_mountpoint() as path:
        session = Session.mount(path, threads=threads)
        namespace = Namespace(Vfs())
        try:
            async with trio.open_nursery() as nursery:
                await nursery.start(session.serve, namespace)
                await trio.to_thread.run_sync(os.statvfs, path)
                session.stop()
        finally:
            assert session.unmount()
            namespace.close()
            session.close()


async def test_a_detached_session_is_seen_by_nobody_and_serves_its_owner() -> None:
    session = Session.detached()
    namespace = Namespace(Vfs())
    assert f"0:{session.connection_id}" not in devices_listed()
    async with trio.open_nursery() as nursery:
        await nursery.start(session.serve, namespace)
        assert await trio.to_thread.run_sync(os.listdir, session.path("")) == []
        session.drop_path()
        # Nobody has a file of it open: the session is over, and the nursery ends.
    assert session.is_over
    namespace.close()
    session.close()


async def test_where_a_mount_cannot_be_detached_it_stands_on_a_directory_for_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refused(kind: str) -> None:
        raise OSError(errno.ENOSYS, "not implemented")

    monkeypatch.setattr(private_mount, "FsContext", refused)
    session = Session.detached()
    place = Path(session.path(""))
    namespace = Namespace(Vfs())
    async with trio.open_nursery() as nursery:
        await nursery.start(session.serve, namespace)
        assert await trio.to_thread.run_sync(calls.is_listed, place)
        assert await trio.to_thread.run_sync(os.listdir, place) == []
        session.drop_path()
    assert place.name not in os.listdir(place.parent)
    namespace.close()
    session.close()


async def test_cancelling_serve_ends_it_at_once() -> None:
    with temporary_mountpoint() as path:
        session = Session.mount(path)
        try:
            async with trio.open_nursery() as nursery:
                await nursery.start(session.serve, Namespace(Vfs()))
                await session.prime()
                nursery.cancel_scope.cancel()
        finally:
            assert session.unmount()
            session.close()
