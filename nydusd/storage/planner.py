"""Which backend requests fetch which chunks. Pure: chunks in, fetches out (spec blobcache §8.1, §8.3).

Only the order in the stored blob counts here. A fetch is one ranged read; the stored bytes between two
of its chunks (`gap`) are paid for and thrown away, because that is cheaper than another round trip.

Chunks of one context share its stored range: it is paid for once, and fetched and decoded for all of
them together. Contexts of zran overlap, so a stored range may be paid for already, too.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final, NamedTuple

from nydusd.blob.model import Chunk, ChunkTable
from nydusd.errors import FormatError, UnsupportedError
from nydusd.units import KIB, MIB

MERGE_FLOOR_BYTES: Final = 128 * KIB  # even without amplification neighbours merge up to here
GAP_SHIFT_BITS: Final = 7  # gap = limit >> 7: 8 KiB for 1 MiB (spec blobcache §8.1)
COMPANIONS_MAX: Final = (
    4096  # looked at on either side of a chunk; a real context has some hundreds
)
AHEAD_PLAIN_MAX: Final = (
    64 * MIB
)  # bytes of contexts to decode unasked: a stored byte may give 1000


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

    A request closes when it has reached max(limit, 128 KiB), so it may exceed that by one chunk or
    context; it never spans a gap above limit/128. What lies within it already never closes it.
    """
    limit = max(limit_bytes, MERGE_FLOOR_BYTES)
    gap = gap_bytes(limit_bytes)
    fetches: list[Fetch] = []
    group: list[Chunk] = []
    start = end = 0
    for chunk in sorted(absent, key=lambda c: (c.compressed_offset, c.chunk_index)):
        is_free = group and chunk.compressed_end <= end
        is_far = chunk.compressed_offset > end + gap or end - start >= limit
        if group and is_far and not is_free:
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
    context, plain = last.context, 0
    index = last.chunk_index + 1
    while index < len(table):
        try:
            chunk = table.chunk(index)
        except (FormatError, UnsupportedError):
            break
        if chunk.compressed_end > end_limit:
            break
        if chunk.context is None:
            if chunk.compressed_offset < end:
                break
        else:
            plain += chunk.uncompressed_size
            if context is None or chunk.context.number != context.number:
                plain += chunk.context.uncompressed_size
                if chunk.compressed_end <= end:
                    break
            if plain > AHEAD_PLAIN_MAX:
                break
        context = chunk.context
        if is_absent(index):
            if chunk.compressed_offset - end > gap_bytes:
                break
            found.append(chunk)
            end = chunk.compressed_end
        elif chunk.compressed_end - end > gap_bytes:
            break
        index += 1
    return found, index


def with_companions(
    table: ChunkTable, chunks: Iterable[Chunk], is_absent: Callable[[int], bool]
) -> list[Chunk]:
    """Return `chunks` and the absent ones that come out of the same contexts, each once, ascending.

    Those lie around them in index order, at most COMPANIONS_MAX on either side, and all together are no
    more than the context gives. A broken record ends the look on its side: whoever reads that chunk gets
    the error.
    """
    found = {chunk.chunk_index: chunk for chunk in chunks}
    seen: set[int] = set()
    for chunk in list(found.values()):
        if chunk.context is None or chunk.context.number in seen:
            continue
        seen.add(chunk.context.number)
        here, room = chunk.chunk_index, chunk.context.uncompressed_size - chunk.uncompressed_size
        last = min(here + COMPANIONS_MAX, len(table) - 1)
        for side in (
            range(here - 1, max(here - COMPANIONS_MAX, 0) - 1, -1),
            range(here + 1, last + 1),
        ):
            for index in side:
                try:
                    other = table.chunk(index)
                except (FormatError, UnsupportedError):
                    break
                if other.context is None or other.context.number != chunk.context.number:
                    break
                room -= other.uncompressed_size
                if room < 0:
                    break
                if index not in found and is_absent(index):
                    found[index] = other
    return [found[index] for index in sorted(found)]


def within_room(chunks: Sequence[Chunk], room_bytes: int) -> int:
    """Return how many of the first `chunks` have no more than `room_bytes` stored bytes together."""
    for number, size in enumerate(_costs(chunks)):
        room_bytes -= size
        if room_bytes < 0:
            return number
    return len(chunks)


def stored_bytes(chunks: Iterable[Chunk]) -> int:
    """Return the sum of stored sizes, each context's once if its chunks follow each other."""
    return sum(_costs(chunks))


def added_bytes(chunk: Chunk, before: Chunk | None) -> int:
    """Return the stored bytes of `chunk`, 0 if it comes out of the same context as the one before it."""
    if before is None or chunk.context is None or before.context is None:
        return chunk.compressed_size
    return 0 if chunk.context.number == before.context.number else chunk.compressed_size


def _costs(chunks: Iterable[Chunk]) -> Iterator[int]:
    before: Chunk | None = None
    for chunk in chunks:
        yield added_bytes(chunk, before)
        before = chunk
