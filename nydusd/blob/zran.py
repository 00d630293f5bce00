"""Contexts of zran: places in a gzip file from where it can be inflated (spec blob §9).

An image that references an OCI layer takes its chunks out of the layer's own gzip stream. Each context says
where in the stored layer to begin, in the middle of a byte if need be, with what 32 KiB of history, and
how many bytes come out; a chunk is a piece of those.

Owns     nothing: a view of the table and the dictionaries behind a blob's chunk records.
Callers  blob_meta.py, for each chunk of such a blob; decoding in worker threads calls `decode`.
Raises   FormatError for a context that breaks a rule, the others stay usable.
"""

from typing import Annotated, Final, NamedTuple

from nydusd import native
from nydusd.blob.model import BlobInfo
from nydusd.errors import FormatError
from nydusd.records import At, Buffer, Record
from nydusd.units import KIB, MIB

CONTEXT_BYTES: Final = 40
PLAIN_MAX_BYTES: Final = 16 * MIB
# Builders close a context at 512 KiB stored, or behind its first chunk, whose 16 MiB deflate can hardly
# enlarge. Empty deflate blocks could without end: what is fetched for a chunk must have one.
STORED_MAX_BYTES: Final = 32 * MIB
DICTIONARY_MAX_BYTES: Final = 32 * KIB
BITS_MAX: Final = 7


class ContextRecord(NamedTuple):
    """One context, 40 bytes (spec blob §9)."""

    in_offset: Annotated[int, At(0, "Q")]  # in the stored layer
    out_offset: Annotated[int, At(8, "Q")]  # in the whole tar; informative
    dict_offset: Annotated[int, At(16, "Q")]  # from the end of the table
    in_len: Annotated[int, At(24, "I")]
    out_len: Annotated[int, At(28, "I")]
    dict_size: Annotated[int, At(32, "I")]
    ctx_byte: Annotated[int, At(36, "B")]  # the one before in_offset
    ctx_bits: Annotated[int, At(37, "B")]  # how many of its high bits are still to be read


CONTEXT: Final = Record(ContextRecord, size_bytes=CONTEXT_BYTES)


class ZranContext(NamedTuple):
    """One context, checked; see model.Context."""

    number: int
    compressed_offset: int
    compressed_size: int
    uncompressed_size: int
    dictionary: Buffer
    prior_byte: int
    prior_bits: int

    def decode(self, stored: Buffer) -> Buffer | None:
        """Return the plain bytes of the stored ones, None if these do not give just as many."""
        return native.inflate_context(
            stored, self.uncompressed_size, self.dictionary, self.prior_byte, self.prior_bits
        )


class ZranContexts:
    """The contexts of one blob, read when asked for."""

    __slots__ = ("_area", "_count", "_info", "_last")

    def __init__(self, area: memoryview, count: int, info: BlobInfo) -> None:
        """area: the table of `count` contexts, which it must hold, and their dictionaries; is kept."""
        self._area = area
        self._count = count
        self._info = info
        self._last: ZranContext | None = None  # neighbouring chunks share one

    def context(self, number: int, stored_offset: int) -> ZranContext:  # noqa: ARG002 - the protocol's
        """Return context `number`, within the bounds of the layer and of the formats."""
        last = self._last
        if last is not None and last.number == number:
            return last
        source = f"blob {self._info.blob_id}"
        if not 0 <= number < self._count:
            raise FormatError("zran context", number, f"must be below {self._count}", source)
        record = CONTEXT.read(self._area, number * CONTEXT_BYTES)
        dictionaries = self._area[self._count * CONTEXT_BYTES :]
        layer = self._info.compressed_data_size
        rules = (
            ("stored size", record.in_len, 1, STORED_MAX_BYTES),
            ("stored end", record.in_offset + record.in_len, 1, layer),
            ("plain size", record.out_len, 1, PLAIN_MAX_BYTES),
            ("dictionary size", record.dict_size, 0, DICTIONARY_MAX_BYTES),
            ("dictionary end", record.dict_offset + record.dict_size, 0, len(dictionaries)),
            ("bits", record.ctx_bits, 0, BITS_MAX),
        )
        for field, value, low, high in rules:
            if not low <= value <= high and (record.dict_size or field != "dictionary end"):
                rule = f"must be {low} to {high}"
                raise FormatError(f"zran context {number} {field}", value, rule, source)
        self._last = ZranContext(
            number,
            record.in_offset,
            record.in_len,
            record.out_len,
            dictionaries[record.dict_offset : record.dict_offset + record.dict_size],
            record.ctx_byte,
            record.ctx_bits,
        )
        return self._last
