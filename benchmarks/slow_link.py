"""A TCP link with round trip, bandwidth and faults: what stands between a daemon and its registry.

    python benchmarks/slow_link.py --to 127.0.0.1:5000 [--listen 127.0.0.1:0] [--rtt-ms 20] [--mbit 200]

All connections share the bandwidth, each direction has its own. Opening one costs a round trip, bytes
arrive half a round trip after they left. The first line printed is the address listened on; then each
line read from standard input is a command, answered by one line:

    cut      close every connection and refuse new ones      heal    let them in again
    freeze   keep connections, deliver nothing               thaw    deliver again
    reset    close every connection once, with RST           rtt MS, mbit N   change the link
    counts   answer `connections bytes_up bytes_down`

Loopback only. In a trio program, `Link.serve` does the same in a nursery and the methods of `Link`
are the commands.
"""

import argparse
import functools
import math
import os
import signal
import socket
import struct
import sys
from typing import Final

import trio

PIECE_BYTES: Final = 64 * 1024
PIECES_UNDER_WAY: Final = 64  # per connection and direction; then the sender is held back
BITS_PER_MBIT: Final = 1_000_000
RST_ON_CLOSE: Final = struct.pack("ii", 1, 0)  # struct linger: on, 0 s

Address = tuple[str, int]


class _Wire:
    """One direction of the link, shared by all connections."""

    def __init__(self) -> None:
        self.free_at_s = -math.inf
        self.carried_bytes = 0

    def carry(self, count: int, bytes_per_s: float) -> float:
        """Return when the last of `count` bytes handed over now has left the wire."""
        self.free_at_s = max(trio.current_time(), self.free_at_s) + count / bytes_per_s
        self.carried_bytes += count
        return self.free_at_s


class _Connection:
    """Both ends of one connection, and the scope that ends it."""

    def __init__(self, client: trio.SocketStream) -> None:
        self.scope = trio.CancelScope()
        self.ends = [client]

    def drop(self, *, reset: bool) -> None:
        for end in self.ends:
            if reset and end.socket.fileno() >= 0:
                end.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RST_ON_CLOSE)
            end.socket.close()
        self.scope.cancel()


