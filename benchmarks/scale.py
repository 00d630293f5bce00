"""Do start-up and memory grow with the number of inodes? One image of 1,000 files, one of 500,000."""

import argparse
import os
import tempfile
import time
from pathlib import Path
from statistics import median

from benchmarks.process import daemon, own_program
from nydusd.builder.build import build_image
from nydusd.builder.options import BuildOptions

FILES_PER_DIRECTORY = 1000


def make_tree(folder: Path, files: int) -> Path:
    """Small files, a thousand to a directory; every tenth has its own bytes."""
    source = folder / "source"
    for number in range(0, files, FILES_PER_DIRECTORY):
        directory = source / f"d{number // FILES_PER_DIRECTORY:04}"
        directory.mkdir(parents=True)
        for index in range(number, min(number + FILES_PER_DIRECTORY, files)):
            (directory / f"f{index:07}").write_bytes(b"%d" % index if index % 10 == 0 else b"x")
    return source


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks scale", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--files", type=int, nargs="+", default=[1000, 500_000])
    parser.add_argument("--nydusd", default="", help="ours if not given")
    parser.add_argument(
        "--options", default="", help="more options of nydusd, as '--frontend fuse'"
    )
    a = parser.parse_args(argv)
    print("| files | RAFS | bootstrap MiB | build s | exec to RUNNING ms | PSS after start MiB |")
    print("|---|---|---|---|---|---|")
    for files in a.files:
        with tempfile.TemporaryDirectory(prefix="nydusd-scale-") as name:
            folder = Path(name)
            source = make_tree(folder, files)
            program = f"{a.nydusd or own_program(folder)} fuse {a.options}"
            for version in (6, 5):
                measure(folder, source, files, version, a.rounds, program)


def forget(file: Path) -> None:
    """Drop one file from the page cache: the bootstrap is cold, the interpreter is not."""
    fd = os.open(file, os.O_RDONLY)
    try:
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)


def measure(
    folder: Path, source: Path, files: int, version: int, rounds: int, program: str
) -> None:
    work = folder / f"v{version}"
    (work / "blobs").mkdir(parents=True)
    begin = time.perf_counter()
    build_image(source, BuildOptions(fs_version=version), work / "bootstrap", work / "blobs")
    built_s = time.perf_counter() - begin
    settings = {
        "device": {
            "id": "scale",
            "backend": {"type": "localfs", "config": {"dir": str(work / "blobs")}},
            "cache": {"type": "blobcache", "config": {"work_dir": str(work / "cache")}},
        },
        "mode": "direct",
    }
    starts, sizes = [], []
    for _ in range(rounds):
        forget(work / "bootstrap")
        with daemon(program, work, work / "bootstrap", settings) as running:
            starts.append(running.start_s * 1000)
            sizes.append(running.pss_mib())
    size_mib = (work / "bootstrap").stat().st_size / 2**20
    print(
        f"| {files:,} | v{version} | {size_mib:.1f} | {built_s:.1f} | {median(starts):.0f} |"
        f" {median(sizes):.1f} |",
        flush=True,
    )
