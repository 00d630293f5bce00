"""The command `nydus-image`: builds images from folders, checks images.

Owns     argv, exit status, what is printed; the JSON of `--output-json`.
Callers  the console script.
Raises   SystemExit of the argument parser only (2 for a usage error). `main` returns 0, or 1 when the
         image could not be built or is not valid; then one line on stderr says why.

Options and defaults are the reference's. Those whose work is not built yet are accepted by the parser
and refused by name: to go on without them would not be what was asked for.
"""

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn

from nydusd.cli.arguments import LOG_LEVELS, Parser
from nydusd.errors import ConfigError, NydusError, UnsupportedError
from nydusd.units import MIB

if TYPE_CHECKING:
    from nydusd.builder.options import BuildOptions, BuildResult

EXIT_OK: Final = 0
EXIT_ERROR: Final = 1
PREFETCH_LIST_MAX_BYTES: Final = 16 * MIB

TYPES: Final = ("directory", "dir-rafs")
TYPES_NOT_YET: Final = (
    "estargz-rafs", "estargz-ref", "estargztoc-ref", "tar-rafs", "tar-tarfs", "targz-rafs",
    "targz-ref", "stargz_index",
)  # fmt: skip
OPTIONS_NOT_YET: Final = (  # of `create`; (flags, takes a value)
    (("--batch-size",), True),
    (("--chunk-dict",), True),
    (("--parent-bootstrap",), True),
    (("--attributes",), True),
    (("--blob-cache-dir",), True),
    (("--blob-data-size",), True),
    (("--encrypt", "-E"), False),
)
COMMANDS_NOT_YET: Final = (
    "chunkdict", "compact", "export", "inspect", "merge", "optimize", "stat", "unpack",
)  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that the arguments name and return its exit status."""
    words = sys.argv[1:] if argv is None else argv
    if words and words[0] in ("-V", "--version"):
        from nydusd.version import version_text

        sys.stdout.write(f"{version_text('nydus-image')}\n")
        return EXIT_OK
    if words and words[0] in COMMANDS_NOT_YET:
        _say(f"Error: nydus-image {words[0]} is not supported yet\n")
        return EXIT_ERROR
    options = _parser().parse_args(words)
    signal.signal(signal.SIGTERM, _interrupt)  # so that temporary files are removed then, too
    try:
        _start_log(options)
        if options.command == "create":
            return _create(options)
        from nydusd.cli.image_check import run

        return run(options)
    except (NydusError, OSError) as exc:
        _say(f"Error: {_text(exc)}\n")
        return EXIT_ERROR
    except KeyboardInterrupt:
        _say("Error: interrupted\n")
        return EXIT_ERROR


def _interrupt(_number: int, _frame: object) -> NoReturn:
    raise KeyboardInterrupt


def _say(text: str) -> None:
    with suppress(OSError):  # a closed stderr
        sys.stderr.write(text)


def _text(exc: Exception) -> str:
    if isinstance(exc, OSError) and exc.strerror:
        where = os.fsdecode(exc.filename) if exc.filename else "the output"
        return f"{where}: {exc.strerror}"
    return str(exc)


def _parser() -> Parser:
    parser = Parser(prog="nydus-image", description="Builds and checks RAFS images.")
    parser.add_argument("-V", "--version", action="store_true", help="show the version and exit")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_create(commands.add_parser("create", help="build an image from a folder"))
    _add_check(commands.add_parser("check", help="check an image"))
    return parser


def _add_common(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("-J", "--output-json", type=Path, metavar="FILE", help="write the result as JSON")
    add("-o", "-L", "--log-file", metavar="FILE", help="log there instead of stderr")
    add("-l", "--log-level", choices=LOG_LEVELS, default="info", help="default: %(default)s")


def _add_create(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("source", type=Path, metavar="SOURCE", help="folder to make an image of")
    add(
        "-t",
        "--type",
        choices=TYPES + TYPES_NOT_YET,
        default="dir-rafs",
        metavar="TYPE",
        help="only %(default)s (= directory) is built so far",
    )
    add("-B", "--bootstrap", type=Path, metavar="FILE", help="where the metadata goes")
    add("-D", "--blob-dir", type=Path, metavar="DIR", help="folder for the blob, named by its id")
    add("-b", "--blob", type=Path, metavar="FILE", help="where the blob goes, instead of -D")
    add("--blob-id", help="id that the image names its blob by; default: sha256 of the blob")
    add("--blob-inline-meta", action="store_true", help="put the metadata into the blob")
    add(
        "-S",
        "--chunk-size",
        type=_chunk_size,
        default=MIB,
        metavar="BYTES",
        help="default: 0x100000",
    )
    add(
        "-c",
        "--compressor",
        choices=("none", "lz4_block", "zstd"),
        default="zstd",
        help="default: %(default)s",
    )
    add("--digester", choices=("blake3", "sha256"), default="blake3", help="default: %(default)s")
    add("-v", "--fs-version", choices=("5", "6"), default="6", help="RAFS version, default: 6")
    add("--features", choices=("blob-toc",), help="blob-toc: end the blob with a table of contents")
    add("--aligned-chunk", action="store_true", help="v5: chunks start on 4 KiB of the plain blob")
    add("--repeatable", action="store_true", help="same folder, same bytes (always so here)")
    add(
        "--whiteout-spec",
        choices=("oci", "overlayfs", "none"),
        default="oci",
        help="marker files to leave out, default: %(default)s",
    )
    add("--prefetch-policy", choices=("fs", "blob", "none"), default="none",
        help="take a list of paths from stdin, to be fetched early")  # fmt: skip
    add(
        "--threads",
        type=int,
        default=os.cpu_count() or 1,
        help="that compress; default: one per CPU",
    )
    # Tools of the reference always name it; without --attributes nothing goes there.
    add("--external-blob", type=Path, help=argparse.SUPPRESS)
    add("-C", "--config", help=argparse.SUPPRESS)
    for flags, takes_value in OPTIONS_NOT_YET:
        if takes_value:
            add(*flags, help=argparse.SUPPRESS)
        else:
            add(*flags, action="store_true", help=argparse.SUPPRESS)
    _add_common(parser)


def _add_check(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("positional", nargs="?", type=Path, metavar="BOOTSTRAP", help="the image's metadata")
    add("-B", "--bootstrap", type=Path, metavar="FILE", help="the same")
    add("-D", "--blob-dir", type=Path, metavar="DIR", help="folder of the image's blobs")
    add("-b", "--blob", type=Path, metavar="FILE", help="the image's only blob")
    add("--verify", action="store_true", help="decode every chunk and check its digest")
    add("-v", "--verbose", action="store_true", help="print one line per path")
    add("-C", "--config", help=argparse.SUPPRESS)
    _add_common(parser)


def _chunk_size(text: str) -> int:
    try:
        return int(text, 16 if text.lower().startswith("0x") else 10)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number") from None


def _start_log(options: argparse.Namespace) -> None:
    from nydusd import logs

    logs.setup(options.log_level, options.log_file)


def _create(options: argparse.Namespace) -> int:
    from nydusd.builder.build import build_image

    _refuse_not_built(options)
    build_options = _build_options(options)
    progress = None
    if sys.stderr.isatty():
        from nydusd.cli.progress import ProgressBar

        progress = ProgressBar(sys.stderr)
    try:
        result = build_image(
            options.source,
            build_options,
            options.bootstrap,
            options.blob_dir if options.blob is None else None,
            progress,
            blob_file=options.blob,
        )
    finally:
        if progress is not None:
            progress.close()
    sys.stdout.write(_summary(result))
    if options.output_json is not None:
        _write_json(options.output_json, result, build_options)
    return EXIT_OK


def _refuse_not_built(options: argparse.Namespace) -> None:
    if options.type in TYPES_NOT_YET:
        raise UnsupportedError(f"--type {options.type} is not supported yet")
    for flags, _ in OPTIONS_NOT_YET:
        if getattr(options, flags[0].removeprefix("--").replace("-", "_")):
            raise UnsupportedError(f"{flags[0]} is not supported yet")
    if options.blob is None and options.blob_dir is None:
        raise ConfigError("one of --blob-dir and --blob must be given")


def _build_options(options: argparse.Namespace) -> "BuildOptions":
    from nydusd.blob.model import Codec, Digester
    from nydusd.builder.options import BuildOptions, PrefetchPolicy, WhiteoutSpec

    policy = PrefetchPolicy(options.prefetch_policy)
    return BuildOptions(
        fs_version=int(options.fs_version),
        codec=Codec[options.compressor.upper()],
        digester=Digester[options.digester.upper()],
        chunk_size=options.chunk_size,
        aligned_chunk=options.aligned_chunk,
        repeatable=options.repeatable,
        whiteout_spec=WhiteoutSpec(options.whiteout_spec),
        prefetch_policy=policy,
        prefetch_paths=() if policy is PrefetchPolicy.NONE else _prefetch_list(),
        blob_id=options.blob_id,
        inline_meta=options.blob_inline_meta,
        blob_toc=options.features == "blob-toc",
        threads=options.threads,
    )


def _prefetch_list() -> tuple[bytes, ...]:
    """Return the paths on stdin, one per line, as bytes."""
    text = sys.stdin.buffer.read(PREFETCH_LIST_MAX_BYTES + 1)
    if len(text) > PREFETCH_LIST_MAX_BYTES:
        raise ConfigError(f"the prefetch list is longer than {PREFETCH_LIST_MAX_BYTES} bytes")
    return tuple(line for line in (raw.strip(b" \t\r") for raw in text.split(b"\n")) if line)


def _summary(result: "BuildResult") -> str:
    lines = [f"built an image of {result.inodes} paths in {sum(result.seconds.values()):.2f} s"]
    if result.bootstrap:
        lines.append(f"bootstrap: {result.bootstrap}")
    if result.blob_path:
        lines.append(f"blob: {result.blob_path}, {result.blob_size} bytes")
    lines.append(
        f"chunks: {result.chunks}, {result.compressed_size} bytes stored for "
        f"{result.source_bytes} in files; {result.dedup_bytes} bytes were there already"
    )
    return "\n".join(lines) + "\n"


def _write_json(path: Path, result: "BuildResult", options: "BuildOptions") -> None:
    """Write the result under the reference's names; times in seconds, sizes in bytes."""
    import json

    from nydusd.version import build_info

    info = build_info()
    document = {
        "version": f"{info.package_ver}-{info.git_commit}",
        "bootstrap": result.bootstrap,
        "blobs": list(result.blob_ids),
        "trace": {
            "consumed_time": {
                "load_from_directory": result.seconds["scan"],
                "dump_blob": result.seconds["data"],
                "dump_bootstrap": result.seconds["metadata"],
                "total_build": sum(result.seconds.values()),
            },
            "registered_events": {
                "blob_compressed_size": result.compressed_size,
                "blob_uncompressed_size": result.uncompressed_size,
                "dedup_chunks": result.dedup_chunks,
                "dedup_uncompressed_size": result.dedup_bytes,
                "egid": str(os.getegid()),
                "euid": str(os.geteuid()),
                "load_from_directory": result.inodes,
            },
        },
        "fs_version": str(options.fs_version),
        "compressor": options.codec.name.lower(),
    }
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
