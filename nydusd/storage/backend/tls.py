"""The TLS context of HTTP backends: system roots, own CAs, or no check at all (spec backends §1).

A CA file that cannot be read must refuse the mount, so with such files the context is made at once. Else
it waits, as OpenSSL does (6 ms, 3 MiB), for the HTTP client, and the system's roots (20 ms, 1 MiB) for the
first https request.
"""

from functools import cached_property
from typing import TYPE_CHECKING

import trio

from nydusd.config.model import HttpOptions
from nydusd.errors import ConfigError

if TYPE_CHECKING:
    import ssl


class Tls:
    """One backend's TLS context. `ready()` before the first https request."""

    def __init__(self, options: HttpOptions) -> None:
        """Load the configured CA files. Raises ConfigError naming the one that cannot be used."""
        self._skip_verify = options.skip_verify
        self._roots_loaded = options.skip_verify
        self._loading = trio.Lock()
        for path in options.ca_cert_files:
            try:
                self.context.load_verify_locations(cafile=path)
            except OSError as exc:  # ssl.SSLError is one
                raise ConfigError(f"ca_cert_files: {path}: {exc.strerror or exc}") from exc

    @cached_property
    def context(self) -> "ssl.SSLContext":
        """The context, made when first asked for."""
        import ssl

        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        if self._skip_verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context

    async def ready(self) -> None:
        """Load the system's roots, once, in a thread."""
        if self._roots_loaded:
            return
        async with self._loading:  # one thread at a time may change the context
            if not self._roots_loaded:
                await trio.to_thread.run_sync(self.context.load_default_certs)
                self._roots_loaded = True
