"""Log set-up: what a line looks like, where it goes, and that it never holds up a read (spec cli-config A8).

Owns     the root logger's one handler: a bounded queue and the thread that writes it out.
Callers  `cli` sets up, `api` changes the level; every room just calls `logging.getLogger(__name__)`.
Raises   ConfigError at set-up only. Later faults (a full disk, a closed pipe, a stuck terminal) cost
         lines, which are counted and confessed as soon as a line can be written again.
Secrets  no room logs any; what looks like one nevertheless is blotted out here, as the last resort.
"""

import contextlib
import logging
import os
import re
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import Final, Protocol

from nydusd.errors import ConfigError
from nydusd.units import KIB, MIB

log = logging.getLogger(__name__)

TRACE: Final = 5
OFF: Final = logging.CRITICAL + 10

LEVELS: Final[Mapping[str, int]] = {
    "off": OFF,
    "error": logging.ERROR,
    "warn": logging.WARNING,
    "info": logging.INFO,
    "debug": logging.DEBUG,
    "trace": TRACE,
}
SHOWN_LEVELS: Final = (
    (logging.ERROR, "ERROR", "\x1b[1;31m"),
    (logging.WARNING, "WARN", "\x1b[1;33m"),
    (logging.INFO, "INFO", ""),
    (logging.DEBUG, "DEBUG", "\x1b[36m"),
    (0, "TRACE", "\x1b[36m"),
)

QUEUE_MAX_LINES: Final = 4096
MESSAGE_MAX_CHARS: Final = 4 * KIB
LINE_MAX_CHARS: Final = 16 * KIB  # with a traceback
BATCH_MAX_LINES: Final = 256  # lines joined into one write
FLUSH_LIMIT_S: Final = 2.0  # how long the end of the process may wait for a stuck log
ROTATED_KEPT: Final = 10
COPY_BYTES: Final = 256 * KIB

# Their DEBUG lines quote requests with the Authorization header; their INFO lines repeat ours.
QUIET_LIBRARIES: Final = ("asyncio", "h11", "httpcore", "httpx", "trio")

PACKAGE_PARENT: Final = str(Path(__file__).parent.parent) + os.sep

CONTROL_CHARACTERS: Final = {
    code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0))
} | {ord("\n"): "\\n", ord("\t"): " ", ord("\r"): "\\r"}

SECRETS: Final = re.compile(
    r"(?P<header>(?i:authorization)['\"]?\s*[:=]\s*b?['\"]?)(?:(?i:basic|bearer)\s+)?[^\s'\",]+"
    r"|(?P<bearer>\b[Bb]earer\s+)[A-Za-z0-9._~+/=-]{16,}"
    r"|(?P<basic>\b[Bb]asic\s+)(?=[a-z/+]*[A-Z0-9=])[A-Za-z0-9+/]{4,}={0,2}"
    r"|(?P<query>[?&](?i:[a-z_-]*token|[a-z_-]*signature|[a-z_-]*credential|sig)=)[^&\s'\"]+"
    r"|(?P<url>://)[^/@\s'\"]+(?=@)"
)


def setup(level: str = "info", file: str | None = None, rotation_mib: int = 0) -> "QueueHandler":
    """Route all logging to `file`, else to stderr, and return the handler.

    The end of the process flushes it; who needs it sooner calls `close()`.
    rotation_mib: size at which the file is set aside and compressed; 0: never.
    Raises ConfigError for an unknown level and for a file that cannot be opened.
    """
    sink: Sink
    colour = False
    if file is None:
        sink = StreamSink(2)
        colour = os.isatty(2)
    else:
        path = log_path(file)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            sink = RotatingFile(path, rotation_mib * MIB) if rotation_mib else PlainFile(path)
        except OSError as exc:
            raise ConfigError(f"log file {path}: cannot be opened: {exc.strerror}") from exc
    logging.raiseExceptions = False
    set_level(level)
    for name in QUIET_LIBRARIES:
        logging.getLogger(name).setLevel(logging.WARNING)
    handler = QueueHandler(sink, LineFormatter(colour=colour))
    logging.getLogger().addHandler(handler)
    return handler


def set_level(name: str) -> None:
    """Let lines of this level and above through, from now on. Raises ConfigError for an unknown word."""
    level = LEVELS.get(name.lower())
    if level is None:
        raise ConfigError(f"log level is {name[:16]!r}, must be one of {', '.join(LEVELS)}")
    logging.getLogger().setLevel(level)


def log_path(file: str) -> Path:
    """Return the path a log file argument means: without an extension it gets `.log`."""
    path = Path(file)
    if not path.name:
        raise ConfigError(f"log file is {file!r}, must name a file")
    return path if path.suffix else path.with_name(f"{path.name}.log")


def blotted(text: str) -> str:
    """Return the text without what looks like a credential."""
    return SECRETS.sub(lambda match: f"{match[match.lastgroup or 0]}***", text)


def one_line(text: str) -> str:
    """Return text, maybe that of a stranger, fit for a line: short, without control characters and secrets."""
    text = text[:MESSAGE_MAX_CHARS]
    return blotted(text if text.isprintable() else text.translate(CONTROL_CHARACTERS))


