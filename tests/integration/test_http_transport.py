"""Connections of the HTTP transport: which serve again, which are closed, and bodies however they end."""

from collections import deque
from collections.abc import AsyncIterator

import h11
import httpx
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from nydusd.config.model import HttpOptions
from nydusd.storage.backend import http_transport
from nydusd.storage.backend.http_transport import KEPT_ALIVE_MAX, HttpTransport, SizedBody
from nydusd.storage.backend.tls import Tls

HELLO = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
TIMEOUT = {"connect": 5.0, "read": 5.0, "write": 5.0, "pool": None}


class Script:
    """A server that answers each request with the next pieces, sent one by one; b"" hangs up."""

    def __init__(self, *answers: bytes | list[bytes]) -> None:
        self.answers = deque(answers)
        self.connections = 0
        self.heads: list[bytes] = []
        self.open = 0
        self.left = trio.Event()  # one connection has ended
        self.quiet = trio.Event()  # the last one has

    async def serve(self, *, task_status: trio.TaskStatus[str]) -> None:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        task_status.started(f"http://127.0.0.1:{listener.socket.getsockname()[1]}")
        await trio.serve_listeners(self._connection, [listener])

    async def _connection(self, stream: trio.SocketStream) -> None:
        self.connections += 1
        self.open += 1
        async with stream:
            while head := await stream.receive_some():
                self.heads.append(bytes(head))  # they are short: one segment each
                answer = self.answers.popleft()
                for piece in [answer] if isinstance(answer, bytes) else answer:
                    await stream.send_all(piece)
                    await wait_all_tasks_blocked(0.002)  # so that pieces do not arrive as one
                    if not piece:
                        break
                else:
                    continue
                break
        self.open -= 1
        self.left.set()
        if not self.open:
            self.quiet.set()


@pytest.fixture
async def transport() -> AsyncIterator[HttpTransport]:
    opened = HttpTransport(Tls(HttpOptions(skip_verify=True)).context)
    yield opened
    await opened.aclose()


def request(url: str, method: str = "GET", read_s: float = 5.0) -> httpx.Request:
    return httpx.Request(method, url, extensions={"timeout": {**TIMEOUT, "read": read_s}})


async def content(transport: HttpTransport, url: str, method: str = "GET") -> bytes:
    """Return the whole body of one answer, and give the connection back."""
    answer = await transport.handle_async_request(request(url, method))
    assert isinstance(answer.stream, httpx.AsyncByteStream)
    try:
        return b"".join([piece async for piece in answer.stream])
    finally:
        await answer.aclose()


AGAIN = {
    "length": (HELLO, b"hello"),
    "head in pieces": ([HELLO[:9], HELLO[9:30], HELLO[30:]], b"hello"),
    "body in pieces": ([HELLO[:-4], HELLO[-4:-1], HELLO[-1:]], b"hello"),
    "empty": (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", b""),
    "no content": (b"HTTP/1.1 204 No Content\r\n\r\n", b""),
    "early hints": (b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + HELLO, b"hello"),
    "chunked": (
        [
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhel",
            b"\r\n2\r\nlo\r\n0\r\n\r\n",
        ],
        b"hello",
    ),
}
ONCE = {
    "asked to close": (HELLO.replace(b"OK\r\n", b"OK\r\nConnection: Close\r\n"), b"hello"),
    "old protocol": (HELLO.replace(b"HTTP/1.1", b"HTTP/1.0"), b"hello"),
    "ended by the end": ([b"HTTP/1.1 200 OK\r\n\r\nhel", b"lo", b""], b"hello"),
    "more than told": (HELLO + b"!", b"hello"),
    "chunked and more": (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\nHTTP",
        b"hello",
    ),
}


@pytest.mark.parametrize(("answer", "body"), AGAIN.values(), ids=AGAIN)
async def test_a_connection_whose_answer_was_read_to_its_end_serves_again(
    transport: HttpTransport, nursery: trio.Nursery, answer: bytes | list[bytes], body: bytes
) -> None:
    script = Script(answer, HELLO)
    url = await nursery.start(script.serve)
    assert await content(transport, url) == body
    assert await content(transport, url) == b"hello"
    assert script.connections == 1


@pytest.mark.parametrize(("answer", "body"), ONCE.values(), ids=ONCE)
async def test_a_connection_that_may_not_or_cannot_go_on_is_closed(
    transport: HttpTransport, nursery: trio.Nursery, answer: bytes | list[bytes], body: bytes
) -> None:
    script = Script(answer, HELLO)
    url = await nursery.start(script.serve)
    assert await content(transport, url) == body
    await script.left.wait()
    assert await content(transport, url) == b"hello"
    assert script.connections == 2


async def test_the_answer_to_head_has_no_body_whatever_length_it_tells(
    transport: HttpTransport, nursery: trio.Nursery
) -> None:
    script = Script(HELLO.removesuffix(b"hello"), HELLO)
    url = await nursery.start(script.serve)
    assert await content(transport, url, "HEAD") == b""
    assert await content(transport, url) == b"hello"
    assert [head.split()[0] for head in script.heads] == [b"HEAD", b"GET"]
    assert script.connections == 1


async def test_a_body_is_received_into_the_readers_own_buffer(
    transport: HttpTransport, nursery: trio.Nursery
) -> None:
    body = bytes(range(256)) * 8192  # 2 MiB: many times what the kernel is asked to gather
    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body)
    script = Script([head + body[:7000], body[7000:]], HELLO)
    url = await nursery.start(script.serve)
    answer = await transport.handle_async_request(request(url))
    assert isinstance(answer.stream, SizedBody)
    assert answer.stream.length == len(body)
    room = bytearray(len(body))
    with memoryview(room) as view:
        await answer.stream.read_into(view[:5000])
        await answer.stream.read_into(view[5000:])
    assert room == body
    await answer.aclose()
    assert await content(transport, url) == b"hello"
    assert script.connections == 1


