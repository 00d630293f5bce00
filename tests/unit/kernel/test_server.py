import errno
import logging
import os
import socket
import struct
from collections import deque
from collections.abc import Iterator

import pytest
import trio
import trio.testing

from nydusd.errors import AuthError, BackendError, FormatError, NydusError
from nydusd.kernel import wire
from nydusd.kernel.errno_map import Refusal
from nydusd.kernel.mount import MountError
from nydusd.kernel.server import Server, caller_is_killed, unserved
from nydusd.kernel.wire import Opcode
from nydusd.native_relay import ENDED, TOUCHED, Kind, Message
from tests.support.fuse_requests import (
    Reply,
    interrupt_message,
    lookup_message,
    make_message,
    read_message,
    reply_of,
)

FILE = 7
CONTENT = bytes(range(256)) * 64


class FakeRelay:
    """A queue that the test fills; `answers` are what `answer` returns, one after the other."""

    def __init__(self) -> None:
        self.wake_fd = os.eventfd(0, os.EFD_NONBLOCK)
        self.queued: deque[Message] = deque()
        self.at_stop: list[Message] = []  # what its threads still had in their hands
        self.answers: deque[bool] = deque()
        self.answered: list[tuple[int, bytes]] = []
        self.is_stopped = False

    def queue(self, body: bytes, kind: Kind = Kind.REQUEST, device: int = 0) -> None:
        self.queued.append(Message(kind, device, body))
        os.eventfd_write(self.wake_fd, 1)

    def take(self) -> list[Message]:
        if self.queued:
            os.eventfd_read(self.wake_fd)
        taken = list(self.queued)
        self.queued.clear()
        return taken

    def stop(self, timeout_s: float) -> None:
        self.is_stopped = True
        self.queued.extend(self.at_stop)
        if self.at_stop:
            os.eventfd_write(self.wake_fd, 1)
        self.at_stop = []

    def answer(self, device_fd: int, request: bytes) -> bool:
        self.answered.append((device_fd, request))
        return self.answers.popleft()


class FakeFiles:
    """One file; reads wait for `gate` unless `is_cached`. `outcomes` come before its bytes."""

    def __init__(self) -> None:
        self.is_cached = False
        self.gate = trio.Event()
        self.gate.set()
        self.outcomes: deque[Exception | bytes | None] = deque()
        self.touches: list[tuple[int, int]] = []

    def attach_relay(self, relay: object) -> None:
        raise AssertionError("that is the session's to do")

    def answer(self, request: wire.Request) -> bytes | None:
        if self.outcomes:
            return self._outcome()
        if request.opcode == Opcode.LOOKUP:
            return wire.name(request)
        if request.opcode == Opcode.FORGET:
            return None
        raise unserved(request)

    def read_now(self, nodeid: int, fh: int, offset: int, size: int) -> bytes | None:
        return CONTENT[offset : offset + size] if self.is_cached else None

    async def read(self, nodeid: int, fh: int, offset: int, size: int) -> bytes | None:
        await self.gate.wait()
        if self.outcomes:
            return self._outcome()
        return CONTENT[offset : offset + size]

    def _outcome(self) -> bytes | None:
        outcome = self.outcomes.popleft()
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def touched(self, source: int, chunk: int) -> None:
        self.touches.append((source, chunk))

    def describe(self, nodeid: int) -> str:
        return f"mount=/image ino={nodeid}"


class Scene:
    """A server between a relay that the test fills and devices that the test reads."""

    def __init__(self) -> None:
        self.relay, self.files = FakeRelay(), FakeFiles()
        pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(2)]
        self.kernels = [kernel for kernel, _ in pairs]
        self.devices = [device for _, device in pairs]
        for kernel in self.kernels:
            kernel.setblocking(False)
        self.killed: set[int] = set()
        self.server = Server(
            self.files,
            self.relay,  # type: ignore[arg-type]
            [device.fileno() for device in self.devices],
            is_killed=self.killed.__contains__,
        )

    async def ask(self, *messages: bytes, device: int = 0) -> None:
        for message in messages:
            self.relay.queue(message, device=device)
        await trio.testing.wait_all_tasks_blocked(0.02)

    def replies(self, device: int = 0) -> list[Reply]:
        found = []
        while True:
            try:
                found.append(reply_of(self.kernels[device].recv(1 << 21)))
            except BlockingIOError:
                return found

    def close(self) -> None:
        os.close(self.relay.wake_fd)
        for one in (*self.kernels, *self.devices):
            one.close()


