"""A daemon under measurement, from its argv to its end; memory and CPU as seen from outside."""

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
LOG_TAIL = 2000  # characters of a daemon's log that are shown when the run ends early
ROOT = Path(__file__).parents[1]
SCRIPT = "import sys\nfrom nydusd.cli.nydusd import main\nsys.exit(main())\n"


def environment() -> dict[str, str]:
    """What daemons are started with: byte-code is kept, as in any installation, and found without one."""
    kept = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    return kept | {"PYTHONPATH": str(ROOT)}


def own_program(folder: Path) -> str:
    """Return our `nydusd` as a command: the installed script, else one in `folder` as pip writes it."""
    installed = Path(sys.executable).with_name("nydusd")
    if installed.exists():
        return shlex.quote(str(installed))
    script = folder / "nydusd"
    script.write_text(f"#!{sys.executable}\n{SCRIPT}")
    script.chmod(0o755)
    return shlex.quote(str(script))


def knows_option(program: str, option: str) -> bool:
    """Tell whether the help of `nydusd fuse` names an option."""
    argv = [*shlex.split(program), "fuse", "--help"]
    done = subprocess.run(argv, capture_output=True, text=True, env=environment(), check=False)
    return option in done.stdout.split()


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

    def requests(self) -> int:
        """Return the number of requests asked of the backend so far, by the daemon's own count."""
        count: int = self.get("/api/v1/metrics/backend")["read_count"]
        return count

    def pss_mib(self) -> float:
        """Return the proportional set size of the daemon and its children."""
        return sum(_pss_kib(pid) for pid in self._pids()) / 1024

    def cpu_s(self) -> float:
        """Return user and system seconds used so far, those of children that ended included."""
        return sum(map(_ticks, self._pids())) / os.sysconf("SC_CLK_TCK")

    def holds_dev_fuse(self) -> bool:
        """Tell whether the daemon has a FUSE session: without one it cannot be in the read path."""
        for fd in Path(f"/proc/{self.process.pid}/fd").iterdir():
            try:
                if os.readlink(fd) == "/dev/fuse":
                    return True
            except FileNotFoundError:
                continue  # closed since it was listed
        return False

    def _pids(self) -> list[int]:
        """The daemon and everything below it."""
        pids = [self.process.pid]
        for pid in pids:  # grows while it is walked
            for task in Path(f"/proc/{pid}/task").glob("*/children"):
                pids += map(int, task.read_text().split())
        return pids


def _pss_kib(pid: int) -> int:
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    (line,) = [line for line in text.splitlines() if line.startswith("Pss:")]
    return int(line.split()[1])


def _ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15]))  # utime, stime, cutime, cstime


@contextmanager
def daemon(
    program: str, folder: Path, bootstrap: Path, config: dict[str, Any], *, log_level: str = "warn"
) -> Iterator[Daemon]:
    """Run a daemon with `config` in `folder`; ends it and its mount with the block.

    program: the command up to what follows here, subcommand and further options included.
    """
    mountpoint, api, config_file = folder / "mnt", folder / "api.sock", folder / "config.json"
    mountpoint.mkdir(exist_ok=True)
    config_file.write_text(json.dumps(config))
    argv = [*shlex.split(program), "--config", str(config_file), "--bootstrap", str(bootstrap)]
    argv += ["--mountpoint", str(mountpoint), "--apisock", str(api), "--log-level", log_level]
    argv += ["--rlimit-nofile", "0"]  # peers die where they may not raise the limit
    env = environment()
    with (folder / "log").open("wb") as log:
        begin = time.perf_counter()
        process = subprocess.Popen(argv, stdout=log, stderr=log, env=env)
    running = Daemon(process, api, mountpoint, 0.0)
    try:
        while True:
            if process.poll() is not None:
                sys.exit(f"{program} ended")
            if time.perf_counter() - begin > RUNNING_TIMEOUT_S:
                sys.exit(f"{program} is not RUNNING")
            try:
                if running.get("/api/v1/daemon")["state"] == "RUNNING":
                    break
            except (OSError, http.client.HTTPException):
                time.sleep(POLL_S)
        running.start_s = time.perf_counter() - begin
        yield running
    except BaseException:
        sys.stderr.write((folder / "log").read_text(errors="replace")[-LOG_TAIL:])
        raise
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        while os.path.ismount(mountpoint):
            subprocess.run(["umount", "-l", mountpoint], check=True)
        api.unlink(missing_ok=True)  # a stale socket of a killed one


def drop_caches() -> None:
    """Make the kernel forget clean pages, dentries and inodes."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")


def timed(argv: list[str], folder: Path) -> float:
    """Run a command in `folder`, return its wall seconds; it must succeed."""
    begin = time.perf_counter()
    subprocess.run(argv, cwd=folder, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - begin
