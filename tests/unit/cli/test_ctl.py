"""nydusctl: what it asks, what it shows, how it fails. The API is a double at the level of requests."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nydusd.cli import ctl, ctl_text
from nydusd.config.load import load
from nydusd.config.render import render
from nydusd.errors import BackendError
from tests.support.configs import REGISTRY_V1

DAEMON: dict[str, Any] = {
    "version": {
        "package_ver": "v1.2.3",
        "git_commit": "c0ffee",
        "build_time": "today",
        "profile": "release",
        "rustc": "x",
    },
    "id": "d1",
    "supervisor": None,
    "state": "RUNNING",
    "backend_collection": {
        "/a": {
            "backend_type": "Rafs",
            "mountpoint": "/a",
            "mounted_time": "2026-07-24 03:44:49.1 +00:00:00",
            "config": render(load(json.dumps(REGISTRY_V1), "c")),
        }
    },
}
FSSTATS = {
    "id": "/a",
    "data_read": 3 * 1024 * 1024,
    "block_count_read": [2, 0, 0, 0, 0, 0, 0, 1],
    "fop_hits": [3, 0, 0, 0, 2, 0, 0, 0, 0, 5, 1, 0, 0, 0, 0],
    "fop_errors": [0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    "read_latency_dist": [1, 1, 0, 0, 0, 0, 0, 0],
}
BACKEND = {
    "backend_type": "registry",
    "read_count": 4,
    "read_errors": 1,
    "read_amount_total": 4096,
    "read_cumulative_latency_millis_dist": [8, 0, 0, 0, 0, 0, 0, 0],
    "read_count_block_size_dist": [4, 0, 0, 0, 0, 0, 0, 0],
}
CACHE = {
    "underlying_files": ["aa.blob.data", "bb.blob.data"],
    "store_path": "/cache",
    "data_all_ready": True,
    "total": 7,
}


class Api:
    """Stands in for the requests of ctl.Client: answers by target, every request on record."""

    def __init__(self, answers: dict[str, object]) -> None:
        self.answers = answers
        self.requests: list[tuple[str, str, object]] = []

    def __call__(self, client: ctl.Client, method: str, target: str, body: object = None) -> bytes:
        self.requests.append((method, target, body))
        answer = self.answers.get(target, b"")
        if isinstance(answer, BackendError):
            raise answer
        return answer if isinstance(answer, bytes) else json.dumps(answer).encode()


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Api:
    double = Api(
        {
            "/api/v1/daemon": DAEMON,
            "/api/v1/metrics": FSSTATS,
            "/api/v1/metrics?id=%2Fa": FSSTATS,
            "/api/v1/metrics/backend": BACKEND,
            "/api/v1/metrics/blobcache": CACHE,
        }
    )
    monkeypatch.setattr(ctl.Client, "request", lambda *args, **kw: double(*args, **kw))
    return double


def run(line: str) -> int:
    return ctl.main(["-S", "sock", *line.split()])


def test_info_is_for_people(api: Api, capsys: pytest.CaptureFixture[str]):
    assert run("info") == 0
    shown = capsys.readouterr().out
    assert "state                  RUNNING\n" in shown
    assert "supervisor             -\n" in shown
    assert "backend              registry ghcr.io dragonflyoss/image-service/nginx\n" in shown
    assert "prefetch             on\n" in shown


def test_raw_is_the_answer_itself_and_json_the_same_indented(api: Api, capsys):
    assert run("info --raw") == 0
    assert capsys.readouterr().out == f"{json.dumps(DAEMON)}\n"
    assert ctl.main(["-r", "-S", "sock", "info"]) == 0, "before the subcommand too"
    assert json.loads(capsys.readouterr().out) == DAEMON
    assert run("info --json") == 0
    shown = capsys.readouterr().out
    assert json.loads(shown) == DAEMON
    assert len(shown.splitlines()) > 10


@pytest.mark.parametrize(
    ("category", "words"),
    [
        ("fsstats", ["3.0 MiB", ">=1M", "lookup", "read          2       1"]),
        ("backend", ["registry", "4.0 KiB", "2.0 ms"]),
        ("cache", ["/cache", "aa.blob.data", "bb.blob.data", "complete               yes"]),
    ],
)
def test_metrics_are_for_people(category: str, words: list[str], api: Api, capsys):
    assert run(f"metrics {category}") == 0
    shown = capsys.readouterr().out
    for word in words:
        assert word in shown


def test_a_daemon_cannot_move_the_cursor():
    mount = {
        "mountpoint": "/\x1b[2J",
        "config": {"backend": {"type": "x", "x": {"host": "\n\x07"}}},
    }
    shown = ctl_text.info({"backend_collection": {"/": mount}})
    assert "\x1b" not in shown
    assert "\x07" not in shown


def test_operations_that_never_happened_are_left_out():
    shown = ctl_text.fsstats(FSSTATS)
    assert "getattr" in shown
    assert "statfs" not in shown


def test_metrics_of_one_mount_are_asked_by_its_id(api: Api):
    assert run("metrics fsstats --id /a") == 0
    assert api.requests == [("GET", "/api/v1/metrics?id=%2Fa", None)]


def test_the_log_level_is_set(api: Api):
    assert run("set log-level debug") == 0
    assert api.requests == [("PUT", "/api/v1/daemon", {"log_level": "debug"})]


def test_mount_sends_the_configuration_as_text_and_an_absolute_source(
    api: Api, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    Path("c.json").write_text('{"a": 1}')
    assert run("mount -s boot -c c.json -m /a/b -t rafs") == 0
    body = {"fs_type": "rafs", "source": str(tmp_path / "boot"), "config": '{"a": 1}'}
    assert api.requests == [("POST", "/api/v1/mount?mountpoint=%2Fa%2Fb", body)]


def test_umount_names_the_mount(api: Api):
    assert run("umount -m /a&b") == 0
    assert api.requests == [("DELETE", "/api/v1/mount?mountpoint=%2Fa%26b", None)]


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("mount -s b -m /a", "Error: mount of an image needs --config\n"),
        (
            "mount -s b -c /no/such -m /a",
            "Error: /no/such: cannot be read: No such file or directory\n",
        ),
    ],
)
def test_a_faulty_mount_is_one_line(line: str, error: str, api: Api, capsys):
    assert run(line) == 1
    assert capsys.readouterr().err == error
    assert not api.requests


def test_an_answer_that_is_no_json_is_one_line(api: Api, capsys):
    api.answers["/api/v1/daemon"] = b"<html>"
    assert run("info") == 1
    assert capsys.readouterr().err == "Error: the answer to /api/v1/daemon is not JSON\n"


@pytest.mark.parametrize(
    "line",
    ["", "inf", "metrics", "metrics disk", "set log-level loud", "metrics cache -I 0", "umount"],
)
def test_usage_errors_end_with_status_2(line: str, capsys):
    with pytest.raises(SystemExit) as caught:
        run(line)
    assert caught.value.code == 2


def test_a_socket_is_needed():
    with pytest.raises(SystemExit) as caught:
        ctl.main(["info"])
    assert caught.value.code == 2


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(sorted({*DAEMON, *FSSTATS, *BACKEND, *CACHE, "config", "/a"})),
            inner,
            max_size=5,
        )
    ),
    max_leaves=20,
)


@given(values, st.sampled_from([ctl_text.info, ctl_text.backend, ctl_text.cache, ctl_text.fsstats]))
def test_any_body_makes_a_text(body: object, layout: ctl_text.Layout):
    text = layout(body)
    assert text.endswith("\n")
    assert all(line.isprintable() for line in text.splitlines())
