"""What the scan takes over from a folder, and what it refuses."""

import os
from pathlib import Path

import pytest

from nydusd.builder import tree as tree_module
from nydusd.builder.options import WhiteoutSpec
from nydusd.builder.tree import BuildError, scan

AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def names(root: Path) -> list[bytes]:
    return [node.relative_path for node in scan(os.fsencode(root)).walk()]


def test_names_come_depth_first_in_byte_order(tmp_path: Path) -> None:
    for name in ("b", "a/z", "a/B", "a.txt", "é"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    # `a` before `a.txt`, capitals before small letters, bytes above ASCII last
    assert names(tmp_path) == [b"", b"a", b"a/B", b"a/z", b"a.txt", b"b", "é".encode()]


def test_names_that_are_no_utf8_are_kept_as_bytes(tmp_path: Path) -> None:
    with open(os.fsencode(tmp_path) + b"/\xff\xfe", "wb"):
        pass
    assert names(tmp_path) == [b"", b"\xff\xfe"]


def test_names_of_one_file_are_joined_at_the_first_in_tree_order(tmp_path: Path) -> None:
    (tmp_path / "z").write_bytes(b"12345")
    (tmp_path / "sub").mkdir()
    os.link(tmp_path / "z", tmp_path / "sub" / "link")
    os.link(tmp_path / "z", tmp_path / "y")
    tree = scan(os.fsencode(tmp_path))
    nodes = {node.relative_path: node for node in tree.walk()}
    first = nodes[b"sub/link"]
    assert first.link_of is None
    assert first.nlink == 3
    assert nodes[b"y"].link_of is first
    assert nodes[b"z"].link_of is first
    assert tree.source_bytes == 5
    assert (tree.names, tree.extra_links) == (5, 2)


def test_links_from_outside_do_not_count(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "file").write_bytes(b"1")
    os.link(source / "file", tmp_path / "outside")
    (node,) = [node for node in scan(os.fsencode(source)).walk() if node.is_regular]
    assert node.nlink == 1


def test_folders_count_their_subfolders_and_the_root_has_no_time(tmp_path: Path) -> None:
    for name in ("a/1", "a/2", "b"):
        (tmp_path / name).mkdir(parents=True)
    tree = scan(os.fsencode(tmp_path))
    nodes = {node.relative_path: node for node in tree.walk()}
    assert [nodes[name].nlink for name in (b"", b"a", b"b", b"a/1")] == [4, 4, 2, 2]
    assert tree.root.mtime_ns == 0
    assert nodes[b"a"].mtime_ns == (tmp_path / "a").stat().st_mtime_ns


def test_a_folder_deeper_than_a_path_can_be_long_is_read(tmp_path: Path) -> None:
    name = "d" * 200
    handle = os.open(tmp_path, os.O_RDONLY)
    depth = 30  # 6,030 bytes of path, PATH_MAX is 4,096
    try:
        for _ in range(depth):
            os.mkdir(name, dir_fd=handle)
            below = os.open(name, os.O_RDONLY, dir_fd=handle)
            os.close(handle)
            handle = below
        with open(os.open("bottom", os.O_CREAT | os.O_WRONLY, dir_fd=handle), "wb") as file:
            file.write(b"reached")
        os.symlink("target", "link", dir_fd=handle)
        os.setxattr(f"/proc/self/fd/{handle}/bottom", "user.deep", b"yes")
    finally:
        os.close(handle)
    nodes = list(scan(os.fsencode(tmp_path)).walk())
    assert len(nodes) == depth + 3
    bottom, link = nodes[-2:]
    assert (bottom.name, bottom.size, bottom.xattrs) == (b"bottom", 7, ((b"user.deep", b"yes"),))
    assert link.target == b"target"


def test_xattrs_are_sorted_and_those_no_image_can_name_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    os.setxattr(tmp_path / "file", "user.b", b"2")
    os.setxattr(tmp_path / "file", "user.a", b"1")
    # What other file systems have is told by a changed table, not by mounting one.
    monkeypatch.setattr(tree_module, "XATTR_PREFIXES", (b"user.a",))
    tree = scan(os.fsencode(tmp_path))
    (node,) = [node for node in tree.walk() if node.is_regular]
    assert node.xattrs == ((b"user.a", b"1"),)
    assert (tree.has_xattrs, tree.foreign_xattrs) == (True, 1)


def test_a_path_is_found_in_the_tree(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "c").touch()
    tree = scan(os.fsencode(tmp_path))
    found = tree.find(b"/a//b/./c/")
    assert found is not None
    assert found.relative_path == b"a/b/c"
    assert tree.find(b"/") is tree.root
    assert tree.find(b"/a/b/c/d") is None
    assert tree.find(b"/nothing") is None


def test_a_source_that_is_no_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BuildError, match="nothing: No such file"):
        scan(os.fsencode(tmp_path / "nothing"))
    with pytest.raises(BuildError, match="file: the source must be a directory"):
        scan(os.fsencode(tmp_path / "file"))


def test_a_folder_that_cannot_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "closed").mkdir()
    real = os.scandir

    def refuse(path: bytes) -> object:
        if path.rstrip(b"/").endswith(b"closed"):
            raise PermissionError(13, "Permission denied", path)
        return real(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(BuildError, match="/closed/: Permission denied"):
        scan(os.fsencode(tmp_path))


def test_whiteouts_stay_where_no_spec_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / ".wh.x").touch()
    assert scan(os.fsencode(tmp_path), WhiteoutSpec.NONE).names == 2
    tree = scan(os.fsencode(tmp_path), WhiteoutSpec.OCI)
    assert (tree.names, tree.whiteouts) == (1, 1)
