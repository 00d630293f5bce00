"""Request bodies: JSON text → checked values, with the error texts and positions that clients know.

Pure. Every body of this API is one flat object, so its fields are scanned here one after another:
the standard parser reads each value, and the scanner knows where it ended, which is the line and
column an error names (spec api §2). Columns count bytes as the reference does, from 1.
Unknown fields are ignored, a field given twice is refused.

Raises   RefusedError (400) and nothing else, whatever the bytes are.
"""

import json
import re
from collections.abc import Callable
from typing import Final, NamedTuple, NoReturn, TypeVar

from nydusd.api.controller import MountRequest
from nydusd.api.errors import RefusedError, bad_request, body_refused, quoted

T = TypeVar("T")
_WHITESPACE: Final = re.compile(r"[ \t\n\r]*")
_LITERALS: Final = {"n": "null", "t": "true", "f": "false"}
# What the standard parser says, and what the reference says in its place.
_WORDS: Final = {
    "Expecting value": "expected value",
    "Expecting property name enclosed in double quotes": "key must be a string",
    "Expecting ':' delimiter": "expected `:`",
    "Expecting ',' delimiter": "expected `,` or `}`",
    "Unterminated string starting at": "EOF while parsing a string",
    "Invalid control character at": (
        "control character (\\u0000-\\u001F) found while parsing a string"
    ),
}


def log_level(body: bytes) -> str:
    """Read `{"log_level": "info"}`."""
    fields = _Fields(body, "struct DaemonConf")
    return fields.required("log_level", fields.text)


def settings(body: bytes) -> dict[str, str]:
    """Read a map of strings."""
    fields = _Fields(body, "a map", keys_repeat=True)
    return {name: fields.text(name) for name in fields.names()}


def mount_request(body: bytes) -> MountRequest:
    """Read the body of POST and PUT /mount (spec api §3.2)."""
    fields = _Fields(body, "struct ApiMountCmd")
    return MountRequest(
        source=fields.required("source", fields.text),
        fs_type=fields.optional("fs_type", fields.text, ""),
        config=fields.required("config", fields.text),
        prefetch_files=fields.optional("prefetch_files", fields.texts_or_null, ()),
    )


def blob_entry(body: bytes) -> None:
    """Check that a blob cache entry says where its blob comes from (spec cli-config B9, api §5).

    No mode of this daemon keeps such entries yet, so there is nothing to return.
    """
    fields = _Fields(body, "struct BlobCacheEntry")
    fields.required("type", fields.text)
    fields.required("id", fields.text)
    if not {"config", "config_v2"} & set(fields.names()):
        raise bad_request()


class _Value(NamedTuple):
    """A value and where it lies in the text: first character, and the one behind the last."""

    content: object
    start: int
    end: int

    @property
    def noticed_at(self) -> int:
        """Where the reference notices the type: behind a scalar, but in front of a container."""
        noticed = self.start if isinstance(self.content, list | dict) else self.end
        return max(noticed - 1, 0)


