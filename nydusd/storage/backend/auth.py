"""How a registry is persuaded: challenges, tokens and what is remembered of them (spec backends §6.3 to §6.6).

Sans-I/O. `parse_challenges` reads WWW-Authenticate by RFC 9110 §11 (a superset of the reference's
parser); `token_flow` is a generator, requests out, answers in, a Token at the end; `Authorization`
holds what one registry instance remembers and answers "which header now?". The clock is passed in.
Secrets leave this module as header values and nowhere else.
"""

import base64
import binascii
import json
import random
import re
from collections.abc import Generator, Iterable, Mapping
from typing import Final, NamedTuple
from urllib.parse import urlencode

from nydusd.config.model import Secret
from nydusd.errors import AuthError, BackendError, ConfigError
from nydusd.units import KIB

CLIENT_ID: Final = "nydus-registry-client"  # spec backends §6.5
TOKEN_ANSWER_MAX_BYTES: Final = 256 * KIB
TOKEN_DEFAULT_TTL_S: Final = 600.0  # spec backends §6.5
TOKEN_TTL_MIN_S: Final = 10.0  # one that ends earlier is found out by a 401
TOKEN_TTL_MAX_S: Final = 30 * 24 * 3600.0
TOKEN_MARGIN_S: Final = 20.0  # asked anew this long before the end, or at 3/4 of a short life
TOKEN_JITTER_MAX_S: Final = 300.0  # a fleet of daemons must not refresh in one second
CHALLENGES_MAX: Final = 16

_WORD: Final = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"  # RFC 9110 §5.6.2
_SCHEME: Final = re.compile(_WORD)
_PARAM: Final = re.compile(rf'({_WORD})[ \t]*=[ \t]*(?:"((?:[^"\\]|\\.)*)"|({_WORD}))')
_TOKEN68: Final = re.compile(r"[A-Za-z0-9._~+/-]+=*(?=[ \t]*(?:,|$))")
_GAP: Final = re.compile(r"[ \t,]*")
_VISIBLE: Final = re.compile(r"[\x21-\x7e]+")


class Challenge(NamedTuple):
    """One way to authenticate that the registry offers; scheme and parameter names in lower case."""

    scheme: str
    params: Mapping[str, str]

    def get(self, name: str) -> str:
        """Return a parameter, empty if absent."""
        return self.params.get(name, "")


def parse_challenges(values: Iterable[str]) -> list[Challenge]:
    """Return the challenges of all WWW-Authenticate headers, in order; what cannot be read ends the list."""
    found: list[Challenge] = []
    for value in values:
        at = _end(_GAP, value, 0)
        while at < len(value) and len(found) < CHALLENGES_MAX:
            scheme = _SCHEME.match(value, at)
            if scheme is None:
                break
            params, at = _parse_params(value, scheme.end())
            found.append(Challenge(scheme[0].lower(), params))
    return found


def _parse_params(value: str, scheme_end: int) -> tuple[dict[str, str], int]:
    """Return a challenge's parameters and where the next challenge starts."""
    params: dict[str, str] = {}
    at = _end(_GAP, value, scheme_end)
    while (param := _PARAM.match(value, at)) is not None:
        quoted, plain = param[2], param[3]
        text = plain if quoted is None else re.sub(r"\\(.)", r"\1", quoted)
        params.setdefault(param[1].lower(), text)
        at = _end(_GAP, value, param.end())
    # `Negotiate abcd==` has one opaque word; in `Basic, Bearer realm=x` the next word is a scheme.
    if not params and "," not in value[scheme_end:at]:
        at = _end(_GAP, value, _end(_TOKEN68, value, at))
    return params, at


def _end(pattern: re.Pattern[str], value: str, at: int) -> int:
    match = pattern.match(value, at)
    return at if match is None else match.end()


def choose_challenge(challenges: Iterable[Challenge], *, have_basic: bool) -> Challenge | None:
    """Return the challenge to answer: a bearer one that names its realm, else Basic if we can."""
    basic: Challenge | None = None
    for challenge in challenges:
        if challenge.scheme == "bearer" and challenge.get("realm"):
            return challenge
        if challenge.scheme == "basic" and basic is None:
            basic = challenge
    return basic if have_basic else None


def check_basic(auth: Secret, field: str) -> str:
    """Return the credential as sent after `Basic `, white space stripped.

    Raises ConfigError if it is not base64 of `user:password` in UTF-8 (spec backends §6.1).
    """
    text = auth.reveal().strip()
    try:
        plain = base64.b64decode(text, validate=True).decode()
    except (binascii.Error, ValueError):
        raise ConfigError(f"{field} is not base64 of UTF-8 text") from None
    if ":" not in plain:
        raise ConfigError(f"{field} holds no 'user:password'")
    return text


class TokenRequest(NamedTuple):
    """A request to the token server. `form` is the body of a POST; a GET has it in its URL already."""

    method: str
    url: str
    form: bytes
    basic: str  # after `Basic `; empty: no Authorization header


class TokenAnswer(NamedTuple):
    """What came back: status and body, or the fault that prevented an answer."""

    status: int = 0
    line: str = ""  # request and URL, opens the text of an error
    body: bytes = b""
    words: str = ""  # the server's own, made safe for a log line
    fault: BackendError | None = None


class Token(NamedTuple):
    """A bearer token, how long it lives, and which method got it."""

    value: Secret
    ttl_s: float
    by_get: bool


