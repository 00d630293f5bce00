"""What readers of a real mount see while daemons and the registry behind them die: right bytes, or EIO in time.

Everything here holds for both frontends and both formats; each daemon is asked what it shows by, so that none
of it is ever tested through the other frontend.
"""

import contextlib
import errno
import hashlib
import http.client
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from io import FileIO
from pathlib import Path
from typing import Any

import pytest

from nydusd.builder.build import build_image
from nydusd.builder.options import BuildOptions, WhiteoutSpec
from nydusd.units import KIB, MIB
from tests.support.erofs_mounts import mounts_at, needs_erofs
from tests.support.mounts import temporary_mountpoint, wait_until
from tests.support.registry import BASIC, PASSWORD, Registry, registry
from tests.support.slow_link import LinkProcess, link_process

ROOT = Path(__file__).parents[2]
PATIENCE_S = 30.0
EIO_WITHIN_S = 20.0  # a refused connection is tried again three times, pauses included
REPO = "demo/image"
READERS = 16
PIECE_BYTES = 128 * KIB
META_MAX_BYTES = (
    64 * KIB
)  # blob.meta and the like, which each daemon fetches once more than the chunks
SLOW_MBIT = 20.0

_NOISE = random.Random(11)
FILES = {
    "big": _NOISE.randbytes(8 * MIB),  # does not compress
    "dir/text": b"one line of many\n" * 20_000,
    **{f"dir/small-{number}": _NOISE.randbytes(1 + 997 * number) for number in range(12)},
    "empty": b"",
}
BIG = FILES["big"]


@dataclass(frozen=True)
class Image:
    """A built image: where its bootstrap is, and the one blob. And what is to show it."""

    bootstrap: Path
    blob: bytes
    frontend: str


class Daemon:
    """One daemon process, its API and its mount."""

    def __init__(
        self, folder: Path, mountpoint: Path, image: Image, config: dict[str, Any]
    ) -> None:
        folder.mkdir(exist_ok=True)
        self.mountpoint = mountpoint
        self.frontend = image.frontend
        self.socket = folder / "api.sock"
        self._log = folder / "log"
        config_file = folder / "config.json"
        config_file.write_text(json.dumps(config))
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "nydusd.cli.nydusd", "fuse",
                 "--mountpoint", mountpoint, "--apisock", self.socket,
                 "--config", config_file, "--bootstrap", image.bootstrap,
                 "--frontend", image.frontend],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env=os.environ | {"PYTHONPATH": str(ROOT)},
            )  # fmt: skip

    def running(self, *, below: int = 0) -> "Daemon":
        """Wait until it serves, with its mount on top of so many others."""
        wait_until(self._is_running, "the daemon is RUNNING")
        assert mounts_at(self.mountpoint) == [self.frontend] * (below + 1), self.log()
        return self

    def log(self) -> str:
        return self._log.read_text()

    def fetched_bytes(self) -> int:
        """Return how much it asked of the registry, failed attempts included."""
        return int(self._ask("/metrics/backend")["read_amount_total"])

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(PATIENCE_S)

    def leave(self) -> None:
        """End it as its owner does, with the mount taken off."""
        self.process.terminate()
        assert self.process.wait(PATIENCE_S) == 0, self.log()

    def _is_running(self) -> bool:
        assert self.process.poll() is None, f"it ended: {self.log()}"
        try:
            return bool(self._ask("/daemon")["state"] == "RUNNING")
        except (FileNotFoundError, ConnectionRefusedError):
            return False

    def _ask(self, target: str) -> Any:
        with contextlib.closing(http.client.HTTPConnection("unix")) as connection:
            connection.sock = socket.socket(socket.AF_UNIX)
            connection.sock.settimeout(PATIENCE_S)
            connection.sock.connect(str(self.socket))
            connection.request("GET", f"/api/v1{target}")
            answer = connection.getresponse()
            content = answer.read()
            assert answer.status == 200, content
            return json.loads(content)


