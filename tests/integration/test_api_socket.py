"""The API on a real unix socket: the file, strange clients, many clients. The daemon behind it only records."""

import contextlib
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from nydusd.api.controller import MountRequest
from nydusd.api.dispatch import Dispatcher
from nydusd.api.server import Limits, serve
from nydusd.api.socket_file import Peer, SocketFile, probe
from nydusd.errors import ConfigError
from tests.support.controllers import RecordingController

GET = b"GET /api/v1/daemon HTTP/1.1\r\nHost: unix\r\n\r\n"
PATIENCE_S = 20


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "api.sock"


@pytest.fixture
def daemon() -> RecordingController:
    return RecordingController()


@asynccontextmanager
async def serving(
    path: Path, daemon: RecordingController, limits: Limits | None = None
) -> AsyncIterator[SocketFile]:
    file = SocketFile(path)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve, file.socket, Dispatcher(daemon).answer, limits)
        with trio.fail_after(PATIENCE_S):
            yield file
        nursery.cancel_scope.cancel()
    file.remove()


async def status_of(stream: trio.SocketStream) -> int:
    """Return the status of one answer that is not longer than a read."""
    received = bytes(await stream.receive_some(65_536))
    return int(received.split()[1])


async def ask(path: Path, request: bytes = GET) -> int:
    async with await trio.open_unix_socket(path) as stream:
        await stream.send_all(request)
        return await status_of(stream)


@pytest.fixture
def stale(path: Path) -> Path:
    """What a killed daemon leaves."""
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    return path


def is_closed_on_exec(fd: str) -> bool:
    with open(f"/proc/self/fdinfo/{fd}") as facts:
        flags = next(line for line in facts if line.startswith("flags:"))
    return bool(int(flags.split()[1], 8) & os.O_CLOEXEC)


def there(path: Path) -> bool:
    return path.exists()


# ---- the file ----------------------------------------------------------------------------------


def test_paths_are_told_apart(path: Path) -> None:
    assert probe(path) is Peer.ABSENT
    assert probe(path / "below") is Peer.ABSENT
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        assert probe(path) is Peer.STALE
        listening.listen(0)
        assert probe(path) is Peer.ALIVE
        for _ in range(3):  # each one waits in the backlog, which is soon full: busy is not dead
            assert probe(path) is Peer.ALIVE
    assert probe(path) is Peer.STALE


def test_a_file_that_is_no_socket_is_never_replaced(path: Path) -> None:
    path.write_text("precious")
    for attempt in (probe, SocketFile):
        with pytest.raises(ConfigError, match="is no socket"):
            attempt(path)
    assert path.read_text() == "precious"


def test_a_path_too_long_for_a_socket_is_refused_clearly(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="too long"):
        SocketFile(tmp_path / ("n" * 120))


def test_a_directory_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="missing"):
        SocketFile(tmp_path / "missing" / "api.sock")


async def test_a_stale_socket_is_replaced_and_removed_in_the_end(
    stale: Path, daemon: RecordingController
) -> None:
    async with serving(stale, daemon):
        assert await ask(stale) == 200
    assert not there(stale)


async def test_a_second_daemon_on_the_path_is_refused_and_the_first_goes_on(
    path: Path, daemon: RecordingController
) -> None:
    async with serving(path, daemon):
        with pytest.raises(ConfigError, match="another process answers"):
            SocketFile(path)
        assert await ask(path) == 200


async def test_the_file_of_a_successor_is_not_removed(
    path: Path, daemon: RecordingController
) -> None:
    async with serving(path, daemon):
        os.unlink(path)
        successor = SocketFile(path)
    assert there(path)
    successor.remove()
    assert not there(path)
    successor.socket.close()


def test_removing_what_is_gone_already_is_no_error(tmp_path: Path) -> None:
    folder = tmp_path / "daemon"
    folder.mkdir()
    file = SocketFile(folder / "api.sock")
    (folder / "api.sock").unlink()
    folder.rmdir()
    file.remove()
    file.socket.close()


async def test_no_child_process_can_hold_a_connection_open(
    path: Path, daemon: RecordingController
) -> None:
    before = set(os.listdir("/proc/self/fd"))
    async with serving(path, daemon), await trio.open_unix_socket(path) as stream:
        await stream.send_all(GET)
        assert await status_of(stream) == 200
        for name in set(os.listdir("/proc/self/fd")) - before:
            with contextlib.suppress(FileNotFoundError):  # the listing's own descriptor
                assert is_closed_on_exec(name), os.readlink(f"/proc/self/fd/{name}")


