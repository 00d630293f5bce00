"""One FUSE session: mounting, serving, handing over, ending. A process may have several.

Owns     the mount, the descriptors of its connection (the mount's own and its clones), the relay's life.
Callers  daemon/ and kernel/erofs.py, in the trio thread.
Raises   MountError.
Cancel   a cancelled `serve` leaves the requests in flight unanswered: they fail when the last descriptor
         of the session is closed, or go to the successor that has one.

Hand-over: whoever has `state()` and the descriptors of `fds()` goes on with `resume`, after a `stop` as well
as after a kill -9. The kernel's INIT is recorded, for it is sent once. Requests that a dead server had read
are asked for again (Linux 6.9). The kernel ends those that were read from a clone when that clone is closed:
a supervisor must hold all of `fds()`, or the session must have no clones.
"""

import contextlib
import logging
import os
import select
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import trio

from nydusd.kernel import mount, negotiation, notify
from nydusd.kernel.mount import MountError, MountIdentity
from nydusd.kernel.negotiation import Feature
from nydusd.kernel.private_mount import PrivateMount, mount_privately
from nydusd.kernel.stats import InFlightRequest
from nydusd.kernel.vfs import Stale

if TYPE_CHECKING:
    from nydusd.kernel.server import FileSystem, Server
    from nydusd.native_relay import Relay

log = logging.getLogger(__name__)

THREADS_DEFAULT: Final = 4
# One thread may sit in a read of the disk while another one takes the next request.
THREADS_MIN: Final = 2
THREADS_MAX: Final = 16  # as many as may sit there, with few threads asked for
THREADS_LIMIT: Final = 64  # of any session, whatever is asked for; more descriptors help nobody
STOP_GRACE_S: Final = 10.0  # what requests in flight get to end after stop()
PRIME_TIMEOUT_S: Final = 10.0
INVALIDATE_TIMEOUT_S: Final = 10.0
INIT_TIMEOUT_S: Final = 30.0  # the kernel sends it with mount(2): only a stalled machine comes near


class SessionState(NamedTuple):
    """What a successor needs besides the descriptors. Plain values."""

    mountpoint: str | None  # None: detached, nothing is mounted where anybody could see it
    device: int  # MountIdentity
    mount_id: int
    is_unique: bool
    init_request: bytes
    threads: int


