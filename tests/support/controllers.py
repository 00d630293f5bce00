"""A daemon as the API sees it, without a daemon: answers are set by the test, calls are recorded."""

from collections.abc import Mapping, Sequence

from nydusd.api.controller import MountRequest
from nydusd.errors import NydusError
from nydusd.kernel.stats import InFlightRequest
from nydusd.metrics.index import MetricsIndex


class RecordingController:
    """Notes each call by name and arguments; `failures[name]` is raised instead of answering."""

    def __init__(self) -> None:
        self.metrics = MetricsIndex()
        self.calls: list[tuple[object, ...]] = []
        self.failures: dict[str, Exception] = {}
        self.requests: list[InFlightRequest] = []
        self.ended = False

    def _note(self, name: str, *arguments: object) -> None:
        self.calls.append((name, *arguments))
        if name in self.failures:
            raise self.failures[name]

    def fail(self, name: str, error: NydusError | Exception) -> None:
        self.failures[name] = error

    def describe(self, *, with_backends: bool) -> Mapping[str, object]:
        self._note("describe", with_backends)
        return {"state": "RUNNING"}

    def events(self) -> Mapping[str, object]:
        self._note("events")
        return {"errors": []}

    def describe_backend(self, mountpoint: str) -> Mapping[str, object]:
        self._note("describe_backend", mountpoint)
        return {"magic": 1}

    def inflight(self) -> Sequence[InFlightRequest]:
        return self.requests

    def set_log_level(self, level: str) -> None:
        self._note("set_log_level", level)

    def settings(self, mount_id: str | None) -> Mapping[str, str]:
        self._note("settings", mount_id)
        return {}

    def change_settings(self, mount_id: str, changes: Mapping[str, str]) -> None:
        self._note("change_settings", mount_id, dict(changes))

    async def start(self) -> None:
        self._note("start")

    async def depart(self) -> None:
        self._note("depart")

    def end(self) -> None:
        self.ended = True

    async def send_fd(self) -> None:
        self._note("send_fd")

    async def take_over(self) -> None:
        self._note("take_over")

    async def mount(self, mountpoint: str, request: MountRequest) -> None:
        self._note("mount", mountpoint, request)

    async def remount(self, mountpoint: str, request: MountRequest) -> None:
        self._note("remount", mountpoint, request)

    async def unmount(self, mountpoint: str) -> None:
        self._note("unmount", mountpoint)
