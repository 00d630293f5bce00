"""HTTP/1.1 over kept-alive connections, as an httpx transport: h11 reads heads, bodies bypass it.

Why not httpx's own: `http_socket.py` says what a body costs there. Here one of known length is received by
`SizedBody.read_into` where the reader wants it. Chunked bodies, and those that the connection's end ends,
are h11's: no blob comes so from a registry.

Owns     idle connections, kept alive 90 s (spec backends §2), 24 of them; each serves one request at a time.
         How many are open at once is the caller's to bound: a request never queues here.
Callers  tasks of the trio thread.
Raises   httpx.TransportError, httpx.UnsupportedProtocol, h11.ProtocolError.
Time     `timeout` of the request's extensions, as httpx defines it.
Cancel   the connection in use is closed.
"""

import ssl
from collections.abc import AsyncIterator, Callable
from math import inf
from typing import Final, NamedTuple

import h11
import httpx
import trio

from nydusd.storage.backend.http_socket import HttpSocket
from nydusd.units import KIB

KEEP_ALIVE_S: Final = 90.0
KEPT_ALIVE_MAX: Final = 24  # all requests under way, and some to a token server or a storage host
HEAD_MAX_BYTES: Final = 100 * KIB
HEAD_PIECE_BYTES: Final = 4 * KIB  # most heads are shorter, and what is read of the body is copied
PIECE_BYTES: Final = 64 * KIB
DEFAULT_PORTS: Final = {"http": 80, "https": 443}
BODILESS: Final = frozenset({204, 304})  # RFC 9112 §6.3


Done = Callable[[bool], None]  # told whether the connection may serve again


class _Origin(NamedTuple):
    scheme: str
    host: str
    port: int


class _Idle(NamedTuple):
    origin: _Origin
    socket: HttpSocket
    until_s: float  # on trio's clock


class _Limits(NamedTuple):
    """Seconds per wait; inf: none."""

    connect_s: float
    read_s: float
    write_s: float


class HttpTransport(httpx.AsyncBaseTransport):
    """Connections of one TLS context: no proxy, no redirects, no environment."""

    def __init__(self, tls: ssl.SSLContext) -> None:
        """Connect to nothing yet."""
        tls.set_alpn_protocols(["http/1.1"])
        self._tls = tls
        self._idle: list[_Idle] = []  # the one used last is the last: most likely still alive
        self._closed = False

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request; return the answer with its body still to be read and closed."""
        origin, limits = _origin_of(request), _limits_of(request)
        connection = self._take_idle(origin)
        if connection is None:
            tls = self._tls if origin.scheme == "https" else None
            connection = await HttpSocket.connect(origin.host, origin.port, tls, limits.connect_s)

        def done(reusable: bool) -> None:
            self._give_back(origin, connection, reusable=reusable)

        try:
            return await _exchange(request, connection, limits, done)
        except BaseException:
            connection.close()
            raise

    async def aclose(self) -> None:
        """Close idle connections now, others as soon as their answers are closed."""
        self._closed = True
        for idle in self._idle:
            idle.socket.close()
        self._idle.clear()

    def _take_idle(self, origin: _Origin) -> HttpSocket | None:
        now_s = trio.current_time()
        for idle in reversed(tuple(self._idle)):
            if idle.until_s < now_s or idle.socket.has_input():
                self._idle.remove(idle)
                idle.socket.close()
            elif idle.origin == origin:
                self._idle.remove(idle)
                return idle.socket
        return None

    def _give_back(self, origin: _Origin, connection: HttpSocket, *, reusable: bool) -> None:
        if self._closed or not reusable:
            connection.close()
            return
        if len(self._idle) >= KEPT_ALIVE_MAX:
            self._idle.pop(0).socket.close()
        self._idle.append(_Idle(origin, connection, trio.current_time() + KEEP_ALIVE_S))


class SizedBody(httpx.AsyncByteStream):
    """A body whose length the head tells. Read once, by `read_into` or in pieces."""

    def __init__(
        self, connection: HttpSocket, length: int, begun: bytes, limit_s: float, done: Done
    ) -> None:
        """`begun`: what came with the head. `done` is told whether the body was read to its end."""
        self.length = length
        self._connection = connection
        self._left = length
        self._begun = memoryview(begun)[:length]
        self._limit_s = limit_s
        self._done: Done | None = done

    async def read_into(self, room: memoryview) -> None:
        """Fill `room` with what comes next. More than is left is a RemoteProtocolError, as a cut body is."""
        begun = self._begun[: len(room)]
        room[: len(begun)] = begun
        self._begun = self._begun[len(begun) :]
        missing = min(len(room), self._left) - len(begun)
        rest = room[len(begun) : len(begun) + missing]
        came = len(begun) + await self._connection.fill(rest, self._limit_s)
        self._left -= came
        if came < len(room):
            raise httpx.RemoteProtocolError(f"the body ended {len(room) - came} bytes early")

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Yield the rest of the body."""
        while self._left:
            piece = bytearray(min(self._left, PIECE_BYTES))
            await self.read_into(memoryview(piece))
            yield bytes(piece)

    async def aclose(self) -> None:
        """Give the connection back, closed unless the body was read to its end."""
        done, self._done = self._done, None
        if done is not None:
            done(not self._left)


