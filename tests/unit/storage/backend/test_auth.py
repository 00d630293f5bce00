"""Challenges, token flow and what is remembered: no socket, no clock, no file."""

import base64
import json
import random
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nydusd.config.model import Secret
from nydusd.errors import AuthError, BackendError, ConfigError
from nydusd.storage.backend.auth import (
    TOKEN_DEFAULT_TTL_S,
    Authorization,
    Challenge,
    Token,
    TokenAnswer,
    TokenRequest,
    check_basic,
    choose_challenge,
    parse_challenges,
    token_flow,
)

REALM = "https://auth.example/token"
BEARER = Challenge("bearer", {"realm": REALM, "service": "s", "scope": "repository:a/b:pull"})
BASIC = base64.b64encode(b"user:pass").decode()


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (['Basic realm="r"'], [("basic", {"realm": "r"})]),
        (
            [f'Bearer realm="{REALM}",service="s",scope="repository:a/b:pull,push"'],
            [("bearer", {"realm": REALM, "service": "s", "scope": "repository:a/b:pull,push"})],
        ),
        (
            ['Bearer realm="https://h/t?a=b&c=d", service=s'],  # the reference cuts at `=`
            [("bearer", {"realm": "https://h/t?a=b&c=d", "service": "s"})],
        ),
        (['bEARER  ReAlM = "x" ,, SERVICE=y'], [("bearer", {"realm": "x", "service": "y"})]),
        (
            ['Basic realm="a, b", Bearer realm="c"'],
            [("basic", {"realm": "a, b"}), ("bearer", {"realm": "c"})],
        ),
        (
            ['Basic realm="a"', "Bearer realm=c"],
            [("basic", {"realm": "a"}), ("bearer", {"realm": "c"})],
        ),
        (["Negotiate YWJj==, Basic realm=x"], [("negotiate", {}), ("basic", {"realm": "x"})]),
        (["Negotiate YWJj, Basic realm=x"], [("negotiate", {}), ("basic", {"realm": "x"})]),
        (["Negotiate, Bearer realm=x"], [("negotiate", {}), ("bearer", {"realm": "x"})]),
        ([r'Basic realm="say \"hi\" \\"'], [("basic", {"realm": r'say "hi" \ '[:-1]})]),
        (['Basic realm="a", realm="b"'], [("basic", {"realm": "a"})]),
        (["Basic"], [("basic", {})]),
        ([""], []),
        ([", ,"], []),
        (['="x"'], []),
        ([], []),
    ],
)
def test_challenges_are_read_by_the_rfc(
    values: list[str], expected: list[tuple[str, dict[str, str]]]
) -> None:
    assert [(c.scheme, dict(c.params)) for c in parse_challenges(values)] == expected


@given(st.lists(st.text(st.sampled_from('Bb r=",\\\t;x/~é'), max_size=60), max_size=3))
def test_no_header_breaks_the_parser(values: list[str]) -> None:
    for challenge in parse_challenges(values):
        assert challenge.scheme == challenge.scheme.lower()


@given(
    st.dictionaries(
        st.from_regex(r"[a-z]{1,8}", fullmatch=True),
        st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=20),
        min_size=1,
    )
)
def test_quoted_parameters_survive_whatever_they_hold(params: dict[str, str]) -> None:
    escaped = {k: v.replace("\\", r"\\").replace('"', r"\"") for k, v in params.items()}
    value = "Bearer " + ", ".join(f'{name}="{text}"' for name, text in escaped.items())
    (challenge,) = parse_challenges([value])
    assert challenge.params == params


@pytest.mark.parametrize(
    ("values", "have_basic", "expected"),
    [
        (["Basic realm=a", "Bearer realm=b"], True, "bearer"),
        (["Basic realm=a", "Bearer service=b"], True, "basic"),
        (["Basic realm=a", "Bearer service=b"], False, None),
        (["Digest realm=a"], True, None),
        ([], True, None),
    ],
)
def test_a_bearer_challenge_is_answered_first_and_basic_only_with_credentials(
    values: list[str], have_basic: bool, expected: str | None
) -> None:
    chosen = choose_challenge(parse_challenges(values), have_basic=have_basic)
    assert (chosen.scheme if chosen else None) == expected


