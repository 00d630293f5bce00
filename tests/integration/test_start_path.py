"""What a daemon has loaded when it says RUNNING, and that what it put off is there when it is needed."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from nydusd.builder.build import build_image
from nydusd.builder.options import BuildOptions
from tests.support.certificates import make_authority, make_server
from tests.support.mounts import temporary_mountpoint, umount_lazily, wait_until
from tests.support.registry import registry

ROOT = Path(__file__).parents[2]
REPO = "test/image"
CONTENT = bytes(range(256)) * 4096

# Shared objects of Python modules, and libraries, that only later work needs.
NOT_MAPPED_AT_START = ("libssl", "_ssl.", "_hashlib.", "_bz2.", "_lzma.", "liblzma", "_datetime.")


@contextmanager
def running(
    folder: Path, bootstrap: Path, backend: dict[str, object]
) -> Iterator[tuple[int, Path]]:
    """A daemon that is RUNNING; yields its process id and mountpoint."""
    cache = {"type": "blobcache", "config": {"work_dir": str(folder / "cache")}}
    config, socket, log = folder / "config.json", folder / "api.sock", folder / "log"
    config.write_text(
        json.dumps({"device": {"id": "1", "backend": backend, "cache": cache}, "mode": "direct"})
    )
    with temporary_mountpoint() as mountpoint, log.open("ab") as out:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "nydusd.cli.nydusd", "fuse", "--log-level", "debug"),
                *("--config", str(config), "--bootstrap", str(bootstrap)),
                *("--mountpoint", str(mountpoint), "--apisock", str(socket)),
            ],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )
        try:
            # The socket appears with the state RUNNING.
            wait_until(lambda: socket.exists() or process.poll() is not None, "the daemon runs")
            assert process.poll() is None, log.read_text()
            yield process.pid, mountpoint
            process.terminate()
            assert process.wait(30) == 0, log.read_text()
        finally:
            umount_lazily(mountpoint)
            process.kill()
            process.wait(30)


def build(folder: Path, fs_version: int) -> tuple[Path, bytes]:
    """Return a bootstrap and its blob, of an image with one file."""
    source, blobs = folder / "source", folder / "blobs"
    source.mkdir()
    (source / "file").write_bytes(CONTENT)
    build_image(source, BuildOptions(fs_version=fs_version), folder / "bootstrap", blobs)
    (blob,) = blobs.iterdir()
    return folder / "bootstrap", blob.read_bytes()


@pytest.mark.parametrize("fs_version", [5, 6])
def test_a_running_daemon_has_mapped_nothing_that_it_does_not_need_yet(
    tmp_path: Path, fs_version: int
) -> None:
    bootstrap, _ = build(tmp_path, fs_version)
    backend: dict[str, object] = {
        "type": "registry",
        "config": {"scheme": "https", "host": "127.0.0.1:1", "repo": REPO},
    }
    with running(tmp_path, bootstrap, backend) as (pid, _):
        maps = Path(f"/proc/{pid}/maps").read_text().split("\n")
        names = {line.rpartition("/")[2] for line in maps if "/" in line}
    assert any(name.startswith("_native.") for name in names)
    assert [name for name in names if name.startswith(NOT_MAPPED_AT_START)] == []


@pytest.mark.parametrize("trust", ["ca_cert_files", "skip_verify"])
def test_tls_that_was_put_off_at_start_serves_the_first_read(tmp_path: Path, trust: str) -> None:
    authority = make_authority(tmp_path)
    with registry(tmp_path, tls=make_server(tmp_path, authority)) as server:
        bootstrap, blob = build(tmp_path, 6)
        server.push(REPO, blob)
        trusted = {"ca_cert_files": [str(authority.certificate)], "skip_verify": True}
        backend: dict[str, object] = {
            "type": "registry",
            "config": {
                "scheme": "https",
                "host": server.host,
                "repo": REPO,
                trust: trusted[trust],
            },
        }
        with running(tmp_path, bootstrap, backend) as (_, mountpoint):
            assert (mountpoint / "file").read_bytes() == CONTENT
