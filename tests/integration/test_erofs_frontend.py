"""`nydusd --frontend erofs` as a process: what is mounted, what is read, and every way it ends (design §2)."""

import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from struct import pack_into, unpack_from
from typing import Any

import pytest

from nydusd.builder.build import build_image
from nydusd.builder.options import BuildOptions
from nydusd.rafs.bootstrap import open_bootstrap
from nydusd.rafs.v6 import BootstrapV6
from tests.support.erofs_mounts import mounts_at, needs_erofs
from tests.support.image_trees import folder_tree
from tests.support.mounts import temporary_mountpoint, umount_lazily, wait_until
from tests.support.processes import Process
from tests.support.source_trees import seeded_bytes, write_small_tree
from tests.support.tree import unquote
from tests.support.vectors import manifest, vector

pytestmark = needs_erofs

CHUNK = 65536
LARGE = seeded_bytes("large", 3 * 2**20 + 5)
ALONE = seeded_bytes("alone", 40_000)  # a single chunk
EIO = "Input/output error"
OTHER = seeded_bytes("other", 5 * CHUNK)


def forget_pages(path: Path) -> None:
    """Have the kernel ask the device again for a file's bytes."""
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_all(tree: Path) -> None:
    for path in sorted(tree.rglob("*")):
        if path.is_file() and not path.is_symlink():
            path.read_bytes()


class House:
    """One image, its cache and its mountpoint; whatever is started is gone afterwards."""

    def __init__(self, folder: Path, mountpoint: Path) -> None:
        self.folder = folder
        self.mountpoint = mountpoint
        self.source = write_small_tree(folder / "source")
        (self.source / "large").write_bytes(LARGE)
        (self.source / "other").write_bytes(OTHER)
        (self.source / "alone").write_bytes(ALONE)
        self.bootstrap = folder / "boot"
        options = BuildOptions(chunk_size=CHUNK)
        build_image(self.source, options, self.bootstrap, folder / "blobs")
        self.started: list[Process] = []

    def config(self, **more: Any) -> dict[str, Any]:
        backend = {"type": "localfs", "config": {"dir": str(self.folder / "blobs")}}
        cache = {"type": "blobcache", "config": {"work_dir": str(self.folder / "cache")}}
        device = {"backend": backend, "cache": cache}
        return {"device": device, "mode": "direct", "enable_xattr": True, **more}

    def start(self, *words: str, **more: Any) -> Process:
        file = self.folder / "config.json"
        file.write_text(json.dumps(self.config(**more)))
        process = Process(
            self.folder, self.mountpoint, "--config", str(file), "--bootstrap", str(self.bootstrap),
            *words,
        )  # fmt: skip
        self.started.append(process)
        return process.running()

    def fill_cache(self) -> None:
        """Leave every chunk in the cache."""
        process = self.start()
        read_all(self.mountpoint)
        process.process.send_signal(signal.SIGTERM)
        assert process.wait() == 0

    def choice(self) -> str:
        """Return the line that tells which frontend was taken last; the log is written behind our back."""

        def lines() -> list[str]:
            log = self.started[-1].log.read_text()
            return [line for line in log.splitlines() if "frontend=" in line]

        wait_until(lambda: len(lines()) == len(self.started), "each daemon has told its frontend")
        return lines()[-1].split("] ", 1)[1]

    def devices(self) -> str:
        """Return what the newest daemon's devices are."""
        self.choice()  # is told after them
        return re.findall("devices: (.*)", self.started[-1].log.read_text())[-1]


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    with temporary_mountpoint() as mountpoint:
        house = House(tmp_path, mountpoint)
        try:
            yield house
        finally:
            for process in house.started:
                process.end()


