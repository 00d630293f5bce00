"""The command `nydusd`: argv in, exit status out (spec cli-config Part A).

Owns     the order of start-up, exit statuses, and the one line on stderr that says why it failed.
Callers  the console script.
Raises   SystemExit of the argument parser only: status 2 for a usage error. `main` returns 0 after a
         normal end and 1 when start-up or mount failed.

Imports stand in the functions that need them: --version and --help must not load the daemon, and what
lazy_imports.py defers must not be imported before it is called.
"""

import gc
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from errno import ENOTCONN
from typing import TYPE_CHECKING, Final

from nydusd.errors import ConfigError, NydusError, UnsupportedError
from nydusd.units import MIB

if TYPE_CHECKING:
    from argparse import Namespace
    from pathlib import Path

    from nydusd.config.model import Config
    from nydusd.daemon.options import DaemonOptions

EXIT_OK: Final = 0
EXIT_ERROR: Final = 1

PREFETCH_LIST_MAX_BYTES: Final = 16 * MIB
ROTATION_MAX_MIB: Final = 2**43 - 1  # as bytes it must fit 64 bits

# Accepted, then refused by name: to go on without them would not be what was asked for.
NOT_YET: Final = ("upgrade", "shared_dir", "dedup_db", "backend_source", "writable")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the daemon that the arguments describe and return its exit status."""
    words = sys.argv[1:] if argv is None else argv
    if list(words) in (["--version"], ["-V"]):  # often run for its text alone: no parser needed
        from nydusd.version import version_text

        sys.stdout.write(f"{version_text()}\n")
        return EXIT_OK
    from nydusd.cli import lazy_imports

    lazy_imports.defer()
    gc.disable()  # 8 ms of start-up would be looking for garbage; daemon.py enables it again
    try:
        from nydusd.cli.arguments import parse

        mode, options = parse(words)
        _open_standard_fds()
        return _run(mode, options)
    except NydusError as exc:
        complain(str(exc))
        return EXIT_ERROR
    finally:
        gc.enable()


def complain(text: str) -> None:
    """Write the one line on stderr that says why the command failed, if anybody still reads there."""
    from nydusd.logs import one_line

    with suppress(OSError):
        os.write(2, f"Error: {one_line(text)}\n".encode("utf-8", "backslashreplace"))


def _open_standard_fds() -> None:
    """Fill closed descriptors 0 to 2, lest /dev/fuse becomes number 2 and gets our log lines."""
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number, which is fd


def _run(mode: str, options: "Namespace") -> int:
    """Start up in the reference's order: logging, limits, configuration, daemon (spec cli-config B10)."""
    import logging

    from nydusd import logs
    from nydusd.cli.limits import raise_open_files
    from nydusd.version import build_info

    logs.setup(options.log_level, options.log_file, _rotation(options.log_rotation_size))
    logs.log_strays()
    log = logging.getLogger(__name__)
    log.info(
        "nydusd %s", " ".join(f"{key}={text!r}" for key, text in build_info()._asdict().items())
    )
    try:
        if mode != "fuse":
            raise UnsupportedError(f"nydusd {mode} is not supported yet")
        raise_open_files(options.rlimit_nofile)
        daemon_options = fuse_options(options)
        from nydusd.daemon.daemon import run

        return run(daemon_options)
    except NydusError as exc:
        log.error("%s", exc)  # noqa: TRY400  the user's mistake, not ours: no traceback
        raise


def fuse_options(options: "Namespace") -> "DaemonOptions":
    """Return what the daemon is to do, everything checked that can be checked without mounting."""
    from nydusd.config.model import FrontendKind
    from nydusd.daemon.options import DaemonOptions, FailoverPolicy

    for name in NOT_YET:
        if getattr(options, name):
            raise UnsupportedError(f"--{name.replace('_', '-')} is not supported yet")
    return DaemonOptions(
        mountpoint=_mountpoint(options.mountpoint),
        apisock=_path(options.apisock),
        bootstrap=_path(options.bootstrap),
        config=_config(options),
        virtual_mountpoint=_virtual_mountpoint(options.virtual_mountpoint),
        prefetch_files=_prefetch_files(options.prefetch_files),
        id=options.id,
        supervisor=_path(options.supervisor),
        failover_policy=FailoverPolicy(options.failover_policy),
        fuse_threads=options.fuse_threads,
        frontend=None if options.frontend is None else FrontendKind(options.frontend),
    )


def read_prefetch_list(path: str) -> tuple[str, ...]:
    """Return the paths of a --prefetch-files list: one per line, trimmed, blank lines dropped.

    Names are bytes to us: what is not UTF-8 comes as surrogates, as from os.fsdecode().
    """
    from pathlib import Path

    try:
        with Path(path).open("rb") as file:
            content = file.read(PREFETCH_LIST_MAX_BYTES + 1)
    except OSError as exc:
        raise ConfigError(f"--prefetch-files {path}: cannot be read: {exc.strerror}") from exc
    if len(content) > PREFETCH_LIST_MAX_BYTES:
        raise ConfigError(f"--prefetch-files {path}: longer than {PREFETCH_LIST_MAX_BYTES} bytes")
    lines = (line.strip() for line in content.split(b"\n"))
    paths = tuple(os.fsdecode(line) for line in lines if line)
    for number, name in enumerate(paths, 1):
        if not name.startswith("/"):
            raise ConfigError(
                f"--prefetch-files {path}: path {number} is {name[:80]!a}, must begin with /"
            )
    return paths


def _config(options: "Namespace") -> "Config | None":
    """Return the configuration of the bootstrap. Without a bootstrap none is read, not even opened.

    Clients rely on that: some pass a --config that is no configuration (spec observed §1).
    """
    if options.bootstrap is None:
        if options.config is not None or options.localfs_dir is not None:
            import logging

            log = logging.getLogger(__name__)
            log.info(
                "no --bootstrap: --config and --localfs-dir are not read, mounts come by the API"
            )
        return None

    from nydusd.config.load import PULL_AUTH_VARIABLE, load_file, localfs_config

    if options.localfs_dir is not None:
        return localfs_config(options.localfs_dir)
    if options.config is None:
        raise ConfigError("--bootstrap needs --config or --localfs-dir")
    return load_file(options.config, os.environ.get(PULL_AUTH_VARIABLE, ""))


def _prefetch_files(path: str | None) -> tuple[str, ...]:
    return () if path is None else read_prefetch_list(path)


def _rotation(text: str) -> int:
    if not (text.isascii() and text.isdecimal()) or int(text[:32]) > ROTATION_MAX_MIB:
        raise ConfigError(f"--log-rotation-size is {text[:32]!r}, must be a number of MiB")
    return int(text)


def _mountpoint(text: str) -> "Path":
    """Return the canonical path of a directory that is there."""
    from pathlib import Path

    path = Path(text)
    try:
        real = path.resolve(strict=True)
        is_dir = real.is_dir()
    except OSError as exc:
        if exc.errno == ENOTCONN:  # a mount whose daemon is dead: the new one goes on top
            return path.parent.resolve() / path.name
        raise ConfigError(f"--mountpoint {text}: {exc.strerror}") from exc
    if not is_dir:
        raise ConfigError(f"--mountpoint {text}: not a directory")
    return real


def _virtual_mountpoint(text: str) -> str:
    if not text.startswith("/"):
        raise ConfigError(f"--virtual-mountpoint is {text[:80]!a}, must begin with /")
    return text


def _path(text: str | None) -> "Path | None":
    from pathlib import Path

    return None if text is None else Path(text)


if __name__ == "__main__":
    sys.exit(main())
