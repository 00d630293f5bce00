"""The daemon's life and its answers, without a kernel, a socket or a blob (spec api §6, cli-config B10)."""

import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from nydusd.api.dispatch import Dispatcher
from nydusd.config.model import Secret
from nydusd.daemon.life import WIND_DOWN_S
from nydusd.daemon.states import State
from nydusd.errors import ConfigError, FormatError, NydusError, UnsupportedError
from nydusd.kernel.mount import MountError
from nydusd.kernel.stats import InFlightRequest
from tests.support.daemons import MemoryPool, Stage, config, config_text, stage

BOOT = "/image.boot"


def mount_body(source: str = BOOT, **changes: object) -> bytes:
    body = {"fs_type": "rafs", "source": source, "config": config_text("/a"), **changes}
    return json.dumps(body).encode()


async def call(made: Stage, method: str, target: str, body: bytes | None = None) -> tuple[int, Any]:
    answer = await Dispatcher(made.daemon).answer(method, f"/api/v1{target}".encode(), body or b"")
    if answer.after is not None:
        answer.after()
    return answer.status, json.loads(answer.body) if answer.body else None


async def message(made: Stage, method: str, target: str, body: bytes | None = None) -> str:
    _, answer = await call(made, method, target, body)
    assert set(answer) == {"code", "message"}
    assert answer["code"] == "UNDEFINED"
    return str(answer["message"])


@asynccontextmanager
async def stage_in(state: State, **changes: Any) -> AsyncIterator[Stage]:
    """A daemon in INIT (nothing begun), READY (as after a takeover) or RUNNING."""
    async with stage(MemoryPool(BOOT), begin=state is State.RUNNING, **changes) as made:
        if state is State.READY:
            made.daemon.state = State.READY
            made.daemon._frontend = made.frontend
        assert made.daemon.state is state
        yield made


# ---- start -------------------------------------------------------------------------------------


async def test_the_image_is_mounted_before_the_session_and_served_before_it_is_running() -> None:
    pool = MemoryPool(BOOT)
    pool.gate = trio.Event()
    async with stage(pool, bootstrap=Path(BOOT), config=config()) as made:
        assert made.mounted_at == []
        pool.gate.set()
        made.frontend.prime_gate = trio.Event()
        await trio.testing.wait_all_tasks_blocked()
        assert made.mounted_at == [made.options.mountpoint]
        assert made.frontend.calls == ["serve", "prime"]
        assert made.daemon.state is State.READY
        made.frontend.prime_gate.set()
        await trio.testing.wait_all_tasks_blocked()
        assert made.daemon.state is State.RUNNING
        assert list((await call(made, "GET", "/daemon"))[1]["backend_collection"]) == ["/"]


async def test_without_a_bootstrap_the_daemon_runs_with_nothing_mounted() -> None:
    async with stage() as made:
        assert made.daemon.state is State.RUNNING
        assert (await call(made, "GET", "/daemon"))[1]["backend_collection"] == {}


async def test_a_bootstrap_can_appear_below_the_root() -> None:
    async with stage(
        MemoryPool(BOOT), bootstrap=Path(BOOT), config=config(), virtual_mountpoint="/deep/in"
    ) as made:
        assert list((await call(made, "GET", "/daemon"))[1]["backend_collection"]) == ["/deep/in"]


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"upgrade": True}, UnsupportedError),
        ({"writable": True}, UnsupportedError),
        ({"bootstrap": Path(BOOT)}, ConfigError),
        ({"bootstrap": Path(BOOT), "config": config(), "prefetch_files": ("bin",)}, ConfigError),
    ],
)
async def test_what_cannot_be_done_is_refused_before_anything_is_mounted(
    changes: dict[str, Any], error: type[NydusError]
) -> None:
    async with stage(MemoryPool(BOOT), **changes) as made:
        assert isinstance(made.error, error)
        assert made.mounted_at == []


async def test_an_image_that_cannot_be_opened_ends_the_start_with_nothing_mounted() -> None:
    pool = MemoryPool(BOOT)
    pool.failures.append(FormatError("magic", 7, "is none"))
    async with stage(pool, bootstrap=Path(BOOT), config=config()) as made:
        assert str(made.error) == "magic is 7, is none"
        assert made.mounted_at == []


