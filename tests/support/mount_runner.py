"""Serves in-memory images in a process of its own: pyfuse3 is one per process, and can be killed there.

    python -m tests.support.mount_runner MOUNTPOINT IMAGE=SESSION_PATH…

IMAGE is a name in IMAGES or a bootstrap file. INHERITED_FUSE_FD and INHERITED_INIT in the environment make it
the successor of another one.

Prints one JSON line per event on stdout, takes one JSON list per line on stdin: [command, argument…].
"""

import json
import logging
import os
import select
import signal
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import trio

from nydusd.config.model import RafsConfig
from nydusd.errors import AuthError, BackendError, UnsupportedError
from nydusd.kernel.mount import identify
from nydusd.kernel.namespace import Namespace
from nydusd.kernel.session import Session
from nydusd.kernel.tree import FileReader, Tree
from nydusd.kernel.vfs import Vfs
from nydusd.rafs.bootstrap import open_bootstrap
from nydusd.rafs.model import Inode, SuperblockFlag
from tests.support.fake_bootstrap import FakeImage

BIG = bytes(range(256)) * 4096 * 3  # 3 MiB, no two pages of a chunk alike in place
MOUNTED_AT_S = 1_700_000_000


def rich() -> FakeImage:
    """One of everything."""
    image = FakeImage()
    image.add_file("/etc/hosts", b"127.0.0.1 localhost\n", mode=0o640)
    image.add_file("/empty")
    image.add_file("/big", BIG)
    image.add_file("/other", b"other file")
    image.add_file("/undated", b"?", mtime_s=0, mtime_ns=0)
    image.add_file("/old", b"!", mtime_s=(1 << 64) - 86_400, mtime_ns=0)
    image.add_file(b"/\xff\xfename with spaces\n", b"bytes")
    image.add_link("/usr/hard", "/etc/hosts")
    image.add_symlink("/usr/soft", b"../etc/hosts")
    image.add_symlink("/usr/dangling", b"/nowhere/\xff")
    image.add_special("/dev/null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    image.add_special("/dev/fifo", stat.S_IFIFO | 0o600)
    image.add_special("/dev/socket", stat.S_IFSOCK | 0o755)
    image.add_file("/run/setuid", b"#!", mode=0o4755)
    image.set_xattr("/etc/hosts", b"user.one", b"1")
    image.set_xattr("/etc/hosts", b"user.empty", b"")
    image.set_xattr("/etc/hosts", b"trusted.overlay.opaque", b"y")
    image.set_xattr("/etc", b"user.large", b"x" * 4000)
    for number in range(500):
        image.add_file(f"/many/file-{number:04}", b"%d" % number)
    image.add_file("/bad/broken", b"lost")
    image.add_file("/bad/sound", b"kept")
    image.bootstrap.broken.add(image.ino("/bad/broken"))
    image.bootstrap.names[image.ino("/bad")][b"with/slash"] = image.ino("/other")
    image.bootstrap.names[image.ino("/bad")][b""] = image.ino("/other")
    return image


def plain() -> FakeImage:
    """No xattrs, no recorded owners."""
    image = FakeImage(SuperblockFlag(0), root_ino=1)
    image.add_file("/plain", b"plain")
    return image


class NamesOnly:
    """A real bootstrap without its blobs."""

    def __init__(self, bootstrap: Path) -> None:
        self.bootstrap = open_bootstrap(bootstrap)

    async def read(self, inode: Inode, offset: int, size: int) -> bytes:
        raise UnsupportedError(f"inode {inode.ino}: no blobs here")


IMAGES: dict[str, Callable[[], FakeImage]] = {"rich": rich, "plain": plain}


class Runner:
    """Commands of the test, as methods; what one returns is printed."""

    def __init__(self, mountpoint: Path, inherited: tuple[int, bytes] | None) -> None:
        self.vfs = Vfs()
        self.images: dict[str, FakeImage] = {}
        self.namespace = Namespace(self.vfs)
        if inherited is None:
            self.session = Session.mount(mountpoint)
        else:
            fuse_fd, init_request = inherited
            self.session = Session(
                mountpoint, fuse_fd, identify(mountpoint), init_request=init_request
            )

    def attach_silently(self, kind: str, path: str) -> int:
        image: FileReader
        if kind in IMAGES:
            image = self.images[path] = IMAGES[kind]()
        else:
            image = NamesOnly(Path(kind))
        config = RafsConfig(iostats_files=True, access_pattern=True, latest_read_files=True)
        return self.vfs.attach(path, Tree(image, config, path, mounted_at_s=MOUNTED_AT_S))

    async def attach(self, kind: str, path: str) -> int:
        index = self.attach_silently(kind, path)
        await self.session.invalidate(self.vfs.stale(path))
        return index

    async def detach(self, path: str) -> None:
        stale = self.vfs.stale(path)
        self.vfs.detach(path)
        await self.session.invalidate(stale)

    async def stop(self, grace_s: float = 5.0) -> None:
        self.session.stop(grace_s=grace_s)

    async def unmount(self) -> bool:
        return self.session.unmount()

    async def gate(self, path: str, is_open: bool) -> None:
        image = self.images[path]
        if is_open:
            image.gate.set()
        else:
            image.gate = trio.Event()

    async def fail(self, path: str, kind: str, times: int = 1) -> None:
        errors: dict[str, Exception] = {
            "backend": BackendError("blob 1234: 503"),
            "auth": AuthError("blob 1234: 401"),
            "bug": KeyError("a bug"),
        }
        self.images[path].failures.extend([errors[kind]] * times)

    async def init_request(self) -> str:
        assert self.session.init_request is not None
        return self.session.init_request.hex()

    async def in_flight(self) -> list[list[int]]:
        return [[r.inode, r.opcode] for r in self.namespace.in_flight()]

    async def stats(self, path: str) -> dict[str, Any]:
        stats = self.vfs.mountpoints()[path].stats
        return {"fop_hits": stats.fop_hits, "data_read": stats.data_read}

    async def kill_between_poll_and_read(self, pid: int) -> None:
        """Arm: as soon as a request has made the descriptor readable, kill the process that sent it."""
        trio.lowlevel.add_instrument(_Assassin(self.session, pid))


class _Assassin(trio.abc.Instrument):
    def __init__(self, session: Session, pid: int) -> None:
        self._session = session
        self._pid = pid

    def after_io_wait(self, timeout: float) -> None:
        poller = select.poll()
        poller.register(self._session.fuse_fd, select.POLLIN)
        if not poller.poll(0):
            return
        os.kill(self._pid, signal.SIGKILL)
        while poller.poll(
            0
        ):  # until the kernel has taken the request back; the test has a time limit
            os.sched_yield()
        trio.lowlevel.remove_instrument(self)
        say("withdrawn")


def say(event: str, value: Any = None) -> None:
    os.write(1, json.dumps([event, value]).encode() + b"\n")


async def obey(runner: Runner) -> None:
    pending = b""
    while True:
        await trio.lowlevel.wait_readable(0)
        block = os.read(0, 65536)
        if not block:
            return
        pending += block
        *lines, pending = pending.split(b"\n")
        for line in lines:
            command, *arguments = json.loads(line)
            try:
                say("done", await getattr(runner, command)(*arguments))
            except Exception as exc:  # noqa: BLE001 - told to the test
                say("failed", repr(exc))


async def main(mountpoint: Path, mounts: list[str]) -> None:
    inherited = None
    if fd := os.environ.get("INHERITED_FUSE_FD"):
        inherited = int(fd), bytes.fromhex(os.environ["INHERITED_INIT"])
    runner = Runner(mountpoint, inherited)
    try:
        for mount in mounts:
            kind, _, path = mount.partition("=")
            runner.attach_silently(kind, path)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(obey, runner)

            async def serve(task_status: trio.TaskStatus[None]) -> None:
                await runner.session.serve(runner.namespace, task_status=task_status)
                say("ended")
                nursery.cancel_scope.cancel()

            await nursery.start(serve)
            await runner.session.prime()
            say("ready", runner.session.connection_id)
    finally:
        say("unmounted", runner.session.unmount())
        runner.session.close()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s %(message)s")
    trio.run(main, Path(sys.argv[1]), sys.argv[2:])