def test_credentials_are_base64_of_user_and_password() -> None:
    assert check_basic(Secret(f" {BASIC}\n"), "auth") == BASIC


@pytest.mark.parametrize(
    "text", ["not base64!", base64.b64encode(b"nocolon").decode(), "dXNlcjpwYXN", "/////w=="]
)
def test_other_credentials_are_refused_without_being_shown(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_basic(Secret(text), "registry.auth")
    assert text not in str(caught.value)
    assert "registry.auth" in str(caught.value)


def run_flow(
    answers: Sequence[TokenAnswer], *, basic: str = "", get_first: bool = False
) -> tuple[list[TokenRequest], Token]:
    """Drive the flow; return its requests and its token, or raise what it raises."""
    flow = token_flow(BEARER, REALM, basic, get_first=get_first)
    requests = [next(flow)]
    for answer in answers:
        try:
            requests.append(flow.send(answer))
        except StopIteration as stop:
            return requests, stop.value
    raise AssertionError("the flow wants more answers")


def answer_of(body: object, status: int = 200) -> TokenAnswer:
    return TokenAnswer(status, "POST url", json.dumps(body).encode())


def test_post_carries_the_challenge_as_a_form_and_credentials_as_a_header() -> None:
    requests, token = run_flow([answer_of({"token": "t", "expires_in": 99})], basic=BASIC)
    assert requests == [
        TokenRequest(
            "POST",
            REALM,
            b"service=s&scope=repository%3Aa%2Fb%3Apull&client_id=nydus-registry-client",
            BASIC,
        )
    ]
    assert token == Token(Secret("t"), 99.0, by_get=False)


@pytest.mark.parametrize(
    "refusal",
    [
        TokenAnswer(405),
        TokenAnswer(500),
        TokenAnswer(401),
        TokenAnswer(307),
        TokenAnswer(fault=BackendError("reset", temporary=True)),
    ],
)
def test_get_follows_a_post_that_failed(refusal: TokenAnswer) -> None:
    requests, token = run_flow([refusal, answer_of({"access_token": "t"})])
    assert [request.method for request in requests] == ["POST", "GET"]
    assert requests[1].url == (
        f"{REALM}?service=s&scope=repository%3Aa%2Fb%3Apull&client_id=nydus-registry-client"
    )
    assert requests[1].form == b""
    assert token == Token(Secret("t"), TOKEN_DEFAULT_TTL_S, by_get=True)


def test_where_get_is_known_to_work_post_is_not_tried() -> None:
    requests, _ = run_flow([answer_of({"token": "t"})], get_first=True)
    assert [request.method for request in requests] == ["GET"]


def test_token_wins_over_access_token() -> None:
    _, token = run_flow([answer_of({"token": "a", "access_token": "b"})])
    assert token.value.reveal() == "a"


@pytest.mark.parametrize(
    ("told", "ttl_s"),
    [
        (3600, 3600.0),
        (1, 10.0),
        (0, 600.0),
        (-1, 600.0),
        ("60", 600.0),
        (True, 600.0),
        (None, 600.0),
        (1e300, 2592000.0),
        (float("inf"), 600.0),
        (float("nan"), 600.0),
    ],
)
def test_any_life_time_becomes_a_sane_one(told: object, ttl_s: float) -> None:
    _, token = run_flow([answer_of({"token": "t", "expires_in": told})])
    assert token.ttl_s == ttl_s


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"[]",
        b"{}",
        b'{"token": 5}',
        b'{"token": ""}',
        b"[" * 100000,
        b'{"token": "a\\r\\nX: y"}',
        b'{"token": "a b"}',
        b"\xff\xfe",
    ],
)
def test_a_success_without_a_usable_token_is_an_error(body: bytes) -> None:
    with pytest.raises(BackendError, match="POST url: no token") as caught:
        run_flow([TokenAnswer(200, "POST url", body)])
    assert not caught.value.temporary


