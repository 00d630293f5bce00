"""Chunk map bits through the typed edge: base offset, bounds, several threads."""

import mmap
import threading
from collections.abc import Iterator

import pytest

from nydusd import native
from nydusd.errors import FormatError

BASE = 4096


@pytest.fixture
def chunk_map() -> Iterator[mmap.mmap]:
    mapping = mmap.mmap(-1, BASE + 3)
    yield mapping
    mapping.close()  # raises BufferError if a call kept hold of it


def test_bits_lie_behind_the_base_most_significant_first(chunk_map: mmap.mmap) -> None:
    assert native.mark_ready(chunk_map, BASE, 20, [0, 9, 19]) == 3
    assert chunk_map[:BASE] == bytes(BASE)
    assert chunk_map[BASE:] == bytes([0x80, 0x40, 0x10])


def test_marking_counts_only_bits_that_were_clear(chunk_map: mmap.mmap) -> None:
    assert native.mark_ready(chunk_map, BASE, 20, [1, 1, 2]) == 2
    assert native.mark_ready(chunk_map, BASE, 20, (2, 3)) == 1
    assert native.mark_ready(chunk_map, BASE, 20, []) == 0
    assert native.count_ready(chunk_map, BASE, 20) == 3


def test_ready_and_absent_are_read_back(chunk_map: mmap.mmap) -> None:
    native.mark_ready(chunk_map, BASE, 20, [0, 1, 3])
    assert [native.is_ready(chunk_map, BASE, 20, i) for i in range(5)] == [1, 1, 0, 1, 0]
    assert native.next_absent(chunk_map, BASE, 20, 0) == 2
    assert native.next_absent(chunk_map, BASE, 20, 3) == 4
    assert native.next_absent(chunk_map, BASE, 20, 20) is None


def test_a_full_map_has_no_absent_chunk(chunk_map: mmap.mmap) -> None:
    assert native.mark_ready(chunk_map, BASE, 20, range(20)) == 20
    assert native.count_ready(chunk_map, BASE, 20) == 20
    assert native.next_absent(chunk_map, BASE, 20, 0) is None


@pytest.mark.parametrize("index", [-1, 20, 1 << 32, 1 << 70])
def test_an_index_outside_is_refused_and_sets_nothing(chunk_map: mmap.mmap, index: int) -> None:
    with pytest.raises(FormatError, match="below chunk_count 20"):
        native.mark_ready(chunk_map, BASE, 20, [3, index])
    with pytest.raises(FormatError, match="below chunk_count 20"):
        native.is_ready(chunk_map, BASE, 20, index)
    assert native.count_ready(chunk_map, BASE, 20) == 0


def test_a_map_that_is_too_short_is_refused(chunk_map: mmap.mmap) -> None:
    for count in (25, 1 << 24, 1 << 80, -1):
        with pytest.raises(FormatError, match="chunk map size"):
            native.count_ready(chunk_map, BASE, count)
    with pytest.raises(FormatError, match="chunk map size"):
        native.mark_ready(chunk_map, BASE + 1, 20, [0])
    with pytest.raises(FormatError, match="chunk map size"):
        native.next_absent(chunk_map, -1, 20, 0)


def test_a_refused_call_lets_go_of_the_mapping() -> None:
    mapping = mmap.mmap(-1, BASE + 3)
    with pytest.raises(FormatError) as caught:
        native.mark_ready(mapping, BASE, 25, [0])
    mapping.close()  # while the exception is still alive
    assert caught.value.field == "chunk map size"


def test_a_read_only_map_cannot_be_marked() -> None:
    with pytest.raises((BufferError, TypeError)):
        native.mark_ready(memoryview(bytes(3)), 0, 20, [0])


def test_threads_lose_no_bit_and_count_each_once() -> None:
    count, threads = 4000, 4
    bits = bytearray(count // 8)
    fresh = [0] * threads

    def mark(number: int) -> None:
        for start in range(0, count, 8):  # every thread sets all bits, each byte in its own order
            order = [start + (i + 2 * number) % 8 for i in range(8)]
            fresh[number] += native.mark_ready(bits, 0, count, order)

    workers = [threading.Thread(target=mark, args=(number,)) for number in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert native.count_ready(bits, 0, count) == count
    assert sum(fresh) == count
