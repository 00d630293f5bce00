"""Answers of the API as text for people (spec api §3.1, §4). Pure: a decoded body in, text out.

Any daemon of this API may have answered, so a field that is missing or odd shows as `-`, never as an error.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Final

from nydusd.units import GIB, KIB, MIB

Json = object
Layout = Callable[[Json], str]

SIZES: Final = ("<1K", "<4K", "<16K", "<64K", "<128K", "<512K", "<1M", ">=1M")
READ_LATENCIES: Final = ("200us", "1ms", "20ms", "50ms", "500ms", "1s", "2s", "more")
OPERATIONS: Final = (
    "getattr",
    "readlink",
    "open",
    "release",
    "read",
    "statfs",
    "getxattr",
    "listxattr",
    "opendir",
    "lookup",
    "readdir",
    "readdirplus",
    "access",
    "forget",
    "batchforget",
)
ABSENT: Final = "-"


def info(body: Json) -> str:
    """Show GET /daemon."""
    rows = [
        ("state", _text(body, "state")),
        ("version", _text(body, "version", "package_ver")),
        ("commit", _text(body, "version", "git_commit")),
        ("built", f"{_text(body, 'version', 'build_time')}, {_text(body, 'version', 'profile')}"),
        ("id", _text(body, "id")),
        ("supervisor", _text(body, "supervisor")),
    ]
    mounts = _at(body, "backend_collection")
    shown = [_mount(mount) for mount in mounts.values()] if isinstance(mounts, dict) else []
    rows.append(("mounts", str(len(shown))))
    return _rows(rows) + "".join(shown)


def _mount(mount: Json) -> str:
    config = _at(mount, "config")
    kind = _text(config, "backend", "type")
    backend = _at(config, "backend", kind)
    place = " ".join(
        str(value)
        for key in ("host", "repo", "dir", "blob_file", "bucket_name", "addr", "device_path")
        if (value := _at(backend, key))
    )
    cache = _text(config, "cache", "type")
    prefetch = "on" if _at(config, "rafs", "prefetch", "enable") else "off"
    return f"\n{_text(mount, 'mountpoint')}\n" + _rows(
        [
            ("  type", _text(mount, "backend_type")),
            ("  since", _text(mount, "mounted_time")),
            ("  backend", f"{kind} {place}".rstrip()),
            ("  cache", f"{cache} {_text(config, 'cache', 'filecache', 'work_dir')}"),
            ("  prefetch", prefetch),
        ]
    )


def backend(body: Json) -> str:
    """Show GET /metrics/backend."""
    counts = _numbers(body, "read_count_block_size_dist")
    totals = _numbers(body, "read_cumulative_latency_millis_dist")
    means = [
        _ratio(total, count, "{:.1f} ms") for total, count in zip(totals, counts, strict=False)
    ]
    return _rows(
        [
            ("type", _text(body, "backend_type")),
            ("reads", _text(body, "read_count")),
            ("errors", _text(body, "read_errors")),
            ("amount", _bytes(_at(body, "read_amount_total"))),
        ]
    ) + _table(("request size", *SIZES), ("reads", *map(str, counts)), ("mean time", *means))


def cache(body: Json) -> str:
    """Show GET /metrics/blobcache."""
    files = _at(body, "underlying_files")
    names = [str(name) for name in files] if isinstance(files, list) else []
    return _rows(
        [
            ("directory", _text(body, "store_path")),
            ("blobs", str(len(names))),
            *(("", name) for name in names),
            ("complete", _text(body, "data_all_ready")),
            ("reads", _text(body, "total")),
            ("from cache, whole", _text(body, "whole_hits")),
            ("from cache, in part", _text(body, "partial_hits")),
            ("chunks made ready", _text(body, "entries_count")),
            ("waiting to be written", _bytes(_at(body, "buffered_backend_size"))),
            ("prefetched", _bytes(_at(body, "prefetch_data_amount"))),
            ("prefetch requests", _text(body, "prefetch_requests_count")),
            ("prefetch workers", _text(body, "prefetch_workers")),
        ]
    )


def fsstats(body: Json) -> str:
    """Show GET /metrics."""
    hits, errors = _numbers(body, "fop_hits"), _numbers(body, "fop_errors")
    operations = [
        (name, str(hit), str(error))
        for name, hit, error in zip(OPERATIONS, hits, errors, strict=False)
        if hit or error
    ]
    columns = list(zip(("operation", "done", "failed"), *operations, strict=True))
    read_sizes = map(str, _numbers(body, "block_count_read"))
    latencies = map(str, _numbers(body, "read_latency_dist"))
    return (
        _rows([("id", _text(body, "id")), ("read", _bytes(_at(body, "data_read")))])
        + _table(("read size", *SIZES), ("reads", *read_sizes))
        + _table(("read time", *READ_LATENCIES), ("reads", *latencies))
        + _table(*columns)
    )


def _at(value: Json, *path: str) -> Json:
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _text(value: Json, *path: str) -> str:
    found = _at(value, *path)
    if isinstance(found, bool):
        return "yes" if found else "no"
    text = str(found) if isinstance(found, str | int | float) else ""
    return _printable(text) or ABSENT


def _numbers(value: Json, key: str) -> Sequence[int]:
    found = _at(value, key)
    return [item for item in found if type(item) is int] if isinstance(found, list) else []


def _bytes(value: Json) -> str:
    if type(value) is not int:
        return ABSENT
    for unit, name in ((GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
        if value >= unit:
            return f"{value / unit:.1f} {name}"
    return f"{value} bytes"


def _ratio(part: int, whole: int, layout: str) -> str:
    return layout.format(part / whole) if whole else ABSENT


def _rows(rows: Iterable[tuple[str, str]]) -> str:
    return "".join(f"{name:<22} {_printable(text)}".rstrip() + "\n" for name, text in rows)


def _printable(text: str) -> str:
    return "".join(char if char.isprintable() else "?" for char in text)


def _table(*columns: Sequence[str]) -> str:
    """Lay out columns side by side: the first to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in columns]
    aligns: list[Callable[[str, int], str]] = [str.ljust, *(str.rjust for _ in columns[1:])]
    lines = (
        "  ".join(
            align(cell, width) for cell, width, align in zip(row, widths, aligns, strict=True)
        )
        for row in zip(*columns, strict=False)
    )
    return "\n" + "".join(f"{line.rstrip()}\n" for line in lines)
