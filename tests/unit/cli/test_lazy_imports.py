"""Modules that wait for their first use behave as if they had been there; a start loads none of them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from nydusd.builder.build import build_image
from nydusd.builder.options import BuildOptions
from nydusd.cli.lazy_imports import DEFERRED

ROOT = Path(__file__).parents[3]

# What no start needs, by the way it used to come in: 25 ms and 4 MiB for the deferred ones, 40 ms and
# 3 MiB for the HTTP client, 15 ms for importlib.metadata and all that it pulls in.
NOT_AT_START = {
    *DEFERRED,
    *("_hashlib", "_ssl", "hashlib"),  # OpenSSL
    *("_bz2", "_lzma", "bz2", "lzma", "tarfile", "zipfile", "zlib", "zstandard"),
    *("anyio", "certifi", "http", "httpcore", "httpx", "nydusd.storage.backend.http_client"),
    *("calendar", "datetime", "email"),
    *("asyncio", "concurrent", "multiprocessing"),
    *("importlib.metadata", "importlib.resources", "pkg_resources"),
    *("csv", "decimal", "tempfile", "unittest", "uuid", "xml"),
    *("blake3", "cffi", "prometheus_client", "pycparser"),
    *("nydusd.builder", "nydusd.cli.ctl", "nydusd.cli.image", "nydusd.storage.prefetch"),
}

START = """
import sys
from nydusd.cli import lazy_imports, nydusd

lazy_imports.defer()  # as main() does; before trio comes, which is needed below

import trio
from nydusd.daemon import daemon
from nydusd.storage.pool import open_pool

async def open_the_image(options):
    async with open_pool() as pool:
        image = await pool.open_image(options.bootstrap, options.config)
        await image.aclose()

def run(options):
    trio.run(open_the_image, options)
    return 0

daemon.run = run  # all of a start but the mount
assert nydusd.main(sys.argv[1:]) == 0
print(*(name for name, module in sys.modules.items() if module.__class__.__name__ != "_Deferred"))
"""


def python(code: str, *argv: str, path: Path = ROOT) -> str:
    """Run code in a fresh interpreter, which has loaded nothing of ours; return what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.append({str(path)!r})\n{code}", *argv],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.rstrip("\n")


def deferring(name: str, code: str) -> str:
    return f"from nydusd.cli.lazy_imports import defer; defer([{name!r}])\n{code}"


@pytest.mark.parametrize("fs_version", [5, 6])
def test_a_start_loads_nothing_that_only_later_work_needs(tmp_path: Path, fs_version: int):
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "file").write_bytes(b"content")
    (tmp_path / "mnt").mkdir()
    bootstrap = tmp_path / "bootstrap"
    build_image(
        tmp_path / "source", BuildOptions(fs_version=fs_version), bootstrap, tmp_path / "blobs"
    )
    backend = {"type": "registry", "config": {"host": "registry.invalid", "repo": "a/b"}}
    cache = {"type": "blobcache", "config": {"work_dir": str(tmp_path / "cache")}}
    config = tmp_path / "config.json"
    config.write_text(
        json.dumps({"device": {"id": "1", "backend": backend, "cache": cache}, "mode": "direct"})
    )
    loaded = python(
        START,
        *("--config", str(config), "--bootstrap", str(bootstrap)),
        *("--mountpoint", str(tmp_path / "mnt"), "--apisock", str(tmp_path / "api.sock")),
    ).split()
    assert "nydusd.storage.backend.registry" in loaded  # it did get that far
    assert not NOT_AT_START.intersection(loaded)


@pytest.mark.parametrize("name", DEFERRED)
def test_every_deferred_module_has_all_its_names_when_used(name: str):
    names = f"import {name} as m; print(*sorted(n for n in dir(m) if n[0] != '_'))"
    look = f"import {name} as m; hasattr(m, 'anything')"
    assert python(f"{deferring(name, look)}\n{names}") == python(names)


