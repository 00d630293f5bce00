"""What the registry backend makes of a server that misbehaves: right bytes or one clear error, in time.

Each fault is queued once or often enough to outlast the retries; then the next read must succeed.
"""

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from nydusd.config.model import HttpOptions, RegistryConfig, Secret
from nydusd.errors import AuthError, BackendError, ClosedError, ThrottledError
from nydusd.storage.backend.attempts import PLACES
from nydusd.storage.backend.base import Priority
from nydusd.storage.backend.registry import RegistryBackend
from nydusd.units import KIB, MIB
from tests.support.http_double import (
    BodyOff,
    Drip,
    Fault,
    FreezeAfter,
    Garbage,
    HttpDouble,
    IgnoreRange,
    ResetAfter,
    Seen,
    Status,
    WrongRange,
)

BLOB_ID = "5" * 64
DATA = random.Random(5).randbytes(256 * KIB)
ATTEMPTS = 4  # of a reader: 1 + 3 (spec backends §5)


@asynccontextmanager
async def served(
    nursery: trio.Nursery, double: HttpDouble, **options: object
) -> AsyncIterator[RegistryBackend]:
    """A backend on the double. Sockets are real, so is the clock: time-outs are those of HttpOptions."""
    host = await nursery.start(double.serve)
    http = HttpOptions(timeout_s=1, connect_timeout_s=1)
    config = RegistryConfig(host, "demo", "http", http=http, **options)  # type: ignore[arg-type]
    backend = RegistryBackend(config, chance=random.Random(1))
    try:
        yield backend
    finally:
        await backend.aclose()


def double_with(*faults: Fault) -> HttpDouble:
    double = HttpDouble({BLOB_ID: DATA})
    double.faults.extend(faults)
    return double


HEALS = [
    Status(500),
    Status(502, b"<html><title>bad gateway</title></html>"),
    Status(503),
    Status(503, headers={"Retry-After": "0"}),
    Status(429, headers={"Retry-After": "0"}),
    Status(408),
    ResetAfter(None),
    ResetAfter(0),
    ResetAfter(70),
    FreezeAfter(None),
    FreezeAfter(70),
    BodyOff(-1),
    BodyOff(-1, honest=True),
    BodyOff(-1, chunked=True),
    BodyOff(+1, honest=True),
    BodyOff(+1, chunked=True),
    WrongRange(None),
    WrongRange("bytes 1-100/262144"),
    WrongRange("bytes 0-98/262144"),
    WrongRange("bytes 0-99"),
    WrongRange("multipart"),
    Garbage(b"\0\1\2 not http\r\n\r\n"),
    Garbage(b""),
    Garbage(b"HTTP/1.1 206 ok\r\nContent-Length: 1e2\r\n\r\n"),
    Garbage(b"HTTP/1.1 200 ok\r\nX: " + b"a" * 200_000),
]


@pytest.mark.parametrize("fault", HEALS, ids=repr)
async def test_a_passing_fault_is_retried(fault: Fault, nursery: trio.Nursery) -> None:
    double = double_with(fault)
    async with served(nursery, double) as backend:
        assert await backend.read(BLOB_ID, 0, 100) == DATA[:100]
        assert (backend.stats.read_count, backend.stats.read_errors) == (2, 1)
        assert backend.stats.read_bytes == 200


@pytest.mark.parametrize(
    "fault", [Status(500), ResetAfter(70), BodyOff(-1), BodyOff(+1, chunked=True)], ids=repr
)
async def test_a_lasting_fault_is_one_clear_error_and_does_not_stick(
    fault: Fault, nursery: trio.Nursery
) -> None:
    double = double_with(*[fault] * ATTEMPTS)
    async with served(nursery, double) as backend:
        with pytest.raises(BackendError) as caught:
            await backend.read(BLOB_ID, 0, 100)
        text = str(caught.value)
        assert "\n" not in text
        assert f"blob {BLOB_ID} bytes 0-99: GET http://127.0.0.1" in text
        assert caught.value.temporary
        assert await backend.read(BLOB_ID, 0, 100) == DATA[:100]


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (Status(400), BackendError),
        (Status(404, b'{"errors":[{"code":"NAME_UNKNOWN","message":"no\\nsuch"}]}'), BackendError),
        (Status(410), BackendError),
        (Status(416), BackendError),
        (Status(403, b'{"errors":[{"code":"DENIED","message":"denied"}]}'), AuthError),
        (Status(401), AuthError),
        (Status(307), BackendError),
        (Status(307, headers={"Location": "ftp://127.0.0.1/x"}), BackendError),
        (Status(307, headers={"Location": "http://[::1"}), BackendError),
        (Status(204), BackendError),
        (IgnoreRange(chunked=True), BackendError),
        (BodyOff(0), None),
    ],
    ids=repr,
)
async def test_what_cannot_heal_is_not_retried(
    fault: Fault, kind: type[BackendError] | None, nursery: trio.Nursery
) -> None:
    double = double_with(fault)
    async with served(nursery, double) as backend:
        if kind is None:
            assert await backend.read(BLOB_ID, 0, 100) == DATA[:100]
        else:
            with pytest.raises(kind) as caught:
                await backend.read(BLOB_ID, 0, 100)
            assert not caught.value.temporary
            assert "\n" not in str(caught.value)
            assert len(double.seen) == 1
        assert await backend.read(BLOB_ID, 0, 100) == DATA[:100]


