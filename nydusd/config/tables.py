"""Strict readers for configuration documents: one table per object, one line per key (spec cli-config B1).

Owns     the rules of types: no string for a number, no fraction, no null where a value must be.
Callers  `v1`, `v2` and `backends`, which hold nothing but tables and what becomes of their fields.
Raises   ConfigError naming document, full key path, value (never a secret's) and rule.
"""

from collections.abc import Callable, Mapping
from typing import Final, Generic, NamedTuple, NoReturn, TypeVar

from nydusd.config.model import Secret
from nydusd.errors import ConfigError

T = TypeVar("T")

U8_MAX: Final = 2**8 - 1
U32_MAX: Final = 2**32 - 1
U64_MAX: Final = 2**64 - 1

SHOWN_MAX_CHARS: Final = 80
KEY_SHOWN_MAX_CHARS: Final = 64

KINDS: Final = {
    bool: "a boolean",
    int: "an integer",
    float: "a number with a fraction",
    str: "a string",
    list: "an array",
    dict: "an object",
    type(None): "null",
}


class ParsedObject(dict[str, object]):
    """A JSON object that remembers which keys it was given more than once."""

    __slots__ = ("repeated",)

    def __init__(self, pairs: list[tuple[str, object]]) -> None:
        """Keep the last of each key, as JSON readers do; tables refuse the others by name."""
        super().__init__(pairs)
        self.repeated: set[str] = set()
        if len(self) != len(pairs):
            seen: set[str] = set()
            for key, _ in pairs:
                (self.repeated if key in seen else seen).add(key)


class Reading:
    """What one pass over one document collects besides its values."""

    __slots__ = ("ignored", "remarks", "silently_ignored", "source")

    def __init__(self, source: str) -> None:
        """`source` names the document in every error."""
        self.source = source
        self.ignored: list[str] = []  # keys that nothing reads
        self.silently_ignored: list[str] = []  # the same, known and harmless
        self.remarks: list[str] = []  # settings that do less than their author may think


class Place(NamedTuple):
    """A key of one document: says where an error lies."""

    reading: Reading
    path: str = ""

    def at(self, key: str | int) -> "Place":
        """Return the place of a member or array item."""
        if isinstance(key, int):
            return Place(self.reading, f"{self.path}[{key}]")
        key = key if len(key) <= KEY_SHOWN_MAX_CHARS else key[:KEY_SHOWN_MAX_CHARS] + "…"
        key = key if key.isprintable() else ascii(key)
        return Place(self.reading, f"{self.path}.{key}" if self.path else key)

    def refuse(self, value: object, rule: str) -> NoReturn:
        """Raise ConfigError: the value here breaks the rule."""
        self.fail(f"is {shown(value)}, must be {rule}")

    def fail(self, what: str) -> NoReturn:
        """Raise ConfigError in free words, which must not hold a secret."""
        raise ConfigError(f"{self.reading.source}: {self.path or 'the document'} {what}")

    def remark(self, text: str) -> None:
        """Note a setting that is accepted and does less than it says."""
        self.reading.remarks.append(f"{self.path} {text}")


Reader = Callable[[object, Place], object]


class Required:
    """The default of a key that has none."""


REQUIRED: Final = Required()


class Key(NamedTuple):
    """One key of a table: its name, who reads its value, what holds without it, the field it fills."""

    name: str
    read: Reader
    default: object = REQUIRED
    field: str = ""


class Rule(NamedTuple, Generic[T]):
    """What must hold for a whole table: `holds` of what was made, else the text about `key`."""

    holds: Callable[[T], object]
    key: str
    text: str


class Table(Generic[T]):
    """Reads one kind of object. Is itself a Reader, so that tables nest."""

    __slots__ = ("_keys", "_make", "_names", "_rules", "_silent")

    def __init__(
        self,
        make: Callable[..., T],
        *keys: Key,
        rules: tuple[Rule[T], ...] = (),
        silent: tuple[str, ...] = (),
    ) -> None:
        """`make` takes the fields by name; `silent` are keys that no one needs to hear are ignored."""
        self._make = make
        self._keys = keys
        self._names = frozenset(key.name for key in keys)
        self._rules = rules
        self._silent = frozenset(silent)

    def __call__(self, value: object, place: Place) -> T:
        """Return what the table makes of the object. Raises ConfigError at the first key that breaks a rule."""
        members = mapping(value, place)
        if isinstance(members, ParsedObject):
            for repeated in sorted(members.repeated & self._names):
                place.at(repeated).fail("is given more than once")
        fields: dict[str, object] = {}
        for key in self._keys:
            if key.name in members:
                fields[key.field or key.name] = key.read(members[key.name], place.at(key.name))
            elif key.default is REQUIRED:
                place.at(key.name).fail("is missing, must be there")
            else:
                fields[key.field or key.name] = key.default
        self._note_unread(members, place)
        made = self._make(**fields)
        for rule in self._rules:
            if not rule.holds(made):
                place.at(rule.key).fail(rule.text)
        return made

    def _note_unread(self, members: Mapping[str, object], place: Place) -> None:
        reading = place.reading
        for unread in members.keys() - self._names:
            ignored = reading.silently_ignored if unread in self._silent else reading.ignored
            ignored.append(place.at(unread).path)


