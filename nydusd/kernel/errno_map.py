"""What a failed request is told: the one place where errors become errno (docs/style.md §3.4).

A fault of ours or of the registry's is EIO, never EINVAL: EINVAL would blame the caller. Refused
credentials are EACCES. What POSIX has its own number for (not a directory, no such attribute) is a
`Refusal`, which carries that number.
"""

import errno
from typing import Final

from nydusd.errors import AuthError, NotFoundError, NydusError, UnsupportedError


class Refusal(NydusError):  # noqa: N818 - no fault but an answer
    """The request itself cannot be granted, and POSIX says which number tells so."""

    def __init__(self, number: int, reason: str) -> None:
        """`number` is an errno, `reason` a few words for the log."""
        super().__init__(f"{errno.errorcode[number]}: {reason}")
        self.errno = number


# The nearest class wins. FormatError, IntegrityError, BackendError, ClosedError, …: the base class.
ERRNO: Final[dict[type[BaseException], int]] = {
    NydusError: errno.EIO,
    AuthError: errno.EACCES,
    NotFoundError: errno.ENOENT,
    # Not ENOSYS: the kernel takes that as "never ask again", for every mount of the session
    # (spec fs-behaviour §11).
    UnsupportedError: errno.EOPNOTSUPP,
}


def errno_of(error: NydusError) -> int:
    """Return the errno of a refusal, else of the nearest class of `error` that the table names."""
    if isinstance(error, Refusal):
        return error.errno
    return next(ERRNO[cls] for cls in type(error).__mro__ if cls in ERRNO)