class LineFormatter(logging.Formatter):
    """`[2026-07-24 11:44:49.123456 +08:00] INFO message`; levels other than INFO show file and line."""

    def __init__(self, *, colour: bool = False) -> None:
        """`colour`: ANSI colours around the level, for terminals."""
        super().__init__()
        self._colour = colour
        self._second = (-1, "", "")  # one local-time conversion per second is enough

    def format(self, record: logging.LogRecord) -> str:
        """Return the line without its end. Text of others cannot forge a second line."""
        try:
            message = record.getMessage()
        except (TypeError, ValueError, LookupError, AttributeError):
            message = f"{record.msg} (arguments do not fit)"
        name, colour = _shown_level(record.levelno)
        if self._colour and colour:
            name = f"{colour}{name}\x1b[0m"
        where = "" if record.levelno == logging.INFO else f" [{_location(record)}]"
        line = f"[{self._time(record.created)}] {name}{where} {one_line(message)}"
        if record.exc_info:
            line = f"{line}\n{blotted(self.formatException(record.exc_info))}"
        return line[:LINE_MAX_CHARS]

    def _time(self, created_s: float) -> str:
        second = int(created_s)
        known, date, offset = self._second
        if second != known:
            local = time.localtime(second)
            date = time.strftime("%Y-%m-%d %H:%M:%S", local)
            minutes = abs(local.tm_gmtoff) // 60
            sign = "-" if local.tm_gmtoff < 0 else "+"
            offset = f"{sign}{minutes // 60:02}:{minutes % 60:02}"
            self._second = (second, date, offset)
        return f"{date}.{int((created_s - second) * 1_000_000):06} {offset}"


def _shown_level(level: int) -> tuple[str, str]:
    return next((name, colour) for least, name, colour in SHOWN_LEVELS if level >= least)


def _location(record: logging.LogRecord) -> str:
    path = record.pathname
    shown = (
        path.removeprefix(PACKAGE_PARENT) if path.startswith(PACKAGE_PARENT) else record.filename
    )
    return f"{shown}:{record.lineno}"


class Sink(Protocol):
    """Where finished lines go. Only the writing thread calls it."""

    def write(self, lines: bytes) -> None:
        """Write all bytes. Raises OSError; may then have written a part."""
        ...


class StreamSink:
    """An open descriptor, such as stderr."""

    def __init__(self, fd: int) -> None:
        """The descriptor stays the caller's."""
        self._fd = fd

    def write(self, lines: bytes) -> None:
        """Write to the descriptor."""
        _write_all(self._fd, lines)


class PlainFile:
    """One file, appended to for ever."""

    def __init__(self, path: Path) -> None:
        """Open or create the file. Raises OSError."""
        self._fd = _open_append(path)

    def write(self, lines: bytes) -> None:
        """Append to the file."""
        _write_all(self._fd, lines)


class RotatingFile:
    """`<stem>_rCURRENT<suffix>`, set aside under its time and compressed once it exceeds a size."""

    def __init__(self, path: Path, limit_bytes: int) -> None:
        """Open or create the live file of `path`. Raises OSError."""
        self._path = path
        self._live = path.with_name(f"{path.stem}_rCURRENT{path.suffix}")
        self._limit_bytes = limit_bytes
        self._fd = _open_append(self._live)
        self._size_bytes = os.fstat(self._fd).st_size
        self._compressing: threading.Thread | None = None

    def write(self, lines: bytes) -> None:
        """Append to the live file, then rotate if it has grown too large."""
        _write_all(self._fd, lines)
        self._size_bytes += len(lines)
        if self._size_bytes > self._limit_bytes:
            self._size_bytes = 0  # also after a failure: not again before another limit's worth
            with contextlib.suppress(OSError):  # the lines are written; the file grows on
                self._rotate()

    def _rotate(self) -> None:
        self._live.rename(self._unused_name())
        fd = _open_append(self._live)
        self._fd, old = fd, self._fd
        os.close(old)
        if self._compressing is None or not self._compressing.is_alive():
            self._compressing = threading.Thread(
                target=compress_rotated, args=(self._path,), name="log-gzip", daemon=True
            )
            self._compressing.start()

    def _unused_name(self) -> Path:
        when = time.strftime("%Y-%m-%d_%H-%M-%S")
        for attempt in range(10_000):
            again = f".restart-{attempt:04}" if attempt else ""
            rotated = self._path.with_name(f"{self._path.stem}_r{when}{again}{self._path.suffix}")
            if not rotated.exists() and not _compressed(rotated).exists():
                return rotated
        return rotated  # 10,000 in a second: overwrite the last