# ---- clients -----------------------------------------------------------------------------------


async def test_an_idle_connection_sees_the_end_of_the_daemon(
    path: Path, daemon: RecordingController
) -> None:
    async with serving(path, daemon):
        idle = await trio.open_unix_socket(path)
        await ask(path)
    with trio.fail_after(PATIENCE_S):
        assert await idle.receive_some() == b""
    await idle.aclose()


async def test_a_half_sent_request_holds_up_nobody_and_is_dropped_in_time(
    path: Path, daemon: RecordingController
) -> None:
    async with serving(path, daemon, Limits(request_s=0.2)):
        slow = await trio.open_unix_socket(path)
        await slow.send_all(GET[:20])
        assert await ask(path) == 200
        assert await status_of(slow) == 408
        assert await slow.receive_some() == b""
        await slow.aclose()


async def test_a_client_that_vanishes_in_the_middle_disturbs_nobody(
    path: Path, daemon: RecordingController
) -> None:
    async with serving(path, daemon):
        for part in (b"", GET[:5], GET, GET * 50):
            stream = await trio.open_unix_socket(path)
            await stream.send_all(part)
            await stream.aclose()
        assert await ask(path) == 200


async def test_a_body_of_one_mebibyte_is_refused_even_if_the_client_sends_it_all_first(
    path: Path, daemon: RecordingController
) -> None:
    head = b"POST /api/v1/mount?mountpoint=/a HTTP/1.1\r\nHost: u\r\nContent-Length: %d\r\n\r\n"
    async with serving(path, daemon):
        assert await ask(path, head % (1 << 20) + b"x" * (1 << 20)) == 400
        assert await ask(path) == 200
    assert daemon.calls == [("describe", True)]


async def test_pipelined_requests_are_answered_one_after_the_other(
    path: Path, daemon: RecordingController
) -> None:
    async with serving(path, daemon), await trio.open_unix_socket(path) as stream:
        await stream.send_all(GET * 20)
        received = b""
        while received.count(b'{"state":"RUNNING"}') < 20:
            received += await stream.receive_some()
    assert received.count(b"HTTP/1.1 200 ") == 20


async def test_three_hundred_connections_are_served_or_told_to_come_later(
    path: Path, daemon: RecordingController
) -> None:
    async with serving(path, daemon):
        streams = [await trio.open_unix_socket(path) for _ in range(300)]
        refused = 0
        for stream in streams:
            with contextlib.suppress(trio.BrokenResourceError):  # told off before it could ask
                await stream.send_all(GET)
            refused += await status_of(stream) == 503
        assert refused == 300 - Limits().connections
        for stream in streams:
            await stream.aclose()
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert await ask(path) == 200


async def test_a_slow_mount_does_not_delay_the_state(
    path: Path, daemon: RecordingController
) -> None:
    mounting, finish = trio.Event(), trio.Event()

    async def mount(mountpoint: str, request: MountRequest) -> None:
        mounting.set()
        await finish.wait()

    daemon.mount = mount  # type: ignore[method-assign]
    body = b'{"fs_type":"rafs","source":"s","config":"c"}'
    post = b"POST /api/v1/mount?mountpoint=/a HTTP/1.1\r\nHost: u\r\nContent-Length: %d\r\n\r\n%s"
    async with serving(path, daemon), await trio.open_unix_socket(path) as slow:
        await slow.send_all(post % (len(body), body))
        await mounting.wait()
        assert await ask(path) == 200
        finish.set()
        assert await status_of(slow) == 204


async def test_the_answer_to_exit_arrives_although_the_server_ends_at_once(path: Path) -> None:
    class Ending(RecordingController):
        """Takes the server down as soon as it may."""

        def end(self) -> None:
            scope.cancel()

    file = SocketFile(path)
    async with trio.open_nursery() as nursery:
        scope = nursery.cancel_scope
        stream = await trio.open_unix_socket(path)
        await stream.send_all(b"PUT /api/v1/daemon/exit HTTP/1.1\r\nHost: u\r\n\r\n")
        nursery.start_soon(serve, file.socket, Dispatcher(Ending()).answer)
    with trio.fail_after(PATIENCE_S):
        assert await status_of(stream) == 204
        assert await stream.receive_some() == b""
    await stream.aclose()
    file.remove()
