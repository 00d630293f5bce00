"""The slow link carries what it is given, and does what it is told."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.support.slow_link import LinkProcess, link_process


@contextmanager
def echo_server() -> Iterator[str]:
    """A server that sends back what it gets; yields its address."""

    def echo(connection: socket.socket) -> None:
        with connection:
            try:
                while data := connection.recv(65536):
                    connection.sendall(data)
            except OSError:
                pass  # the link was cut

    def accept() -> None:
        try:
            while True:
                connection, _ = listener.accept()
                threading.Thread(target=echo, args=(connection,), daemon=True).start()
        except OSError:
            pass  # closed below

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=accept, daemon=True).start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)


def connect(link: LinkProcess) -> socket.socket:
    host, _, port = link.address.partition(":")
    return socket.create_connection((host, int(port)), timeout=10)


def exchange(connection: socket.socket, data: bytes) -> bytes:
    connection.sendall(data)
    received = b""
    while len(received) < len(data):
        piece = connection.recv(65536)
        if not piece:
            break
        received += piece
    return received


def test_a_link_carries_bytes_both_ways_and_counts_them() -> None:
    data = bytes(range(256)) * 40
    with echo_server() as address, link_process(address, rtt_ms=5, mbit=100) as link:
        with connect(link) as connection:
            assert exchange(connection, data) == data
            connection.shutdown(socket.SHUT_WR)
            assert connection.recv(1) == b""
        assert link.command("counts") == f"1 {len(data)} {len(data)}"
        assert link.command("fly").startswith("unknown command")


def test_a_cut_link_refuses_until_it_is_healed() -> None:
    with echo_server() as address, link_process(address) as link:
        with connect(link) as connection:
            assert exchange(connection, b"a") == b"a"
            assert link.command("cut") == "ok"
            assert connection.recv(1) == b""
        with pytest.raises(OSError), connect(link) as connection:  # noqa: PT011, PT012
            if connection.recv(1) == b"":
                raise ConnectionResetError
        assert link.command("heal") == "ok"
        with connect(link) as connection:
            assert exchange(connection, b"b") == b"b"


def test_a_frozen_link_delivers_when_it_thaws_and_a_reset_is_felt() -> None:
    with echo_server() as address, link_process(address) as link, connect(link) as connection:
        assert exchange(connection, b"a") == b"a"
        link.command("freeze")
        connection.sendall(b"b")
        connection.settimeout(0.1)
        with pytest.raises(TimeoutError):
            connection.recv(1)
        link.command("thaw")
        connection.settimeout(10)
        assert connection.recv(1) == b"b"
        link.command("reset")
        with pytest.raises(ConnectionResetError):
            connection.recv(1)
