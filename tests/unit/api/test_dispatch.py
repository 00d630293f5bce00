"""Commands → calls → answers, with a daemon that only records."""

import json
import logging
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from nydusd.api.controller import MountRequest
from nydusd.api.dispatch import CALL_S, Answer, Dispatcher
from nydusd.errors import NotFoundError, StateError, UnsupportedError
from nydusd.kernel.stats import FsStats, InFlightRequest
from nydusd.metrics.index import MountCounters
from nydusd.storage.stats import BackendStats, CacheStats
from tests.support.controllers import RecordingController


@pytest.fixture
def daemon() -> RecordingController:
    return RecordingController()


def mounted(mountpoint: str, config_id: str) -> MountCounters:
    return MountCounters(
        mountpoint,
        config_id,
        FsStats(mountpoint),
        BackendStats("localfs"),
        lambda: CacheStats("/cache"),
    )


async def ask(
    daemon: RecordingController, method: str, target: str, body: bytes = b""
) -> tuple[int, Any]:
    answer = await Dispatcher(daemon).answer(method, target.encode(), body)
    return answer.status, json.loads(answer.body) if answer.body else None


def failure(text: str) -> dict[str, str]:
    return {"code": "UNDEFINED", "message": text}


@pytest.mark.parametrize(
    ("method", "target", "body", "call"),
    [
        ("PUT", "/api/v1/daemon", b'{"log_level":"INFO"}', ("set_log_level", "INFO")),
        ("PUT", "/api/v2/daemon", b'{"log_level":"INFO"}', ("set_log_level", "INFO")),
        ("PUT", "/api/v1/daemon/start", b"", ("start",)),
        ("PUT", "/api/v1/daemon/exit", b"", ("depart",)),
        ("PUT", "/api/v1/daemon/fuse/sendfd", b"", ("send_fd",)),
        ("PUT", "/api/v1/daemon/fuse/takeover", b"", ("take_over",)),
        ("DELETE", "/api/v1/mount?mountpoint=%2Fa", b"", ("unmount", "/a")),
        ("PUT", "/api/v1/config", b'{"registry_auth":"x"}', ("change_settings", "", {"registry_auth": "x"})),
        ("POST", "/api/v1/config?id=/a", b'{"a":"x"}', ("change_settings", "/a", {"a": "x"})),
        (
            "POST",
            "/api/v1/mount?mountpoint=/a",
            b'{"source":"s","config":"c"}',
            ("mount", "/a", MountRequest("s", "c")),
        ),
        (
            "PUT",
            "/api/v1/mount?mountpoint=/a",
            b'{"source":"s","config":"c"}',
            ("remount", "/a", MountRequest("s", "c")),
        ),
    ],
)  # fmt: skip
async def test_a_call_that_changes_something_answers_204(
    daemon: RecordingController, method: str, target: str, body: bytes, call: tuple[object, ...]
) -> None:
    assert await ask(daemon, method, target, body) == (204, None)
    assert daemon.calls == [call]


@pytest.mark.parametrize(
    ("target", "call"),
    [
        ("/api/v1/daemon", ("describe", True)),
        ("/api/v2/daemon", ("describe", False)),
        ("/api/v1/daemon/events", ("events",)),
        ("/api/v1/daemon/backend?mountpoint=/a", ("describe_backend", "/a")),
        ("/api/v1/config", ("settings", None)),
        ("/api/v1/config?id=/", ("settings", "/")),
    ],
)
async def test_a_call_that_looks_answers_200_with_a_body(
    daemon: RecordingController, target: str, call: tuple[object, ...]
) -> None:
    status, body = await ask(daemon, "GET", target)
    assert status == 200
    assert isinstance(body, dict)
    assert daemon.calls == [call]


METRICS = {
    "/api/v1/metrics": "GlobalMetrics",
    "/api/v1/metrics/files": "FsFilesMetrics",
    "/api/v1/metrics/files?latest=true": "FsFilesMetrics",
    "/api/v1/metrics/pattern": "Pattern",
    "/api/v1/metrics/backend": "BackendMetrics",
    "/api/v1/metrics/blobcache": "BlobcacheMetrics",
}


@pytest.mark.parametrize("target", METRICS)
async def test_metrics_of_nothing_mounted_are_not_found(
    daemon: RecordingController, target: str
) -> None:
    assert await ask(daemon, "GET", target) == (
        404,
        failure(f"{METRICS[target]}(Metrics(Stats(NoCounter)))"),
    )


@pytest.mark.parametrize("target", METRICS)
async def test_metrics_of_the_only_mount_need_no_id(
    daemon: RecordingController, target: str
) -> None:
    daemon.metrics.add(mounted("/", "vec"))
    status, _ = await ask(daemon, "GET", target)
    assert status == 200


async def test_metrics_are_those_of_the_id(daemon: RecordingController) -> None:
    daemon.metrics.add(mounted("/a", "one"))
    daemon.metrics.add(mounted("/b", "two"))
    assert (await ask(daemon, "GET", "/api/v1/metrics"))[0] == 404
    assert (await ask(daemon, "GET", "/api/v1/metrics?id=%2Fb"))[1]["id"] == "/b"
    assert (await ask(daemon, "GET", "/api/v1/metrics/blobcache?id=two"))[0] == 200
    assert (await ask(daemon, "GET", "/api/v1/metrics/blobcache?id=/b"))[0] == 404


