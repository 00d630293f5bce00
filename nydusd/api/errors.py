"""Errors as HTTP: the one place where NydusError becomes a status and a text (spec api §2, style §3.4).

Clients know the texts of the reference: the debug form of nested enumerations, `Outer(Inner("text"))`.
The outer word names the part of the API that was called, here an `Area`.
"""

from collections.abc import Callable
from enum import StrEnum
from typing import Final, NamedTuple

from nydusd.api.controller import NotReadyError, TransferError
from nydusd.errors import (
    ConfigError,
    ExistsError,
    NotFoundError,
    NydusError,
    StateError,
    UnsupportedError,
)


class Area(StrEnum):
    """The outer word of an error text."""

    DAEMON = "DaemonInfo"
    EVENTS = "Events"
    CONFIGURE = "Configure"
    UPGRADE = "Upgrade"
    MOUNT = "Mount"
    BACKEND = "FsBackendInfo"
    FS_METRICS = "GlobalMetrics"
    FILES_METRICS = "FsFilesMetrics"
    PATTERN_METRICS = "Pattern"
    BACKEND_METRICS = "BackendMetrics"
    CACHE_METRICS = "BlobcacheMetrics"
    INFLIGHT = "InflightMetrics"
    GET_BLOB = "GetBlobObjects"
    CREATE_BLOB = "CreateBlobObject"
    DELETE_BLOB = "DeleteBlobObject"


class RefusedError(NydusError):
    """A request that says nothing the API understands; `text` is the whole message."""

    def __init__(self, status: int, text: str) -> None:
        """Keep status and text as they will be sent."""
        super().__init__(text)
        self.status = status
        self.text = text


class NoCounterError(NydusError):
    """No object of that id has counters, or none was named and there is not exactly one."""


def no_route() -> RefusedError:
    """There is no such path."""
    return RefusedError(404, "NoRoute")


def bad_request() -> RefusedError:
    """The path is known, but not with this method, body or target."""
    return RefusedError(400, "BadRequest")


def query_missing(key: str) -> RefusedError:
    """A query key that the call needs is not there."""
    reason = quoted(f"'{key}' should be specified in query string")
    return RefusedError(400, f"QueryString({reason})")


def body_refused(reason: str, line: int, column: int) -> RefusedError:
    """The JSON body does not fit; line and column count from 1."""
    return RefusedError(400, f"ParseBody(Error({quoted(reason)}, line: {line}, column: {column}))")


class _Rule(NamedTuple):
    """How one class of error is told: status, and the text inside the area's parentheses."""

    status: int
    inner: Callable[[NydusError], str]


def _abnormal(kind: str) -> Callable[[NydusError], str]:
    return lambda _: f"DaemonAbnormal({kind})"


def _other(exc: NydusError) -> str:
    return f"DaemonAbnormal(Other({quoted(str(exc))}))"


def _mount_other(exc: NydusError) -> str:
    return f"MountFilesystem(Other({quoted(str(exc))}))"


def _backend_other(exc: NydusError) -> str:
    return f"Metrics(Daemon(Other({quoted(str(exc))})))"


def _fixed(form: Callable[[NydusError], str], text: str) -> _Rule:
    return _Rule(500, lambda _: form(NydusError(text)))


def _unexpected(exc: NydusError) -> str:
    assert isinstance(exc, StateError)
    return f"DaemonAbnormal(UnexpectedEvent({quoted(exc.event)}))"


def _unsupported(exc: NydusError) -> str:
    # Without words: not in this mode, as the reference says it. With words: not in this version.
    return f"DaemonAbnormal(Unsupported({quoted(str(exc))}))" if exc.args else _UNSUPPORTED_HERE


_UNSUPPORTED_HERE: Final = "DaemonAbnormal(Unsupported)"
_EXISTS: Final = "object or filesystem already exists"
_NOT_FOUND: Final = "object or filesystem doesn't exist"

# The nearest class in the error's ancestry decides; what an area says of its own goes first.
_RULES: Final[dict[type[NydusError], _Rule]] = {
    NydusError: _Rule(500, _other),
    NoCounterError: _Rule(404, lambda _: "Metrics(Stats(NoCounter))"),
    StateError: _Rule(400, _unexpected),
    UnsupportedError: _Rule(501, _unsupported),
    NotReadyError: _Rule(503, _abnormal("NotReady")),
    TransferError: _Rule(500, lambda exc: f"DaemonAbnormal(UpgradeManager({quoted(str(exc))}))"),
}
_RULES_OF_AREA: Final[dict[Area, dict[type[NydusError], _Rule]]] = {
    Area.CONFIGURE: {ConfigError: _Rule(500, lambda _: "ResponsePayloadType")},
    Area.MOUNT: {
        NydusError: _Rule(500, _mount_other),
        ExistsError: _fixed(_mount_other, _EXISTS),
        NotFoundError: _fixed(_mount_other, _NOT_FOUND),
    },
    Area.BACKEND: {
        NydusError: _Rule(500, _backend_other),
        NotFoundError: _fixed(_backend_other, _NOT_FOUND),
    },
}


def status_and_text(area: Area, exc: NydusError) -> tuple[int, str]:
    """Return the status and the message for an error met while serving a call of `area`."""
    if isinstance(exc, RefusedError):
        return exc.status, exc.text
    own = _RULES_OF_AREA.get(area, {})
    rule = next(
        own.get(cls) or _RULES[cls] for cls in _ancestry(exc) if cls in own or cls in _RULES
    )
    return rule.status, f"{area}({rule.inner(exc)})"


def _ancestry(exc: NydusError) -> list[type[NydusError]]:
    return [cls for cls in type(exc).__mro__ if issubclass(cls, NydusError)]


_ESCAPES: Final = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t", "\0": "\\0"}


def quoted(text: str) -> str:
    """Return text between double quotes, as the reference's debug form spells it."""
    return '"' + "".join(map(_spell, text)) + '"'


def _spell(char: str) -> str:
    known = _ESCAPES.get(char)
    if known is not None:
        return known
    return char if char.isprintable() else f"\\u{{{ord(char):x}}}"
