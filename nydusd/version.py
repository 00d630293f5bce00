"""Which build this is: one source for `--version`, the API and the first log line (spec cli-config A7).

Owns     the build facts. Installed packages carry `nydusd/_build_info.py`, written when they were built;
         a checkout is asked for its commit, by reading `.git`, the first time somebody wants to know.
Raises   nothing: what cannot be found is "unknown".

A snapshotter compares the commit that `--version` prints with the one of GET /api/v1/daemon and upgrades
the daemon if they differ, so both must come from here.
"""

import sys
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Final, NamedTuple

from nydusd import __version__

UNKNOWN: Final = "unknown"


class BuildInfo(NamedTuple):
    """The five strings under the names GET /api/v1/daemon gives them."""

    package_ver: str
    git_commit: str
    build_time: str
    profile: str
    rustc: str  # the name clients insist on; ours says which Python


@cache
def build_info() -> BuildInfo:
    """Return the facts of this build, always the same in one process."""
    python = f"Python {sys.version.partition(' ')[0]}"
    package_ver = f"v{__version__}"
    try:
        built = import_module("nydusd._build_info")
    except ImportError:
        commit = commit_of_checkout(Path(__file__).parent.parent)
        return BuildInfo(package_ver, commit, UNKNOWN, "checkout", python)
    return BuildInfo(package_ver, built.GIT_COMMIT, built.BUILD_TIME, "release", python)


def version_text(program: str = "nydusd") -> str:
    """Return what `--version` prints, byte for byte as clients parse it, without the last line end."""
    info = build_info()
    return (
        f"{program} \rVersion: \t{info.package_ver}\n"
        f"Git Commit: \t{info.git_commit}\n"
        f"Build Time: \t{info.build_time}\n"
        f"Profile: \t{info.profile}\n"
        f"Rustc: \t\t{info.rustc}\n"
    )


def commit_of_checkout(root: Path) -> str:
    """Return the commit that the checkout at `root` stands on, "unknown" if it is none.

    Reads .git instead of running git: no process, and the same answer when git is not installed.
    """
    try:
        git = root / ".git"
        if git.is_file():  # a linked work tree: "gitdir: <path>"
            git = root / git.read_text().removeprefix("gitdir:").strip()
        head = (git / "HEAD").read_text().strip()
        if not head.startswith("ref:"):
            return _commit(head)
        ref = head.removeprefix("ref:").strip()
        shared = git / "commondir"
        common = git / shared.read_text().strip() if shared.exists() else git
        loose = common / ref
        if loose.exists():
            return _commit(loose.read_text().strip())
        packed = (common / "packed-refs").read_text().splitlines()
        return _commit(next((line.split()[0] for line in packed if line.endswith(f" {ref}")), ""))
    except (OSError, ValueError):
        return UNKNOWN


def _commit(text: str) -> str:
    hexadecimal = len(text) in (40, 64) and all(char in "0123456789abcdef" for char in text)
    return text if hexadecimal else UNKNOWN
