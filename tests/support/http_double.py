"""A blob server on a real socket, over a dict, whose failures are data queued beforehand.

    double = HttpDouble({blob_id: data})
    address = await nursery.start(double.serve)
    double.faults.append(ResetAfter(100))

A GET or HEAD of any path that ends in a blob id answers with that blob (`/v2/…/blobs/sha256:<id>`,
`/storage/<id>?sig=…`). Each request takes the first queued fault that matches it, if any. It is written
on bare sockets, because most of what it must do no HTTP library would.
"""

import math
import re
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import trio

HEAD_MAX_BYTES: Final = 64 * 1024
_RANGE: Final = re.compile(r"bytes=(\d+)-(\d*)")
_REASONS: Final = {
    200: "OK",
    206: "Partial Content",
    307: "Temporary Redirect",
    401: "Unauthorized",
}


@dataclass(frozen=True, slots=True)
class Seen:
    """A request as it came; header names in lower case. `connection` counts from 1."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes
    connection: int


@dataclass(frozen=True, slots=True)
class Status:
    """Answer this status instead."""

    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class IgnoreRange:
    """Answer 200 with the whole blob; chunked hides its length."""

    chunked: bool = False


@dataclass(frozen=True, slots=True)
class BodyOff:
    """Send this many bytes more (or fewer) than the range; `honest` says so in Content-Length.

    Chunked bodies have no Content-Length to lie in.
    """

    by: int
    honest: bool = False
    chunked: bool = False


@dataclass(frozen=True, slots=True)
class WrongRange:
    """Answer 206 with this Content-Range (None: without one) above the right bytes."""

    content_range: str | None


@dataclass(frozen=True, slots=True)
class ResetAfter:
    """Send this many bytes of the body, then RST; None: before the status line."""

    body_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class FreezeAfter:
    """Send this many bytes of the body, then nothing; None: not even the status line."""

    body_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Drip:
    """Send the body one byte at a time, so many seconds apart."""

    every_s: float


@dataclass(frozen=True, slots=True)
class Garbage:
    """Send these bytes instead of an answer, then close."""

    data: bytes


Fault = Status | IgnoreRange | BodyOff | WrongRange | ResetAfter | FreezeAfter | Drip | Garbage


@dataclass(frozen=True, slots=True)
class _Reply:
    status: int
    headers: dict[str, str]
    body: bytes
    chunked: bool = False

    def head(self) -> bytes:
        headers = dict(self.headers)
        if self.chunked:
            headers["Transfer-Encoding"] = "chunked"
        else:
            headers.setdefault("Content-Length", str(len(self.body)))
        lines = [f"HTTP/1.1 {self.status} {_REASONS.get(self.status, 'Other')}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        return ("\r\n".join(lines) + "\r\n\r\n").encode()

    def wire(self) -> bytes:
        if self.chunked:
            return b"%x\r\n%b\r\n0\r\n\r\n" % (len(self.body), self.body)
        return self.body


class HttpDouble:
    """Blobs, queued faults, and what was asked."""

    def __init__(
        self,
        blobs: dict[str, bytes],
        *,
        answer: Callable[[Seen], Status | None] | None = None,
    ) -> None:
        """answer: looks at each request first; what it returns is the answer (auth, redirects, tokens)."""
        self.blobs = blobs
        self.faults: deque[Fault] = deque()
        self.seen: list[Seen] = []
        self.connections = 0
        self.frozen: set[int] = set()  # connections, from 1, that answer nothing more
        self._answer = answer
        self._more_seen = trio.Event()
        self._open: set[trio.SocketStream] = set()
        self._one_closed = trio.Event()

    async def until_quiet(self) -> None:
        """Wait until the other side has closed every connection, frozen ones too."""
        while self._open:
            await self._one_closed.wait()

    async def until_seen(self, count: int) -> None:
        """Wait until so many requests have come."""
        while len(self.seen) < count:
            await self._more_seen.wait()

    async def serve(
        self,
        listen: tuple[str, int] = ("127.0.0.1", 0),
        *,
        task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Serve until cancelled; `nursery.start` returns `host:port`."""
        (listener,) = await trio.open_tcp_listeners(listen[1], host=listen[0])
        host, port = listener.socket.getsockname()[:2]
        task_status.started(f"{host}:{port}")
        await trio.serve_listeners(self._connection, [listener])

    async def _connection(self, stream: trio.SocketStream) -> None:
        self.connections += 1
        number = self.connections
        buffer = bytearray()
        self._open.add(stream)
        try:
            while (seen := await _read_request(stream, buffer, number)) is not None:
                self.seen.append(seen)
                self._more_seen.set()
                self._more_seen = trio.Event()
                if number in self.frozen:
                    await _until_left(stream)
                    return
                if not await self._serve(stream, seen):
                    return
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the client left
        finally:
            stream.socket.close()
            self._open.discard(stream)
            self._one_closed.set()
            self._one_closed = trio.Event()

    async def _serve(self, stream: trio.SocketStream, seen: Seen) -> bool:
        """Answer one request; return whether the connection goes on."""
        first = self._answer(seen) if self._answer is not None else None
        fault = self.faults.popleft() if first is None and self.faults else first
        match fault:
            case Status(status, body, headers):
                return await _send(stream, seen, _Reply(status, headers, body))
            case Garbage(data):
                await stream.send_all(data)
                return False
            case ResetAfter(None):
                _reset(stream)
                return False
            case FreezeAfter(None):
                await _until_left(stream)
                return False
        reply = self._reply(seen)
        match fault:
            case IgnoreRange(chunked):
                whole = self._reply(seen, whole=True)
                return await _send(stream, seen, _Reply(200, {}, whole.body, chunked))
            case BodyOff(by, honest, chunked):
                return await _send(stream, seen, *_off(reply, by, honest=honest, chunked=chunked))
            case WrongRange(content_range):
                headers = {} if content_range is None else {"Content-Range": content_range}
                return await _send(stream, seen, _Reply(206, headers, reply.body))
            case ResetAfter(int(count)):
                await stream.send_all(reply.head() + reply.body[:count])
                _reset(stream)
                return False
            case FreezeAfter(int(count)):
                await stream.send_all(reply.head() + reply.body[:count])
                await _until_left(stream)
                return False
            case Drip(every_s):
                await stream.send_all(reply.head())
                for byte in reply.body:
                    await trio.sleep(every_s)
                    await stream.send_all(bytes([byte]))
                return True
        return await _send(stream, seen, reply)

    def _reply(self, seen: Seen, *, whole: bool = False) -> _Reply:
        path = seen.target.partition("?")[0]
        blob = self.blobs.get(re.split("[/:]", path)[-1])
        if blob is None:
            body = b'{"errors":[{"code":"BLOB_UNKNOWN","message":"blob unknown to registry"}]}'
            return _Reply(404, {"Content-Type": "application/json"}, body)
        wanted = _RANGE.fullmatch(seen.headers.get("range", ""))
        if wanted is None or whole:
            return _Reply(200, {}, blob)
        first = int(wanted[1])
        last = min(int(wanted[2] or math.inf) if wanted[2] else len(blob) - 1, len(blob) - 1)
        if first > last:
            return _Reply(416, {"Content-Range": f"bytes */{len(blob)}"}, b"")
        headers = {"Content-Range": f"bytes {first}-{last}/{len(blob)}"}
        return _Reply(206, headers, blob[first : last + 1])


