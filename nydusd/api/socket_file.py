"""The unix socket as a file: who answers there, binding it, and taking it away again (spec api §1, §8.3).

Synchronous: nothing here waits for anybody, a connect that would have to wait counts as answered.
Raises   ConfigError for a path that cannot be a socket of ours.
"""

import errno
import os
import socket
import stat
from enum import Enum
from pathlib import Path
from typing import Final

from nydusd.errors import ConfigError

BACKLOG: Final = 128  # connections that the kernel keeps until we accept them


class Peer(Enum):
    """What a socket path leads to."""

    ABSENT = "no such file"
    STALE = "a socket that nobody listens on"
    ALIVE = "a socket that somebody listens on"


def probe(path: Path) -> Peer:
    """Find out who answers at `path`. Raises ConfigError if it is something else than a socket."""
    try:
        mode = path.lstat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return Peer.ABSENT
    except OSError as exc:
        raise ConfigError(f"apisock: {path}: {exc.strerror}") from exc
    if not stat.S_ISSOCK(mode):
        raise ConfigError(f"apisock: {path} exists and is no socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.setblocking(False)
        try:
            client.connect(os.fspath(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return Peer.STALE
        except OSError as exc:
            if exc.errno == errno.EAGAIN:  # its backlog is full: busy, not dead
                return Peer.ALIVE
            raise ConfigError(f"apisock: {path}: {exc.strerror or exc}") from exc
    return Peer.ALIVE


class SocketFile:
    """A listening unix socket, and its file as long as that is ours."""

    def __init__(self, path: Path) -> None:
        """Replace a stale file and listen. Raises ConfigError, also if another process answers there."""
        if probe(path) is Peer.ALIVE:
            raise ConfigError(f"apisock: another process answers on {path}")
        # Python makes every descriptor close-on-exec: a child that held it would keep the
        # snapshotter's liveness connection open after our death (spec api §1).
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            path.unlink(missing_ok=True)
            self.socket.bind(os.fspath(path))
            self.socket.listen(BACKLOG)
            bound = path.lstat()
        except OSError as exc:
            self.socket.close()
            raise ConfigError(f"apisock: {path}: {exc.strerror or exc}") from exc
        self.path = path
        self._identity = bound.st_dev, bound.st_ino

    def remove(self) -> None:
        """Unlink the file, unless somebody put another in its place; closing the socket is for its user."""
        try:
            found = self.path.lstat()
            if (found.st_dev, found.st_ino) == self._identity:
                self.path.unlink()
        except OSError:
            return  # gone with its directory, which the snapshotter deletes at teardown