@pytest.mark.parametrize("room_bytes", [5, 6])
async def test_a_body_that_ends_early_fills_no_buffer(
    transport: HttpTransport, nursery: trio.Nursery, room_bytes: int
) -> None:
    cut = [HELLO[:-1], b""] if room_bytes == 5 else HELLO
    url = await nursery.start(Script(cut).serve)
    answer = await transport.handle_async_request(request(url))
    assert isinstance(answer.stream, SizedBody)
    with pytest.raises(httpx.RemoteProtocolError, match="1 bytes early"):
        await answer.stream.read_into(memoryview(bytearray(room_bytes)))
    await answer.aclose()


async def test_a_server_that_hung_up_on_an_idle_connection_costs_no_request(
    transport: HttpTransport, nursery: trio.Nursery
) -> None:
    script = Script([HELLO, b""], HELLO)
    url = await nursery.start(script.serve)
    assert await content(transport, url) == b"hello"
    await script.left.wait()
    assert await content(transport, url) == b"hello"
    assert script.connections == 2


async def test_a_connection_that_was_idle_too_long_is_not_used(
    transport: HttpTransport, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_transport, "KEEP_ALIVE_S", -1.0)
    script = Script(HELLO, HELLO)
    url = await nursery.start(script.serve)
    assert await content(transport, url) == b"hello"
    assert await content(transport, url) == b"hello"
    assert script.connections == 2


async def test_more_idle_connections_than_are_kept_are_closed(
    transport: HttpTransport, nursery: trio.Nursery
) -> None:
    many = KEPT_ALIVE_MAX + 1
    script = Script(*[HELLO] * many * 2)
    url = await nursery.start(script.serve)
    for connections in (many, many + 1):
        answers = [await transport.handle_async_request(request(url)) for _ in range(many)]
        for answer in answers:
            assert isinstance(answer.stream, httpx.AsyncByteStream)
            assert [piece async for piece in answer.stream] == [b"hello"]
            await answer.aclose()
        assert script.connections == connections


async def test_a_body_left_half_way_costs_its_connection(
    transport: HttpTransport, nursery: trio.Nursery
) -> None:
    script = Script(HELLO[:-1], HELLO)
    url = await nursery.start(script.serve)
    answer = await transport.handle_async_request(request(url))
    assert isinstance(answer.stream, SizedBody)
    with trio.move_on_after(0) as scope:
        await answer.stream.read_into(memoryview(bytearray(5)))
    assert scope.cancelled_caught
    await answer.aclose()
    await script.left.wait()
    assert await content(transport, url) == b"hello"
    assert script.connections == 2


async def test_after_the_end_nothing_is_kept(
    transport: HttpTransport, nursery: trio.Nursery
) -> None:
    script = Script(HELLO, HELLO)
    url = await nursery.start(script.serve)
    idle = await transport.handle_async_request(request(url))
    assert await content(transport, url) == b"hello"
    await transport.aclose()
    assert isinstance(idle.stream, SizedBody)
    assert [piece async for piece in idle.stream] == [b"hello"]  # what is under way finishes
    await idle.aclose()
    await idle.aclose()
    await script.quiet.wait()


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b"", httpx.RemoteProtocolError),
        (b"SSH-2.0-x\r\n\r\n", h11.RemoteProtocolError),
        (HELLO.replace(b"5", b"5\r\nContent-Length: 6"), h11.RemoteProtocolError),
        (HELLO.replace(b"5", b"-5"), h11.RemoteProtocolError),
    ],
    ids=["nothing", "no HTTP", "two lengths", "negative length"],
)
async def test_what_is_no_answer_is_refused(
    transport: HttpTransport, nursery: trio.Nursery, answer: bytes, error: type[Exception]
) -> None:
    url = await nursery.start(Script([answer, b""]).serve)
    with pytest.raises(error):
        await transport.handle_async_request(request(url))


async def test_a_port_that_nobody_listens_on_is_no_connection(transport: HttpTransport) -> None:
    with trio.socket.socket() as probe:
        await probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        with pytest.raises(httpx.ConnectError, match=f"{port}"):
            await transport.handle_async_request(request(f"http://127.0.0.1:{port}/"))
