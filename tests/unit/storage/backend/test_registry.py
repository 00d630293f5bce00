"""The registry backend's conversation, on a transport in memory and a clock that jumps."""

import base64
import json
import random
import subprocess
import sys
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

import httpx
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from nydusd import __version__
from nydusd.config.model import (
    HttpOptions,
    LocalFsConfig,
    OtherBackendConfig,
    ProxyConfig,
    RegistryConfig,
    Secret,
)
from nydusd.errors import AuthError, BackendError, ConfigError, UnsupportedError
from nydusd.storage.backend import http_client  # noqa: F401 - else the first read imports it in a thread
from nydusd.storage.backend.base import Priority, TakesCredentials
from nydusd.storage.backend.open import open_backend
from nydusd.storage.backend.registry import REMEMBERED_MAX, RegistryBackend

BLOB_ID = "ab" * 32
DATA = bytes(range(256)) * 64
BASIC = base64.b64encode(b"user:hunter22").decode()
# Without verification no roots are loaded in a thread, whose time a clock that jumps does not see.
BASE = RegistryConfig("reg.example", "team/app", http=HttpOptions(skip_verify=True))
REALM = "https://auth.example/token"


@dataclass
class Fake:
    """A registry with bearer tokens, its token server and a storage host, as far as `wants` says.

    wants: "" anonymous, "basic", "bearer".
    """

    wants: str = ""
    redirect: str = ""  # where blobs lie, if elsewhere
    tokens: set[str] = field(default_factory=set)
    ttl_s: float = 600.0
    token_faults: deque[httpx.Response] = field(default_factory=deque)
    faults: deque[httpx.Response | Exception] = field(default_factory=deque)
    requests: list[httpx.Request] = field(default_factory=list)
    token_gate: trio.Event | None = None
    challenge: str = f'Bearer realm="{REALM}",service="reg",scope="repository:team/app:pull"'

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        await trio.lowlevel.checkpoint()
        if request.url.path == "/token":
            return await self._token()
        if self.faults:
            fault = self.faults.popleft()
            if isinstance(fault, Exception):
                raise fault
            return fault
        if request.url.host == BASE.host:
            if not self._admits(request.headers.get("authorization", "")):
                scheme = 'Basic realm="r"' if self.wants == "basic" else self.challenge
                return httpx.Response(401, headers={"www-authenticate": scheme})
            if self.redirect:
                return httpx.Response(307, headers={"location": self.redirect})
        if request.method == "HEAD":
            return httpx.Response(200, headers={"content-length": str(len(DATA))})
        first, last = map(int, request.headers["range"].removeprefix("bytes=").split("-"))
        return httpx.Response(
            206,
            headers={"content-range": f"bytes {first}-{last}/{len(DATA)}"},
            content=DATA[first : last + 1],
        )

    def _admits(self, authorization: str) -> bool:
        scheme, _, credential = authorization.partition(" ")
        if self.wants == "basic":
            return (scheme, credential) == ("Basic", BASIC)
        return not self.wants or (scheme == "Bearer" and credential in self.tokens)

    async def _token(self) -> httpx.Response:
        if self.token_gate is not None:
            await self.token_gate.wait()
        if self.token_faults:
            return self.token_faults.popleft()
        token = f"token-{len(self.tokens)}"
        self.tokens.add(token)
        return httpx.Response(200, json={"token": token, "expires_in": self.ttl_s})

    def asked(self, path: str) -> list[httpx.Request]:
        return [request for request in self.requests if request.url.path == path]

    def hosts(self) -> list[str]:
        return [request.url.host for request in self.requests]


def backend_on(
    fake: Callable[[httpx.Request], Awaitable[httpx.Response]],
    *,
    environ: Mapping[str, str] | None = None,
    **changes: object,
) -> RegistryBackend:
    return RegistryBackend(
        BASE._replace(**changes),
        environ=environ,
        chance=random.Random(1),
        open_transport=lambda _tls: httpx.MockTransport(fake),
    )


async def read(backend: RegistryBackend, offset: int = 0, length: int = 100) -> None:
    assert await backend.read(BLOB_ID, offset, length) == DATA[offset : offset + length]


async def test_an_anonymous_read_is_one_request_with_our_headers() -> None:
    fake = Fake()
    backend = backend_on(fake)
    await read(backend, 7, 9)
    (request,) = fake.requests
    assert str(request.url) == f"https://reg.example/v2/team/app/blobs/sha256:{BLOB_ID}"
    assert dict(request.headers) == {
        "host": "reg.example",
        "range": "bytes=7-15",
        "user-agent": f"nydusd/{__version__}",
        "accept": "*/*",
        "accept-encoding": "identity",
    }
    await backend.aclose()