def token_flow(
    challenge: Challenge, realm: str, basic: str, *, get_first: bool
) -> Generator[TokenRequest, TokenAnswer, Token]:
    """Ask the challenge's `realm` for a token: POST, then GET if that fails (spec backends §6.5).

    realm: the challenge's, as an absolute URL. Raises AuthError if the server refuses, else
    BackendError: a token server that fails is temporary.
    """
    form = urlencode(
        {
            "service": challenge.get("service"),
            "scope": challenge.get("scope"),
            "client_id": CLIENT_ID,
        }
    )
    post = TokenRequest("POST", realm, form.encode(), basic)
    get = TokenRequest("GET", f"{realm}{'&' if '?' in realm else '?'}{form}", b"", basic)
    answer = TokenAnswer()
    for request in (get,) if get_first else (post, get):
        answer = yield request
        if answer.fault is None and 200 <= answer.status < 300:
            value, ttl_s = _read_token(answer)
            return Token(value, ttl_s, by_get=request is get)
    raise _token_fault(answer)


def _token_fault(answer: TokenAnswer) -> BackendError:
    if answer.fault is not None:
        return answer.fault
    text = f"{answer.line}: no token: {answer.status} {answer.words}".rstrip()
    if 400 <= answer.status < 500 and answer.status not in {408, 429}:
        return AuthError(text)
    return BackendError(text, temporary=answer.status >= 400)


def _read_token(answer: TokenAnswer) -> tuple[Secret, float]:
    """Return token and life time from the JSON answer. Raises BackendError; never quotes the body."""
    try:
        body = json.loads(answer.body)
    except (ValueError, RecursionError):
        raise BackendError(f"{answer.line}: no token: the answer is no JSON") from None
    if not isinstance(body, dict):
        raise BackendError(f"{answer.line}: no token: the answer is no JSON object")
    value = body.get("token") or body.get("access_token")
    if not isinstance(value, str) or _VISIBLE.fullmatch(value) is None:
        raise BackendError(f"{answer.line}: no token: the answer holds none that can be sent")
    ttl = body.get("expires_in", TOKEN_DEFAULT_TTL_S)
    if isinstance(ttl, bool) or not isinstance(ttl, (int, float)) or not 0 < ttl < float("inf"):
        ttl = TOKEN_DEFAULT_TTL_S
    return Secret(value), min(max(float(ttl), TOKEN_TTL_MIN_S), TOKEN_TTL_MAX_S)


class Authorization:
    """What one registry instance knows about getting in. All methods are instant.

    A header is used until the registry refuses it; a token is asked for anew a little before it
    ends. New credentials void what the old ones got, a token on its way included (`epoch`).
    """

    def __init__(self, *, basic: str, registry_token: Secret | None, chance: random.Random) -> None:
        """basic: as sent after `Basic `, empty if none. `registry_token` is used first.

        Raises ConfigError if that token could not stand in a header.
        """
        self.basic = basic
        self.challenge: Challenge | None = None  # the last bearer challenge
        self.token_by_get = False  # POST failed where GET did not
        self.epoch = 0
        self._chance = chance
        self._header: str | None = None
        self._refresh_at_s = float("inf")
        self._ends_at_s = float("inf")
        if registry_token is not None and (value := registry_token.reveal().strip()):
            if _VISIBLE.fullmatch(value) is None:
                raise ConfigError("registry_token holds characters that no token has")
            self._header = f"Bearer {value}"

    def header(self, now_s: float) -> str | None:
        """Return the Authorization header to send, None if there is none or its token has ended."""
        return self._header if now_s < self._ends_at_s else None

    def wants_token(self, now_s: float) -> Challenge | None:
        """Return the challenge to answer before the next request, None if that would be early."""
        if self._header is not None and now_s < self._refresh_at_s:
            return None
        return self.challenge

    def refused(self, header: str) -> None:
        """The registry answered 401 to `header`: forget it, unless another took its place."""
        if self._header == header:
            self._drop()

    def use_basic(self) -> str:
        """Answer a Basic challenge; return the header."""
        self._drop()
        self.challenge = None
        self._header = f"Basic {self.basic}"
        return self._header

    def use_token(self, token: Token, epoch: int, now_s: float) -> None:
        """Keep a token that was asked for in `epoch`; one of another epoch is void."""
        if epoch != self.epoch:
            return
        margin_s = min(TOKEN_MARGIN_S, token.ttl_s / 4)
        jitter_s = self._chance.uniform(0.0, min(token.ttl_s / 10, TOKEN_JITTER_MAX_S))
        self._header = f"Bearer {token.value.reveal()}"
        self._refresh_at_s = now_s + token.ttl_s - margin_s - jitter_s
        self._ends_at_s = now_s + token.ttl_s
        self.token_by_get = token.by_get

    def put_off_refresh(self, now_s: float) -> None:
        """A refresh failed; the present token serves on, and is not asked for again at each request."""
        self._refresh_at_s = now_s + TOKEN_MARGIN_S / 4

    def set_basic(self, basic: str) -> None:
        """Take new credentials, empty for none (spec api §3.3, backends §6.6)."""
        if basic == self.basic:
            return
        self.epoch += 1
        self.basic = basic
        self._drop()
        if basic and self.challenge is None:
            self._header = f"Basic {basic}"

    def secrets(self) -> tuple[str, ...]:
        """Return what must never be shown, longest first."""
        known = {self.basic, (self._header or "").partition(" ")[2]}
        if self.basic:
            known.add(base64.b64decode(self.basic).decode(errors="replace").partition(":")[2])
        return tuple(sorted((text for text in known if len(text) >= 4), key=len, reverse=True))

    def _drop(self) -> None:
        self._header = None
        self._refresh_at_s = self._ends_at_s = float("inf")