def compress_rotated(path: Path) -> None:
    """Compress what was set aside of the log `path`, then keep the newest ROTATED_KEPT of them.

    Runs in a thread of its own: 100 MiB take seconds. A crash in between leaves the plain file, which
    the next rotation finds.
    """
    import gzip  # here: only logs that rotate need it

    prefix = f"{path.stem}_r2"  # the year's first digit: not _rCURRENT
    try:
        for plain in sorted(path.parent.iterdir()):
            if plain.name.startswith(prefix) and plain.name.endswith(path.suffix):
                half_done = _compressed(plain).with_suffix(".tmp")
                with (
                    plain.open("rb") as source,
                    gzip.open(half_done, "wb", compresslevel=6) as target,
                ):
                    while piece := source.read(COPY_BYTES):
                        target.write(piece)
                half_done.rename(_compressed(plain))
                plain.unlink()
        kept = [
            entry
            for entry in sorted(path.parent.iterdir())
            if entry.name.startswith(prefix) and entry.name.endswith(f"{path.suffix}.gz")
        ]
        for old in kept[:-ROTATED_KEPT]:
            old.unlink()
    except OSError as exc:
        log.warning("log rotation of %s: %s", path, exc)


def _compressed(path: Path) -> Path:
    return path.with_name(f"{path.name}.gz")


def _open_append(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


class QueueHandler(logging.Handler):
    """Hands finished lines to a thread. Logging costs the caller a format and a put, never a wait.

    Full: the line is dropped and counted. The queue's bound is approximate: many threads may put at
    once, and each may pass it by one line.
    """

    def __init__(
        self, sink: Sink, formatter: logging.Formatter, max_lines: int = QUEUE_MAX_LINES
    ) -> None:
        """Start the writing thread, which lives until `close()` or the process's end."""
        super().__init__()
        self.setFormatter(formatter)
        self.lost_lines = 0  # since the last confession
        self._sink = sink
        self._max_lines = max_lines
        self._queue: SimpleQueue[str | threading.Event] = SimpleQueue()
        self._counting = threading.Lock()
        self._stop = threading.Event()
        self._closed = False
        self._thread = threading.Thread(target=self._write_out, name="log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Queue the record's line, or drop and count it."""
        if self._queue.qsize() >= self._max_lines:
            self._count_lost(1)
        else:
            self._queue.put(self.format(record))

    def flush(self) -> None:
        """Wait until what was logged before is written, but FLUSH_LIMIT_S at most."""
        if self._thread.is_alive():
            written = threading.Event()
            self._queue.put(written)
            written.wait(FLUSH_LIMIT_S)

    def close(self) -> None:
        """Write what is queued, FLUSH_LIMIT_S at most, and leave the root logger. May be called twice."""
        if not self._closed:
            self._closed = True
            logging.getLogger().removeHandler(self)
            self._queue.put(self._stop)
            self._thread.join(FLUSH_LIMIT_S)
        super().close()

    def _count_lost(self, lines: int) -> None:
        with self._counting:
            self.lost_lines += lines

    def _write_out(self) -> None:
        mark: threading.Event | None = None
        while mark is not self._stop:
            lines, mark = self._next_batch()
            if lines:
                self._write(lines)
            if mark is not None:
                mark.set()

    def _next_batch(self) -> tuple[list[str], threading.Event | None]:
        """Wait for lines and return them, with the mark that ended them if one did."""
        lines: list[str] = []
        item = self._queue.get()
        while isinstance(item, str):
            lines.append(item)
            if len(lines) == BATCH_MAX_LINES or self._queue.empty():
                return lines, None
            item = self._queue.get()  # does not wait: nobody else takes
        return lines, item

    def _write(self, lines: list[str]) -> None:
        with self._counting:
            lost, self.lost_lines = self.lost_lines, 0
        if lost:
            confession = logging.LogRecord(
                log.name, logging.WARNING, __file__, 0, "%d log lines were lost", (lost,), None
            )
            lines = [self.format(confession), *lines]
        text = "".join(f"{line}\n" for line in lines)
        try:
            self._sink.write(text.encode("utf-8", "backslashreplace"))
        except OSError:
            self._count_lost(lost + len(lines) - bool(lost))


def log_strays() -> None:
    """Send to the log what Python would print on stderr as a traceback: bugs, wherever they surface.

    A bug that ends the process leaves one line on stderr and exit status 1.
    """

    def in_main(
        kind: type[BaseException], error: BaseException, trace: TracebackType | None
    ) -> None:
        if not issubclass(kind, KeyboardInterrupt):
            log.error("bug: the process ends", exc_info=(kind, error, trace))
            with contextlib.suppress(OSError):  # nobody reads there any more
                os.write(2, f"Error: internal error {kind.__name__}, the log has more\n".encode())

    def in_thread(args: threading.ExceptHookArgs) -> None:
        if args.exc_value is not None:
            error = (args.exc_type, args.exc_value, args.exc_traceback)
            log.error("bug in thread %s", args.thread and args.thread.name, exc_info=error)

    def unraisable(args: "sys.UnraisableHookArgs") -> None:
        if args.exc_value is not None:
            error = (args.exc_type, args.exc_value, args.exc_traceback)
            log.error("bug in %r: %s", args.object, args.err_msg, exc_info=error)

    sys.excepthook = in_main
    threading.excepthook = in_thread
    sys.unraisablehook = unraisable
