"""Fetches of chunks that lie in contexts: whole contexts, each once, and not too many unasked."""

from typing import NamedTuple

from hypothesis import given
from hypothesis import strategies as st

from nydusd.blob.model import Chunk
from nydusd.storage.planner import (
    AHEAD_PLAIN_MAX,
    COMPANIONS_MAX,
    following,
    gap_bytes,
    plan_fetches,
    stored_bytes,
    with_companions,
    within_room,
)
from nydusd.units import KIB, MIB
from tests.support.blobs import ListTable


class FakeContext(NamedTuple):
    number: int
    compressed_offset: int
    compressed_size: int
    uncompressed_size: int

    def decode(self, stored: object) -> None:
        raise AssertionError("nothing is decoded here")


def member(index: int, context: FakeContext, size: int = 1000) -> Chunk:
    return Chunk(
        index,
        context.compressed_offset,
        context.compressed_size,
        4096 * index,
        size,
        is_compressed=True,
        context=context,
    )


def table_of(contexts: list[tuple[FakeContext, int]]) -> ListTable:
    """Return the chunks of contexts, that many of each, in order."""
    chunks: list[Chunk] = []
    for context, count in contexts:
        chunks += [member(len(chunks) + i, context) for i in range(count)]
    return ListTable(chunks)


@st.composite
def layers(draw: st.DrawFn) -> ListTable:
    """Contexts as builders make them: ascending, the next one beginning before the last one's end."""
    start, contexts = 0, []
    for number in range(draw(st.integers(1, 8))):
        length = draw(st.integers(1_000, 900_000))
        contexts.append((FakeContext(number, start, length, 1 << 20), draw(st.integers(1, 6))))
        start += length - draw(st.integers(0, min(length - 1, 40_000)))
    return table_of(contexts)


@given(table=layers(), limit=st.integers(0, 4 * MIB), data=st.data())
def test_a_context_is_fetched_whole_and_by_one_fetch(table, limit, data):
    asked = data.draw(st.sets(st.integers(0, len(table) - 1), min_size=1))
    wanted = with_companions(table, [table.chunk(i) for i in sorted(asked)], lambda _: True)
    fetches = plan_fetches(wanted, limit)
    planned = [chunk.chunk_index for fetch in fetches for chunk in fetch.chunks]
    assert sorted(planned) == [chunk.chunk_index for chunk in wanted]
    assert len(set(planned)) == len(planned)
    seen: set[int] = set()
    for fetch in fetches:
        numbers = {chunk.context.number for chunk in fetch.chunks}
        assert not numbers & seen
        seen |= numbers
        for chunk in fetch.chunks:
            assert fetch.offset <= chunk.compressed_offset
            assert chunk.compressed_end <= fetch.offset + fetch.length
    assert seen == {table.chunk(index).context.number for index in asked}


@given(table=layers(), data=st.data())
def test_companions_are_all_absent_chunks_of_the_contexts_and_no_others(table, data):
    asked = data.draw(st.sets(st.integers(0, len(table) - 1), min_size=1))
    ready = data.draw(st.sets(st.integers(0, len(table) - 1))) - asked
    found = with_companions(table, [table.chunk(i) for i in asked], lambda i: i not in ready)
    numbers = {table.chunk(index).context.number for index in asked}
    assert [chunk.chunk_index for chunk in found] == [
        chunk.chunk_index
        for chunk in table.chunks
        if chunk.context.number in numbers and chunk.chunk_index not in ready
    ]


def test_a_chunk_by_itself_has_no_companions():
    chunks = [Chunk(i, 100 * i, 100, 4096 * i, 100, is_compressed=False) for i in range(3)]
    assert with_companions(ListTable(chunks), chunks[1:2], lambda _: True) == chunks[1:2]


def test_chunks_that_claim_more_than_their_context_gives_are_not_taken_along():
    context = FakeContext(0, 0, 100, 10_000)
    table = ListTable([member(index, context, 4_000) for index in range(6)])
    assert len(with_companions(table, [table.chunk(3)], lambda _: True)) == 2
    crowd = table_of([(FakeContext(0, 0, 100, 16 * MIB), 3 * COMPANIONS_MAX)])
    found = with_companions(crowd, [crowd.chunk(COMPANIONS_MAX + 5)], lambda _: True)
    assert len(found) == 2 * COMPANIONS_MAX + 1


def test_a_record_that_breaks_ends_the_look_on_its_side_only():
    context = FakeContext(0, 0, 100, 10_000)
    chunks = [member(index, context) for index in range(4)]
    table = ListTable(chunks)
    table.__class__ = type("Longer", (ListTable,), {"__len__": lambda _: 9})
    assert with_companions(table, chunks[2:3], lambda _: True) == chunks


def test_a_contexts_stored_bytes_count_once():
    one, two = FakeContext(0, 0, 300, 9_000), FakeContext(1, 250, 300, 9_000)
    table = table_of([(one, 3), (two, 2)])
    assert stored_bytes(table.chunks) == 600
    assert within_room(table.chunks, 599) == 3
    assert within_room(table.chunks, 600) == 5
    assert within_room(table.chunks, 299) == 0


def test_readahead_takes_contexts_that_overlap_and_ends_with_whole_ones():
    contexts = [(FakeContext(n, n * 250 * KIB, 300 * KIB, MIB), 4) for n in range(6)]
    table = table_of(contexts)
    found, end = following(table, table.chunk(3), 900 * KIB, lambda _: True, gap_bytes(MIB))
    assert [chunk.chunk_index for chunk in found] == list(range(4, 12))
    assert end == 12


def test_readahead_does_not_decode_without_end_what_a_few_bytes_claim_to_be():
    bombs = table_of([(FakeContext(n, n, 100, 16 * MIB), 1) for n in range(500)])
    found, _ = following(bombs, bombs.chunk(0), MIB, lambda _: True, gap_bytes(MIB))
    assert sum(chunk.context.uncompressed_size for chunk in found) <= AHEAD_PLAIN_MAX
    # All chunks of one context are the same bytes, written again and again.
    copies = ListTable([member(n, FakeContext(1, 0, 100, 16 * MIB), MIB) for n in range(500)])
    found, _ = following(copies, copies.chunk(0), MIB, lambda _: True, gap_bytes(MIB))
    assert len(found) <= AHEAD_PLAIN_MAX // MIB


def test_readahead_does_not_run_in_circles():
    around = table_of([(FakeContext(n % 2, 0, 100, MIB), 1) for n in range(50)])
    found, end = following(around, around.chunk(0), MIB, lambda _: True, gap_bytes(MIB))
    assert found == []
    assert end == 1
