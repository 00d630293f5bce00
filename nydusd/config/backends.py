"""The keys of every backend, with defaults and rules (spec cli-config B6).

Owns     one table per backend type, the same for v1 and v2 documents.
Callers  `v1` and `v2`; `load` for the credential of the environment.
Raises   ConfigError.
"""

import binascii
from functools import partial
from typing import Final

from nydusd.config.model import (
    ExternalBackend,
    HttpOptions,
    LocalFsConfig,
    OtherBackendConfig,
    ProxyConfig,
    RegistryConfig,
    Secret,
)
from nydusd.config.tables import (
    U8_MAX,
    U32_MAX,
    U64_MAX,
    Key,
    Place,
    Rule,
    Table,
    boolean,
    integer,
    name,
    secret,
    string,
    string_map,
    strings,
)

HTTP_SCHEMES: Final = ("http://", "https://")


def url(value: object, place: Place) -> str:
    """Read an http or https URL; empty means none."""
    text = string(value, place)
    if text and not text.startswith(HTTP_SCHEMES):
        place.refuse(text, "a URL that begins with http:// or https://")
    return text


def proxy_url(value: object, place: Place) -> str:
    """Read a proxy's URL; bare host:port means http."""
    text = string(value, place)
    return url(text if not text or "://" in text else f"http://{text}", place)


def authority(value: object, place: Place) -> str:
    """Read host[:port], which becomes part of a URL."""
    text = name(value, place)
    if any(char in " @?#\\" for char in text):
        place.refuse(text, "host[:port]")
    return text


def registry_scheme(value: object, place: Place) -> str:
    """Read a registry's scheme: only the exact word http selects http (spec backends §1)."""
    text = string(value, place)
    if text not in ("", "http", "https"):
        place.remark(f"is {text[:16]!r} and means 'https'")
    return "http" if text == "http" else "https"


def registry_auth(value: object, place: Place) -> Secret | None:
    """Read base64 of user:password; null and blank mean none."""
    credential = secret(value, place)
    if credential is not None and not _is_basic_credential(credential.reveal()):
        place.fail("is ***, must be base64 of user:password")
    return credential


def _is_basic_credential(text: str) -> bool:
    try:
        return ":" in binascii.a2b_base64(text, strict_mode=True).decode()
    except ValueError:  # not base64, or not UTF-8 under it
        return False


PROXY: Final = Table(
    ProxyConfig,
    Key("url", proxy_url, ""),
    Key("ping_url", url, ""),
    Key("fallback", boolean, True),
    Key("check_interval", integer(U64_MAX), 5, "check_interval_s"),
    Key("use_http", boolean, False),
    Key("check_pause_elapsed", integer(U64_MAX), 300, "check_pause_elapsed_s"),
    Key("dragonfly_scheduler_endpoint", string, ""),
)

HTTP_KEYS: Final = (
    Key("skip_verify", boolean, False),
    Key("ca_cert_files", strings, ()),
    Key("timeout", integer(U32_MAX), 5, "timeout_s"),
    Key("connect_timeout", integer(U32_MAX), 5, "connect_timeout_s"),
    Key("retry_limit", integer(U8_MAX), 0),
    Key("proxy", PROXY, ProxyConfig()),
)

# Written by older clients, without effect since mirrors and readahead left the backends.
SILENT: Final = ("readahead", "readahead_sec")


def _registry(
    *,
    host: str,
    repo: str,
    scheme: str,
    auth: Secret | None,
    registry_token: Secret | None,
    blob_url_scheme: str,
    blob_redirected_host: str,
    skip_verify: bool,
    ca_cert_files: tuple[str, ...],
    timeout_s: int,
    connect_timeout_s: int,
    retry_limit: int,
    proxy: ProxyConfig,
) -> RegistryConfig:
    http = HttpOptions(skip_verify, ca_cert_files, timeout_s, connect_timeout_s, retry_limit, proxy)
    return RegistryConfig(
        host, repo, scheme, auth, registry_token, blob_url_scheme, blob_redirected_host, http
    )


# The same under the document's names, for backends whose options are still kept as written.
OPTION_KEYS: Final = tuple(key._replace(field="") for key in HTTP_KEYS)


def _other(kind: str, **options: object) -> OtherBackendConfig:
    return OtherBackendConfig(kind, options)


def _http_proxy_addr(value: object, place: Place) -> str:
    """Read where an http-proxy backend listens: a URL, or the absolute path of a unix socket."""
    text = string(value, place)
    if not text.startswith((*HTTP_SCHEMES, "/")):
        place.refuse(text, "a URL that begins with http:// or https://, or an absolute path")
    return text


ACCOUNT_KEYS: Final = (
    Key("scheme", string, "https"),
    Key("object_prefix", string, ""),
    Key("access_key_id", secret, None),
    Key("access_key_secret", secret, None),
)

BackendTable = Table[LocalFsConfig] | Table[RegistryConfig] | Table[OtherBackendConfig]

BACKENDS: Final[dict[str, BackendTable]] = {
    "localfs": Table(
        LocalFsConfig,
        Key("dir", string, ""),
        Key("blob_file", string, ""),
        Key("alt_dirs", strings, ()),
        rules=(Rule(lambda made: made.dir or made.blob_file, "dir", "or blob_file must be set"),),
        silent=SILENT,
    ),
    "registry": Table(
        _registry,
        Key("host", authority),
        Key("repo", name),
        Key("scheme", registry_scheme, "https"),
        Key("auth", registry_auth, None),
        Key("registry_token", secret, None),
        Key("blob_url_scheme", string, ""),
        Key("blob_redirected_host", string, ""),
        *HTTP_KEYS,
        silent=SILENT,
    ),
    "oss": Table(
        partial(_other, "oss"),
        Key("endpoint", name),
        Key("bucket_name", name),
        *ACCOUNT_KEYS,
        *OPTION_KEYS,
        silent=SILENT,
    ),
    "s3": Table(
        partial(_other, "s3"),
        Key("region", name),
        Key("endpoint", string),
        Key("bucket_name", name),
        *ACCOUNT_KEYS,
        *OPTION_KEYS,
        silent=SILENT,
    ),
    "localdisk": Table(
        partial(_other, "localdisk"),
        Key("device_path", name),
        Key("disable_gpt", boolean, False),
    ),
    "http-proxy": Table(
        partial(_other, "http-proxy"),
        Key("addr", _http_proxy_addr),
        Key("path", string, ""),
        *OPTION_KEYS,
    ),
}

EXTERNAL_BACKEND: Final = Table(
    ExternalBackend,
    Key("patch", string_map),
    Key("type", string, field="kind"),
    Key("config", string_map),
)
