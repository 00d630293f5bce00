"""HTTP/1.1 connections on the unix socket (spec api §1).

Owns     the accepted connections, one task each, as long as `serve` runs.
Callers  daemon starts `serve` in its nursery; the dispatcher is asked once per request.
Raises   `serve` nothing but Cancelled. A client that is slow, half gone, too verbose or talks
         something else than HTTP costs its own connection and no one else's.
Cancel   closes all connections; a request under way is dropped.

An idle connection is never timed out: the snapshotter keeps one to notice our death (spec api §9).
From the first byte of a request on, the client has `request_s` to finish it.
"""

import logging
import math
import socket
from collections.abc import Awaitable, Callable
from typing import Final, NamedTuple

import h11
import trio

from nydusd.api.dispatch import Answer, answer_error
from nydusd.units import KIB, MIB

log = logging.getLogger(__name__)
Ask = Callable[[str, bytes, bytes], Awaitable[Answer]]  # method, target, body

SERVER_HEADER: Final = (b"Server", b"Nydus API")


class Limits(NamedTuple):
    """What one client may cost us."""

    connections: int = 256
    head_bytes: int = 16 * KIB  # request line and headers, give or take one read
    body_bytes: int = 51_200
    request_s: float = 30.0  # first byte of a request to its last
    answer_s: float = 30.0  # to take our answer
    linger_s: float = 2.0  # to notice that we refused the rest of its request
    linger_bytes: int = 4 * MIB


READ_BYTES: Final = 4 * KIB


class _HangUp(Exception):  # noqa: N818  # no error: the way out of a connection that is over
    """The client is gone, or has been told off; nothing more is to be sent."""


class _TooLongError(Exception):
    """The request's body is longer than any that the API knows."""


async def serve(listening: socket.socket, ask: Ask, limits: Limits | None = None) -> None:
    """Accept connections on a listening unix socket and answer them until cancelled; closes it."""
    service = _Service(ask, limits or Limits())
    listener = trio.SocketListener(trio.socket.from_stdlib_socket(listening))
    await trio.serve_listeners(service.attend, [listener])


class _Service:
    """All connections of one listener."""

    def __init__(self, ask: Ask, limits: Limits) -> None:
        self._ask = ask
        self._limits = limits
        self._open = 0

    async def attend(self, stream: trio.abc.HalfCloseableStream) -> None:
        """Serve one connection from its first byte to its end."""
        connection = _Connection(stream, self._limits)
        self._open += 1
        try:
            async with stream:
                if self._open > self._limits.connections:
                    await connection.send(answer_error(503, "too many connections"), last=True)
                    return
                while True:
                    await self._answer_one(connection)
        except (_HangUp, trio.BrokenResourceError, h11.ProtocolError):
            return
        finally:
            self._open -= 1

    async def _answer_one(self, connection: "_Connection") -> None:
        method, target, body = await connection.receive()
        answer = await self._ask(method, target, body)
        try:
            await connection.send(answer)
        finally:
            if answer.after is not None:
                answer.after()
        connection.next_request()


class _Connection:
    """One connection: bytes ↔ requests and answers."""

    def __init__(self, stream: trio.abc.HalfCloseableStream, limits: Limits) -> None:
        self._stream = stream
        self._limits = limits
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=limits.head_bytes)
        self._method = b""  # of the request that is being answered

    async def receive(self) -> tuple[str, bytes, bytes]:
        """Wait for the next request, return its method, target and body. Raises _HangUp."""
        begun = bool(self._http.trailing_data[0])  # a pipelined request, or a part of one
        deadline = trio.current_time() + self._limits.request_s if begun else math.inf
        with trio.CancelScope(deadline=deadline) as patience:
            try:
                request = await self._next_request(patience)
                self._method = request.method
                return request.method.decode(), request.target, await self._body(request)
            except h11.RemoteProtocolError as exc:
                log.info("api client sent no request: %s", exc)
                await self._refuse(exc.error_status_hint, "BadRequest")
                raise _HangUp from exc
            except _TooLongError:
                await self._refuse(
                    400, f"request body of more than {self._limits.body_bytes} bytes"
                )
                raise _HangUp from None
        await self._refuse(408, f"request not complete after {self._limits.request_s:g} seconds")
        raise _HangUp

    async def send(self, answer: Answer, *, last: bool = False) -> None:
        """Send a whole answer. Raises _HangUp if the client does not take it in time."""
        headers = [SERVER_HEADER, (b"Connection", b"close" if last else b"keep-alive")]
        if answer.body:
            headers.append((b"Content-Type", b"application/json"))
            headers.append((b"Content-Length", b"%d" % len(answer.body)))
        events: list[h11.Event] = [
            h11.Response(status_code=answer.status, headers=headers, reason=b"")
        ]
        if answer.body and self._method != b"HEAD":
            events.append(h11.Data(data=answer.body))
        events.append(h11.EndOfMessage())
        await self._send_bytes(b"".join(self._http.send(event) or b"" for event in events))

    def next_request(self) -> None:
        """Make ready for the next request. Raises _HangUp if the connection does not outlive this one."""
        if self._http.our_state is not h11.DONE or self._http.their_state is not h11.DONE:
            raise _HangUp
        self._http.start_next_cycle()

    async def _next_request(self, patience: trio.CancelScope) -> h11.Request:
        while True:
            event = self._http.next_event()
            if isinstance(event, h11.Request):
                return event
            if event is not h11.NEED_DATA:
                raise _HangUp  # ConnectionClosed, or PAUSED after a refused upgrade
            await self._feed()
            if math.isinf(patience.deadline):
                patience.deadline = trio.current_time() + self._limits.request_s

    async def _body(self, request: h11.Request) -> bytes:
        declared = next(
            (value for name, value in request.headers if name == b"content-length"), b"0"
        )
        if int(declared) > self._limits.body_bytes:
            raise _TooLongError
        if self._http.they_are_waiting_for_100_continue:
            go_ahead = h11.InformationalResponse(status_code=100, headers=[], reason=b"Continue")
            await self._send_bytes(self._http.send(go_ahead) or b"")
        body = bytearray()
        while True:
            event = self._http.next_event()
            if event is h11.NEED_DATA:
                await self._feed()
            elif isinstance(event, h11.Data):
                body += event.data
                if len(body) > self._limits.body_bytes:
                    raise _TooLongError
            elif isinstance(event, h11.EndOfMessage):
                return bytes(body)
            else:
                raise _HangUp

    async def _refuse(self, status: int, message: str) -> None:
        """Answer with an error, as far as an answer is still possible; the connection is over."""
        if self._http.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            await self.send(answer_error(status, message), last=True)
        await self._linger()

    async def _feed(self) -> None:
        data = await self._stream.receive_some(READ_BYTES)
        self._http.receive_data(bytes(data))

    async def _send_bytes(self, data: bytes) -> None:
        with trio.move_on_after(self._limits.answer_s) as patience:
            await self._stream.send_all(data)
        if patience.cancelled_caught:
            raise _HangUp

    async def _linger(self) -> None:
        """Read away what the client still sends, so that it comes to read why we refuse."""
        await self._stream.send_eof()
        discarded = 0
        with trio.move_on_after(self._limits.linger_s):
            while discarded < self._limits.linger_bytes:
                data = await self._stream.receive_some(READ_BYTES)
                if not data:
                    return
                discarded += len(data)
