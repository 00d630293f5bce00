"""v6 images of the reference builder: the whole tree, every extent, every digest; and broken ones."""

import stat
from pathlib import Path
from typing import Any

import pytest

from nydusd.blob.blob_meta import decode_ci, open_ci
from nydusd.blob.model import BlobFeature, BlobInfo, ChunkTable
from nydusd.errors import FormatError, NotFoundError, NydusError
from nydusd.rafs.bootstrap import open_bootstrap
from nydusd.rafs.model import Bootstrap, Inode
from tests.support.tree import BlobFiles, describe, quote, walk
from tests.support.vectors import description, each_vector, manifest

# Refused, as by the reference: its builder described the second blob wrongly.
REFUSED = {"optimize-v6"}
# No manifest of what the bootstrap says: the reference cannot read the image, truth.jsonl is its source.
WITHOUT_MANIFEST = {"estargz-ref"}
# Chunks of their own blobs, of kinds that need no further context to be decoded.
WITH_PLAIN_DATA = (
    *("v6-none*", "v6-lz4*", "v6-zstd*", "v6-toc", "v6-inline*", "repeatable-v6", "prefetch-fs-v6"),
    *("merge3-v6", "merge3-inline-toc", "parent-v6", "chunk-dict-v6", "overlayfs-v6"),
    *("tar-rafs-v6", "targz-rafs-v6", "estargz-rafs"),
)
LISTED = [
    param
    for param in each_vector("*/vector.json")
    if param.values[0] is None
    or (
        description(param.values[0].parent).get("fs_version") == 6
        and param.values[0].parent.name not in REFUSED
    )
]
SHOWN = [
    param
    for param in LISTED
    if param.values[0] is None or param.values[0].parent.name not in WITHOUT_MANIFEST
]


def opened(folder: Path) -> Bootstrap:
    about = description(folder)
    if "mount_source" in about:
        blob_id = Path(about["mount_source"]).name
        return open_bootstrap(folder / "image.boot", extracted_from=blob_id)
    return open_bootstrap(folder / "bootstrap")


@pytest.mark.parametrize("vector_json", SHOWN)
def test_the_tree_is_as_the_reference_shows_it(vector_json: Path) -> None:
    folder = vector_json.parent
    bootstrap = opened(folder)
    expected = manifest(folder / "expected.jsonl")
    found = {quote(path): describe(bootstrap, path, inode) for path, inode in walk(bootstrap)}
    assert found.keys() == expected.keys()
    for path, wanted in expected.items():
        shown = found[path]
        if path == "/":  # the daemon shows 0755, whatever the image says (spec fs-behaviour §7)
            wanted = {**wanted, "mode": shown["mode"]}
        assert shown == {key: value for key, value in wanted.items() if key != "sha256"}
    bootstrap.close()


@pytest.mark.parametrize("vector_json", LISTED)
def test_the_blob_table_is_as_recorded(vector_json: Path) -> None:
    about = description(vector_json.parent)
    bootstrap = opened(vector_json.parent)
    for blob, wanted in zip(bootstrap.blobs, about["blobs"], strict=True):
        assert blob.blob_id == Path(wanted["file"]).name
        assert blob.meta_blob_id == Path(wanted.get("meta_file", wanted["file"])).name
        assert blob.chunk_count == wanted["chunk_count"]
        assert blob.codec.name.lower() == wanted["compressor"]
        assert blob.digester.name.lower() == wanted["digester"]
        assert int(blob.features) == int(wanted["features"], 16)
        assert blob.compressed_size == wanted["compressed_size"]
        assert blob.uncompressed_size == wanted["uncompressed_size"]
        assert blob.toc_size == wanted["toc_size"]
        assert blob.cipher.name.lower().replace("_", "-") == wanted["cipher"]
    assert bootstrap.prefetch_inodes() == about.get("prefetch_nids", [])
    bootstrap.close()


