"""The one exception tree.

It is mapped to errno in one place (kernel/errno_map.py) and to HTTP in one place (api/errors.py)::

    NydusError
    ├─ ConfigError       a bad or contradictory setting
    ├─ FormatError       bytes that break the format; names file, field, value and rule
    ├─ IntegrityError    a digest or CRC differs
    ├─ NotFoundError     no such blob, mount or inode
    ├─ ExistsError       the place is taken
    ├─ StateError        the event is not allowed now
    ├─ ProtectionError   a cache file cannot be kept from being changed
    ├─ UnsupportedError  known, but not served here (yet)
    ├─ ClosedError       closed while the caller waited
    └─ BackendError      a blob's bytes could not be had; `temporary` says if trying again can help
       ├─ AuthError      the backend refused our credentials
       └─ ThrottledError the backend asked for a pause

An ordinary "no" is a value: a missing name is `None`, not an exception.
"""


class NydusError(Exception):
    """Base of all errors that this project raises on purpose."""


class ConfigError(NydusError):
    """A setting is missing, of the wrong type, out of range or contradicts another."""


class FormatError(NydusError):
    """Bytes break a format rule: `field` holds `value`, but `rule`.

    `source` is the file or blob the bytes came from, where the parser was told.
    """

    def __init__(self, field: str, value: object, rule: str, source: str = "") -> None:
        """Compose the one-line message from its four parts."""
        where = f"{source}: " if source else ""
        super().__init__(f"{where}{field} is {value}, {rule}")
        self.field = field
        self.value = value
        self.rule = rule
        self.source = source


class IntegrityError(NydusError):
    """The bytes are not those that the image's digest or CRC names."""


class NotFoundError(NydusError):
    """No such blob, mount or inode."""


class ExistsError(NydusError):
    """The mountpoint or object is there already."""


class StateError(NydusError):
    """The event is not allowed in the present state, which stays as it was."""

    def __init__(self, event: str, state: str) -> None:
        """`event` and `state` by name, e.g. "Start" and "RUNNING"."""
        super().__init__(f"{event} is not allowed in state {state}")
        self.event = event
        self.state = state


class ProtectionError(NydusError):
    """A cache file cannot be locked against changes, or is not whole any more."""


class UnsupportedError(NydusError):
    """A known feature that is not served here (yet). The text says what to do instead, if anything."""


class ClosedError(NydusError):
    """The object was closed while the caller waited for it."""


class BackendError(NydusError):
    """A blob's bytes could not be had from where blobs come from.

    `temporary`: the same request may succeed later (the retry policy asks nothing else).
    """

    def __init__(self, message: str, *, temporary: bool = False) -> None:
        """`message` names blob, request and the backend's own words, and never a secret."""
        super().__init__(message)
        self.temporary = temporary


class AuthError(BackendError):
    """The backend refused our credentials (401 after a fresh token, or 403)."""


class ThrottledError(BackendError):
    """The backend asked for a pause (429, or 503 with Retry-After)."""

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        """`retry_after_s`: what the backend named, None if it named nothing."""
        super().__init__(message, temporary=True)
        self.retry_after_s = retry_after_s
