"""Blobs of an OCI registry (spec backends §6).

A read is one GET with a Range. The registry may ask for credentials (auth.py) and may send us to a
storage host, which never sees them; where it sent us is remembered per blob and tried first, until
it stops to answer.

The first readers are not held behind one of them, as the reference does (spec backends §6.2): each
opens its connection and gets its 401 at once, and all wait for one token. That saves them the round
trips of a connection, and costs some empty answers once.

Owns     one HTTP client with its connections, made at the first request; what auth.py remembers.
Callers  tasks of the trio thread.
Raises   BackendError, AuthError, ThrottledError, ClosedError. ConfigError from the constructor only.
Time     retry.call_limit_s bounds a call, HttpOptions each operation on a socket in it.
Cancel   the request under way is closed; a token that others wait for is fetched by one of them.
"""

import importlib
import logging
import random
import re
import sys
from collections.abc import Mapping
from contextlib import aclosing
from typing import TYPE_CHECKING, Final
from urllib.parse import urljoin, urlsplit, urlunsplit

import trio

from nydusd.config.model import RegistryConfig, Secret
from nydusd.errors import AuthError, BackendError, ConfigError, ThrottledError, UnsupportedError
from nydusd.records import Buffer
from nydusd.storage.backend.attempts import Attempts
from nydusd.storage.backend.auth import (
    TOKEN_ANSWER_MAX_BYTES,
    Authorization,
    Challenge,
    TokenAnswer,
    TokenRequest,
    check_basic,
    choose_challenge,
    parse_challenges,
    token_flow,
)
from nydusd.storage.backend.base import Asked, Priority, check_range
from nydusd.storage.backend.http_faults import TransportError, fault_of_status, shown_url
from nydusd.storage.backend.http_range import parse_length, parse_total, plan_body, range_header
from nydusd.storage.backend.request_headers import standing_headers
from nydusd.storage.backend.retry import RetryPolicy
from nydusd.storage.backend.single_flight import SingleFlight
from nydusd.storage.backend.tls import Tls
from nydusd.storage.stats import BackendStats

if TYPE_CHECKING:
    from nydusd.storage.backend.http_client import Answer, HttpClient, OpenTransport

HTTP_CLIENT: Final = "nydusd.storage.backend.http_client"
REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
HOPS_MAX: Final = 5
REMEMBERED_MAX: Final = 1024  # blobs whose storage URL is kept
# What the text of a failed TLS connection says where the peer speaks plain HTTP (spec backends §6.8).
PLAIN_HTTP_SIGNS: Final = ("wrong version number", "connection refused", "ssl")

_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_HOST: Final = re.compile(r"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::\d{1,5})?")
_REPO: Final = re.compile(r"[A-Za-z0-9._-]+(?:/[A-Za-z0-9._-]+)*")

log = logging.getLogger(__name__)


