"""The one protocol behind which blobs lie (spec backends), and the checks each backend owes its caller."""

from enum import IntEnum
from typing import Final, NamedTuple, Protocol, runtime_checkable

from nydusd.config.model import Secret
from nydusd.errors import BackendError
from nydusd.records import Buffer
from nydusd.storage.stats import BackendStats
from nydusd.units import GIB

READ_MAX_BYTES: Final = GIB  # far above any chunk, chunk table or bootstrap (spec blob §1)
OFFSET_END: Final = 1 << 63  # off_t; no file or Content-Range goes further
NAME_MAX_BYTES: Final = 255  # one path component


class Priority(IntEnum):
    """Who asks. Demand goes first; speculation only asks early (design §4)."""

    DEMAND = 0
    READAHEAD = 1
    PREFETCH = 2


class Backend(Protocol):
    """Where blobs come from. Many tasks may call at once. Raises BackendError only.

    Implementations retry what is temporary by themselves (storage/backend/retry.py), so an error
    that reaches the caller is final for this call, and leaves no trace for the next. A call on a
    closed backend, or one that `aclose` interrupts, ends with ClosedError.
    Cancel: an abandoned call closes or drains its connection; nothing else is left behind.
    """

    kind: str  # the word in configuration and metrics: "registry", "localfs", …
    stats: BackendStats  # one entry per attempt of `read` (spec backends §12)

    async def read(
        self, blob_id: str, offset: int, length: int, priority: Priority = Priority.DEMAND
    ) -> Buffer:
        """Return exactly `length` bytes from `offset`, or raise: a short body is an error here.

        The buffer is new and the caller's own: nothing here keeps or changes it.
        """
        ...

    async def size(self, blob_id: str) -> int:
        """Return the blob's size in bytes, asked for anew each time."""
        ...

    async def aclose(self) -> None:
        """Close connections and files. Calls under way end with ClosedError or BackendError."""
        ...


@runtime_checkable
class TakesCredentials(Protocol):
    """A backend whose credentials may change while it serves (spec api §3.3)."""

    def set_credentials(self, auth: Secret | None) -> None:
        """Use `auth`, base64 of user:password, from the next request on; None or blank: none.

        Raises ConfigError, and changes nothing, if it is something else.
        """
        ...


class Asked(NamedTuple):
    """What a caller asked for; its text opens every error line.

    length -1: the blob's size, not its bytes.
    """

    blob_id: str
    offset: int = 0
    length: int = -1

    def __str__(self) -> str:
        """As `blob <id> bytes 0-99`, or `blob <id> size`."""
        if self.length < 0:
            return f"blob {self.blob_id} size"
        return f"blob {self.blob_id} bytes {self.offset}-{self.offset + self.length - 1}"


def check_blob_id(blob_id: str) -> None:
    """Refuse an id that is no plain file name: it comes from an image and becomes a path or a URL.

    Raises BackendError.
    """
    if (
        not blob_id
        or len(blob_id.encode(errors="replace")) > NAME_MAX_BYTES
        or blob_id in {".", ".."}
        or "/" in blob_id
        or not blob_id.isprintable()  # NUL, line ends and lone surrogates too
    ):
        raise BackendError(f"blob id {blob_id[:80]!r} is not a plain name")


def check_range(asked: Asked) -> None:
    """Refuse a range that no blob can have, before anything is allocated for it. Raises BackendError."""
    if asked.offset < 0 or not 0 <= asked.length <= READ_MAX_BYTES:
        raise BackendError(
            f"blob {asked.blob_id}: offset {asked.offset} length {asked.length},"
            f" want offset >= 0 and 0 <= length <= {READ_MAX_BYTES}"
        )
    if asked.offset + asked.length > OFFSET_END:
        raise BackendError(f"{asked}: ends beyond 2^63")
