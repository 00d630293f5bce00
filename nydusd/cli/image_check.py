"""`nydus-image check`: what an image holds, and what is wrong with it, in plain words.

Owns     what is printed, the JSON of `--output-json`, the exit status.
Callers  cli.image.
Raises   NydusError if the bootstrap cannot be opened; OSError of the JSON file.
"""

import argparse
import os
import sys
from pathlib import Path
from time import monotonic
from typing import Final

from nydusd.builder.blob_files import BlobFiles
from nydusd.builder.check import CheckReport, check_image
from nydusd.errors import ConfigError
from nydusd.rafs.model import Inode

EXIT_VALID: Final = 0
EXIT_FAULTS: Final = 1


def run(options: argparse.Namespace) -> int:
    """Check the image that the options name; 1 if a fault was found."""
    bootstrap = options.bootstrap or options.positional
    if bootstrap is None:
        raise ConfigError("a bootstrap must be given")
    blobs = None
    if options.blob is not None or options.blob_dir is not None:
        blobs = BlobFiles(options.blob_dir, options.blob)
    elif options.verify:
        raise ConfigError("--verify needs --blob-dir or --blob")
    start = monotonic()
    report = check_image(
        bootstrap, blobs, verify=options.verify, on_path=_print_path if options.verbose else None
    )
    seconds = monotonic() - start
    sys.stdout.write(_summary(report))
    for fault in report.faults:
        sys.stderr.write(f"Error: {fault}\n")
    if report.fault_count > len(report.faults):
        sys.stderr.write(f"Error: and {report.fault_count - len(report.faults)} more\n")
    if options.output_json is not None:
        _write_json(options.output_json, bootstrap, report, seconds)
    return EXIT_VALID if report.is_valid else EXIT_FAULTS


def _print_path(path: bytes, inode: Inode) -> None:
    name = os.fsdecode(path).encode("unicode_escape", "surrogateescape").decode()
    sys.stdout.write(
        f"{inode.mode:06o} {inode.nlink:4} {inode.uid:5} {inode.gid:5} {inode.size:12} "
        f"{inode.mtime_s}.{inode.mtime_ns:09} ino={inode.ino} {name}\n"
    )


def _summary(report: CheckReport) -> str:
    verdict = "valid" if report.is_valid else f"NOT valid, {report.fault_count} faults"
    counted = (
        f"directories {report.directories}, files {report.files}, symlinks {report.symlinks}, "
        f"special files {report.special}, xattrs {report.xattrs}"
    )
    data = (
        f"file data {report.file_bytes} bytes in {report.chunk_references} references to chunks "
        f"of at most {report.chunk_size} bytes"
    )
    lines = [f"RAFS v{report.version} image, {verdict}", counted, data]
    if report.chunks_verified:
        lines.append(f"chunks decoded and found right: {report.chunks_verified}")
    lines.extend(
        f"blob {info.index}: {info.blob_id}, {info.codec.name.lower()}, {info.chunk_count} chunks, "
        f"{info.compressed_data_size} bytes stored, {info.uncompressed_size} plain"
        for info in report.blobs
    )
    lines.extend(f"note: {notice}" for notice in report.notices)
    return "\n".join(lines) + "\n"


def _write_json(path: Path, bootstrap: Path, report: CheckReport, seconds: float) -> None:
    """Write the reference's names, and under `image` what the walk counted."""
    import json

    from nydusd.version import build_info

    info = build_info()
    document = {
        "version": f"{info.package_ver}-{info.git_commit}",
        "bootstrap": str(bootstrap),
        "blobs": [blob.blob_id for blob in report.blobs],
        "trace": {
            "consumed_time": {"load_tree_from_bootstrap": seconds},
            "registered_events": {
                "load_from_parent_bootstrap": report.directories
                + report.files
                + report.symlinks
                + report.special
            },
        },
        "fs_version": str(report.version),
        "image": {
            "valid": report.is_valid,
            "directories": report.directories,
            "files": report.files,
            "symlinks": report.symlinks,
            "special": report.special,
            "xattrs": report.xattrs,
            "file_bytes": report.file_bytes,
            "chunk_references": report.chunk_references,
            "chunks_verified": report.chunks_verified,
            "fault_count": report.fault_count,
            "faults": report.faults,
            "notices": report.notices,
        },
    }
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
