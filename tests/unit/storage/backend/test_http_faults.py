"""What is said of a failed request: one bounded line, the server's words, no secret."""

import ssl
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nydusd.errors import AuthError, BackendError, ThrottledError
from nydusd.storage.backend.http_faults import (
    WORDS_MAX_CHARS,
    fault_of_exception,
    fault_of_status,
    one_line,
    retry_after_s,
    shown_url,
    words_of,
)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://u:p@host:5000/v2/a?sig=x#y", "https://host:5000/v2/a"),
        ("http://[::1]:80/a", "http://[::1]:80/a"),
        ("http://h/a\r\nX: y", "http://h/aX: y"),
        ("http://[bad", "a URL that cannot be read"),
    ],
)
def test_a_url_is_shown_without_what_may_be_secret(url: str, shown: str) -> None:
    assert shown_url(url) == shown


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (
            b'{"errors":[{"code":"DENIED","message":"no\\naccess","detail":[{"x":1}]}]}',
            "DENIED: no access",
        ),
        (b'{"errors":[{"code":"A"},{"code":"B","message":"b"},5]}', "A; B: b"),
        (b'{"details":"incorrect password"}', "incorrect password"),
        (b'{"error":"invalid_grant"}', "invalid_grant"),
        (b'{"errors":[]}', '{"errors":[]}'),
        (b"<?xml?><Error><Code>AccessDenied</Code><Message>a &amp; b</Message><Id>7</Id></Error>",
         "AccessDenied: a & b"),
        (b"<html><head><title>502</title></head><body>nginx</body></html>", "502"),
        (b"<p>plain <b>tags</b>", "plain tags"),
        (b"just text\r\n\x1b[31m\x00red", "just text [31m red"),
        (b"\xff\xfe", "\ufffd\ufffd"),
        (b"{not json", "{not json"),
        (b"", ""),
    ],
)  # fmt: skip
def test_words_are_taken_from_what_servers_send(body: bytes, words: str) -> None:
    assert words_of(body) == words


def test_secrets_and_signatures_are_blotted_out() -> None:
    body = b"token tok-123 at https://u:pw@h/p?X-Amz-Signature=abc refused"
    assert words_of(body, ["tok-123"]) == "token *** at https://h/p refused"


@given(st.binary(max_size=3000))
def test_any_body_becomes_one_printable_line(body: bytes) -> None:
    words = words_of(body)
    assert words.isprintable()
    assert len(words) <= WORDS_MAX_CHARS


@given(st.text(max_size=500), st.integers(1, 100))
def test_a_line_is_bounded(text: str, max_chars: int) -> None:
    assert len(one_line(text, max_chars)) <= max_chars


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("7", 7.0),
        (" 0 ", 0.0),
        ("Mon, 23 Nov 2026 20:00:30 GMT", 30.0),
        ("Mon, 23 Nov 2026 19:00:00 GMT", 0.0),
        ("-1", None),
        ("soon", None),
        ("", None),
        (None, None),
        ("9" * 400, 9999999999.0),
    ],
)
def test_retry_after_is_seconds_or_a_date(value: str | None, seconds: float | None) -> None:
    assert retry_after_s(value, lambda: datetime(2026, 11, 23, 20, tzinfo=UTC)) == seconds


@pytest.mark.parametrize(
    ("status", "retry_after", "kind", "temporary"),
    [
        (400, None, BackendError, False),
        (401, None, AuthError, False),
        (403, None, AuthError, False),
        (404, None, BackendError, False),
        (408, None, BackendError, True),
        (416, None, BackendError, False),
        (429, None, ThrottledError, True),
        (429, "5", ThrottledError, True),
        (500, None, BackendError, True),
        (501, None, BackendError, False),
        (503, None, BackendError, True),
        (503, "5", ThrottledError, True),
        (504, None, BackendError, True),
    ],
)
def test_a_status_says_what_kind_of_fault_it_is(
    status: int, retry_after: str | None, kind: type[BackendError], temporary: bool
) -> None:
    fault = fault_of_status("blob b: GET u", status, "words", retry_after)
    assert type(fault) is kind
    assert fault.temporary == temporary
    assert str(fault) == f"blob b: GET u: {status} words"


def chained(outer: Exception, inner: Exception) -> Exception:
    outer.__cause__ = inner
    return outer


def test_an_exception_is_told_by_its_deepest_cause() -> None:
    fault = fault_of_exception(
        "line", chained(RuntimeError(), ConnectionRefusedError(111, "Connection refused"))
    )
    assert str(fault) == "line: RuntimeError: Connection refused"
    assert fault.reason == "Connection refused"
    assert fault.temporary


def test_a_group_is_opened_at_its_first_member() -> None:
    group = ExceptionGroup("all attempts failed", [OSError(113, "No route to host")])
    assert "No route to host" in str(fault_of_exception("line", group))


def test_a_certificate_that_does_not_verify_stays_so() -> None:
    refused = ssl.SSLCertVerificationError(1, "certificate verify failed")
    assert not fault_of_exception("line", chained(RuntimeError(), refused)).temporary


def test_an_exception_without_words_is_told_by_its_name() -> None:
    assert str(fault_of_exception("line", TimeoutError())) == "line: TimeoutError"


def test_a_chain_in_a_circle_ends() -> None:
    first, second = ValueError("a"), ValueError("b")
    first.__cause__, second.__cause__ = second, first
    assert "ValueError" in str(fault_of_exception("line", first))
