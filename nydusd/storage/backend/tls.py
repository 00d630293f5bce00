"""The TLS context of HTTP backends: system roots, own CAs, or no check at all (spec backends §1).

The context is made at once, because a CA file that cannot be read must refuse the mount; the system's
roots (20 ms, 1 MiB) are loaded behind the first https request.
"""

import ssl

import trio

from nydusd.config.model import HttpOptions
from nydusd.errors import ConfigError


class Tls:
    """One backend's TLS context. `ready()` before the first https request."""

    def __init__(self, options: HttpOptions) -> None:
        """Load the configured CA files. Raises ConfigError naming the one that cannot be used."""
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        if options.skip_verify:
            self.context.check_hostname = False
            self.context.verify_mode = ssl.CERT_NONE
        for path in options.ca_cert_files:
            try:
                self.context.load_verify_locations(cafile=path)
            except OSError as exc:  # ssl.SSLError is one
                raise ConfigError(f"ca_cert_files: {path}: {exc.strerror or exc}") from exc
        self._roots_loaded = options.skip_verify
        self._loading = trio.Lock()

    async def ready(self) -> None:
        """Load the system's roots, once, in a thread."""
        if self._roots_loaded:
            return
        async with self._loading:  # one thread at a time may change the context
            if not self._roots_loaded:
                await trio.to_thread.run_sync(self.context.load_default_certs)
                self._roots_loaded = True
