"""The frozen configuration. Defaults and ranges: spec cli-config B2, B3, B5, B6.

Rooms receive their slice, never the tree. Field names are those of v2; sizes are bytes, times seconds.
"""

from enum import StrEnum
from typing import NamedTuple

from nydusd.units import MIB


class Secret:
    """A credential. Prints as `***`; only the code that sends it calls `reveal()`."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        """Keep the value; not a str, so that no JSON encoder or join can spell it by accident."""
        self._value = value

    def __repr__(self) -> str:
        """Never the value."""
        return "***"

    def __eq__(self, other: object) -> bool:
        """Equal by value, so that equal configurations share a backend."""
        return isinstance(other, Secret) and self._value == other.reveal()

    def __hash__(self) -> int:
        """As equality wants it."""
        return hash(self._value)

    def reveal(self) -> str:
        """Return the value itself."""
        return self._value


def _shown(record: NamedTuple, secret: str) -> str:
    """Return what repr() says of a record, less one field that may hold a secret."""
    fields = record._asdict()
    del fields[secret]
    return f"{type(record).__name__}({', '.join(f'{k}={v!r}' for k, v in fields.items())})"


class CacheKind(StrEnum):
    """cache.type, with synonyms folded (spec blobcache §1)."""

    FILE = "filecache"
    NONE = "dummycache"


class ProxyConfig(NamedTuple):
    """A proxy in front of an HTTP backend. An empty url means none; a url may hold a password."""

    url: str = ""
    ping_url: str = ""
    fallback: bool = True
    check_interval_s: int = 5
    use_http: bool = False
    check_pause_elapsed_s: int = 300
    dragonfly_scheduler_endpoint: str = ""

    def __repr__(self) -> str:
        """Without the url."""
        return _shown(self, "url")


class HttpOptions(NamedTuple):
    """What all HTTP backends share. Zero seconds mean no limit."""

    skip_verify: bool = False
    ca_cert_files: tuple[str, ...] = ()
    timeout_s: int = 5  # per socket operation, not per transfer (spec backends §2)
    connect_timeout_s: int = 5
    retry_limit: int = 0
    proxy: ProxyConfig = ProxyConfig()


class LocalFsConfig(NamedTuple):
    """Blobs as files: `blob_file` for every id, else `dir`/<id>, else the first of `alt_dirs` that has it."""

    dir: str = ""
    blob_file: str = ""
    alt_dirs: tuple[str, ...] = ()


class RegistryConfig(NamedTuple):
    """An OCI registry (spec backends §6)."""

    host: str
    repo: str
    scheme: str = "https"
    auth: Secret | None = None  # base64 of user:password
    registry_token: Secret | None = None
    blob_url_scheme: str = ""
    blob_redirected_host: str = ""
    http: HttpOptions = HttpOptions()


class OtherBackendConfig(NamedTuple):
    """A backend that configuration knows and this version does not serve yet (oss, s3, localdisk, http-proxy).

    `options` are its checked v2 keys; keys of an account are `Secret`s, `proxy` is a `ProxyConfig`.
    """

    kind: str
    options: dict[str, object]

    def __repr__(self) -> str:
        """Without the options."""
        return _shown(self, "options")

    def __hash__(self) -> int:
        """By kind alone: a dict has no hash. Equality still compares the options."""
        return hash(self.kind)


class ExternalBackend(NamedTuple):
    """Where the blobs of external files come from (spec cli-config B2). Not served yet.

    `config` may hold secrets.
    """

    kind: str
    patch: dict[str, str]
    config: dict[str, str]

    def __repr__(self) -> str:
        """Without the configuration."""
        return _shown(self, "config")


BackendConfig = LocalFsConfig | RegistryConfig | OtherBackendConfig


class PrefetchConfig(NamedTuple):
    """Background fetching. The v1 and v2 defaults of prefetch_all differ; the parsers know.

    threads and batch_size are 0 where the document has no prefetch section, as GET /daemon shows it.
    """

    enable: bool = False
    threads: int = 8
    batch_size: int = MIB
    bandwidth_limit: int = 0
    prefetch_all: bool = False
    stream_prefetch: bool = False


class CacheConfig(NamedTuple):
    """The blob cache (spec blobcache §1)."""

    kind: CacheKind = CacheKind.NONE
    kind_as_written: str = ""  # what GET /daemon shows
    work_dir: str = "."
    compressed: bool = False
    validate: bool = False
    disable_indexed_map: bool = False
    enable_encryption: bool = False
    enable_convergent_encryption: bool = False
    encryption_key: Secret | None = None
    prefetch: PrefetchConfig = PrefetchConfig()


class FrontendKind(StrEnum):
    """Who shows the image's tree: this daemon, or the kernel's EROFS where it can."""

    AUTO = "auto"
    FUSE = "fuse"
    EROFS = "erofs"


class RafsConfig(NamedTuple):
    """The file system on top."""

    mode: str = "direct"
    batch_size: int = MIB  # read amplification, v1 amplify_io; 0: off
    validate: bool = False
    enable_xattr: bool = False
    iostats_files: bool = False
    access_pattern: bool = False
    latest_read_files: bool = False
    frontend: FrontendKind = FrontendKind.AUTO
    prefetch: PrefetchConfig = PrefetchConfig()


class OverlayConfig(NamedTuple):
    """A writable layer over the image (spec cli-config B7)."""

    upper_dir: str
    work_dir: str


class Config(NamedTuple):
    """One mount's configuration, whole and checked."""

    id: str
    backend: BackendConfig
    cache: CacheConfig
    rafs: RafsConfig
    overlay: OverlayConfig | None = None
    external_backends: tuple[ExternalBackend, ...] = ()
