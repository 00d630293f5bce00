from hypothesis import given
from hypothesis import strategies as st

from nydusd.blob.model import Chunk
from nydusd.storage.planner import following, gap_bytes, plan_fetches
from nydusd.units import KIB, MIB
from tests.support.blobs import ListTable


def chunk(index: int, offset: int, size: int) -> Chunk:
    return Chunk(index, offset, size, index * 4096, 4096, is_compressed=True)


@st.composite
def runs_of_chunks(draw):
    position, chunks = 0, []
    for index in range(draw(st.integers(0, 60))):
        position += draw(st.sampled_from([0, 0, 0, 100, 5000, 200_000]))
        size = draw(st.integers(1, 300_000))
        chunks.append(chunk(index, position, size))
        position += size
    return chunks


@given(absent=runs_of_chunks(), limit=st.integers(0, 4 * MIB))
def test_plan_covers_every_absent_chunk_exactly_once(absent, limit):
    assert [c for fetch in plan_fetches(absent, limit) for c in fetch.chunks] == absent


@given(absent=runs_of_chunks(), limit=st.integers(0, 4 * MIB))
def test_a_fetch_holds_its_chunks_and_no_gap_above_the_rule(absent, limit):
    for fetch in plan_fetches(absent, limit):
        assert fetch.offset == fetch.chunks[0].compressed_offset
        assert fetch.offset + fetch.length == fetch.chunks[-1].compressed_end
        for one, two in zip(fetch.chunks, fetch.chunks[1:], strict=False):
            assert two.compressed_offset - one.compressed_end <= gap_bytes(limit)


@given(absent=runs_of_chunks(), limit=st.integers(0, 4 * MIB))
def test_a_fetch_exceeds_its_limit_by_one_chunk_at_most(absent, limit):
    for fetch in plan_fetches(absent, limit):
        assert fetch.length - fetch.chunks[-1].compressed_size < max(limit, 128 * KIB) + gap_bytes(
            limit
        )


def test_neighbours_stop_at_the_limit_and_skip_what_is_there():
    table = ListTable([chunk(i, i * 1000, 1000) for i in range(10)])
    found, end = following(table, table.chunk(0), 6000, lambda i: i != 2, 8 * KIB)
    assert [c.chunk_index for c in found] == [1, 3, 4, 5]
    assert end == 6


def test_a_broken_record_ends_the_neighbourhood_quietly():
    chunks = [chunk(i, i * 1000, 1000) for i in range(4)]
    table = ListTable(chunks)
    table.__class__ = type("Longer", (ListTable,), {"__len__": lambda _: 9})
    found, _ = following(table, chunks[0], 1 << 30, lambda _: True, 8 * KIB)
    assert [c.chunk_index for c in found] == [1, 2, 3]
