"""What does a start import, and how long does that take? `python -X importtime` of a real mount.

Prints the time from exec to RUNNING, what was imported until then and what behind it, the modules that
cost most by themselves, and the sums by package. The image is behind a registry that does not answer: a
mount needs no network, and what the backend imports is to come behind RUNNING.
"""

import argparse
import re
import shlex
import sys
import tempfile
import time
from contextlib import AbstractContextManager
from pathlib import Path
from statistics import median
from typing import NamedTuple

from benchmarks.process import Daemon, daemon, own_program
from benchmarks.table import lines_of
from nydusd.builder.build import build_image
from nydusd.builder.options import BuildOptions

SETTLE_S = 1.0  # what comes behind RUNNING has come by then
UNREACHABLE = {"scheme": "http", "host": "127.0.0.1:1", "repo": "imports/image"}
LINE = re.compile(r"import time:\s+(\d+) \|\s+(\d+) \|\s+(\S+)")


class Import(NamedTuple):
    """One module; microseconds by itself, and with what it imported first."""

    self_us: int
    cumulative_us: int
    name: str


def parse(text: str) -> list[Import]:
    """Return the imports that a profile names, in the order in which they ended."""
    return [Import(int(own), int(all_), name) for own, all_, name in LINE.findall(text)]


def by_package(found: list[Import]) -> dict[str, int]:
    """Return microseconds by top-level package, ours by room, the largest first."""
    sums: dict[str, int] = {}
    for module in found:
        parts = module.name.split(".")
        package = ".".join(parts[:2]) if parts[0] == "nydusd" else parts[0]
        sums[package] = sums.get(package, 0) + module.self_us
    return dict(sorted(sums.items(), key=lambda item: -item[1]))


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks imports", description=__doc__)
    parser.add_argument(
        "--options", default="", help="more options of nydusd, as '--frontend fuse'"
    )
    parser.add_argument("--rounds", type=int, default=5, help="starts without the profile")
    parser.add_argument("--top", type=int, default=25)
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="nydusd-imports-") as name:
        Profile(Path(name), options.options).report(options.rounds, options.top)


class Profile:
    """A small image, and the starts of a daemon on it."""

    def __init__(self, folder: Path, options: str) -> None:
        self._folder = folder
        self._options = options
        self._program = own_program(folder)
        (folder / "source").mkdir()
        (folder / "source" / "file").write_bytes(b"content")
        (folder / "blobs").mkdir()
        build_image(folder / "source", BuildOptions(), folder / "bootstrap", folder / "blobs")

    def report(self, rounds: int, top: int) -> None:
        with self._start(""):
            pass  # byte-code is written
        starts = []
        for _ in range(rounds):
            with self._start("") as running:
                starts.append(running.start_s * 1000)
        with self._start("-X importtime") as running:
            until = len((self._folder / "log").read_text())
            profiled_ms = running.start_s * 1000
            time.sleep(SETTLE_S)
            text = (self._folder / "log").read_text()
        before, behind = parse(text[:until]), parse(text[until:])
        total_ms = sum(module.self_us for module in before) / 1000
        print(
            f"exec to RUNNING: {median(starts):.0f} ms (median of {rounds}), {profiled_ms:.0f} ms with the"
            f" profile, of which {total_ms:.0f} ms in {len(before)} imports;"
            f" {len(behind)} imports behind RUNNING, {sum(m.self_us for m in behind) / 1000:.0f} ms\n"
        )
        rows = [
            (m.name, f"{m.self_us / 1000:.1f}", f"{m.cumulative_us / 1000:.1f}")
            for m in sorted(before, key=lambda m: -m.self_us)[:top]
        ]
        print(
            lines_of([("module, until RUNNING", "itself, ms", "with what it imports, ms"), *rows])
        )
        packages = [(name, f"{us / 1000:.1f}") for name, us in by_package(before).items()][:top]
        print(f"\n{lines_of([('package, until RUNNING', 'ms'), *packages])}")
        if behind:
            packages = [(name, f"{us / 1000:.1f}") for name, us in by_package(behind).items()][:top]
            print(f"\n{lines_of([('package, behind RUNNING', 'ms'), *packages])}")

    def _start(self, interpreter_options: str) -> AbstractContextManager[Daemon]:
        settings = {
            "device": {
                "id": "imports",
                "backend": {"type": "registry", "config": UNREACHABLE},
                "cache": {
                    "type": "blobcache",
                    "config": {"work_dir": str(self._folder / "cache")},
                },
            },
            "mode": "direct",
        }
        program = f"{shlex.quote(sys.executable)} {interpreter_options} {self._program} fuse {self._options}"
        return daemon(program, self._folder, self._folder / "bootstrap", settings)
