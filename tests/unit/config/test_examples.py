"""The files in config/ are ready to use: they parse, nothing in them is ignored or refused."""

import re
import tomllib
from pathlib import Path

import pytest

from nydusd.config.load import load
from nydusd.config.model import CacheKind, LocalFsConfig, RegistryConfig

EXAMPLES = Path(__file__).parents[3] / "config"


def read(name: str) -> str:
    return (EXAMPLES / name).read_text()


@pytest.mark.parametrize(
    ("name", "backend"),
    [
        ("nydusd-registry.json", RegistryConfig),
        ("nydusd-registry.toml", RegistryConfig),
        ("nydusd-localfs.json", LocalFsConfig),
    ],
)
def test_an_example_parses_without_a_warning(name: str, backend: type):
    config = load(read(name), name)
    assert isinstance(config.backend, backend)
    assert config.cache.kind is CacheKind.FILE
    assert config.rafs.enable_xattr


def test_both_registry_examples_mean_the_same():
    v1, v2 = (load(read(f"nydusd-registry.{kind}"), kind) for kind in ("json", "toml"))
    assert (v1.backend, v1.rafs) == (v2.backend, v2.rafs)
    assert v1.cache.prefetch.enable is v2.cache.prefetch.enable is True


def test_commented_keys_show_the_real_defaults():
    text = read("nydusd-registry.toml")
    uncommented = re.sub(r"^# (\w+ = |\[)", r"\1", text, flags=re.MULTILINE)
    uncommented = re.sub(r'^(ping_)?url = ".*"$', r'\1url = ""', uncommented, flags=re.MULTILINE)
    assert uncommented.count("\n#") < text.count("\n#"), "nothing was uncommented"
    assert load(uncommented, "all keys") == load(text, "as it is")


def test_the_snapshotters_snippet_is_toml_and_names_our_commands():
    daemon = tomllib.loads(read("nydus-snapshotter.toml"))["daemon"]
    assert Path(daemon["nydusd_path"]).name == "nydusd"
    assert (EXAMPLES / Path(daemon["nydusd_config"]).name).exists()
