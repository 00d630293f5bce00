"""`nydusd fuse` as a process: real mounts of an image built here, and every way it ends (spec api §6, §8)."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.erofs_mounts import mounts_at, needs_erofs
from tests.support.mounts import is_mounted, temporary_mountpoint, umount_lazily
from tests.support.processes import PATIENCE_S, ROOT, Api, Process

BIG = bytes(range(256)) * 8192  # 2 MiB
PER_FILE = {"iostats_files": True, "access_pattern": True, "latest_read_files": True}


@pytest.fixture(scope="module")
def image() -> Iterator[Path]:
    """A folder with `boot` and `blobs`, built from a small tree."""
    with tempfile.TemporaryDirectory(prefix="nydusd-life-") as place:
        folder = Path(place)
        source = folder / "source"
        (source / "dir").mkdir(parents=True)
        (source / "hello").write_bytes(b"world\n")
        (source / "dir" / "big").write_bytes(BIG)
        done = subprocess.run(
            [sys.executable, "-m", "nydusd.cli.image", "create", "-t", "dir-rafs",
             "-B", folder / "boot", "-D", folder / "blobs", source],
            capture_output=True, timeout=120, check=False,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        yield folder


class House:
    """Everything one test starts, and the certainty that it is gone afterwards."""

    def __init__(self, folder: Path, mountpoint: Path, image: Path, frontend: str = "fuse") -> None:
        self.frontend = frontend  # of `dedicated`
        self.folder = folder
        self.mountpoint = mountpoint
        self.image = image
        self.config_file = folder / "config.json"
        self.config_file.write_text(self.config("vec"))
        self.started: list[Process] = []

    def config(self, config_id: str) -> str:
        return json.dumps(
            {
                "device": {
                    "id": config_id,
                    "backend": {"type": "localfs", "config": {"dir": str(self.image / "blobs")}},
                    "cache": {
                        "type": "blobcache",
                        "config": {"work_dir": str(self.folder / "cache")},
                    },
                },
                "mode": "direct",
                # which the kernel's EROFS cannot count
                **(PER_FILE if self.frontend == "fuse" else {}),
            }
        )

    def start(self, *words: str) -> Process:
        process = Process(self.folder, self.mountpoint, *words)
        self.started.append(process)
        return process

    def dedicated(self) -> Process:
        process = self.start(
            "--config", str(self.config_file), "--bootstrap", str(self.image / "boot"),
            "--frontend", self.frontend,
        ).running()  # fmt: skip
        assert mounts_at(self.mountpoint) == [self.frontend], process.log.read_text()
        return process

    def shared(self) -> Process:
        return self.start().running()

    def request(self, config_id: str) -> dict[str, object]:
        source = str(self.image / "boot")
        return {"fs_type": "rafs", "source": source, "config": self.config(config_id)}

    def nothing_left(self) -> bool:
        return not is_mounted(self.mountpoint) and not (self.folder / "api.sock").exists()


def run_house(folder: Path, image: Path, frontend: str) -> Iterator[House]:
    with temporary_mountpoint() as mountpoint:
        made = House(folder, mountpoint, image, frontend)
        yield made
        for process in made.started:
            process.end()


@pytest.fixture
def house(tmp_path: Path, image: Path) -> Iterator[House]:
    yield from run_house(tmp_path, image, "fuse")


@pytest.fixture(params=[pytest.param("erofs", marks=needs_erofs), "fuse"])
def either(request: pytest.FixtureRequest, tmp_path: Path, image: Path) -> Iterator[House]:
    """A house for what must be the same, whoever shows the image."""
    yield from run_house(tmp_path, image, request.param)


def assert_whole(root: Path) -> None:
    assert (root / "hello").read_bytes() == b"world\n"
    assert (root / "dir" / "big").read_bytes() == BIG


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_unmounts_and_ends_with_status_0(either: House, number: signal.Signals) -> None:
    daemon = either.dedicated()
    assert_whole(either.mountpoint)
    daemon.process.send_signal(number)
    assert daemon.wait() == 0
    assert either.nothing_left()
    assert "Traceback" not in daemon.log.read_text()


def test_an_outside_umount_ends_it(either: House) -> None:
    daemon = either.dedicated()
    umount_lazily(either.mountpoint)
    assert daemon.wait() == 0
    assert either.nothing_left()


def test_an_outside_umount_ends_it_only_when_the_last_file_is_closed(either: House) -> None:
    daemon = either.dedicated()
    with (either.mountpoint / "dir" / "big").open("rb") as file:
        umount_lazily(either.mountpoint)
        assert file.read() == BIG
        assert daemon.process.poll() is None
    assert daemon.wait() == 0


def test_exit_answers_keeps_the_mount_and_ends(either: House) -> None:
    daemon = either.dedicated()
    assert daemon.ask("PUT", "/daemon/exit") == (204, None)
    assert daemon.wait() == 0
    assert is_mounted(either.mountpoint)
    assert not daemon.socket.exists()


def test_a_client_that_waits_on_an_idle_connection_sees_a_killed_daemon(house: House) -> None:
    daemon = house.dedicated()
    with contextlib.closing(Api(daemon.socket)) as idle:
        assert idle.ask("GET", "/daemon")[0] == 200
        daemon.process.kill()
        assert idle.sock.recv(1) == b""


def test_after_a_kill_the_same_command_serves_again_on_the_same_cache(either: House) -> None:
    killed = either.dedicated()
    assert_whole(either.mountpoint)
    killed.process.kill()
    killed.wait()
    assert is_mounted(either.mountpoint)
    assert killed.socket.exists()
    daemon = either.dedicated()
    assert_whole(either.mountpoint)
    assert daemon.ask("GET", "/metrics/backend")[1]["read_count"] == 0
    assert "a dead predecessor's mount is replaced" in daemon.log.read_text()
    daemon.process.terminate()
    assert daemon.wait() == 0
    assert either.nothing_left()


def test_after_a_kill_a_mount_without_a_socket_is_replaced_too(either: House) -> None:
    killed = either.dedicated()
    killed.process.kill()
    killed.wait()
    killed.socket.unlink()
    daemon = either.dedicated()
    assert_whole(either.mountpoint)
    daemon.process.terminate()
    assert daemon.wait() == 0
    assert either.nothing_left()


def test_a_second_daemon_on_the_same_socket_is_refused_and_mounts_nothing(either: House) -> None:
    first = either.dedicated()
    second = either.start(
        "--config", str(either.config_file), "--bootstrap", str(either.image / "boot")
    )
    assert second.wait() == 1
    assert "another process answers" in second.log.read_text()
    assert first.state() == "RUNNING"
    assert_whole(either.mountpoint)


def test_a_start_that_fails_leaves_nothing(house: House) -> None:
    (house.folder / "garbage").write_bytes(b"not an image" * 1000)
    daemon = house.start(
        "--config", str(house.config_file), "--bootstrap", str(house.folder / "garbage")
    )
    assert daemon.wait() == 1
    assert house.nothing_left()
    assert "Traceback" not in daemon.log.read_text()


def test_what_a_read_leaves_in_the_metrics(house: House) -> None:
    daemon = house.dedicated()
    assert (house.mountpoint / "hello").read_bytes() == b"world\n"
    metrics = daemon.ask("GET", "/metrics")[1]
    assert (metrics["data_read"], metrics["fop_hits"][4]) == (6, 1)
    assert metrics["files_account_enabled"]
    assert metrics["access_pattern_enabled"]
    ino = os.stat(house.mountpoint / "hello").st_ino & ((1 << 56) - 1)
    assert daemon.ask("GET", "/metrics/files")[1][str(ino)]["data_read"] == 6
    assert daemon.ask("GET", "/metrics/files?latest=true")[1] == [[ino]]
    assert [one["ino"] for one in daemon.ask("GET", "/metrics/pattern")[1]] == [ino]
    assert len(daemon.ask("GET", "/metrics/blobcache?id=vec")[1]["underlying_files"]) == 1


def test_images_come_and_go_in_a_shared_daemon(house: House) -> None:
    daemon = house.shared()
    assert list(house.mountpoint.iterdir()) == []
    for _ in range(30):
        assert daemon.ask("POST", "/mount?mountpoint=%2Fa%2Fb", house.request("/a")) == (204, None)
        assert_whole(house.mountpoint / "a" / "b")
        assert daemon.ask("DELETE", "/mount?mountpoint=%2Fa%2Fb") == (204, None)
        assert list((house.mountpoint / "a" / "b").iterdir()) == []
    assert daemon.ask("GET", "/daemon")[1]["backend_collection"] == {}


def test_many_images_at_once_and_one_that_fails_between_them(house: House) -> None:
    daemon = house.shared()
    for number in range(20):
        target = f"/mount?mountpoint=/{number}"
        assert daemon.ask("POST", target, house.request(f"/{number}")) == (204, None)
    broken = house.request("/bad") | {"source": str(house.folder / "missing")}
    assert daemon.ask("POST", "/mount?mountpoint=/bad", broken)[0] == 500
    for number in range(20):
        assert_whole(house.mountpoint / str(number))
    assert not (house.mountpoint / "bad").exists()
    daemon.process.terminate()
    assert daemon.wait() == 0
    assert house.nothing_left()


def test_sendfd_leaves_no_supervisor_waiting(house: House) -> None:
    supervisor = house.folder / "supervisor.sock"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(supervisor))
        listening.listen(1)
        listening.settimeout(PATIENCE_S)
        daemon = house.start("--id", "one", "--supervisor", str(supervisor)).running()
        status, answer = daemon.ask("PUT", "/daemon/fuse/sendfd")
        assert status == 500
        assert "UpgradeManager(" in answer["message"]
        accepted, _ = listening.accept()
        with accepted:
            accepted.settimeout(PATIENCE_S)
            assert accepted.recv(1) == b""


def test_a_mount_that_is_no_session_of_ours_is_left_alone(house: House) -> None:
    with socket.socket(socket.AF_UNIX) as dead:  # a stale socket beside somebody else's mount
        dead.bind(str(house.folder / "api.sock"))
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", house.mountpoint], check=True)
    (house.mountpoint / "precious").write_text("kept")
    daemon = house.shared()
    daemon.process.terminate()
    assert daemon.wait() == 0
    assert (house.mountpoint / "precious").read_text() == "kept"


def test_signals_that_come_while_it_ends_change_nothing(house: House) -> None:
    daemon = house.dedicated()
    while daemon.process.poll() is None:
        daemon.process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            daemon.process.wait(0.001)
    assert daemon.wait() == 0
    assert house.nothing_left()