async def test_an_empty_read_asks_nobody() -> None:
    fake = Fake()
    assert await backend_on(fake).read(BLOB_ID, 5, 0) == b""
    assert fake.requests == []


@pytest.mark.parametrize("blob_id", ["", "../x", "AB" * 32, "ab" * 31, "ab" * 32 + "?x", "g" * 64])
async def test_an_id_that_is_no_digest_never_becomes_a_url(blob_id: str) -> None:
    fake = Fake()
    with pytest.raises(BackendError, match="no sha256 digest"):
        await backend_on(fake).read(blob_id, 0, 1)
    with pytest.raises(BackendError, match="no sha256 digest"):
        await backend_on(fake).size(blob_id)
    assert fake.requests == []


# Credentials


async def test_basic_credentials_are_sent_only_after_a_challenge_and_then_kept() -> None:
    fake = Fake(wants="basic")
    backend = backend_on(fake, auth=Secret(BASIC))
    await read(backend)
    await read(backend)
    sent = [request.headers.get("authorization") for request in fake.requests]
    assert sent == [None, f"Basic {BASIC}", f"Basic {BASIC}"]


async def test_a_basic_challenge_without_credentials_is_not_answered() -> None:
    fake = Fake(wants="basic")
    with pytest.raises(AuthError, match="401"):
        await read(backend_on(fake))
    assert len(fake.requests) == 1


async def test_many_first_readers_fetch_one_token(nursery: trio.Nursery) -> None:
    fake = Fake(wants="bearer", token_gate=trio.Event())
    backend = backend_on(fake, auth=Secret(BASIC))
    for _ in range(10):
        nursery.start_soon(read, backend)
    await wait_all_tasks_blocked()
    assert fake.token_gate is not None
    fake.token_gate.set()
    await wait_all_tasks_blocked()
    assert backend.stats.read_count == 10
    assert backend.stats.read_errors == 0
    assert len(fake.asked("/token")) == 1
    assert fake.asked("/token")[0].headers["authorization"] == f"Basic {BASIC}"


async def test_a_token_is_renewed_before_it_ends_without_a_refusal(
    autojump_clock: MockClock,
) -> None:
    fake = Fake(wants="bearer")
    backend = backend_on(fake)
    await read(backend)
    await trio.sleep(599)
    fake.tokens.clear()  # the registry takes only what comes now
    await read(backend)
    await read(backend)
    assert len(fake.asked("/token")) == 2
    assert backend.stats.read_errors == 0


async def test_a_renewal_that_fails_leaves_the_present_token_in_use(
    autojump_clock: MockClock,
) -> None:
    fake = Fake(wants="bearer")
    backend = backend_on(fake)
    await read(backend)
    await trio.sleep(590)
    fake.token_faults.extend([httpx.Response(503)] * 2)  # POST and GET
    await read(backend)
    await read(backend)
    assert len(fake.asked("/token")) == 3
    await trio.sleep(20)  # past its end
    await read(backend)
    assert backend.stats.read_errors == 0


async def test_a_token_refused_early_is_dropped_asked_without_and_replaced() -> None:
    fake = Fake(wants="bearer")
    backend = backend_on(fake)
    await read(backend)
    fake.tokens = {"another"}
    fake.requests.clear()
    await read(backend)
    paths = [(r.url.path == "/token", "authorization" in r.headers) for r in fake.requests]
    assert paths == [(False, True), (False, False), (True, False), (False, True)]


async def test_a_registry_token_is_used_first_and_replaced_when_refused() -> None:
    fake = Fake(wants="bearer", tokens={"given"})
    backend = backend_on(fake, registry_token=Secret("given"))
    await read(backend)
    assert len(fake.requests) == 1
    fake.tokens.clear()
    await read(backend)
    assert len(fake.asked("/token")) == 1


async def test_a_token_server_that_fails_once_costs_a_retry(autojump_clock: MockClock) -> None:
    fake = Fake(wants="bearer", token_faults=deque([httpx.Response(500), httpx.Response(502)]))
    backend = backend_on(fake)
    await read(backend)
    assert backend.stats.read_errors == 1


async def test_refused_credentials_are_an_auth_error_that_does_not_stick() -> None:
    refusal = httpx.Response(401, json={"details": "incorrect username or password"})
    fake = Fake(wants="bearer", token_faults=deque([refusal, refusal]))
    backend = backend_on(fake, auth=Secret(BASIC))
    with pytest.raises(AuthError, match="no token: 401 incorrect username or password") as caught:
        await read(backend)
    assert "https://auth.example/token" in str(caught.value)
    await read(backend)


