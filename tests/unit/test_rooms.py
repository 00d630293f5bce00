"""Imports point downwards only (docs/design.md §3), also those inside functions."""

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "nydusd"

# A room imports from rooms of a lower number only. Rooms of one number do not know each other.
LEVEL = {
    "errors": 0,
    "units": 0,
    "records": 1,
    "version": 1,
    "logs": 1,
    "native": 2,
    "config": 2,
    "native_erofs": 3,
    "native_tree": 3,
    "native_relay": 4,
    "blob": 3,
    "rafs": 4,
    "storage": 5,
    "kernel": 6,
    "builder": 6,
    "metrics": 7,
    "api": 8,
    "daemon": 9,
    "cli": 10,
}
FOREIGN = {  # what the pure rooms, and those that must not know the kernel or HTTP, may never import
    "blob": {"trio", "httpx", "h11"},
    "rafs": {"trio", "httpx", "h11"},
    "config": {"trio", "httpx", "h11"},
    "native": {"trio", "httpx", "h11"},
    "native_erofs": {"trio", "httpx", "h11"},
    "native_relay": {"trio", "httpx", "h11"},
    "native_tree": {"trio", "httpx", "h11"},
    "kernel": {"httpx", "h11"},
    "metrics": {"httpx", "h11"},
    "api": {"httpx"},
}
TYPED_EDGES = {
    "native.py",
    "native_erofs.py",
    "native_relay.py",
    "native_tree.py",
}  # functions; a walk; threads; names


def room_of(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add(node.module or "")
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


MODULES = sorted(p for p in SOURCE.rglob("*.py") if p.parent != SOURCE or p.stem != "__init__")


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_a_room_imports_only_from_rooms_below_it(path):
    room = room_of(path)
    assert room in LEVEL, f"{path} is in no known room"
    for name in imported(path):
        parts = name.split(".")
        if parts[0] == "nydusd" and len(parts) > 1 and parts[1] in LEVEL and parts[1] != room:
            assert LEVEL[parts[1]] < LEVEL[room], f"{room} must not import {name}"
        assert parts[0] not in FOREIGN.get(room, set()), f"{room} must not import {parts[0]}"


def test_only_the_typed_edges_import_the_c_module():
    assert {p.name for p in MODULES if "nydusd._native" in imported(p)} == TYPED_EDGES
