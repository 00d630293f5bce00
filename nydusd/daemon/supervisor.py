"""The supervisor's socket (spec api §8.1): the supervisor listens, the daemon connects.

Handing the session over is not built yet. What is here keeps the other side from waiting for ever: it
accepts one connection without a timeout, and in shared mode every later mount waits behind it.

Raises   TransferError, always.
"""

from pathlib import Path
from typing import Final, NoReturn

import trio

from nydusd.api.controller import TransferError

CONNECT_TIMEOUT_S: Final = 5.0


async def decline(path: Path | None) -> NoReturn:
    """Connect, hang up and say why."""
    if path is None:
        raise TransferError("there is no supervisor: the daemon runs without --supervisor")
    try:
        with trio.fail_after(CONNECT_TIMEOUT_S):
            stream = await trio.open_unix_socket(path)
            await stream.aclose()
    except (OSError, trio.TooSlowError) as exc:
        raise TransferError(f"supervisor {path} cannot be reached: {exc or 'no answer'}") from exc
    raise TransferError("handing the session to a supervisor is not supported yet")
