"""From text and files to a Config: formats, limits, the environment's credential (spec cli-config B1, A6)."""

import json
from pathlib import Path

import pytest

from nydusd.config.load import load, load_file, localfs_config
from nydusd.config.model import CacheKind, LocalFsConfig, RegistryConfig, Secret
from nydusd.errors import ConfigError
from tests.support.configs import REGISTRY_V1, v1, v2

UNREADABLE = [
    ("", "version is missing"),
    ("hello", "neither JSON nor TOML: bad syntax at end of document"),
    ("[]", "the document is an array, must be an object"),
    ("null", "the document is null, must be an object"),
    (
        '{"version": 2,',
        "not JSON: Expecting property name enclosed in double quotes at line 1, col",
    ),
    ('{"mode": NaN}', "not JSON that can be read: bad value"),
    ('{"n": 1' + "0" * 5000 + "}", "not JSON that can be read: bad value"),
    ('{"a":' * 100_000, "not JSON that can be read: nested too deeply"),
    ("[" * 100_000, "not JSON that can be read: nested too deeply"),
    ("a=" + "[" * 100_000, "neither JSON nor TOML: nested too deeply"),
    ("version = 2\nversion = 2\n", "neither JSON nor TOML: bad syntax at line 2, column 12"),
    ("version = 0x" + "f" * 9000, "version is 36000 bits long, must be 2"),
    ("version = 1979-05-27", "version is a date, must be 2"),
    (" " * (1024 * 1024 + 1), "longer than 1048576 bytes"),
]


@pytest.mark.parametrize(("text", "message"), UNREADABLE, ids=[m for _, m in UNREADABLE])
def test_text_that_is_no_configuration_is_refused_with_a_reason(text: str, message: str):
    with pytest.raises(ConfigError) as caught:
        load(text, "c")
    assert str(caught.value).startswith(f"c: {message}")


def test_a_known_key_given_twice_is_refused():
    text = json.dumps(v1())[:-1] + ', "mode": "cached"}'
    with pytest.raises(ConfigError, match="mode is given more than once"):
        load(text, "c")


def test_an_unknown_key_given_twice_is_only_unknown(caplog):
    text = json.dumps(v1())[:-1] + ', "x": 1, "x": 2}'
    assert load(text, "c") == load(json.dumps(v1()), "c")
    assert "unknown keys ignored: x" in caplog.text


def test_old_v1_files_may_carry_a_version_that_is_no_integer(caplog):
    assert load(json.dumps(v1(version="1.0")), "c") == load(json.dumps(v1()), "c")
    assert "unknown keys ignored: version" in caplog.text


def test_v2_json_and_toml_give_equal_configurations():
    toml = """
        version = 2
        rafs = {}
        backend = { type = "localfs", localfs = { dir = "/blobs" } }
        cache = { type = "filecache", filecache = { work_dir = "/cache" } }
    """
    assert load(toml, "c.toml") == load(json.dumps(v2()), "c.json")


def test_lone_surrogates_are_no_text():
    text = json.dumps(v1(backend={"type": "localfs", "config": {"dir": "/\ud800"}}))
    with pytest.raises(ConfigError, match="dir is '/"):
        load(text, "c")


def test_a_file_is_read(tmp_path: Path):
    path = tmp_path / "c.json"
    path.write_text(json.dumps(v1()))
    assert load_file(str(path)).backend == LocalFsConfig("/blobs")


def test_faults_of_a_file_name_it(tmp_path: Path):
    path = tmp_path / "c.json"
    with pytest.raises(ConfigError, match=r"c\.json: cannot be read: No such file"):
        load_file(str(path))
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load_file(str(tmp_path))
    path.write_bytes(b'{"mode": "\xff"}')
    with pytest.raises(ConfigError, match="not UTF-8 at byte 10"):
        load_file(str(path))
    path.write_bytes(b" " * (1024 * 1024 + 1))
    with pytest.raises(ConfigError, match="longer than 1048576 bytes"):
        load_file(str(path))


def test_a_credential_of_the_environment_replaces_the_files(tmp_path: Path):
    path = tmp_path / "c.json"
    path.write_text(json.dumps(REGISTRY_V1))
    backend = load_file(str(path), "bmV3OnB3").backend
    assert isinstance(backend, RegistryConfig)
    assert backend.auth == Secret("bmV3OnB3")
    kept = load_file(str(path), " ").backend
    assert isinstance(kept, RegistryConfig)
    assert kept.auth == Secret("dXNlcjpwYXNz")


def test_a_broken_credential_of_the_environment_is_refused_and_not_shown(tmp_path: Path):
    path = tmp_path / "c.json"
    path.write_text(json.dumps(REGISTRY_V1))
    with pytest.raises(
        ConfigError, match=r"environment: IMAGE_PULL_AUTH is \*\*\*, must be base64"
    ):
        load_file(str(path), "hunter2")


def test_other_backends_have_no_use_for_the_environments_credential(tmp_path: Path):
    path = tmp_path / "c.json"
    path.write_text(json.dumps(v1()))
    assert load_file(str(path), "bmV3OnB3") == load_file(str(path))


def test_localfs_dir_stands_for_a_whole_configuration():
    config = localfs_config("/d")
    assert config.backend == LocalFsConfig(dir="/d")
    assert (config.cache.kind, config.cache.work_dir) == (CacheKind.FILE, "/d")
    assert config.rafs.mode == "direct"
