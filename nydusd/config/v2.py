"""v2 JSON or TOML (spec cli-config B3), read into the one Config.

Owns     v2's spellings, defaults and required keys.
Callers  `load`.
Raises   ConfigError, UnsupportedError.
"""

from typing import Final, NamedTuple, cast

from nydusd.config.backends import BACKENDS, EXTERNAL_BACKEND
from nydusd.config.model import (
    BackendConfig,
    CacheConfig,
    CacheKind,
    Config,
    ExternalBackend,
    FrontendKind,
    OverlayConfig,
    PrefetchConfig,
    RafsConfig,
)
from nydusd.config.sections import (
    BATCH_SIZE,
    CACHE_KINDS,
    FILE_CACHE,
    NO_PREFETCH,
    OVERLAY,
    PREFETCH_V2,
    RAFS_MODE,
    FileCache,
    cache_kind,
    frontend_kind,
    make_cache,
)
from nydusd.config.tables import (
    Key,
    Place,
    Table,
    array,
    boolean,
    choice,
    integer,
    name,
    optional,
    string,
)
from nydusd.units import MIB

VERSION: Final = 2


class _Cache(NamedTuple):
    kind: str
    compressed: bool
    validate: bool
    filecache: FileCache | None
    fscache: object
    prefetch: PrefetchConfig


_FSCACHE: Final = Table(FileCache, Key("work_dir", name, "."))

_CACHE: Final = Table(
    _Cache,
    Key("type", cache_kind, "", "kind"),
    Key("compressed", boolean, False),
    Key("validate", boolean, False),
    Key("filecache", optional(FILE_CACHE), None),
    Key("fscache", optional(_FSCACHE), None),
    Key("prefetch", PREFETCH_V2, NO_PREFETCH),
)

# All tables are read, so that a broken one is found before someone switches `type` to it.
_BACKEND: Final = Table(
    dict[str, object],
    Key("type", choice(*BACKENDS)),
    *(Key(kind, optional(table), None) for kind, table in BACKENDS.items()),
)


def _read_backend(value: object, place: Place) -> BackendConfig:
    section = _BACKEND(value, place)
    kind = cast("str", section["type"])
    chosen = section[kind]
    if chosen is None:
        place.at(kind).fail(f"is missing, must be there for type {kind!r}")
    return cast("BackendConfig", chosen)


def _read_cache(value: object, place: Place) -> CacheConfig:
    section = _CACHE(value, place)
    files = section.filecache
    if files is None:
        if CACHE_KINDS[section.kind] is CacheKind.FILE:
            place.at("filecache").fail(f"is missing, must be there for type {section.kind!r}")
        files = FileCache()
    return make_cache(
        kind=section.kind,
        compressed=section.compressed,
        validate=section.validate,
        files=files,
        prefetch=section.prefetch,
    )


_RAFS: Final = Table(
    RafsConfig,
    Key("mode", RAFS_MODE, "direct"),
    Key("batch_size", BATCH_SIZE, MIB),
    Key("validate", boolean, False),
    Key("enable_xattr", boolean, False),
    Key("iostats_files", boolean, False),
    Key("access_pattern", boolean, False),
    Key("latest_read_files", boolean, False),
    Key("frontend", frontend_kind, FrontendKind.AUTO),
    Key("prefetch", PREFETCH_V2, NO_PREFETCH),
)


def _config(
    *,
    version: int,  # noqa: ARG001  checked by its reader
    id: str,  # noqa: A002  the document's name
    backend: BackendConfig,
    external_backends: tuple[ExternalBackend, ...],
    cache: CacheConfig,
    rafs: RafsConfig,
    overlay: OverlayConfig | None,
) -> Config:
    return Config(id, backend, cache, rafs, overlay, external_backends)


V2: Final = Table(
    _config,
    Key("version", integer(VERSION, VERSION)),
    Key("id", string, ""),
    Key("backend", _read_backend),
    Key("external_backends", array(EXTERNAL_BACKEND), ()),
    Key("cache", _read_cache),
    Key("rafs", _RAFS),
    Key("overlay", optional(OVERLAY), None),
)
