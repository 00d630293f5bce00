"""One TCP connection to an HTTP server, plain or TLS, whose bytes go straight into the reader's buffer.

A blob is read in megabytes that nobody can use before the last of them is there. So `fill` lets the kernel
gather input (SO_RCVLOWAT) instead of waking up for each segment, and receives into the final buffer: through
trio's streams, h11 and a pool each byte is copied five times, and the event loop does it all per 64 KiB.

Owns     the socket.
Callers  one task of the trio thread at a time.
Raises   httpx.ConnectError, ConnectTimeout, ReadError, ReadTimeout, WriteError, WriteTimeout.
Time     each limit is for one wait: an operation goes on as long as something moves.
Cancel   leaves the connection in the middle of something: close it.
"""

import select
import socket
import ssl
from typing import Final, Self

import httpx
import trio

from nydusd.units import KIB

# Input worth a wake-up. Above, the gain is gone; the kernel holds twice that per connection.
GATHERED_BYTES: Final = 512 * KIB
# Of what is due, OpenSSL may hold a part of a record already: that much must not be waited for.
TLS_RECORD_BYTES: Final = 17 * KIB

_NO_INPUT: Final = (BlockingIOError, ssl.SSLWantReadError)
_NO_ROOM: Final = (BlockingIOError, ssl.SSLWantWriteError)


class HttpSocket:
    """A connected socket. Ended by `close`, which is instant; no TLS good-bye: lengths tell the end."""

    __slots__ = ("_gathered", "_socket")

    def __init__(self, connected: socket.socket) -> None:
        """Take over a non-blocking socket, after its TLS handshake if it has one."""
        self._socket = connected
        self._gathered = 1  # the kernel's default

    @classmethod
    async def connect(
        cls, host: str, port: int, tls: ssl.SSLContext | None, limit_s: float
    ) -> Self:
        """Open a connection to whichever of the host's addresses answers first."""
        try:
            with trio.fail_after(limit_s):
                stream = await trio.open_tcp_stream(host, port)
                plain = socket.socket(fileno=stream.socket.detach())
                plain.setblocking(False)
                return cls(plain if tls is None else await _with_tls(plain, host, tls))
        except trio.TooSlowError as exc:
            raise httpx.ConnectTimeout(f"no connection within {limit_s:g} s") from exc
        except OSError as exc:  # ssl.SSLError too
            raise httpx.ConnectError(str(exc)) from exc

    async def send(self, data: bytes, limit_s: float) -> None:
        """Send all of `data`."""
        left = memoryview(data)
        try:
            while left:
                try:
                    left = left[self._socket.send(left) :]
                except _NO_ROOM:
                    with trio.fail_after(limit_s):
                        await trio.lowlevel.wait_writable(self._socket)
        except trio.TooSlowError as exc:
            raise httpx.WriteTimeout(f"nothing taken for {limit_s:g} s") from exc
        except OSError as exc:
            raise httpx.WriteError(str(exc)) from exc

    async def receive(self, max_bytes: int, limit_s: float) -> bytes:
        """Return what comes first, at most `max_bytes`; nothing at the end of input."""
        piece = bytearray(max_bytes)
        return bytes(piece[: await self._receive(memoryview(piece), 1, limit_s)])

    async def fill(self, room: memoryview, limit_s: float) -> int:
        """Receive until `room` is full; return how much came, less only at the end of input.

        The event loop goes on only where input has to be waited for: give rooms of a few MiB at most.
        """
        filled = 0
        while filled < len(room):
            due = len(room) - filled
            if isinstance(self._socket, ssl.SSLSocket):
                due -= TLS_RECORD_BYTES
            got = await self._receive(room[filled:], min(due, GATHERED_BYTES), limit_s)
            if not got:
                break
            filled += got
        return filled

    def has_input(self) -> bool:
        """Tell whether anything came unasked: mostly the end, from a server that hung up."""
        poll = select.poll()
        poll.register(self._socket, select.POLLIN | select.POLLRDHUP)
        return bool(poll.poll(0))

    def close(self) -> None:
        """Close the socket; again does nothing."""
        if self._socket.fileno() >= 0:
            trio.lowlevel.notify_closing(self._socket)
            self._socket.close()

    async def _receive(self, room: memoryview, gather: int, limit_s: float) -> int:
        """Receive once into `room`; if nothing is there, wait until `gather` bytes are."""
        in_time = True
        while True:
            try:
                return self._socket.recv_into(room)
            except _NO_INPUT:
                if not in_time:
                    raise httpx.ReadTimeout(f"nothing came for {limit_s:g} s") from None
            except OSError as exc:
                raise httpx.ReadError(str(exc)) from exc
            self._gather(max(gather, 1))
            with trio.move_on_after(limit_s) as waiting:
                await trio.lowlevel.wait_readable(self._socket)
            # Time may be up with less than `gather` there: a slow server is not a silent one.
            in_time = not waiting.cancelled_caught

    def _gather(self, count: int) -> None:
        """Have the kernel call the socket readable from so many bytes on, or at the end of input."""
        if count != self._gathered:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, count)
            self._gathered = count


async def _with_tls(plain: socket.socket, host: str, tls: ssl.SSLContext) -> ssl.SSLSocket:
    """Return the socket after a TLS handshake. OpenSSL reads and writes the descriptor itself."""
    secured = tls.wrap_socket(
        plain, server_hostname=host, do_handshake_on_connect=False, suppress_ragged_eofs=False
    )
    try:
        while True:
            try:
                secured.do_handshake()
            except ssl.SSLWantReadError:
                await trio.lowlevel.wait_readable(secured)
            except ssl.SSLWantWriteError:
                await trio.lowlevel.wait_writable(secured)
            else:
                return secured
    except BaseException:
        secured.close()
        raise