async def test_latest_files_are_told_once(daemon: RecordingController) -> None:
    counters = mounted("/", "vec")
    counters.fs.latest.update({5, 8, 9, 10})
    daemon.metrics.add(counters)
    target = "/api/v1/metrics/files?latest=true"
    assert await ask(daemon, "GET", target) == (200, [[5], [8, 10]])
    assert await ask(daemon, "GET", target) == (200, [])


async def test_only_the_word_true_asks_for_the_latest_files(daemon: RecordingController) -> None:
    daemon.metrics.add(mounted("/", "vec"))
    assert await ask(daemon, "GET", "/api/v1/metrics/files?latest=yes") == (200, {})


async def test_nothing_in_flight_has_no_body(daemon: RecordingController) -> None:
    assert await ask(daemon, "GET", "/api/v1/metrics/inflight") == (204, None)


async def test_requests_in_flight_are_listed(daemon: RecordingController) -> None:
    daemon.requests = [InFlightRequest(inode=1 << 56, opcode=15, unique=7, started_epoch_s=9)]
    assert await ask(daemon, "GET", "/api/v1/metrics/inflight") == (
        200,
        [{"inode": 1 << 56, "opcode": 15, "unique": 7, "timestamp_secs": 9}],
    )


@pytest.mark.parametrize(
    ("method", "target", "body", "status", "text"),
    [
        ("GET", "/api/v2/blobs", b"", 501, "GetBlobObjects(DaemonAbnormal(Unsupported))"),
        ("PUT", "/api/v2/blobs", b'{"type":"bootstrap","id":"x","config":{}}', 501,
         "CreateBlobObject(DaemonAbnormal(Unsupported))"),
        ("PUT", "/api/v2/blobs", b'{"type":"bootstrap","id":"x"}', 400, "BadRequest"),
        ("DELETE", "/api/v2/blobs?domain_id=d", b"", 501, "DeleteBlobObject(DaemonAbnormal(Unsupported))"),
        ("DELETE", "/api/v2/blobs", b"", 400, "BadRequest"),
        ("GET", "/nowhere", b"", 404, "NoRoute"),
    ],
)  # fmt: skip
async def test_calls_of_other_modes_are_refused(
    daemon: RecordingController,
    method: str,
    target: str,
    body: bytes,
    status: int,
    text: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert await ask(daemon, method, target, body) == (status, failure(text))
    assert daemon.calls == []


async def test_culling_one_blob_is_no_work_here(daemon: RecordingController) -> None:
    assert await ask(daemon, "DELETE", "/api/v2/blobs?blob_id=b") == (204, None)


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (StateError("Start", "INIT"), 400, 'Configure(DaemonAbnormal(UnexpectedEvent("Start")))'),
        (UnsupportedError("later"), 501, 'Configure(DaemonAbnormal(Unsupported("later")))'),
        (NotFoundError("x"), 500, 'Configure(DaemonAbnormal(Other("x")))'),
    ],
)
async def test_an_error_of_the_daemon_is_an_answer(
    daemon: RecordingController,
    error: Exception,
    status: int,
    text: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    daemon.fail("start", error)
    assert await ask(daemon, "PUT", "/api/v1/daemon/start") == (status, failure(text))
    assert bool(caplog.records) is (status >= 500)


async def test_a_bug_is_answered_logged_and_tells_the_client_nothing(
    daemon: RecordingController, caplog: pytest.LogCaptureFixture
) -> None:
    daemon.fail("start", ValueError("secret detail"))
    status, body = await ask(daemon, "PUT", "/api/v1/daemon/start")
    assert status == 500
    assert "secret" not in body["message"]
    assert "secret detail" in caplog.text


async def test_a_call_without_end_is_given_up_before_the_client_does(
    daemon: RecordingController, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async def never(_mountpoint: str) -> None:
        await trio.sleep_forever()

    daemon.unmount = never  # type: ignore[method-assign]
    status, body = await ask(daemon, "DELETE", "/api/v1/mount?mountpoint=/a")
    assert autojump_clock.current_time() == CALL_S < 30
    assert "gave up" in caplog.text
    assert (status, body["message"]) == (
        500,
        'Mount(MountFilesystem(Other("no result within 25 seconds")))',
    )


async def test_exit_ends_the_daemon_only_after_the_answer(daemon: RecordingController) -> None:
    answer = await Dispatcher(daemon).answer("PUT", b"/api/v1/daemon/exit", b"")
    assert (answer.status, daemon.ended) == (204, False)
    assert answer.after is not None
    answer.after()
    assert daemon.ended


async def test_a_refused_exit_does_not_end_the_daemon(daemon: RecordingController) -> None:
    daemon.fail("depart", StateError("Exit", "STOPPED"))
    answer = await Dispatcher(daemon).answer("PUT", b"/api/v1/daemon/exit", b"")
    assert (answer.status, answer.after) == (400, None)


async def test_bodies_are_compact_utf8(daemon: RecordingController) -> None:
    daemon.events = lambda: {"a": 1, "é": ["/\udc80"]}  # type: ignore[method-assign]
    answer = await Dispatcher(daemon).answer("GET", b"/api/v1/daemon/events", b"")
    assert answer == Answer(200, '{"a":1,"é":["/\\udc80"]}'.encode())


async def test_a_poller_that_asks_too_early_leaves_no_line_in_the_log(
    daemon: RecordingController, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    await ask(daemon, "GET", "/api/v1/metrics")
    assert caplog.records == []
