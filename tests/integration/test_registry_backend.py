"""The registry backend against Debian's docker-registry: authentication, TLS, restarts, a bad link."""

import hashlib
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from nydusd.config.model import HttpOptions, RegistryConfig, Secret
from nydusd.errors import AuthError, BackendError
from nydusd.storage.backend.base import Priority
from nydusd.storage.backend.open import open_backend
from nydusd.storage.backend.registry import RegistryBackend
from nydusd.units import KIB, MIB
from tests.support.certificates import make_authority, make_server
from tests.support.registry import BASIC, Registry, registry
from tests.support.slow_link import Link
from tests.support.token_server import token_server

REPO = "demo/image"
DATA = random.Random(3).randbytes(3 * MIB + 17)


@asynccontextmanager
async def backend_of(
    server: Registry, config: RegistryConfig | None = None, **changes: object
) -> AsyncIterator[RegistryBackend]:
    config = config or RegistryConfig(server.host, REPO, server.scheme)
    backend = open_backend(config._replace(**changes), environ={})
    assert isinstance(backend, RegistryBackend)
    try:
        yield backend
    finally:
        await backend.aclose()


async def read_all_over(backend: RegistryBackend, blob_id: str) -> None:
    """Read ranges at the start, the end and in between, 8 at a time, and compare."""
    assert await backend.size(blob_id) == len(DATA)
    spots = [(0, 1), (len(DATA) - 17, 17), (5, MIB), (MIB - 1, 128 * KIB), (0, len(DATA))] * 3

    async def check(offset: int, length: int) -> None:
        assert await backend.read(blob_id, offset, length) == DATA[offset : offset + length]

    async with trio.open_nursery() as nursery:
        for spot in spots:
            nursery.start_soon(check, *spot)


async def test_anonymous_registry_serves_ranges(tmp_path: Path) -> None:
    with registry(tmp_path) as server:
        blob_id = server.push(REPO, DATA)
        assert blob_id == hashlib.sha256(DATA).hexdigest()
        async with backend_of(server) as backend:
            await read_all_over(backend, blob_id)
            assert backend.stats.read_errors == 0
            with pytest.raises(BackendError, match="404 BLOB_UNKNOWN"):
                await backend.read("0" * 64, 0, 1)
            with pytest.raises(BackendError, match=f"has only {len(DATA)} bytes"):
                await backend.read(blob_id, len(DATA) - 1, 2)
            with pytest.raises(BackendError, match="416"):
                await backend.read(blob_id, len(DATA), 2)


async def test_basic_registry_wants_the_configured_credentials(tmp_path: Path) -> None:
    with registry(tmp_path, auth="htpasswd") as server:
        blob_id = server.push(REPO, DATA)
        async with backend_of(server, auth=Secret(BASIC)) as backend:
            await read_all_over(backend, blob_id)
        async with backend_of(server) as backend:
            with pytest.raises(AuthError, match="401"):
                await backend.read(blob_id, 0, 1)
            backend.set_credentials(Secret(BASIC))
            assert await backend.read(blob_id, 0, 9) == DATA[:9]
            backend.set_credentials(None)
            with pytest.raises(AuthError, match="401"):
                await backend.read(blob_id, 0, 1)


async def test_token_registry_gives_one_token_for_many_readers(tmp_path: Path) -> None:
    with (
        token_server(tmp_path, users={"reader": "pass:word"}) as tokens,
        registry(tmp_path, auth=tokens) as server,
    ):
        blob_id = server.push(REPO, DATA)
        async with backend_of(server, auth=Secret(BASIC)) as backend:
            await read_all_over(backend, blob_id)
            assert [request.method for request in tokens.requests] == ["POST"]
            assert tokens.requests[0].fields == {
                "service": "test-registry",
                "scope": f"repository:{REPO}:pull",
                "client_id": "nydus-registry-client",
            }


async def test_token_server_without_post_is_asked_by_get_from_then_on(tmp_path: Path) -> None:
    with (
        token_server(tmp_path, takes_post=False, told_life_s=600) as tokens,
        registry(tmp_path, auth=tokens) as server,
    ):
        blob_id = server.push(REPO, DATA)
        async with backend_of(server) as backend:
            tokens.life_s = -600  # a token that has ended makes the next read ask for another
            with pytest.raises(AuthError, match="401"):
                await backend.read(blob_id, 0, 9)
            tokens.life_s = 600
            assert await backend.read(blob_id, 0, 9) == DATA[:9]
        assert [request.method for request in tokens.requests] == ["POST", "GET", "GET"]