def _off(reply: _Reply, by: int, *, honest: bool, chunked: bool) -> tuple[_Reply, bool]:
    """Return the reply with a body that is `by` bytes off, and whether the connection goes on."""
    body = reply.body + b"\xee" * by if by > 0 else reply.body[:by]
    headers = dict(reply.headers)
    if not honest and not chunked:
        headers["Content-Length"] = str(len(reply.body))
    return _Reply(reply.status, headers, body, chunked), honest or chunked


async def _send(
    stream: trio.SocketStream,
    seen: Seen,
    reply: _Reply,
    goes_on: bool = True,
) -> bool:
    await stream.send_all(reply.head() + (b"" if seen.method == "HEAD" else reply.wire()))
    return goes_on


async def _until_left(stream: trio.SocketStream) -> None:
    """Say nothing until the client closes."""
    while await stream.receive_some(HEAD_MAX_BYTES):
        pass


def _reset(stream: trio.SocketStream) -> None:
    stream.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    stream.socket.close()


async def _read_request(
    stream: trio.SocketStream, buffer: bytearray, connection: int
) -> Seen | None:
    """Return the next request, None when the client is done."""
    while b"\r\n\r\n" not in buffer:
        data = await stream.receive_some(HEAD_MAX_BYTES)
        if not data:
            return None
        buffer += data
    head, _, rest = bytes(buffer).partition(b"\r\n\r\n")
    line, *fields = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (f.partition(":") for f in fields)}
    length = int(headers.get("content-length", 0))
    while len(rest) < length:
        rest += await stream.receive_some(length - len(rest))
    buffer[:] = rest[length:]
    method, target, _ = line.split(" ")
    return Seen(method, target, headers, rest[:length], connection)
