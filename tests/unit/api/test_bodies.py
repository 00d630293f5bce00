"""Bodies: the values, and the error texts and positions that the reference gives (observed on v2.2.0)."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nydusd.api import bodies
from nydusd.api.controller import MountRequest
from nydusd.api.errors import RefusedError

STRING = "expected a string"

REFUSED_LOG_LEVELS = [
    (b'{"log_level":1}', f"invalid type: integer `1`, {STRING}", 1, 14),
    (b'{"log_level":null}', f"invalid type: null, {STRING}", 1, 17),
    (b'{"log_level":true}', f"invalid type: boolean `true`, {STRING}", 1, 17),
    (b'{"log_level":{}}', f"invalid type: map, {STRING}", 1, 13),
    (b'{"log_level":[1]}', f"invalid type: sequence, {STRING}", 1, 13),
    (b'{\n"log_level":\n 1.5}', f"invalid type: floating point `1.5`, {STRING}", 3, 4),
    (b'"x"', 'invalid type: string \\"x\\", expected struct DaemonConf', 1, 3),
    (b"[[1]]", "invalid type: sequence, expected struct DaemonConf", 1, 1),
    (b"1 2", "invalid type: integer `1`, expected struct DaemonConf", 1, 1),
    (b"{}", "missing field `log_level`", 1, 2),
    (b'{"x":[1,{"y":2}]}', "missing field `log_level`", 1, 17),
    (b"{", "EOF while parsing an object", 1, 1),
    (b'{"log_level"', "EOF while parsing an object", 1, 12),
    (b"nul", "EOF while parsing a value", 1, 3),
    (b"not json", "expected ident", 1, 2),
    (b'{"x":1,}', "trailing comma", 1, 8),
    (b"{1:2}", "key must be a string", 1, 2),
    (b'{"a" 1}', "expected `:`", 1, 6),
    (b'{"a":1 "b"}', "expected `,` or `}`", 1, 8),
    (b'{"log_level":"info"} x', "trailing characters", 1, 22),
    (b'{"log_level":"info","log_level":"info"}', "duplicate field `log_level`", 1, 31),
    (
        b'{"log_level":"a\x01"}',
        "control character (\\\\u0000-\\\\u001F) found while parsing a string",
        1,
        16,
    ),
]


@pytest.mark.parametrize(("body", "reason", "line", "column"), REFUSED_LOG_LEVELS)
def test_refusal_names_reason_and_position_as_the_reference_does(
    body: bytes, reason: str, line: int, column: int
) -> None:
    with pytest.raises(RefusedError) as refused:
        bodies.log_level(body)
    assert refused.value.status == 400
    assert refused.value.text == f'ParseBody(Error("{reason}", line: {line}, column: {column}))'


@pytest.mark.parametrize(
    ("body", "reason", "column"),
    [
        (b"{}", "missing field `source`", 2),
        (b'{"source":"a"}', "missing field `config`", 14),
        (b'{"source":1}', f"invalid type: integer `1`, {STRING}", 11),
        (b'{"source":"a","source":"a"}', "duplicate field `source`", 22),
        (
            b'{"source":"a","config":"c","prefetch_files":"x"}',
            'invalid type: string \\"x\\", expected a sequence',
            47,
        ),
        (
            b'{"source":"a","config":"c","prefetch_files":[1]}',
            f"invalid type: integer `1`, {STRING}",
            46,
        ),
    ],
)
def test_mount_bodies_are_refused_as_the_reference_refuses_them(
    body: bytes, reason: str, column: int
) -> None:
    with pytest.raises(RefusedError) as refused:
        bodies.mount_request(body)
    assert refused.value.text == f'ParseBody(Error("{reason}", line: 1, column: {column}))'


def test_mount_body_defaults_and_unknown_fields() -> None:
    assert bodies.mount_request(b'{"new": [1], "config": "c", "source": "s"}') == MountRequest(
        source="s", config="c", fs_type="", prefetch_files=()
    )


def test_null_prefetch_files_count_as_none_at_all() -> None:
    body = b'{"source":"s","config":"","fs_type":"rafs","prefetch_files":null}'
    assert bodies.mount_request(body).prefetch_files == ()


def test_mount_body_keeps_escapes_and_the_order_of_prefetch_files() -> None:
    body = rb' {"source":"\u00e9","config":"{\"a\":1}","prefetch_files":["/b","/a"]} '
    assert bodies.mount_request(body) == MountRequest(
        source="é", config='{"a":1}', fs_type="", prefetch_files=("/b", "/a")
    )


def test_settings_are_a_map_of_strings_in_which_the_last_of_a_key_counts() -> None:
    assert bodies.settings(b'{"a":"1","b":"","a":"2"}') == {"a": "2", "b": ""}


def test_a_value_of_wrong_type_in_settings_is_refused_where_it_ends() -> None:
    with pytest.raises(RefusedError, match="column: 18"):
        bodies.settings(b'{"registry_auth":1}')


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 25_000,
        b'{"log_level":' + b'{"a":' * 10_000,
        b'{"log_level":' + b"9" * 5000 + b"}",
        b"\xff\xfe",
        b'{"log_level":"\xff"}',
        b"",
        b"   ",
        b'{"a":"',
        b'{"a":"\\',
        b'{"a":"\\q"}',
        b'{"a":"\\u12"}',
    ],
)
def test_hostile_bodies_are_refused_and_nothing_else(body: bytes) -> None:
    with pytest.raises(RefusedError) as refused:
        bodies.log_level(body)
    assert refused.value.text.startswith("ParseBody(Error(")


def test_blob_entry_needs_type_id_and_a_configuration() -> None:
    bodies.blob_entry(b'{"type":"bootstrap","id":"x","config":{}}')
    with pytest.raises(RefusedError):
        bodies.blob_entry(b'{"type":"bootstrap","id":"x"}')


@given(
    body=st.one_of(
        st.binary(max_size=80),
        st.text(alphabet='{}[]":,\\ntf1e-. \n', max_size=40).map(str.encode),
    )
)
def test_any_bytes_end_in_a_value_or_a_refusal(body: bytes) -> None:
    try:
        read = bodies.settings(body)
    except RefusedError:
        return
    assert all(isinstance(value, str) for value in read.values())
