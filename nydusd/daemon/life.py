"""The daemon behind `nydusd fuse`: its state, and the order in which its parts begin and end.

Owns     the session, the mount table, the API's socket, the settings put at run time.
Callers  daemon.py; the API's connections, by way of the Controller protocol; signals through `end`.
Raises   `live` what kept the daemon from starting or serving: ConfigError, MountError, what the image
         raised. After it has returned or raised, nothing of ours is mounted but after `depart`.
Cancel   as an end by signal: winding down is shielded, and bounded by WIND_DOWN_S.

Order (spec cli-config B10): image → mount(2) → serve → our own stat of the mountpoint → RUNNING → the
API's socket. A client that can connect meets a daemon that serves.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import trio

from nydusd import logs
from nydusd.api.controller import (
    MountFault,
    MountRefusedError,
    MountRequest,
    NotReadyError,
    TransferError,
)
from nydusd.api.dispatch import Dispatcher
from nydusd.api.server import serve as serve_api
from nydusd.api.socket_file import SocketFile
from nydusd.config.load import load as load_config
from nydusd.config.model import Config, FrontendKind, Secret
from nydusd.daemon import describe, predecessor, supervisor
from nydusd.daemon.doors import OpenFrontend, Opening
from nydusd.daemon.events import EventRing
from nydusd.daemon.frontend import Frontend
from nydusd.daemon.mounts import MountTable, Pool, check_prefetch_files, normalized
from nydusd.daemon.options import DaemonOptions
from nydusd.daemon.settings import REGISTRY_AUTH, Settings
from nydusd.daemon.states import DEPARTURE, TERMINATION, Action, Event, State, step
from nydusd.errors import ConfigError, ExistsError, NydusError, UnsupportedError
from nydusd.kernel.stats import InFlightRequest
from nydusd.kernel.vfs import Stale, Vfs
from nydusd.metrics.index import MetricsIndex

log = logging.getLogger(__name__)

STOP_GRACE_S: Final = 5.0  # for requests under way when the daemon ends
STOP_LIMIT_S: Final = STOP_GRACE_S + 2.0
WIND_DOWN_S: Final = 10.0  # everything from the signal to the last image closed
PASS_THROUGH: Final = frozenset({"passthrough", "passthroughfs", "passthrough_fs"})


class Daemon:
    """One daemon: a session in the kernel, images inside it, an API beside it."""

    def __init__(
        self,
        options: DaemonOptions,
        pool: Pool,
        nursery: trio.Nursery,
        open_frontend: OpenFrontend,
        events: EventRing,
    ) -> None:
        """Nothing is opened or mounted before `live`.

        `nursery` runs serving, API and prefetch; it is the caller's to cancel after `live`.
        """
        self.state = State.INIT
        self.metrics = MetricsIndex()
        self.running = trio.Event()  # set when start-up is over: RUNNING, and the API answers
        self.ending = trio.Event()  # set by whatever ends the daemon
        self._options = options
        self._nursery = nursery
        self._open_frontend = open_frontend
        self._events = events
        self._vfs = Vfs()
        self._mounts = MountTable(pool, self._vfs, self.metrics, nursery, self._invalidate)
        self._settings = Settings()
        self._frontend: Frontend | None = None  # none in INIT
        self._serving: trio.Event | None = None  # set when `serve` has returned; None: never begun
        self._stopping = False
        self._changing = trio.Lock()  # one change of state after the other
        self._starting = trio.CancelScope()
        self._api = trio.CancelScope()
        self._socket: SocketFile | None = None

    # ---- life ---------------------------------------------------------------------------------

    async def live(self) -> None:
        """Start, serve until something ends the daemon, and clear up."""
        try:
            with self._starting:
                await self._start_up()
            await self.ending.wait()
        finally:
            with trio.CancelScope(deadline=trio.current_time() + WIND_DOWN_S, shield=True):
                await self._wind_down()

    def end(self) -> None:
        """Make `live` return: on a signal, when the mount is gone, after the answer to PUT exit."""
        self.ending.set()
        self._starting.cancel()

    async def _start_up(self) -> None:
        options = self._options
        if options.upgrade:
            raise UnsupportedError("--upgrade: taking over a running daemon is not supported yet")
        if options.writable:
            raise UnsupportedError("--writable is not supported yet")
        await predecessor.clear(options.mountpoint, options.apisock, options.bootstrap)
        if options.bootstrap is not None:
            await self._mount_bootstrap(options.bootstrap)
        self._frontend = await self._open_frontend(
            Opening(options, self._vfs, next(iter(self._mounts), None), self._nursery)
        )
        await self._fire(Event.MOUNT)
        await self._fire(Event.START)
        if options.apisock is not None:
            self._socket = SocketFile(options.apisock)
            self._nursery.start_soon(self._serve_api, self._socket)
        self._mounts.allow_prefetch()
        self.running.set()
        log.info("running mountpoint=%s apisock=%s", options.mountpoint, options.apisock)

    async def _mount_bootstrap(self, bootstrap: Path) -> None:
        options = self._options
        if options.config is None:
            raise ConfigError("--bootstrap needs --config or --localfs-dir")
        check_prefetch_files(options.prefetch_files)
        await self._mounts.mount(
            options.virtual_mountpoint, bootstrap, options.config, options.prefetch_files
        )

    async def _wind_down(self) -> None:
        """Stop the API, serving and the mount, in this order; the mount stays after `depart`."""
        self._api.cancel()
        if self._socket is not None:
            self._socket.remove()
        try:
            for event in TERMINATION[self.state]:
                await self._fire(event)
        finally:
            if self._frontend is not None:
                self._frontend.close()
            await self._mounts.close()
        log.info("ended mountpoint=%s", self._options.mountpoint)

    async def _serve_api(self, socket: SocketFile) -> None:
        with self._api:
            await serve_api(socket.socket, Dispatcher(self).answer)

    # ---- state --------------------------------------------------------------------------------

    async def _fire(self, event: Event) -> None:
        """Let an event happen: act, then change state. Raises StateError, and what the action raises."""
        async with self._changing:
            following, action = step(self.state, event)
            await self._perform(action)
            log.debug("state %s, %s: %s", self.state, event, following)
            self.state = following

    async def _perform(self, action: Action) -> None:
        frontend = self._frontend
        if frontend is None:  # INIT: nothing is mounted that could be served or taken away
            return
        match action:
            case Action.SERVE:
                self._stopping = False
                await self._nursery.start(self._serve, frontend)
                await frontend.prime()
            case Action.QUIESCE:
                await self._stop_serving(frontend)
            case Action.UNMOUNT:
                frontend.unmount()
                await self._stop_serving(frontend)  # still serving only if starting was broken off

    async def _serve(
        self, frontend: Frontend, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        self._serving = trio.Event()
        try:
            await frontend.serve(task_status=task_status)
        finally:
            self._serving.set()
        if not self._stopping and frontend is self._frontend:
            log.info("the mount is gone, the daemon ends: mountpoint=%s", self._options.mountpoint)
            self.end()

    async def _stop_serving(self, frontend: Frontend) -> None:
        """Have requests under way answered, within STOP_GRACE_S, and no further ones; once."""
        if self._stopping:
            return
        self._stopping = True
        frontend.stop(grace_s=STOP_GRACE_S)
        if self._serving is not None:
            with trio.move_on_after(STOP_LIMIT_S):
                await self._serving.wait()

    async def _show_tree(self) -> None:
        """Put a frontend that can lose its image in the place of one that cannot. Files that are open are lost.

        Between the two nothing is mounted: for the kernel they are different mounts. If the second cannot
        be had, the daemon ends.
        """
        async with self._changing:
            old = self._frontend
            if old is None or not old.is_fixed or self.state is not State.RUNNING:
                return
            with trio.CancelScope(shield=True):
                old.unmount()
                await self._stop_serving(old)
                old.close()
                options = self._options._replace(frontend=FrontendKind.AUTO)
                opening = Opening(options, self._vfs, None, self._nursery)
                try:
                    self._frontend = await self._open_frontend(opening)
                    await self._perform(Action.SERVE)
                except NydusError:
                    self.end()
                    raise

    async def _invalidate(self, stale: Stale) -> None:
        if self._frontend is not None and self.state is State.RUNNING:
            await self._frontend.invalidate(stale)

    # ---- what the API asks for (api/controller.py) ----------------------------------------------

    def describe(self, *, with_backends: bool) -> Mapping[str, object]:
        """Return DaemonInfo."""
        return describe.daemon(self._options, self.state, self._mounts if with_backends else None)

    def events(self) -> Mapping[str, object]:
        """Return the last errors of the log."""
        return self._events.view()

    def describe_backend(self, mountpoint: str) -> Mapping[str, object]:
        """Return the superblock of one mount."""
        mount = self._mounts.get(_checked(mountpoint))
        return describe.superblock(mount.image.bootstrap.superblock.details)

    def inflight(self) -> Sequence[InFlightRequest]:
        """Return the FUSE requests that wait for an answer."""
        return [] if self._frontend is None else self._frontend.in_flight()

    def set_log_level(self, level: str) -> None:
        """Set what is logged from now on."""
        logs.set_level(level)
        log.info("log level set to %s", level.lower())

    def settings(self, mount_id: str | None) -> Mapping[str, str]:
        """Return what was set at run time."""
        return self._settings.view(mount_id)

    def change_settings(self, mount_id: str, changes: Mapping[str, str]) -> None:
        """Set all of `changes` or none; a credential reaches the mount of that id at once."""
        self._settings.check(changes)
        mount = self._mounts.find(mount_id)
        if mount is not None and REGISTRY_AUTH in changes:
            self._mounts.set_registry_auth(mount, Secret(changes[REGISTRY_AUTH]))
        self._settings.put(mount_id, changes)

    async def start(self) -> None:
        """Begin to serve a session that was taken over."""
        await self._fire(Event.START)

    async def depart(self) -> None:
        """Stop serving and leave the mount; the process must end now, come what may."""
        try:
            for event in DEPARTURE[self.state]:
                await self._fire(event)
        except BaseException:
            self.end()
            raise

    async def send_fd(self) -> None:
        """Refuse, without leaving the supervisor waiting."""
        if self.state in (State.INIT, State.STOPPED):
            raise NotReadyError
        await supervisor.decline(self._options.supervisor)

    async def take_over(self) -> None:
        """Refuse: in the wrong state, or because it is not built yet."""
        step(self.state, Event.TAKEOVER)
        raise TransferError("taking over a session is not supported yet")

    async def mount(self, mountpoint: str, request: MountRequest) -> None:
        """Attach an image."""
        config = _check_mount(mountpoint, request)
        try:
            await self._mounts.mount(
                mountpoint, Path(request.source), config, request.prefetch_files
            )
        except (ExistsError, UnsupportedError):
            raise
        except ConfigError as exc:
            raise MountRefusedError(MountFault.CONFIG, str(exc)) from exc
        except NydusError as exc:
            raise MountRefusedError(MountFault.IMAGE, str(exc)) from exc
        self._apply_settings(normalized(mountpoint))

    async def remount(self, mountpoint: str, request: MountRequest) -> None:
        """Refuse: not built yet."""
        _check_mount(mountpoint, request)
        self._mounts.get(mountpoint)
        raise UnsupportedError("remount is not supported yet: delete the mount and post it again")

    async def unmount(self, mountpoint: str) -> None:
        """Detach an image."""
        place = _checked(mountpoint)
        self._mounts.get(place)
        await self._show_tree()
        await self._mounts.unmount(place)
        self._settings.forget(place)

    def _apply_settings(self, mountpoint: str) -> None:
        """Give a new mount the credential that was put for it before it was there."""
        auth = self._settings.registry_auth(mountpoint)
        mount = self._mounts.find(mountpoint)
        if auth is None or mount is None:
            return
        try:
            self._mounts.set_registry_auth(mount, auth)
        except ConfigError as exc:
            log.warning("credential set at run time is not used: mount=%s %s", mountpoint, exc)


def _checked(mountpoint: str) -> str:
    """Return the mountpoint. Raises MountRefusedError if it is no absolute path."""
    try:
        return normalized(mountpoint)
    except ConfigError as exc:
        raise MountRefusedError(MountFault.MOUNTPOINT) from exc


def _check_mount(mountpoint: str, request: MountRequest) -> Config:
    """Check all of a mount request but the image; return its configuration."""
    if request.fs_type in PASS_THROUGH:
        raise UnsupportedError("pass-through mounts are not supported yet")
    if request.fs_type != "rafs":
        raise MountRefusedError(MountFault.FS_TYPE, request.fs_type)
    _checked(mountpoint)
    try:
        check_prefetch_files(request.prefetch_files)
    except ConfigError as exc:
        raise MountRefusedError(MountFault.PREFETCH_LIST) from exc
    try:
        return load_config(request.config, f"configuration of {mountpoint}")
    except ConfigError as exc:
        raise MountRefusedError(MountFault.CONFIG, str(exc)) from exc
