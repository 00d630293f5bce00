"""The command `nydusctl`: asks a running daemon through its API socket (spec cli-config A4, api §3).

Owns     argv, the requests, exit statuses: 0 done, 1 the daemon refused or cannot be reached, 2 usage.
Callers  the console script.
Raises   SystemExit of the argument parser only; everything else ends in one line on stderr.
"""

import argparse
import http.client
import json
import os
import socket
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final
from urllib.parse import quote

from nydusd.cli import ctl_text
from nydusd.cli.arguments import ShowVersion
from nydusd.config.load import read_text
from nydusd.errors import BackendError, ConfigError, NydusError

REQUEST_LIMIT_S: Final = 60  # a mount may wait for a slow registry
BODY_MAX_BYTES: Final = 64 * 1024 * 1024
INTERVAL_MAX_S: Final = 86_400

LOG_LEVELS: Final = ("off", "error", "warn", "info", "debug", "trace")
METRICS: Final[dict[str, tuple[str, ctl_text.Layout]]] = {
    "backend": ("/api/v1/metrics/backend", ctl_text.backend),
    "cache": ("/api/v1/metrics/blobcache", ctl_text.cache),
    "fsstats": ("/api/v1/metrics", ctl_text.fsstats),
}


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: str) -> None:
        """`path` of the socket; every wait ends after REQUEST_LIMIT_S."""
        super().__init__("localhost", timeout=REQUEST_LIMIT_S)
        self._path = path

    def connect(self) -> None:
        """Connect to the socket."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class Client:
    """A daemon's API, one connection per request. Raises BackendError with one line for people."""

    def __init__(self, path: str) -> None:
        """`path` of the API socket."""
        self._path = path

    def request(self, method: str, target: str, body: object = None) -> bytes:
        """Return the body of a good answer."""
        content = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"} if content else {}
        connection = UnixConnection(self._path)
        try:
            connection.request(method, target, content, headers)
            answer = connection.getresponse()
            text = answer.read(BODY_MAX_BYTES)
        except TimeoutError as exc:
            raise BackendError(f"no answer within {REQUEST_LIMIT_S} s from {self._path}") from exc
        except OSError as exc:
            reason = exc.strerror or str(exc)
            raise BackendError(f"cannot reach nydusd at {self._path}: {reason}") from exc
        except http.client.HTTPException as exc:
            raise BackendError(f"no HTTP answer from {self._path}: {type(exc).__name__}") from exc
        finally:
            connection.close()
        if answer.status not in (200, 204):
            raise BackendError(f"nydusd answered {answer.status}: {_message(text)}")
        return text

    def ask(self, target: str) -> tuple[bytes, object]:
        """Return a GET's body, as sent and decoded."""
        text = self.request("GET", target)
        try:
            return text, json.loads(text)
        except (ValueError, RecursionError) as exc:
            raise BackendError(f"the answer to {target} is not JSON") from exc


def main(argv: Sequence[str] | None = None) -> int:
    """Do what the arguments ask for and return the exit status."""
    options = _parser().parse_args(argv)
    client = Client(options.sock)
    try:
        options.run(client, options)
        sys.stdout.flush()
    except BrokenPipeError:  # `nydusctl … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what is left to flush goes nowhere
        return 1
    except NydusError as exc:
        with suppress(OSError):
            sys.stderr.write(f"Error: {exc}\n")
        return 1
    except KeyboardInterrupt:  # the ordinary end of `metrics -I`
        return 130
    return 0


def _info(client: Client, options: argparse.Namespace) -> None:
    _show(client, options, "/api/v1/daemon", ctl_text.info)


def _metrics(client: Client, options: argparse.Namespace) -> None:
    path, layout = METRICS[options.category]
    target = path if options.id is None else f"{path}?id={quote(options.id, safe='')}"
    _show(client, options, target, layout)
    while options.interval is not None:
        time.sleep(options.interval)
        _show(client, options, target, layout)


def _set(client: Client, options: argparse.Namespace) -> None:
    client.request("PUT", "/api/v1/daemon", {"log_level": options.level})


