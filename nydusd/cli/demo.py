"""`make demo`: the main job on an embedded default, in plain words.

Builds a small image from a real folder, serves it from a local folder, mounts it with the real daemon,
reads a few files, says how much was fetched of how much and how long each step took, and unmounts.
Leaves nothing mounted, also when it fails or is interrupted. Needs root and /dev/fuse.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from nydusd.units import KIB, MIB

RUNNING_TIMEOUT_S: Final = 20.0
STOP_TIMEOUT_S: Final = 15.0
POLL_S: Final = 0.005
FILES_READ: Final = 5


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo; 0 if every byte read through the mount was right."""
    parser = argparse.ArgumentParser(prog="python -m nydusd.cli.demo", description=__doc__)
    parser.add_argument(
        "--source", type=Path, default=_default_source(), help="folder to make an image of"
    )
    source: Path = parser.parse_args(argv).source.resolve()
    if os.geteuid() != 0 or not Path("/dev/fuse").exists():
        print(
            "The demo mounts a file system: run it as root on a machine with /dev/fuse.",
            file=sys.stderr,
        )
        return 1
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="nydusd-demo-")))
        return _run(stack, source, work)


def _default_source() -> Path:
    """Return a folder that every machine with this program has: Python's own library."""
    debian = Path("/usr/lib/python3.11")
    return debian if debian.is_dir() else Path(sysconfig.get_path("stdlib")) / "asyncio"


def _run(stack: ExitStack, source: Path, work: Path) -> int:
    blobs, cache, mountpoint = work / "blobs", work / "cache", work / "mnt"
    for folder in (blobs, cache, mountpoint):
        folder.mkdir()
    bootstrap, api_socket, config = work / "bootstrap", work / "api.sock", work / "config.json"

    _say(f"1. Building an image of {source}")
    clock = _Clock()
    _call(
        [
            "nydus-image",
            "create",
            "-t",
            "dir-rafs",
            "-B",
            str(bootstrap),
            "-D",
            str(blobs),
            str(source),
        ]
    )
    stored = sum(file.stat().st_size for file in blobs.iterdir())
    _say(f"   metadata {_size(bootstrap.stat().st_size)}, data {_size(stored)} compressed, {clock}")

    config.write_text(json.dumps(_configuration(blobs, cache), indent=2))
    _say("2. Mounting it: the daemon reads the metadata only")
    clock = _Clock()
    daemon = _start(stack, bootstrap, config, mountpoint, api_socket)
    _wait_until_running(daemon, api_socket)
    _say(f"   the tree is there {clock}; fetched so far: {_size(_fetched(api_socket))}")

    _say("3. Looking at every name, mode, size and link")
    clock = _Clock()
    names = sum(1 for path in mountpoint.rglob("*") if path.lstat() is not None)
    _say(f"   {names:,} names {clock}; fetched so far: {_size(_fetched(api_socket))}")

    _say(f"4. Reading {FILES_READ} files")
    clock = _Clock()
    right, size = _compare(source, mountpoint)
    fetched = _fetched(api_socket)
    share = 100 * fetched / stored if stored else 0
    _say(f"   {_size(size)} read {clock}, {'every byte right' if right else 'BYTES DIFFER'}")
    _say(
        f"   fetched {_size(fetched)} of {_size(stored)} ({share:.0f} %), in {_requests(api_socket)} requests"
    )

    _say("5. Reading them again: from the cache")
    clock = _Clock()
    right = _compare(source, mountpoint)[0] and right
    again = _fetched(api_socket) - fetched
    _say(f"   done {clock}, fetched {_size(again)} more")

    clock = _Clock()
    daemon.send_signal(signal.SIGTERM)
    daemon.wait(STOP_TIMEOUT_S)
    left = os.path.ismount(mountpoint)
    _say(f"6. Unmounted and ended {clock}; left mounted: {'YES' if left else 'nothing'}")
    _say("")
    _say("To look further: nydusd --help, nydus-image create --help, nydusctl --help;")
    _say(
        "config/ has configurations to start from, README.md the way to a registry and a snapshotter."
    )
    return 0 if right and not left else 1