class Link:
    """The state of the link. Methods are instant and may be called by any task of the same loop."""

    def __init__(self, rtt_ms: float = 0.0, mbit: float = 0.0) -> None:
        """A bandwidth of 0 is unlimited."""
        self.set_rtt(rtt_ms)
        self.set_bandwidth(mbit)
        self.connections = 0  # ever let in
        self._up, self._down = _Wire(), _Wire()
        self._open: set[_Connection] = set()
        self._cut = False
        self._flowing = trio.Event()
        self._flowing.set()

    @property
    def bytes_up(self) -> int:
        """Bytes towards the server so far."""
        return self._up.carried_bytes

    @property
    def bytes_down(self) -> int:
        """Bytes towards the client so far."""
        return self._down.carried_bytes

    def set_rtt(self, rtt_ms: float) -> None:
        """Change the round trip time."""
        self._rtt_s = rtt_ms / 1000

    def set_bandwidth(self, mbit: float) -> None:
        """Change the bandwidth of either direction; 0 is unlimited."""
        self._bytes_per_s = mbit * BITS_PER_MBIT / 8 if mbit else math.inf

    def cut(self) -> None:
        """Close every connection and refuse new ones."""
        self._cut = True
        self._drop_all(reset=False)

    def heal(self) -> None:
        """Let connections in again."""
        self._cut = False

    def freeze(self) -> None:
        """Deliver nothing until `thaw`; connections stay."""
        if self._flowing.is_set():
            self._flowing = trio.Event()

    def thaw(self) -> None:
        """Deliver again, what was held back too."""
        self._flowing.set()

    def reset(self) -> None:
        """Close every connection with RST; new ones are let in."""
        self._drop_all(reset=True)

    async def serve(
        self,
        to: Address,
        listen: Address = ("127.0.0.1", 0),
        *,
        task_status: trio.TaskStatus[Address] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Carry connections to `to` until cancelled; `nursery.start` returns the address listened on."""
        async with trio.open_nursery() as nursery:
            (listener,) = await trio.open_tcp_listeners(listen[1], host=listen[0])
            host, port = listener.socket.getsockname()[:2]
            task_status.started((host, port))
            await trio.serve_listeners(
                functools.partial(self._connection, to), [listener], handler_nursery=nursery
            )

    def _drop_all(self, *, reset: bool) -> None:
        for connection in tuple(self._open):
            connection.drop(reset=reset)

    async def _connection(self, to: Address, client: trio.SocketStream) -> None:
        connection = _Connection(client)
        if self._cut:
            connection.drop(reset=True)
            return
        self.connections += 1
        self._open.add(connection)
        try:
            with connection.scope:
                await trio.sleep(self._rtt_s)
                server = await trio.open_tcp_stream(*to)
                connection.ends.append(server)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._one_way, client, server, self._up)
                    nursery.start_soon(self._one_way, server, client, self._down)
        except* (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # one side is gone: so will be the other
        finally:
            self._open.discard(connection)
            connection.drop(reset=False)

    async def _one_way(
        self, source: trio.SocketStream, target: trio.SocketStream, wire: _Wire
    ) -> None:
        sender, receiver = trio.open_memory_channel[tuple[float, bytes]](PIECES_UNDER_WAY)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._deliver, receiver, target)
            async with sender:
                while data := await source.receive_some(PIECE_BYTES):
                    left_s = wire.carry(len(data), self._bytes_per_s)
                    await sender.send((left_s + self._rtt_s / 2, bytes(data)))

    async def _deliver(
        self,
        receiver: trio.MemoryReceiveChannel[tuple[float, bytes]],
        target: trio.SocketStream,
    ) -> None:
        async for due_s, data in receiver:
            await trio.sleep_until(due_s)
            await self._flowing.wait()
            await target.send_all(data)
        await target.send_eof()


def obey(link: Link, line: str) -> str:
    """Carry out one command line; return the answer."""
    match line.split():
        case ["cut"]:
            link.cut()
        case ["heal"]:
            link.heal()
        case ["freeze"]:
            link.freeze()
        case ["thaw"]:
            link.thaw()
        case ["reset"]:
            link.reset()
        case ["rtt", number]:
            link.set_rtt(float(number))
        case ["mbit", number]:
            link.set_bandwidth(float(number))
        case ["counts"]:
            return f"{link.connections} {link.bytes_up} {link.bytes_down}"
        case _:
            return f"unknown command: {line.strip()}"
    return "ok"


async def _obey_stdin(link: Link) -> None:
    pending = b""
    stdin = trio.lowlevel.FdStream(os.dup(sys.stdin.fileno()))
    async for data in stdin:
        *lines, pending = (pending + data).split(b"\n")
        for line in lines:
            print(obey(link, line.decode()), flush=True)


def _loopback(text: str) -> Address:
    host, _, port = text.rpartition(":")
    if host not in {"localhost", "[::1]"} and not host.startswith("127."):
        raise argparse.ArgumentTypeError("loopback addresses only")
    return host.strip("[]"), int(port)


async def _main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--to", type=_loopback, required=True)
    parser.add_argument("--listen", type=_loopback, default=("127.0.0.1", 0))
    parser.add_argument("--rtt-ms", type=float, default=20.0)
    parser.add_argument("--mbit", type=float, default=200.0)
    options = parser.parse_args()
    link = Link(options.rtt_ms, options.mbit)
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with trio.open_nursery() as nursery:
            host, port = await nursery.start(link.serve, options.to, options.listen)
            print(f"{host}:{port}", flush=True)
            nursery.start_soon(_obey_stdin, link)
            async for _ in signals:
                nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(_main)
