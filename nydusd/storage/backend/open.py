"""Configuration → backend. The one place that knows which module serves which kind.

Imports are made when a kind is asked for: a mount of local blobs loads no HTTP.
"""

import os
from collections.abc import Mapping

from nydusd.config.model import BackendConfig, LocalFsConfig, RegistryConfig
from nydusd.errors import UnsupportedError
from nydusd.storage.backend.base import Backend
from nydusd.storage.stats import BackendStats


def open_backend(
    config: BackendConfig,
    *,
    stats: BackendStats | None = None,
    environ: Mapping[str, str] = os.environ,
) -> Backend:
    """Return the backend that `config` names; nothing is connected or opened yet.

    stats: counters to go on with, default new ones. environ: read once, for NYDUS_HEADER_*.
    Raises ConfigError for a setting that cannot be used, UnsupportedError for one not served yet.
    """
    if isinstance(config, LocalFsConfig):
        from nydusd.storage.backend.localfs import LocalFsBackend

        return LocalFsBackend(config, stats=stats)
    if isinstance(config, RegistryConfig):
        from nydusd.storage.backend.registry import RegistryBackend

        return RegistryBackend(config, stats=stats, environ=environ)
    raise UnsupportedError(f"backend type '{config.kind}' is not supported yet")