async def test_a_session_that_does_not_begin_is_unmounted_and_the_image_given_back() -> None:
    pool = MemoryPool(BOOT)
    async with stage(pool, begin=False, bootstrap=Path(BOOT), config=config()) as made:
        made.frontend.unprimed = MountError("no answer")
        await made.live()
        assert str(made.error) == "no answer"
        assert made.frontend.calls == ["serve", "prime", "unmount", "stop", "close"]
        assert pool.images[BOOT].closed == 1


# ---- end ---------------------------------------------------------------------------------------


async def test_a_signal_stops_serving_then_unmounts_then_closes() -> None:
    pool = MemoryPool(BOOT)
    async with stage(pool, bootstrap=Path(BOOT), config=config()) as made:
        made.daemon.end()
        await made.ended.wait()
        assert made.frontend.calls[2:] == ["stop", "unmount", "close"]
        assert made.daemon.state is State.STOPPED
        assert pool.images[BOOT].closed == 1


async def test_a_signal_during_a_slow_start_ends_it() -> None:
    pool = MemoryPool(BOOT)
    pool.gate = trio.Event()
    async with stage(pool, bootstrap=Path(BOOT), config=config()) as made:
        made.daemon.end()
        await made.ended.wait()
        assert made.error is None
        assert made.mounted_at == []


async def test_when_the_mount_is_taken_away_the_daemon_ends_by_itself() -> None:
    async with stage() as made:
        made.frontend.go_away()
        await made.ended.wait()
        assert made.error is None
        assert made.frontend.calls[-1] == "close"


async def test_a_session_that_breaks_ends_the_daemon_with_the_reason() -> None:
    with pytest.RaisesGroup(MountError):
        async with stage() as made:
            made.frontend.go_away(MountError("reading requests failed"))
            await made.ended.wait()


async def test_exit_keeps_the_mount_and_ends_after_the_answer() -> None:
    async with stage() as made:
        answer = await Dispatcher(made.daemon).answer("PUT", b"/api/v1/daemon/exit", b"")
        assert answer.status == 204
        assert made.daemon.state is State.STOPPED
        assert not made.daemon.ending.is_set()
        assert answer.after is not None
        answer.after()
        await made.ended.wait()
        assert "unmount" not in made.frontend.calls
        assert made.frontend.calls[-1] == "close"


async def test_a_request_that_is_never_answered_holds_the_end_up_only_so_long(
    autojump_clock: trio.testing.MockClock,
) -> None:
    pool = MemoryPool(BOOT)
    async with stage(pool, bootstrap=Path(BOOT), config=config()) as made:
        made.frontend.stop = lambda *, grace_s: None  # type: ignore[method-assign,assignment]
        begun = autojump_clock.current_time()
        made.daemon.end()
        await made.ended.wait()
        assert autojump_clock.current_time() - begun <= WIND_DOWN_S
        assert made.frontend.calls[-2:] == ["unmount", "close"]
        assert made.daemon.state is State.STOPPED
        assert pool.images[BOOT].closed == 1


async def test_an_exit_that_is_broken_off_still_ends_the_process() -> None:
    async with stage() as made:
        made.frontend.stop = lambda *, grace_s: None  # type: ignore[method-assign,assignment]
        with trio.move_on_after(0):
            await made.daemon.depart()
        made.frontend.over.set()
        await made.ended.wait()


# ---- every call in every state (spec api §6) -----------------------------------------------------

NO_START = 'Configure(DaemonAbnormal(UnexpectedEvent("Start")))'
NO_TAKEOVER = 'Upgrade(DaemonAbnormal(UnexpectedEvent("Takeover")))'
STATES = [State.INIT, State.READY, State.RUNNING]


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize(
    ("target", "status"),
    [
        ("/daemon", 200),
        ("/daemon/events", 200),
        ("/config", 200),
        ("/metrics", 404),
        ("/metrics/inflight", 204),
    ],
)
async def test_looking_works_in_every_state(state: State, target: str, status: int) -> None:
    async with stage_in(state) as made:
        assert (await call(made, "GET", target))[0] == status
        assert (await call(made, "GET", "/daemon"))[1]["state"] == state.value


