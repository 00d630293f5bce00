"""The daemon in words that clients know: DaemonInfo and what it holds (spec api §3.1). Pure."""

import time
from collections.abc import Iterable, Mapping
from typing import Final

from nydusd.config.render import render
from nydusd.daemon.mounts import Mount
from nydusd.daemon.options import DaemonOptions
from nydusd.daemon.states import State
from nydusd.version import build_info

CACHE_FOR_EVER_S: Final = 1 << 32  # what the kernel may believe without asking again
_SUPERBLOCK_FIELDS: Final = (
    "magic",
    "version",
    "sb_size",
    "root_inode",
    "chunk_size",
    "batch_size",
    "inodes_count",
    "flags",
    "inode_table_entries",
    "inode_table_offset",
    "blob_table_size",
    "blob_table_offset",
    "extended_blob_table_offset",
    "extended_blob_table_entries",
    "blob_device_table_count",
    "blob_device_table_offset",
    "prefetch_table_offset",
    "prefetch_table_entries",
    "attr_timeout",
    "entry_timeout",
    "is_chunk_dict",
    "meta_blkaddr",
    "root_nid",
    "chunk_table_offset",
    "chunk_table_size",
)


def daemon(
    options: DaemonOptions, state: State, mounts: Iterable[Mount] | None
) -> dict[str, object]:
    """Return DaemonInfo; `mounts` is None where the answer does not list them (v2)."""
    return {
        "version": build_info()._asdict(),
        "id": options.id,
        "supervisor": None if options.supervisor is None else str(options.supervisor),
        "state": state.value,
        "backend_collection": None
        if mounts is None
        else {mount.mountpoint: _backend(mount) for mount in mounts},
    }


def _backend(mount: Mount) -> dict[str, object]:
    return {
        "backend_type": "Rafs",
        "mountpoint": mount.mountpoint,
        "mounted_time": mounted_time(mount.mounted_ns),
        "config": render(mount.config),
    }


def mounted_time(mounted_ns: int) -> str:
    """Return `2026-07-24 03:44:49.123456789 +00:00:00`, which clients parse strictly (spec api §3.1)."""
    seconds, nanoseconds = divmod(mounted_ns, 1_000_000_000)
    date = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(seconds))
    return f"{date}.{nanoseconds:09d} +00:00:00"


def superblock(details: Mapping[str, int]) -> dict[str, object]:
    """Return what GET /daemon/backend shows of a superblock (spec api §3.1)."""
    shown: dict[str, object] = {}
    for name in _SUPERBLOCK_FIELDS:
        match name:
            case "flags":
                shown[name] = {"bits": details.get(name, 0)}
            case "attr_timeout" | "entry_timeout":
                shown[name] = {"secs": CACHE_FOR_EVER_S, "nanos": 0}
            case "is_chunk_dict":
                shown[name] = False
            case _:
                shown[name] = details.get(name, 0)
    return shown
