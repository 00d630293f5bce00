"""Any document ends in a Config or a clear error, and no secret ever leaves it."""

import copy
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nydusd.config.load import load
from nydusd.config.model import Config
from nydusd.config.render import render
from nydusd.errors import ConfigError, UnsupportedError
from tests.support.configs import REGISTRY_V1, v1, v2

SECRET = "c2VjcmV0OmRvLW5vdC1zaG93"  # base64 of secret:do-not-show

S3 = {"region": "r", "endpoint": "e", "bucket_name": "b"}
KEYS = {"access_key_id": SECRET, "access_key_secret": SECRET}
PROXY = {"url": f"http://user:{SECRET}@proxy:1"}
REGISTRY = {"host": "h", "repo": "r", "auth": SECRET, "registry_token": SECRET, "proxy": PROXY}
CACHE = {"type": "filecache", "filecache": {"encryption_key": SECRET}}

WITH_SECRETS: list[Any] = [
    v1(backend={"type": "registry", "config": REGISTRY}),
    v1(backend={"type": "s3", "config": {**S3, **KEYS}}),
    v2(backend={"type": "registry", "registry": REGISTRY, "s3": {**S3, **KEYS}}),
    v2(backend={"type": "oss", "oss": {"endpoint": "e", "bucket_name": "b", **KEYS}}),
    v2(cache=CACHE),
    v2(external_backends=[{"patch": {}, "type": "s3", "config": {"access_key_secret": SECRET}}]),
]

KNOWN_KEYS = sorted(
    {
        key
        for document in (REGISTRY_V1, v2(), *WITH_SECRETS)
        for key in json.dumps(document).split('"')
    }
)

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
keys = st.sampled_from(KNOWN_KEYS) | st.text(max_size=8)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=4),
    max_leaves=12,
)


@pytest.fixture(autouse=True, scope="module")
def ignored_keys_need_no_warning() -> Iterator[None]:
    """Random documents are full of unknown keys."""
    log = logging.getLogger("nydusd.config.load")
    log.setLevel(logging.CRITICAL)
    yield
    log.setLevel(logging.NOTSET)


def outcome(text: str) -> Config | ConfigError | UnsupportedError:
    try:
        return load(text, "c")
    except (ConfigError, UnsupportedError) as exc:
        return exc


def spots(value: Any, found: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    """Every (container, key) of a document."""
    members = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in list(members):
        found.append((value, key))
        if isinstance(item, dict | list):
            spots(item, found)
    return found


@given(st.text())
def test_any_text_is_a_configuration_or_an_error(text: str):
    outcome(text)


@given(values)
def test_any_json_is_a_configuration_or_an_error(value: object):
    outcome(json.dumps(value))


@given(st.data())
def test_a_document_with_one_changed_value_is_a_configuration_or_an_error(data: st.DataObject):
    document = copy.deepcopy(data.draw(st.sampled_from([REGISTRY_V1, v2(), *WITH_SECRETS])))
    container, key = data.draw(st.sampled_from(spots(document, [])))
    container[key] = data.draw(values)
    outcome(json.dumps(document))


@given(st.data())
def test_a_secret_never_shows(data: st.DataObject):
    document = copy.deepcopy(data.draw(st.sampled_from(WITH_SECRETS)))
    for _ in range(data.draw(st.integers(0, 3))):
        container, key = data.draw(st.sampled_from(spots(document, [])))
        if not isinstance(container[key], str) or SECRET not in container[key]:
            # A faulty neighbour or parent, so that errors of every kind get their chance.
            container[key] = data.draw(scalars)
    result = outcome(json.dumps(document))
    assert SECRET not in str(result)
    assert SECRET not in repr(result)
    if isinstance(result, Config):
        assert SECRET not in json.dumps(render(result))


@given(st.text(alphabet="\"{}[]:,\\ \n=.#'truefalsenull0123456789-", max_size=200))
def test_near_misses_of_json_and_toml_are_errors_too(text: str):
    outcome(text)
