"""Who is measured: daemons, each with an argv of its own, and file systems that need no daemon of ours."""

import argparse
import shlex
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks import mounts
from benchmarks.blob_cache import BlobCache
from benchmarks.process import Daemon, daemon, knows_option, own_program
from benchmarks.rows import EROFS, FUSE, PEER
from benchmarks.subject import Subject

REPO = "bench/image"


@dataclass(frozen=True)
class Contestant:
    """A daemon with its options, its folder and its cache. `wants`: the file system it was told to mount."""

    column: str
    program: str  # with subcommand and options
    wants: str | None
    folder: Path
    cache: BlobCache
    bootstrap: Path

    def settings(self, host: str) -> dict[str, Any]:
        """Return the configuration of a life that fetches from a registry at `host`."""
        return {
            "device": {
                "id": "bench",
                "backend": {
                    "type": "registry",
                    "config": {"scheme": "http", "host": host, "repo": REPO, "timeout": 30},
                },
                "cache": {"type": "blobcache", "config": {"work_dir": str(self.cache.folder)}},
            },
            "mode": "direct",
            "enable_xattr": True,
        }

    def live(self, host: str, *, log_level: str = "warn") -> AbstractContextManager[Daemon]:
        """Run the daemon for the length of a block."""
        return daemon(
            self.program, self.folder, self.bootstrap, self.settings(host), log_level=log_level
        )

    def rehearsed(self, host: str) -> tuple["Contestant", str | None]:
        """Live once unmeasured: byte-code is written, and what was mounted is looked at, not assumed.

        One that did not get the frontend it asked for goes on under a name that says so, lest its figures be
        taken for another's; the remark has the daemon's own reason.
        """
        with self.live(host, log_level="info") as running:
            mounted = mounts.file_system(running.mountpoint)
        if self.wants in (None, mounted):
            return self, None
        log = (self.folder / "log").read_text().splitlines()
        said = " / ".join(line for line in log if "frontend" in line)
        renamed = replace(self, column=f"{self.column}, fell back to {mounted}")
        return renamed, f"**{self.column}: got {mounted}, not {self.wants}.** {said}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that say who takes part."""
    parser.add_argument("--peer", default="", help="another nydusd to measure in the same rounds")
    parser.add_argument(
        "--frontends", nargs="*", default=[EROFS, FUSE], choices=[EROFS, FUSE], help="ours"
    )
    parser.add_argument(
        "--variant",
        action="append",
        default=[],
        metavar="NAME=OPTIONS",
        help="another column: our nydusd with these options, as --variant 'erofs4=--frontend erofs ...'",
    )


def contestants(
    options: argparse.Namespace, folder: Path, subject: Subject, chunk_count: int
) -> list[Contestant]:
    """Return our frontends, the variants, the peer."""
    ours = own_program(folder)
    if knows_option(ours, "--frontend"):
        programs = {name: (f"{ours} fuse --frontend {name}", name) for name in options.frontends}
    else:
        programs = {FUSE: (f"{ours} fuse", FUSE)}
    for variant in options.variant:
        name, _, extra = variant.partition("=")
        words = shlex.split(extra)
        wants = words[words.index("--frontend") + 1] if "--frontend" in words else None
        programs[name] = (f"{ours} fuse {extra}", wants)
    if options.peer:
        programs[PEER] = (f"{options.peer} fuse", None)
    found = []
    for column, (program, wants) in programs.items():
        place = folder / f"life-{column}"
        (place / "cache").mkdir(parents=True)
        cache = BlobCache(place / "cache", subject.blob_id, chunk_count)
        found.append(Contestant(column, program, wants, place, cache, subject.bootstrap))
    return found
