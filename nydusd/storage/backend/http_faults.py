"""What HTTP backends say when a request fails: one line, the server's own words, never a secret.

Pure. Everything here ends as BackendError, AuthError or ThrottledError, `temporary` set right: the
retry policy looks at nothing else.
"""

import json
import re
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from nydusd.errors import AuthError, BackendError, ThrottledError

if TYPE_CHECKING:
    from datetime import datetime

WORDS_MAX_CHARS: Final = 240
URL_MAX_CHARS: Final = 240
TEMPORARY_STATUSES: Final = frozenset({408, 421, 425, 500, 502, 503, 504, 507, 509})

_QUERY: Final = re.compile(r"(https?://[^\s?#\"'<>]*)[?#][^\s\"'<>]*", re.IGNORECASE)
_USERINFO: Final = re.compile(r"(https?://)[^\s/@\"'<>]*@", re.IGNORECASE)
_XML_PART: Final = re.compile(r"<(Code|Message|title)>([^<]*)</", re.IGNORECASE)
_TAG: Final = re.compile(r"<[^>]*>")
_CHAIN_MAX: Final = 8  # links of a chain of exceptions that are looked at


class TransportError(BackendError):
    """No whole answer came: connect, TLS, reset, time-out, broken HTTP. `reason` is the deepest cause."""

    def __init__(self, message: str, *, reason: str, temporary: bool = True) -> None:
        """`reason`: without request and URL; what the HTTPS→HTTP fallback looks at."""
        super().__init__(message, temporary=temporary)
        self.reason = reason


def shown_url(url: str) -> str:
    """Return the URL without userinfo, query and fragment, which may hold signatures."""
    try:
        parts = urlsplit(url)
        host = parts.netloc.rpartition("@")[2]
    except ValueError:
        return "a URL that cannot be read"
    return one_line(f"{parts.scheme}://{host}{parts.path}", URL_MAX_CHARS)


def one_line(text: str, max_chars: int) -> str:
    """Return text as one printable line of at most `max_chars` characters."""
    plain = text[: 16 * max_chars]
    if not plain.isprintable():
        plain = "".join(char if char.isprintable() else " " for char in plain)
    plain = " ".join(plain.split())
    return plain if len(plain) <= max_chars else plain[: max_chars - 1] + "…"


def words_of(body: bytes, secrets: Iterable[str] = ()) -> str:
    """Return what an error body says: code and message of JSON and XML errors, else its text.

    `secrets` are blotted out, in case the server repeats them; so are queries and userinfo of URLs.
    """
    text = body.decode("utf-8", "replace")
    words = _json_words(text) if text.lstrip().startswith("{") else None
    if words is None:
        if text.lstrip().startswith("<"):
            import html  # 2,231 entities: only for those who send markup

            parts = [html.unescape(part[1]) for part in _XML_PART.findall(text)]
            words = ": ".join(parts) if parts else _TAG.sub(" ", text)
        else:
            words = text
    for secret in secrets:
        words = words.replace(secret, "***")
    words = _USERINFO.sub(r"\1", _QUERY.sub(r"\1", words))
    return one_line(words, WORDS_MAX_CHARS)


def _json_words(text: str) -> str | None:
    """Return the words of an OCI, token server or plain JSON error; None if it is something else."""
    try:
        answer = json.loads(text)
    except (ValueError, RecursionError):
        return None
    errors = answer.get("errors")
    entries = errors if isinstance(errors, list) and errors else [answer]
    said: list[str] = []
    for entry in entries[:4]:
        if isinstance(entry, dict):
            parts = (entry.get(key) for key in ("code", "error", "message", "details"))
            said.append(": ".join(part for part in parts if isinstance(part, str) and part))
    return "; ".join(part for part in said if part) or None


def retry_after_s(value: str | None, now: "Callable[[], datetime] | None" = None) -> float | None:
    """Return a Retry-After in seconds (RFC 9110 §10.2.3: seconds or a date), None if unusable."""
    if value is None:
        return None
    text = value.strip()
    if text.isascii() and text.isdigit():
        return float(text[:10])
    from datetime import UTC, datetime
    from email.utils import parsedate_to_datetime  # the whole of `email`, for a rare date

    try:
        at = parsedate_to_datetime(text)
    except ValueError:
        return None
    if at.tzinfo is None:
        at = at.replace(tzinfo=UTC)
    present = datetime.now(UTC) if now is None else now()
    return max(0.0, (at - present).total_seconds())


def fault_of_status(line: str, status: int, words: str, retry_after: str | None) -> BackendError:
    """Return the error for an answer that is no success.

    line: request and URL, e.g. `blob 12… bytes 0-9: GET https://host/v2/…`.
    """
    text = f"{line}: {status} {words}".rstrip()
    pause_s = retry_after_s(retry_after)
    if status == 429 or (status == 503 and pause_s is not None):
        return ThrottledError(text, retry_after_s=pause_s)
    if status in {401, 403, 407}:
        return AuthError(text)
    return BackendError(text, temporary=status in TEMPORARY_STATUSES)


def fault_of_exception(line: str, exc: BaseException) -> TransportError:
    """Return the error for an exception of the HTTP library, TLS or the socket.

    A certificate that does not verify stays so: the only one of these that is not temporary.
    """
    chain = _chain(exc)
    reason = next((said for link in reversed(chain) if (said := _said(link))), "")
    name = type(exc).__name__
    text = f"{name}: {reason}" if reason and reason != name else name
    refused = any(type(link).__name__ == "SSLCertVerificationError" for link in chain)
    return TransportError(f"{line}: {text}", reason=reason, temporary=not refused)


def _said(exc: BaseException) -> str:
    strerror = exc.strerror if isinstance(exc, OSError) else None
    return words_of((strerror or str(exc)).encode("utf-8", "replace"))


def _chain(exc: BaseException) -> list[BaseException]:
    """Return exc and what caused it, groups opened at their first member."""
    chain: list[BaseException] = []
    link: BaseException | None = exc
    while link is not None and len(chain) < _CHAIN_MAX:
        chain.append(link)
        cause = link.__cause__ or link.__context__
        link = link.exceptions[0] if isinstance(link, BaseExceptionGroup) else cause
    return chain