@pytest.mark.parametrize("state", STATES)
async def test_mounting_works_in_every_state(state: State) -> None:
    async with stage_in(state) as made:
        assert await call(made, "POST", "/mount?mountpoint=/a", mount_body()) == (204, None)
        assert (await call(made, "GET", "/metrics?id=/a"))[0] == 200
        assert await call(made, "DELETE", "/mount?mountpoint=/a") == (204, None)


async def test_start_serves_a_session_that_is_ready() -> None:
    async with stage_in(State.READY) as made:
        assert await call(made, "PUT", "/daemon/start") == (204, None)
        assert made.daemon.state is State.RUNNING
        assert made.frontend.calls == ["serve", "prime"]
        made.frontend.over.set()


async def test_of_two_starts_at_a_time_one_is_refused() -> None:
    async with stage_in(State.READY) as made, trio.open_nursery() as nursery:
        made.frontend.prime_gate = trio.Event()
        nursery.start_soon(made.daemon.start)
        await trio.testing.wait_all_tasks_blocked()
        answers: list[str] = []

        async def second() -> None:
            answers.append(await message(made, "PUT", "/daemon/start"))

        nursery.start_soon(second)
        await trio.testing.wait_all_tasks_blocked()
        made.frontend.prime_gate.set()
        await trio.testing.wait_all_tasks_blocked()
        assert answers == [NO_START]
        assert made.frontend.calls.count("serve") == 1
        made.frontend.over.set()


@pytest.mark.parametrize("state", [State.INIT, State.RUNNING])
async def test_start_is_refused_unless_ready(state: State) -> None:
    async with stage_in(state) as made:
        assert (await call(made, "PUT", "/daemon/start"))[0] == 400
        assert await message(made, "PUT", "/daemon/start") == NO_START
        assert made.daemon.state is state


@pytest.mark.parametrize("state", [State.READY, State.RUNNING])
async def test_takeover_is_refused_unless_in_init(state: State) -> None:
    async with stage_in(state) as made:
        assert (await call(made, "PUT", "/daemon/fuse/takeover"))[0] == 400
        assert await message(made, "PUT", "/daemon/fuse/takeover") == NO_TAKEOVER


async def test_takeover_in_init_says_that_it_is_not_built(caplog: pytest.LogCaptureFixture) -> None:
    async with stage_in(State.INIT) as made:
        status, answer = await call(made, "PUT", "/daemon/fuse/takeover")
        assert status == 500
        assert "UpgradeManager(" in answer["message"]
        assert "not supported yet" in answer["message"]


async def test_sendfd_in_init_is_too_early(caplog: pytest.LogCaptureFixture) -> None:
    async with stage_in(State.INIT) as made:
        status, answer = await call(made, "PUT", "/daemon/fuse/sendfd")
        assert (status, answer["message"]) == (503, "Upgrade(DaemonAbnormal(NotReady))")


@pytest.mark.parametrize("state", [State.READY, State.RUNNING])
async def test_sendfd_without_a_supervisor_is_refused(
    state: State, caplog: pytest.LogCaptureFixture
) -> None:
    async with stage_in(state) as made:
        status, answer = await call(made, "PUT", "/daemon/fuse/sendfd")
        assert status == 500
        assert "without --supervisor" in answer["message"]


@pytest.mark.parametrize("state", STATES)
async def test_exit_works_in_every_state(state: State) -> None:
    async with stage_in(state) as made:
        assert await call(made, "PUT", "/daemon/exit") == (204, None)
        assert made.daemon.state is State.STOPPED
        assert made.daemon.ending.is_set()
        assert "unmount" not in made.frontend.calls


# ---- answers -----------------------------------------------------------------------------------


async def test_daemon_info_names_what_the_options_said() -> None:
    async with stage(id="daemon-1", supervisor=Path("/run/supervisor.sock")) as made:
        _, info = await call(made, "GET", "/daemon")
        assert (info["id"], info["supervisor"]) == ("daemon-1", "/run/supervisor.sock")
        assert set(info["version"]) == {
            "package_ver",
            "git_commit",
            "build_time",
            "profile",
            "rustc",
        }