class Session:
    """One FUSE connection that this process serves. Made by `mount`, `detached` or `resume`."""

    def __init__(
        self,
        fds: Sequence[int],
        identity: MountIdentity,
        *,
        mountpoint: Path | None = None,
        private: PrivateMount | None = None,
        init_request: bytes | None = None,
        threads: int = THREADS_DEFAULT,
    ) -> None:
        """Take over a connection: `fds` are its descriptors and now belong to this object.

        init_request: recorded by a predecessor, if the kernel's INIT is answered already.
        """
        self.mountpoint = mountpoint
        self.fuse_fd = fds[0]
        self.init_request = init_request  # set once `serve` has started
        self._fds = tuple(fds)
        self._identity = identity
        self._private = private
        self._is_successor = init_request is not None
        self._threads = min(max(THREADS_MIN, threads), THREADS_LIMIT)
        self._relay: Relay | None = None
        self._server: Server | None = None  # while `serve` runs
        self._stop_grace_s: float | None = None  # set: stop was called, maybe before `serve`
        self._closed = False

    # ---- how a session begins -------------------------------------------------------------------

    @classmethod
    def mount(
        cls, mountpoint: Path, *, threads: int = THREADS_DEFAULT, clones: bool = True
    ) -> "Session":
        """Mount on an existing directory. Requests queue in the kernel until `serve` runs.

        threads: how many read requests. clones: from a descriptor each; see the module's docstring.
        """
        fuse_fd = mount.mount_fuse(mountpoint)
        try:
            # Ours for sure: nobody else can mount here between these two calls but on top of it.
            identity = mount.identify(mountpoint)
        except BaseException:
            mount.detach(mountpoint)
            os.close(fuse_fd)
            raise
        fds = mount.with_clones(fuse_fd, min(threads, THREADS_LIMIT) if clones else 1)
        session = cls(fds, identity, mountpoint=mountpoint, threads=threads)
        log.info("mounted mountpoint=%s connection=%s", mountpoint, session.connection_id)
        return session

    @classmethod
    def detached(cls, *, threads: int = THREADS_DEFAULT, clones: bool = True) -> "Session":
        """Mount where nobody sees it. `path` names its files for mount(2); `drop_path` when that is done."""
        private = mount_privately()
        try:
            identity = mount.identify(private.path)
        except BaseException:
            private.drop()
            os.close(private.fuse_fd)
            raise
        fds = mount.with_clones(private.fuse_fd, min(threads, THREADS_LIMIT) if clones else 1)
        return cls(fds, identity, private=private, threads=threads)

    @classmethod
    def resume(cls, state: SessionState, fds: Sequence[int]) -> "Session":
        """Go on for a predecessor that has stopped or died; `fds` belong to the new session."""
        return cls(
            fds,
            MountIdentity(state.device, state.mount_id, state.is_unique),
            mountpoint=None if state.mountpoint is None else Path(state.mountpoint),
            init_request=state.init_request,
            threads=state.threads,
        )

    def state(self) -> SessionState:
        """Return what a successor needs besides `fds()`. Raises MountError before INIT was answered."""
        if self.init_request is None:
            raise MountError("the session has not begun: there is nothing to hand over")
        return SessionState(
            None if self.mountpoint is None else str(self.mountpoint),
            *self._identity,
            self.init_request,
            self._threads,
        )

    def fds(self) -> tuple[int, ...]:
        """Return the descriptors that a successor needs; they stay ours."""
        return self._fds

    def path(self, name: str) -> str:
        """Return a path to a file of a detached session, good in this process until `drop_path`."""
        if self._private is None:
            raise MountError(f"no private path to {name}")
        return f"{self._private.path}/{name}"

    def drop_path(self) -> None:
        """Let the private mount go; the session lives as long as anybody has a file of it open."""
        if self._private is not None:
            self._private.drop()
            self._private = None

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

    # ---- serving --------------------------------------------------------------------------------

    async def serve(
        self,
        file_system: "FileSystem",
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Answer requests until the kernel ends the session or `stop` is called; then it can be called again.

        Raises MountError if INIT or reading requests fails.
        """
        # Here, not above: what only asks about mounts does not load the C module.
        from nydusd.kernel.server import Server
        from nydusd.native_relay import Relay

        if self.init_request is None:
            self.init_request = await self._negotiate()
        if self._relay is None:
            self._relay = Relay()
            file_system.attach_relay(self._relay)
        if self._is_successor:
            self._is_successor = False
            self._ask_again()
        server = self._server = Server(file_system, self._relay, self._fds)
        try:
            if self._stop_grace_s is not None:
                server.stop(self._stop_grace_s)
            try:
                self._relay.start(self._fds, self._threads, max(THREADS_MAX, self._threads))
            except OSError as exc:
                raise MountError(f"threads at /dev/fuse: {exc}") from exc
            await server.run(task_status=task_status)
        finally:
            self._server = None
            self._stop_grace_s = None
        log.info("no longer serving mountpoint=%s", self.mountpoint)

    async def _negotiate(self) -> bytes:
        """Answer INIT, which the kernel has queued at mount(2), and return it."""
        try:
            with trio.fail_after(INIT_TIMEOUT_S):
                while True:
                    try:
                        request = os.read(self.fuse_fd, negotiation.REQUEST_MAX_BYTES)
                    except BlockingIOError:
                        await trio.lowlevel.wait_readable(self.fuse_fd)
                    else:
                        break
            os.write(self.fuse_fd, negotiation.answer(negotiation.check_request(request)))
        except trio.TooSlowError as exc:
            raise MountError(f"INIT of {self.mountpoint}: not in {INIT_TIMEOUT_S} s") from exc
        except OSError as exc:
            raise MountError(f"INIT of {self.mountpoint}: {exc}") from exc
        return request

    def _ask_again(self) -> None:
        """Have the kernel send once more what the predecessor had read and not answered."""
        assert self.init_request is not None
        reason = "the kernel is older than 6.9"
        if Feature.HAS_RESEND in negotiation.check_request(self.init_request).offered:
            try:
                notify.resend(self.fuse_fd)
            except OSError as exc:
                reason = str(exc)
            else:
                return
        log.warning(
            "requests that a predecessor had read stay unanswered: mountpoint=%s reason=%s",
            self.mountpoint,
            reason,
        )

    def in_flight(self) -> list[InFlightRequest]:
        """Return the requests that wait for an answer, oldest first."""
        return [] if self._server is None else self._server.in_flight()

    def stop(self, *, grace_s: float = STOP_GRACE_S) -> None:
        """Make `serve` return once the requests in flight are answered, at most `grace_s` from now.

        The mount stays. Requests that come later wait in the kernel: `unmount`, or leave them to a
        successor.
        """
        self._stop_grace_s = grace_s
        if self._server is not None:
            self._server.stop(grace_s)

    async def prime(self) -> None:
        """Ask for our own root once, so that the kernel has its attributes cached.

        After that a stat of the mountpoint returns even if this process is dead, which is what a
        snapshotter's recovery relies on (spec api §8.3). Call it while `serve` runs.
        """
        if self.mountpoint is None:
            return
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

    # ---- how a session ends ---------------------------------------------------------------------

    def unmount(self) -> bool:
        """Take our mount off the tree if it is still there, and never another one; tell whether it was.

        Open files keep working as long as `serve` runs.
        """
        if self.mountpoint is None:
            self.drop_path()
            return False
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
        """Close our descriptors. If they were the last ones, requests fail with ENOTCONN from now on."""
        if self._closed:
            return
        self._closed = True
        self.drop_path()
        try:
            if self._relay is not None:
                self._relay.close()
        except OSError as exc:
            # A thread that hangs on a dead disk still uses them; they go with the process.
            log.warning("descriptors of %s stay open: %s", self.mountpoint, exc)
        else:
            for fd in self._fds:
                os.close(fd)


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
