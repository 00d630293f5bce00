"""The argv of nydusd as tables: one line per option (spec cli-config A1 to A4).

Owns     names, aliases, defaults, ranges and which options need or exclude each other.
Callers  `nydusd.cli.nydusd`.
Raises   SystemExit(2) with a usage message for what is no valid command line; SystemExit(0) for --help.

The parser of one subcommand is built, not of all: start-up counts.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple, NoReturn

THREADS_MAX: Final = 1024
LOG_LEVELS: Final = ("trace", "debug", "info", "warn", "error")
FRONTENDS: Final = ("auto", "fuse", "erofs")
FAILOVER_POLICIES: Final = ("none", "resend", "flush")
U64_MAX: Final = 2**64 - 1
RLIMIT_NOFILE_DEFAULT: Final = 1_000_000
HELP_COLUMNS: Final = 100

DESCRIPTION: Final = (
    "Mounts container images (RAFS) before their data is there, and fetches it as it is read."
)


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are short: the usage of thirty options hides what is wrong."""

    def error(self, message: str) -> NoReturn:
        """Exit with status 2."""
        self.exit(2, f"{self.prog}: {message}\nTry '{self.prog} --help'.\n")


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Help of one width. To ask for the terminal's loads shutil and its compressors, at every start."""

    def __init__(self, prog: str) -> None:
        """As argparse makes it: by program name."""
        super().__init__(prog, width=HELP_COLUMNS)


class StoreOnce(argparse.Action):
    """Stores a value; a second one is a usage error, not a silent override."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        """Store the first value."""
        given: set[str] = namespace.__dict__.setdefault("_given", set())
        if self.dest in given:
            parser.error(f"{option_string} is given more than once")
        given.add(self.dest)
        setattr(namespace, self.dest, values)


class ShowVersion(argparse.Action):
    """Prints the version and exits, whatever else is missing."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,  # noqa: ARG002  argparse's signature
        values: str | Sequence[Any] | None,  # noqa: ARG002
        option_string: str | None = None,  # noqa: ARG002
    ) -> None:
        """Print and exit with status 0."""
        from nydusd.version import version_text  # here: only --version wants it

        sys.stdout.write(f"{version_text(parser.prog.split()[0])}\n")
        parser.exit(0)


def whole_number(least: int, most: int) -> Callable[[str], int]:
    """Return an argument type: a decimal number of a range, both ends included."""

    def parse(text: str) -> int:
        if not (text.isascii() and text.isdecimal()) or not least <= int(text[:32]) <= most:
            raise argparse.ArgumentTypeError(f"{text!r} is no number from {least} to {most}")
        return int(text)

    return parse


THREADS: Final = whole_number(1, THREADS_MAX)


class Option(NamedTuple):
    """One option: its names, what it says of itself, and what argparse needs besides."""

    names: tuple[str, ...]
    help: str
    metavar: str = "PATH"
    default: object = None
    type: Callable[[str], object] = str
    choices: tuple[str, ...] | None = None
    required: bool = False
    flag: bool = False

    def add_to(self, parser: argparse.ArgumentParser) -> None:
        """Declare the option."""
        text = self.help
        if self.flag:
            parser.add_argument(*self.names, help=text, action="store_true")
            return
        if self.default is not None:
            text = f"{text} [default: {self.default}]"
        parser.add_argument(
            *self.names,
            help=text,
            action=StoreOnce,
            metavar=None if self.choices else self.metavar,
            default=self.default,
            type=self.type,
            choices=self.choices,
            required=self.required,
        )


GLOBAL_OPTIONS: Final = (
    Option(("-A", "--apisock"), "unix socket for the HTTP API"),
    Option(("-C", "--config"), "configuration file: JSON (v1, v2) or TOML (v2)"),
    Option(("--id",), "name of this daemon, for its supervisor", "ID"),
    Option(("--supervisor",), "unix socket of the supervisor that keeps this daemon's state"),
    Option(("--upgrade",), "start without mounting and wait for a takeover", flag=True),
    Option(("-l", "--log-level"), "what to log", default="info", choices=LOG_LEVELS),
    Option(
        ("-L", "--log-file"), "log to this file instead of stderr; gets .log if it has no extension"
    ),
    # A word that is no number ends in exit status 1, not 2: hence checked after parsing.
    Option(
        ("--log-rotation-size",), "MiB after which the log file is set aside; 0: never", "MIB", "0"
    ),
    Option(
        ("--rlimit-nofile",),
        "limit of open files to ask for; 0: leave it alone",
        "COUNT",
        RLIMIT_NOFILE_DEFAULT,
        whole_number(0, U64_MAX),
    ),
)

BOOTSTRAP: Final = Option(("-B", "--bootstrap"), "RAFS metadata file to mount")
LOCALFS_DIR: Final = Option(
    ("-D", "--localfs-dir"), "directory of blobs and cache, instead of --config", "DIR"
)
IMAGE_OPTIONS: Final = (
    BOOTSTRAP,
    LOCALFS_DIR,
    Option(("-s", "--shared-dir"), "share this directory instead of an image", "DIR"),
    Option(
        ("--prefetch-files",),
        "text file of absolute paths in the image, one per line, to fetch early",
    ),
    Option(("-m", "--virtual-mountpoint"), "where inside the mount the image appears", default="/"),
    Option(("--dedup-db",), "SQLite database of chunks that caches share"),
)

