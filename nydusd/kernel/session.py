"""One FUSE session: mounting, serving, ending. One process has one: pyfuse3 keeps it in globals.

Owns     the mount and its /dev/fuse descriptor. libfuse gets a duplicate of the descriptor, or another
         one in its place (`libfuse_fd`), so that ours can be sent to a supervisor, and a relay can stand
         between the kernel and libfuse (docs/design.md §4, Takeover). Before that it gets a socket, for
         INIT alone (kernel/handshake.py).
Callers  daemon/, in the trio thread.
Raises   MountError; StateError for a second session at the same time.
Cancel   a cancelled `serve` leaves the requests in flight unanswered: they fail when the last descriptor
         of the session is closed, or go to the successor that has one.
"""

import contextlib
import errno
import logging
import os
import select
import socket
from functools import partial
from pathlib import Path
from typing import Final

import pyfuse3
import trio

from nydusd.errors import StateError
from nydusd.kernel import handshake, mount, notify
from nydusd.kernel.mount import MountError, MountIdentity
from nydusd.kernel.operations import GuardedOperations
from nydusd.kernel.vfs import Stale

log = logging.getLogger(__name__)

# Requests served at once. Far more than readers that wait for a registry: lookups must never queue behind
# them (spec fs-behaviour §22, trap 13). A waiting request costs a task and, untouched, 1 MiB of addresses.
MAX_REQUESTS: Final = 1024
IDLE_TASKS: Final = 4
STOP_GRACE_S: Final = 10.0  # what requests in flight get to end after stop()
PRIME_TIMEOUT_S: Final = 10.0
INVALIDATE_TIMEOUT_S: Final = 10.0
HANDSHAKE_TIMEOUT_S: Final = 10.0
_OVER: Final = frozenset({errno.ENODEV, errno.ENOTCONN, errno.ENOENT, errno.ECONNABORTED})


