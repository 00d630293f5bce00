"""Requests → commands: which call is meant, and with what arguments. Pure (spec api §1, §3, §5).

Checks go in the order of the reference, so that a request with several faults is refused for the
same one: path, method and presence of a body, query, body.

Raises   RefusedError only.
"""

from collections.abc import Callable
from enum import Enum, auto
from typing import Final, NamedTuple
from urllib.parse import unquote_to_bytes

from nydusd.api import bodies
from nydusd.api.errors import Area, bad_request, no_route, query_missing


class Call(Enum):
    """What a request asks for."""

    DESCRIBE = auto()
    DESCRIBE_V2 = auto()
    SET_LOG_LEVEL = auto()
    EVENTS = auto()
    BACKEND = auto()
    START = auto()
    EXIT = auto()
    SEND_FD = auto()
    TAKE_OVER = auto()
    MOUNT = auto()
    REMOUNT = auto()
    UNMOUNT = auto()
    GET_SETTINGS = auto()
    PUT_SETTINGS = auto()
    FS_METRICS = auto()
    FILES_METRICS = auto()
    PATTERN_METRICS = auto()
    BACKEND_METRICS = auto()
    CACHE_METRICS = auto()
    INFLIGHT = auto()
    LIST_BLOBS = auto()
    PUT_BLOB = auto()
    DELETE_BLOBS = auto()


class Command(NamedTuple):
    """One call, ready to be made. `body` is what the route's reader made of it, None without one."""

    call: Call
    area: Area
    query: dict[str, str]
    body: object = None


class Route(NamedTuple):
    """One line of the table."""

    call: Call
    area: Area
    reads: Callable[[bytes], object] | None = None  # a body is required, or else forbidden
    needs: str | None = None  # query key without which the call is refused


ROUTES: Final[dict[str, dict[str, Route]]] = {
    "/api/v1/daemon": {
        "GET": Route(Call.DESCRIBE, Area.DAEMON),
        "PUT": Route(Call.SET_LOG_LEVEL, Area.CONFIGURE, reads=bodies.log_level),
    },
    "/api/v1/daemon/events": {"GET": Route(Call.EVENTS, Area.EVENTS)},
    "/api/v1/daemon/backend": {"GET": Route(Call.BACKEND, Area.BACKEND, needs="mountpoint")},
    "/api/v1/daemon/start": {"PUT": Route(Call.START, Area.CONFIGURE)},
    "/api/v1/daemon/exit": {"PUT": Route(Call.EXIT, Area.CONFIGURE)},
    "/api/v1/daemon/fuse/sendfd": {"PUT": Route(Call.SEND_FD, Area.UPGRADE)},
    "/api/v1/daemon/fuse/takeover": {"PUT": Route(Call.TAKE_OVER, Area.UPGRADE)},
    "/api/v1/mount": {
        "POST": Route(Call.MOUNT, Area.MOUNT, reads=bodies.mount_request, needs="mountpoint"),
        "PUT": Route(Call.REMOUNT, Area.MOUNT, reads=bodies.mount_request, needs="mountpoint"),
        "DELETE": Route(Call.UNMOUNT, Area.MOUNT, needs="mountpoint"),
    },
    "/api/v1/config": {
        "GET": Route(Call.GET_SETTINGS, Area.CONFIGURE),
        "PUT": Route(Call.PUT_SETTINGS, Area.CONFIGURE, reads=bodies.settings),
        # The snapshotter renews credentials with POST, which the reference refuses (spec observed §2).
        "POST": Route(Call.PUT_SETTINGS, Area.CONFIGURE, reads=bodies.settings),
    },
    "/api/v1/metrics": {"GET": Route(Call.FS_METRICS, Area.FS_METRICS)},
    "/api/v1/metrics/files": {"GET": Route(Call.FILES_METRICS, Area.FILES_METRICS)},
    "/api/v1/metrics/pattern": {"GET": Route(Call.PATTERN_METRICS, Area.PATTERN_METRICS)},
    "/api/v1/metrics/backend": {"GET": Route(Call.BACKEND_METRICS, Area.BACKEND_METRICS)},
    "/api/v1/metrics/blobcache": {"GET": Route(Call.CACHE_METRICS, Area.CACHE_METRICS)},
    "/api/v1/metrics/inflight": {"GET": Route(Call.INFLIGHT, Area.INFLIGHT)},
    "/api/v2/daemon": {
        "GET": Route(Call.DESCRIBE_V2, Area.DAEMON),
        "PUT": Route(Call.SET_LOG_LEVEL, Area.CONFIGURE, reads=bodies.log_level),
    },
    "/api/v2/blobs": {
        "GET": Route(Call.LIST_BLOBS, Area.GET_BLOB),
        "PUT": Route(Call.PUT_BLOB, Area.CREATE_BLOB, reads=bodies.blob_entry),
        "DELETE": Route(Call.DELETE_BLOBS, Area.DELETE_BLOB),
    },
}


def parse(method: str, target: bytes, body: bytes) -> Command:
    """Return the command that a request means.

    `target` is in origin or absolute form. An empty body is none: clients send `Content-Length: 0`.
    """
    path, query_text = _split(target)
    methods = ROUTES.get(path)
    if methods is None:
        raise no_route()
    route = methods.get(method)
    if route is None or bool(body) != (route.reads is not None):
        raise bad_request()
    query = _query(query_text)
    if route.needs is not None and route.needs not in query:
        raise query_missing(route.needs)
    return Command(route.call, route.area, query, route.reads(body) if route.reads else None)


def _split(target: bytes) -> tuple[str, bytes]:
    """Return the path and the query behind the first `?`, both still percent-encoded."""
    path, _, query = target.partition(b"?")
    if not path.startswith(b"/"):
        scheme, separator, rest = path.partition(b"://")
        if not separator or scheme.lower() not in (b"http", b"https"):
            raise bad_request()
        path = b"/" + rest.partition(b"/")[2]
    return path.decode("latin-1"), query


def _query(text: bytes) -> dict[str, str]:
    """Return the first value of each key of a form-encoded query."""
    found: dict[str, str] = {}
    for pair in text.split(b"&"):
        key, _, value = pair.partition(b"=")
        if key:
            found.setdefault(_unescape(key), _unescape(value))
    return found


def _unescape(text: bytes) -> str:
    try:
        return unquote_to_bytes(text.replace(b"+", b" ")).decode()
    except UnicodeDecodeError:
        raise bad_request() from None
