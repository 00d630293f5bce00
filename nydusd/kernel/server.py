"""Requests to replies: what the relay passes on is answered here, at once or by a task that waits.

Owns     the requests that wait, the log of their faults. Not the relay, nor the descriptors.
Callers  kernel/session.py, in the trio thread; daemon/ and api/ read `in_flight()`.
Raises   MountError if the device fails in a way that is no end of a session. Never because of one request:
         a fault of ours or the registry's is an errno for its caller and a line in the log, a bug EIO.
Cancel   `run` ends at once; requests that wait stay unanswered, for a successor or the end of the session.

All but reads of bytes that are not there yet is answered in the loop, without a task: a scheduler pass
costs more than the answer. A reply goes to the descriptor that its request came from.
"""

import errno
import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

import trio

from nydusd.errors import FormatError, NydusError
from nydusd.kernel import wire
from nydusd.kernel.errno_map import Refusal, errno_of
from nydusd.kernel.fault_log import FaultLog
from nydusd.kernel.mount import MountError
from nydusd.kernel.stats import InFlightRequest
from nydusd.kernel.wire import Opcode
from nydusd.native_relay import ENDED, TOUCHED, Kind
from nydusd.records import Buffer

if TYPE_CHECKING:
    from nydusd.native_relay import Message, Relay

log = logging.getLogger(__name__)

# A range that `read` has filled may be given up again before the relay gets to it (a lost cache file); the
# next attempt then returns bytes. More than a few times in a row is a bug.
NATIVE_ATTEMPTS: Final = 3
RELAY_STOP_TIMEOUT_S: Final = 2.0
KILLED_POLL_S: Final = 0.5
# The device's words for "the session is over": unmounted, aborted, or never mounted.
OVER: Final = frozenset({errno.ENODEV, errno.ENOTCONN, errno.ECONNABORTED})
_UNANSWERED: Final = frozenset({Opcode.FORGET, Opcode.BATCH_FORGET})
_SIGKILL_BIT: Final = 1 << 8  # signal 9 in the masks of /proc


class FileSystem(Protocol):
    """What a session serves. Its objects are named by nodeid; ROOT_NODEID is where it begins.

    Called in the trio thread. Everything is synchronous but `read`. What it raises, the server turns into
    an errno for the caller (errno_map.py) and a line in the log: Refusal for an ordinary "no".
    """

    def attach_relay(self, relay: "Relay") -> None:
        """Take note of the relay, before serving. Native files are registered with it at any time after."""
        ...

    def answer(self, request: wire.Request) -> Buffer | None:
        """Return the payload of the reply, None if none is due. Raise `unserved(request)` for what is not served.

        Not called for READ, INTERRUPT and DESTROY.
        """
        ...

    def read_now(self, nodeid: int, fh: int, offset: int, size: int) -> Buffer | None:
        """Return file bytes [offset, offset + size), fewer only at the end; None: not without waiting."""
        ...

    async def read(self, nodeid: int, fh: int, offset: int, size: int) -> Buffer | None:
        """Return file bytes as `read_now`; None: all of it is in the cache now, the relay answers.

        Cancel: when its reader was killed, or the session ends.
        """
        ...

    def touched(self, source: int, chunk: int) -> None:
        """Take note that the relay has read a watched chunk."""
        ...

    def describe(self, nodeid: int) -> str:
        """Return words for a log line; the first one must name the mount or device, `key=value`."""
        ...


