"""HTTP/1.1 requests for backends: httpx's requests and answers over our own transport.

Imported at the first request only (20 ms, 3 MiB). There is no `httpx.AsyncClient` on purpose: no cookies,
no environment proxies, no redirects followed behind our back, no log line with a signed URL.

Owns     a transport and its connections (http_transport.py); how many are open at once is the caller's
         to bound (attempts.py).
Callers  tasks of the trio thread.
Raises   TransportError for whatever httpx, h11, ssl or the socket raise; BackendError for bad bodies.
Time     connect, each write and each read have the configured limits (0: none); the whole is bounded
         by the caller.
Cancel   the connection in use is closed.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Final

import h11
import httpx
import trio

from nydusd.config.model import HttpOptions
from nydusd.errors import BackendError
from nydusd.storage.backend.http_faults import (
    TransportError,
    fault_of_exception,
    shown_url,
    words_of,
)
from nydusd.storage.backend.http_range import BodyPlan
from nydusd.storage.backend.http_transport import HttpTransport, SizedBody
from nydusd.storage.backend.tls import Tls
from nydusd.units import KIB

ERROR_BODY_MAX_BYTES: Final = 16 * KIB  # read for its words; what is longer costs the connection

OpenTransport = Callable[[Tls], httpx.AsyncBaseTransport]

# What the layers below raise when a connection fails, as far as httpx does not translate it.
_BELOW: Final = (
    httpx.HTTPError,
    httpx.InvalidURL,
    httpx.StreamError,
    h11.ProtocolError,
    OSError,  # ssl.SSLError too
    trio.BrokenResourceError,
    trio.ClosedResourceError,
)
_NOT_CONNECTED: Final = (httpx.ConnectError, httpx.ConnectTimeout)


def open_transport(tls: Tls) -> httpx.AsyncBaseTransport:
    """Return a transport with fresh connections."""
    return HttpTransport(tls.context)


class _Connections:
    """One transport and how many answers are being read from it."""

    __slots__ = ("retired", "transport", "users")

    def __init__(self, transport: httpx.AsyncBaseTransport) -> None:
        self.transport = transport
        self.users = 0
        self.retired = False

    async def done(self) -> None:
        self.users -= 1
        if self.retired and not self.users:
            await self.transport.aclose()


class HttpClient:
    """Sends requests over kept-alive connections.

    After a fault before any answer all idle connections are suspect (a registry that restarted, a
    firewall that forgot): the next request gets fresh ones, what is under way finishes on the old.
    """

    def __init__(
        self, options: HttpOptions, tls: Tls, open_transport: OpenTransport = open_transport
    ) -> None:
        """Open nothing yet."""
        limits = httpx.Timeout(
            connect=options.connect_timeout_s or None,
            read=options.timeout_s or None,
            write=options.timeout_s or None,
            pool=None,
        )
        self._extensions = {"timeout": limits.as_dict()}
        self._tls = tls
        self._open_transport = open_transport
        self._connections: _Connections | None = None

    async def send(
        self, line: str, method: str, url: str, headers: Mapping[str, str], body: bytes = b""
    ) -> "Answer":
        """Send a request, return its answer with the body still to be read; close it in any case.

        line: what it is for, opens each error's text. Raises TransportError.
        """
        line = f"{line}: {method} {shown_url(url)}"
        connections = self._connections
        if connections is None:
            connections = self._connections = _Connections(self._open_transport(self._tls))
        connections.users += 1
        try:
            with _translated(line):
                if url.startswith("https:"):
                    await self._tls.ready()
                request = httpx.Request(
                    method, url, headers=headers, content=body or None, extensions=self._extensions
                )
                response = await connections.transport.handle_async_request(request)
        except BaseException as exc:
            # A connection that could not be opened says nothing about those that are.
            if isinstance(exc, TransportError) and not isinstance(exc.__cause__, _NOT_CONNECTED):
                self._retire(connections)
            await connections.done()
            raise
        return Answer(line, url, response, connections)

    async def aclose(self) -> None:
        """Close idle connections now, others as soon as their answers are closed."""
        connections = self._connections
        if connections is not None:
            self._retire(connections)
            connections.users += 1
            await connections.done()

    def _retire(self, connections: _Connections) -> None:
        connections.retired = True
        if self._connections is connections:
            self._connections = None


class Answer:
    """Status, headers and a body to be read once. Closed by `aclose`, whatever happened before."""

    def __init__(
        self, line: str, url: str, response: httpx.Response, connections: _Connections
    ) -> None:
        """line: request and URL as error texts show them."""
        self.line = line
        self.url = url
        self.status = response.status_code
        self._response = response
        self._connections = connections
        self._closed = False

    def header(self, name: str) -> str | None:
        """Return a header's value, several joined by `, `; None if absent."""
        value: str | None = self._response.headers.get(name)
        return value

    def headers(self, name: str) -> list[str]:
        """Return each value of a header that may come more than once."""
        return self._response.headers.get_list(name)

    async def read(self, plan: BodyPlan) -> bytearray:
        """Return the planned part of the body, in a buffer of exactly its length.

        Raises BackendError, temporary, if the body is shorter or longer than planned.
        """
        stream = self._response.stream
        if isinstance(stream, SizedBody) and stream.length == plan.length == plan.total:
            body = bytearray(plan.length)
            with _translated(self.line):
                await stream.read_into(memoryview(body))
            return body
        part = _BodyPart(plan)
        await self._consume(part.take)
        wanted = plan.skip + plan.length
        if part.seen < wanted:
            fault = f"a body of only {part.seen} of {plan.total} bytes"
        elif part.seen > wanted and not plan.leaves_rest:
            fault = f"a body of more than {wanted} bytes"
        else:
            return part.body
        raise BackendError(f"{self.line}: {self.status} with {fault}", temporary=True)

    async def words(self, secrets: Iterable[str] = ()) -> str:
        """Return what an error's body says, safe to be logged; a fault on the way ends it early."""
        body = bytearray()

        def take(piece: bytes) -> bool:
            body.extend(piece[: ERROR_BODY_MAX_BYTES - len(body)])
            return len(body) < ERROR_BODY_MAX_BYTES

        with suppress(BackendError):
            await self._consume(take)
        return words_of(bytes(body), secrets)

    async def discard(self) -> None:
        """Pass over a body that nobody wants, so that the connection can serve again."""
        await self.words()

    async def content(self, max_bytes: int) -> bytes:
        """Return the whole body. Raises BackendError if it is longer than `max_bytes`."""
        body = bytearray()

        def take(piece: bytes) -> bool:
            body.extend(piece)
            return len(body) <= max_bytes

        await self._consume(take)
        if len(body) > max_bytes:
            raise BackendError(f"{self.line}: {self.status} with a body above {max_bytes} bytes")
        return bytes(body)

    async def aclose(self) -> None:
        """Give the connection back if the body was read to its end, else close it."""
        if not self._closed:
            self._closed = True
            await self._response.aclose()
            await self._connections.done()

    async def _consume(self, take: Callable[[bytes], bool]) -> None:
        """Give the body to `take` piece by piece, until it returns False or the body ends."""
        stream = self._response.stream
        assert isinstance(stream, httpx.AsyncByteStream)
        stopped = False
        try:
            with _translated(self.line):
                async for piece in stream:
                    if not stopped and not take(piece):
                        stopped = True
                        # Not `break`: httpx nests generators, and one that is left half-way is
                        # closed by the garbage collector. A closed stream ends them all in order.
                        await self._response.aclose()
        except BackendError:
            if not stopped:
                raise


