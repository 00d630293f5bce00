"""v1 JSON: what snapshotters write (spec cli-config B2, B4)."""

import json

import pytest

from nydusd.config.load import load
from nydusd.config.model import (
    CacheKind,
    Config,
    HttpOptions,
    LocalFsConfig,
    OtherBackendConfig,
    PrefetchConfig,
    ProxyConfig,
    RegistryConfig,
    Secret,
)
from nydusd.config.tables import Place, Reading
from nydusd.config.v1 import V1
from nydusd.errors import ConfigError, UnsupportedError
from tests.support.configs import REGISTRY_V1, v1

MIB = 1024 * 1024


def parse(document: object) -> Config:
    return load(json.dumps(document), "c.json")


def test_the_document_a_snapshotter_writes_is_understood_to_the_last_key():
    config = parse(REGISTRY_V1)
    assert config.id == "/42"
    assert config.backend == RegistryConfig(
        host="ghcr.io",
        repo="dragonflyoss/image-service/nginx",
        auth=Secret("dXNlcjpwYXNz"),
        http=HttpOptions(retry_limit=2, proxy=ProxyConfig(fallback=False)),
    )
    assert config.cache.kind is CacheKind.FILE
    assert config.cache.kind_as_written == "blobcache"
    assert config.cache.work_dir == "/var/lib/containerd/io.containerd.snapshotter.v1.nydus/cache"
    assert config.rafs.enable_xattr
    assert config.rafs.batch_size == MIB
    prefetch = PrefetchConfig(enable=True, threads=8, batch_size=MIB, prefetch_all=True)
    assert config.rafs.prefetch == prefetch
    assert config.cache.prefetch == prefetch, "v1 has one switch for both"
    assert config.overlay is None


def test_a_minimal_document_gets_the_defaults_of_v1():
    config = parse(v1())
    assert config.id == ""
    assert config.backend == LocalFsConfig(dir="/blobs")
    assert config.rafs.prefetch == PrefetchConfig(threads=0, batch_size=0)
    # Seen on the wire of the reference: an absent section shows prefetch_all at the cache only.
    assert config.cache.prefetch == PrefetchConfig(threads=0, batch_size=0, prefetch_all=True)
    assert not config.rafs.enable_xattr
    assert not config.rafs.validate


def test_prefetch_all_is_on_in_v1_as_soon_as_the_section_is_there():
    config = parse(v1(fs_prefetch={"enable": False}))
    assert config.rafs.prefetch == PrefetchConfig(
        enable=False, threads=8, batch_size=MIB, prefetch_all=True
    )
    assert config.cache.prefetch.threads == 0, "copied only when enabled"


@pytest.mark.parametrize(
    ("written", "kind"),
    [("blobcache", CacheKind.FILE), ("filecache", CacheKind.FILE), ("dummycache", CacheKind.NONE)],
)
def test_cache_types_have_synonyms(written: str, kind: CacheKind):
    cache = parse(v1(cache={"type": written, "config": {}})).cache
    assert (cache.kind, cache.kind_as_written) == (kind, written)


def test_without_a_cache_section_there_is_no_cache():
    document = v1()
    del document["device"]["cache"]
    assert parse(document).cache.kind is CacheKind.NONE


def test_a_file_cache_needs_its_config_even_if_empty():
    with pytest.raises(ConfigError, match=r"^c\.json: device\.cache\.config is missing"):
        parse(v1(cache={"type": "blobcache"}))
    assert parse(v1(cache={"type": "blobcache", "config": {}})).cache.work_dir == "."


def test_fscache_is_refused_in_clear_words():
    with pytest.raises(UnsupportedError, match=r"device\.cache\.type 'fscache' is not supported"):
        parse(v1(cache={"type": "fscache", "config": {}}))


@pytest.mark.parametrize("key", ["enable_encryption", "enable_convergent_encryption"])
def test_encryption_of_the_cache_is_refused_not_forgotten(key: str):
    with pytest.raises(UnsupportedError, match=f"{key} is not supported yet"):
        parse(v1(cache={"type": "blobcache", "config": {key: True}}))
    assert not parse(
        v1(cache={"type": "blobcache", "config": {key: False}})
    ).cache.enable_encryption


