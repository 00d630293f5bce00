"""Batches: small chunks that were compressed, and maybe encrypted, together (spec blob §10).

A batch is what other formats would call a solid block. Its sizes stand behind the chunk records; where it
is stored, and where in its plain bytes a chunk begins, stands in the chunk's own record.

Owns     nothing: a view of the contexts behind a blob's chunk records.
Callers  blob_meta.py, for each chunk of such a blob; decoding in worker threads calls `decode`.
Raises   FormatError for a batch that breaks a rule, the others stay usable.
"""

from typing import Annotated, Final, NamedTuple

from nydusd import native
from nydusd.blob.encryption import PADDED_BYTES, UNIT_MIN_BYTES, unpadded_size
from nydusd.blob.model import BlobFeature, BlobInfo, Codec
from nydusd.errors import FormatError
from nydusd.records import At, Buffer, Record
from nydusd.units import MIB

CONTEXT_BYTES: Final = 40
PLAIN_MAX_BYTES: Final = 16 * MIB
COMPRESSED_END_MAX: Final = 1 << 40  # the largest blob (spec rafs-v6 §6.1)


class ContextRecord(NamedTuple):
    """One batch, 40 bytes, of which 32 are reserved (spec blob §10)."""

    compressed_size: Annotated[int, At(0, "I")]  # as stored: once it is encrypted
    uncompressed_size: Annotated[int, At(4, "I")]  # its chunks', one behind the other


CONTEXT: Final = Record(ContextRecord, size_bytes=CONTEXT_BYTES)


class Batch(NamedTuple):
    """One batch, checked; see model.Context."""

    number: int
    compressed_offset: int
    compressed_size: int
    uncompressed_size: int
    codec: Codec
    is_encrypted: bool

    def decode(self, stored: Buffer) -> Buffer | None:
        """Return the plain bytes of the stored ones, None if these do not give just as many.

        stored: decrypted. A batch that did not shrink is stored as it is, and returned without a copy.
        """
        if self.is_encrypted:
            stored = memoryview(stored)[: unpadded_size(stored)]
        if len(stored) == self.uncompressed_size:
            return stored
        return native.decompress(self.codec, stored, self.uncompressed_size)


class Batches:
    """The batches of one blob, read when asked for."""

    __slots__ = ("_area", "_count", "_info", "_last")

    def __init__(self, area: memoryview, count: int, info: BlobInfo) -> None:
        """area: the contexts, as many as the header says or fewer; is kept."""
        self._area = area
        self._count = min(count, len(area) // CONTEXT_BYTES)
        self._info = info
        self._last: Batch | None = None  # neighbouring chunks share one

    def context(self, number: int, stored_offset: int) -> Batch:
        """Return batch `number`, which is stored from that place of the blob on, within all bounds."""
        last = self._last
        if last is not None and (last.number, last.compressed_offset) == (number, stored_offset):
            return last
        info, source = self._info, f"blob {self._info.blob_id}"
        if not 0 <= number < self._count:
            raise FormatError("batch", number, f"must be below {self._count}", source)
        record = CONTEXT.read(self._area, number * CONTEXT_BYTES)
        is_encrypted = BlobFeature.ENCRYPTED in info.features
        least = UNIT_MIN_BYTES if is_encrypted else 1
        most = max(record.uncompressed_size, PADDED_BYTES if is_encrypted else 0)
        end = info.compressed_data_size
        if BlobFeature.IS_CHUNKDICT_GENERATED in info.features:
            end = COMPRESSED_END_MAX  # of what it says of sizes, nothing holds
        rules = (
            ("plain size", record.uncompressed_size, 1, PLAIN_MAX_BYTES),
            ("stored size", record.compressed_size, least, most),
            ("stored end", stored_offset + record.compressed_size, 1, end),
        )
        for field, value, low, high in rules:
            if not low <= value <= high:
                rule = f"must be {low} to {high}"
                raise FormatError(f"batch {number} {field}", value, rule, source)
        self._last = Batch(number, stored_offset, *record, info.codec, is_encrypted)
        return self._last
