"""What holds for every test: an unannounced warning in the log fails it (docs/style.md §3.9)."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def unannounced_warnings_fail(request: pytest.FixtureRequest) -> Iterator[None]:
    """A test that expects a WARNING asks for `caplog`; in any other, one is a failure."""
    if "caplog" in request.fixturenames:
        yield
        return
    seen: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            seen.append(record.getMessage())

    collector = Collector(logging.WARNING)
    log = logging.getLogger("nydusd")
    log.addHandler(collector)
    try:
        yield
    finally:
        log.removeHandler(collector)
    assert not seen, f"unannounced warnings: {seen}"


def vectors_dir() -> Path:
    """The folder of images made by the reference builder; a clone alone does not have it."""
    return Path(os.environ.get("NYDUS_VECTORS", ROOT.parent / "shared" / "vectors"))


@pytest.fixture(scope="session")
def vectors() -> Path:
    """The vectors' folder; skips with a clear line where there is none."""
    folder = vectors_dir()
    if not folder.is_dir():
        pytest.skip(
            f"no reference images at {folder} (set NYDUS_VECTORS); built images are tested anyway"
        )
    return folder
