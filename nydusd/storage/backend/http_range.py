"""Checks that an answer to a range request holds that range (RFC 9110 §14, §15.3.7).

Pure: status and header values in, `BodyPlan` out. The reference takes 200 for 206 and looks at no
Content-Range (spec backends §6.2); we trust no answer that does not say what it is.
"""

import re
from typing import Final, NamedTuple

from nydusd.errors import BackendError
from nydusd.storage.backend.base import Asked
from nydusd.units import MIB

# Bytes of a whole-blob answer that may be thrown away to reach the asked range: about one fetch's worth.
SKIP_MAX_BYTES: Final = 4 * MIB

_CONTENT_RANGE: Final = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19}|\*)", re.ASCII)
_UNSATISFIED: Final = re.compile(r"bytes \*/(\d{1,19})", re.ASCII)
_DIGITS: Final = re.compile(r"\d{1,19}", re.ASCII)


class BodyPlan(NamedTuple):
    """What to do with a body: pass over `skip` bytes, take `length`, expect `total` in all."""

    skip: int
    length: int
    total: int  # bytes that the whole body has

    @property
    def leaves_rest(self) -> bool:
        """Whether bytes follow that nobody wants: the connection is then better closed than drained."""
        return self.skip + self.length < self.total


def range_header(asked: Asked) -> str:
    """Return the value of the Range header; length must not be 0."""
    return f"bytes={asked.offset}-{asked.offset + asked.length - 1}"


def plan_body(
    line: str, asked: Asked, status: int, content_range: str | None, content_length: str | None
) -> BodyPlan:
    """Return how to take the asked range out of a 206 or 200 answer.

    line: request and URL, opens the text of an error. Raises BackendError if the answer is about
    another range, or is the whole blob and the range lies too deep in it.
    """
    length = parse_length(line, content_length)
    if status == 206:
        return _plan_partial(line, asked, content_range, length)
    if status == 200:
        return _plan_whole(line, asked, length)
    raise BackendError(f"{line}: status {status} is no answer to a range request")


def parse_length(line: str, content_length: str | None) -> int | None:
    """Return Content-Length as a number, None if absent. Raises BackendError if it is no number."""
    if content_length is None:
        return None
    if _DIGITS.fullmatch(content_length.strip()) is None:
        raise BackendError(
            f"{line}: Content-Length is {content_length[:40]!r}, not a number", temporary=True
        )
    return int(content_length)


def parse_total(content_range: str | None) -> int | None:
    """Return the blob's size from a Content-Range, None if it does not say."""
    if content_range is None:
        return None
    text = content_range.strip()
    match = _CONTENT_RANGE.fullmatch(text)
    if match is not None:
        return None if match[3] == "*" else int(match[3])
    match = _UNSATISFIED.fullmatch(text)
    return None if match is None else int(match[1])


def _plan_partial(
    line: str, asked: Asked, content_range: str | None, length: int | None
) -> BodyPlan:
    match = _CONTENT_RANGE.fullmatch((content_range or "").strip())
    if match is None:  # a multipart answer has none either
        raise BackendError(
            f"{line}: 206 with Content-Range {_shown(content_range)}", temporary=True
        )
    first, last = int(match[1]), int(match[2])
    end = asked.offset + asked.length
    total = parse_total(content_range)
    if total is not None and total < end:
        raise BackendError(
            f"{line}: the blob has only {total} bytes (Content-Range {_shown(content_range)})"
        )
    if (first, last) != (asked.offset, end - 1):
        raise BackendError(
            f"{line}: the answer holds another range, Content-Range {_shown(content_range)}",
            temporary=True,
        )
    if length is not None and length != asked.length:
        raise BackendError(
            f"{line}: Content-Length is {length}, not the range's {asked.length}", temporary=True
        )
    return BodyPlan(skip=0, length=asked.length, total=asked.length)


def _plan_whole(line: str, asked: Asked, length: int | None) -> BodyPlan:
    end = asked.offset + asked.length
    if length is None:
        raise BackendError(f"{line}: the range was ignored, 200 without Content-Length came")
    if length < end:
        raise BackendError(f"{line}: the range was ignored, and the blob has only {length} bytes")
    if asked.offset > SKIP_MAX_BYTES:
        raise BackendError(
            f"{line}: the range was ignored: 200 with all {length} bytes came; "
            f"only a range within the first {SKIP_MAX_BYTES} is taken out of that"
        )
    return BodyPlan(skip=asked.offset, length=asked.length, total=length)


def _shown(value: str | None) -> str:
    return "missing" if value is None else repr(value[:80])