async def test_a_range_that_is_ignored_is_cut_out_of_the_whole(nursery: trio.Nursery) -> None:
    double = double_with(*[IgnoreRange()] * 3)
    async with served(nursery, double) as backend:
        assert await backend.read(BLOB_ID, 100, 5000) == DATA[100:5100]
        assert await backend.read(BLOB_ID, 0, len(DATA)) == DATA
        assert await backend.read(BLOB_ID, len(DATA) - 3, 3) == DATA[-3:]
        assert backend.stats.read_errors == 0
        assert double.connections == 2  # the first was closed instead of drained


async def test_a_range_deep_in_a_blob_is_not_bought_with_gigabytes(nursery: trio.Nursery) -> None:
    double = HttpDouble({BLOB_ID: bytes(6 * MIB)})
    double.faults.append(IgnoreRange())
    async with served(nursery, double) as backend:
        with pytest.raises(BackendError, match="range was ignored"):
            await backend.read(BLOB_ID, 5 * MIB, 100)
        assert len(double.seen) == 1


async def test_a_pause_that_the_registry_names_is_kept_and_then_told(
    nursery: trio.Nursery,
) -> None:
    double = double_with(*[Status(429, headers={"Retry-After": "1"})] * 2)
    async with served(nursery, double) as backend:
        started_s = trio.current_time()
        with pytest.raises(ThrottledError, match="429") as caught:
            await backend.read(BLOB_ID, 0, 100, Priority.PREFETCH)
        assert caught.value.retry_after_s == 1
        assert trio.current_time() - started_s >= 1
        assert len(double.seen) == 2


