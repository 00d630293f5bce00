"""What `nydusd fuse` was asked to do, checked and frozen. Written by `cli`, read by `daemon`."""

from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

from nydusd.config.model import Config, FrontendKind


class FailoverPolicy(StrEnum):
    """What becomes of requests that a predecessor had read but not answered (spec fs-behaviour §14)."""

    NONE = "none"
    RESEND = "resend"
    FLUSH = "flush"


class DaemonOptions(NamedTuple):
    """One daemon (spec cli-config A2, A3).

    Without a bootstrap nothing is mounted inside the session yet, and API mounts are waited for.
    """

    mountpoint: Path  # an existing directory, canonical
    apisock: Path | None = None  # None: no API, and no way to detect a crashed predecessor
    bootstrap: Path | None = None
    config: Config | None = None  # of the bootstrap; needed with it, unused without
    virtual_mountpoint: str = "/"  # where inside the session the bootstrap appears
    prefetch_files: tuple[str, ...] = ()  # absolute paths; replace the image's own list
    id: str | None = None
    supervisor: Path | None = None
    upgrade: bool = False
    failover_policy: FailoverPolicy = FailoverPolicy.RESEND
    writable: bool = False
    frontend: FrontendKind | None = None  # None: as the configuration says
    fuse_threads: int = 4  # that read requests and answer those for cached bytes; more is Python's

    def asked_frontend(self) -> FrontendKind:
        """Return who is to show the image; the command line counts more than the configuration."""
        if self.frontend is not None:
            return self.frontend
        return FrontendKind.AUTO if self.config is None else self.config.rafs.frontend