@contextlib.contextmanager
def held_open(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that has a file open until it is told to end."""
    program = (
        "import sys; file = open(sys.argv[1]); print('open', flush=True); sys.stdin.readline()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "open\n"
        try:
            yield holder
        finally:
            holder.kill()


# ---- what is mounted ------------------------------------------------------------------------------


def test_the_kernel_shows_the_tree_that_the_image_was_made_of(house: House) -> None:
    house.start()
    assert mounts_at(house.mountpoint) == ["erofs"]
    assert house.choice().startswith("INFO frontend=erofs")
    assert folder_tree(house.mountpoint) == folder_tree(house.source)
    mounts = Path("/proc/self/mountinfo").read_text()
    assert mounts.count(str(house.folder)) == 1  # as the source of the one mount
    assert (house.mountpoint / "large").read_bytes() == LARGE


def test_reads_of_devices_are_counted_for_the_image(house: House) -> None:
    process = house.start()
    (house.mountpoint / "large").read_bytes()
    stats = process.ask("GET", "/metrics")[1]
    assert stats["data_read"] >= len(LARGE)
    assert stats["fop_hits"][4] == sum(stats["block_count_read"]) > 0
    assert process.ask("GET", "/metrics/inflight") == (204, None)


@pytest.mark.parametrize("ending", ["SIGTERM", "umount", "umount of a file that is open"])
@pytest.mark.parametrize("cache", ["empty", "whole"])
def test_the_daemon_ends_with_its_mount(house: House, cache: str, ending: str) -> None:
    if cache == "whole":
        house.fill_cache()
    process = house.start("--frontend", "erofs")
    assert mounts_at(house.mountpoint) == ["erofs"]
    match ending:
        case "SIGTERM":
            process.process.send_signal(signal.SIGTERM)
        case "umount":
            umount_lazily(house.mountpoint)
        case _:
            with held_open(house.mountpoint / "large") as holder:
                umount_lazily(house.mountpoint)
                with pytest.raises(subprocess.TimeoutExpired):
                    process.process.wait(1.0)
                holder.communicate("\n")
    assert process.wait() == 0
    assert mounts_at(house.mountpoint) == []
    assert not process.socket.exists()


def test_a_whole_image_is_read_without_the_daemon(house: House) -> None:
    house.fill_cache()
    process = house.start()
    assert house.devices() == "whole=1 filled=0"
    process.end()
    for path in (house.mountpoint / "large", house.mountpoint / "other"):
        forget_pages(path)
    assert folder_tree(house.mountpoint) == folder_tree(house.source)


def test_a_dead_daemon_means_eio_for_what_nobody_has_read(house: House) -> None:
    process = house.start()
    assert (house.mountpoint / "other").read_bytes() == OTHER
    process.end()
    with pytest.raises(OSError, match=EIO):
        (house.mountpoint / "large").read_bytes()
    assert (house.mountpoint / "other").read_bytes() == OTHER  # the kernel's own pages


def test_the_mount_of_a_killed_daemon_is_replaced(house: House) -> None:
    house.start().end()
    assert mounts_at(house.mountpoint) == ["erofs"]
    process = house.start()
    assert mounts_at(house.mountpoint) == ["erofs"]
    assert (house.mountpoint / "large").read_bytes() == LARGE
    house.choice()  # is told after what we look for
    assert "a dead predecessor's mount is replaced" in process.log.read_text()


def test_the_only_image_can_be_deleted_and_another_posted(house: House) -> None:
    process = house.start()
    assert process.ask("DELETE", "/mount?mountpoint=/") == (204, None)
    assert mounts_at(house.mountpoint) == ["fuse"]
    assert os.listdir(house.mountpoint) == []
    request = {
        "fs_type": "rafs",
        "source": str(house.bootstrap),
        "config": json.dumps(house.config()),
    }
    assert process.ask("POST", "/mount?mountpoint=/again", request) == (204, None)
    assert folder_tree(house.mountpoint / "again") == folder_tree(house.source)
    umount_lazily(house.mountpoint)
    assert process.wait() == 0


def test_without_a_cache_bytes_come_from_memory(house: House) -> None:
    device = {"backend": house.config()["device"]["backend"]}
    house.start(device=device)
    assert mounts_at(house.mountpoint) == ["erofs"]
    assert folder_tree(house.mountpoint) == folder_tree(house.source)


def test_each_blob_gets_what_it_can(house: House) -> None:
    folder = vector("merge3-v6")
    want = {
        path: entry
        for path, entry in manifest(folder / "expected.jsonl").items()
        if "sha256" in entry
    }
    house.bootstrap = folder / "bootstrap"
    backend = {"type": "localfs", "config": {"dir": str(folder / "blobs")}}
    device = {"backend": backend, "cache": house.config()["device"]["cache"]}
    house.start(device=device)
    read_all(house.mountpoint)
    house.started[-1].process.send_signal(signal.SIGTERM)
    assert house.started[-1].wait() == 0
    lost = sorted((house.folder / "cache").glob("*.blob.data"))[1]
    lost.unlink()
    house.start(device=device)
    assert house.devices() == "whole=2 filled=1"
    for path, entry in want.items():
        content = Path(os.fsdecode(os.fsencode(house.mountpoint) + unquote(path))).read_bytes()
        assert hashlib.sha256(content).hexdigest() == entry["sha256"], path


@pytest.mark.parametrize(("name", "kind"), [("a,b c=d", "erofs"), ("n" * 240, "fuse")])
def test_a_strange_path_is_mounted_or_left_to_fuse(house: House, name: str, kind: str) -> None:
    place = house.folder / name
    place.mkdir()
    house.bootstrap = house.bootstrap.rename(place / "boot")
    house.start()
    assert mounts_at(house.mountpoint) == [kind]
    assert (house.mountpoint / "large").read_bytes() == LARGE


# ---- what is chosen -------------------------------------------------------------------------------


def test_the_configuration_can_ask_for_fuse_and_the_command_line_knows_better(house: House) -> None:
    house.start(frontend="fuse").end()
    assert mounts_at(house.mountpoint)[-1] == "fuse"
    assert house.choice().startswith("INFO frontend=fuse")
    house.start("--frontend", "erofs", frontend="fuse")
    assert mounts_at(house.mountpoint) == ["erofs"]


@pytest.mark.parametrize("words", [(), ("--frontend", "erofs")])
def test_what_erofs_cannot_do_is_done_by_fuse_and_said(
    house: House, words: tuple[str, ...]
) -> None:
    house.start(*words, iostats_files=True)
    assert mounts_at(house.mountpoint) == ["fuse"]
    assert house.choice().startswith("WARN" if words else "INFO")
    assert "iostats_files" in house.choice()
    assert (house.mountpoint / "large").read_bytes() == LARGE


def test_an_image_below_the_root_is_shown_by_fuse(house: House) -> None:
    house.start("--virtual-mountpoint", "/deep/in")
    assert mounts_at(house.mountpoint) == ["fuse"]
    assert (house.mountpoint / "deep/in/large").read_bytes() == LARGE


def test_a_bootstrap_on_tmpfs_is_shown_by_fuse(house: House) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as place:
        house.bootstrap = Path(shutil.copy(house.bootstrap, place))
        house.start()
        assert mounts_at(house.mountpoint) == ["fuse"]
        assert "no file of that file system" in house.choice()
        assert (house.mountpoint / "large").read_bytes() == LARGE


def test_what_only_the_kernel_refuses_is_shown_by_fuse(house: House) -> None:
    data = bytearray(house.bootstrap.read_bytes())
    data[1024 + 90] = 1  # blocks of directories of another size, which no reader of ours looks at
    house.bootstrap.write_bytes(data)
    house.start()
    assert mounts_at(house.mountpoint) == ["fuse"]
    assert "Invalid argument" in house.choice()
    assert folder_tree(house.mountpoint) == folder_tree(house.source)


# ---- images that lie ------------------------------------------------------------------------------


def patch_index(house: House, path: bytes, field: str, change: int) -> None:
    """Change the first chunk index of a file: to another chunk, or to another place."""
    bootstrap = open_bootstrap(house.bootstrap)
    assert isinstance(bootstrap, BootstrapV6)
    inode = bootstrap.lookup(bootstrap.inode(bootstrap.root_ino), path)
    assert inode is not None
    at = bootstrap._indexes(inode.position) + {"chunk": 0, "block": 4}[field]
    code = {"chunk": "<H", "block": "<I"}[field]
    data = bytearray(house.bootstrap.read_bytes())
    pack_into(code, data, at, unpack_from(code, data, at)[0] + change)
    house.bootstrap.write_bytes(data)


def test_a_file_whose_chunk_lies_elsewhere_in_the_blob_is_eio_and_never_wrong(house: House) -> None:
    patch_index(house, b"alone", "block", 1)
    house.start()
    assert mounts_at(house.mountpoint) == ["erofs"]  # the blob's records are not there yet
    with pytest.raises(OSError, match=EIO):
        (house.mountpoint / "alone").read_bytes()
    house.started[-1].process.send_signal(signal.SIGTERM)
    assert house.started[-1].wait() == 0


def test_chunk_indexes_that_contradict_each_other_are_left_to_fuse(house: House) -> None:
    patch_index(house, b"other", "chunk", 1)  # two files, or two parts of one, name one chunk
    house.start("--frontend", "erofs")
    assert mounts_at(house.mountpoint) == ["fuse"]
    assert house.choice().startswith("WARN")
    with pytest.raises(OSError, match=EIO):
        (house.mountpoint / "other").read_bytes()
    assert (house.mountpoint / "large").read_bytes() == LARGE


def test_a_whole_cache_does_not_make_a_lying_image_right(house: House) -> None:
    house.fill_cache()
    patch_index(house, b"alone", "block", 1)
    house.start()
    assert mounts_at(house.mountpoint) == ["fuse"]
    with pytest.raises(OSError, match=EIO):
        (house.mountpoint / "alone").read_bytes()
    assert (house.mountpoint / "large").read_bytes() == LARGE