def test_http_proxy_is_no_backend_of_v1():
    with pytest.raises(ConfigError, match=r"device\.backend\.type is 'http-proxy', must be"):
        parse(v1(backend={"type": "http-proxy", "config": {"addr": "http://a"}}))


@pytest.mark.parametrize(
    ("kind", "options", "shown"),
    [
        ("oss", {"endpoint": "e", "bucket_name": "b"}, {"endpoint": "e", "timeout": 5}),
        (
            "s3",
            {"region": "r", "endpoint": "", "bucket_name": "b"},
            {"endpoint": "", "region": "r"},
        ),
        ("localdisk", {"device_path": "/dev/loop1"}, {"disable_gpt": False}),
    ],
)
def test_backends_that_are_not_served_are_checked_all_the_same(kind, options, shown):
    backend = parse(v1(backend={"type": kind, "config": options})).backend
    assert isinstance(backend, OtherBackendConfig)
    assert backend.kind == kind
    assert shown.items() <= backend.options.items()


BROKEN = [
    ({}, "device is missing"),
    (v1(mode="fast"), "mode is 'fast', must be 'direct' or 'cached'"),
    (v1(amplify_io=268435457), "amplify_io is 268435457, must be an integer from 0 to 268435456"),
    (v1(amplify_io=-1), "amplify_io is -1"),
    (v1(amplify_io=1.5), "amplify_io is 1.5"),
    (v1(amplify_io=True), "amplify_io is true"),
    (v1(enable_xattr=1), "enable_xattr is 1, must be true or false"),
    (v1(frontend="kernel"), "frontend is 'kernel', must be 'auto' or 'fuse' or 'erofs'"),
    (v1(frontend=None), "frontend is null"),
    (v1(enable_xattr="yes"), "enable_xattr is 'yes', must be true or false"),
    (v1(enable_xattr=None), "enable_xattr is null"),
    (v1(fs_prefetch={"enable": True, "threads_count": 0}), "fs_prefetch.threads_count must be"),
    (v1(fs_prefetch={"enable": True, "threads_count": 1025}), "fs_prefetch.threads_count must be"),
    (
        v1(fs_prefetch={"enable": True, "merging_size": 268435457}),
        "fs_prefetch.merging_size must be",
    ),
    (v1(fs_prefetch={"bandwidth_rate": 2**32}), "fs_prefetch.bandwidth_rate is 4294967296"),
    (v1(fs_prefetch=[]), "fs_prefetch is an array, must be an object"),
    (v1(backend={"type": "localfs"}), "device.backend.config is missing"),
    (v1(backend={"type": "localfs", "config": {}}), "device.backend.config.dir or blob_file"),
    (
        v1(backend={"type": "localfs", "config": {"dir": "/a\nb"}}),
        "device.backend.config.dir is '/a\\nb', must be a string without control characters",
    ),
    (
        v1(backend={"type": "localfs", "config": {"dir": "/a", "alt_dirs": ["/b", 7]}}),
        "device.backend.config.alt_dirs[1] is 7, must be a string",
    ),
    (
        v1(backend={"type": "registry", "config": {"repo": "r"}}),
        "device.backend.config.host is miss",
    ),
    (v1(cache={"type": "blobcache", "config": {"work_dir": ""}}), "device.cache.config.work_dir"),
    (v1(cache={"type": "magic"}), "device.cache.type is 'magic', must be 'blobcache'"),
    (
        v1(cache={"type": "blobcache", "config": {"encryption_key": "xyz"}}),
        "device.cache.config.encryption_key is ***, must be hexadecimal",
    ),
]


@pytest.mark.parametrize(("document", "message"), BROKEN, ids=[message for _, message in BROKEN])
def test_an_error_names_document_key_value_and_rule(document: object, message: str):
    with pytest.raises(ConfigError) as caught:
        parse(document)
    assert str(caught.value).startswith(f"c.json: {message}")


