"""A process that serves one EROFS mount whose device answers only when it is told to. Run by tests/faults.

    python -m tests.support.erofs_runner MOUNTPOINT METADATA CONTENT SOCKET [STATE FD…]

Sends its state and descriptors over SOCKET when it serves. With STATE it goes on for a predecessor. "go" on stdin
lets the device answer, "stop" makes it stop serving and leave the mount, "end" takes the mount along.
"""

import json
import os
import socket
import sys
from pathlib import Path

import trio

from nydusd.daemon.erofs_frontend import ErofsFrontend, ErofsState
from nydusd.daemon.erofs_layout import Layout
from nydusd.kernel.session import SessionState
from nydusd.kernel.stats import FsStats


class GatedDevice:
    """A file as a device; reads wait for the gate."""

    name = "gated"

    def __init__(self, path: Path) -> None:
        self._content = path.read_bytes()
        self._content += bytes(-len(self._content) % 4096)
        self.size = len(self._content)
        self.gate = trio.Event()

    async def read(self, offset: int, length: int) -> bytes:
        await self.gate.wait()
        return self._content[offset : offset + length]

    async def fill(self, offset: int, length: int) -> bool:
        await trio.lowlevel.checkpoint()
        return False

    async def native_map(self) -> None:
        return None

    def is_complete(self) -> bool:
        return False

    def cache_path(self) -> Path | None:
        return None


def packed(state: ErofsState) -> bytes:
    assert state.session is not None
    session = state.session._replace(init_request=state.session.init_request.hex().encode())
    fields = state._replace(session=None)._asdict() | {"session": None}
    plain = [value.decode() if isinstance(value, bytes) else value for value in session]
    return json.dumps([fields, plain]).encode()


def unpacked(text: str) -> ErofsState:
    fields, session = json.loads(text)
    state = ErofsState(
        **fields | {"devices": tuple(fields["devices"]), "whole": tuple(fields["whole"])}
    )
    started = SessionState(*session)
    started = started._replace(init_request=bytes.fromhex(str(started.init_request)))
    return state._replace(session=started)


async def main() -> None:
    mountpoint, metadata, content = (Path(word) for word in sys.argv[1:4])
    device = GatedDevice(content)
    layout, stats = Layout(metadata, [device]), FsStats("/")
    async with trio.open_nursery() as nursery:
        if len(sys.argv) > 5:
            fds = [int(word) for word in sys.argv[6:]]
            frontend = ErofsFrontend.resume(unpacked(sys.argv[5]), fds, layout, stats)
        else:
            frontend = await ErofsFrontend.mount(
                mountpoint, layout, stats, nursery, threads=2, clones=False
            )
        await nursery.start(serve, frontend)
        with socket.socket(fileno=int(sys.argv[4])) as parent:
            socket.send_fds(parent, [packed(frontend.state())], frontend.fds())
        nursery.start_soon(obey, frontend, device)


async def serve(frontend: ErofsFrontend, *, task_status: trio.TaskStatus[None]) -> None:
    await frontend.serve(task_status=task_status)
    frontend.close()
    os._exit(0)  # whatever waits on stdin


async def obey(frontend: ErofsFrontend, device: GatedDevice) -> None:
    stdin = trio.lowlevel.FdStream(0)
    async for words in stdin:
        if b"go" in words:
            device.gate.set()
        if b"stop" in words:
            frontend.stop(grace_s=5.0)
        if b"end" in words:
            frontend.unmount()
            frontend.stop(grace_s=0.2)


if __name__ == "__main__":
    trio.run(main)