@pytest.fixture
def scene() -> Iterator[Scene]:
    scene = Scene()
    yield scene
    scene.close()


async def serving(scene: Scene, nursery: trio.Nursery) -> None:
    await nursery.start(scene.server.run)


def end(scene: Scene) -> None:
    scene.relay.queue(ENDED.pack(errno.ENODEV), Kind.ENDED)


async def test_a_request_is_answered_at_once_on_the_device_it_came_from(
    scene: Scene, nursery: trio.Nursery
) -> None:
    await serving(scene, nursery)
    await scene.ask(lookup_message(1, b"name", unique=4), device=1)
    assert scene.replies(1) == [Reply(0, 4, b"name")]
    assert scene.replies(0) == []
    end(scene)


async def test_bytes_that_are_there_are_answered_without_a_task(
    scene: Scene, nursery: trio.Nursery
) -> None:
    scene.files.is_cached = True
    await serving(scene, nursery)
    await scene.ask(read_message(FILE, 4, 8, unique=wire.RESENT | 6))
    assert scene.replies() == [Reply(0, wire.RESENT | 6, CONTENT[4:12])]
    end(scene)


async def test_reads_that_wait_hold_up_nothing_and_show_as_in_flight(
    scene: Scene, nursery: trio.Nursery
) -> None:
    scene.files.gate = trio.Event()
    await serving(scene, nursery)
    await scene.ask(
        *(read_message(FILE, part * 10, 10, unique=part) for part in (2, 4, 6)),
        lookup_message(1, b"name", unique=8),
    )
    assert scene.replies() == [Reply(0, 8, b"name")]
    shown = scene.server.in_flight()
    assert [(one.inode, one.opcode, one.unique) for one in shown] == [
        (FILE, 15, unique) for unique in (2, 4, 6)
    ]
    assert shown[0].started_epoch_s > 1_600_000_000
    scene.files.gate.set()
    await trio.testing.wait_all_tasks_blocked()
    assert sorted(scene.replies(), key=lambda reply: reply.unique) == [
        Reply(0, part, CONTENT[part * 10 : part * 10 + 10]) for part in (2, 4, 6)
    ]
    assert scene.server.in_flight() == []
    end(scene)


async def test_what_is_filled_the_relay_answers(scene: Scene, nursery: trio.Nursery) -> None:
    scene.files.outcomes.extend([None, None])
    scene.relay.answers.extend([False, True])
    await serving(scene, nursery)
    message = read_message(FILE, 0, 10, unique=2)
    await scene.ask(message, device=1)
    assert scene.relay.answered == [(scene.devices[1].fileno(), message)] * 2
    assert scene.replies(1) == []  # it is the relay that writes
    assert scene.server.in_flight() == []
    end(scene)


async def test_what_does_not_stay_filled_is_an_error_and_no_endless_loop(
    scene: Scene, nursery: trio.Nursery, caplog: pytest.LogCaptureFixture
) -> None:
    scene.files.outcomes.extend([None] * 50)
    scene.relay.answers.extend([False] * 50)
    await serving(scene, nursery)
    await scene.ask(read_message(FILE, 0, 10))
    assert [reply.error for reply in scene.replies()] == [errno.EIO]
    assert len(scene.relay.answered) < 10
    assert "does not stay" in caplog.text
    end(scene)


@pytest.mark.parametrize(
    ("fault", "number"),
    [
        (BackendError("blob 12: 503"), errno.EIO),
        (AuthError("blob 12: 401"), errno.EACCES),
        (FormatError("field", 1, "must be 2"), errno.EIO),
    ],
)
async def test_equal_faults_are_an_errno_each_and_one_line_together(
    scene: Scene,
    nursery: trio.Nursery,
    caplog: pytest.LogCaptureFixture,
    fault: NydusError,
    number: int,
) -> None:
    scene.files.outcomes.extend([fault] * 50)
    await serving(scene, nursery)
    await scene.ask(*(read_message(FILE, 2, 3, unique=2 * n) for n in range(50)))
    assert [reply.error for reply in scene.replies()] == [number] * 50
    [line] = caplog.records
    assert line.levelno == logging.WARNING
    assert not line.exc_info
    for fact in ("mount=/image ", f"ino={FILE}", "offset=2", "size=3", str(fault)):
        assert fact in line.getMessage()
    end(scene)


