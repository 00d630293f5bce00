"""The log: lines as the reference writes them, and no log ever in the way of a read (spec cli-config A8)."""

import gzip
import logging
import os
import re
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from nydusd import logs
from nydusd.errors import ConfigError

LINE = re.compile(
    r"\[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{6} [+-]\d\d:\d\d\] (?P<level>[A-Z]+) (?P<rest>.*)\Z",
    re.DOTALL,
)


class MemorySink:
    """Lines in a list; `held` keeps the writer waiting, `fault` makes it fail."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.fault: OSError | None = None
        self.open = threading.Event()
        self.open.set()
        self.entered = threading.Event()

    def write(self, lines: bytes) -> None:
        self.entered.set()
        assert self.open.wait(30)
        if self.fault is not None:
            raise self.fault
        self.lines += lines.decode().splitlines()


@pytest.fixture
def root() -> Iterator[logging.Logger]:
    """The root logger, put back afterwards as it was."""
    logger = logging.getLogger()
    level, handlers, raising = logger.level, list(logger.handlers), logging.raiseExceptions
    quiet = {name: logging.getLogger(name).level for name in logs.QUIET_LIBRARIES}
    yield logger
    for handler in set(logger.handlers) - set(handlers):
        handler.close()
    logger.setLevel(level)
    logging.raiseExceptions = raising
    for name, was in quiet.items():
        logging.getLogger(name).setLevel(was)


def record(message: str, level: int = logging.INFO, *args: object) -> logging.LogRecord:
    path = os.path.join(logs.PACKAGE_PARENT, "nydusd", "api", "server.py")
    return logging.LogRecord("nydusd.api.server", level, path, 33, message, args, None)


def line(message: str, level: int = logging.INFO, *args: object) -> str:
    return logs.LineFormatter().format(record(message, level, *args))


def test_an_info_line_has_time_with_microseconds_and_offset_and_no_place():
    match = LINE.match(line("mounted %s", logging.INFO, "/mnt"))
    assert match is not None
    assert match.groups() == ("INFO", "mounted /mnt")


def test_the_time_is_local_time(monkeypatch: pytest.MonkeyPatch):
    import time

    monkeypatch.setenv("TZ", "XXX+03:30")
    time.tzset()
    try:
        entry = record("x")
        entry.created = 1_790_000_000.25
        assert logs.LineFormatter().format(entry) == "[2026-09-21 10:43:20.250000 -03:30] INFO x"
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize(
    ("level", "name"),
    [
        (logging.CRITICAL, "ERROR"),
        (logging.ERROR, "ERROR"),
        (logging.WARNING, "WARN"),
        (logging.DEBUG, "DEBUG"),
        (logs.TRACE, "TRACE"),
    ],
)
def test_other_levels_tell_where_they_come_from(level: int, name: str):
    match = LINE.match(line("text", level))
    assert match is not None
    assert match.groups() == (name, "[nydusd/api/server.py:33] text")


def test_text_of_others_cannot_forge_a_line_or_move_the_cursor():
    text = line("registry said %s", logging.INFO, "no\n[2026] ERROR forged\x1b[2J\u009b\r")
    assert text.count("\n") == 0
    assert text.endswith("registry said no\\n[2026] ERROR forged\\x1b[2J\\x9b\\r")


def test_a_long_message_is_cut():
    assert len(line("x" * 100_000)) < 5_000


def test_arguments_that_do_not_fit_still_make_a_line():
    assert line("%d files", logging.INFO, "many").endswith("%d files (arguments do not fit)")


def test_a_traceback_follows_its_line():
    entry = record("bug")
    entry.exc_info = (ValueError, ValueError("the reason"), None)
    text = logs.LineFormatter().format(entry)
    assert text.splitlines()[0].endswith("INFO bug")
    assert text.splitlines()[-1] == "ValueError: the reason"


@pytest.mark.parametrize(
    "text",
    [
        "Authorization: Basic dXNlcjpTRUNSRVQ=",
        "headers={'authorization': 'Bearer SECRET'}",
        "b'authorization': b'SECRET'",
        "sent Bearer eyJhbGciOiJSUzI1NiSECRET to the registry",
        "sent Basic dXNlcjpTRUNSRVQ= to the registry",
        "GET https://user:SECRET@host/v2/",
        "GET https://s3/blob?X-Amz-Signature=SECRET&x=1",
        "GET https://s3/blob?x=1&token=SECRET",
        "GET https://s3/blob?X-Amz-Security-Token=SECRET",
    ],
)
def test_what_looks_like_a_credential_is_blotted_out(text: str):
    shown = logs.blotted(text)
    assert "SECRET" not in shown
    assert "dXNlcjpTRUNSRVQ" not in shown
    assert "***" in shown


@pytest.mark.parametrize(
    "text",
    [
        "the registry asks for Basic authentication",
        'Bearer realm="https://auth.example.com/token",service="registry"',
        "Bearer token refused",
        "GET https://host/v2/repo/blobs/sha256:aa answered 206",
    ],
)
def test_words_about_credentials_stay(text: str):
    assert logs.blotted(text) == text


def test_colours_are_for_terminals_only():
    text = logs.LineFormatter(colour=True).format(record("x", logging.ERROR))
    assert "\x1b[1;31mERROR\x1b[0m" in text
    assert "\x1b" not in line("x", logging.ERROR)


def test_lines_come_out_in_order():
    sink = MemorySink()
    handler = logs.QueueHandler(sink, logging.Formatter())
    for number in range(1000):
        handler.emit(record("%d", logging.INFO, number))
    handler.close()
    assert sink.lines == [str(number) for number in range(1000)]


def test_flush_waits_for_what_was_logged_before():
    sink = MemorySink()
    handler = logs.QueueHandler(sink, logging.Formatter())
    handler.emit(record("x"))
    handler.flush()
    assert sink.lines == ["x"]
    handler.close()
    handler.close()
    handler.flush()


def test_a_stuck_log_costs_lines_and_confesses_them_but_never_waits():
    sink = MemorySink()
    sink.open.clear()
    handler = logs.QueueHandler(sink, logging.Formatter(), max_lines=10)
    handler.emit(record("first"))
    assert sink.entered.wait(30)
    for number in range(25):  # must return: nobody writes
        handler.emit(record("%d", logging.INFO, number))
    assert handler.lost_lines == 15
    sink.open.set()
    handler.close()
    assert sink.lines == ["first", "15 log lines were lost", *(str(number) for number in range(10))]


def test_a_full_disk_costs_lines_and_heals():
    sink = MemorySink()
    sink.fault = OSError(28, "No space left on device")
    handler = logs.QueueHandler(sink, logging.Formatter())
    for number in range(3):
        handler.emit(record("%d", logging.INFO, number))
        handler.flush()
    sink.fault = None
    handler.emit(record("after"))
    handler.close()
    assert sink.lines == ["3 log lines were lost", "after"]


def test_the_end_of_the_process_does_not_wait_for_a_stuck_log(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(logs, "FLUSH_LIMIT_S", 0.01)
    sink = MemorySink()
    sink.open.clear()
    handler = logs.QueueHandler(sink, logging.Formatter())
    handler.emit(record("x"))
    handler.flush()
    handler.close()
    assert sink.lines == []
    sink.open.set()


def test_a_log_file_is_appended_to_and_its_directory_made(tmp_path: Path, root: logging.Logger):
    for text in ("one", "two"):
        handler = logs.setup("info", str(tmp_path / "new" / "nydusd"))
        logging.getLogger("nydusd.test").info(text)
        handler.close()
    content = (tmp_path / "new" / "nydusd.log").read_text()
    assert [entry.rpartition(" ")[2] for entry in content.splitlines()] == ["one", "two"]
    assert handler not in root.handlers


@pytest.mark.parametrize(
    ("given", "meant"), [("a/x", "a/x.log"), ("a/x.txt", "a/x.txt"), ("x.y.log", "x.y.log")]
)
def test_a_log_file_without_extension_gets_one(given: str, meant: str):
    assert logs.log_path(given) == Path(meant)


@pytest.mark.parametrize("given", ["", "/", "."])
def test_a_log_file_needs_a_name(given: str):
    with pytest.raises(ConfigError, match="must name a file"):
        logs.log_path(given)


def test_a_log_file_that_cannot_be_opened_is_a_clear_error(tmp_path: Path, root: logging.Logger):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"log file .*/file/x\.log: cannot be opened: "):
        logs.setup("info", str(tmp_path / "file" / "x"))


def test_libraries_that_quote_headers_are_kept_quiet(tmp_path: Path, root: logging.Logger):
    handler = logs.setup("trace", str(tmp_path / "x"))
    logging.getLogger("httpcore.http11").debug("send_request_headers Authorization")
    logging.getLogger("nydusd.x").debug("ours")
    handler.close()
    assert (tmp_path / "x.log").read_text().endswith("ours\n")
    assert "Authorization" not in (tmp_path / "x.log").read_text()


def test_the_level_can_change_at_run_time(root: logging.Logger):
    logs.set_level("off")
    assert not logging.getLogger("nydusd").isEnabledFor(logging.CRITICAL)
    logs.set_level("TRACE")
    assert logging.getLogger("nydusd").isEnabledFor(logs.TRACE)
    with pytest.raises(ConfigError, match="log level is 'loud', must be one of off, error"):
        logs.set_level("loud")


def sizes(directory: Path) -> dict[str, int]:
    return {entry.name: entry.stat().st_size for entry in directory.iterdir()}


def test_a_log_that_grew_is_set_aside_and_compressed(tmp_path: Path):
    sink = logs.RotatingFile(tmp_path / "nydusd.log", 100)
    sink.write(b"a" * 99 + b"\n")
    assert sizes(tmp_path) == {"nydusd_rCURRENT.log": 100}
    sink.write(b"b\n")
    assert sink._compressing is not None
    sink._compressing.join(30)
    sink.write(b"c\n")
    (old,) = tmp_path.glob("*.gz")
    assert re.fullmatch(r"nydusd_r\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d\.log\.gz", old.name)
    assert gzip.decompress(old.read_bytes()) == b"a" * 99 + b"\nb\n"
    assert (tmp_path / "nydusd_rCURRENT.log").read_bytes() == b"c\n"
    assert len(sizes(tmp_path)) == 2


def test_a_live_log_of_a_former_run_counts_towards_its_size(tmp_path: Path):
    (tmp_path / "x_rCURRENT.log").write_bytes(b"a" * 100)
    sink = logs.RotatingFile(tmp_path / "x.log", 100)
    sink.write(b"b")
    assert sink._compressing is not None
    sink._compressing.join(30)
    (old,) = tmp_path.glob("*.gz")
    assert gzip.decompress(old.read_bytes()) == b"a" * 100 + b"b"


def test_rotations_within_a_second_do_not_overwrite_each_other(tmp_path: Path):
    sink = logs.RotatingFile(tmp_path / "x.log", 1)
    for number in range(5):
        sink.write(b"%d\n" % number)
        assert sink._compressing is not None
        sink._compressing.join(30)
    contents = sorted(gzip.decompress(old.read_bytes()) for old in tmp_path.glob("*.gz"))
    assert contents == [b"%d\n" % number for number in range(5)]


def test_only_the_newest_ten_are_kept_and_leftovers_are_compressed(tmp_path: Path):
    for month in range(1, 13):
        (tmp_path / f"x_r2025-{month:02}-01_00-00-00.log.gz").touch()
    (tmp_path / "x_r2026-01-01_00-00-00.log").write_bytes(b"left by a crash")
    (tmp_path / "other_r2025-01-01_00-00-00.log.gz").touch()
    (tmp_path / "x_rCURRENT.log").touch()
    logs.compress_rotated(tmp_path / "x.log")
    kept = sorted(entry.name for entry in tmp_path.glob("x_r2*"))
    assert kept == [
        *(f"x_r2025-{month:02}-01_00-00-00.log.gz" for month in range(4, 13)),
        "x_r2026-01-01_00-00-00.log.gz",
    ]
    assert (tmp_path / "other_r2025-01-01_00-00-00.log.gz").exists()
    assert (tmp_path / "x_rCURRENT.log").exists()


def test_a_log_directory_that_vanished_breaks_nothing(tmp_path: Path):
    directory = tmp_path / "logs"
    directory.mkdir()
    sink = logs.RotatingFile(directory / "x.log", 10)
    (directory / "x_rCURRENT.log").unlink()
    directory.rmdir()
    handler = logs.QueueHandler(sink, logging.Formatter())
    for _ in range(5):
        handler.emit(record("a line that is longer than ten bytes"))
        handler.flush()
    handler.close()
    assert handler.lost_lines == 0, "they went to the file that was open"


def test_bugs_in_threads_and_in_main_are_logged_not_printed(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str], monkeypatch
):
    for owner, name in ((sys, "excepthook"), (sys, "unraisablehook"), (threading, "excepthook")):
        monkeypatch.setattr(owner, name, getattr(owner, name))
    logs.log_strays()
    error = ValueError("details")
    sys.excepthook(ValueError, error, None)
    threading.excepthook(threading.ExceptHookArgs((ValueError, error, None, None)))
    assert capfd.readouterr().err == "Error: internal error ValueError, the log has more\n"
    assert [entry.getMessage() for entry in caplog.records] == [
        "bug: the process ends",
        "bug in thread None",
    ]
