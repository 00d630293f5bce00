"""Marks: the few chunks of a window whose use tells that its reader goes on."""

import pytest

from nydusd.storage.readahead import MARKS_MAX, STREAMS_MAX, Marks, Streams


def window(streams: Streams, begin: int, end: int) -> tuple[int, Marks]:
    key, _ = streams.miss(begin)
    return key, streams.extended(key, begin, end)


@pytest.mark.parametrize("size", [2, 3, 7, 8, 9, 10, 100, 1000, 4096])
def test_a_reader_who_is_seen_at_the_marks_only_gets_his_next_window_by_the_middle(size: int):
    streams = Streams(100)
    _, marks = window(streams, 50, 50 + size)
    assert 0 < len(marks.watch) <= MARKS_MAX
    told = 0
    for index in range(51, 50 + size):
        if index not in marks.watch:
            continue
        told += 1
        due = streams.touch(index)
        if due is not None:
            assert (due.begin, due.window_bytes) == (50 + size, 200)
            assert index <= 50 + size // 2 + -(-size // MARKS_MAX)
            break
    else:
        pytest.fail("never due")
    assert told <= MARKS_MAX // 2 + 1


def test_the_chunk_that_was_waited_for_is_no_mark():
    _, marks = window(Streams(100), 7, 8)
    assert marks == Marks((), ())


def test_a_mark_counts_once_however_often_it_is_told():
    streams = Streams(100)
    window(streams, 0, 100)
    assert [streams.touch(62) for _ in range(20)] == [None] * 20


def test_marks_that_are_told_out_of_order_count_all():
    streams = Streams(100)
    _, marks = window(streams, 0, 800)
    assert sorted(marks.watch) == [100, 200, 300, 400, 500, 600, 700]
    assert [streams.touch(index) for index in (200, 100, 400)] == [None] * 3
    due = streams.touch(300)
    assert due is not None
    assert due.begin == 800


def test_one_large_read_uses_all_marks_in_it():
    streams = Streams(100)
    window(streams, 0, 800)
    assert streams.touch(1, 399) is None
    due = streams.touch(400, 431)
    assert due is not None


def test_the_next_window_takes_its_marks_and_gives_the_old_ones_back():
    streams = Streams(100)
    key, first = window(streams, 0, 8)
    due = [streams.touch(index) for index in range(1, 5)][-1]
    assert due is not None
    second = streams.extended(due.key, due.begin, 24)
    assert due.key == key
    assert sorted(second.watch) == [8, 10, 12, 14, 16, 18, 20, 22]
    assert set(second.unwatch) == set(first.watch) - {1, 2, 3, 4}
    assert streams.touch(6) is None


def test_a_reader_who_goes_on_is_not_forgotten_for_those_who_miss_here_and_there():
    streams = Streams(100)
    window(streams, 0, 8)
    for number in range(1, STREAMS_MAX + 3):
        streams.touch(1 if number < 3 else 2)
        window(streams, 1000 * number, 1000 * number + 8)
        if number == STREAMS_MAX - 2:
            streams.touch(3)
    assert streams.touch(4) is not None


def test_sixteen_readers_side_by_side_are_told_apart():
    streams = Streams(100)
    for reader in range(16):
        window(streams, 1000 * reader, 1000 * reader + 8)
    due = [[streams.touch(1000 * reader + step) for reader in range(16)] for step in range(1, 5)]
    assert all(due[-1])
    assert not any(due[0] + due[1] + due[2])