def shown(value: object) -> str:
    """Return how an error names a value: scalars as written but never long, the rest by kind."""
    if value is True or value is False:
        return "true" if value else "false"
    if isinstance(value, int):
        # A long number is not spelt: Python refuses to, beyond 4300 digits.
        return str(value) if value.bit_length() <= 64 else f"{value.bit_length()} bits long"
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, str):
        text = without_userinfo(value)
        cut = text if len(text) <= SHOWN_MAX_CHARS else text[:SHOWN_MAX_CHARS] + "…"
        return ascii(cut)
    return kind_of(value)


def kind_of(value: object) -> str:
    """Return the kind of a document's value in words."""
    for kind, words in KINDS.items():
        if isinstance(value, kind):
            return words
    return f"a {type(value).__name__}"


def without_userinfo(url: str) -> str:
    """Return a URL with user and password, if it has them, as `***`. Rather hides too much than too little."""
    scheme, separator, rest = url.partition("://")
    if not separator:
        scheme, rest = "", url
    userinfo, at, host = rest.rpartition("@")
    return f"{scheme}{separator}***{at}{host}" if userinfo else url


def mapping(value: object, place: Place) -> Mapping[str, object]:
    """Read any object."""
    if not isinstance(value, dict):
        place.fail(f"is {kind_of(value)}, must be an object")
    return value


def anything(value: object, place: Place) -> object:  # noqa: ARG001  a Reader's signature
    """Read nothing yet: another table decides."""
    return value


def boolean(value: object, place: Place) -> bool:
    """Read true or false, no 0, no "yes"."""
    if not isinstance(value, bool):
        place.refuse(value, "true or false")
    return value


def integer(maximum: int, minimum: int = 0) -> Reader:
    """Return a reader of integers of a range, both ends included."""
    rule = f"an integer from {minimum} to {maximum}" if minimum < maximum else str(maximum)

    def read(value: object, place: Place) -> int:
        if type(value) is not int or not minimum <= value <= maximum:
            place.refuse(value, rule)
        return value

    return read


def string(value: object, place: Place) -> str:
    """Read a string; control characters and broken Unicode have no use in any of our settings."""
    if not isinstance(value, str):
        place.refuse(value, "a string")
    if any(char < " " or char == "\x7f" or "\ud800" <= char <= "\udfff" for char in value):
        place.refuse(value, "a string without control characters")
    return value


def name(value: object, place: Place) -> str:
    """Read a string that is not empty."""
    text = string(value, place)
    if not text:
        place.refuse(text, "a string that is not empty")
    return text


def strings(value: object, place: Place) -> tuple[str, ...]:
    """Read an array of strings."""
    if not isinstance(value, list):
        place.refuse(value, "an array of strings")
    return tuple(string(item, place.at(index)) for index, item in enumerate(value))


def string_map(value: object, place: Place) -> dict[str, str]:
    """Read an object whose values are strings. They may be secrets, so errors show none."""
    return {
        key: item if isinstance(item, str) else place.at(key).fail("must be a string")
        for key, item in mapping(value, place).items()
    }


def secret(value: object, place: Place) -> Secret | None:
    """Read a credential that travels in a header: trimmed; null and blank mean none."""
    if value is None:
        return None
    if not isinstance(value, str):
        place.fail("is ***, must be a string")
    text = value.strip()
    if not all("!" <= char <= "~" for char in text):
        place.fail("is ***, must be visible ASCII characters without blanks")
    return Secret(text) if text else None


def choice(*words: str) -> Reader:
    """Return a reader of one word of a list."""

    def read(value: object, place: Place) -> str:
        if not isinstance(value, str) or value not in words:
            place.refuse(value, " or ".join(repr(word) for word in words))
        return value

    return read


def optional(read: Reader) -> Reader:
    """Return a reader that takes null as None, the rest as `read` does."""
    return lambda value, place: None if value is None else read(value, place)


def array(read_item: Reader) -> Reader:
    """Return a reader of arrays whose items all go by one reader."""

    def read(value: object, place: Place) -> tuple[object, ...]:
        if not isinstance(value, list):
            place.fail(f"is {kind_of(value)}, must be an array")
        return tuple(read_item(item, place.at(index)) for index, item in enumerate(value))

    return read
