"""Connections, over streams in memory and a clock that jumps: no socket, no waiting."""

import re
from collections.abc import Awaitable, Callable
from typing import Self

import h11
import pytest
import trio
from trio.testing import (
    MemoryReceiveStream,
    MemorySendStream,
    MockClock,
    memory_stream_pair,
)

from nydusd.api.dispatch import Answer, answer_json
from nydusd.api.server import Limits, _Service

Stream = trio.StapledStream[MemorySendStream, MemoryReceiveStream]
NEVER = 10**9
GET = b"GET /x HTTP/1.1\r\nHost: u\r\n\r\n"


class Echo:
    """Answers with what was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, bytes, bytes]] = []
        self.answer: Answer | None = None

    async def __call__(self, method: str, target: bytes, body: bytes) -> Answer:
        self.asked.append((method, target, body))
        return self.answer or answer_json(200, [method, target.decode(), len(body)])


@pytest.fixture
def echo() -> Echo:
    return Echo()


def connect(
    nursery: trio.Nursery,
    ask: Callable[[str, bytes, bytes], Awaitable[Answer]],
    limits: Limits | None = None,
    service: _Service | None = None,
) -> Stream:
    client, server = memory_stream_pair()
    nursery.start_soon((service or _Service(ask, limits or Limits())).attend, server)
    return client


async def read_all(client: Stream) -> bytes:
    return b"".join([part async for part in client])


async def read_some(client: Stream) -> bytes:
    return bytes(await client.receive_some())


def statuses(received: bytes) -> list[int]:
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d+) \w*\r\n", received)]


async def test_an_answer_looks_like_the_reference(echo: Echo, nursery: trio.Nursery) -> None:
    client = connect(nursery, echo)
    await client.send_all(GET)
    assert await read_some(client) == (
        b"HTTP/1.1 200 \r\nServer: Nydus API\r\nConnection: keep-alive\r\n"
        b"Content-Type: application/json\r\nContent-Length: 14\r\n\r\n"
        b'["GET","/x",0]'
    )


async def test_a_204_has_neither_body_nor_length(echo: Echo, nursery: trio.Nursery) -> None:
    echo.answer = Answer(204)
    client = connect(nursery, echo)
    await client.send_all(GET)
    received = await read_some(client)
    assert received == b"HTTP/1.1 204 \r\nServer: Nydus API\r\nConnection: keep-alive\r\n\r\n"


async def test_one_connection_serves_many_requests_days_apart(
    echo: Echo, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    client = connect(nursery, echo)
    for _ in range(3):
        await trio.sleep(86_400)
        await client.send_all(GET)
        assert statuses(await read_some(client)) == [200]
    assert autojump_clock.current_time() == 3 * 86_400


async def test_pipelined_requests_are_answered_in_order(echo: Echo, nursery: trio.Nursery) -> None:
    client = connect(nursery, echo)
    await client.send_all(GET + GET.replace(b"/x", b"/y") + GET.replace(b"/x", b"/z"))
    await client.send_eof()
    received = await read_all(client)
    assert [target for _, target, _ in echo.asked] == [b"/x", b"/y", b"/z"]
    assert received.index(b"/x") < received.index(b"/y") < received.index(b"/z")


@pytest.mark.parametrize(
    "half",
    [
        b"G",
        b"GET /x HTTP/1.1\r\nHost: u\r\n",
        b"PUT /x HTTP/1.1\r\nHost: u\r\nContent-Length: 5\r\n\r\nab",
        GET + b"GET /y HT",
    ],
)
async def test_a_request_that_was_begun_must_be_finished_in_time(
    echo: Echo, nursery: trio.Nursery, half: bytes, autojump_clock: MockClock
) -> None:
    client = connect(nursery, echo, Limits(request_s=30))
    await trio.sleep(1000)
    await client.send_all(half)
    received = await read_all(client)
    assert statuses(received)[-1] == 408
    assert 1030 <= autojump_clock.current_time() <= 1030 + Limits().linger_s


async def test_a_drip_of_bytes_does_not_prolong_a_request(
    echo: Echo, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    client = connect(nursery, echo, Limits(request_s=30))

    async def drip() -> None:
        while True:
            await client.send_all(b"a")
            await trio.sleep(1)

    await client.send_all(b"GET /")
    nursery.start_soon(drip)
    assert statuses(await read_all(client)) == [408]
    assert autojump_clock.current_time() <= 30 + Limits().linger_s
    nursery.cancel_scope.cancel()


async def test_a_client_that_takes_no_answer_is_dropped(autojump_clock: MockClock) -> None:
    class Deaf:
        """Sends one request and never reads."""

        def __init__(self) -> None:
            self.closed = False
            self.sent = False

        async def send_all(self, _data: bytes) -> None:
            await trio.sleep_forever()

        async def receive_some(self, _max_bytes: int | None = None) -> bytes:
            await trio.lowlevel.checkpoint()
            self.sent, begun = True, self.sent
            return b"" if begun else GET

        async def __aenter__(self) -> Self:
            return self

        async def __aexit__(self, *_: object) -> None:
            self.closed = True

    stream = Deaf()
    await _Service(Echo(), Limits(answer_s=30)).attend(stream)  # type: ignore[arg-type]
    assert stream.closed
    assert autojump_clock.current_time() == 30


async def test_what_comes_after_an_answer_happens_even_if_the_client_is_gone(
    nursery: trio.Nursery,
) -> None:
    done = trio.Event()
    asked = trio.Event()

    async def ask(_method: str, _target: bytes, _body: bytes) -> Answer:
        asked.set()
        await trio.testing.wait_all_tasks_blocked()
        return Answer(204, after=done.set)

    client = connect(nursery, ask)
    await client.send_all(GET)
    await asked.wait()
    await client.aclose()
    with trio.fail_after(5):
        await done.wait()


async def test_the_answer_is_sent_before_what_comes_after_it(nursery: trio.Nursery) -> None:
    client, server = memory_stream_pair()
    sent: list[bytes] = []
    sent_before_after: list[bytes] = []

    async def send_all(data: bytes) -> None:
        await server.send_stream.send_all(data)
        sent.append(bytes(data))

    server.send_all = send_all  # type: ignore[method-assign]

    async def ask(_method: str, _target: bytes, _body: bytes) -> Answer:
        return Answer(204, after=lambda: sent_before_after.extend(sent))

    nursery.start_soon(_Service(ask, Limits()).attend, server)
    await client.send_all(GET)
    assert statuses(await read_some(client)) == [204]
    await trio.testing.wait_all_tasks_blocked()
    assert statuses(b"".join(sent_before_after)) == [204]


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"garbage\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
        (b"GET /x HTTP/1.1\r\n\r\n", 400),
        (b"GET /x HTTP/1.1\r\nHost: u\r\nHost: v\r\n\r\n", 400),
        (b"GET /x HTTP/1.1\r\nHost: u\r\nbad header\r\n\r\n", 400),
        (b"PUT /x HTTP/1.1\r\nHost: u\r\nContent-Length: -1\r\n\r\n", 400),
        (b"PUT /x HTTP/1.1\r\nHost: u\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
        (b"GET /" + b"n" * 40_000 + b" HTTP/1.1\r\nHost: u\r\n\r\n", 431),
        (b"GET /x HTTP/1.1\r\nHost: u\r\nX: " + b"n" * 40_000 + b"\r\n\r\n", 431),
        (b"GET /x HTTP/1.1\r\nHost: u\r\n" + b"A: b\r\n" * 5000, 431),
    ],
)
async def test_what_is_no_request_costs_its_own_connection(
    echo: Echo, nursery: trio.Nursery, request_bytes: bytes, status: int
) -> None:
    service = _Service(echo, Limits())
    other = connect(nursery, echo, service=service)
    client = connect(nursery, echo, service=service)
    await client.send_all(request_bytes)
    await client.send_eof()
    received = await read_all(client)
    assert statuses(received) == [status]
    assert b"Connection: close" in received
    assert b'{"code":"UNDEFINED","message":' in received
    await other.send_all(GET)
    assert statuses(await read_some(other)) == [200]


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_of_one_mebibyte_is_refused_and_read_away(
    echo: Echo, nursery: trio.Nursery, chunked: bool
) -> None:
    client = connect(nursery, echo)
    body = b"x" * (1 << 20)
    framing = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: %d" % len(body)
    head = b"PUT /x HTTP/1.1\r\nHost: u\r\n" + framing + b"\r\n\r\n"
    await client.send_all(
        head + (b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body) if chunked else body)
    )
    await client.send_eof()
    assert statuses(await read_all(client)) == [400]
    assert echo.asked == []


async def test_the_longest_body_that_the_api_knows_is_taken(
    echo: Echo, nursery: trio.Nursery
) -> None:
    client = connect(nursery, echo)
    await client.send_all(
        b"PUT /x HTTP/1.1\r\nHost: u\r\nContent-Length: 51200\r\n\r\n" + b"x" * 51_200
    )
    assert statuses(await read_some(client)) == [200]
    assert len(echo.asked[0][2]) == 51_200


async def test_a_client_that_waits_for_100_continue_gets_it(
    echo: Echo, nursery: trio.Nursery
) -> None:
    client = connect(nursery, echo)
    await client.send_all(
        b"PUT /x HTTP/1.1\r\nHost: u\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n"
    )
    assert statuses(await read_some(client)) == [100]
    await client.send_all(b"{}")
    assert statuses(await read_some(client)) == [200]


@pytest.mark.parametrize(
    "request_bytes",
    [
        GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"),
        b"GET /x HTTP/1.0\r\n\r\n",
        b"HEAD /x HTTP/1.1\r\nHost: u\r\nConnection: close\r\n\r\n",
        b"GET /x HTTP/1.1\r\nHost: u\r\nConnection: Upgrade, close\r\nUpgrade: websocket\r\n\r\n",
    ],
)
async def test_a_client_that_wants_no_more_is_answered_and_let_go(
    echo: Echo, nursery: trio.Nursery, request_bytes: bytes
) -> None:
    client = connect(nursery, echo)
    await client.send_all(request_bytes)
    received = await read_all(client)
    assert statuses(received) == [200]


async def test_a_tunnel_is_refused_like_any_other_request(
    echo: Echo, nursery: trio.Nursery
) -> None:
    echo.answer = answer_json(404, "no")
    client = connect(nursery, echo)
    await client.send_all(b"CONNECT x:1 HTTP/1.1\r\nHost: u\r\n\r\n")
    assert statuses(await read_some(client)) == [404]
    await client.send_all(GET)
    assert statuses(await read_some(client)) == [404]


async def test_head_gets_no_body(echo: Echo, nursery: trio.Nursery) -> None:
    client = connect(nursery, echo)
    await client.send_all(b"HEAD /x HTTP/1.1\r\nHost: u\r\n\r\n")
    received = await read_some(client)
    assert received.endswith(b"Content-Length: 15\r\n\r\n")


async def test_a_client_that_closes_its_side_still_gets_its_answer(
    echo: Echo, nursery: trio.Nursery
) -> None:
    client = connect(nursery, echo)
    await client.send_all(GET)
    await client.send_eof()
    assert statuses(await read_all(client)) == [200]


async def test_a_connection_too_many_is_told_so_and_a_later_one_served(
    echo: Echo, nursery: trio.Nursery
) -> None:
    service = _Service(echo, Limits(connections=2))
    first = connect(nursery, echo, service=service)
    second = connect(nursery, echo, service=service)
    await trio.testing.wait_all_tasks_blocked()
    third = connect(nursery, echo, service=service)
    assert statuses(await read_all(third)) == [503]
    await first.aclose()
    await trio.testing.wait_all_tasks_blocked()
    fourth = connect(nursery, echo, service=service)
    for client in (second, fourth):
        await client.send_all(GET)
        assert statuses(await read_some(client)) == [200]


async def test_a_slow_answer_on_one_connection_does_not_delay_another(
    nursery: trio.Nursery,
) -> None:
    release = trio.Event()

    async def ask(_method: str, target: bytes, _body: bytes) -> Answer:
        if target == b"/slow":
            await release.wait()
        return answer_json(200, target.decode())

    service = _Service(ask, Limits())
    slow = connect(nursery, ask, service=service)
    await slow.send_all(GET.replace(b"/x", b"/slow"))
    await trio.testing.wait_all_tasks_blocked()
    quick = connect(nursery, ask, service=service)
    await quick.send_all(GET)
    assert statuses(await read_some(quick)) == [200]
    release.set()
    assert statuses(await read_some(slow)) == [200]


def test_h11_still_lets_a_server_answer_before_any_request() -> None:
    http = h11.Connection(h11.SERVER)
    assert http.send(h11.Response(status_code=503, headers=[(b"Content-Length", b"0")]))