async def test_a_slow_drip_ends_when_the_call_s_time_is_up(
    nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nydusd.storage.backend.retry.CALL_LIMIT_S", 1.0)
    double = double_with(*[Drip(0.05)] * 10)
    async with served(nursery, double) as backend:
        with pytest.raises(BackendError, match="within 1 s") as caught:
            await backend.read(BLOB_ID, 0, 100)
        assert caught.value.temporary
        double.faults.clear()
        assert await backend.read(BLOB_ID, 0, 100) == DATA[:100]


async def test_a_server_slower_than_any_limit_for_one_wait_is_not_silent(
    nursery: trio.Nursery,
) -> None:
    double = double_with(Drip(0.4))
    async with served(nursery, double) as backend:  # limit 1 s
        assert await backend.read(BLOB_ID, 0, 6) == DATA[:6]
        assert backend.stats.read_errors == 0


async def test_idle_connections_that_died_silently_cost_one_attempt_together(
    nursery: trio.Nursery,
) -> None:
    double = double_with()
    async with served(nursery, double) as backend:
        async with trio.open_nursery() as readers:
            for _ in range(6):
                readers.start_soon(backend.read, BLOB_ID, 0, 100)
        kept = double.connections
        double.frozen.update(range(1, kept + 1))
        assert await backend.read(BLOB_ID, 0, 100) == DATA[:100]
        assert backend.stats.read_errors == 1
        assert double.connections == kept + 1


async def test_a_cancelled_read_leaves_a_backend_that_works(nursery: trio.Nursery) -> None:
    double = double_with(FreezeAfter(50))
    async with served(nursery, double) as backend:
        async with trio.open_nursery() as readers:
            readers.start_soon(backend.read, BLOB_ID, 0, 100)
            await double.until_seen(1)
            readers.cancel_scope.cancel()
        assert backend.stats.read_errors == 0
        assert await backend.read(BLOB_ID, 0, 100) == DATA[:100]


async def test_closing_ends_reads_under_way(nursery: trio.Nursery) -> None:
    double = double_with(FreezeAfter(50), FreezeAfter(None))
    errors: list[type[BaseException]] = []

    async def read(backend: RegistryBackend) -> None:
        try:
            await backend.read(BLOB_ID, 0, 100)
        except (ClosedError, BackendError) as exc:
            errors.append(type(exc))

    async with served(nursery, double) as backend, trio.open_nursery() as readers:
        readers.start_soon(read, backend)
        readers.start_soon(read, backend)
        await double.until_seen(2)
        await backend.aclose()
    assert errors == [ClosedError, ClosedError]
    with pytest.raises(ClosedError):
        await backend.read(BLOB_ID, 0, 100)


async def test_many_readers_of_a_failing_registry_do_not_storm_it(nursery: trio.Nursery) -> None:
    double = HttpDouble({BLOB_ID: DATA}, answer=lambda _seen: Status(503))
    async with served(nursery, double) as backend:

        async def read() -> None:
            with pytest.raises(BackendError):
                await backend.read(BLOB_ID, 0, 100)

        async with trio.open_nursery() as readers:
            for _ in range(60):
                readers.start_soon(read)
    assert 60 <= len(double.seen) < 60 * ATTEMPTS * 0.75


# Redirects


class Storage:
    """A storage host that takes one signature, and a registry that sends there."""

    def __init__(self) -> None:
        self.signature = "good"
        self.redirects = 0

    def answer(self, seen: Seen) -> Status | None:
        path, _, query = seen.target.partition("?")
        if not path.startswith("/storage/"):
            self.redirects += 1
            return Status(
                307,
                b"see there",
                {"Location": f"/storage/{BLOB_ID}?sig={self.signature}"},
            )
        if "authorization" in seen.headers:
            return Status(400, b"<Error><Code>InvalidArgument</Code></Error>")
        if query != f"sig={self.signature}":
            return Status(
                403, b"<Error><Code>AccessDenied</Code><Message>expired</Message></Error>"
            )
        return None


async def test_a_redirect_is_remembered_and_renewed_when_it_ends(nursery: trio.Nursery) -> None:
    storage = Storage()
    double = HttpDouble({BLOB_ID: DATA}, answer=storage.answer)
    async with served(nursery, double, registry_token=Secret("abcdef")) as backend:
        for _ in range(3):
            assert await backend.read(BLOB_ID, 7, 100) == DATA[7:107]
        assert storage.redirects == 1
        assert await backend.size(BLOB_ID) == len(DATA)  # HEAD goes its own way
        storage.redirects = 0
        storage.signature = "renewed"
        assert await backend.read(BLOB_ID, 7, 100) == DATA[7:107]
        assert storage.redirects == 1
        assert backend.stats.read_errors == 0
    told = [("authorization" in s.headers, s.target.startswith("/v2/")) for s in double.seen]
    assert all(authorized == registry for authorized, registry in told)


async def test_a_storage_host_that_fails_sends_the_next_attempt_to_the_registry(
    nursery: trio.Nursery,
) -> None:
    storage = Storage()
    double = HttpDouble({BLOB_ID: DATA}, answer=storage.answer)
    async with served(nursery, double) as backend:
        assert await backend.read(BLOB_ID, 0, 100) == DATA[:100]
        double.faults.append(Status(500))
        assert await backend.read(BLOB_ID, 0, 100) == DATA[:100]
        assert storage.redirects == 2
        double.faults.append(ResetAfter(20))
        assert await backend.read(BLOB_ID, 0, 100) == DATA[:100]
        assert storage.redirects == 3


async def test_a_storage_host_that_refuses_at_once_is_an_auth_error(nursery: trio.Nursery) -> None:
    storage = Storage()
    double = HttpDouble({BLOB_ID: DATA}, answer=storage.answer)
    double.faults.append(Status(403, b"<Error><Code>AccessDenied</Code></Error>"))
    async with served(nursery, double) as backend:
        with pytest.raises(AuthError, match="403 AccessDenied") as caught:
            await backend.read(BLOB_ID, 0, 100)
        assert "sig=" not in str(caught.value)
        assert await backend.read(BLOB_ID, 0, 100) == DATA[:100]


async def test_redirects_in_a_circle_end(nursery: trio.Nursery) -> None:
    double = HttpDouble(
        {BLOB_ID: DATA}, answer=lambda seen: Status(302, headers={"Location": seen.target})
    )
    async with served(nursery, double) as backend:
        with pytest.raises(BackendError, match="redirected more than"):
            await backend.read(BLOB_ID, 0, 100)
    assert len(double.seen) == 6


async def test_readers_that_leave_amid_faults_lose_no_place_and_no_connection(
    nursery: trio.Nursery,
) -> None:
    chance = random.Random(11)
    double = double_with()
    faults = [ResetAfter(None), ResetAfter(10), FreezeAfter(5), BodyOff(-1), IgnoreRange()]

    async def leave_or_read() -> None:
        length = chance.choice([1, 4096, len(DATA)])
        with trio.move_on_after(chance.random() * 0.02):
            try:
                body = await backend.read(BLOB_ID, len(DATA) - length, length)
            except BackendError:
                return
            assert body == DATA[-length:]

    async with served(nursery, double) as backend:
        for _ in range(15):
            double.faults.extend(chance.choices(faults, k=5))
            async with trio.open_nursery() as readers:
                for _ in range(20):
                    readers.start_soon(leave_or_read)
        double.faults.clear()
        async with trio.open_nursery() as readers:
            for _ in range(PLACES):
                readers.start_soon(backend.read, BLOB_ID, 0, len(DATA))
    await double.until_quiet()