class Session:
    """One mount that this process serves."""

    _serving: "Session | None" = None  # the one that pyfuse3's globals belong to

    def __init__(
        self,
        mountpoint: Path,
        fuse_fd: int,
        identity: MountIdentity,
        *,
        init_request: bytes | None = None,
    ) -> None:
        """Take over a mounted session: `fuse_fd` is its /dev/fuse descriptor and now belongs to this object.

        init_request: what the predecessor had as `init_request`, if the kernel's INIT is answered already.
        `Session.mount` makes a new one.
        """
        self.mountpoint = mountpoint
        self.fuse_fd = fuse_fd
        self.init_request = init_request  # set once `serve` has started
        self._identity = identity
        self._stop = trio.Event()
        self._stop_grace_s = STOP_GRACE_S
        self._reading = False  # pyfuse3.main is running
        self._closed = False

    @classmethod
    def mount(cls, mountpoint: Path, *, writable: bool = False) -> "Session":
        """Mount on an existing directory. Requests queue in the kernel until `serve` runs."""
        fuse_fd = mount.mount_fuse(mountpoint, writable=writable)
        try:
            # Ours for sure: nobody else can mount here between these two calls but on top of it.
            session = cls(mountpoint, fuse_fd, mount.identify(mountpoint))
        except BaseException:
            mount.detach(mountpoint)
            os.close(fuse_fd)
            raise
        log.info("mounted mountpoint=%s connection=%s", mountpoint, session.connection_id)
        return session

    @property
    def connection_id(self) -> int:
        """The mount's st_dev as major << 20 | minor, the name under /sys/fs/fuse/connections."""
        return self._identity.device

    @property
    def is_over(self) -> bool:
        """Whether the kernel has ended the session: unmounted and all files closed, or aborted."""
        poller = select.poll()
        poller.register(self.fuse_fd, 0)
        return any(events & select.POLLERR for _, events in poller.poll(0))

    async def serve(
        self,
        operations: GuardedOperations,
        *,
        libfuse_fd: int | None = None,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Answer requests until the kernel ends the session or `stop` is called; once per session.

        libfuse_fd: what libfuse reads and writes behind INIT, which stays the caller's; default: `fuse_fd`.
        Raises MountError if INIT or reading requests fails, StateError if this process serves already.
        """
        if Session._serving is not None:
            raise StateError("Serve", f"serving {Session._serving.mountpoint}")
        Session._serving = self
        ours, libfuses = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        channel = libfuses.detach()
        with ours:
            try:
                ours.setblocking(False)
                os.set_blocking(channel, False)
                # No options: those of the mount are the kernel's, and it has them.
                pyfuse3.init(operations, f"/dev/fd/{channel}", set())
            except BaseException:
                Session._serving = None
                os.close(channel)
                raise
            quiet = _NoiseFilter()
            pyfuse3_log = logging.getLogger("pyfuse3")
            pyfuse3_log.addFilter(quiet)
            try:
                await self._negotiate(ours)
                os.dup2(
                    self.fuse_fd if libfuse_fd is None else libfuse_fd, channel, inheritable=False
                )
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._limit_stop, operations, nursery.cancel_scope)
                    task_status.started()
                    await self._answer()
                    nursery.cancel_scope.cancel()
            except BaseExceptionGroup as group:
                raise _unwrap(group) from group
            finally:
                pyfuse3.close(unmount=False)  # and with it the channel
                pyfuse3_log.removeFilter(quiet)
                Session._serving = None
                operations.faults.flush()
        log.info("no longer serving mountpoint=%s", self.mountpoint)

    async def _negotiate(self, ours: socket.socket) -> None:
        """Let libfuse answer INIT over the socket; pass the answer on unless the kernel has had it."""
        try:
            with trio.fail_after(HANDSHAKE_TIMEOUT_S):
                is_new = self.init_request is None
                if self.init_request is None:
                    await trio.lowlevel.wait_readable(self.fuse_fd)
                    self.init_request = os.read(self.fuse_fd, handshake.REQUEST_MAX_BYTES)
                head = handshake.check_request(self.init_request)
                ours.send(self.init_request)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(partial(pyfuse3.main, min_tasks=1, max_tasks=1))
                    await trio.lowlevel.wait_readable(ours)
                    nursery.cancel_scope.cancel()  # libfuse has answered, and its task waits for more
                reply = handshake.amended(ours.recv(handshake.REPLY_MAX_BYTES), head)
                if is_new:
                    os.write(self.fuse_fd, reply)
        except trio.TooSlowError as exc:
            raise MountError(f"INIT of {self.mountpoint}: not in {HANDSHAKE_TIMEOUT_S} s") from exc
        except OSError as exc:
            raise MountError(f"INIT of {self.mountpoint}: {exc}") from exc

    async def _answer(self) -> None:
        """Run pyfuse3's loop, again as long as it ends for nothing.

        It reports EAGAIN when a request was withdrawn (its process was killed) between poll and read, and
        cancels its other tasks. Those of them that are about to answer do so: see
        GuardedOperations.patient.
        """
        while not self._stop.is_set():
            self._reading = True
            try:
                await pyfuse3.main(min_tasks=IDLE_TASKS, max_tasks=MAX_REQUESTS)
            except BaseExceptionGroup as group:
                _, rest = group.split(_is_withdrawal)
                # A read that the end meets in the middle knows of it before poll does.
                ended, rest = (None, None) if rest is None else rest.split(_is_end)
                if rest is not None and not self.is_over:
                    raise
                if ended is not None:
                    return
            else:
                return
            finally:
                self._reading = False
            if self.is_over:
                return

    async def _limit_stop(self, operations: GuardedOperations, scope: trio.CancelScope) -> None:
        """End what `stop` does not: requests in flight longer than the grace."""
        try:
            await self._stop.wait()
            await trio.sleep(self._stop_grace_s)
            waiting = len(operations.in_flight())
            log.warning("%s requests were not answered in %s s", waiting, self._stop_grace_s)
        finally:
            operations.unshield()
        scope.cancel()

    def stop(self, *, grace_s: float = STOP_GRACE_S) -> None:
        """Make `serve` return once the requests in flight are answered, at most `grace_s` from now.

        The mount stays. Requests that come later wait in the kernel: `unmount`, or leave them to a
        successor.
        """
        if self._stop.is_set():
            return
        self._stop_grace_s = grace_s
        self._stop.set()
        if self._reading:
            pyfuse3.terminate()

    async def prime(self) -> None:
        """Ask for our own root once, so that the kernel has its attributes cached.

        After that a stat of the mountpoint returns even if this process is dead, which is what a
        snapshotter's recovery relies on (spec api §8.3). Call it while `serve` runs.
        """
        try:
            with trio.fail_after(PRIME_TIMEOUT_S):
                await trio.to_thread.run_sync(
                    mount.ask_all_attributes, self.mountpoint, abandon_on_cancel=True
                )
        except trio.TooSlowError as exc:
            raise MountError(
                f"our own mountpoint {self.mountpoint}: no answer in {PRIME_TIMEOUT_S} s"
            ) from exc

    async def invalidate(self, stale: Stale) -> None:
        """Make the kernel forget what `Vfs.stale` named. Call it while `serve` runs.

        Failures are logged only: the image is mounted or unmounted all the same.
        Cancel: the thread goes on, with a descriptor of its own, until the kernel lets it go.
        """

        owned = [
            os.dup(self.fuse_fd)
        ]  # closed by whoever takes it out, the thread or, unstarted, us

        def tell() -> None:
            if owned:
                _forget(owned.pop(), stale)

        try:
            with trio.fail_after(INVALIDATE_TIMEOUT_S):
                await trio.to_thread.run_sync(tell, abandon_on_cancel=True)
        except (OSError, trio.TooSlowError) as exc:
            log.warning("stale names stay in the kernel: mountpoint=%s %s", self.mountpoint, exc)
        finally:
            if owned:
                os.close(owned.pop())

    def unmount(self) -> bool:
        """Take our mount off the tree if it is still there, and never another one; tell whether it was.

        Open files keep working as long as `serve` runs.
        """
        if self.is_over and not self._identity.unique:
            return False  # the same numbers may have been given to somebody else's mount
        try:
            if mount.identify(self.mountpoint) != self._identity:
                return False
        except MountError:
            return False  # the path is gone, and our mount with it
        mount.detach(self.mountpoint)
        log.info("unmounted mountpoint=%s", self.mountpoint)
        return True

    def close(self) -> None:
        """Close our descriptor. If it was the last one, requests fail with ENOTCONN from now on."""
        if not self._closed:
            self._closed = True
            os.close(self.fuse_fd)


def _is_withdrawal(exc: BaseException) -> bool:
    return isinstance(exc, OSError) and exc.errno == errno.EAGAIN


def _is_end(exc: BaseException) -> bool:
    return isinstance(exc, OSError) and exc.errno in (errno.ECONNABORTED, errno.ENODEV)


def _unwrap(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return what callers are to see of what ended the loop."""
    cause: BaseException = group
    while isinstance(cause, BaseExceptionGroup):
        if len(cause.exceptions) > 1:
            return group
        cause = cause.exceptions[0]
    if isinstance(cause, OSError):
        return MountError(f"reading requests failed: {cause}")
    return cause


def _forget(fuse_fd: int, stale: Stale) -> None:
    """Send all invalidations, then close the descriptor."""
    unknown = contextlib.suppress(FileNotFoundError)  # never looked up, or forgotten already
    try:
        for nodeid in stale.inodes:
            with unknown:
                notify.invalidate_inode(fuse_fd, nodeid)
        for parent, name in stale.entries:
            with unknown:
                notify.invalidate_entry(fuse_fd, parent, name)
    finally:
        os.close(fuse_fd)


class _NoiseFilter(logging.Filter):
    """Drops pyfuse3's ERROR for a reply that nobody waits for any more: the reader was killed."""

    _nobody_waits = frozenset(os.strerror(number) for number in _OVER)

    def filter(self, record: logging.LogRecord) -> bool:
        """Keep all other records."""
        return not (
            isinstance(record.args, tuple)
            and len(record.args) == 1
            and record.args[0] in self._nobody_waits
        )
