"""Serves in-memory images in a process of its own, which can be killed.

    python -m tests.support.mount_runner MOUNTPOINT IMAGE=SESSION_PATH…

IMAGE is a name in IMAGES or a bootstrap file. INHERITED in the environment makes it the successor of another
one: what `hand_over` told, and the numbers of the descriptors.

Prints one JSON line per event on stdout, takes one JSON list per line on stdin: [command, argument…].
"""

import json
import logging
import os
import socket
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import trio

from nydusd.config.model import RafsConfig
from nydusd.errors import AuthError, BackendError, UnsupportedError
from nydusd.kernel.namespace import Namespace
from nydusd.kernel.session import Session, SessionState
from nydusd.kernel.tree import FileReader, Tree
from nydusd.kernel.vfs import Vfs, VfsState
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

    def read_now(self, inode: Inode, offset: int, size: int) -> None:
        return None

    def native_map(self, inode: Inode) -> None:
        return None


IMAGES: dict[str, Callable[[], FakeImage]] = {"rich": rich, "plain": plain}


class Runner:
    """Commands of the test, as methods; what one returns is printed."""

    def __init__(self, mountpoint: Path, inherited: dict[str, Any] | None, clones: bool) -> None:
        self.vfs = Vfs()
        self.images: dict[str, FakeImage] = {}
        self.namespace = Namespace(self.vfs)
        self.is_leaving = False
        if inherited is None:
            self.session = Session.mount(mountpoint, clones=clones)
        else:
            session = inherited["session"]
            state = SessionState(
                **{**session, "init_request": bytes.fromhex(session["init_request"])}
            )
            self.session = Session.resume(state, inherited["fds"])
            self.vfs.restore(VfsState(*inherited["vfs"]))

    def attach_silently(self, kind: str, path: str) -> int:
        image: FileReader
        config = RafsConfig()
        if kind in IMAGES:
            image = self.images[path] = IMAGES[kind]()
            config = RafsConfig(iostats_files=True, access_pattern=True, latest_read_files=True)
        else:
            image = NamesOnly(Path(kind))
        tree = Tree(image, config, path, mounted_at_s=MOUNTED_AT_S)
        return self.vfs.attach(path, tree)

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

    async def leave(self) -> None:
        """Stop at once and end, the mount and unanswered requests left to a successor."""
        self.is_leaving = True
        self.session.stop(grace_s=0)

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

    async def hand_over(self, supervisor: str) -> None:
        """Send descriptors, and all else that a successor needs, to whoever listens there."""
        state = self.session.state()._asdict()
        state["init_request"] = state["init_request"].hex()
        told = {"session": state, "vfs": self.vfs.export()}
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as channel:
            channel.connect(supervisor)
            socket.send_fds(channel, [json.dumps(told).encode()], self.session.fds())

    async def in_flight(self) -> list[list[int]]:
        return [[r.inode, r.opcode] for r in self.session.in_flight()]

    async def stats(self, path: str) -> dict[str, Any]:
        stats = self.vfs.mountpoints()[path].stats
        return {"fop_hits": stats.fop_hits, "data_read": stats.data_read}


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
    inherited = json.loads(os.environ.get("INHERITED", "null"))
    runner = Runner(mountpoint, inherited, clones=os.environ.get("CLONES") != "no")
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
        if not runner.is_leaving:
            say("unmounted", runner.session.unmount())
        runner.namespace.close()
        runner.session.close()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s %(message)s")
    trio.run(main, Path(sys.argv[1]), sys.argv[2:])
