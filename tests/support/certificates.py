"""Keys and certificates for tests, made by the `openssl` command; a few days valid, loopback only."""

import subprocess
from pathlib import Path
from typing import NamedTuple


class KeyPair(NamedTuple):
    """PEM files."""

    certificate: Path
    key: Path


def _openssl(*args: str | Path) -> None:
    subprocess.run(["openssl", *map(str, args)], check=True, capture_output=True, timeout=60)


def make_authority(folder: Path, name: str = "authority") -> KeyPair:
    """Make a CA in `folder`."""
    pair = KeyPair(folder / f"{name}.crt", folder / f"{name}.key")
    _openssl(
        *("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "3", "-sha256"),
        *("-subj", f"/CN=test {name}", "-addext", "keyUsage=critical,keyCertSign,digitalSignature"),
        *("-keyout", pair.key, "-out", pair.certificate),
    )
    return pair


def make_server(folder: Path, authority: KeyPair, *, host: str = "127.0.0.1") -> KeyPair:
    """Make a server certificate for the IP address `host`, signed by `authority`."""
    pair = KeyPair(folder / f"{host}.crt", folder / f"{host}.key")
    request, extensions = folder / "server.csr", folder / "server.ext"
    extensions.write_text(f"subjectAltName=IP:{host}\n")
    _openssl(
        *("req", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=test server"),
        *("-keyout", pair.key, "-out", request),
    )
    _openssl(
        *("x509", "-req", "-in", request, "-days", "3", "-sha256", "-CAcreateserial"),
        *("-CA", authority.certificate, "-CAkey", authority.key),
        *("-extfile", extensions, "-out", pair.certificate),
    )
    return pair
