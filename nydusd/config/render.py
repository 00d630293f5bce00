"""A Config as the v2 object that GET /api/v1/daemon shows (spec api §3.1, spec cli-config B4).

Owns     the shape of that object and what is left out of it: credentials, account keys, passwords in URLs.
Callers  `api`, by way of `daemon`.
Raises   nothing.
"""

from typing import Final

from nydusd.config.model import (
    BackendConfig,
    CacheConfig,
    CacheKind,
    Config,
    ExternalBackend,
    HttpOptions,
    LocalFsConfig,
    OtherBackendConfig,
    PrefetchConfig,
    ProxyConfig,
    RafsConfig,
    RegistryConfig,
    Secret,
)
from nydusd.config.tables import without_userinfo

JsonObject = dict[str, object]

BACKEND_KINDS: Final = ("localdisk", "localfs", "oss", "s3", "registry", "http-proxy")

# What external backends call their secrets is theirs to say: hide by the look of the key.
SECRET_WORDS: Final = ("auth", "key", "pass", "secret", "token")


def render(config: Config) -> JsonObject:
    """Return the v2 form of `config`, JSON-ready and free of secrets; a new object on each call."""
    overlay = config.overlay
    return {
        "version": 2,
        "id": config.id,
        "backend": _backend(config.backend),
        "external_backends": [_external(backend) for backend in config.external_backends],
        "cache": _cache(config.cache),
        "rafs": _rafs(config.rafs),
        "overlay": overlay and {"upper_dir": overlay.upper_dir, "work_dir": overlay.work_dir},
    }


def _backend(backend: BackendConfig) -> JsonObject:
    kind, table = _chosen_backend(backend)
    others: JsonObject = dict.fromkeys(BACKEND_KINDS)
    return {"type": kind, **others, kind: table}


def _chosen_backend(backend: BackendConfig) -> tuple[str, JsonObject]:
    match backend:
        case LocalFsConfig():
            return "localfs", {
                "blob_file": backend.blob_file,
                "dir": backend.dir,
                "alt_dirs": list(backend.alt_dirs),
            }
        case RegistryConfig():
            return "registry", {
                "scheme": backend.scheme,
                "host": backend.host,
                "repo": backend.repo,
                "auth": None,
                "registry_token": None,
                "blob_url_scheme": backend.blob_url_scheme,
                "blob_redirected_host": backend.blob_redirected_host,
                **_http(backend.http),
            }
        case OtherBackendConfig():
            return backend.kind, {key: _option(value) for key, value in backend.options.items()}


def _option(value: object) -> object:
    match value:
        case Secret():
            return None
        case ProxyConfig():
            return _proxy(value)
        case tuple():
            return list(value)
        case str():
            return without_userinfo(value)
        case _:
            return value


def _http(http: HttpOptions) -> JsonObject:
    return {
        "skip_verify": http.skip_verify,
        "ca_cert_files": list(http.ca_cert_files),
        "timeout": http.timeout_s,
        "connect_timeout": http.connect_timeout_s,
        "retry_limit": http.retry_limit,
        "proxy": _proxy(http.proxy),
    }


def _proxy(proxy: ProxyConfig) -> JsonObject:
    return {
        "url": without_userinfo(proxy.url),
        "ping_url": without_userinfo(proxy.ping_url),
        "fallback": proxy.fallback,
        "check_interval": proxy.check_interval_s,
        "use_http": proxy.use_http,
        "check_pause_elapsed": proxy.check_pause_elapsed_s,
        "dragonfly_scheduler_endpoint": without_userinfo(proxy.dragonfly_scheduler_endpoint),
    }


def _external(backend: ExternalBackend) -> JsonObject:
    config = {
        key: "" if any(word in key.lower() for word in SECRET_WORDS) else without_userinfo(value)
        for key, value in backend.config.items()
    }
    return {"patch": dict(backend.patch), "type": backend.kind, "config": config}


def _cache(cache: CacheConfig) -> JsonObject:
    files: JsonObject | None = None
    if cache.kind is CacheKind.FILE:
        files = {
            "work_dir": cache.work_dir,
            "disable_indexed_map": cache.disable_indexed_map,
            "enable_encryption": cache.enable_encryption,
            "enable_convergent_encryption": cache.enable_convergent_encryption,
            "encryption_key": "",
        }
    return {
        "type": cache.kind_as_written,
        "compressed": cache.compressed,
        "validate": cache.validate,
        "prefetch": _prefetch(cache.prefetch),
        "filecache": files,
        "fscache": None,
    }


def _rafs(rafs: RafsConfig) -> JsonObject:
    return {
        "mode": rafs.mode,
        "batch_size": rafs.batch_size,
        "validate": rafs.validate,
        "enable_xattr": rafs.enable_xattr,
        "iostats_files": rafs.iostats_files,
        "access_pattern": rafs.access_pattern,
        "latest_read_files": rafs.latest_read_files,
        "prefetch": _prefetch(rafs.prefetch),
    }


def _prefetch(prefetch: PrefetchConfig) -> JsonObject:
    return {
        "enable": prefetch.enable,
        "threads": prefetch.threads,
        "batch_size": prefetch.batch_size,
        "bandwidth_limit": prefetch.bandwidth_limit,
        "prefetch_all": prefetch.prefetch_all,
        "stream_prefetch": prefetch.stream_prefetch,
    }