# What a read-only server does not have. ENOSYS is for ever: the kernel does without, for all mounts of the
# session, which is right for locks, flushes, seeks and the like. Everything that some object does have must
# refuse otherwise, and so must whatever writes (which a read-only mount never asks for).
_NEVER_AGAIN: Final = frozenset(
    {
        Opcode.FLUSH,
        Opcode.FSYNC,
        Opcode.FSYNCDIR,
        Opcode.LSEEK,
        Opcode.STATX,
        Opcode.POLL,
        Opcode.BMAP,
        Opcode.GETLK,
        Opcode.SETLK,
        Opcode.SETLKW,
        Opcode.FALLOCATE,
        Opcode.COPY_FILE_RANGE,
        Opcode.TMPFILE,
        Opcode.RENAME2,
    }
)
_WRITING: Final = frozenset(
    {
        Opcode.SETATTR,
        Opcode.SYMLINK,
        Opcode.MKNOD,
        Opcode.MKDIR,
        Opcode.UNLINK,
        Opcode.RMDIR,
        Opcode.RENAME,
        Opcode.LINK,
        Opcode.WRITE,
        Opcode.SETXATTR,
        Opcode.REMOVEXATTR,
        Opcode.CREATE,
    }
)


def unserved(request: wire.Request) -> Refusal:
    """Return what to raise for an operation that a read-only file system has not got."""
    opcode = request.opcode
    if opcode in _WRITING:
        return Refusal(errno.EROFS, f"{wire.title(opcode)}: nothing here can be written")
    if opcode == Opcode.IOCTL:
        return Refusal(errno.ENOTTY, "no ioctl here")
    if opcode in _NEVER_AGAIN or not _is_known(opcode):
        return Refusal(errno.ENOSYS, f"{wire.title(opcode)} is not served")
    return Refusal(errno.EOPNOTSUPP, f"{wire.title(opcode)} is not served for this object")


def _is_known(opcode: int) -> bool:
    try:
        Opcode(opcode)
    except ValueError:
        return False
    return True


@dataclass(slots=True, eq=False)
class _Waiting:
    """A READ that a task is answering."""

    shown: InFlightRequest
    device: int  # descriptor that the reply goes to
    caller: int  # thread id, 0: unknown
    span: wire.Span
    message: bytes  # for the relay
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)