async def test_new_credentials_are_used_from_the_next_request_on() -> None:
    fake = Fake(wants="bearer")
    backend = backend_on(fake, auth=Secret(BASIC))
    await read(backend)
    other = base64.b64encode(b"other:pw").decode()
    backend.set_credentials(Secret(other))
    fake.requests.clear()
    await read(backend)
    assert [request.url.path == "/token" for request in fake.requests] == [True, False]
    assert fake.requests[0].headers["authorization"] == f"Basic {other}"
    with pytest.raises(ConfigError):
        backend.set_credentials(Secret("no base64"))
    fake.requests.clear()
    await read(backend)
    assert len(fake.requests) == 1  # as before: nothing was changed


async def test_a_token_on_its_way_for_old_credentials_is_not_used(nursery: trio.Nursery) -> None:
    fake = Fake(wants="bearer", token_gate=trio.Event())
    backend = backend_on(fake, auth=Secret(BASIC))
    nursery.start_soon(read, backend)
    await wait_all_tasks_blocked()
    backend.set_credentials(Secret(base64.b64encode(b"other:pw").decode()))
    assert fake.token_gate is not None
    fake.token_gate.set()
    await wait_all_tasks_blocked()
    assert len(fake.asked("/token")) == 2
    assert fake.requests[-1].headers["authorization"] == "Bearer token-1"


@pytest.mark.parametrize(
    ("realm", "skip_verify", "says"),
    [
        (
            "http://auth.example/token",
            False,
            "are not sent to its token server http://auth.example",
        ),
        ("ftp://auth.example/token", True, "no http URL"),
        ("https://[bad/token", True, "no http URL"),
    ],
)
async def test_credentials_go_only_where_they_are_safe(
    realm: str, skip_verify: bool, says: str
) -> None:
    fake = Fake(wants="bearer", challenge=f'Bearer realm="{realm}"')
    http = HttpOptions(skip_verify=skip_verify)
    with pytest.raises(AuthError, match=says):
        await read(backend_on(fake, auth=Secret(BASIC), http=http))
    assert fake.asked("/token") == []


async def test_a_relative_realm_is_the_registry_s_own() -> None:
    fake = Fake(wants="bearer", challenge='Bearer realm="/token"')
    await read(backend_on(fake))
    assert fake.asked("/token")[0].url.host == "reg.example"


async def test_no_secret_reaches_an_error_even_if_the_server_repeats_it(
    autojump_clock: MockClock,
) -> None:
    async def parrot(request: httpx.Request) -> httpx.Response:
        said = (
            f"you sent {request.headers.get('authorization')} hunter22 to {request.url}?sig=s3cr3t"
        )
        return httpx.Response(500, text=said)

    backend = backend_on(parrot, auth=Secret(BASIC), registry_token=Secret("tok-secret"))
    with pytest.raises(BackendError, match="you sent Bearer \\*\\*\\* \\*\\*\\*") as caught:
        await read(backend)
    for secret in (BASIC, "tok-secret", "hunter22", "s3cr3t"):
        assert secret not in str(caught.value)
        assert secret not in repr(backend.__dict__)


# Redirects


async def test_a_storage_host_never_sees_credentials_and_is_asked_directly_next() -> None:
    fake = Fake(wants="bearer", redirect="https://store.example/b?sig=1")
    backend = backend_on(fake, auth=Secret(BASIC))
    await read(backend)
    fake.requests.clear()
    await read(backend, 5, 10)
    (request,) = fake.requests
    assert str(request.url) == "https://store.example/b?sig=1"
    assert request.headers["range"] == "bytes=5-14"
    assert "authorization" not in request.headers


