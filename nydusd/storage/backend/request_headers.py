"""The headers that every HTTP request of a backend carries (spec backends §2)."""

import logging
import re
from collections.abc import Mapping
from typing import Final

from nydusd import __version__

ENV_PREFIX: Final = "NYDUS_HEADER_"

_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110 §5.6.2
_VALUE: Final = re.compile(r"[\x21-\x7e](?:[\t\x20-\x7e]*[\x21-\x7e])?")
# These say how bytes travel and which are meant; another value breaks the request or the answer.
_OURS: Final = frozenset(
    {
        "accept-encoding",
        "connection",
        "content-length",
        "expect",
        "host",
        "range",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)

log = logging.getLogger(__name__)


def standing_headers(environ: Mapping[str, str]) -> dict[str, str]:
    """Return our headers, overwritten by NYDUS_HEADER_<Name>=<value> variables; names in lower case.

    Names and values that HTTP does not allow are skipped, as are those of the transport; a warning
    tells the name, never the value.
    """
    headers = {
        "user-agent": f"nydusd/{__version__}",
        "accept": "*/*",
        "accept-encoding": "identity",  # what is stored is already compressed, and offsets are of that
    }
    for variable, value in environ.items():
        if not variable.startswith(ENV_PREFIX):
            continue
        name = variable[len(ENV_PREFIX) :].lower()
        if not _NAME.fullmatch(name) or not _VALUE.fullmatch(value) or name in _OURS:
            log.warning("environment variable %r is no header that can be set", variable)
            continue
        headers[name] = value
    return headers