class FramedBody(httpx.AsyncByteStream):
    """A body whose end h11 has to find."""

    def __init__(
        self, connection: HttpSocket, http: h11.Connection, limit_s: float, done: Done
    ) -> None:
        """`http` has read the head, and maybe more."""
        self._connection = connection
        self._http = http
        self._limit_s = limit_s
        self._done: Done | None = done

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Yield the body."""
        while not isinstance(event := self._http.next_event(), h11.EndOfMessage):
            if isinstance(event, h11.Data):
                yield bytes(event.data)
            else:
                self._http.receive_data(await self._connection.receive(PIECE_BYTES, self._limit_s))

    async def aclose(self) -> None:
        """Give the connection back, closed unless the body was read to its end."""
        done, self._done = self._done, None
        if done is not None:
            done(self._http.their_state is h11.DONE and not self._http.trailing_data[0])


async def _exchange(
    request: httpx.Request, connection: HttpSocket, limits: _Limits, done: Done
) -> httpx.Response:
    http = h11.Connection(h11.CLIENT, max_incomplete_event_size=HEAD_MAX_BYTES)
    events = (
        h11.Request(
            method=request.method, target=request.url.raw_path, headers=request.headers.raw
        ),
        h11.Data(data=await request.aread()),
        h11.EndOfMessage(),
    )
    await connection.send(b"".join(http.send(event) or b"" for event in events), limits.write_s)
    head = await _receive_head(connection, http, limits.read_s)
    length = _length_of_body(request.method, head)
    body: httpx.AsyncByteStream
    if length is None:
        body = FramedBody(connection, http, limits.read_s, done)
    else:
        begun, _ = http.trailing_data
        stays = _stays_open(head) and len(begun) <= length
        body = SizedBody(
            connection, length, begun, limits.read_s, lambda whole: done(whole and stays)
        )
    return httpx.Response(head.status_code, headers=head.headers.raw_items(), stream=body)


async def _receive_head(
    connection: HttpSocket, http: h11.Connection, limit_s: float
) -> h11.Response:
    while not isinstance(event := http.next_event(), h11.Response):
        if event is h11.NEED_DATA:
            data = await connection.receive(HEAD_PIECE_BYTES, limit_s)
            if not data:
                raise httpx.RemoteProtocolError("the server hung up before its answer")
            http.receive_data(data)
    return event


def _length_of_body(method: str, head: h11.Response) -> int | None:
    """Return how many bytes follow the head, None if it does not tell (RFC 9112 §6.3).

    h11 has refused lengths that are no numbers or contradict each other.
    """
    if method == "HEAD" or head.status_code in BODILESS:
        return 0
    fields = dict(head.headers)
    if b"transfer-encoding" in fields or b"content-length" not in fields:
        return None
    return int(fields[b"content-length"])


def _stays_open(head: h11.Response) -> bool:
    """Tell whether the server takes another request on this connection (RFC 9112 §9.3)."""
    closing = any(
        b"close" in value.lower() for name, value in head.headers if name == b"connection"
    )
    return head.http_version == b"1.1" and not closing


def _origin_of(request: httpx.Request) -> _Origin:
    scheme = request.url.scheme
    if scheme not in DEFAULT_PORTS or not request.url.host:
        raise httpx.UnsupportedProtocol(
            f"{scheme or 'no'}: is no scheme of HTTP, or the host lacks"
        )
    host = request.url.raw_host.decode("ascii")
    return _Origin(scheme, host, request.url.port or DEFAULT_PORTS[scheme])


def _limits_of(request: httpx.Request) -> _Limits:
    timeout = request.extensions.get("timeout", {})
    connect_s, read_s, write_s = (timeout.get(key) for key in ("connect", "read", "write"))
    return _Limits(connect_s or inf, read_s or inf, write_s or inf)
