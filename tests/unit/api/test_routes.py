"""Requests → commands (spec api §1, §3, §5)."""

import pytest

from nydusd.api.controller import MountRequest
from nydusd.api.errors import RefusedError
from nydusd.api.routes import ROUTES, Call, parse

BODIES = {
    Call.SET_LOG_LEVEL: b'{"log_level":"info"}',
    Call.MOUNT: b'{"source":"s","config":"c"}',
    Call.REMOUNT: b'{"source":"s","config":"c"}',
    Call.PUT_SETTINGS: b'{"registry_auth":"eA=="}',
    Call.PUT_BLOB: b'{"type":"bootstrap","id":"x","config":{}}',
}
EVERY_ROUTE = [(path, method) for path, methods in ROUTES.items() for method in methods]


def refusal(method: str, target: bytes, body: bytes = b"") -> tuple[int, str]:
    with pytest.raises(RefusedError) as refused:
        parse(method, target, body)
    return refused.value.status, refused.value.text


@pytest.mark.parametrize(("path", "method"), EVERY_ROUTE)
def test_every_route_of_the_table_is_reached(path: str, method: str) -> None:
    route = ROUTES[path][method]
    command = parse(method, f"{path}?mountpoint=/a&id=/b".encode(), BODIES.get(route.call, b""))
    assert command.call is route.call
    assert command.area is route.area
    assert command.query == {"mountpoint": "/a", "id": "/b"}


@pytest.mark.parametrize(("path", "method"), EVERY_ROUTE)
def test_a_body_where_none_belongs_is_refused_and_a_missing_one_too(path: str, method: str) -> None:
    route = ROUTES[path][method]
    body = b"" if route.call in BODIES else b"{}"
    assert refusal(method, f"{path}?mountpoint=/a".encode(), body) == (400, "BadRequest")


@pytest.mark.parametrize("path", list(ROUTES))
@pytest.mark.parametrize("method", ["PATCH", "HEAD", "OPTIONS", "get"])
def test_an_unknown_method_on_a_known_path_is_a_bad_request(path: str, method: str) -> None:
    assert refusal(method, path.encode()) == (400, "BadRequest")


@pytest.mark.parametrize(
    "target",
    [
        b"/",
        b"/api/v1/daemon/",
        b"/api/v1/Daemon",
        b"/api/v3/daemon",
        b"//api/v1/daemon",
        b"/api/v1/nope",
        b"/api/v1/%64aemon",
        b"/\xff",
    ],
)
@pytest.mark.parametrize("method", ["GET", "PATCH"])
def test_a_path_that_is_not_exactly_known_is_no_route_whatever_the_method(
    method: str, target: bytes
) -> None:
    assert refusal(method, target) == (404, "NoRoute")


@pytest.mark.parametrize(
    ("raw", "meant"),
    [
        (b"mountpoint=%2F42", "/42"),
        (b"mountpoint=/42", "/42"),
        (b"mountpoint=/a+b%20c%2B", "/a b c+"),
        (b"x=1&mountpoint=/first&mountpoint=/second", "/first"),
        (b"mountpoint=/%C3%A9", "/é"),
        (b"mountpoint=/a=b", "/a=b"),
        (b"mountpoint=", ""),
        (b"mountpoint", ""),
        (b"mountpoint=/a?b", "/a?b"),
    ],
)
def test_query_values_are_form_encoded(raw: bytes, meant: str) -> None:
    assert parse("DELETE", b"/api/v1/mount?" + raw, b"").query["mountpoint"] == meant


def test_absolute_form_means_the_same() -> None:
    command = parse("GET", b"http://unix/api/v1/metrics?id=%2F42", b"")
    assert (command.call, command.query) == (Call.FS_METRICS, {"id": "/42"})


@pytest.mark.parametrize("target", [b"*", b"api/v1/daemon", b"ftp://x/api/v1/daemon", b""])
def test_a_target_that_is_no_uri_of_ours_is_a_bad_request(target: bytes) -> None:
    assert refusal("GET", target) == (400, "BadRequest")


def test_a_query_that_is_not_utf8_is_a_bad_request() -> None:
    assert refusal("DELETE", b"/api/v1/mount?mountpoint=%ff") == (400, "BadRequest")


def test_a_missing_query_key_is_named_before_the_body_is_looked_at() -> None:
    expected = (400, "QueryString(\"'mountpoint' should be specified in query string\")")
    assert refusal("POST", b"/api/v1/mount", b"not json") == expected
    assert refusal("GET", b"/api/v1/daemon/backend") == expected


def test_a_mount_command_carries_mountpoint_and_request() -> None:
    command = parse("POST", b"/api/v1/mount?mountpoint=%2Fa", BODIES[Call.MOUNT])
    assert command.query["mountpoint"] == "/a"
    assert command.body == MountRequest(source="s", config="c")
