"""The kernel's EROFS shows the v6 images of the vectors as the reference showed them, wherever we let it.

Names and attributes only: the devices here are empty. Contents go through the daemon (test_erofs_frontend).
"""

import os
from pathlib import Path

import pytest
import trio

from nydusd.errors import UnsupportedError
from nydusd.kernel.erofs import ErofsMount
from nydusd.rafs.bootstrap import open_bootstrap
from nydusd.rafs.erofs_v6 import check_for_erofs
from tests.support.erofs_mounts import needs_erofs
from tests.support.mounted_tree import walk
from tests.support.mounts import temporary_mountpoint
from tests.support.vectors import each_vector, manifest

pytestmark = needs_erofs

# What the kernel counts in its own way: blocks of 4096 bytes.
NOT_COMPARED = {"sha256", "loose", "blocks"}


@pytest.mark.parametrize("path", each_vector("*/bootstrap"))
async def test_the_kernel_shows_the_tree_of_the_reference(path: Path, tmp_path: Path) -> None:
    if not any(path.parent.glob("expected.jsonl*")):
        pytest.skip("the reference fails on this one and left no manifest of names")
    bootstrap = open_bootstrap(path)
    if bootstrap.superblock.version != 6:
        pytest.skip("v5 is shown through metadata of its own (test_erofs_from_v5)")
    try:
        check_for_erofs(path, bootstrap.blobs)
    except UnsupportedError as exc:
        pytest.skip(f"left to fuse: {exc}")
    devices = []
    for blob in bootstrap.blobs:
        device = tmp_path / str(blob.index)
        with device.open("wb") as file:
            file.truncate(-(-blob.uncompressed_size // 4096) * 4096)
        devices.append(str(device))
    with temporary_mountpoint() as mountpoint:
        mounted = await ErofsMount.mount(path, devices, mountpoint)
        found = await trio.to_thread.run_sync(
            walk, os.fsencode(mountpoint), lambda status: status.st_mtime_ns < 10**9
        )
        assert mounted.unmount()
    wanted = manifest(path.parent / "expected.jsonl")
    assert found.keys() == wanted.keys()
    for name, record in wanted.items():
        seen = {key: found[name].get(key) for key in record.keys() - NOT_COMPARED}
        assert seen == {key: record[key] for key in seen}
