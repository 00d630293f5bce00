"""`nydusd fuse` as a process, its API on a real socket."""

import contextlib
import http.client
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.support.mounts import wait_until

ROOT = Path(__file__).parents[2]
PATIENCE_S = 30.0


class Api(http.client.HTTPConnection):
    """One connection to the daemon's socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("unix", timeout=PATIENCE_S)
        self._path = str(path)

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(PATIENCE_S)
        self.sock.connect(self._path)

    def ask(self, method: str, target: str, body: object = None) -> tuple[int, Any]:
        text = None if body is None else json.dumps(body)
        self.request(method, f"/api/v1{target}", text)
        answer = self.getresponse()
        content = answer.read()
        return answer.status, json.loads(content) if content else None


class Process:
    """One daemon: its directory, its mountpoint, and the process."""

    def __init__(self, folder: Path, mountpoint: Path, *words: str) -> None:
        self.socket = folder / "api.sock"
        self.mountpoint = mountpoint
        self.log = folder / "log"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "nydusd.cli.nydusd", "fuse",
                 "--mountpoint", str(mountpoint), "--apisock", str(self.socket), *words],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env=os.environ | {"PYTHONPATH": str(ROOT)},
            )  # fmt: skip

    def state(self) -> str | None:
        """Return the reported state, None as long as nobody answers."""
        assert self.process.poll() is None, f"it ended: {self.log.read_text()}"
        try:
            return str(self.ask("GET", "/daemon")[1]["state"])
        except (FileNotFoundError, ConnectionRefusedError):
            return None

    def running(self) -> "Process":
        wait_until(lambda: self.state() == "RUNNING", "the daemon is RUNNING")
        return self

    def ask(self, method: str, target: str, body: object = None) -> tuple[int, Any]:
        with contextlib.closing(Api(self.socket)) as api:
            return api.ask(method, target, body)

    def wait(self) -> int:
        """Return the exit status; a failure says why in the test's output."""
        status = self.process.wait(PATIENCE_S)
        if status:
            sys.stderr.write(self.log.read_text())
        return status

    def end(self) -> None:
        self.process.kill()
        self.process.wait(PATIENCE_S)
