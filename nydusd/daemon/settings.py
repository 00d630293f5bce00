"""What clients changed at run time, by mount (spec api §3.3): credentials that were renewed, proxies.

Owns     the values that were put; they are shown again, as clients expect, but never those of a
         configuration file.
Callers  the API, and the mount table when a mount appears that has settings already.
Raises   ConfigError; nothing is changed then.
"""

import logging
from collections.abc import Mapping
from typing import Final

from nydusd.config.model import Secret
from nydusd.errors import ConfigError

log = logging.getLogger(__name__)

REGISTRY_AUTH: Final = "registry_auth"  # base64 of user:password; empty: none
KEYS: Final = frozenset({REGISTRY_AUTH, "proxy_url", "dragonfly_scheduler_endpoint"})


class Settings:
    """Settings by mount id, which is a mountpoint; the mount need not be there."""

    def __init__(self) -> None:
        """Begin without any."""
        self._values: dict[str, dict[str, str]] = {}

    def check(self, changes: Mapping[str, str]) -> None:
        """Raise ConfigError if a key is no setting."""
        unknown = sorted(set(changes) - KEYS)
        if unknown:
            raise ConfigError(
                f"{unknown[0][:64]!r} is no setting, known are {', '.join(sorted(KEYS))}"
            )

    def put(self, mount_id: str, changes: Mapping[str, str]) -> None:
        """Keep all of `changes`. Raises ConfigError for a key that is no setting."""
        self.check(changes)
        for key in changes.keys() - {REGISTRY_AUTH}:
            log.warning("setting %s of %s is kept but has no effect yet", key, mount_id or "''")
        self._values.setdefault(mount_id, {}).update(changes)

    def forget(self, mount_id: str) -> None:
        """Drop what was put for a mount that is gone; no credential outlives its use."""
        self._values.pop(mount_id, None)

    def view(self, mount_id: str | None) -> dict[str, str]:
        """Return the settings of one id by key, or those of all as `id:key`."""
        if mount_id is not None:
            return dict(self._values.get(mount_id, {}))
        return {
            f"{one}:{key}": value
            for one, values in self._values.items()
            for key, value in values.items()
        }

    def registry_auth(self, mount_id: str) -> Secret | None:
        """Return the credential put for a mount; None if none ever was. An empty one means: use none."""
        value = self._values.get(mount_id, {}).get(REGISTRY_AUTH)
        return None if value is None else Secret(value)
