"""How many files this process may open (spec cli-config A2, observed §1).

Owns     the arithmetic of --rlimit-nofile.
Callers  `nydusd.cli.nydusd`.
Raises   nothing: a container's root often may not raise its limits, which is no reason to end.
"""

import logging
import resource
from pathlib import Path
from typing import Final

log = logging.getLogger(__name__)

FILE_MAX: Final = Path("/proc/sys/fs/file-max")
FILES_LEFT_TO_OTHERS: Final = 16384  # spec cli-config A2
LIMIT_MAX: Final = 1_000_000


def wanted_limit(asked: int, soft: int, file_max: int) -> int:
    """Return the limit to set, when `asked` was asked for and `soft` is what holds now."""
    return min(asked, max(soft, min(file_max - FILES_LEFT_TO_OTHERS, LIMIT_MAX)))


def raise_open_files(asked: int) -> None:
    """Set RLIMIT_NOFILE to `asked` or as near to it as this process may; 0: leave it alone."""
    if asked == 0:
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    soft, hard = _finite(soft), _finite(hard)
    wanted = wanted_limit(asked, soft, _file_max())
    if wanted <= hard:
        _set(wanted, hard)
    elif not _set(wanted, wanted):
        _set(hard, hard)
        log.info("open files limited to %d: may not raise the limit to %d", hard, wanted)


def _finite(limit: int) -> int:
    return LIMIT_MAX if limit == resource.RLIM_INFINITY else limit


def _file_max() -> int:
    try:
        return int(FILE_MAX.read_text())
    except (OSError, ValueError):  # no /proc, as in some sandboxes
        return LIMIT_MAX


def _set(soft: int, hard: int) -> bool:
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    except (OSError, ValueError):
        return False
    return True