async def test_outdated_token_is_replaced_and_the_fault_does_not_stick(tmp_path: Path) -> None:
    with token_server(tmp_path) as tokens, registry(tmp_path, auth=tokens) as server:
        blob_id = server.push(REPO, DATA)
        tokens.life_s = -600
        outdated = Secret(tokens.token(f"repository:{REPO}:pull"))
        async with backend_of(server, registry_token=outdated) as backend:
            tokens.told_life_s = 600  # the server lies: its token has ended already
            with pytest.raises(AuthError, match="401"):
                await backend.read(blob_id, 0, 9)
            tokens.life_s = 600
            assert await backend.read(blob_id, 0, 9) == DATA[:9]


async def test_valid_registry_token_needs_no_token_server(tmp_path: Path) -> None:
    with token_server(tmp_path) as tokens, registry(tmp_path, auth=tokens) as server:
        blob_id = server.push(REPO, DATA)
        token = Secret(tokens.token(f"repository:{REPO}:pull"))
        async with backend_of(server, registry_token=token) as backend:
            assert await backend.read(blob_id, 0, 9) == DATA[:9]
        assert tokens.requests == []


async def test_tls_needs_the_own_authority_or_skip_verify(tmp_path: Path) -> None:
    authority = make_authority(tmp_path)
    with registry(tmp_path, tls=make_server(tmp_path, authority)) as server:
        blob_id = server.push(REPO, DATA)
        own = HttpOptions(ca_cert_files=(str(authority.certificate),))
        async with backend_of(server, http=own) as backend:
            await read_all_over(backend, blob_id)
        async with backend_of(server, http=HttpOptions(skip_verify=True)) as backend:
            assert await backend.read(blob_id, 0, 9) == DATA[:9]
        async with backend_of(server) as backend:
            with pytest.raises(BackendError, match="certificate verify failed") as caught:
                await backend.read(blob_id, 0, 9)
            assert not caught.value.temporary
            assert backend.stats.read_count == 1  # trying again cannot help


async def test_https_falls_back_to_http_only_with_skip_verify(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with registry(tmp_path) as server:
        blob_id = server.push(REPO, DATA)
        async with backend_of(
            server, scheme="https", http=HttpOptions(skip_verify=True)
        ) as backend:
            assert await backend.read(blob_id, 0, 9) == DATA[:9]
            assert await backend.read(blob_id, 9, 9) == DATA[9:18]
        assert [r.levelname for r in caplog.records if "does not speak TLS" in r.message] == [
            "WARNING"
        ]
        async with backend_of(server, scheme="https") as backend:
            with pytest.raises(BackendError):
                await backend.read(blob_id, 0, 9)


async def test_reads_go_on_after_the_registry_restarted(tmp_path: Path) -> None:
    with registry(tmp_path) as server:
        blob_id = server.push(REPO, DATA)
        async with backend_of(server) as backend:
            await read_all_over(backend, blob_id)  # several connections are now kept alive
            server.stop()
            with pytest.raises(BackendError) as caught:
                await backend.read(blob_id, 0, 9)
            assert caught.value.temporary
            assert backend.stats.read_errors == 4  # one read: 1 + 3 attempts
            server.start()
            await read_all_over(backend, blob_id)
            server.stop()
            server.start()
            before = backend.stats.read_errors
            await read_all_over(backend, blob_id)
            assert backend.stats.read_errors == before


async def test_a_cut_link_ends_in_an_error_and_a_healed_one_in_bytes(
    tmp_path: Path, nursery: trio.Nursery
) -> None:
    with registry(tmp_path) as server:
        blob_id = server.push(REPO, DATA)
        link = Link(rtt_ms=2)
        host, port = await nursery.start(link.serve, ("127.0.0.1", server.port))
        config = RegistryConfig(f"{host}:{port}", REPO, "http", http=HttpOptions(timeout_s=1))
        async with backend_of(server, config) as backend:
            await read_all_over(backend, blob_id)
            link.cut()
            with pytest.raises(BackendError):
                await backend.read(blob_id, 0, 9)
            link.heal()
            await read_all_over(backend, blob_id)
            link.freeze()
            with pytest.raises(BackendError, match="Timeout"):
                await backend.read(blob_id, 0, 9, Priority.PREFETCH)  # fewer attempts
            link.thaw()
            await read_all_over(backend, blob_id)
            link.reset()
            await read_all_over(backend, blob_id)