class _BodyPart:
    """Cuts the planned part out of a body that comes in pieces."""

    __slots__ = ("_end", "_plan", "_stop_at", "_view", "body", "seen")

    def __init__(self, plan: BodyPlan) -> None:
        self.body = bytearray(plan.length)
        self.seen = 0
        self._plan = plan
        self._view = memoryview(self.body)
        self._end = plan.skip + plan.length
        # Where nothing may follow, one byte too many is waited for, so that it is noticed.
        self._stop_at = self._end if plan.leaves_rest else self._end + 1

    def take(self, piece: bytes) -> bool:
        start, self.seen = self.seen, self.seen + len(piece)
        if start >= self._plan.skip and self.seen <= self._end:
            at = start - self._plan.skip
            self._view[at : at + len(piece)] = piece
        elif self.seen > self._plan.skip and start < self._end:
            first = max(self._plan.skip - start, 0)
            wanted = memoryview(piece)[first : self._end - start]
            at = start + first - self._plan.skip
            self._view[at : at + len(wanted)] = wanted
        return self.seen < self._stop_at


@contextmanager
def _translated(line: str) -> Iterator[None]:
    """Turn what the layers below raise into a TransportError that starts with `line`."""
    try:
        yield
    except _BELOW as exc:
        raise fault_of_exception(line, exc) from exc
    except ExceptionGroup as exc:  # trio's connect races addresses in a nursery
        if exc.split(_BELOW)[1] is not None:
            raise  # a bug is among them
        raise fault_of_exception(line, exc) from exc
