"""On-disk records as tables: name, offset and struct code on one line, beside the fact's source.

A record is a NamedTuple whose fields are annotated with `At(offset, code)`; `Record` turns the class
into one precompiled little-endian struct, with pads for the gaps, and refuses overlaps at import::

    class Trailer(NamedTuple):
        size: Annotated[int, At(0, "I")]
        magic: Annotated[int, At(8, "Q")]

    TRAILER = Record(Trailer, size_bytes=16)
    trailer = TRAILER.read(view, offset)
"""

import struct
from mmap import mmap
from typing import (
    Annotated,
    Any,
    Generic,
    NamedTuple,
    TypeVar,
    get_args,
    get_origin,
    get_type_hints,
)

from nydusd.errors import FormatError

T = TypeVar("T", bound=NamedTuple)
Buffer = bytes | bytearray | memoryview | mmap


class At(NamedTuple):
    """Where a field lies: byte offset in the record and its struct code."""

    offset: int
    code: str


class Record(Generic[T]):
    """Reads and writes one kind of record of `size_bytes` bytes."""

    __slots__ = ("_cls", "_struct", "codes", "name", "size_bytes")

    def __init__(self, cls: type[T], size_bytes: int) -> None:
        """Compile the table; raises ValueError (a bug, at import) if fields overlap or exceed the size."""
        self._cls = cls
        self.name = cls.__name__
        self.size_bytes = size_bytes
        code, end = "<", 0
        for name, hint in get_type_hints(cls, include_extras=True).items():
            if get_origin(hint) is not Annotated:
                raise ValueError(f"{cls.__name__}.{name} has no At()")
            at: At = get_args(hint)[1]
            if at.offset < end:
                raise ValueError(f"{cls.__name__}.{name} overlaps its predecessor")
            code += f"{at.offset - end}x{at.code}"
            end = at.offset + struct.calcsize(f"<{at.code}")
        if end > size_bytes:
            raise ValueError(f"{cls.__name__} is longer than {size_bytes} bytes")
        code += f"{size_bytes - end}x"
        self._struct = struct.Struct(code)
        self.codes = code[1:]  # to build a struct of several records, where speed asks for one

    def read(self, view: Buffer, offset: int = 0) -> T:
        """Return the record at `offset`. Raises FormatError if the view ends before it does."""
        if offset < 0 or offset + self.size_bytes > len(view):
            raise FormatError(
                f"{self.name} at {offset}",
                f"{self.size_bytes} bytes",
                f"but only {len(view)} are there",
            )
        return self._cls._make(self._struct.unpack_from(view, offset))

    def pack(self, record: T) -> bytes:
        """Return the record's bytes, gaps zero."""
        return self._struct.pack(*record)

    def pack_into(self, buffer: bytearray | memoryview, offset: int, record: T) -> None:
        """Write the record at `offset`, gaps zero."""
        values: tuple[Any, ...] = tuple(record)
        self._struct.pack_into(buffer, offset, *values)
