"""RAFS v5 images of the reference builder: our reading of them equals what the reference daemon showed."""

import json
from pathlib import Path

import pytest

from nydusd.errors import FormatError, NotFoundError
from nydusd.rafs.bootstrap import open_bootstrap
from nydusd.rafs.v5 import BootstrapV5, open_v5
from tests.support.tree import BlobFiles, describe, quote, walk
from tests.support.vectors import description, each_vector, manifest, vector

V5 = ["*v5*/expected.jsonl*"]


def open_vector(folder: Path) -> BootstrapV5:
    inlined = folder / "image.boot"
    path = inlined if inlined.exists() else folder / "bootstrap"
    blob_id = Path(description(folder).get("mount_source") or "").name
    bootstrap = open_bootstrap(path, extracted_from=blob_id if inlined.exists() else None)
    assert isinstance(bootstrap, BootstrapV5)
    return bootstrap


@pytest.mark.parametrize("expected", each_vector(*V5))
def test_the_tree_and_every_byte_equal_what_the_reference_showed(expected: Path) -> None:
    folder = expected.parent
    wanted = manifest(folder / "expected.jsonl")
    bootstrap = open_vector(folder)
    files = BlobFiles(
        bootstrap, folder / "blobs", [bootstrap.chunk_table(blob.index) for blob in bootstrap.blobs]
    )
    seen = set()
    for path, inode in walk(bootstrap):
        want = dict(wanted[quote(path)])
        sha256 = want.pop("sha256", None)
        got = describe(bootstrap, path, inode)
        if inode.ino == 1:
            got["mode"] = "0o40755"  # the kernel room's: every root is shown with 0755
        if (
            "loose" in want
        ):  # its names have records that differ, and the reference shows any of them
            want = {key: want[key] for key in want.keys() & got.keys()}
            got = {key: got[key] for key in want}
        assert got == want
        if sha256 is not None:
            assert files.sha256(inode) == sha256, path
        seen.add(quote(path))
    assert seen == wanted.keys()
    bootstrap.close()


@pytest.mark.parametrize("expected", each_vector(*V5))
def test_blobs_are_as_the_builder_listed_them(expected: Path) -> None:
    folder = expected.parent
    bootstrap = open_vector(folder)
    wanted = description(folder)["blobs"]
    assert len(bootstrap.blobs) == len(wanted)
    for blob, want in zip(bootstrap.blobs, wanted, strict=True):
        assert blob.blob_id == Path(want["file"]).name
        assert blob.codec.name.lower() == want["compressor"]
        assert blob.digester.name.lower() == want["digester"]
        assert blob.features == int(want["features"], 16)
        assert (blob.chunk_count, blob.compressed_size, blob.uncompressed_size) == (
            want["chunk_count"],
            want["compressed_size"],
            want["uncompressed_size"],
        )
    bootstrap.close()


def test_details_are_those_of_the_api() -> None:
    folder = vector("v5-lz4-blake3-1m")
    answer = folder / "api/before/GET_api_v1_daemon_backend@mountpoint-root.http"
    shown = json.loads(answer.read_text().partition("\n\n")[2])
    shown["flags"] = shown["flags"]["bits"]
    for of_the_mount in ("attr_timeout", "entry_timeout", "is_chunk_dict"):
        del shown[of_the_mount]
    assert list(open_vector(folder).superblock.details.items()) == list(shown.items())


@pytest.mark.parametrize(
    "name", ["v5-bad-magic", "v5-inode-count-huge", "v5-sb-size"], ids=lambda name: name
)
def test_broken_bootstraps_are_refused_with_the_file_named(name: str) -> None:
    path = vector(f"broken/{name}") / "bootstrap"
    with pytest.raises(FormatError) as refusal:
        open_v5(path.read_bytes(), str(path))
    assert str(path) in str(refusal.value)


def test_an_entry_with_an_inode_outside_the_image_fails_alone() -> None:
    folder = vector("broken/v5-ino-missing")
    bootstrap = open_v5((folder / "bootstrap").read_bytes(), "bootstrap")
    root = bootstrap.inode(1)
    names = {entry.name for entry in bootstrap.entries(root)}
    assert b"hard2" in names
    with pytest.raises(FormatError, match="hard2"):
        bootstrap.lookup(root, b"hard2")
    good = manifest(folder / description(folder)["good"].split(":")[0])
    for name in names - {b".", b"..", b"hard2"}:
        inode = bootstrap.lookup(root, name)
        assert inode is not None
        assert oct(inode.mode) == good[quote(b"/" + name)]["mode"]
    hard2 = next(entry for entry in bootstrap.entries(root) if entry.name == b"hard2")
    with pytest.raises((FormatError, NotFoundError)):
        bootstrap.inode(hard2.ino)


def test_a_changed_digest_is_what_the_chunk_carries() -> None:
    folder = vector("broken/v5-wrong-digest-and-crc")
    bootstrap = open_v5((folder / "bootstrap").read_bytes(), "bootstrap")
    small = bootstrap.lookup(bootstrap.inode(1), b"small")
    assert small is not None
    (extent,) = bootstrap.extents(small, 0, small.size)
    chunk = bootstrap.chunk_table(extent.blob_index).chunk(extent.chunk_index)
    assert chunk.digest == b"\xee" * 32
    assert chunk.crc32 is None
