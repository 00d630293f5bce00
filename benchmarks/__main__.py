"""How fast is a mount of ours: cold over a slow link, warm, and against ext4 on the same tree?

    python -m benchmarks [--rounds 3] [--rtt-ms 20] [--mbit 200] [--paths 10000] [--peer 'nydusd']
    python -m benchmarks scale      start-up and memory with 1,000 and with 500,000 files

Prints one Markdown table, medians of the rounds; every row names its unit, and every byte that was read is
compared with the source at the end. Needs root, /dev/fuse, loop devices and Debian's docker-registry.
"""

import argparse
import platform
import shlex
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import scale, walks
from benchmarks.process import daemon, drop_caches
from benchmarks.subject import Subject, ext4_copy, make_subject
from tests.support.registry import registry
from tests.support.slow_link import link_process

REPO = "bench/image"


class Table:
    """Measured values by row and column; printed as medians with the ratio to ext4."""

    def __init__(self) -> None:
        self.rows: dict[str, dict[str, list[float]]] = {}

    def add(self, row: str, column: str, value: float) -> None:
        self.rows.setdefault(row, {}).setdefault(column, []).append(value)

    def show(self, columns: list[str], baseline: str) -> None:
        ratios = [f"{c} / {baseline}" for c in columns if c != baseline]
        print("| row | " + " | ".join([*columns, *ratios]) + " |")
        print("|---" * (1 + len(columns) + len(ratios)) + "|")
        for row, values in self.rows.items():
            cells = [f"{median(values[c]):.4g}" if c in values else "" for c in columns]
            base = median(values[baseline]) if baseline in values else 0.0
            for column in columns:
                if column != baseline:
                    has = base and column in values
                    cells.append(f"{median(values[column]) / base:.2f}" if has else "")
            print(f"| {row} | " + " | ".join(cells) + " |")


def config(host: str, cache: Path) -> dict[str, Any]:
    return {
        "device": {
            "id": "bench",
            "backend": {
                "type": "registry",
                "config": {"scheme": "http", "host": host, "repo": REPO, "timeout": 30},
            },
            "cache": {"type": "blobcache", "config": {"work_dir": str(cache)}},
        },
        "mode": "direct",
        "enable_xattr": True,
    }


def measure_daemon(
    table: Table, column: str, program: str, subject: Subject, host: str, mbit: float, big: Path
) -> None:
    """One round of one daemon: a cold life over the link, then a warm one on the cache it left."""
    with tempfile.TemporaryDirectory(prefix="nydusd-bench-") as name:
        folder = Path(name)
        settings = config(host, folder / "cache")
        (folder / "cache").mkdir()
        drop_caches()
        with daemon(program, folder, subject.bootstrap, settings) as cold:
            table.add("exec to RUNNING, page cache dropped, ms", column, cold.start_s * 1000)
            table.add("PSS after start, MiB", column, cold.pss_mib())
            drop_caches()
            table.add("cold find, ms", column, walks.find(cold.mountpoint) * 1000)
            table.add("PSS after find, MiB", column, cold.pss_mib())
            seconds = walks.tar(cold.mountpoint)
            requests, stored = cold.fetched()
            table.add("cold tar, s", column, seconds)
            ideal = subject.stored_bytes * 8 / (mbit * 1e6)
            table.add("cold tar / what its bytes need on the link", column, seconds / ideal)
            table.add("requests for all", column, requests)
            table.add("MiB fetched for all", column, stored / 2**20)
            table.add("CPU of the daemon for all, s", column, cold.cpu_s())
            table.add("PSS after tar, MiB", column, cold.pss_mib())
        with daemon(program, folder, subject.bootstrap, settings) as warm:
            table.add("exec to RUNNING, ms", column, warm.start_s * 1000)
            measure_tree(table, column, warm.mountpoint, big)
            walks.check_same(warm.mountpoint, subject.source)


def measure_tree(table: Table, column: str, tree: Path, big: Path) -> None:
    """The rows that need no network, with the page cache dropped before each."""
    drop_caches()
    table.add("find, caches dropped, ms", column, walks.find(tree) * 1000)
    table.add("find again, ms", column, walks.find(tree) * 1000)
    drop_caches()
    table.add("tar, caches dropped, s", column, walks.tar(tree))
    table.add("tar again, s", column, walks.tar(tree))
    drop_caches()
    size = (tree / big).stat().st_size
    table.add("sequential read, MiB/s", column, size / 2**20 / walks.sequential(tree, big))
    for kib in (4, 128):
        drop_caches()
        seconds = walks.random_reads(tree, big, kib * 1024)
        table.add(f"random {kib} KiB reads, per s", column, walks.RANDOM_READS / seconds)
    drop_caches()
    table.add("getfattr -R usr/share, ms", column, walks.getfattr(tree) * 1000)


def main() -> None:
    if sys.argv[1:2] == ["scale"]:
        scale.main(sys.argv[2:])
        return
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rtt-ms", type=float, default=20)
    parser.add_argument("--mbit", type=float, default=200)
    parser.add_argument("--paths", type=int, default=10_000)
    parser.add_argument(
        "--mean-kib", type=int, default=40, help="mean bytes per path: a web image of Debian has 46"
    )
    parser.add_argument("--fs-version", type=int, default=6)
    parser.add_argument("--peer", default="", help="another nydusd to measure in the same rounds")
    a = parser.parse_args()
    ours = f"{shlex.quote(str(Path(sys.executable).with_name('nydusd')))} fuse"
    programs = {"nydusd": ours} | ({"peer": f"{a.peer} fuse"} if a.peer else {})
    table = Table()
    with tempfile.TemporaryDirectory(prefix="nydusd-bench-") as name:
        folder = Path(name)
        subject = make_subject(folder, a.paths, a.mean_kib << 10, a.fs_version)
        big = walks.largest_file(subject.source)
        print(
            f"{subject.paths:,} paths, {subject.plain_bytes >> 20} MiB plain, {subject.stored_bytes >> 20} MiB"
            f" stored, RAFS v{a.fs_version}; link {a.rtt_ms:g} ms, {a.mbit:g} Mbit/s; Linux {platform.release()};"
            f" medians of {a.rounds}; largest file {(subject.source / big).stat().st_size >> 20} MiB\n",
            flush=True,
        )
        (folder / "registry").mkdir()
        with registry(folder / "registry") as server, ext4_copy(subject, folder) as ext4:
            server.push(REPO, (subject.blobs / subject.blob_id).read_bytes())
            with link_process(server.host, rtt_ms=a.rtt_ms, mbit=a.mbit) as link:
                for _ in range(a.rounds):
                    for column, program in programs.items():
                        measure_daemon(table, column, program, subject, link.address, a.mbit, big)
                    measure_tree(table, "ext4", ext4, big)
    table.show([*programs, "ext4"], "ext4")


main()