@pytest.mark.parametrize("vector_json", LISTED)
def test_extents_cover_every_file_and_every_chunk_has_a_digest(vector_json: Path) -> None:
    bootstrap = opened(vector_json.parent)
    digests = [bootstrap.digests(blob.index) for blob in bootstrap.blobs]
    for path, inode in walk(bootstrap):
        if not stat.S_ISREG(inode.mode):
            continue
        extents = bootstrap.extents(inode, 0, inode.size)
        assert sum(extent.length for extent in extents) == inode.size, path
        for extent in extents:
            blob = bootstrap.blobs[extent.blob_index]
            assert extent.chunk_index < blob.chunk_count
            assert (
                extent.chunk_offset + extent.chunk_size <= -(-blob.uncompressed_size // 4096) * 4096
            )
            if BlobFeature.TARFS in blob.features:
                continue  # has no digests (spec rafs-v6 §11.2)
            source = digests[extent.blob_index]
            assert source is not None
            digest, _ = source.lookup(extent.chunk_index, extent.chunk_offset)
            assert digest is not None, path
    bootstrap.close()


@pytest.mark.parametrize("folder", each_vector(*WITH_PLAIN_DATA))
def test_every_byte_of_every_file_is_there_and_checked(folder: Path) -> None:
    bootstrap = opened(folder)
    files = BlobFiles(
        bootstrap,
        folder / "blobs",
        [chunks_of(bootstrap, blob, folder) for blob in bootstrap.blobs],
    )
    expected = manifest(folder / "expected.jsonl")
    for path, inode in walk(bootstrap):
        if stat.S_ISREG(inode.mode):
            assert files.sha256(inode) == expected[quote(path)]["sha256"], path
    bootstrap.close()


def chunks_of(bootstrap: Bootstrap, blob: BlobInfo, folder: Path) -> ChunkTable:
    assert blob.ci is not None
    data = (folder / "blobs" / blob.meta_blob_id).read_bytes()
    stored = data[blob.ci.offset : blob.ci.offset + blob.ci.compressed_size]
    return open_ci(decode_ci(stored, blob), blob, bootstrap.digests(blob.index))


def test_names_are_listed_in_the_order_of_the_reference(vectors: Path) -> None:
    bootstrap = opened(vectors / "sortnames-v6")
    names = (vectors / "sortnames-v6" / "readdir-order.txt").read_bytes().splitlines()
    root = bootstrap.inode(bootstrap.root_ino)
    assert [entry.name for entry in bootstrap.entries(root)] == names
    bootstrap.close()


def test_images_that_name_wrong_sizes_are_refused(vectors: Path) -> None:
    for name in REFUSED:
        with pytest.raises(FormatError, match="blob 1: ci_uncompressed_size is 96"):
            open_bootstrap(vectors / name / "bootstrap")


# Broken images: each is refused, or gives errors for what is broken and the truth for the rest.


@pytest.mark.parametrize("folder", each_vector("broken/v6-*"))
def test_a_broken_image_gives_errors_but_never_a_wrong_answer(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    about = description(folder)
    try:
        bootstrap = open_bootstrap(folder / "bootstrap")
    except FormatError as refusal:
        said = str(refusal)
        assert about["reference"]["mount"] == "refused"
        assert said.startswith(str(folder))
        assert "\n" not in said
        return
    good = manifest((folder / about["good"].split(":")[0]).resolve())
    found, failed = cautious_walk(bootstrap)
    if folder.name == "v6-directory-loop":  # below, the tree is that of the root, again and again
        good, found = outside("/dir/sub", good), outside("/dir/sub", found)
    for path, shown in found.items():
        wanted = good[path]
        if path == "/":
            wanted = {**wanted, "mode": shown["mode"]}
        assert all(shown[key] == wanted[key] for key in shown if key in wanted), path
    lost = {path for path in good if path not in found}
    assert all(any(path.startswith(broken) for broken in failed) for path in lost)
    assert len(lost) <= 3 or folder.name == "v6-truncated-half"
    warned = folder.name in ("v6-truncated-half", "v6-chunk-table-past-eof")
    assert bool(caplog.records) == warned
    bootstrap.close()


def outside(path: str, records: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {other: record for other, record in records.items() if not other.startswith(path)}


def cautious_walk(bootstrap: Bootstrap) -> tuple[dict[str, dict[str, Any]], set[str]]:
    """Return the records of a tree, at most 8 levels deep, and the paths where something failed."""
    found: dict[str, dict[str, Any]] = {}
    failed: set[str] = set()

    def visit(path: bytes, inode: Inode) -> None:
        try:
            found[quote(path)] = describe(bootstrap, path, inode)
            if stat.S_ISREG(inode.mode):
                bootstrap.extents(inode, 0, inode.size)
        except NydusError:
            failed.add(quote(path))
        if not stat.S_ISDIR(inode.mode) or path.count(b"/") > 8:
            return
        try:
            for entry in bootstrap.entries(inode):
                if entry.name not in (b".", b".."):
                    resolve(path.rstrip(b"/") + b"/" + entry.name, inode, entry.name)
        except FormatError:
            failed.add(quote(path))

    def resolve(path: bytes, parent: Inode, name: bytes) -> None:
        try:
            child = bootstrap.lookup(parent, name)
        except (FormatError, NotFoundError):
            failed.add(quote(path))
            return
        assert child is not None, path
        visit(path, child)

    visit(b"/", bootstrap.inode(bootstrap.root_ino))
    return found, failed