class Server:
    """Answers the requests of one session until it ends or `stop` is called."""

    def __init__(
        self,
        file_system: FileSystem,
        relay: "Relay",
        devices: Sequence[int],
        *,
        is_killed: Callable[[int], bool] | None = None,
    ) -> None:
        """`devices`: the session's descriptors, in the order that the relay was started with."""
        self.faults = FaultLog()
        self._file_system = file_system
        self._relay = relay
        self._devices = tuple(devices)
        self._is_killed = is_killed or caller_is_killed
        self._waiting: dict[int, _Waiting] = {}  # by unique
        self._is_watching = False  # a task is
        self._listening = trio.CancelScope()
        self._grace_s: float | None = None  # set: stop was asked for
        self._is_over = False
        self._failure: MountError | None = None

    def in_flight(self) -> list[InFlightRequest]:
        """Return the requests that wait for bytes, oldest first (spec api §4.5)."""
        return [waiting.shown for waiting in self._waiting.values()]

    def stop(self, grace_s: float) -> None:
        """Make `run` return once the requests in flight are answered, at most `grace_s` from now."""
        if self._grace_s is None:
            self._grace_s = grace_s
            self._listening.cancel()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Answer until the kernel ends the session or `stop`. The relay has been started; it is stopped here."""
        try:
            async with trio.open_nursery() as watchers:
                self._watchers = watchers
                async with trio.open_nursery() as readers:
                    self._readers = readers
                    task_status.started()
                    with self._listening:
                        while not self._is_over:
                            await trio.lowlevel.wait_readable(self._relay.wake_fd)
                            self._take()
                    if self._is_over:
                        readers.cancel_scope.cancel()  # their callers have been told by the kernel
                    else:
                        await self._stop_relay()
                        # What the relay had read before it stopped is ours to answer; the rest is a successor's.
                        while self._take():
                            pass
                        readers.cancel_scope.deadline = trio.current_time() + (self._grace_s or 0.0)
                watchers.cancel_scope.cancel()
            if self._waiting and not self._is_over:
                log.warning(
                    "%s requests were not answered in %s s", len(self._waiting), self._grace_s
                )
        finally:
            await self._stop_relay()
            self._waiting.clear()
            self.faults.flush()
        if self._failure is not None:
            raise self._failure

    async def _stop_relay(self) -> None:
        """End the relay's threads; again is nothing. Bounded by its own timeout."""
        try:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(self._relay.stop, RELAY_STOP_TIMEOUT_S)
        except OSError as exc:
            log.warning("threads at /dev/fuse do not end: %s", exc)

    def _take(self) -> bool:
        """Handle everything that the relay has queued; tell whether there was anything."""
        messages = self._relay.take()
        for message in messages:
            self._handle(message)
        return bool(messages)

    def _handle(self, message: "Message") -> None:
        if message.kind is Kind.REQUEST:
            self._request(self._devices[message.device], message.body)
        elif message.kind is Kind.TOUCHED:
            self._file_system.touched(*TOUCHED.unpack(message.body))
        else:
            self._end(ENDED.unpack(message.body)[0])

    def _end(self, number: int) -> None:
        """Take note that the session is over."""
        self._is_over = True
        if abs(number) == errno.ECONNABORTED:
            # Only who writes to /sys/fs/fuse/connections/…/abort gets this word: an umount is ENODEV.
            log.warning("somebody aborted the session: mounts on it fail now")
        elif abs(number) not in OVER:
            self._failure = MountError(f"reading requests failed: {os.strerror(abs(number))}")

    # ---- requests -----------------------------------------------------------------------------

    def _request(self, device: int, message: bytes) -> None:
        """Answer one request, or start a task that will."""
        try:
            request = wire.parse(message)
        except FormatError as exc:
            # Nobody can be told: not even its number is certain.
            self.faults.report("request", f"request dropped: {exc}", level=logging.ERROR)
            return
        opcode = request.opcode
        if opcode == Opcode.READ:
            self._read(device, request)
        elif opcode == Opcode.INTERRUPT:
            self._interrupt(request)
        elif opcode == Opcode.DESTROY:
            self._reply(device, request.unique, b"")
        else:
            try:
                payload = self._file_system.answer(request)
            except Exception as exc:  # noqa: BLE001 - boundary (docs/style.md §3.4): it would end the mount
                number = self._told(exc, opcode, request.nodeid)
                if opcode not in _UNANSWERED:
                    self._refuse(device, request.unique, number)
            else:
                if payload is not None:
                    self._reply(device, request.unique, payload)

    def _read(self, device: int, request: wire.Request) -> None:
        unique, nodeid = request.unique, request.nodeid
        span = None
        try:
            span = wire.span(request)
            content = self._file_system.read_now(nodeid, *span)
        except Exception as exc:  # noqa: BLE001 - as above
            self._refuse(device, unique, self._told(exc, Opcode.READ, nodeid, span))
            return
        if content is not None:
            self._reply(device, unique, content)
        else:
            waiting = _Waiting(
                InFlightRequest(nodeid, Opcode.READ, unique, int(time.time())),
                device,
                request.pid,
                span,
                request.message,
            )
            self._waiting[unique] = waiting
            self._readers.start_soon(self._read_later, waiting)
            if not self._is_watching:
                self._is_watching = True
                self._watchers.start_soon(self._watch_callers)

    async def _read_later(self, waiting: _Waiting) -> None:
        """Answer a READ whose bytes have to be waited for."""
        shown = waiting.shown
        try:
            with waiting.scope:
                content = await self._content(waiting)
        except Exception as exc:  # noqa: BLE001 - as above
            number = self._told(exc, Opcode.READ, shown.inode, waiting.span)
            del self._waiting[shown.unique]
            self._refuse(waiting.device, shown.unique, number)
            return
        if self._waiting.pop(shown.unique, None) is None:
            return  # interrupted, and answered by that
        if content is not None:
            self._reply(waiting.device, shown.unique, content)

    async def _content(self, waiting: _Waiting) -> Buffer | None:
        """Return the bytes, None if the relay has written them."""
        for _ in range(NATIVE_ATTEMPTS):
            content = await self._file_system.read(waiting.shown.inode, *waiting.span)
            if content is not None:
                return content
            if self._relay.answer(waiting.device, waiting.message):
                return None
        raise NydusError("what was fetched does not stay in the cache")

    # ---- readers that are killed --------------------------------------------------------------
    #
    # The kernel keeps a killed reader until its request is answered, and a dead registry may take long. It
    # sends INTERRUPT at the first signal of any kind, and none at all for what is read asynchronously
    # (O_DIRECT, readahead). So who waits is looked at from time to time, and at once on INTERRUPT.
    # A signal that does not kill interrupts nothing, as on a disk: a page fault that ends with EINTR is a
    # SIGBUS. INTERRUPT itself wants no reply.

    def _interrupt(self, request: wire.Request) -> None:
        try:
            unique = wire.interrupted(request)
        except FormatError as exc:
            self.faults.report("INTERRUPT", f"request dropped: {exc}", level=logging.ERROR)
            return
        waiting = self._waiting.get(
            unique
        )  # none: answered, or still with another of the relay's threads
        if waiting is not None and self._is_killed(waiting.caller):
            self._let_go(waiting)

    async def _watch_callers(self) -> None:
        """Let killed callers go, as long as any request waits."""
        while self._waiting:
            await trio.sleep(KILLED_POLL_S)
            callers = {waiting.caller for waiting in self._waiting.values()}
            killed = {caller for caller in callers if self._is_killed(caller)}
            for waiting in [one for one in self._waiting.values() if one.caller in killed]:
                self._let_go(waiting)
        self._is_watching = False

    def _let_go(self, waiting: _Waiting) -> None:
        unique = waiting.shown.unique
        del self._waiting[unique]
        waiting.scope.cancel()
        self._refuse(waiting.device, unique, errno.EINTR)

    # ---- replies ------------------------------------------------------------------------------

    def _reply(self, device: int, unique: int, payload: Buffer) -> None:
        self._write(device, (wire.reply_header(unique, len(payload)), payload))

    def _refuse(self, device: int, unique: int, number: int) -> None:
        self._write(device, (wire.refusal(unique, number),))

    def _write(self, device: int, parts: Sequence[Buffer]) -> None:
        try:
            os.writev(device, parts)
        except OSError as exc:
            if exc.errno == errno.ENOENT:
                return  # nobody waits any more
            if exc.errno in OVER:
                self._is_over = True
                return
            # The kernel has ended the request with an error of its own.
            self.faults.report(
                ("reply", exc.errno), f"bug: reply refused: {exc}", level=logging.ERROR, bug=exc
            )

    def _told(self, exc: Exception, opcode: int, nodeid: int, span: wire.Span | None = None) -> int:
        """Return the errno for what an operation raised; log it, unless it is an ordinary "no"."""
        if isinstance(exc, Refusal):
            return exc.errno
        name = wire.title(opcode).lower()
        where = self._file_system.describe(nodeid)
        if span is not None:
            where += f" offset={span.offset} size={span.size}"
        if isinstance(exc, NydusError):
            number = errno_of(exc)
            self.faults.report(
                (name, where.partition(" ")[0], type(exc).__name__),
                f"{name} failed: {where} errno={errno.errorcode[number]} error={exc}",
            )
            return number
        self.faults.report(
            (name, type(exc).__name__), f"bug: {name} {where}", level=logging.ERROR, bug=exc
        )
        return errno.EIO


def caller_is_killed(thread_id: int) -> bool:
    """Tell whether SIGKILL is on its way to a thread: that is what any fatal signal becomes."""
    if thread_id <= 0:
        return False
    try:
        status = Path(f"/proc/{thread_id}/status").read_text(errors="replace")
    except OSError:
        return False
    pending = 0
    for line in status.splitlines():
        key, _, value = line.partition(":")
        if key in ("SigPnd", "ShdPnd"):
            pending |= int(value, 16)
    return bool(pending & _SIGKILL_BIT)
