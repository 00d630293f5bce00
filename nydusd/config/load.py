"""A configuration document, v1 JSON, v2 JSON or v2 TOML, into one checked Config (spec cli-config B1).

Owns     the order of attempts, the size limit, and telling which keys were ignored.
Callers  `cli` for files, `api` (by way of `daemon`) for the text in a mount request.
Raises   ConfigError with document, key path, value (never a secret's) and rule; UnsupportedError
         for settings that are known and not served.
"""

import json
import logging
from pathlib import Path
from typing import Final

from nydusd.config.backends import registry_auth as read_registry_auth
from nydusd.config.model import Config, RegistryConfig
from nydusd.config.tables import ParsedObject, Place, Reading
from nydusd.config.v1 import V1
from nydusd.config.v2 import V2
from nydusd.errors import ConfigError, UnsupportedError
from nydusd.units import MIB

log = logging.getLogger(__name__)

DOCUMENT_MAX_BYTES: Final = MIB
PULL_AUTH_VARIABLE: Final = "IMAGE_PULL_AUTH"  # spec cli-config A6
IGNORED_SHOWN_MAX: Final = 20


def load(text: str, source: str) -> Config:
    """Return the configuration that `text` holds. `source` names the document in errors and log.

    Keys that nothing reads are ignored, as all clients expect, and named in one warning.
    """
    if len(text) > DOCUMENT_MAX_BYTES:
        raise ConfigError(f"{source}: longer than {DOCUMENT_MAX_BYTES} bytes")
    reading = Reading(source)
    document = _parse(text, source)
    config = (V2 if _is_v2(document) else V1)(document, Place(reading))
    _check_served(config, reading)
    _tell(reading)
    return config


def load_file(path: str, registry_auth: str = "") -> Config:
    """Return the configuration in a file.

    `registry_auth`, the value of IMAGE_PULL_AUTH, replaces the file's registry credential if it is not
    blank; other backends do without (spec cli-config A6).
    """
    config = load(read_text(path), path)
    credential = read_registry_auth(
        registry_auth, Place(Reading("environment"), PULL_AUTH_VARIABLE)
    )
    if credential is None:
        return config
    if not isinstance(config.backend, RegistryConfig):
        log.info("%s is set and not used: %s names no registry", PULL_AUTH_VARIABLE, path)
        return config
    return config._replace(backend=config.backend._replace(auth=credential))


def localfs_config(directory: str) -> Config:
    """Return what `--localfs-dir` stands for: blobs and cache in one directory (spec cli-config A3)."""
    document = {
        "device": {
            "backend": {"type": "localfs", "config": {"dir": directory}},
            "cache": {"type": "blobcache", "config": {"work_dir": directory}},
        },
        "mode": "direct",
    }
    return V1(document, Place(Reading("--localfs-dir")))


def read_text(path: str) -> str:
    """Return the text of a configuration file: UTF-8, at most DOCUMENT_MAX_BYTES."""
    try:
        with Path(path).open("rb") as file:
            content = file.read(DOCUMENT_MAX_BYTES + 1)
        if len(content) > DOCUMENT_MAX_BYTES:
            raise ConfigError(f"{path}: longer than {DOCUMENT_MAX_BYTES} bytes")
        return content.decode()
    except UnicodeDecodeError as exc:
        raise ConfigError(f"{path}: not UTF-8 at byte {exc.start}") from exc
    except OSError as exc:
        raise ConfigError(f"{path}: cannot be read: {exc.strerror}") from exc


def _parse(text: str, source: str) -> object:
    """Return the document's values; TOML only where JSON cannot be meant."""
    # RecursionError: brackets nested deeper than the parsers go.
    try:
        return json.loads(text, object_pairs_hook=ParsedObject, parse_constant=_refuse_constant)
    except json.JSONDecodeError as exc:
        if text.lstrip().startswith("{"):
            what = f"not JSON: {exc.msg} at line {exc.lineno}, column {exc.colno}"
            raise ConfigError(f"{source}: {what}") from exc
    except (ValueError, RecursionError) as exc:
        raise ConfigError(f"{source}: not JSON that can be read: {_kind_of_fault(exc)}") from exc

    import tomllib  # here: 20 ms that JSON documents need not pay

    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as exc:
        raise ConfigError(f"{source}: neither JSON nor TOML: {_kind_of_fault(exc)}") from exc


def _refuse_constant(word: str) -> None:
    raise ValueError(f"{word} is no JSON")


def _kind_of_fault(exc: ValueError | RecursionError) -> str:
    """Return where a parser stopped, without its words: they may quote a piece of a secret."""
    if isinstance(exc, RecursionError):
        return "nested too deeply"
    _, at, position = str(exc).rpartition(" (at ")
    return f"bad syntax at {position.removesuffix(')')}" if at else "bad value"


def _is_v2(document: object) -> bool:
    """The key `version` is what makes a document v2; old v1 files may have one of another type."""
    if not isinstance(document, ParsedObject):
        return isinstance(document, dict)  # TOML
    return type(document.get("version")) is int or (
        "version" in document and "device" not in document
    )


def _check_served(config: Config, reading: Reading) -> None:
    """Refuse or remark on what is well-formed and has no work behind it yet: nothing is dropped in silence."""
    if config.overlay is not None:
        raise UnsupportedError(f"{reading.source}: overlay is not supported yet")
    if config.external_backends:
        raise UnsupportedError(f"{reading.source}: external_backends are not supported yet")
    for prefetch in {config.rafs.prefetch, config.cache.prefetch}:
        if prefetch.enable and prefetch.bandwidth_limit:
            reading.remarks.append("prefetch runs without its bandwidth limit: not supported yet")
        if prefetch.enable and prefetch.stream_prefetch:
            reading.remarks.append("prefetch goes chunk by chunk: streams are not supported yet")


def _tell(reading: Reading) -> None:
    for remark in reading.remarks:
        log.warning("config source=%s %s", reading.source, remark)
    if reading.silently_ignored:
        log.debug(
            "config source=%s without effect: %s", reading.source, _names(reading.silently_ignored)
        )
    if reading.ignored:
        log.warning(
            "config source=%s unknown keys ignored: %s", reading.source, _names(reading.ignored)
        )


def _names(paths: list[str]) -> str:
    rest = len(paths) - IGNORED_SHOWN_MAX
    names = ", ".join(sorted(paths)[:IGNORED_SHOWN_MAX])
    return f"{names} and {rest} more" if rest > 0 else names