def test_tls_works_although_trio_met_the_placeholder():
    code = """
import sys, trio, trio._ssl, ssl
assert "_ssl" not in sys.modules
context = ssl.create_default_context()
assert trio._ssl._stdlib_ssl is ssl is sys.modules["ssl"]
assert "_ssl" in sys.modules
trio.SSLStream(None, context, server_hostname="localhost")
from ssl import SSLContext
print(type(context) is SSLContext, type(ssl).__name__)
"""
    assert python(deferring("ssl", code)) == "True module"


def test_a_deferred_module_runs_at_the_first_look_and_once(tmp_path: Path):
    (tmp_path / "late.py").write_text("print('runs')\nvalue = 1\n")
    code = "import late; print('imported'); print(late.value); from late import value"
    assert python(deferring("late", code), path=tmp_path).split() == ["imported", "runs", "1"]


def test_threads_that_look_at_once_see_the_whole_module(tmp_path: Path):
    (tmp_path / "late.py").write_text(
        "import __main__\n"
        "first = 1\n"
        "__main__.running.set()\n"
        "assert __main__.go_on.wait(30)\n"
        "last = 2\n"
    )
    code = """
import threading
import late
running, go_on, seen = threading.Event(), threading.Event(), []
readers = [threading.Thread(target=lambda: seen.append(late.last)) for _ in range(8)]
readers[0].start()
assert running.wait(30)
for reader in readers[1:]:
    reader.start()
print(late.first)  # what is there already needs no waiting
go_on.set()
for reader in readers:
    reader.join(30)
print(seen)
"""
    printed = python(deferring("late", code), path=tmp_path)
    assert printed.split("\n") == ["1", str([2] * 8)]


def test_a_module_that_fails_fails_for_whoever_looks_and_may_heal(tmp_path: Path):
    (tmp_path / "late.py").write_text(
        "import __main__\nif not __main__.healed: raise OSError('not yet')\nvalue = 1\n"
    )
    code = """
import late
healed = False
for _ in range(2):
    try:
        late.value
    except OSError as exc:
        print(exc)
healed = True
print(late.value)
"""
    printed = python(deferring("late", code), path=tmp_path)
    assert printed.split("\n") == ["not yet", "not yet", "1"]


def test_a_circular_look_ends_as_python_says_it(tmp_path: Path):
    (tmp_path / "late.py").write_text("import other\nvalue = 1\n")
    (tmp_path / "other.py").write_text("import late\nlate.value\n")
    code = """
import late
try:
    late.value
except AttributeError as exc:
    print(exc)
"""
    printed = python(deferring("late", code), path=tmp_path)
    assert printed == "partially initialized module 'late' has no attribute 'value'"


def test_a_missing_name_is_missing(tmp_path: Path):
    (tmp_path / "late.py").write_text("value = 1\n")
    code = "import late; print(hasattr(late, 'other'), late.value, hasattr(late, '__path__'))"
    assert python(deferring("late", code), path=tmp_path) == "False 1 False"


def test_what_is_loaded_or_not_there_is_left_alone():
    code = """
import sys, shutil
from nydusd.cli.lazy_imports import defer
defer(["shutil", "no_such_module", "no_such_package.module", "shutil.no_package"])
print(sys.modules["shutil"] is shutil, type(shutil).__name__)
print([name for name in sys.modules if name.startswith("no_such")])
"""
    assert python(code).split("\n") == ["True module", "[]"]


def test_library_names_are_what_they_are_without_us():
    ask = "from ctypes.util import find_library as f; print(f('pthread'), f('c'), f('nonsense'))"
    assert python(deferring("ssl", ask)) == python(ask)


def test_trio_names_its_threads_without_running_a_program():
    code = """
import sys
def refuse(event, args):
    assert event not in ("subprocess.Popen", "os.posix_spawn", "os.fork", "os.exec"), args
sys.addaudithook(refuse)
from trio._core._thread_cache import set_os_thread_name
print(set_os_thread_name is not None)
"""
    assert python(deferring("ssl", code)) == "True"