@pytest.mark.parametrize(
    ("location", "changes", "target"),
    [
        ("/elsewhere?x=1", {}, "https://reg.example/elsewhere?x=1"),
        ("//store.example/b", {}, "https://store.example/b"),
        ("https://u:p@store.example/b#f", {}, "https://store.example/b"),
        ("https://store.example/b", {"blob_url_scheme": "http"}, "http://store.example/b"),
        (
            "https://store.example:8443/b?x",
            {"blob_redirected_host": "mirror.example"},
            "https://mirror.example:8443/b?x",
        ),
        (
            "https://store.example:8443/b",
            {"blob_redirected_host": "mirror.example:99", "blob_url_scheme": "http"},
            "http://mirror.example:99/b",
        ),
        ("http://[::1]:80/b", {"blob_redirected_host": "[::2]"}, "http://[::2]:80/b"),
    ],
)
async def test_where_a_redirect_leads(location: str, changes: dict[str, str], target: str) -> None:
    seen: list[str] = []

    async def answer(request: httpx.Request) -> httpx.Response:
        seen.append(str(request.url))
        if len(seen) == 1:
            return httpx.Response(307, headers={"location": location})
        return httpx.Response(
            206, headers={"content-range": f"bytes 0-99/{len(DATA)}"}, content=DATA[:100]
        )

    await read(backend_on(answer, **changes))
    assert httpx.URL(seen[1]) == httpx.URL(target)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 307])
async def test_a_remembered_url_that_ended_costs_no_failed_attempt(status: int) -> None:
    fake = Fake(redirect="https://store.example/b?sig=1")
    backend = backend_on(fake)
    await read(backend)
    fake.redirect = "https://store.example/b?sig=2"
    fake.faults.append(httpx.Response(status))
    await read(backend)
    assert backend.stats.read_errors == 0
    fake.requests.clear()
    await read(backend)
    assert [str(request.url) for request in fake.requests] == [fake.redirect]


async def test_remembered_urls_are_bounded() -> None:
    fake = Fake(redirect="https://store.example/b")
    backend = backend_on(fake)
    for number in range(REMEMBERED_MAX + 2):
        await backend.read(f"{number:064x}", 0, 1)
    fake.requests.clear()
    await backend.read(f"{0:064x}", 0, 1)
    await backend.read(f"{REMEMBERED_MAX + 1:064x}", 0, 1)
    assert fake.hosts() == ["reg.example", "store.example", "store.example"]


# Size


async def test_size_is_asked_by_head_and_follows_redirects() -> None:
    fake = Fake(wants="bearer", redirect="https://store.example/b?sig=1")
    backend = backend_on(fake)
    assert await backend.size(BLOB_ID) == len(DATA)
    assert [request.method for request in fake.requests if request.url.path != "/token"] == [
        "HEAD"
    ] * 3
    assert backend.stats.read_count == 0


@pytest.mark.parametrize("head", [httpx.Response(403), httpx.Response(200)])
async def test_where_head_is_no_help_one_byte_tells_the_size(head: httpx.Response) -> None:
    head.headers.pop("content-length", None)
    fake = Fake(faults=deque([head]))
    assert await backend_on(fake).size(BLOB_ID) == len(DATA)
    assert [request.method for request in fake.requests] == ["HEAD", "GET"]


async def test_the_size_of_a_missing_blob_is_an_error() -> None:
    fake = Fake(faults=deque([httpx.Response(404)]))
    with pytest.raises(BackendError, match=r"size: HEAD https://reg.example/.*: 404"):
        await backend_on(fake).size(BLOB_ID)


# Configuration


async def test_headers_from_the_environment_go_everywhere_but_credentials_only_to_the_registry(
    caplog: pytest.LogCaptureFixture,
) -> None:
    fake = Fake(redirect="https://store.example/b")
    environ = {
        "NYDUS_HEADER_X-Team": "blue",
        "NYDUS_HEADER_User-Agent": "mine/1",
        "NYDUS_HEADER_Authorization": "Custom secret-value",
        "NYDUS_HEADER_Range": "bytes=0-0",
        "NYDUS_HEADER_Bad Name": "x",
        "NYDUS_HEADER_X-Bad": "a\r\nb: secret-value",
        "OTHER": "x",
    }
    await read(backend_on(fake, environ=environ))
    for request in fake.requests:
        assert request.headers["x-team"] == "blue"
        assert request.headers["user-agent"] == "mine/1"
        assert request.headers["range"] == "bytes=0-99"
    assert [request.headers.get("authorization") for request in fake.requests] == [
        "Custom secret-value",
        None,
    ]
    assert len(caplog.records) == 3
    assert "secret-value" not in caplog.text