FUSE_OPTIONS: Final = (
    Option(("-M", "--mountpoint"), "directory to mount on", "DIR", required=True),
    Option(("--fuse-threads", "--thread-num"), "worker threads", "COUNT", 4, THREADS),
    Option(
        ("--failover-policy",),
        "what becomes of requests that a predecessor left unanswered",
        default="resend",
        choices=FAILOVER_POLICIES,
    ),
    # Without a default: the configuration may have one.
    Option(
        ("--frontend",),
        "who shows the image: this daemon (fuse), the kernel's EROFS on blobs that fill themselves (erofs), "
        "or what is best for it (auto) [default: the configuration's, else auto]",
        choices=FRONTENDS,
    ),
    Option(("--writable",), "mount read-write, for images with an overlay", flag=True),
    # Passed by snapshotters that keep credentials out of configuration files.
    Option(("--backend-source",), "URL to fetch the backend's configuration from", "URL"),
    *IMAGE_OPTIONS,
)


class Subcommand(NamedTuple):
    """One mode of the daemon."""

    help: str
    options: tuple[Option, ...]
    positional: str = ""


SUBCOMMANDS: Final = {
    "fuse": Subcommand("mount images through FUSE (also without a subcommand)", FUSE_OPTIONS),
    "singleton": Subcommand(
        "serve the kernel's fscache (not supported yet)",
        (
            Option(("-F", "--fscache"), "directory for the kernel's cache files", "DIR"),
            Option(("--fscache-tag",), "name of this cache", "TAG"),
            Option(("--fscache-threads",), "worker threads", "COUNT", 4, THREADS),
        ),
    ),
    "virtiofs": Subcommand(
        "serve a virtual machine over vhost-user (not supported yet)",
        (
            Option(("--sock",), "vhost-user socket", required=True),
            Option(("--hybrid-mode",), "switch hybrid mode off", flag=True),
            *IMAGE_OPTIONS,
        ),
    ),
    "uffd": Subcommand(
        "export an image as a block device over userfaultfd (not supported yet)",
        (
            Option(("-S", "--sock"), "service socket", required=True),
            Option(("--threads",), "worker threads", "COUNT", 4, THREADS),
            BOOTSTRAP,
            LOCALFS_DIR,
        ),
    ),
    "nbd": Subcommand(
        "export an image as a network block device (not supported yet)",
        (
            Option(("--threads",), "worker threads", "COUNT", 4, THREADS),
            BOOTSTRAP,
            LOCALFS_DIR,
        ),
        positional="DEVICE",
    ),
}

# (option, the options of which it needs all)
NEEDS: Final = (
    ("id", ("supervisor",)),
    ("supervisor", ("id",)),
    ("prefetch_files", ("bootstrap",)),
    ("fscache_tag", ("fscache",)),
)
EXCLUDES: Final = (("bootstrap", "shared_dir"), ("localfs_dir", "config"))


def parse(argv: Sequence[str]) -> tuple[str, argparse.Namespace]:
    """Return the mode, a key of SUBCOMMANDS, and its options by name.

    Exits with status 2 on a usage error, 0 after --help.
    """
    words = list(argv)
    if words[:1] == ["help"]:
        words = [*words[1:2], "--help"]
    mode, top = (
        ("fuse", True) if not words or words[0] not in SUBCOMMANDS else (words.pop(0), False)
    )
    parser = _parser(mode, top=top)
    options, rest = parser.parse_known_args(words)
    if rest:
        _refuse_rest(parser, rest, top=top)
    _check_combinations(parser, options)
    return mode, options


def _parser(mode: str, *, top: bool) -> argparse.ArgumentParser:
    subcommand = SUBCOMMANDS[mode]
    epilog = None
    if top:
        modes = "\n".join(f"  {name:<12}{sub.help}" for name, sub in SUBCOMMANDS.items())
        epilog = f"subcommands, each with its own --help; options follow the subcommand:\n{modes}"
    parser = Parser(
        prog="nydusd" if top else f"nydusd {mode}",
        description=DESCRIPTION if top else f"{subcommand.help[0].upper()}{subcommand.help[1:]}.",
        epilog=epilog,
        formatter_class=HelpFormatter,
        allow_abbrev=False,
    )
    if subcommand.positional:
        parser.add_argument(subcommand.positional.lower(), metavar=subcommand.positional)
    parser.add_argument(
        "-V", "--version", nargs=0, action=ShowVersion, help="show the version and exit"
    )
    for option in (*subcommand.options, *GLOBAL_OPTIONS):
        option.add_to(parser)
    return parser


def _refuse_rest(parser: argparse.ArgumentParser, rest: list[str], *, top: bool) -> NoReturn:
    if top and any(word in SUBCOMMANDS for word in rest):
        parser.error("options must follow the subcommand: nydusd SUBCOMMAND [options]")
    parser.error(f"unknown argument {rest[0]!r}")


def _check_combinations(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    given = {name for name, value in vars(options).items() if value is not None}
    for option, needed in NEEDS:
        for other in needed:
            if option in given and other not in given:
                parser.error(f"{_spelt(option)} needs {_spelt(other)}")
    for option, other in EXCLUDES:
        if option in given and other in given:
            parser.error(f"{_spelt(option)} cannot be used with {_spelt(other)}")


def _spelt(name: str) -> str:
    return f"--{name.replace('_', '-')}"
