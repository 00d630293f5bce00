"""nydusctl over a real unix socket: answers, refusals, and sockets where nobody answers."""

import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import UnixStreamServer

import pytest

from nydusd.cli import ctl


class Handler(BaseHTTPRequestHandler):
    """A daemon that is RUNNING and refuses every mount."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.answer(200, {"state": "RUNNING"})

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.answer(204)

    def do_DELETE(self) -> None:
        self.answer(500, {"code": "UNDEFINED", "message": "nothing\nthere"})

    def answer(self, status: int, body: object = None) -> None:
        text = b"" if body is None else json.dumps(body).encode()
        self.send_response_only(status, "")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        if text:  # else the client may be gone already
            self.wfile.write(text)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def sock(tmp_path: Path) -> Iterator[str]:
    path = str(tmp_path / "api.sock")
    with UnixStreamServer(path, Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield path
        server.shutdown()
        thread.join()


def test_a_good_answer_is_shown(sock: str, capsys: pytest.CaptureFixture[str]):
    assert ctl.main(["-S", sock, "info"]) == 0
    assert "RUNNING" in capsys.readouterr().out


def test_an_answer_without_a_body_is_success(sock: str):
    assert ctl.main(["-S", sock, "set", "log-level", "warn"]) == 0


def test_a_refusal_is_one_line_with_the_daemons_words(
    sock: str, capsys: pytest.CaptureFixture[str]
):
    assert ctl.main(["-S", sock, "umount", "-m", "/a"]) == 1
    assert capsys.readouterr().err == "Error: nydusd answered 500: nothing there\n"


def test_a_missing_socket_and_one_that_nobody_serves_are_told_apart(tmp_path: Path, capsys):
    assert ctl.main(["-S", str(tmp_path / "none"), "info"]) == 1
    assert "none: No such file or directory" in capsys.readouterr().err
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "dead"))
    assert ctl.main(["-S", str(tmp_path / "dead"), "info"]) == 1
    assert "dead: Connection refused" in capsys.readouterr().err


def test_a_server_that_hangs_up_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen()

        def hang_up() -> None:
            connection, _ = server.accept()
            connection.recv(4096)
            connection.close()

        thread = threading.Thread(target=hang_up)
        thread.start()
        assert ctl.main(["-S", path, "info"]) == 1
        thread.join()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("Error: ")