async def test_a_bug_is_eio_with_a_traceback_and_the_session_lives(
    scene: Scene, nursery: trio.Nursery, caplog: pytest.LogCaptureFixture
) -> None:
    scene.files.outcomes.extend([KeyError("bug"), KeyError("bug")])
    await serving(scene, nursery)
    await scene.ask(lookup_message(1, b"name"))
    await scene.ask(read_message(FILE, 0, 1))
    await scene.ask(lookup_message(1, b"name"))
    assert [reply.error for reply in scene.replies()] == [errno.EIO, errno.EIO, 0]
    assert [record.levelno for record in caplog.records] == [logging.ERROR] * 2
    assert all(record.exc_info for record in caplog.records)
    end(scene)


async def test_what_posix_refuses_is_not_worth_a_log_line(
    scene: Scene, nursery: trio.Nursery, caplog: pytest.LogCaptureFixture
) -> None:
    scene.files.outcomes.append(Refusal(errno.ENODATA, "none"))
    await serving(scene, nursery)
    await scene.ask(make_message(Opcode.GETXATTR), make_message(Opcode.FLUSH))
    assert [reply.error for reply in scene.replies()] == [errno.ENODATA, errno.ENOSYS]
    assert caplog.records == []
    end(scene)


async def test_what_wants_no_reply_gets_none_even_if_it_fails(
    scene: Scene, nursery: trio.Nursery, caplog: pytest.LogCaptureFixture
) -> None:
    await serving(scene, nursery)
    await scene.ask(make_message(Opcode.FORGET), make_message(Opcode.DESTROY, unique=4))
    scene.files.outcomes.append(KeyError("bug"))
    await scene.ask(make_message(Opcode.FORGET))
    assert scene.replies() == [Reply(0, 4, b"")]
    assert len(caplog.records) == 1
    end(scene)


async def test_garbage_is_dropped_or_refused_and_the_session_lives(
    scene: Scene, nursery: trio.Nursery, caplog: pytest.LogCaptureFixture
) -> None:
    await serving(scene, nursery)
    await scene.ask(
        make_message(Opcode.LOOKUP, length=4711),
        make_message(Opcode.READ, body=bytes(7), unique=4),
        make_message(Opcode.LOOKUP, body=b"no end", unique=6),
        make_message(Opcode.INTERRUPT, body=bytes(3)),
        make_message(4711, unique=8),
        lookup_message(1, b"name", unique=10),
    )
    assert [(reply.unique, reply.error) for reply in scene.replies()] == [
        (4, errno.EIO),
        (6, errno.EIO),
        (8, errno.ENOSYS),
        (10, 0),
    ]
    assert len(caplog.records) == 4  # all but the unknown opcode, which newer kernels may have
    end(scene)


async def test_a_killed_reader_is_let_go_and_its_read_is_cancelled(
    scene: Scene, nursery: trio.Nursery
) -> None:
    scene.files.gate = trio.Event()
    await serving(scene, nursery)
    await scene.ask(read_message(FILE, 0, 1, unique=2, pid=99), read_message(FILE, 0, 1, unique=4))
    scene.killed.add(99)
    await scene.ask(interrupt_message(2))
    assert scene.replies() == [Reply(errno.EINTR, 2, b"")]
    assert [one.unique for one in scene.server.in_flight()] == [4]
    assert scene.files.gate.statistics().tasks_waiting == 1
    scene.files.gate.set()
    await trio.testing.wait_all_tasks_blocked()
    assert scene.replies() == [Reply(0, 4, CONTENT[:1])]
    end(scene)


async def test_a_signal_that_does_not_kill_interrupts_nothing(
    scene: Scene, nursery: trio.Nursery
) -> None:
    scene.files.gate = trio.Event()
    await serving(scene, nursery)
    await scene.ask(read_message(FILE, 0, 1, unique=2, pid=99), interrupt_message(2))
    await scene.ask(interrupt_message(4711))
    assert scene.replies() == []
    scene.files.gate.set()
    await trio.testing.wait_all_tasks_blocked()
    assert scene.replies() == [Reply(0, 2, CONTENT[:1])]
    end(scene)