def _configuration(blobs: Path, cache: Path) -> dict[str, Any]:
    return {
        "device": {
            "id": "demo",
            "backend": {"type": "localfs", "config": {"dir": str(blobs)}},
            "cache": {"type": "blobcache", "config": {"work_dir": str(cache)}},
        },
        "mode": "direct",
        "enable_xattr": True,
        "amplify_io": 128 * KIB,
    }


def _start(
    stack: ExitStack, bootstrap: Path, config: Path, mountpoint: Path, api_socket: Path
) -> subprocess.Popen[bytes]:
    argv = [_program("nydusd"), "fuse", "--config", str(config), "--bootstrap", str(bootstrap)]
    argv += ["--mountpoint", str(mountpoint), "--apisock", str(api_socket), "--log-level", "warn"]
    daemon = subprocess.Popen(argv)
    stack.callback(_end, daemon, mountpoint)
    return daemon


def _end(daemon: subprocess.Popen[bytes], mountpoint: Path) -> None:
    """Leave no process and no mount, whatever happened."""
    if daemon.poll() is None:
        daemon.terminate()
        try:
            daemon.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()
    if os.path.ismount(mountpoint):
        subprocess.run(["umount", "-l", str(mountpoint)], check=False)


def _wait_until_running(daemon: subprocess.Popen[bytes], api_socket: Path) -> None:
    end = time.monotonic() + RUNNING_TIMEOUT_S
    while time.monotonic() < end:
        if daemon.poll() is not None:
            sys.exit(f"nydusd ended with status {daemon.returncode}; its last words are above")
        try:
            if _get(api_socket, "/api/v1/daemon")["state"] == "RUNNING":
                return
        except OSError:
            time.sleep(POLL_S)
    sys.exit(f"nydusd is not RUNNING after {RUNNING_TIMEOUT_S:.0f} s")


def _compare(source: Path, mountpoint: Path) -> tuple[bool, int]:
    """Read some files of middling size through the mount: (all as in the source, bytes read)."""
    candidates = sorted(
        path
        for path in source.rglob("*.py")
        if path.is_file() and not path.is_symlink() and 4 * KIB < path.stat().st_size < MIB
    )
    chosen = candidates[:: max(1, len(candidates) // FILES_READ)][:FILES_READ]
    right, size = True, 0
    for path in chosen:
        data = (mountpoint / path.relative_to(source)).read_bytes()
        size += len(data)
        right = right and data == path.read_bytes()
    return right and size > 0, size


def _fetched(api_socket: Path) -> int:
    return int(_get(api_socket, "/api/v1/metrics/backend")["read_amount_total"])


def _requests(api_socket: Path) -> int:
    return int(_get(api_socket, "/api/v1/metrics/backend")["read_count"])


def _get(api_socket: Path, path: str) -> dict[str, Any]:
    from nydusd.cli.ctl import UnixConnection

    connection = UnixConnection(str(api_socket))
    try:
        connection.request("GET", path)
        answer: dict[str, Any] = json.loads(connection.getresponse().read())
    finally:
        connection.close()
    return answer


def _program(name: str) -> str:
    """Return the console script beside this interpreter, else the one on PATH."""
    beside = Path(sys.executable).with_name(name)
    return str(beside) if beside.exists() else shutil.which(name) or name


def _call(argv: list[str]) -> None:
    subprocess.run([_program(argv[0]), *argv[1:]], check=True, stdout=subprocess.DEVNULL)


class _Clock:
    """Prints as the time since it was made."""

    def __init__(self) -> None:
        self._begin = time.monotonic()

    def __str__(self) -> str:
        elapsed = time.monotonic() - self._begin
        return f"after {elapsed * 1000:.0f} ms" if elapsed < 1 else f"after {elapsed:.1f} s"


def _size(count: int) -> str:
    if count >= MIB:
        return f"{count / MIB:.1f} MiB"
    return f"{count / KIB:.0f} KiB" if count else "nothing"


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
