"""v2 JSON and TOML (spec cli-config B3)."""

import json

import pytest

from nydusd.config.load import load
from nydusd.config.model import (
    CacheKind,
    Config,
    FrontendKind,
    LocalFsConfig,
    OtherBackendConfig,
    OverlayConfig,
    PrefetchConfig,
    RegistryConfig,
)
from nydusd.config.tables import Place, Reading
from nydusd.config.v2 import V2
from nydusd.errors import ConfigError, UnsupportedError
from tests.support.configs import v2

TOML = """
version = 2
id = "/"
[backend]
type = "registry"
[backend.registry]
host = "ghcr.io"
repo = "dragonflyoss/image-service/nginx"
retry_limit = 2
[backend.registry.proxy]
url = "http://127.0.0.1:4001"
ping_url = "http://127.0.0.1:4003/healthy"
[cache]
type = "filecache"
[cache.filecache]
work_dir = "/var/lib/nydus/cache"
[cache.prefetch]
enable = true
threads = 8
[rafs]
mode = "direct"
enable_xattr = true
[rafs.prefetch]
enable = true
prefetch_all = true
"""


def parse(document: object) -> Config:
    return load(json.dumps(document), "c.json")


def test_who_shows_the_tree_is_a_setting_of_the_file_system():
    assert parse(v2()).rafs.frontend is FrontendKind.AUTO
    document = v2()
    document["rafs"] = {"frontend": "erofs"}
    assert parse(document).rafs.frontend is FrontendKind.EROFS


def test_toml_is_understood():
    config = load(TOML, "c.toml")
    assert isinstance(config.backend, RegistryConfig)
    assert config.backend.http.proxy.url == "http://127.0.0.1:4001"
    assert config.backend.http.proxy.fallback, "the default, unless a snapshotter writes false"
    assert config.cache.prefetch == PrefetchConfig(enable=True)
    assert config.rafs.prefetch == PrefetchConfig(enable=True, prefetch_all=True)


def test_defaults_of_v2_differ_from_those_of_v1():
    config = parse(v2())
    assert config.backend == LocalFsConfig("/blobs")
    assert config.rafs.mode == "direct"
    assert config.rafs.prefetch == config.cache.prefetch == PrefetchConfig(threads=0, batch_size=0)
    assert not parse(v2(rafs={"prefetch": {"enable": True}})).rafs.prefetch.prefetch_all


def test_prefetch_of_files_does_not_switch_on_that_of_the_cache():
    config = parse(v2(rafs={"prefetch": {"enable": True}}))
    assert config.rafs.prefetch.enable
    assert not config.cache.prefetch.enable


def test_what_the_api_shows_can_be_read_again():
    nulls = dict.fromkeys(("localdisk", "oss", "s3", "registry", "http-proxy"))
    document = v2(overlay=None, external_backends=[])
    document["backend"] |= nulls
    document["cache"]["fscache"] = None
    assert parse(document) == parse(v2())


def test_an_overlay_is_understood_but_not_served_yet():
    document = v2(overlay={"upper_dir": "/u", "work_dir": "/w"})
    assert V2(document, Place(Reading("c"))).overlay == OverlayConfig("/u", "/w")
    with pytest.raises(UnsupportedError, match=r"c\.json: overlay is not supported yet"):
        parse(document)


def test_a_backend_of_any_kind_can_be_the_key_of_a_table():
    options = {"addr": "http://a"}
    one, other = (parse(v2(backend={"type": "http-proxy", "http-proxy": options})) for _ in "12")
    assert {one.backend: 1}[other.backend] == 1


@pytest.mark.parametrize(
    ("key", "value", "warning"),
    [
        ("bandwidth_limit", 1000, "prefetch runs without its bandwidth limit"),
        ("stream_prefetch", True, "prefetch goes chunk by chunk"),
    ],
)
def test_prefetch_settings_without_effect_are_told(key, value, warning, caplog):
    parse(v2(rafs={"prefetch": {"enable": False, key: value}}))
    assert not caplog.records
    parse(v2(rafs={"prefetch": {"enable": True, key: value}}))
    assert warning in caplog.text


def test_http_proxy_is_a_backend_of_v2():
    options = {"addr": "http://127.0.0.1:9977", "path": "/ns/repo/blobs"}
    backend = parse(v2(backend={"type": "http-proxy", "http-proxy": options})).backend
    assert isinstance(backend, OtherBackendConfig)
    assert backend.options["path"] == "/ns/repo/blobs"


BROKEN = [
    ({"version": 1}, "version is 1, must be 2"),
    ({"version": 2**40}, "version is 1099511627776"),
    ({"version": "2"}, "version is '2'"),
    ({"version": 2}, "backend is missing"),
    (v2(backend={"type": "registry", "localfs": {"dir": "/b"}}), "backend.registry is missing"),
    (
        v2(backend={"type": "registry", "registry": {"proxy": {}}}),
        "backend.registry.host is missing",
    ),
    (
        v2(backend={"type": "localfs", "localfs": "/b"}),
        "backend.localfs is a string, must be an ob",
    ),
    (v2(backend={"type": "ftp"}), "backend.type is 'ftp', must be 'localfs' or 'registry' or"),
    (
        v2(backend={"type": "localfs", "localfs": {"dir": "/b"}, "registry": {"host": 5}}),
        "backend.registry.host is 5, must be a string",
    ),
    (v2(cache={"type": "blobcache"}), "cache.filecache is missing, must be there for type 'blob"),
    (v2(rafs={"prefetch": {}}), "rafs.prefetch.enable is missing"),
    (v2(rafs={"prefetch": None}), "rafs.prefetch is null"),
    (v2(rafs={"batch_size": 2**28 + 1}), "rafs.batch_size is 268435457"),
    (v2(rafs={"mode": ""}), "rafs.mode is ''"),
    (v2(overlay={"upper_dir": "/u"}), "overlay.work_dir is missing"),
    (v2(overlay={"upper_dir": "", "work_dir": "/w"}), "overlay.upper_dir is ''"),
    (
        v2(backend={"type": "http-proxy", "http-proxy": {"addr": "h:1"}}),
        "backend.http-proxy.addr is 'h:1', must be a URL",
    ),
]


@pytest.mark.parametrize(("document", "message"), BROKEN, ids=[message for _, message in BROKEN])
def test_an_error_names_document_key_value_and_rule(document: object, message: str):
    with pytest.raises(ConfigError) as caught:
        parse(document)
    assert str(caught.value).startswith(f"c.json: {message}")


def test_fscache_is_refused_in_clear_words():
    with pytest.raises(UnsupportedError, match=r"cache\.type 'fscache' is not supported, use"):
        parse(v2(cache={"type": "fscache", "fscache": {"work_dir": "/c"}}))


def test_no_cache_needs_no_filecache_table():
    assert parse(v2(cache={})).cache.kind is CacheKind.NONE