async def test_a_killed_reader_is_found_without_an_interrupt(
    scene: Scene, nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    """The kernel sends one for the first signal only, and none for asynchronous reads."""
    autojump_clock.autojump_threshold = 0.01
    scene.files.gate = trio.Event()
    await serving(scene, nursery)
    scene.relay.queue(read_message(FILE, 0, 1, unique=2, pid=99))
    scene.relay.queue(read_message(FILE, 0, 1, unique=4, pid=98))
    await trio.sleep(3)
    assert scene.replies() == []
    scene.killed.add(99)
    await trio.sleep(3)
    assert scene.replies() == [Reply(errno.EINTR, 2, b"")]
    assert [one.unique for one in scene.server.in_flight()] == [4]
    scene.killed.add(98)
    await trio.sleep(3)
    assert scene.replies() == [Reply(errno.EINTR, 4, b"")]
    end(scene)


async def test_stop_answers_what_waits_and_what_the_relay_had_read(scene: Scene) -> None:
    scene.files.gate = trio.Event()
    scene.relay.at_stop = [Message(Kind.REQUEST, 0, lookup_message(1, b"late", unique=4))]
    async with trio.open_nursery() as nursery:
        await serving(scene, nursery)
        await scene.ask(read_message(FILE, 0, 1, unique=2))
        scene.server.stop(60)
        with trio.fail_after(10):
            while not scene.relay.is_stopped:  # noqa: ASYNC110 - set by a thread
                await trio.sleep(0.001)
            await trio.testing.wait_all_tasks_blocked(0.02)
        assert scene.replies() == [Reply(0, 4, b"late")]
        scene.files.gate.set()
    assert scene.replies() == [Reply(0, 2, CONTENT[:1])]


async def test_stop_does_not_wait_for_ever(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    scene.files.gate = trio.Event()
    async with trio.open_nursery() as nursery:
        await serving(scene, nursery)
        await scene.ask(read_message(FILE, 0, 1))
        scene.server.stop(0)
    assert scene.replies() == []  # a successor may get it
    assert "1 requests were not answered" in caplog.text


async def test_the_end_of_the_session_ends_serving_and_those_who_wait(scene: Scene) -> None:
    scene.files.gate = trio.Event()
    async with trio.open_nursery() as nursery:
        await serving(scene, nursery)
        await scene.ask(read_message(FILE, 0, 1))
        end(scene)
    assert scene.relay.is_stopped
    assert scene.server.in_flight() == []


async def test_a_device_that_fails_otherwise_is_told(scene: Scene) -> None:
    scene.relay.queue(ENDED.pack(errno.EIO), Kind.ENDED)
    with pytest.raises(MountError, match=os.strerror(errno.EIO)):
        await scene.server.run()


async def test_cancelling_leaves_requests_unanswered_and_no_thread_behind(scene: Scene) -> None:
    scene.files.gate = trio.Event()
    async with trio.open_nursery() as nursery:
        await serving(scene, nursery)
        await scene.ask(read_message(FILE, 0, 1))
        nursery.cancel_scope.cancel()
    assert scene.relay.is_stopped
    assert scene.replies() == []


async def test_touches_are_passed_on(scene: Scene, nursery: trio.Nursery) -> None:
    await serving(scene, nursery)
    scene.relay.queue(TOUCHED.pack(3, 4), Kind.TOUCHED)
    await scene.ask(lookup_message(1, b"name"))
    assert scene.files.touches == [(3, 4)]
    end(scene)


async def test_nobody_waiting_for_a_reply_is_no_fault(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    numbers = deque([errno.ENOENT, errno.EINVAL, errno.ENODEV])

    def refuse(fd: int, parts: object) -> int:
        raise OSError(numbers.popleft(), "refused")

    monkeypatch.setattr(os, "writev", refuse)
    async with trio.open_nursery() as nursery:
        await serving(scene, nursery)
        await scene.ask(lookup_message(1, b"name"))
        assert caplog.records == []
        await scene.ask(lookup_message(1, b"name"))
        assert "refused" in caplog.text
        await scene.ask(lookup_message(1, b"name"))  # the last word: the session is over
    assert not numbers


def test_a_caller_is_killed_when_sigkill_is_on_its_way() -> None:
    assert not caller_is_killed(os.getpid())
    assert not caller_is_killed(0)
    assert not caller_is_killed(1 << 30)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.read(reading, 1)
        os._exit(0)
    try:
        assert not caller_is_killed(child)
    finally:
        os.write(writing, struct.pack("=B", 0))
        os.waitpid(child, 0)
        os.close(reading)
        os.close(writing)
