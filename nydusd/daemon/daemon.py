"""One daemon as the whole life of this process: options to objects, signals, and the certainty of an end.

Callers  `cli`, in the main thread, once.
Raises   what kept the daemon from starting or serving; see life.py.
"""

import gc
import logging
import os
import signal
from collections.abc import AsyncIterator
from typing import Final

import trio

from nydusd.daemon.doors import open_frontend
from nydusd.daemon.events import EventRing
from nydusd.daemon.life import Daemon
from nydusd.daemon.options import DaemonOptions
from nydusd.errors import NydusError
from nydusd.storage.pool import open_pool

log = logging.getLogger(__name__)

# Clients wait for our end without a limit (spec api §9). A thread that hangs in the kernel, on a dead
# network file system say, must not hold it up: then SIGALRM ends the process where it stands.
LAST_RESORT_S: Final = 13
MAPS_PAUSE_S: Final = 10.0  # one line for all pages of one file
SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)


def run(options: DaemonOptions) -> int:
    """Serve until SIGTERM, SIGINT, PUT exit, or until the mount is taken away from outside.

    Returns the exit status, 0: every other end is raised.
    SIGPIPE is ignored, as Python begins; SIGHUP kills, as for the reference (spec cli-config A6).
    """
    try:
        trio.run(_live, options)
    except BaseExceptionGroup as group:
        raise _cause(group) from None
    finally:
        signal.alarm(0)
    return 0


async def _live(options: DaemonOptions) -> None:
    events = EventRing()
    root = logging.getLogger()
    root.addHandler(events)
    # trio gives what it has not passed on to the handlers that were there before: the default ones would
    # kill a daemon that is ending already. What comes before trio's is passed on below.
    early: list[int] = []
    for number in SIGNALS:
        signal.signal(number, lambda number, _: early.append(number))
    try:
        with trio.open_signal_receiver(*SIGNALS) as signals:
            async with open_pool() as pool, trio.open_nursery() as nursery:
                daemon = Daemon(options, pool, nursery, open_frontend, events)
                nursery.start_soon(_heed, signals, daemon)
                nursery.start_soon(_limit_end, daemon)
                nursery.start_soon(_settle, daemon)
                nursery.start_soon(_watch_maps)
                if early:
                    daemon.end()
                await daemon.live()
                nursery.cancel_scope.cancel()
    finally:
        for number in SIGNALS:  # what comes too late must not change the exit status
            signal.signal(number, signal.SIG_IGN)
        root.removeHandler(events)


async def _heed(signals: AsyncIterator[int], daemon: Daemon) -> None:
    async for number in signals:
        log.info("%s, the daemon ends", signal.Signals(number).name)
        daemon.end()


async def _settle(daemon: Daemon) -> None:
    """Have garbage collected from now on, but not looked for in what start-up has made.

    Nearly all of that lives as long as we do, and to walk through it stops every reader for 10 ms.
    """
    await daemon.running.wait()
    gc.freeze()
    gc.enable()


async def _watch_maps() -> None:
    """Outlive that somebody truncates a file that we have mapped, and say so."""
    from nydusd.native import survive_cut_maps

    # Stays open: a thread may come upon the next page when this task has ended.
    told = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    survive_cut_maps(told)
    while True:
        await trio.lowlevel.wait_readable(told)
        log.error(
            "a mapped file was truncated, what was cut off is taken for zeros: pages=%d "
            "(a bootstrap's files fail now; a chunk map's chunks are fetched again)",
            os.eventfd_read(told),
        )
        await trio.sleep(MAPS_PAUSE_S)


async def _limit_end(daemon: Daemon) -> None:
    await daemon.ending.wait()
    signal.alarm(LAST_RESORT_S)


def _cause(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return what the caller is to see of a group: our own error if there is one, else a bug."""
    ours, _ = group.split(NydusError)
    found: BaseException = group if ours is None else ours
    while isinstance(found, BaseExceptionGroup) and (
        ours is not None or len(found.exceptions) == 1
    ):
        found = found.exceptions[0]
    return found
