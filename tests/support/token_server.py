"""A small token server (the registry's `auth: token`), in a thread of the test's process.

It signs JWTs (RS256, by the `openssl` command) that Debian's docker-registry accepts. What it should
do wrong is data: `answers` holds answers to give instead, `life_s` and `valid_from_s` bend the tokens.
"""

import base64
import json
import subprocess
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from tests.support.certificates import KeyPair, make_authority

SERVICE = "test-registry"
ISSUER = "test-issuer"


@dataclass(frozen=True, slots=True)
class TokenRequest:
    """A request as it came."""

    method: str
    fields: dict[str, str]
    authorization: str


@dataclass
class TokenServer:
    """What the server knows and has seen. Change it between requests."""

    keys: KeyPair
    users: dict[str, str] = field(default_factory=dict)  # empty: anybody gets a token
    life_s: int = 600  # of the JWT itself; docker-registry allows another 60 s
    told_life_s: int | None = None  # `expires_in`; None: the truth
    takes_post: bool = True
    answers: deque[tuple[int, bytes]] = field(default_factory=deque)  # given first, instead
    requests: list[TokenRequest] = field(default_factory=list)
    realm: str = ""

    def token(self, *scopes: str) -> str:
        """Return a signed token for scopes like `repository:name:pull,push`."""
        now = int(time.time())
        access = []
        for scope in filter(None, scopes):
            kind, name, actions = scope.split(":")
            access.append({"type": kind, "name": name, "actions": actions.split(",")})
        der = subprocess.run(
            ["openssl", "x509", "-in", self.keys.certificate, "-outform", "DER"],
            check=True,
            capture_output=True,
            timeout=60,
        ).stdout
        head = {"typ": "JWT", "alg": "RS256", "x5c": [base64.b64encode(der).decode()]}
        claims = {
            "iss": ISSUER,
            "sub": "",
            "aud": SERVICE,
            "exp": now + self.life_s,
            "nbf": now - 3600,
            "iat": now - 3600,
            "jti": str(time.monotonic_ns()),
            "access": access,
        }
        signed = f"{_url64(json.dumps(head).encode())}.{_url64(json.dumps(claims).encode())}"
        signature = subprocess.run(
            ["openssl", "dgst", "-sha256", "-sign", self.keys.key],
            input=signed.encode(),
            check=True,
            capture_output=True,
            timeout=60,
        ).stdout
        return f"{signed}.{_url64(signature)}"

    def answer(self, request: TokenRequest) -> tuple[int, bytes]:
        """Return status and body for a request, and remember it."""
        self.requests.append(request)
        if self.answers:
            return self.answers.popleft()
        if request.method == "POST" and not self.takes_post:
            return 405, b"method not allowed"
        if self.users and not self._knows(request.authorization):
            return 401, b'{"details":"incorrect username or password"}'
        told = self.life_s if self.told_life_s is None else self.told_life_s
        body = {"token": self.token(request.fields.get("scope", "")), "expires_in": told}
        return 200, json.dumps(body).encode()

    def _knows(self, authorization: str) -> bool:
        scheme, _, credential = authorization.partition(" ")
        if scheme != "Basic":
            return False
        user, _, password = base64.b64decode(credential).decode().partition(":")
        return self.users.get(user) == password


def _url64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    known: TokenServer

    def do_GET(self) -> None:
        self._serve(urlsplit(self.path).query)

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length", 0))
        self._serve(self.rfile.read(length).decode())

    def log_message(self, *_args: object) -> None:
        pass

    def _serve(self, query: str) -> None:
        fields = {name: values[0] for name, values in parse_qs(query).items()}
        request = TokenRequest(self.command, fields, self.headers.get("Authorization", ""))
        status, body = self.known.answer(request)
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def token_server(folder: Path, **known: object) -> Iterator[TokenServer]:
    """Run a token server on a free loopback port until the block ends; keys are made in `folder`."""
    server = TokenServer(make_authority(folder, "tokens"), **known)  # type: ignore[arg-type]
    handler = type("Handler", (_Handler,), {"known": server})
    http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    http.daemon_threads = True
    server.realm = f"http://127.0.0.1:{http.server_address[1]}/token"
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        thread.join(10)
        http.server_close()
