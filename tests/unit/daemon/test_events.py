"""The last errors of the log (spec api §3.1)."""

import logging
import re

import pytest

from nydusd.daemon.events import EVENTS_MAX, EVENTS_MAX_BYTES, EventRing


@pytest.fixture
def ring() -> EventRing:
    return EventRing()


def record(text: str, *arguments: object, level: int = logging.ERROR) -> logging.LogRecord:
    made = logging.LogRecord("test", level, __file__, 1, text, arguments, None)
    made.created = 1_784_864_689.5
    return made


def texts(ring: EventRing) -> list[str]:
    errors = ring.view()["errors"]
    assert isinstance(errors, list)
    return [line.partition(" - ")[2] for line in errors]


def test_an_empty_ring_shows_its_limits(ring: EventRing) -> None:
    assert ring.view() == {
        "max_errors": 500,
        "total_errors": 0,
        "max_size": 51_200,
        "total_size": 0,
        "errors": [],
    }


def test_a_line_is_a_date_and_the_text(ring: EventRing) -> None:
    ring.handle(record("chunk %d of %s", 7, "blob"))
    line = "Fri, 24 Jul 2026 03:44:49 GMT - chunk 7 of blob"
    assert ring.view()["errors"] == [line]
    assert (ring.view()["total_errors"], ring.view()["total_size"]) == (1, len(line))


def test_only_errors_are_kept(ring: EventRing) -> None:
    log = logging.getLogger("ring")
    log.propagate = False
    log.addHandler(ring)
    log.warning("served, but degraded")
    log.error("someone must act")
    log.removeHandler(ring)
    assert texts(ring) == ["someone must act"]


def test_the_oldest_give_way_to_the_newest_by_count(ring: EventRing) -> None:
    for number in range(EVENTS_MAX + 3):
        ring.handle(record(str(number)))
    assert texts(ring)[0] == "3"
    assert len(texts(ring)) == ring.view()["total_errors"] == EVENTS_MAX


def test_the_oldest_give_way_to_the_newest_by_size(ring: EventRing) -> None:
    for number in range(20):
        ring.handle(record(f"{number}{'é' * 3000}"))
    total = ring.view()["total_size"]
    assert isinstance(total, int)
    assert total <= EVENTS_MAX_BYTES
    kept = [re.match(r"\d+", text) for text in texts(ring)]
    assert [match[0] for match in kept if match] == [str(n) for n in range(12, 20)]


def test_one_line_longer_than_the_ring_is_cut(ring: EventRing) -> None:
    ring.handle(record("first"))
    ring.handle(record("é" * EVENTS_MAX_BYTES))
    assert ring.view()["total_errors"] == 1
    assert ring.view()["total_size"] in (EVENTS_MAX_BYTES, EVENTS_MAX_BYTES - 1)


def test_a_record_that_cannot_be_formatted_is_kept_as_it_is(ring: EventRing) -> None:
    ring.handle(record("%d chunks", "many"))
    assert texts(ring) == ["%d chunks"]


def test_what_looks_like_a_credential_is_blotted_out(ring: EventRing) -> None:
    ring.handle(record("sent Authorization: Basic dXNlcjpwYXNz"))
    assert "dXNlcjpwYXNz" not in texts(ring)[0]