@pytest.mark.parametrize(
    ("status", "kind", "temporary"),
    [
        (401, AuthError, False),
        (403, AuthError, False),
        (400, AuthError, False),
        (429, BackendError, True),
        (500, BackendError, True),
        (301, BackendError, False),
    ],
)
def test_a_token_server_that_refuses_is_told_from_one_that_fails(
    status: int, kind: type[BackendError], temporary: bool
) -> None:
    answer = TokenAnswer(status, "GET url", words="words of the server")
    with pytest.raises(BackendError, match=f"GET url: no token: {status} words") as caught:
        run_flow([answer, answer])
    assert type(caught.value) is kind
    assert caught.value.temporary == temporary


def test_a_fault_on_the_way_is_handed_on() -> None:
    fault = BackendError("reset", temporary=True)
    with pytest.raises(BackendError) as caught:
        run_flow([TokenAnswer(fault=fault)] * 2)
    assert caught.value is fault


# What is remembered


def known(basic: str = "", registry_token: str | None = None) -> Authorization:
    secret = None if registry_token is None else Secret(registry_token)
    return Authorization(basic=basic, registry_token=secret, chance=random.Random(1))


def token_of(value: str, ttl_s: float = 600.0) -> Token:
    return Token(Secret(value), ttl_s, by_get=False)


def test_nothing_is_sent_before_a_challenge_even_with_credentials() -> None:
    assert known(BASIC).header(0.0) is None
    assert known(BASIC).wants_token(0.0) is None


def test_a_registry_token_is_sent_first_and_never_renewed_unasked() -> None:
    state = known(registry_token=" abc ")
    assert state.header(1e9) == "Bearer abc"
    assert state.wants_token(1e9) is None
    state.refused("Bearer abc")
    assert state.header(0.0) is None


@pytest.mark.parametrize("blank", ["", "  "])
def test_a_blank_registry_token_is_none(blank: str) -> None:
    assert known(registry_token=blank).header(0.0) is None


def test_a_token_is_renewed_before_it_ends_and_not_sent_after() -> None:
    state = known()
    state.challenge = BEARER
    state.use_token(token_of("t", 600.0), state.epoch, 1000.0)
    assert state.wants_token(1000.0 + 519) is None  # margin 20 s, jitter up to 60 s
    assert state.wants_token(1000.0 + 581) is BEARER
    assert state.header(1000.0 + 599) == "Bearer t"
    assert state.header(1000.0 + 600) is None


def test_a_short_token_is_still_used_for_most_of_its_life() -> None:
    state = known()
    state.challenge = BEARER
    state.use_token(token_of("t", 10.0), state.epoch, 0.0)
    assert state.wants_token(6.4) is None
    assert state.wants_token(7.6) is BEARER


def test_a_renewal_that_failed_is_put_off() -> None:
    state = known()
    state.challenge = BEARER
    state.use_token(token_of("t", 600.0), state.epoch, 0.0)
    state.put_off_refresh(590.0)
    assert state.wants_token(594.0) is None
    assert state.wants_token(596.0) is BEARER


def test_a_refusal_of_an_older_header_leaves_the_newer_one() -> None:
    state = known()
    state.use_token(token_of("new"), state.epoch, 0.0)
    state.refused("Bearer old")
    assert state.header(0.0) == "Bearer new"


def test_new_credentials_void_what_the_old_ones_got() -> None:
    state = known(BASIC)
    state.challenge = BEARER
    epoch = state.epoch
    state.use_token(token_of("t"), epoch, 0.0)
    state.set_basic("b3RoZXI6cHc=")
    assert state.header(0.0) is None
    assert state.wants_token(0.0) is BEARER
    state.use_token(token_of("late"), epoch, 0.0)  # asked for with the old ones
    assert state.header(0.0) is None


def test_new_credentials_become_a_basic_header_where_no_token_was_ever_asked_for() -> None:
    state = known()
    state.set_basic(BASIC)
    assert state.header(0.0) == f"Basic {BASIC}"
    state.set_basic("")
    assert state.header(0.0) is None


def test_the_same_credentials_again_change_nothing() -> None:
    state = known(BASIC, registry_token="abc")
    state.set_basic(BASIC)
    assert state.header(0.0) == "Bearer abc"


def test_all_that_must_not_be_shown_is_listed() -> None:
    state = known(BASIC, registry_token="abcdef")
    assert set(state.secrets()) == {BASIC, "abcdef", "pass"}
