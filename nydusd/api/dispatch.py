"""Commands → calls on the daemon → answers. The one place where an error becomes an answer.

Raises   nothing but Cancelled: a failing call is an answer, and a bug is answered too.
Cancel   an answer that takes longer than the client waits is given up, the call with it.
"""

import json
import logging
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple, TypeVar

import trio

from nydusd.api.controller import Controller, MountRequest
from nydusd.api.errors import NoCounterError, RefusedError, bad_request, status_and_text
from nydusd.api.routes import Call, Command, parse
from nydusd.errors import NydusError, UnsupportedError
from nydusd.metrics import json_views

T = TypeVar("T")
log = logging.getLogger(__name__)

CALL_S: Final = 25.0  # below the 30 s after which the snapshotter gives up (spec api §9)
OK: Final = 200
NO_CONTENT: Final = 204
INTERNAL_ERROR: Final = 500


class Answer(NamedTuple):
    """One response: 204 has no body. `after` is to be called once it is sent, or cannot be."""

    status: int
    body: bytes = b""
    after: Callable[[], None] | None = None


def answer_json(status: int, value: object) -> Answer:
    """Return an answer with a compact JSON body."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    # A path that is not UTF-8 comes with lone surrogates; as `\udc80` they are valid JSON.
    return Answer(status, text.encode(errors="backslashreplace"))


def answer_error(status: int, message: str) -> Answer:
    """Return an answer with the error body of the API (spec api §2)."""
    return answer_json(status, {"code": "UNDEFINED", "message": message})


class Dispatcher:
    """Answers requests on behalf of one daemon. Many tasks may ask at once."""

    def __init__(self, controller: Controller, *, call_s: float = CALL_S) -> None:
        """`call_s`: how long a call may take."""
        self._controller = controller
        self._call_s = call_s

    async def answer(self, method: str, target: bytes, body: bytes) -> Answer:
        """Return what to send back for one request."""
        try:
            command = parse(method, target, body)
            with trio.move_on_after(self._call_s):
                return await self._answer_command(command)
            log.error("api call=%s gave up after seconds=%g", command.call.name, self._call_s)
            late = NydusError(f"no result within {self._call_s:g} seconds")
            return answer_error(*status_and_text(command.area, late))
        except RefusedError as refused:
            return answer_error(refused.status, refused.text)
        except Exception:  # one of the three boundaries (style §3.4)
            log.exception("bug: api method=%s target=%s", method, target)
            return answer_error(INTERNAL_ERROR, "internal error, see the daemon's log")

    async def _answer_command(self, command: Command) -> Answer:
        try:
            return await self._execute(command)
        except NydusError as exc:
            status, text = status_and_text(command.area, exc)
            # What was asked for wrongly the client is told, and need not act on; pollers do it all day.
            level = logging.DEBUG if status < INTERNAL_ERROR else logging.ERROR
            log.log(level, "api call=%s status=%d error=%s", command.call.name, status, exc)
            return answer_error(status, text)

    async def _execute(self, command: Command) -> Answer:
        reading = _READINGS.get(command.call)
        if reading is not None:
            return reading(self._controller, command)
        return await self._act(command)

    async def _act(self, command: Command) -> Answer:
        """Make a call that changes something; all of them answer 204."""
        daemon, query, body = self._controller, command.query, command.body
        after = None
        match command.call:
            case Call.SET_LOG_LEVEL:
                assert isinstance(body, str)
                daemon.set_log_level(body)
            case Call.PUT_SETTINGS:
                assert isinstance(body, dict)
                daemon.change_settings(query.get("id", ""), body)
            case Call.START:
                await daemon.start()
            case Call.EXIT:
                await daemon.depart()
                # Not before the client has the 204: end of file in its place aborts an upgrade.
                after = daemon.end
            case Call.SEND_FD:
                await daemon.send_fd()
            case Call.TAKE_OVER:
                await daemon.take_over()
            case Call.MOUNT:
                assert isinstance(body, MountRequest)
                await daemon.mount(query["mountpoint"], body)
            case Call.REMOUNT:
                assert isinstance(body, MountRequest)
                await daemon.remount(query["mountpoint"], body)
            case Call.UNMOUNT:
                await daemon.unmount(query["mountpoint"])
            case Call.DELETE_BLOBS if "domain_id" not in query:
                # Culling one blob in all domains is the kernel cache's affair: nothing to do here.
                if "blob_id" not in query:
                    raise bad_request()
            case _:  # the blob calls of v2: a FUSE daemon manages no blobs (spec api §5)
                raise UnsupportedError
        return Answer(NO_CONTENT, after=after)


def _describe(daemon: Controller, _: Command) -> Answer:
    return answer_json(OK, daemon.describe(with_backends=True))


def _describe_v2(daemon: Controller, _: Command) -> Answer:
    return answer_json(OK, daemon.describe(with_backends=False))


def _events(daemon: Controller, _: Command) -> Answer:
    return answer_json(OK, daemon.events())


def _backend(daemon: Controller, command: Command) -> Answer:
    return answer_json(OK, daemon.describe_backend(command.query["mountpoint"]))


def _settings(daemon: Controller, command: Command) -> Answer:
    return answer_json(OK, daemon.settings(command.query.get("id")))


def _fs_metrics(daemon: Controller, command: Command) -> Answer:
    stats = _found(daemon.metrics.fs(command.query.get("id")))
    return answer_json(OK, json_views.fs_view(stats))


def _files_metrics(daemon: Controller, command: Command) -> Answer:
    stats = _found(daemon.metrics.fs(command.query.get("id")))
    if command.query.get("latest") == "true":
        return answer_json(OK, json_views.take_latest_view(stats))
    return answer_json(OK, json_views.files_view(stats))


def _pattern_metrics(daemon: Controller, command: Command) -> Answer:
    stats = _found(daemon.metrics.fs(command.query.get("id")))
    return answer_json(OK, json_views.pattern_view(stats))


def _backend_metrics(daemon: Controller, command: Command) -> Answer:
    stats = _found(daemon.metrics.backend(command.query.get("id")))
    return answer_json(OK, json_views.backend_view(stats))


def _cache_metrics(daemon: Controller, command: Command) -> Answer:
    stats = _found(daemon.metrics.cache(command.query.get("id")))
    return answer_json(OK, json_views.cache_view(stats))


def _inflight(daemon: Controller, _: Command) -> Answer:
    requests = daemon.inflight()
    return answer_json(OK, json_views.inflight_view(requests)) if requests else Answer(NO_CONTENT)


def _found(stats: T | None) -> T:
    if stats is None:
        raise NoCounterError
    return stats


# Calls that only look: none of them waits, so a slow mount never delays them.
_READINGS: Final[Mapping[Call, Callable[[Controller, Command], Answer]]] = {
    Call.DESCRIBE: _describe,
    Call.DESCRIBE_V2: _describe_v2,
    Call.EVENTS: _events,
    Call.BACKEND: _backend,
    Call.GET_SETTINGS: _settings,
    Call.FS_METRICS: _fs_metrics,
    Call.FILES_METRICS: _files_metrics,
    Call.PATTERN_METRICS: _pattern_metrics,
    Call.BACKEND_METRICS: _backend_metrics,
    Call.CACHE_METRICS: _cache_metrics,
    Call.INFLIGHT: _inflight,
}
