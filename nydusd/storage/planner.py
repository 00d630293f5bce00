"""Which backend requests fetch which chunks. Pure: chunks in, fetches out (spec blobcache §8.1, §8.3).

Only the order in the stored blob counts here. A fetch is one ranged read; the stored bytes between two
of its chunks (`gap`) are paid for and thrown away, because that is cheaper than another round trip.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Final, NamedTuple

from nydusd.blob.model import Chunk, ChunkTable
from nydusd.errors import FormatError, UnsupportedError
from nydusd.units import KIB

MERGE_FLOOR_BYTES: Final = 128 * KIB  # even without amplification neighbours merge up to here
GAP_SHIFT_BITS: Final = 7  # gap = limit >> 7: 8 KiB for 1 MiB (spec blobcache §8.1)


class Fetch(NamedTuple):
    """One backend read, `[offset, offset + length)` of the stored blob, and the chunks it is for."""

    offset: int
    length: int
    chunks: tuple[Chunk, ...]  # ascending by compressed_offset, not overlapping more than stored


def gap_bytes(limit_bytes: int) -> int:
    """Return how many unwanted stored bytes are worth fetching to save a request."""
    return max(limit_bytes, MERGE_FLOOR_BYTES) >> GAP_SHIFT_BITS


def plan_fetches(absent: Iterable[Chunk], limit_bytes: int) -> list[Fetch]:
    """Group absent chunks into backend requests, each chunk in exactly one.

    A request closes when it has reached max(limit, 128 KiB), so it may exceed that by one chunk; it
    never spans a gap above limit/128.
    """
    limit = max(limit_bytes, MERGE_FLOOR_BYTES)
    gap = gap_bytes(limit_bytes)
    fetches: list[Fetch] = []
    group: list[Chunk] = []
    start = end = 0
    for chunk in sorted(absent, key=lambda c: (c.compressed_offset, c.chunk_index)):
        if group and (chunk.compressed_offset > end + gap or end - start >= limit):
            fetches.append(Fetch(start, end - start, tuple(group)))
            group = []
        if not group:
            start, end = chunk.compressed_offset, chunk.compressed_end
        group.append(chunk)
        end = max(end, chunk.compressed_end)
    if group:
        fetches.append(Fetch(start, end - start, tuple(group)))
    return fetches


def following(
    table: ChunkTable,
    last: Chunk,
    end_limit: int,
    is_absent: Callable[[int], bool],
    gap_bytes: int,
) -> tuple[list[Chunk], int]:
    """Return the absent chunks behind `last` that lie before stored offset `end_limit`, and where to go on.

    Chunks are taken in index order while they ascend in the stored blob and no more than `gap_bytes` of
    unwanted bytes lie between two of them. The second value is the index of the first chunk not looked
    at, len(table) at the end of the blob. A broken record ends the run: speculation raises nothing.
    """
    found: list[Chunk] = []
    end = last.compressed_end  # of what would be transferred anyway
    index = last.chunk_index + 1
    while index < len(table):
        try:
            chunk = table.chunk(index)
        except (FormatError, UnsupportedError):
            break
        if chunk.compressed_offset < end or chunk.compressed_end > end_limit:
            break
        if is_absent(index):
            if chunk.compressed_offset - end > gap_bytes:
                break
            found.append(chunk)
            end = chunk.compressed_end
        elif chunk.compressed_end - end > gap_bytes:
            break
        index += 1
    return found, index


def stored_bytes(chunks: Sequence[Chunk]) -> int:
    """Return the sum of stored sizes."""
    return sum(chunk.compressed_size for chunk in chunks)
