"""Opens the door to the kernel that suits the image: EROFS if it can be, else the tree through FUSE.

Callers  daemon/life.py, once the image is open.
Raises   MountError if not even FUSE can be mounted.
Cancel   leaves nothing mounted.
"""

import logging
from collections.abc import Awaitable, Callable
from typing import NamedTuple

import trio

from nydusd.config.model import FrontendKind
from nydusd.daemon.frontend import Frontend, FuseFrontend
from nydusd.daemon.frontend_choice import Choice, Facts, choose, level
from nydusd.daemon.mounts import Mount
from nydusd.daemon.options import DaemonOptions
from nydusd.errors import NydusError
from nydusd.kernel.vfs import Vfs

log = logging.getLogger(__name__)


class Opening(NamedTuple):
    """What a frontend is opened for."""

    options: DaemonOptions
    vfs: Vfs
    mount: Mount | None  # the image of the command line, which is in `vfs`, too
    nursery: trio.Nursery  # to serve in


OpenFrontend = Callable[[Opening], Awaitable[Frontend]]


async def open_frontend(opening: Opening) -> Frontend:
    """Mount, and say in one line how and why so."""
    options = opening.options
    asked = options.asked_frontend()
    choice = _choose(opening, asked)
    if choice.kind is FrontendKind.EROFS:
        try:
            frontend = await _open_erofs(opening, asked)
        except NydusError as exc:
            choice = Choice(FrontendKind.FUSE, str(exc))
        else:
            _tell(opening, asked, choice)
            return frontend
    _tell(opening, asked, choice)
    return _open_fuse(opening)


def _choose(opening: Opening, asked: FrontendKind) -> Choice:
    mount = opening.mount
    facts = Facts(
        asked,
        None,
        None if mount is None else mount.mountpoint,
        None if mount is None else mount.config.rafs,
    )
    choice = choose(facts)
    if choice.kind is FrontendKind.FUSE:
        return choice
    from nydusd.kernel.erofs import why_not  # only now: most of what it loads is for EROFS alone

    return choose(facts._replace(kernel_refuses=why_not()))


async def _open_erofs(opening: Opening, asked: FrontendKind) -> Frontend:
    # Not for those who show the tree.
    from nydusd.daemon.erofs_frontend import ErofsFrontend
    from nydusd.daemon.erofs_layout import UnpreparedError, layout_of, prepare

    mount, options = opening.mount, opening.options
    assert mount is not None
    try:
        layout = await layout_of(
            mount.image, mount.config.rafs, whatever_it_takes=asked is FrontendKind.EROFS
        )
    except UnpreparedError:
        opening.nursery.start_soon(prepare, mount.image)
        raise
    return await ErofsFrontend.mount(
        options.mountpoint,
        layout,
        mount.tree.stats,
        opening.nursery,
        threads=options.fuse_threads,
        clones=_may_clone(options),
    )


def _open_fuse(opening: Opening) -> Frontend:
    options = opening.options
    return FuseFrontend.mount(
        options.mountpoint, opening.vfs, threads=options.fuse_threads, clones=_may_clone(options)
    )


def _may_clone(options: DaemonOptions) -> bool:
    """A supervisor holds one descriptor: what was read from a clone would die with us."""
    return options.supervisor is None


def _tell(opening: Opening, asked: FrontendKind, choice: Choice) -> None:
    log.log(
        level(asked, choice.kind),
        "frontend=%s mountpoint=%s reason: %s",
        choice.kind.value,
        opening.options.mountpoint,
        choice.reason,
    )
