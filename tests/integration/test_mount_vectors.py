"""The names and attributes of every image of the vectors, as the kernel shows them: those the reference shows.

Contents are compared in process (test_vectors_in_process) and end to end (the daemon's tests).
"""

import os
from pathlib import Path

import pytest

from tests.support.mounted_tree import walk
from tests.support.mounts import served
from tests.support.vectors import each_vector, manifest, vector


def shows_start(status: os.stat_result) -> bool:
    """The reference shows its own start where the image has second 0; we keep nanoseconds of second 0."""
    return status.st_atime_ns != 0 or status.st_mtime_ns < 10**9


@pytest.mark.parametrize("bootstrap", each_vector("*/bootstrap"))
def test_the_mounted_tree_is_that_of_the_reference(bootstrap: Path) -> None:
    folder = bootstrap.parent
    if not any(folder.glob("expected.jsonl*")):
        pytest.skip("the reference fails on this one and left no manifest of names")
    with served(f"{bootstrap}=/") as mount:
        found = walk(os.fsencode(mount.path), shows_start)
    wanted = manifest(folder / "expected.jsonl")
    assert found.keys() == wanted.keys()
    for path, record in wanted.items():
        # Some manifests leave out what their builder gets wrong. Contents are not here.
        seen = {key: found[path].get(key) for key in record.keys() - {"sha256", "loose"}}
        assert seen == {key: record[key] for key in seen}


def test_a_listing_comes_in_the_order_of_the_image() -> None:
    folder = vector("sortnames-v6")
    order = (folder / "readdir-order.txt").read_bytes().split(b"\n")
    names = [name for name in order if name not in (b"", b".", b"..")]
    with served(f"{folder / 'bootstrap'}=/") as mount:
        assert os.listdir(os.fsencode(mount.path)) == names
