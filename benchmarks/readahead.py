"""What readahead should the mounts have? Cold and warm `tar`, one large file and random
reads, by `read_ahead_kb`.

    python -m benchmarks readahead [--tree-kib 128 1024] [--device-kib 128 1024] [--variant 'direct=...']

A mount has one window in /sys/class/bdi; the EROFS frontend has a second one below it, of the FUSE session
that shows the blobs. The daemon sets its own values when it mounts; this sets others over them, but for the
first line of each contestant, which shows the daemon's own. A contestant with other mount options is a
`--variant`. EROFS' window is known by being new.
"""

import argparse
import itertools
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import NamedTuple

from benchmarks import mounts, reads, scene, walks
from benchmarks.contestants import Contestant, add_arguments, contestants
from benchmarks.process import Daemon, drop_caches
from benchmarks.rows import EROFS
from benchmarks.table import lines_of, number

RANDOM_KIB = (
    128  # a window too large shows here: what is read ahead of a random place is for nothing
)
HEAD = ("frontend", "tree KiB", "device KiB", "cold tar s", "cold MiB", "warm tar s")
READS_HEAD = ("sequential MiB/s", f"random {RANDOM_KIB} KiB per s")
TRIES = 10


class Windows(NamedTuple):
    """Readahead of the mount and of what lies below it; None: as the daemon left it."""

    tree_kib: int | None
    device_kib: int | None


@contextmanager
def life_with(who: Contestant, host: str, windows: Windows) -> Iterator[tuple[Daemon, Windows]]:
    """Run a daemon whose mounts have these windows; tell those that they have in fact."""
    for _ in range(TRIES):
        before = mounts.erofs_windows()
        with who.live(host) as life:
            found = windows_of(life, mounts.erofs_windows() - before)
            if found is None:
                continue
            tree, below = found
            if windows.tree_kib is not None:
                mounts.set_readahead(tree, windows.tree_kib)
            for device in below:
                if windows.device_kib is not None:
                    mounts.set_readahead(device, windows.device_kib)
            device_kib = mounts.readahead_kib(below[0]) if below else None
            yield life, Windows(mounts.readahead_kib(tree), device_kib)
            return
    sys.exit("others mount EROFS all the time: which window is ours cannot be told")


def windows_of(life: Daemon, new_erofs: set[str]) -> tuple[str, list[str]] | None:
    """Return the names of the mount's window and of those below it; None if somebody else mounted too."""
    below = mounts.fuse_devices(life.process.pid)
    if mounts.file_system(life.mountpoint) == EROFS:
        return (new_erofs.pop(), below) if len(new_erofs) == 1 else None
    tree = mounts.device_of(life.mountpoint)
    return tree, [device for device in below if device != tree]


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks readahead",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    sizes = [0, 128, 512, 1024, 4096]
    parser.add_argument("--tree-kib", type=int, nargs="+", default=sizes)
    parser.add_argument("--device-kib", type=int, nargs="+", default=sizes)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--warm-only", action="store_true", help="leaves out the slow link")
    scene.add_arguments(parser)
    add_arguments(parser)
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="nydusd-readahead-") as name:
        folder = Path(name)
        with scene.scene(options, folder) as stage:
            print(f"{stage.title}; medians of {options.rounds}\n", flush=True)
            print(lines_of([(*HEAD, *READS_HEAD)]), flush=True)
            for chosen in contestants(options, folder, stage.subject, stage.chunk_count):
                who, _ = chosen.rehearsed(stage.host)
                study(who, stage, options)


def study(who: Contestant, stage: scene.Scene, options: argparse.Namespace) -> None:
    """Print one line for each pair of windows."""
    with life_with(who, stage.host, Windows(None, None)) as (_, own):
        two = own.device_kib is not None
    below: list[int | None] = options.device_kib if two else [None]
    pairs = [
        Windows(None, None),
        *itertools.starmap(Windows, itertools.product(options.tree_kib, below)),
    ]
    found: dict[Windows, list[tuple[float, ...]]] = {}
    actual = {}
    for _ in range(options.rounds):
        for windows in pairs:
            values, actual[windows] = once(who, stage, windows, cold=not options.warm_only)
            found.setdefault(windows, []).append(values)
    for windows, rounds in found.items():
        tree, device = actual[windows]
        own_mark = " (its own)" if windows == (None, None) else ""
        cells = [number(median(c) or None) for c in zip(*rounds, strict=True)]
        line = (who.column, f"{tree}{own_mark}", "" if device is None else device, *cells)
        print(lines_of([line]).splitlines()[0], flush=True)


def once(
    who: Contestant, stage: scene.Scene, windows: Windows, *, cold: bool
) -> tuple[tuple[float, ...], Windows]:
    """A cold life and a warm one, partly cached; return the figures of HEAD and the windows there were."""
    cold_s = cold_mib = 0.0
    source, plain_bytes = stage.subject.source, stage.subject.plain_bytes
    if cold:
        shutil.rmtree(who.cache.folder)
        who.cache.folder.mkdir()
    with life_with(who, stage.link.address if cold else stage.host, windows) as (life, _):
        drop_caches()
        before = carried(stage)
        seconds = walks.tar(life.mountpoint, plain_bytes)
        if cold:
            cold_s, cold_mib = seconds, (carried(stage) - before) / 2**20
        walks.check_same(life.mountpoint, source)
    who.cache.take_out(stage.victim.extent)
    with life_with(who, stage.host, windows) as (life, actual):
        drop_caches()
        least = plain_bytes - stage.victim.extent.chunk_size
        warm_s = walks.tar(life.mountpoint, least, stage.victim.path)
        drop_caches()
        speed = reads.sequential(life.mountpoint, source, stage.big)
        drop_caches()
        reads.prime(who.cache.data)
        plan = reads.plan_reads(source, stage.large, RANDOM_KIB)
        per_s, _ = reads.random_reads(life.mountpoint, source, plan, 1)
        walks.check_same(life.mountpoint, source)
    return (cold_s, cold_mib, warm_s, speed, per_s), actual


def carried(stage: scene.Scene) -> int:
    """Return the bytes that came through the link so far."""
    return int(stage.link.command("counts").split()[2])
