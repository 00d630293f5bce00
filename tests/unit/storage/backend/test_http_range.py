"""An answer to a range request is believed only where it says which bytes it holds."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nydusd.errors import BackendError
from nydusd.storage.backend.base import Asked
from nydusd.storage.backend.http_range import (
    SKIP_MAX_BYTES,
    BodyPlan,
    parse_total,
    plan_body,
    range_header,
)

ASKED = Asked("b", 100, 50)


def plan(
    status: int, content_range: str | None, content_length: str | None, asked: Asked = ASKED
) -> BodyPlan:
    return plan_body("GET url", asked, status, content_range, content_length)


def test_a_range_is_asked_for_with_its_last_byte() -> None:
    assert range_header(ASKED) == "bytes=100-149"


@pytest.mark.parametrize(
    "content_range", ["bytes 100-149/150", "bytes 100-149/9999", "bytes 100-149/*"]
)
@pytest.mark.parametrize("content_length", ["50", None])
def test_the_asked_range_is_taken_whole(content_range: str, content_length: str | None) -> None:
    body = plan(206, content_range, content_length)
    assert body == BodyPlan(skip=0, length=50, total=50)
    assert not body.leaves_rest


@pytest.mark.parametrize(
    ("content_range", "content_length", "says"),
    [
        (None, "50", "Content-Range missing"),
        ("", "50", "Content-Range"),
        ("bytes 100-149", "50", "Content-Range"),
        ("bytes 100-149/150, bytes 1-2/150", "50", "Content-Range"),
        ("bytes */150", "50", "Content-Range"),
        ("octets 100-149/150", "50", "Content-Range"),
        ("bytes \u0661\u0660\u0660-149/150", "50", "Content-Range"),
        ("bytes 99-148/150", "50", "another range"),
        ("bytes 100-148/150", "49", "another range"),
        ("bytes 0-149/150", "150", "another range"),
        ("bytes 149-100/150", "50", "another range"),
        ("bytes 100-149/149", "50", "only 149 bytes"),
        ("bytes 100-149/150", "49", "Content-Length is 49"),
        ("bytes 100-149/150", "51", "Content-Length is 51"),
        ("bytes 100-149/150", "-50", "not a number"),
        ("bytes 100-149/150", "5e1", "not a number"),
    ],
)
def test_any_other_partial_answer_is_refused(
    content_range: str | None, content_length: str, says: str
) -> None:
    with pytest.raises(BackendError, match=says) as caught:
        plan(206, content_range, content_length)
    assert str(caught.value).startswith("GET url: ")


def test_a_whole_blob_is_cut_down_where_little_is_wasted() -> None:
    body = plan(200, None, "1000")
    assert body == BodyPlan(skip=100, length=50, total=1000)
    assert body.leaves_rest
    assert not plan(200, None, "150").leaves_rest


@pytest.mark.parametrize(
    ("asked", "content_length", "says"),
    [
        (ASKED, None, "without Content-Length"),
        (ASKED, "149", "only 149 bytes"),
        (Asked("b", SKIP_MAX_BYTES + 1, 1), str(1 << 40), "range was ignored"),
    ],
)
def test_a_whole_blob_that_would_cost_too_much_is_refused(
    asked: Asked, content_length: str | None, says: str
) -> None:
    with pytest.raises(BackendError, match=says) as caught:
        plan(200, None, content_length, asked)
    assert not caught.value.temporary


@pytest.mark.parametrize("status", [100, 201, 204, 304, 416])
def test_other_statuses_are_no_answer(status: int) -> None:
    with pytest.raises(BackendError, match=str(status)):
        plan(status, "bytes 100-149/150", "50")


@pytest.mark.parametrize(
    ("value", "total"),
    [("bytes 0-0/77", 77), ("bytes */77", 77), ("bytes 0-0/*", None), ("x", None), (None, None)],
)
def test_the_total_is_read_where_it_is_named(value: str | None, total: int | None) -> None:
    assert parse_total(value) == total


@given(
    offset=st.integers(0, 300),
    length=st.integers(1, 300),
    first=st.integers(0, 300),
    count=st.integers(1, 300),
    total=st.integers(0, 700),
)
def test_only_the_exact_range_within_the_blob_is_believed(
    offset: int, length: int, first: int, count: int, total: int
) -> None:
    asked = Asked("b", offset, length)
    exact = (first, count) == (offset, length) and total >= offset + length
    content_range = f"bytes {first}-{first + count - 1}/{total}"
    try:
        body = plan(206, content_range, str(count), asked)
    except BackendError:
        assert not exact
    else:
        assert exact
        assert body.length == length
