"""Which build this is (spec cli-config A7)."""

import sys
from pathlib import Path
from types import ModuleType

import pytest

from nydusd import __version__
from nydusd.version import build_info, commit_of_checkout, version_text

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def checkout(root: Path, head: str) -> Path:
    (root / ".git" / "refs" / "heads").mkdir(parents=True)
    (root / ".git" / "HEAD").write_text(f"{head}\n")
    return root


def test_the_text_is_what_clients_parse():
    info = build_info()
    assert version_text() == (
        f"nydusd \rVersion: \tv{__version__}\nGit Commit: \t{info.git_commit}\n"
        f"Build Time: \t{info.build_time}\nProfile: \t{info.profile}\nRustc: \t\t{info.rustc}\n"
    )


def test_all_fields_are_strings_that_are_not_empty():
    assert all(isinstance(text, str) and text for text in build_info())


def test_an_installed_daemon_knows_the_commit_it_was_built_from(monkeypatch: pytest.MonkeyPatch):
    built = ModuleType("nydusd._build_info")
    built.GIT_COMMIT, built.BUILD_TIME = COMMIT, "2026-07-23T02:52:53.000000000Z"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "nydusd._build_info", built)
    info = build_info.__wrapped__()
    assert (info.git_commit, info.build_time, info.profile) == (COMMIT, built.BUILD_TIME, "release")


def test_a_branch_a_packed_branch_and_a_detached_head_are_understood(tmp_path: Path):
    detached = checkout(tmp_path / "detached", COMMIT)
    assert commit_of_checkout(detached) == COMMIT
    branch = checkout(tmp_path / "branch", "ref: refs/heads/main")
    (branch / ".git" / "refs" / "heads" / "main").write_text(f"{COMMIT}\n")
    assert commit_of_checkout(branch) == COMMIT
    packed = checkout(tmp_path / "packed", "ref: refs/heads/main")
    (packed / ".git" / "packed-refs").write_text(
        f"# pack-refs with: peeled\n{'f' * 40} refs/heads/main2\n{COMMIT} refs/heads/main\n"
    )
    assert commit_of_checkout(packed) == COMMIT


def test_a_linked_work_tree_is_understood(tmp_path: Path):
    main = checkout(tmp_path / "main", "ref: refs/heads/other")
    (main / ".git" / "refs" / "heads" / "side").write_text(COMMIT)
    git = main / ".git" / "worktrees" / "side"
    git.mkdir(parents=True)
    (git / "HEAD").write_text("ref: refs/heads/side\n")
    (git / "commondir").write_text("../..\n")
    side = tmp_path / "side"
    side.mkdir()
    (side / ".git").write_text(f"gitdir: {git}\n")
    assert commit_of_checkout(side) == COMMIT


@pytest.mark.parametrize("head", ["ref: refs/heads/main", "", "x" * 40, "ref: ../../etc/passwd"])
def test_what_cannot_be_found_is_unknown(head: str, tmp_path: Path):
    assert commit_of_checkout(checkout(tmp_path, head)) == "unknown"


def test_no_checkout_is_unknown(tmp_path: Path):
    assert commit_of_checkout(tmp_path) == "unknown"
