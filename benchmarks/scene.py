"""What every measurement needs around it: an image in a registry, a slow link to it, a file to take out."""

import argparse
import platform
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.blob_cache import Victim, choose_victim
from benchmarks.contestants import REPO
from benchmarks.reads import large_files
from benchmarks.subject import Subject, make_subject
from tests.support.registry import registry
from tests.support.slow_link import LinkProcess, link_process

LARGE_PATHS, LARGE_MEAN_KIB = 14_500, 46  # a web application's image: 600 MB and more
SEQUENTIAL_BYTES = 31 << 20  # the file next to this size is read from end to end


@dataclass(frozen=True)
class Scene:
    """The subject, and the two ways to its registry."""

    subject: Subject
    victim: Victim
    chunk_count: int
    large: tuple[Path, ...]  # the largest files, relative to the tree
    big: Path  # the one that is read from end to end
    link: LinkProcess
    host: str  # the registry without the link
    title: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the image and of the link."""
    parser.add_argument("--paths", type=int, default=10_000)
    parser.add_argument(
        "--mean-kib", type=int, default=40, help="mean bytes per path: a web image of Debian has 46"
    )
    parser.add_argument(
        "--large",
        action="store_true",
        help=f"--paths {LARGE_PATHS} --mean-kib {LARGE_MEAN_KIB}",
    )
    parser.add_argument("--fs-version", type=int, default=6)
    parser.add_argument("--rtt-ms", type=float, default=20)
    parser.add_argument("--mbit", type=float, default=200)


@contextmanager
def scene(options: argparse.Namespace, folder: Path) -> Iterator[Scene]:
    """Set the scene for the length of the block."""
    paths, mean_kib = options.paths, options.mean_kib
    if options.large:
        paths, mean_kib = LARGE_PATHS, LARGE_MEAN_KIB
    subject = make_subject(folder, paths, mean_kib << 10, options.fs_version)
    victim, chunk_count = choose_victim(subject.bootstrap)
    large = large_files(subject.source, victim.path)
    sizes = {path: (subject.source / path).stat().st_size for path in large}
    big = min(large, key=lambda path: abs(sizes[path] - SEQUENTIAL_BYTES))
    title = (
        f"{subject.paths:,} paths, {subject.plain_bytes >> 20} MiB plain, {subject.stored_bytes >> 20} MiB"
        f" stored, RAFS v{options.fs_version}; link {options.rtt_ms:g} ms, {options.mbit:g} Mbit/s;"
        f" Linux {platform.release()}; sequential read of {sizes[big] >> 20} MiB"
    )
    (folder / "registry").mkdir()
    with registry(folder / "registry") as server:
        server.push(REPO, (subject.blobs / subject.blob_id).read_bytes())
        with link_process(server.host, rtt_ms=options.rtt_ms, mbit=options.mbit) as link:
            yield Scene(subject, victim, chunk_count, large, big, link, server.host, title)


def found(program: str) -> str | None:
    """Return where a program is, if it is installed."""
    return shutil.which(program) if program else None
