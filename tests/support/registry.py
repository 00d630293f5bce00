"""Debian's docker-registry as a child process on a free loopback port.

    with registry(tmp_path) as server:
        blob_id = server.push("demo/image", data)

`auth` chooses anonymous, htpasswd or token; `tls` a certificate. `stop` and `start` restart it on the
same port with the same blobs.
"""

import base64
import hashlib
import http.client
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.certificates import KeyPair
from tests.support.token_server import ISSUER, SERVICE, TokenServer

USER, PASSWORD = "reader", "pass:word"
BASIC = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
# bcrypt of PASSWORD, the one kind that docker-registry takes
_HTPASSWD = "reader:$2b$05$p04.7ZkYodYfSg5EOkKAg.acR4F8wZUmF5Rs3D3JEBaDmRag5ByBK"
READY_WITHIN_S = 30.0


def free_port() -> int:
    """Return a loopback port that nobody listened on a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Registry:
    """A registry and the folder of its blobs. Use `registry()` to make one."""

    def __init__(
        self,
        folder: Path,
        *,
        auth: str | TokenServer | None = None,
        tls: KeyPair | None = None,
    ) -> None:
        self.port = free_port()
        self.host = f"127.0.0.1:{self.port}"
        self.scheme = "http" if tls is None else "https"
        self.log = folder / "registry.log"
        self._auth = auth
        self._config = folder / "registry.yml"
        self._process: subprocess.Popen[bytes] | None = None
        self._config.write_text(self._configuration(folder, tls))

    def push(self, repo: str, data: bytes) -> str:
        """Store a blob by plain HTTP, as any client does; return its blob id, 64 hex digits."""
        blob_id = hashlib.sha256(data).hexdigest()
        headers = self._push_headers(repo)
        where = self._request("POST", f"/v2/{repo}/blobs/uploads/", headers, b"", 202)
        joint = "&" if "?" in where else "?"
        path = where.partition(self.host)[2] or where
        self._request("PUT", f"{path}{joint}digest=sha256:{blob_id}", headers, data, 201)
        return blob_id

    def start(self) -> None:
        """Start the process and wait until it answers."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                ["docker-registry", "serve", self._config], stdout=log, stderr=log
            )
        deadline = time.monotonic() + READY_WITHIN_S
        while not self._answers():
            assert self._process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.02)  # polls another process, bounded

    def stop(self) -> None:
        """End the process: connections are closed, the port refuses."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)
            self._process = None

    def _answers(self) -> bool:
        try:
            self._request("GET", "/v2/", {}, b"", None)
        except (OSError, http.client.HTTPException):
            return False
        return True

    def _request(
        self, method: str, path: str, headers: dict[str, str], body: bytes, want: int | None
    ) -> str:
        """Send one request; return the Location of the answer."""
        connection: http.client.HTTPConnection
        if self.scheme == "https":
            unchecked = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            unchecked.check_hostname = False
            unchecked.verify_mode = ssl.CERT_NONE
            connection = http.client.HTTPSConnection(self.host, timeout=10, context=unchecked)
        else:
            connection = http.client.HTTPConnection(self.host, timeout=10)
        try:
            connection.request(method, path, body=body, headers=headers)
            answer = connection.getresponse()
            text = answer.read()
            assert want is None or answer.status == want, (answer.status, text)
            return answer.headers.get("Location", "")
        finally:
            connection.close()

    def _push_headers(self, repo: str) -> dict[str, str]:
        if isinstance(self._auth, TokenServer):
            token = self._auth.token(f"repository:{repo}:pull,push")
            return {"Authorization": f"Bearer {token}"}
        return {} if self._auth is None else {"Authorization": f"Basic {BASIC}"}

    def _configuration(self, folder: Path, tls: KeyPair | None) -> str:
        lines = [
            "version: 0.1",
            "log: {level: warn, accesslog: {disabled: true}}",
            f"storage: {{filesystem: {{rootdirectory: {folder / 'blobs'}}}}}",
            "http:",
            f"  addr: {self.host}",
            "  secret: only-for-tests",
        ]
        if tls is not None:
            lines.append(f"  tls: {{certificate: {tls.certificate}, key: {tls.key}}}")
        if self._auth == "htpasswd":
            passwords = folder / "htpasswd"
            passwords.write_text(_HTPASSWD + "\n")
            lines.append(f"auth: {{htpasswd: {{realm: test, path: {passwords}}}}}")
        elif isinstance(self._auth, TokenServer):
            lines += [
                "auth:",
                "  token:",
                f"    realm: {self._auth.realm}",
                f"    service: {SERVICE}",
                f"    issuer: {ISSUER}",
                f"    rootcertbundle: {self._auth.keys.certificate}",
            ]
        return "\n".join(lines) + "\n"


@contextmanager
def registry(
    folder: Path,
    *,
    auth: str | TokenServer | None = None,
    tls: KeyPair | None = None,
) -> Iterator[Registry]:
    """Run a registry until the block ends; skips the test where docker-registry is not installed.

    auth: None for anonymous, "htpasswd" for USER and PASSWORD, or a token server.
    """
    if shutil.which("docker-registry") is None:
        pytest.skip("docker-registry is not installed (Debian: apt-get install docker-registry)")
    server = Registry(folder, auth=auth, tls=tls)
    server.start()
    try:
        yield server
    finally:
        server.stop()