def _mount(client: Client, options: argparse.Namespace) -> None:
    if options.type == "rafs" and options.config is None:
        raise ConfigError("mount of an image needs --config")
    body = {
        "fs_type": options.type,
        "source": str(Path(options.source).absolute()),  # the daemon's directory is another
        "config": read_text(options.config) if options.config else "",
    }
    client.request("POST", _mount_target(options.mountpoint), body)


def _umount(client: Client, options: argparse.Namespace) -> None:
    client.request("DELETE", _mount_target(options.mountpoint))


def _mount_target(mountpoint: str) -> str:
    return f"/api/v1/mount?mountpoint={quote(mountpoint, safe='')}"


def _show(
    client: Client, options: argparse.Namespace, target: str, layout: ctl_text.Layout
) -> None:
    text, body = client.ask(target)
    if getattr(options, "raw", False):
        sys.stdout.write(f"{text.decode(errors='replace').rstrip()}\n")
    elif getattr(options, "json", False):
        sys.stdout.write(f"{json.dumps(body, indent=2, ensure_ascii=False)}\n")
    else:
        sys.stdout.write(layout(body))
    sys.stdout.flush()


def _message(text: bytes) -> str:
    """Return what an error body says, on one line."""
    try:
        body = json.loads(text)
    except (ValueError, RecursionError):
        body = None
    message = body.get("message") if isinstance(body, dict) else None
    shown = str(message) if message else text.decode(errors="replace")[:200]
    return "".join(char if char.isprintable() else " " for char in shown) or "without a reason"


def _parser() -> argparse.ArgumentParser:
    output = argparse.ArgumentParser(add_help=False)
    forms = output.add_mutually_exclusive_group()
    # SUPPRESS: given before the subcommand, a subcommand's default must not undo them.
    forms.add_argument(
        "-r",
        "--raw",
        action="store_true",
        default=argparse.SUPPRESS,
        help="the daemon's own answer",
    )
    forms.add_argument(
        "--json", action="store_true", default=argparse.SUPPRESS, help="the answer as indented JSON"
    )
    parser = argparse.ArgumentParser(
        prog="nydusctl",
        description="Asks a running nydusd through its API socket.",
        parents=[output],
        allow_abbrev=False,
    )
    parser.add_argument(
        "-S", "--sock", required=True, metavar="PATH", help="the daemon's API socket"
    )
    parser.add_argument(
        "-V", "--version", action=ShowVersion, nargs=0, help="show the version and exit"
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Callable[..., None], text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(
            name, help=text, description=text, parents=[output], allow_abbrev=False
        )
        sub.set_defaults(run=run)
        return sub

    command("info", _info, "version, state and mounts of the daemon")

    metrics = command("metrics", _metrics, "counters of the daemon")
    metrics.add_argument("category", choices=METRICS)
    metrics.add_argument(
        "--id", metavar="ID", help="of which mount; for cache: the id in its configuration"
    )
    metrics.add_argument(
        "-I", "--interval", type=_interval, metavar="SECONDS", help="repeat, this far apart"
    )

    change = command("set", _set, "change a setting of the running daemon")
    change.add_argument("kind", choices=("log-level",))
    change.add_argument("level", choices=LOG_LEVELS)

    mount = command("mount", _mount, "mount an image inside the daemon")
    mount.add_argument(
        "-s", "--source", required=True, metavar="PATH", help="bootstrap of the image"
    )
    mount.add_argument("-c", "--config", metavar="FILE", help="its configuration, needed for rafs")
    mount.add_argument(
        "-m", "--mountpoint", required=True, metavar="PATH", help="where in the daemon"
    )
    mount.add_argument("-t", "--type", default="rafs", choices=("rafs", "passthrough_fs"))

    umount = command("umount", _umount, "unmount an image inside the daemon")
    umount.add_argument("-m", "--mountpoint", required=True, metavar="PATH", help="where it is")
    return parser


def _interval(text: str) -> int:
    if not (text.isascii() and text.isdecimal()) or not 1 <= int(text[:16]) <= INTERVAL_MAX_S:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no number of seconds from 1 to {INTERVAL_MAX_S}"
        )
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
