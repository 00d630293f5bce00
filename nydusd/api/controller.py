"""What the API asks of the daemon: one protocol, and the values and errors that pass through it.

Callers  dispatch.py, from the task of the connection; several calls may be under way at once.
Raises   implementations raise NydusError only; api/errors.py knows what each becomes.
Cancel   a call that takes longer than the client waits is cancelled; it must leave nothing half done.
"""

from collections.abc import Mapping, Sequence
from enum import Enum
from typing import NamedTuple, Protocol

from nydusd.errors import NydusError
from nydusd.kernel.stats import InFlightRequest
from nydusd.metrics.index import MetricsIndex


class MountRequest(NamedTuple):
    """The body of POST and PUT /mount (spec api §3.2), types checked, meaning not."""

    source: str  # path of the bootstrap
    config: str  # a whole configuration as text
    fs_type: str = ""
    prefetch_files: tuple[str, ...] = ()


class MountFault(Enum):
    """Which part of a mount request was refused; the value is the text, `{}` our own words for why."""

    PREFETCH_LIST = "invalid prefetch file list"
    FS_TYPE = (
        "invalid argument `only 'rafs' and 'passthrough_fs' are supported, but {} was specified`"
    )
    # What follows a relative path in the reference: its debug form of EINVAL.
    MOUNTPOINT = (
        "VFS failed to handle request, PathWalk("
        'Os {{ code: 22, kind: InvalidInput, message: "Invalid argument" }})'
    )
    CONFIG = "RAFS failed to handle request, Failed to load config: {}`"
    IMAGE = "RAFS failed to handle request, Failed to fill superBlock: {}`"


class MountRefusedError(NydusError):
    """A mount request cannot be honoured; nothing was attached."""

    def __init__(self, fault: MountFault, detail: str = "") -> None:
        """`detail`: what exactly is wrong, without secrets."""
        super().__init__(fault.value.format(detail))
        self.fault = fault


class NotReadyError(NydusError):
    """The kernel has not begun the session yet, so there is nothing to hand over (spec api §2)."""


class TransferError(NydusError):
    """Session and state could not be handed to, or had from, the supervisor."""


class Controller(Protocol):
    """The daemon, as its API sees it."""

    @property
    def metrics(self) -> MetricsIndex:
        """Counters of all mounts."""
        ...

    def describe(self, *, with_backends: bool) -> Mapping[str, object]:
        """Return DaemonInfo (spec api §3.1); v2 leaves `backend_collection` null."""
        ...

    def events(self) -> Mapping[str, object]:
        """Return the last errors of the log (spec api §3.1)."""
        ...

    def describe_backend(self, mountpoint: str) -> Mapping[str, object]:
        """Return the superblock of one mount. Raises NotFoundError, MountRefusedError (not a path)."""
        ...

    def inflight(self) -> Sequence[InFlightRequest]:
        """Return the FUSE requests that wait for an answer."""
        ...

    def set_log_level(self, level: str) -> None:
        """Set what is logged from now on. Raises ConfigError for a word that is no level."""
        ...

    def settings(self, mount_id: str | None) -> Mapping[str, str]:
        """Return what was set at run time for one mount, or for all as `id:key` (spec api §3.3)."""
        ...

    def change_settings(self, mount_id: str, changes: Mapping[str, str]) -> None:
        """Set all of `changes` or, with ConfigError, none."""
        ...

    async def start(self) -> None:
        """Begin to serve; when this returns the state is RUNNING. Raises StateError."""
        ...

    async def depart(self) -> None:
        """Stop serving and keep the mount (PUT exit); when this returns, requests are answered."""
        ...

    def end(self) -> None:
        """End the process: called once the answer to `depart` is on its way."""
        ...

    async def send_fd(self) -> None:
        """Hand session and state to the supervisor. Raises NotReadyError, TransferError."""
        ...

    async def take_over(self) -> None:
        """Take session and state from the supervisor. Raises StateError, TransferError."""
        ...

    async def mount(self, mountpoint: str, request: MountRequest) -> None:
        """Attach an image. Raises ExistsError, MountRefusedError, UnsupportedError."""
        ...

    async def remount(self, mountpoint: str, request: MountRequest) -> None:
        """Replace the image of a mount. Raises NotFoundError, UnsupportedError."""
        ...

    async def unmount(self, mountpoint: str) -> None:
        """Detach an image. Raises NotFoundError."""
        ...