class House:
    """What one test starts: everything in it is gone when the test ends."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder = folder
        self._stack = stack
        self._count = 0

    def registry(self, image: Image, auth: str | None = None) -> Registry:
        """Run a registry that has the blob of the image."""
        folder = self.folder / "registry"
        folder.mkdir()
        server = self._stack.enter_context(registry(folder, auth=auth))
        server.push(REPO, image.blob)
        return server

    def link(self, server: Registry) -> LinkProcess:
        return self._stack.enter_context(link_process(server.host, mbit=SLOW_MBIT))

    def mountpoint(self) -> Path:
        return self._stack.enter_context(temporary_mountpoint())

    def start(
        self, image: Image, host: str, *, mountpoint: Path | None = None, auth: str | None = None
    ) -> Daemon:
        """Start a daemon without waiting for it. All of a house share one cache directory."""
        backend = {"scheme": "http", "host": host, "repo": REPO} | ({"auth": auth} if auth else {})
        cache = {"type": "blobcache", "config": {"work_dir": str(self.folder / "cache")}}
        config = {
            "device": {"backend": {"type": "registry", "config": backend}, "cache": cache},
            "mode": "direct",
        }
        self._count += 1
        folder = self.folder / f"daemon-{self._count}"
        daemon = Daemon(folder, mountpoint or self.mountpoint(), image, config)
        self._stack.callback(daemon.kill)
        return daemon


@pytest.fixture(scope="module", params=[5, 6], ids=["v5", "v6"])
def built(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, bytes]:
    """A bootstrap and its blob."""
    folder = tmp_path_factory.mktemp("image")
    for name, content in FILES.items():
        path = folder / "source" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    options = BuildOptions(
        fs_version=request.param, chunk_size=64 * KIB, whiteout_spec=WhiteoutSpec.NONE
    )
    made = build_image(folder / "source", options, folder / "boot", folder)
    blob = Path(made.blob_path).read_bytes()
    assert [hashlib.sha256(blob).hexdigest()] == list(made.blob_ids)
    assert len(blob) > len(BIG)
    return folder / "boot", blob


@pytest.fixture(params=[pytest.param("erofs", marks=needs_erofs), "fuse"])
def image(request: pytest.FixtureRequest, built: tuple[Path, bytes]) -> Image:
    return Image(*built, request.param)


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    with ExitStack() as stack:
        yield House(tmp_path, stack)


def assert_whole(root: Path) -> None:
    for name, content in FILES.items():
        # Compared outside the assert: pytest would take minutes to explain how 8 MiB differ.
        same = (root / name).read_bytes() == content
        assert same, f"{root / name} has wrong bytes"


@dataclass
class Reading:
    """How it went to read pieces of BIG: where the bytes were wrong, and the errno that ended it."""

    wrong: list[int]
    ended_by: int | None = None


def read_pieces(path: Path, number: int, after_each: Callable[[], object]) -> Reading:
    """Read all pieces of BIG, up to the first that fails. Two readers at a time go the same way."""
    starts = list(range(0, len(BIG), PIECE_BYTES))
    random.Random(number // 2).shuffle(starts)
    reading = Reading([])
    fd = os.open(path, os.O_RDONLY)
    try:
        for start in starts:
            at, end = start, start + PIECE_BYTES
            while at < end:  # a read is short if only its beginning can be had
                got = os.pread(fd, end - at, at)
                if not got or got != BIG[at : at + len(got)]:
                    reading.wrong.append(at)
                at += len(got) or end
            after_each()
    except OSError as exc:
        reading.ended_by = exc.errno
    finally:
        with contextlib.suppress(OSError):  # FUSE tells a dead server here, too
            os.close(fd)
    return reading


def errno_of_read(daemon: Daemon, file: FileIO) -> int | None:
    """Return what a read fails with; the daemon is killed, so it is not EIO, if that takes too long."""
    too_late = threading.Timer(EIO_WITHIN_S, daemon.process.kill)
    too_late.start()
    try:
        file.read()
    except OSError as exc:
        return exc.errno
    finally:
        too_late.cancel()
        too_late.join()
    return None


def test_16_readers_of_one_cold_file_get_every_byte_and_fetch_no_chunk_twice(
    house: House, image: Image
) -> None:
    server = house.registry(image)
    daemon = house.start(image, server.host).running()
    together = threading.Barrier(READERS, timeout=PATIENCE_S)

    def read(number: int) -> Reading:
        together.wait()
        return read_pieces(daemon.mountpoint / "big", number, lambda: None)

    with ThreadPoolExecutor(READERS) as readers:
        assert list(readers.map(read, range(READERS))) == [Reading([])] * READERS
    fetched = daemon.fetched_bytes()
    # `big` is incompressible, so its chunks cannot be had for less than its size.
    assert len(BIG) <= fetched <= len(image.blob) + META_MAX_BYTES
    daemon.leave()
    assert "Traceback" not in daemon.log()


def test_daemons_on_one_cache_directory_do_not_disturb_each_other(
    house: House, image: Image
) -> None:
    server = house.registry(image)
    daemons = [house.start(image, server.host) for _ in range(3)]
    for daemon in daemons:
        daemon.running()
    together = threading.Barrier(len(daemons), timeout=PATIENCE_S)

    def read(daemon: Daemon) -> None:
        together.wait()
        assert_whole(daemon.mountpoint)

    with ThreadPoolExecutor(len(daemons)) as readers:
        list(readers.map(read, daemons))
    for daemon in daemons:
        assert daemon.fetched_bytes() <= len(image.blob) + META_MAX_BYTES
    server.stop()
    fourth = house.start(image, server.host).running()
    assert_whole(fourth.mountpoint)
    assert fourth.fetched_bytes() == 0
    for daemon in (*daemons, fourth):
        daemon.leave()
        assert "Traceback" not in daemon.log()


def test_after_a_kill_in_the_middle_of_reads_every_byte_is_right(
    house: House, image: Image
) -> None:
    server = house.registry(image)
    link = house.link(server)
    killed = house.start(image, link.address).running()
    in_the_middle = threading.Semaphore(0)

    def read(number: int) -> Reading:
        return read_pieces(killed.mountpoint / "big", number, in_the_middle.release)

    with ThreadPoolExecutor(READERS) as readers:
        readings = [readers.submit(read, number) for number in range(READERS)]
        for _ in range(len(BIG) // PIECE_BYTES // 4):
            assert in_the_middle.acquire(timeout=PATIENCE_S)
        killed.kill()
        # The kernel's EROFS knows no dead server, only a device that fails.
        dead = {"erofs": {errno.EIO}, "fuse": {errno.ENOTCONN, errno.ECONNABORTED, errno.EIO}}
        for reading in readings:
            assert reading.result(PATIENCE_S).wrong == []
            assert reading.result().ended_by in dead[image.frontend]
    link.command("mbit 0")
    daemon = house.start(image, link.address, mountpoint=killed.mountpoint).running()
    assert_whole(daemon.mountpoint)
    # What the dead one had stored is not fetched again, and what it had not is.
    assert 0 < daemon.fetched_bytes() < len(image.blob) - len(BIG) // 8
    daemon.leave()
    assert "Traceback" not in daemon.log()


def test_without_its_registry_a_cold_read_fails_in_time_and_heals_without_a_remount(
    house: House, image: Image
) -> None:
    server = house.registry(image, auth="htpasswd")
    daemon = house.start(image, server.host, auth=BASIC).running()
    server.stop()
    before = len(daemon.log())
    with (daemon.mountpoint / "dir" / "small-7").open("rb", buffering=0) as file:
        assert errno_of_read(daemon, file) == errno.EIO
        said = daemon.log()[before:].splitlines()
        loud = [line for line in said if " WARN" in line or " ERROR" in line]
        assert len(loud) == 1, said
        assert server.host in loud[0]
        server.start()
        assert file.read() == FILES["dir/small-7"]
    assert_whole(daemon.mountpoint)
    daemon.leave()
    for secret in ("Traceback", BASIC, PASSWORD):
        assert secret not in daemon.log()


def test_a_second_mount_needs_no_registry(house: House, image: Image) -> None:
    server = house.registry(image)
    first = house.start(image, server.host).running()
    assert_whole(first.mountpoint)
    assert first.fetched_bytes() > 0
    first.leave()
    server.stop()
    second = house.start(image, server.host).running()
    assert_whole(second.mountpoint)
    assert second.fetched_bytes() == 0
    second.leave()
    assert "Traceback" not in second.log()


def test_a_daemon_on_a_living_mount_covers_it_and_leaves_it_alone(
    house: House, image: Image
) -> None:
    server = house.registry(image)
    below = house.start(image, server.host).running()
    above = house.start(image, server.host, mountpoint=below.mountpoint).running(below=1)
    assert_whole(above.mountpoint)
    above.leave()
    assert mounts_at(below.mountpoint) == [image.frontend]
    assert_whole(below.mountpoint)
    below.leave()


def test_truncated_chunk_maps_and_bootstraps_kill_no_daemon(
    house: House, image: Image, tmp_path: Path
) -> None:
    server = house.registry(image)
    bootstrap = Path(shutil.copy(image.bootstrap, tmp_path / "boot"))
    daemon = house.start(replace(image, bootstrap=bootstrap), server.host).running()
    with (daemon.mountpoint / "big").open("rb", buffering=0) as file:
        assert os.pread(file.fileno(), PIECE_BYTES, 0) == BIG[:PIECE_BYTES]
        (chunk_map,) = (tmp_path / "cache").glob("*.chunk_map")
        os.truncate(chunk_map, 0)
        start = len(BIG) // 2
        assert os.pread(file.fileno(), PIECE_BYTES, start) == BIG[start : start + PIECE_BYTES]
    wait_until(lambda: "a mapped file was truncated" in daemon.log(), "it is told")
    os.truncate(bootstrap, 4096)
    for name, content in FILES.items():
        try:
            same = (daemon.mountpoint / name).read_bytes() == content
        except OSError as exc:
            # The kernel's own word for metadata that cannot be.
            assert exc.errno in {errno.EIO, errno.EUCLEAN}  # noqa: PT017 - others are right
        else:
            assert same, name
    daemon.leave()
    assert "Traceback" not in daemon.log()
