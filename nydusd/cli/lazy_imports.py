"""Modules that trio and the standard library import, and that a daemon rarely uses: loaded when used.

Owns     the placeholders in sys.modules. A placeholder is the module itself, found but not yet run: the
         first look at any of its names runs it in place. So `import ssl` costs nothing, `ssl.X` and
         `from ssl import X` are what they always were, in any thread, and nobody holds a stale copy.
Callers  the command `nydusd`, before it imports anything large; nobody else: it is process-wide.
Raises   `defer` nothing: what is loaded or cannot be found is left to the import statement that wants it.

Why: exec to RUNNING is what a container start waits for. Of its 200 ms the modules below were 25 ms, and
libssl, libcrypto, liblzma and libbz2 were 4 MiB of memory in a daemon whose registry is not asked yet.
"""

import os
import sys
import threading
from collections.abc import Iterable
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import module_from_spec
from types import ModuleType
from typing import Final

# Who imports it at start: what of it is needed there.
DEFERRED: Final = (
    "hmac",  # trio: DTLS cookies; brings hashlib and libcrypto
    "idna",  # trio: names of remote hosts
    "ipaddress",  # urllib.parse, for pathlib: URLs with [addresses]
    "shutil",  # ctypes.util, argparse: the terminal's width; brings bz2, lzma, zlib
    "ssl",  # trio: TLS streams; the registry client loads it with httpx
    "subprocess",  # trio, ctypes.util: child processes, of which there are none
    "tokenize",  # linecache, inspect: to show source lines
)

_LIBPTHREAD: Final = "libpthread.so.0"


class _Deferred(ModuleType):
    """A module that runs at the first look for a name that it does not have yet."""

    def __getattr__(self, name: str) -> object:
        # The import statement asks every module for it; one that is no package never has it.
        if name == "__path__":
            raise AttributeError(name)
        _load(self, name)
        return getattr(self, name)


_locks: Final[dict[str, threading.RLock]] = {}
_running: Final[set[str]] = set()


def defer(names: Iterable[str] = DEFERRED) -> None:
    """Put a placeholder for each of the modules that is not loaded yet."""
    for name in names:
        if name not in sys.modules:
            spec = _find(name)
            if spec is not None and spec.loader is not None:
                _put(spec)
    _answer_for_libpthread()


def _find(name: str) -> ModuleSpec | None:
    """Return where a module is; other than importlib.util.find_spec without running its package."""
    parent, _, _ = name.rpartition(".")
    if not parent:
        return PathFinder.find_spec(name)
    package = PathFinder.find_spec(parent)
    if package is None or package.submodule_search_locations is None:
        return None
    return PathFinder.find_spec(name, package.submodule_search_locations)


def _put(spec: ModuleSpec) -> ModuleType:
    module = module_from_spec(spec)
    module.__class__ = _Deferred
    _locks[spec.name] = threading.RLock()
    sys.modules[spec.name] = module
    return module


def _load(module: ModuleType, name: str) -> None:
    """Run the module, once; other threads that look at it meanwhile wait until it has its names."""
    own = module.__name__
    with _locks[own]:
        if module.__class__ is not _Deferred:
            return
        if own in _running:  # it is being run by this thread, and imports someone who looks back
            raise AttributeError(f"partially initialized module {own!r} has no attribute {name!r}")
        spec = module.__spec__
        assert spec is not None
        assert spec.loader is not None
        _running.add(own)
        try:
            spec.loader.exec_module(module)
            module.__class__ = ModuleType  # type: ignore[assignment]  # mypy knows of narrower only
        finally:
            _running.discard(own)


def _answer_for_libpthread() -> None:
    """Spare trio's question where libpthread is, which it asks to name its threads.

    ctypes.util answers it by running `ldconfig -p`, and where there is none, a C compiler. With glibc
    the answer is known; any other question goes to the real function.
    """
    if "ctypes.util" in sys.modules or "CS_GNU_LIBC_VERSION" not in os.confstr_names:
        return
    import ctypes  # a submodule is an attribute of its package, which must be there for that

    spec = _find("ctypes.util")
    if spec is None or spec.loader is None:
        return
    util = _put(spec)

    def find_library(name: str) -> str | None:
        if name == "pthread":
            return _LIBPTHREAD
        _load(util, "find_library")  # which puts the real one in this one's place
        found: str | None = util.find_library(name)
        return found

    ctypes.util = util  # type: ignore[attr-defined]  # nobody imported it, that is the point
    util.find_library = find_library  # type: ignore[attr-defined]  # a name of the real module