def registry(**options: object) -> dict:
    return v1(backend={"type": "registry", "config": {"host": "h:5000", "repo": "r", **options}})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"host": ""}, "host is '', must be a string that is not empty"),
        ({"host": "u:p@h"}, "host is '***@h', must be host"),
        ({"repo": ""}, "repo is ''"),
        ({"timeout": "5"}, "timeout is '5'"),
        ({"retry_limit": 256}, "retry_limit is 256, must be an integer from 0 to 255"),
        ({"ca_cert_files": None}, "ca_cert_files is null, must be an array"),
        ({"proxy": None}, "proxy is null, must be an object"),
        ({"proxy": {"ping_url": "h/ping"}}, "proxy.ping_url is 'h/ping', must be a URL"),
        ({"proxy": {"url": "ftp://u:secret@h"}}, "proxy.url is 'ftp://***@h', must be a URL"),
        ({"auth": "not base64!"}, "auth is ***, must be visible ASCII characters without blanks"),
        ({"auth": "bm9jb2xvbg=="}, "auth is ***, must be base64 of user:password"),
        ({"auth": "/////w=="}, "auth is ***, must be base64 of user:password"),
        ({"auth": 5}, "auth is ***, must be a string"),
        ({"registry_token": "a\r\nX-Evil: 1"}, "registry_token is ***, must be visible ASCII"),
    ],
)
def test_registry_options_are_checked_and_secrets_not_shown(options: dict, message: str):
    with pytest.raises(ConfigError) as caught:
        parse(registry(**options))
    assert str(caught.value).startswith(f"c.json: device.backend.config.{message}")


def test_credentials_are_trimmed_and_blank_means_none():
    backend = parse(registry(auth=" dTpw\n", registry_token="  ")).backend
    assert isinstance(backend, RegistryConfig)
    assert backend.auth == Secret("dTpw")
    assert backend.registry_token is None


@pytest.mark.parametrize(
    ("written", "meant", "warns"),
    [("http", "http", False), ("", "https", False), ("HTTP", "https", True)],
)
def test_only_the_word_http_selects_http(written, meant, warns, caplog):
    backend = parse(registry(scheme=written)).backend
    assert isinstance(backend, RegistryConfig)
    assert backend.scheme == meant
    assert bool(caplog.records) is warns


def test_a_proxy_without_scheme_speaks_http():
    backend = parse(registry(proxy={"url": "127.0.0.1:4001"})).backend
    assert isinstance(backend, RegistryConfig)
    assert backend.http.proxy.url == "http://127.0.0.1:4001"


def test_unknown_keys_are_named_in_one_warning(caplog):
    document = v1(cache={"type": "blobcache", "config": {"compressed": True}}, pretch={})
    parse(document)
    (record,) = caplog.records
    assert record.getMessage() == (
        "config source=c.json unknown keys ignored: device.cache.config.compressed, pretch"
    )


def test_keys_that_snapshotters_always_write_cost_no_warning(caplog):
    parse({**REGISTRY_V1, "id_mapping": [0, 1, 2], "warmup": 3, "readahead": True})
    assert not [record for record in caplog.records if record.levelname != "DEBUG"]


def test_a_thousand_unknown_keys_make_a_short_line(caplog):
    parse(v1(**{f"k{n}": 1 for n in range(1000)}))
    (record,) = caplog.records
    assert record.getMessage().endswith(" and 980 more")
    assert len(record.getMessage()) < 300


def test_external_backends_want_string_maps():
    item = {"patch": {"a": "b"}, "type": "s3", "config": {"token": "t"}}
    document = v1()
    document["device"]["external_backends"] = [item]
    (external,) = V1(document, Place(Reading("c"))).external_backends
    assert (external.kind, external.patch) == ("s3", {"a": "b"})
    with pytest.raises(UnsupportedError, match="external_backends are not supported yet"):
        parse(document)
    item["config"] = {"token": 5}
    with pytest.raises(
        ConfigError, match=r"external_backends\[0\]\.config\.token must be a string"
    ):
        parse(document)