class RegistryBackend:
    """Where blobs are `<scheme>://<host>/v2/<repo>/blobs/sha256:<blob id>`."""

    kind = "registry"

    def __init__(
        self,
        config: RegistryConfig,
        *,
        stats: BackendStats | None = None,
        environ: Mapping[str, str] | None = None,
        chance: random.Random | None = None,
        open_transport: "OpenTransport | None" = None,
    ) -> None:
        """Connect to nothing yet.

        environ: source of NYDUS_HEADER_*. chance, open_transport: for tests that own both.
        Raises ConfigError, UnsupportedError.
        """
        if config.http.proxy.url or config.http.proxy.dragonfly_scheduler_endpoint:
            raise UnsupportedError("backend registry: proxy is not supported yet")
        if not _HOST.fullmatch(config.host):
            raise ConfigError(f"backend registry: host {config.host!r} is no host[:port]")
        if not _REPO.fullmatch(config.repo):
            raise ConfigError(f"backend registry: repo {config.repo!r} is no repository name")
        if config.blob_redirected_host and not _HOST.fullmatch(config.blob_redirected_host):
            raise ConfigError(
                f"backend registry: blob_redirected_host {config.blob_redirected_host!r} is no host"
            )
        if config.blob_url_scheme not in {"", "http", "https"}:
            raise ConfigError(
                f"backend registry: blob_url_scheme {config.blob_url_scheme!r} is not http or https"
            )
        self.stats = stats if stats is not None else BackendStats(self.kind)
        self._config = config
        self._scheme = "http" if config.scheme == "http" else "https"  # spec cli-config B6
        self._insecure = config.http.skip_verify
        self._tls = Tls(config.http)
        chance = chance if chance is not None else random.Random()  # noqa: S311 - spreads load only
        self._headers = standing_headers(environ if environ is not None else {})
        # Set from outside it is the registry's alone, and no challenge changes it.
        fixed = self._headers.pop("authorization", None)
        self._fixed_authorization = None if fixed is None else Secret(fixed)
        self._authorization = Authorization(
            basic=_basic_of(config.auth),
            registry_token=config.registry_token,
            chance=chance,
        )
        self._attempts = Attempts(
            self.stats, RetryPolicy.with_limit(config.http.retry_limit), chance
        )
        self._open_transport = open_transport
        self._client: HttpClient | None = None
        self._opening = trio.Lock()
        self._asking_token = SingleFlight()
        self._storage_urls: dict[str, str] = {}

    async def read(
        self, blob_id: str, offset: int, length: int, priority: Priority = Priority.DEMAND
    ) -> Buffer:
        """Return `length` bytes of the blob from `offset` (spec backends §6.2)."""
        asked = Asked(blob_id, offset, length)
        _check_digest(blob_id)
        check_range(asked)
        if length == 0:
            return b""
        return await self._attempts.run(asked, priority, lambda: self._read_once(asked))

    async def size(self, blob_id: str) -> int:
        """Return the blob's size: HEAD, or the total of a one-byte range where HEAD is no help."""
        asked = Asked(blob_id)
        _check_digest(blob_id)
        return await self._attempts.run(
            asked, Priority.DEMAND, lambda: self._size_once(asked), counted=False
        )

    def set_credentials(self, auth: Secret | None) -> None:
        """Use other credentials from the next request on; None or blank: none (spec api §3.3).

        Raises ConfigError, and changes nothing, if `auth` is not base64 of `user:password`.
        """
        self._authorization.set_basic(_basic_of(auth))

    async def aclose(self) -> None:
        """End calls under way with ClosedError and close all connections."""
        self._attempts.close()
        if self._client is not None:
            await self._client.aclose()

    # One attempt

    async def _read_once(self, asked: Asked) -> bytearray:
        try:
            async with aclosing(
                await self._blob(asked, "GET", {"range": range_header(asked)})
            ) as answer:
                plan = plan_body(
                    answer.line,
                    asked,
                    answer.status,
                    answer.header("content-range"),
                    answer.header("content-length"),
                )
                return await answer.read(plan)
        except ThrottledError:
            raise
        except BackendError:
            self._storage_urls.pop(asked.blob_id, None)  # the next attempt begins at the registry
            raise

    async def _size_once(self, asked: Asked) -> int:
        size: int | None = None
        try:
            async with aclosing(await self._blob(asked, "HEAD", {})) as answer:
                await answer.discard()
                size = parse_length(answer.line, answer.header("content-length"))
        except AuthError as exc:
            log.debug("no HEAD, asking for one byte instead: %s", exc)  # a URL signed for GET only
        if size is not None:
            return size
        async with aclosing(await self._blob(asked, "GET", {"range": "bytes=0-0"})) as answer:
            if answer.status == 206:
                await answer.discard()
                size = parse_total(answer.header("content-range"))
            else:
                size = parse_length(answer.line, answer.header("content-length"))
            if size is None:
                raise BackendError(f"{answer.line}: {answer.status} that names no size")
            return size

    async def _blob(self, asked: Asked, method: str, headers: Mapping[str, str]) -> "Answer":
        """Return a 2xx answer about the blob, wherever it lies. Raises for any other status."""
        if method == "GET" and (known := self._storage_urls.get(asked.blob_id)) is not None:
            answer = await self._from_storage(asked, known, headers)
            if answer is not None:
                return answer
        answer = await self._from_registry(asked, method, headers)
        hops = 0
        while answer.status in REDIRECTS:
            async with aclosing(answer):
                await answer.discard()
                target = self._target_of(answer)
            hops += 1
            if hops > HOPS_MAX:
                raise BackendError(f"{answer.line}: redirected more than {HOPS_MAX} times")
            answer = await self._send(asked, method, target, headers, None)
        if not 200 <= answer.status < 300:
            raise await self._fault_of(answer)
        if hops and method == "GET":
            self._remember(asked.blob_id, answer.url)
        return answer

    async def _from_storage(
        self, asked: Asked, url: str, headers: Mapping[str, str]
    ) -> "Answer | None":
        """Ask where the registry sent us before; None if that has ended: ask the registry again."""
        answer = await self._send(asked, "GET", url, headers, None)
        if 200 <= answer.status < 300:
            return answer
        fault = await self._fault_of(answer)
        if fault.temporary:
            raise fault
        log.debug("storage url refused, back to the registry: %s", fault)
        if self._storage_urls.get(asked.blob_id) == url:
            del self._storage_urls[asked.blob_id]
        return None

    async def _from_registry(
        self, asked: Asked, method: str, headers: Mapping[str, str]
    ) -> "Answer":
        """Ask the registry, over plain HTTP if `skip_verify` allows and TLS fails (spec backends §6.8)."""
        try:
            return await self._authorized(asked, method, self._url(asked), headers)
        except TransportError as exc:
            reason = exc.reason.lower()
            if not (
                self._insecure
                and self._scheme == "https"
                and any(sign in reason for sign in PLAIN_HTTP_SIGNS)
            ):
                raise
            log.warning("registry %s does not speak TLS, using http: %s", self._config.host, exc)
            self._scheme = "http"
        return await self._authorized(asked, method, self._url(asked), headers)

    async def _authorized(
        self, asked: Asked, method: str, url: str, headers: Mapping[str, str]
    ) -> "Answer":
        """Send to the registry; if it answers 401, once more with what it asks for (spec backends §6.3)."""
        if self._fixed_authorization is not None:
            fixed = self._fixed_authorization.reveal()
            return await self._send(asked, method, url, headers, fixed)
        header = await self._present_header(asked)
        answer = await self._send(asked, method, url, headers, header)
        if answer.status != 401:
            return answer
        if header is not None:
            # Some registries answer an outdated token with a wrong challenge: ask without any.
            async with aclosing(answer):
                await answer.discard()
            self._authorization.refused(header)
            header = self._authorization.header(trio.current_time())  # another task was quicker
            answer = await self._send(asked, method, url, headers, header)
            if answer.status != 401:
                return answer
        challenge = choose_challenge(
            parse_challenges(answer.headers("www-authenticate")),
            have_basic=bool(self._authorization.basic),
        )
        if challenge is None:
            return answer
        async with aclosing(answer):
            await answer.discard()
        header = await self._header_for(asked, challenge)
        answer = await self._send(asked, method, url, headers, header)
        if answer.status == 401:
            self._authorization.refused(header)
        return answer

    # Credentials

    async def _present_header(self, asked: Asked) -> str | None:
        """Return the header to begin with; a token that is about to end is renewed first."""
        known, now_s = self._authorization, trio.current_time()
        challenge = known.wants_token(now_s)
        if challenge is None:
            return known.header(now_s)
        try:
            return await self._header_for(asked, challenge)
        except BackendError as exc:
            header = known.header(trio.current_time())
            if header is None:
                raise
            known.put_off_refresh(trio.current_time())
            log.info("token not renewed, the present one serves on: %s", exc)
            return header

    async def _header_for(self, asked: Asked, challenge: Challenge) -> str:
        """Return the header that answers `challenge`. Many tasks may want it: one asks the server."""
        known = self._authorization
        if challenge.scheme == "basic":
            return known.use_basic()
        known.challenge = challenge
        while True:
            epoch = known.epoch
            try:
                await self._asking_token.run(lambda: self._ask_token(asked, challenge))
            except AuthError:
                if known.epoch == epoch:
                    raise
            header = known.header(trio.current_time())
            if header is not None:
                return header
            # The credentials changed meanwhile, and with them went the token that was on its way.

    async def _ask_token(self, asked: Asked, challenge: Challenge) -> None:
        known = self._authorization
        epoch, basic = known.epoch, known.basic
        realm = self._realm_of(asked, challenge, basic)
        flow = token_flow(challenge, realm, basic, get_first=known.token_by_get)
        request = next(flow)
        while True:
            answer = await self._token_answer(asked, request)
            try:
                request = flow.send(answer)
            except StopIteration as stop:
                known.use_token(stop.value, epoch, trio.current_time())
                return

    def _realm_of(self, asked: Asked, challenge: Challenge, basic: str) -> str:
        """Return the token server's URL. Raises AuthError if credentials must not go there."""
        try:
            realm = urljoin(self._url(asked), challenge.get("realm"))
            parts = urlsplit(realm)
        except ValueError:
            parts = urlsplit("")
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise AuthError(f"{asked}: the registry names a token server that is no http URL")
        if basic and parts.scheme == "http" and self._scheme == "https" and not self._insecure:
            raise AuthError(
                f"{asked}: credentials for an https registry are not sent to its token server "
                f"{shown_url(realm)}; skip_verify would allow it"
            )
        return realm

    async def _token_answer(self, asked: Asked, request: TokenRequest) -> TokenAnswer:
        headers = {"accept": "application/json"}
        if request.form:
            headers["content-type"] = "application/x-www-form-urlencoded"
        header = f"Basic {request.basic}" if request.basic else None
        try:
            async with aclosing(
                await self._send(asked, request.method, request.url, headers, header, request.form)
            ) as answer:
                if 200 <= answer.status < 300:
                    return TokenAnswer(
                        answer.status, answer.line, await answer.content(TOKEN_ANSWER_MAX_BYTES)
                    )
                words = await answer.words(self._authorization.secrets())
                return TokenAnswer(answer.status, answer.line, words=words)
        except BackendError as exc:
            return TokenAnswer(fault=exc)

    # Requests

    async def _send(
        self,
        asked: Asked,
        method: str,
        url: str,
        headers: Mapping[str, str],
        authorization: str | None,
        body: bytes = b"",
    ) -> "Answer":
        sent = {**headers, **self._headers}
        if authorization is not None:
            sent["authorization"] = authorization
        client = self._client
        if client is None:
            client = await self._open_client()
        return await client.send(str(asked), method, url, sent, body)

    async def _open_client(self) -> "HttpClient":
        async with self._opening:
            if self._client is None:
                # httpx takes 40 ms and 3 MiB to import: not at start-up, and not in the event loop.
                if HTTP_CLIENT not in sys.modules:
                    await trio.to_thread.run_sync(importlib.import_module, HTTP_CLIENT)
                from nydusd.storage.backend import http_client

                transport = self._open_transport or http_client.open_transport
                self._client = http_client.HttpClient(self._config.http, self._tls, transport)
            return self._client

    def _url(self, asked: Asked) -> str:
        config = self._config
        return f"{self._scheme}://{config.host}/v2/{config.repo}/blobs/sha256:{asked.blob_id}"

    def _target_of(self, answer: "Answer") -> str:
        """Return where a redirect leads, as configuration rewrites it (spec backends §6.1)."""
        location = answer.header("location")
        try:
            parts = urlsplit(urljoin(answer.url, location or ""))
            host, port = parts.hostname, parts.port
        except ValueError:
            host = None
        if not location or not host or parts.scheme not in {"http", "https"}:
            raise BackendError(f"{answer.line}: {answer.status} without a usable Location")
        netloc = parts.netloc.rpartition("@")[2]
        if self._config.blob_redirected_host:
            netloc = self._config.blob_redirected_host
            if port is not None and urlsplit(f"//{netloc}").port is None:
                netloc = f"{netloc}:{port}"
        scheme = self._config.blob_url_scheme or parts.scheme
        return urlunsplit((scheme, netloc, parts.path, parts.query, ""))

    def _remember(self, blob_id: str, url: str) -> None:
        self._storage_urls.pop(blob_id, None)
        if len(self._storage_urls) >= REMEMBERED_MAX:
            del self._storage_urls[next(iter(self._storage_urls))]
        self._storage_urls[blob_id] = url

    async def _fault_of(self, answer: "Answer") -> BackendError:
        """Return the error for an answer that is no success, and close it."""
        async with aclosing(answer):
            words = await answer.words(self._authorization.secrets())
            return fault_of_status(answer.line, answer.status, words, answer.header("retry-after"))


def _basic_of(auth: Secret | None) -> str:
    if auth is None or not auth.reveal().strip():
        return ""
    return check_basic(auth, "backend registry: auth")


def _check_digest(blob_id: str) -> None:
    """Refuse an id that is no sha256: it comes from an image and becomes part of a URL."""
    if not _DIGEST.fullmatch(blob_id):
        raise BackendError(f"blob id {blob_id[:80]!r} is no sha256 digest")
