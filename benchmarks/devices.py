"""The blob device from outside: a process that shows it, and the reads of a tree as reads of the device."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.blob_cache import Victim
from benchmarks.process import ROOT, environment
from benchmarks.reads import Place, Plan
from nydusd.rafs.bootstrap import open_bootstrap
from nydusd.rafs.model import Bootstrap, Extent, Inode

END_TIMEOUT_S = 15


class DevicePlan(NamedTuple):
    """The same bytes twice."""

    device: Plan  # of the files `0`, `1`, … of the mount
    files: Plan  # of files of the tree


@contextmanager
def shown(folder: Path, bootstrap: Path, config: dict[str, Any]) -> Iterator[Path]:
    """Serve an image's devices for the length of the block, at the directory that it is given."""
    mountpoint, config_file = folder / "devices", folder / "devices.json"
    mountpoint.mkdir(exist_ok=True)
    config_file.write_text(json.dumps(config))
    argv = [sys.executable, "-m", "benchmarks.device_server", "--config", str(config_file)]
    argv += ["--bootstrap", str(bootstrap), "--mountpoint", str(mountpoint)]
    with subprocess.Popen(
        argv, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, text=True
    ) as server:
        try:
            assert server.stdout is not None
            if server.stdout.readline().strip() != "serving":
                sys.exit("the devices are not served")
            yield mountpoint
        finally:
            server.terminate()
            try:
                server.wait(END_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                server.kill()
            while os.path.ismount(mountpoint):
                subprocess.run(["umount", "-l", mountpoint], check=True)


def plan_of_devices(plan: Plan, bootstrap_file: Path) -> DevicePlan | None:
    """Return where the bytes of a plan lie in the devices; None for v5, whose device is laid out elsewhere.

    A read whose bytes do not lie together is left out of both plans.
    """
    bootstrap = open_bootstrap(bootstrap_file)
    try:
        if bootstrap.superblock.version != 6:
            return None
        inodes = [_inode(bootstrap, path) for path in plan.files]
        kept, found = [], []
        for place in plan.places:
            address = _address(bootstrap.extents(inodes[place.file], place.offset, plan.size))
            if address is not None:
                kept.append(place)
                found.append(address)
        names = tuple(Path(str(index)) for index in range(len(bootstrap.blobs)))
        return DevicePlan(Plan(names, plan.size, tuple(found)), replace(plan, places=tuple(kept)))
    finally:
        bootstrap.close()


def holds(devices: Path, victim: Victim, source: Path) -> bool:
    """Tell whether a device has the bytes of a file of one chunk."""
    expected = (source / victim.path).read_bytes()
    with (devices / str(victim.extent.blob_index)).open("rb") as device:
        device.seek(victim.extent.chunk_offset)
        return device.read(len(expected)) == expected


def _inode(bootstrap: Bootstrap, path: Path) -> Inode:
    inode = bootstrap.inode(bootstrap.root_ino)
    for name in path.parts:
        child = bootstrap.lookup(inode, os.fsencode(name))
        assert child is not None, path
        inode = child
    return inode


def _address(extents: Sequence[Extent]) -> Place | None:
    first = extents[0]
    begin = end = first.chunk_offset + first.offset
    for extent in extents:
        if (extent.blob_index, extent.chunk_offset + extent.offset) != (first.blob_index, end):
            return None
        end += extent.length
    return Place(first.blob_index, begin)