class _Fields:
    """The fields of one flat object, and where each lies."""

    def __init__(self, body: bytes, expected: str, *, keys_repeat: bool = False) -> None:
        """Parse; `expected` names the whole in the error for a body that is no object."""
        self._text = _decode(body)
        self._values: dict[str, _Value] = {}
        self._end = self._scan(expected, keys_repeat=keys_repeat)

    def names(self) -> list[str]:
        """Return the names of all fields there are, in their order."""
        return list(self._values)

    def required(self, name: str, read: Callable[[str], T]) -> T:
        """Return field `name` as `read` finds it."""
        if name not in self._values:
            # The reference notices what is missing at the closing brace.
            self._refuse(f"missing field `{name}`", self._end)
        return read(name)

    def optional(self, name: str, read: Callable[[str], T], default: T) -> T:
        """Return field `name` as `read` finds it, or `default`."""
        return read(name) if name in self._values else default

    def text(self, name: str) -> str:
        """Return a field that must be a string."""
        value = self._values[name]
        if not isinstance(value.content, str):
            self._refuse_type(value.content, "a string", value.noticed_at)
        return value.content

    def texts_or_null(self, name: str) -> tuple[str, ...]:
        """Return a field that must be an array of strings; null counts as an empty one."""
        value = self._values[name]
        if value.content is None:
            return ()
        if not isinstance(value.content, list):
            self._refuse_type(value.content, "a sequence", value.noticed_at)
        for item in value.content:
            if not isinstance(item, str):
                self._refuse_type(item, "a string", value.end - 2)
        return tuple(value.content)

    def _scan(self, expected: str, *, keys_repeat: bool) -> int:
        """Fill the table of values; return the position of the closing brace."""
        at = self._skip(0)
        if self._peek(at) != "{":
            value = self._value(at)
            self._refuse_type(value.content, expected, value.noticed_at)
        at = self._skip(at + 1)
        first = True
        while self._peek(at, within="an object") != "}":
            if not first:
                if self._text[at] != ",":
                    self._refuse("expected `,` or `}`", at)
                at = self._skip(at + 1)
                if self._peek(at) == "}":
                    self._refuse("trailing comma", at)
            first = False
            if self._text[at] != '"':
                self._refuse("key must be a string", at)
            name = self._value(at)
            assert isinstance(name.content, str)
            if name.content in self._values and not keys_repeat:
                self._refuse(f"duplicate field `{name.content}`", name.end - 1)
            at = self._skip(name.end)
            if self._peek(at, within="an object") != ":":
                self._refuse("expected `:`", at)
            value = self._value(self._skip(at + 1))
            self._values[name.content] = value
            at = self._skip(value.end)
        behind = self._skip(at + 1)
        if behind < len(self._text):
            self._refuse("trailing characters", behind)
        return at

    def _value(self, at: int) -> _Value:
        """Return the value that begins at `at`."""
        literal = _LITERALS.get(self._peek(at))
        if literal is not None:
            self._expect_literal(literal, at)
        try:
            value, end = _DECODER.raw_decode(self._text, at)
        except json.JSONDecodeError as exc:
            self._refuse_syntax(exc, at)
        except RecursionError:
            self._refuse("recursion limit exceeded", at)
        except ValueError:  # an integer of thousands of digits: Python refuses to convert it
            self._refuse("number out of range", at)
        else:
            return _Value(value, at, end)

    def _expect_literal(self, literal: str, at: int) -> None:
        for offset, char in enumerate(literal):
            if self._peek(at + offset) != char:
                self._refuse("expected ident", at + offset)

    def _refuse_syntax(self, exc: json.JSONDecodeError, at: int) -> NoReturn:
        unterminated = exc.msg == "Unterminated string starting at"
        if exc.pos >= len(self._text) or unterminated:
            self._refuse(
                "EOF while parsing a string" if unterminated else "EOF while parsing a value",
                len(self._text) - 1,
            )
        self._refuse(_WORDS.get(exc.msg, "expected value"), max(exc.pos, at))

    def _refuse_type(self, content: object, expected: str, at: int) -> NoReturn:
        self._refuse(f"invalid type: {_describe(content)}, expected {expected}", at)

    def _skip(self, at: int) -> int:
        blank = _WHITESPACE.match(self._text, at)
        return at if blank is None else blank.end()

    def _peek(self, at: int, within: str = "a value") -> str:
        if at >= len(self._text):
            self._refuse(f"EOF while parsing {within}", len(self._text) - 1)
        return self._text[at]

    def _refuse(self, reason: str, at: int) -> NoReturn:
        raise _refused_at(self._text[: at + 1], reason)


_DECODER: Final = json.JSONDecoder()


def _decode(body: bytes) -> str:
    try:
        return body.decode()
    except UnicodeDecodeError as exc:
        before = body[: exc.start + 1].decode(errors="replace")
        raise _refused_at(before, "invalid unicode code point") from None


def _refused_at(read: str, reason: str) -> RefusedError:
    """Refuse a body of which `read` is what was read so far, the offending character included."""
    last_line = read.rpartition("\n")[2]
    return body_refused(reason, read.count("\n") + 1, len(last_line.encode()))


def _describe(value: object) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return f"boolean `{str(value).lower()}`"
        case int():
            return f"integer `{value}`"
        case float():
            return f"floating point `{value}`"
        case str():
            return f"string {quoted(value)}"
        case list():
            return "sequence"
        case _:
            return "map"