@pytest.mark.parametrize(
    ("changes", "kind", "says"),
    [
        ({"auth": Secret("!")}, ConfigError, "auth"),
        ({"registry_token": Secret("a\r\nb: c")}, ConfigError, "registry_token"),
        ({"registry_token": Secret("t\u00f6ken")}, ConfigError, "registry_token"),
        ({"host": "a b"}, ConfigError, "host"),
        ({"host": "https://a"}, ConfigError, "host"),
        ({"host": "u:p@a"}, ConfigError, "host"),
        ({"repo": "a/../b?"}, ConfigError, "repo"),
        ({"blob_redirected_host": "a/b"}, ConfigError, "blob_redirected_host"),
        ({"blob_url_scheme": "ftp"}, ConfigError, "blob_url_scheme"),
        ({"http": HttpOptions(ca_cert_files=("/no/such.pem",))}, ConfigError, "/no/such.pem"),
        ({"http": HttpOptions(proxy=ProxyConfig(url="http://p"))}, UnsupportedError, "proxy"),
    ],
)
def test_settings_that_cannot_be_used_are_refused_at_once(
    changes: dict[str, object], kind: type[Exception], says: str
) -> None:
    with pytest.raises(kind, match=says):
        RegistryBackend(BASE._replace(**changes))


@pytest.mark.parametrize(
    ("scheme", "expected"), [("http", "http"), ("https", "https"), ("", "https"), ("HTTP", "https")]
)
async def test_only_the_exact_word_http_selects_http(scheme: str, expected: str) -> None:
    fake = Fake()
    await read(backend_on(fake, scheme=scheme))
    assert fake.requests[0].url.scheme == expected


@pytest.mark.parametrize(
    ("reason", "skip_verify", "falls_back"),
    [
        ("[SSL: WRONG_VERSION_NUMBER] wrong version number", True, True),
        ("Connection refused", True, True),
        ("timed out", True, False),
        ("[SSL: WRONG_VERSION_NUMBER] wrong version number", False, False),
    ],
)
async def test_http_is_spoken_instead_only_where_verification_is_off(
    reason: str,
    skip_verify: bool,
    falls_back: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    fake = Fake(faults=deque([httpx.ConnectError(reason)] * 1))
    backend = backend_on(fake, http=HttpOptions(skip_verify=skip_verify))
    await read(backend)
    await read(backend)
    schemes = [request.url.scheme for request in fake.requests]
    assert schemes == (["https", "http", "http"] if falls_back else ["https"] * 3)
    assert backend.stats.read_errors == (0 if falls_back else 1)


async def test_retry_limit_raises_the_number_of_attempts(autojump_clock: MockClock) -> None:
    fake = Fake(faults=deque(httpx.ReadError("reset") for _ in range(9)))
    backend = backend_on(fake, http=HttpOptions(retry_limit=9, skip_verify=True))
    await read(backend)
    assert backend.stats.read_count == 10


async def test_a_server_that_never_answers_is_given_up_in_time_even_without_time_outs(
    autojump_clock: MockClock,
) -> None:
    async def silent(_request: httpx.Request) -> httpx.Response:
        await trio.sleep_forever()
        raise AssertionError

    http = HttpOptions(timeout_s=0, connect_timeout_s=0, skip_verify=True)
    backend = backend_on(silent, http=http)
    with pytest.raises(BackendError, match="within 60 s") as caught:
        await read(backend)
    assert caught.value.temporary
    assert trio.current_time() == pytest.approx(60, abs=1)


async def test_prefetch_leaves_places_for_readers(nursery: trio.Nursery) -> None:
    fake, gate = Fake(), trio.Event()

    async def slow(request: httpx.Request) -> httpx.Response:
        if request.headers["range"].startswith("bytes=0-"):
            return await fake(request)
        await gate.wait()
        return await fake(request)

    backend = backend_on(slow)
    for _ in range(40):
        nursery.start_soon(backend.read, BLOB_ID, 1, 1, Priority.PREFETCH)
    await wait_all_tasks_blocked()
    await read(backend)
    gate.set()


def test_other_kinds_are_refused_by_name() -> None:
    with pytest.raises(UnsupportedError, match="backend type 'oss' is not supported yet"):
        open_backend(OtherBackendConfig("oss", {}))


async def test_kinds_are_opened_by_configuration() -> None:
    for config, kind in [(BASE, "registry"), (LocalFsConfig(dir="/x"), "localfs")]:
        backend = open_backend(config, environ={})
        assert backend.kind == backend.stats.kind == kind
        assert isinstance(backend, TakesCredentials) == (kind == "registry")
        await backend.aclose()


def test_opening_a_backend_loads_no_http() -> None:
    code = (
        "import sys\n"
        "from nydusd.config.model import RegistryConfig\n"
        "from nydusd.storage.backend.open import open_backend\n"
        "open_backend(RegistryConfig('h', 'r'))\n"
        "print([m for m in ('httpx', 'httpcore', 'h11', 'anyio') if m in sys.modules])\n"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(found.stdout.replace("'", '"')) == []
