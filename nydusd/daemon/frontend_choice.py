"""Which frontend shows an image (design §2): facts in, a choice and its reason out. Pure.

What only shows when it is tried, the kernel's word on the image above all, is not known here: then
daemon/doors.py falls back to fuse with a reason of the same kind.
"""

import logging
from typing import Final, NamedTuple

from nydusd.config.model import FrontendKind, RafsConfig

STATISTICS: Final = ("iostats_files", "access_pattern", "latest_read_files")


class Facts(NamedTuple):
    """What a choice depends on."""

    asked: FrontendKind
    kernel_refuses: str | None  # why this kernel, or we with it, cannot mount EROFS from files
    virtual_mountpoint: str | None  # None: no image at start
    rafs: RafsConfig | None  # of that image


class Choice(NamedTuple):
    """A frontend, fuse or erofs, and why."""

    kind: FrontendKind
    reason: str


def choose(facts: Facts) -> Choice:
    """Take erofs unless something speaks against it."""
    obstacle = _obstacle(facts)
    if obstacle is not None:
        return Choice(FrontendKind.FUSE, obstacle)
    asked = facts.asked is FrontendKind.EROFS
    return Choice(FrontendKind.EROFS, "asked for" if asked else "the kernel reads the image itself")


def _obstacle(facts: Facts) -> str | None:
    if facts.asked is FrontendKind.FUSE:
        return "asked for"
    if facts.rafs is None or facts.virtual_mountpoint is None:
        return "no image at start: mounts come and go by the API"
    if facts.virtual_mountpoint != "/":
        return f"the image appears at {facts.virtual_mountpoint}, not at the root"
    counted = [name for name in STATISTICS if getattr(facts.rafs, name)]
    if counted:
        return f"reads are to be counted per file ({', '.join(counted)})"
    return facts.kernel_refuses


def level(asked: FrontendKind, taken: FrontendKind) -> int:
    """Return the level of the line that tells of the choice: a wish that is not granted is a warning."""
    is_refused = asked is FrontendKind.EROFS and taken is not FrontendKind.EROFS
    return logging.WARNING if is_refused else logging.INFO
