"""v1 JSON, the format that snapshotters write (spec cli-config B2), read into the one Config (B4).

Owns     v1's spellings, defaults and required keys.
Callers  `load`.
Raises   ConfigError, UnsupportedError.
"""

from typing import Final, NamedTuple

from nydusd.config.backends import BACKENDS, EXTERNAL_BACKEND
from nydusd.config.model import (
    BackendConfig,
    CacheConfig,
    CacheKind,
    Config,
    ExternalBackend,
    FrontendKind,
    PrefetchConfig,
    RafsConfig,
)
from nydusd.config.sections import (
    BATCH_SIZE,
    CACHE_KINDS,
    FILE_CACHE,
    NO_PREFETCH,
    RAFS_MODE,
    FileCache,
    cache_kind,
    frontend_kind,
    make_cache,
    prefetch_rules,
)
from nydusd.config.tables import (
    U32_MAX,
    U64_MAX,
    Key,
    Place,
    Reading,
    Table,
    anything,
    array,
    boolean,
    choice,
    integer,
    string,
)
from nydusd.units import MIB

# http-proxy came with v2: the reference's manual shows it for v1 too, its code refuses it.
BACKEND_KINDS: Final = tuple(kind for kind in BACKENDS if kind != "http-proxy")


class _Typed(NamedTuple):
    """A section that says by `type` how to read its `config`."""

    kind: str
    config: object
    compressed: bool = False
    validate: bool = False


class _Device(NamedTuple):
    id: str
    backend: BackendConfig
    external_backends: tuple[ExternalBackend, ...]
    cache: CacheConfig


_BACKEND: Final = Table(
    _Typed, Key("type", choice(*BACKEND_KINDS), field="kind"), Key("config", anything)
)

_CACHE: Final = Table(
    _Typed,
    Key("type", cache_kind, "", "kind"),
    Key("compressed", boolean, False),
    Key("validate", boolean, False),
    Key("config", anything, None),
    silent=("prefetch_config",),
)


def _read_backend(value: object, place: Place) -> BackendConfig:
    section = _BACKEND(value, place)
    return BACKENDS[section.kind](section.config, place.at("config"))


def _read_cache(value: object, place: Place) -> CacheConfig:
    section = _CACHE(value, place)
    files = FileCache()
    if CACHE_KINDS[section.kind] is CacheKind.FILE:
        if section.config is None:
            place.at("config").fail("is missing, must be there for a file cache (it may be empty)")
        files = FILE_CACHE(section.config, place.at("config"))
    elif section.config:
        place.at("config").remark("is ignored: the cache type is none")
    return make_cache(
        kind=section.kind,
        compressed=section.compressed,
        validate=section.validate,
        files=files,
        prefetch=NO_PREFETCH._replace(prefetch_all=True),
    )


_PREFETCH: Final = Table(
    PrefetchConfig,
    Key("enable", boolean, False),
    Key("threads_count", integer(U64_MAX), 8, "threads"),
    Key("merging_size", integer(U64_MAX), MIB, "batch_size"),
    Key("bandwidth_rate", integer(U32_MAX), 0, "bandwidth_limit"),
    Key("prefetch_all", boolean, True),
    Key("stream_prefetch", boolean, False),
    rules=prefetch_rules("threads_count", "merging_size"),
)

_DEVICE: Final = Table(
    _Device,
    Key("id", string, ""),
    Key("backend", _read_backend),
    Key("external_backends", array(EXTERNAL_BACKEND), ()),
    Key("cache", _read_cache, _read_cache({}, Place(Reading("")))),
    silent=("external_backend",),
)


def _config(
    *,
    device: _Device,
    mode: str,
    digest_validate: bool,
    iostats_files: bool,
    enable_xattr: bool,
    access_pattern: bool,
    latest_read_files: bool,
    amplify_io: int,
    frontend: FrontendKind,
    fs_prefetch: PrefetchConfig,
) -> Config:
    # One switch for both: v1 has no key for the prefetch of the cache.
    cache = device.cache._replace(prefetch=fs_prefetch) if fs_prefetch.enable else device.cache
    rafs = RafsConfig(
        mode=mode,
        batch_size=amplify_io,
        validate=digest_validate,
        enable_xattr=enable_xattr,
        iostats_files=iostats_files,
        access_pattern=access_pattern,
        latest_read_files=latest_read_files,
        frontend=frontend,
        prefetch=fs_prefetch,
    )
    return Config(
        device.id, device.backend, cache, rafs, external_backends=device.external_backends
    )


V1: Final = Table(
    _config,
    Key("device", _DEVICE),
    Key("mode", RAFS_MODE),
    Key("digest_validate", boolean, False),
    Key("iostats_files", boolean, False),
    Key("enable_xattr", boolean, False),
    Key("access_pattern", boolean, False),
    Key("latest_read_files", boolean, False),
    Key("amplify_io", BATCH_SIZE, MIB),
    Key("frontend", frontend_kind, FrontendKind.AUTO),
    Key("fs_prefetch", _PREFETCH, NO_PREFETCH),
    # What snapshotters and older tools write and no daemon of this line reads.
    silent=("id", "id_mapping", "readahead", "readahead_sec", "warmup"),
)
