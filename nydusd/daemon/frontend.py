"""The door to the kernel as the daemon uses it: one protocol, and the FUSE session behind it.

The protocol is the seam for other doors (docs/design.md §2) and for sessions that were taken over.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Final, Protocol, Self

import trio

from nydusd.kernel import readahead
from nydusd.kernel.namespace import Namespace
from nydusd.kernel.session import THREADS_DEFAULT, Session
from nydusd.kernel.stats import InFlightRequest
from nydusd.kernel.vfs import Stale, Vfs


class Frontend(Protocol):
    """One mount in the kernel that shows a `Vfs`, or one image of it for good."""

    @property
    def is_fixed(self) -> bool:
        """Whether it cannot show another image, or none: then another frontend must take its place."""
        ...

    async def serve(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Answer requests until `stop`, or until the mount is gone. Raises MountError."""
        ...

    async def prime(self) -> None:
        """Have the kernel begin the session; call it while `serve` runs. Raises MountError."""
        ...

    def stop(self, *, grace_s: float) -> None:
        """Make `serve` return; requests under way have `grace_s` seconds. The mount stays."""
        ...

    async def invalidate(self, stale: Stale) -> None:
        """Make the kernel forget names; bounded, failures are logged."""
        ...

    def in_flight(self) -> Sequence[InFlightRequest]:
        """Return the requests that wait for an answer."""
        ...

    def unmount(self) -> bool:
        """Take the mount off the tree, at once; tell whether it was still there. Raises MountError."""
        ...

    def close(self) -> None:
        """Let the session's descriptor go."""
        ...


class FuseFrontend:
    """A tree that this daemon shows, request by request."""

    is_fixed: Final = False

    def __init__(self, session: Session, vfs: Vfs) -> None:
        """`session` is mounted, and not served yet."""
        self._session = session
        self._namespace = Namespace(vfs)
        self.stop = session.stop
        self.invalidate = session.invalidate
        self.unmount = session.unmount
        self.in_flight = session.in_flight

    @classmethod
    def mount(
        cls, mountpoint: Path, vfs: Vfs, *, threads: int = THREADS_DEFAULT, clones: bool = True
    ) -> Self:
        """Mount at an existing directory; `threads` and `clones` as Session.mount. Raises MountError."""
        return cls(Session.mount(mountpoint, threads=threads, clones=clones), vfs)

    async def prime(self) -> None:
        """Have the kernel ask for the root once, and read files ahead as far as suits us."""
        readahead.widen(self._session.connection_id)
        await self._session.prime()

    async def serve(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Answer requests until the session ends."""
        await self._session.serve(self._namespace, task_status=task_status)

    def close(self) -> None:
        """Let the session's descriptors go, and the files that its relay answers for."""
        self._namespace.close()
        self._session.close()
