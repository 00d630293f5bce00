"""Sections that v1 and v2 share: cache, prefetch, overlay (spec cli-config B5, B7).

Owns     the cache's tables and what is refused in them; the v2 prefetch and overlay tables.
Callers  `v1`, `v2`.
Raises   ConfigError; UnsupportedError for settings that are known and not served.
"""

from typing import Final, NamedTuple, cast

from nydusd.config.model import (
    CacheConfig,
    CacheKind,
    FrontendKind,
    OverlayConfig,
    PrefetchConfig,
    Secret,
)
from nydusd.config.tables import (
    U32_MAX,
    U64_MAX,
    Key,
    Place,
    Rule,
    Table,
    boolean,
    choice,
    integer,
    name,
    secret,
    string,
)
from nydusd.errors import UnsupportedError
from nydusd.units import MIB

BATCH_SIZE_MAX_BYTES: Final = 256 * MIB
PREFETCH_THREADS_MAX: Final = 1024

CACHE_KINDS: Final = {
    "blobcache": CacheKind.FILE,
    "filecache": CacheKind.FILE,
    "": CacheKind.NONE,
    "dummycache": CacheKind.NONE,
}

NO_PREFETCH: Final = PrefetchConfig(threads=0, batch_size=0)  # how an absent section is shown

HEX_KEY: Final = frozenset("0123456789abcdefABCDEF")

RAFS_MODE: Final = choice("direct", "cached")
BATCH_SIZE: Final = integer(BATCH_SIZE_MAX_BYTES)


def prefetch_rules(threads: str, batch_size: str) -> tuple[Rule[PrefetchConfig], ...]:
    """Return the ranges that hold for prefetch once it is enabled, under the document's key names."""
    return (
        Rule(
            lambda made: not made.enable or 1 <= made.threads <= PREFETCH_THREADS_MAX,
            threads,
            f"must be from 1 to {PREFETCH_THREADS_MAX} when prefetch is enabled",
        ),
        Rule(
            lambda made: not made.enable or made.batch_size <= BATCH_SIZE_MAX_BYTES,
            batch_size,
            f"must be at most {BATCH_SIZE_MAX_BYTES} when prefetch is enabled",
        ),
    )


PREFETCH_V2: Final = Table(
    PrefetchConfig,
    Key("enable", boolean),
    Key("threads", integer(U64_MAX), 8),
    Key("batch_size", integer(U64_MAX), MIB),
    Key("bandwidth_limit", integer(U32_MAX), 0),
    Key("prefetch_all", boolean, False),
    Key("stream_prefetch", boolean, False),
    rules=prefetch_rules("threads", "batch_size"),
)


OVERLAY: Final = Table(OverlayConfig, Key("upper_dir", name), Key("work_dir", name))


class FileCache(NamedTuple):
    """The keys of the file cache's own table."""

    work_dir: str = "."
    disable_indexed_map: bool = False
    encryption_key: Secret | None = None


def _off(value: object, place: Place) -> bool:
    """Read a switch that may only be off: data on disk would silently not be encrypted."""
    if boolean(value, place):
        raise UnsupportedError(f"{place.reading.source}: {place.path} is not supported yet")
    return False


def _encryption_key(value: object, place: Place) -> Secret | None:
    key = secret(value, place)
    if key is not None and not HEX_KEY.issuperset(key.reveal()):
        place.fail("is ***, must be hexadecimal digits")
    return key


def _file_cache(
    *,
    work_dir: str,
    disable_indexed_map: bool,
    enable_encryption: bool,  # noqa: ARG001  never true, see _off
    enable_convergent_encryption: bool,  # noqa: ARG001  the same
    encryption_key: Secret | None,
) -> FileCache:
    return FileCache(work_dir, disable_indexed_map, encryption_key)


FILE_CACHE: Final = Table(
    _file_cache,
    Key("work_dir", name, "."),
    Key("disable_indexed_map", boolean, False),
    Key("enable_encryption", _off, False),
    Key("enable_convergent_encryption", _off, False),
    Key("encryption_key", _encryption_key, None),
)


_FRONTEND: Final = choice(*(kind.value for kind in FrontendKind))


def frontend_kind(value: object, place: Place) -> FrontendKind:
    """Read `frontend`, a key of ours: other daemons of this line pass over keys that they do not know."""
    return FrontendKind(cast("str", _FRONTEND(value, place)))


def cache_kind(value: object, place: Place) -> str:
    """Read cache.type as written, refusing what no daemon knows and what this one does not serve."""
    text = string(value, place)
    if text == "fscache":
        raise UnsupportedError(
            f"{place.reading.source}: {place.path} 'fscache' is not supported, use 'blobcache'"
        )
    if text not in CACHE_KINDS:
        place.refuse(text, "'blobcache', 'filecache', 'dummycache' or empty")
    return text


def make_cache(
    *,
    kind: str,
    compressed: bool,
    validate: bool,
    files: FileCache,
    prefetch: PrefetchConfig,
) -> CacheConfig:
    """Return the cache section from its parts; `kind` as cache_kind() read it."""
    return CacheConfig(
        kind=CACHE_KINDS[kind],
        kind_as_written=kind,
        work_dir=files.work_dir,
        compressed=compressed,
        validate=validate,
        disable_indexed_map=files.disable_indexed_map,
        encryption_key=files.encryption_key,
        prefetch=prefetch,
    )
