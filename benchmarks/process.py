"""A daemon under measurement, and how commands are timed from outside."""

import http.client
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

RUNNING_TIMEOUT_S = 30.0
POLL_S = 0.001


class _Unix(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=10)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(10)
        self.sock.connect(str(self._path))


class Daemon:
    """One running nydusd, ours or a peer's: both have the same argv and API."""

    def __init__(
        self, process: "subprocess.Popen[bytes]", api: Path, mountpoint: Path, start_s: float
    ):
        self.process = process
        self.api = api
        self.mountpoint = mountpoint
        self.start_s = start_s  # exec → "state":"RUNNING"

    def get(self, path: str) -> Any:
        connection = _Unix(self.api)
        try:
            connection.request("GET", path)
            return json.loads(connection.getresponse().read())
        finally:
            connection.close()

    def fetched(self) -> tuple[int, int]:
        """Return (requests, stored bytes) asked of the backend so far."""
        stats = self.get("/api/v1/metrics/backend")
        return stats["read_count"], stats["read_amount_total"]

    def pss_mib(self) -> float:
        """Return the proportional set size."""
        text = Path(f"/proc/{self.process.pid}/smaps_rollup").read_text()
        (line,) = [line for line in text.splitlines() if line.startswith("Pss:")]
        return int(line.split()[1]) / 1024

    def cpu_s(self) -> float:
        """Return user and system seconds used so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def daemon(program: str, folder: Path, bootstrap: Path, config: dict[str, Any]) -> Iterator[Daemon]:
    """Run a daemon with `config` in `folder`; ends it and its mount with the block."""
    mountpoint, api, config_file = folder / "mnt", folder / "api.sock", folder / "config.json"
    mountpoint.mkdir(exist_ok=True)
    config_file.write_text(json.dumps(config))
    argv = [*shlex.split(program), "--config", str(config_file), "--bootstrap", str(bootstrap)]
    argv += ["--mountpoint", str(mountpoint), "--apisock", str(api), "--log-level", "warn"]
    argv += ["--rlimit-nofile", "0"]  # peers die where they may not raise the limit
    with (folder / "log").open("ab") as log:
        begin = time.perf_counter()
        process = subprocess.Popen(argv, stdout=log, stderr=log)
    running = Daemon(process, api, mountpoint, 0.0)
    try:
        while True:
            if process.poll() is not None:
                sys.exit(f"{program} ended: {(folder / 'log').read_text()[-1000:]}")
            if time.perf_counter() - begin > RUNNING_TIMEOUT_S:
                sys.exit(f"{program} is not RUNNING: {(folder / 'log').read_text()[-1000:]}")
            try:
                if running.get("/api/v1/daemon")["state"] == "RUNNING":
                    break
            except (OSError, http.client.HTTPException):
                time.sleep(POLL_S)
        running.start_s = time.perf_counter() - begin
        yield running
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if os.path.ismount(mountpoint):
            subprocess.run(["umount", "-l", mountpoint], check=False)


def drop_caches() -> None:
    """Make the kernel forget clean pages, dentries and inodes."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")


def timed(argv: list[str], folder: Path) -> float:
    """Run a command in `folder`, return its wall seconds; it must succeed."""
    begin = time.perf_counter()
    subprocess.run(argv, cwd=folder, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - begin
