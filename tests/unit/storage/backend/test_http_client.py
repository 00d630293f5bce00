"""Bodies cut to the planned part, and connections that are replaced once they are suspect."""

import itertools
from collections import deque

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nydusd.config.model import HttpOptions
from nydusd.errors import BackendError
from nydusd.storage.backend.http_client import HttpClient, _BodyPart
from nydusd.storage.backend.http_faults import TransportError
from nydusd.storage.backend.http_range import BodyPlan
from nydusd.storage.backend.tls import Tls

OPTIONS = HttpOptions(skip_verify=True)
BODY = bytes(range(100))


@given(
    cuts=st.lists(st.integers(0, 100), max_size=8),
    skip=st.integers(0, 100),
    length=st.integers(0, 100),
)
def test_the_planned_part_is_the_same_however_the_body_comes(
    cuts: list[int], skip: int, length: int
) -> None:
    length = min(length, 100 - skip)
    part = _BodyPart(BodyPlan(skip, length, 100))
    ends = sorted({0, 100, *cuts})
    for start, end in itertools.pairwise(ends):
        if not part.take(BODY[start:end]):
            break
    assert part.body == BODY[skip : skip + length]
    assert part.seen >= skip + length


@given(extra=st.integers(1, 50), cuts=st.lists(st.integers(0, 150), max_size=5))
def test_what_is_too_long_is_never_written_beyond_the_end(extra: int, cuts: list[int]) -> None:
    long = BODY + b"\xee" * extra
    part = _BodyPart(BodyPlan(0, 100, 100))
    ends = sorted({0, len(long), *(cut for cut in cuts if cut <= len(long))})
    goes_on = [part.take(long[a:b]) for a, b in itertools.pairwise(ends)]
    assert part.body == BODY
    assert not goes_on[-1]


class Transports:
    """Counts the transports opened and closed; answers or raises what is queued."""

    def __init__(self) -> None:
        self.outcomes: deque[httpx.Response | Exception] = deque()
        self.opened = 0
        self.closed = 0

    def open(self, _tls: Tls) -> httpx.AsyncBaseTransport:
        self.opened += 1
        owner = self

        class Transport(httpx.MockTransport):
            async def aclose(self) -> None:
                owner.closed += 1

        return Transport(self._answer)

    def _answer(self, _request: httpx.Request) -> httpx.Response:
        outcome = self.outcomes.popleft() if self.outcomes else httpx.Response(200)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome


def client_on(transports: Transports) -> HttpClient:
    return HttpClient(OPTIONS, Tls(OPTIONS), transports.open)


@pytest.mark.parametrize(
    ("error", "renewed"),
    [
        (httpx.ReadTimeout("t"), True),
        (httpx.RemoteProtocolError("closed"), True),
        (httpx.WriteError("reset"), True),
        (httpx.ConnectError("refused"), False),
        (httpx.ConnectTimeout("t"), False),
    ],
)
async def test_a_fault_before_any_answer_renews_the_connections(
    error: Exception, renewed: bool
) -> None:
    transports = Transports()
    client = client_on(transports)
    under_way = await client.send("x", "GET", "http://h/", {})
    transports.outcomes.append(error)
    with pytest.raises(TransportError):
        await client.send("x", "GET", "http://h/", {})
    answer = await client.send("x", "GET", "http://h/", {})
    assert (transports.opened, transports.closed) == (1 + renewed, 0)
    await under_way.aclose()  # the last user of the old ones
    assert transports.closed == renewed
    await answer.aclose()
    await answer.aclose()
    await client.aclose()
    assert transports.opened == transports.closed


async def test_a_bug_is_not_told_as_a_fault_of_the_network() -> None:
    transports = Transports()
    transports.outcomes.append(ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        await client_on(transports).send("x", "GET", "http://h/", {})
    transports.outcomes.append(ExceptionGroup("g", [OSError("reset"), ZeroDivisionError()]))
    with pytest.raises(ExceptionGroup):
        await client_on(transports).send("x", "GET", "http://h/", {})


async def test_a_group_of_network_errors_is_one_fault() -> None:
    transports = Transports()
    transports.outcomes.append(
        ExceptionGroup("g", [OSError(113, "No route to host"), OSError("x")])
    )
    with pytest.raises(TransportError, match="x: GET http://h/: ExceptionGroup: No route to host"):
        await client_on(transports).send("x", "GET", "http://h/", {})


@pytest.mark.parametrize("url", ["http://[", "http://h:99999/", "http://\udcff/", "nonsense"])
async def test_a_url_that_cannot_be_used_is_a_fault(url: str) -> None:
    client = HttpClient(OPTIONS, Tls(OPTIONS))
    with pytest.raises(TransportError):
        await client.send("x", "GET", url, {})
    await client.aclose()


async def test_a_body_that_is_too_long_for_memory_is_refused() -> None:
    transports = Transports()
    transports.outcomes.extend([httpx.Response(200, content=b"x" * 11) for _ in range(2)])
    client = client_on(transports)
    answer = await client.send("x", "GET", "http://h/", {})
    with pytest.raises(BackendError, match="above 10 bytes"):
        await answer.content(10)
    answer = await client.send("x", "GET", "http://h/", {})
    assert await answer.content(11) == b"x" * 11