async def test_a_slow_mount_delays_no_other_call() -> None:
    pool = MemoryPool(BOOT)
    async with stage(pool) as made, trio.open_nursery() as nursery:
        pool.gate = trio.Event()
        nursery.start_soon(call, made, "POST", "/mount?mountpoint=/slow", mount_body())
        await trio.testing.wait_all_tasks_blocked()
        assert (await call(made, "GET", "/daemon"))[1]["backend_collection"] == {}
        pool.gate.set()
        await trio.testing.wait_all_tasks_blocked()
        assert list((await call(made, "GET", "/daemon"))[1]["backend_collection"]) == ["/slow"]


async def test_a_mount_that_never_ends_is_given_up_and_leaves_the_place_free(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    pool = MemoryPool(BOOT)
    async with stage(pool) as made:
        pool.gate = trio.Event()
        status, _ = await call(made, "POST", "/mount?mountpoint=/a", mount_body())
        assert status == 500
        assert autojump_clock.current_time() < 30
        pool.gate.set()
        assert await call(made, "POST", "/mount?mountpoint=/a", mount_body()) == (204, None)


@pytest.mark.parametrize(
    ("target", "changes", "status", "text"),
    [
        ("rel", {}, 500, 'PathWalk(Os { code: 22, kind: InvalidInput, message: \\"Invalid argument\\" })'),
        ("/a", {"fs_type": "nope"}, 500, "but nope was specified`"),
        ("/a", {"fs_type": ""}, 500, "but  was specified`"),
        ("/a", {"fs_type": "passthrough_fs"}, 501, "pass-through mounts are not supported yet"),
        ("/a", {"prefetch_files": ["bin"]}, 500, "invalid prefetch file list"),
        ("/a", {"config": '{"bad": 1}'}, 500, "RAFS failed to handle request, Failed to load config: "),
        ("/a", {"source": "/missing"}, 500, "RAFS failed to handle request, Failed to fill superBlock: "),
    ],
)  # fmt: skip
async def test_a_mount_request_that_is_wrong_says_what_is_wrong(
    target: str,
    changes: dict[str, object],
    status: int,
    text: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with stage(MemoryPool(BOOT)) as made:
        answered, answer = await call(
            made, "POST", f"/mount?mountpoint={target}", mount_body(**changes)
        )
        assert answered == status
        assert text in answer["message"]
        assert answer["message"].startswith("Mount(")
        assert (await call(made, "GET", "/daemon"))[1]["backend_collection"] == {}


async def test_remount_needs_a_mount_and_is_not_built(caplog: pytest.LogCaptureFixture) -> None:
    async with stage(MemoryPool(BOOT)) as made:
        target = "/mount?mountpoint=/a"
        assert (await call(made, "PUT", target, mount_body()))[0] == 500
        await call(made, "POST", target, mount_body())
        assert (await call(made, "PUT", target, mount_body()))[0] == 501


async def test_the_kernel_is_told_of_api_mounts_while_the_session_runs() -> None:
    async with stage(MemoryPool(BOOT)) as made:
        await call(made, "POST", "/mount?mountpoint=/a", mount_body())
        await call(made, "DELETE", "/mount?mountpoint=/a")
        assert len(made.frontend.stale) == 2


async def test_requests_in_flight_are_those_of_the_session() -> None:
    async with stage() as made:
        made.frontend.requests = [InFlightRequest(5, 15, 7, 9)]
        assert (await call(made, "GET", "/metrics/inflight"))[1][0]["unique"] == 7


async def test_the_log_level_is_the_root_logger_s(caplog: pytest.LogCaptureFixture) -> None:
    root = logging.getLogger()
    before = root.level
    async with stage() as made:
        try:
            assert (await call(made, "PUT", "/daemon", b'{"log_level":"ERROR"}'))[0] == 204
            assert root.level == logging.ERROR
            refused = await message(made, "PUT", "/daemon", b'{"log_level":"loud"}')
            assert refused == "Configure(ResponsePayloadType)"
            assert root.level == logging.ERROR
        finally:
            root.setLevel(before)


async def test_errors_of_the_log_are_events() -> None:
    async with stage() as made:
        made.ring.handle(logging.LogRecord("x", logging.ERROR, "", 1, "disk gone", (), None))
        _, events = await call(made, "GET", "/daemon/events")
        assert events["total_errors"] == 1
        assert events["errors"][0].endswith(" GMT - disk gone")


AUTH = b'{"registry_auth":"dXNlcjpwYXNz"}'


async def test_a_credential_reaches_the_backend_of_its_mount() -> None:
    pool = MemoryPool(BOOT)
    async with stage(pool) as made:
        await call(made, "POST", "/mount?mountpoint=/a", mount_body())
        assert await call(made, "PUT", "/config?id=/a", AUTH) == (204, None)
        assert [auth for _, auth in pool.credentials] == [Secret("dXNlcjpwYXNz")]
        assert (await call(made, "GET", "/config?id=/a"))[1] == {"registry_auth": "dXNlcjpwYXNz"}


async def test_a_credential_does_not_outlive_its_mount() -> None:
    async with stage(MemoryPool(BOOT)) as made:
        await call(made, "POST", "/mount?mountpoint=/a", mount_body())
        await call(made, "PUT", "/config?id=/a", AUTH)
        await call(made, "DELETE", "/mount?mountpoint=/a")
        assert (await call(made, "GET", "/config"))[1] == {}


async def test_a_credential_put_early_waits_for_its_mount() -> None:
    pool = MemoryPool(BOOT)
    async with stage(pool) as made:
        await call(made, "POST", "/config?id=/a", AUTH)
        assert pool.credentials == []
        await call(made, "POST", "/mount?mountpoint=/a", mount_body())
        assert [auth for _, auth in pool.credentials] == [Secret("dXNlcjpwYXNz")]


async def test_a_credential_that_the_backend_refuses_is_not_kept(
    caplog: pytest.LogCaptureFixture,
) -> None:
    pool = MemoryPool(BOOT)
    async with stage(pool) as made:
        await call(made, "POST", "/mount?mountpoint=/a", mount_body())
        pool.refuses_credentials = ConfigError("registry.auth is not base64 of UTF-8 text")
        assert await message(made, "PUT", "/config?id=/a", AUTH) == "Configure(ResponsePayloadType)"
        assert (await call(made, "GET", "/config"))[1] == {}


async def test_a_credential_of_a_configuration_is_never_shown() -> None:
    text = json.dumps(
        {
            "device": {
                "id": "/a",
                "backend": {
                    "type": "registry",
                    "config": {"host": "h", "repo": "r", "auth": "dXNlcjpwYXNz"},
                },
                "cache": {"type": "blobcache", "config": {"work_dir": "/c"}},
            },
            "mode": "direct",
        }
    )
    async with stage(MemoryPool(BOOT)) as made:
        assert (await call(made, "POST", "/mount?mountpoint=/a", mount_body(config=text)))[0] == 204
        for target in ("/daemon", "/config", "/config?id=/a", "/daemon/events"):
            assert "dXNlcjpwYXNz" not in json.dumps((await call(made, "GET", target))[1])


# ---- a frontend that shows one image for good ----------------------------------------------------


async def test_deleting_the_only_image_of_a_fixed_frontend_leaves_one_that_takes_others() -> None:
    pool = MemoryPool(BOOT, "/other.boot")
    async with stage(pool, begin=False, bootstrap=Path(BOOT), config=config()) as made:
        first = made.frontend
        first.is_fixed = True
        async with trio.open_nursery() as nursery:
            nursery.start_soon(made.live)
            await trio.testing.wait_all_tasks_blocked()
            assert (await call(made, "DELETE", "/mount?mountpoint=/"))[0] == 204
            assert first.calls == ["serve", "prime", "unmount", "stop", "close"]
            assert made.frontend is not first
            assert made.frontend.calls == ["serve", "prime"]
            assert made.daemon.state is State.RUNNING
            body = mount_body("/other.boot")
            assert (await call(made, "POST", "/mount?mountpoint=/", body))[0] == 204
            assert pool.images[BOOT].closed == 1
            made.daemon.end()


async def test_a_mount_that_is_not_there_does_not_cost_the_fixed_frontend(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with stage(MemoryPool(BOOT), bootstrap=Path(BOOT), config=config()) as made:
        made.frontend.is_fixed = True
        assert (await call(made, "DELETE", "/mount?mountpoint=/elsewhere"))[0] == 500
        assert "nothing is mounted at /elsewhere" in caplog.text
        assert made.frontend.calls == ["serve", "prime"]
