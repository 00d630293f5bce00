"""Whole images, built in a folder of the test and read back with the readers that mounts use."""

import hashlib
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from nydusd.blob.model import BlobFeature, Codec, Digester
from nydusd.builder.build import build_image
from nydusd.builder.options import BuildOptions, BuildResult, PrefetchPolicy, WhiteoutSpec
from nydusd.builder.tree import BuildError
from nydusd.errors import ConfigError
from nydusd.rafs.bootstrap import open_bootstrap
from nydusd.rafs.model import SuperblockFlag
from nydusd.units import GIB, KIB, MIB
from tests.support.image_trees import folder_tree, image_tree
from tests.support.source_trees import (
    add_huge_hole,
    seeded_bytes,
    text_bytes,
    write_small_tree,
    write_tree,
)

VERSIONS = pytest.mark.parametrize("version", [5, 6])


@pytest.fixture(scope="module")
def rich_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tree(tmp_path_factory.mktemp("rich") / "source")


@pytest.fixture
def small_tree(tmp_path: Path) -> Path:
    return write_small_tree(tmp_path / "source")


def build(source: Path, out: Path, options: BuildOptions | None = None) -> BuildResult:
    """Build into `out`: out/boot and out/blobs."""
    options = options or BuildOptions()
    bootstrap = None if options.inline_meta else out / "boot"
    return build_image(source, options, bootstrap, out / "blobs")


def tree_of(result: BuildResult) -> dict[bytes, dict[str, object]]:
    blob_dir = Path(result.blob_path).parent if result.blob_path else Path()
    return image_tree(Path(result.bootstrap or result.blob_path), blob_dir)


@VERSIONS
@pytest.mark.parametrize("codec", [Codec.NONE, Codec.LZ4_BLOCK, Codec.ZSTD])
@pytest.mark.parametrize("digester", [Digester.BLAKE3, Digester.SHA256])
def test_an_image_shows_exactly_what_is_in_the_folder(
    rich_tree: Path, tmp_path: Path, version: int, codec: Codec, digester: Digester
) -> None:
    result = build(
        rich_tree, tmp_path, BuildOptions(fs_version=version, codec=codec, digester=digester)
    )
    assert tree_of(result) == folder_tree(rich_tree)


@VERSIONS
@pytest.mark.parametrize("chunk_size", [4 * KIB, 64 * KIB, 16 * MIB])
def test_any_chunk_size_gives_the_same_files(
    rich_tree: Path, tmp_path: Path, version: int, chunk_size: int
) -> None:
    options = BuildOptions(fs_version=version, codec=Codec.LZ4_BLOCK, chunk_size=chunk_size)
    assert tree_of(build(rich_tree, tmp_path, options)) == folder_tree(rich_tree)


@pytest.mark.parametrize(
    "options",
    [
        BuildOptions(fs_version=5, aligned_chunk=True),
        BuildOptions(fs_version=5, inline_meta=True),
        BuildOptions(inline_meta=True),
        BuildOptions(blob_toc=True),
        BuildOptions(inline_meta=True, blob_toc=True),
        BuildOptions(inline_meta=True, blob_toc=True, codec=Codec.NONE),
    ],
    ids=["v5-aligned", "v5-inline", "inline", "toc", "inline-toc", "inline-toc-none"],
)
def test_every_arrangement_of_the_blob_can_be_read_back(
    rich_tree: Path, tmp_path: Path, options: BuildOptions
) -> None:
    result = build(rich_tree, tmp_path, options)
    assert tree_of(result) == folder_tree(rich_tree)
    assert [path.name for path in (tmp_path / "blobs").iterdir()] == list(result.blob_ids)


@VERSIONS
@pytest.mark.parametrize("threads", [1, 3])
def test_the_same_folder_gives_the_same_bytes_whatever_the_threads_do(
    rich_tree: Path, tmp_path: Path, version: int, threads: int
) -> None:
    options = BuildOptions(fs_version=version, repeatable=True, threads=2)
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    first = build(rich_tree, tmp_path / "a", options)
    second = build(rich_tree, tmp_path / "b", replace(options, threads=threads))
    assert first.blob_ids == second.blob_ids
    assert Path(first.bootstrap).read_bytes() == Path(second.bootstrap).read_bytes()


def test_a_blob_is_named_by_its_sha256(small_tree: Path, tmp_path: Path) -> None:
    for options in (BuildOptions(), BuildOptions(blob_toc=True), BuildOptions(inline_meta=True)):
        result = build(small_tree, tmp_path, options)
        digest = hashlib.sha256(Path(result.blob_path).read_bytes()).hexdigest()
        assert result.blob_ids == (digest,)


def test_equal_contents_are_stored_once(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    content = seeded_bytes("twins", 2 * MIB + 100)
    for name in ("a", "b", "c"):
        (source / name).write_bytes(content)
    result = build(source, tmp_path, BuildOptions(codec=Codec.NONE))
    assert result.chunks == 3
    assert result.compressed_size == len(content)
    assert (result.dedup_chunks, result.dedup_bytes) == (6, 2 * len(content))
    assert tree_of(result) == folder_tree(source)


def test_chunks_lie_in_the_order_in_which_tar_reads_them(tmp_path: Path) -> None:
    source = tmp_path / "source"
    order = ["a", "b/deep/x", "b/y", "b-file", "c"]
    for name in order:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(seeded_bytes(name, 5000))
    result = build(source, tmp_path, BuildOptions(codec=Codec.NONE))
    blob = Path(result.blob_path).read_bytes()
    # `b` sorts before `b-file`, as readdir shows them
    assert blob.startswith(b"".join(seeded_bytes(name, 5000) for name in order))


def test_stored_raw_if_compression_does_not_help(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "random").write_bytes(seeded_bytes("r", 5000))
    (source / "text").write_bytes(text_bytes("t", 5000))
    result = build(source, tmp_path, BuildOptions(fs_version=5, codec=Codec.LZ4_BLOCK))
    image = open_bootstrap(Path(result.bootstrap))
    table = image.chunk_table(0)
    assert table is not None
    assert [table.chunk(0).is_compressed, table.chunk(1).is_compressed] == [False, True]
    image.close()


@VERSIONS
def test_a_folder_without_data_gives_no_blob(tmp_path: Path, version: int) -> None:
    source = tmp_path / "source"
    (source / "folder").mkdir(parents=True)
    (source / "empty").touch()
    result = build(source, tmp_path, BuildOptions(fs_version=version))
    assert (result.blob_ids, result.blob_path, result.blob_size) == ((), "", 0)
    assert list((tmp_path / "blobs").iterdir()) == []
    assert image_tree(Path(result.bootstrap), tmp_path) == folder_tree(source)


@VERSIONS
def test_an_inlined_bootstrap_without_data_can_be_read_back(tmp_path: Path, version: int) -> None:
    source = tmp_path / "source"
    (source / "folder").mkdir(parents=True)
    result = build(source, tmp_path, BuildOptions(fs_version=version, inline_meta=True))
    assert tree_of(result) == folder_tree(source)


@VERSIONS
def test_a_hole_of_64_gib_costs_two_chunks(tmp_path: Path, version: int) -> None:
    source = tmp_path / "source"
    source.mkdir()
    add_huge_hole(source)
    result = build(source, tmp_path, BuildOptions(fs_version=version, chunk_size=16 * MIB))
    assert result.chunks == 2
    assert result.dedup_bytes == 64 * GIB - 16 * MIB
    image = open_bootstrap(Path(result.bootstrap))
    inode = image.lookup(image.inode(image.root_ino), b"huge-hole")
    assert inode is not None
    assert inode.size == 64 * GIB + 1
    assert {extent.chunk_index for extent in image.extents(inode, 0, inode.size)} == {0, 1}
    image.close()


def test_data_between_holes_is_found(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    with (source / "sparse").open("wb") as file:
        for offset in (0, 3 * MIB - 1, 7 * MIB + 4096, 12 * MIB):
            file.seek(offset)
            file.write(b"data at %d" % offset)
        file.truncate(20 * MIB + 1)
    for chunk_size in (4 * KIB, MIB):
        result = build(source, tmp_path, BuildOptions(chunk_size=chunk_size))
        assert tree_of(result) == folder_tree(source)


@VERSIONS
def test_the_prefetch_list_is_kept_in_its_order_and_leads_the_blob(
    tmp_path: Path, version: int, caplog: pytest.LogCaptureFixture
) -> None:
    source = tmp_path / "source"
    for name in ("a", "d/x", "d/y", "z"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(seeded_bytes(name, 5000))
    options = BuildOptions(
        fs_version=version,
        codec=Codec.NONE,
        prefetch_policy=PrefetchPolicy.FS,
        prefetch_paths=(b"/z", b"/d", b"/d/y", b"/not/there", b"relative"),
    )
    result = build(source, tmp_path, options)
    image = open_bootstrap(Path(result.bootstrap))
    root = image.inode(image.root_ino)
    z, d = image.lookup(root, b"z"), image.lookup(root, b"d")
    assert z is not None
    assert d is not None
    y = image.lookup(d, b"y")
    assert y is not None
    assert image.prefetch_inodes() == [z.ino, d.ino, y.ino]
    image.close()
    early = b"".join(seeded_bytes(name, 5000) for name in ("z", "d/x", "d/y", "a"))
    assert Path(result.blob_path).read_bytes().startswith(early)
    assert tree_of(result) == folder_tree(source)
    assert [record.getMessage() for record in caplog.records] == [
        "prefetch path=/not/there is not in the image",
        "prefetch path=relative is not in the image",
    ]


def test_the_blob_policy_tells_v5_readers_how_much_to_read_ahead(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "a").write_bytes(seeded_bytes("a", 1000))
    (source / "b").write_bytes(seeded_bytes("b", 3000))
    options = BuildOptions(
        fs_version=5,
        prefetch_policy=PrefetchPolicy.BLOB,
        prefetch_paths=(b"/b",),
    )
    result = build(source, tmp_path, options)
    image = open_bootstrap(Path(result.bootstrap))
    assert image.blobs[0].prefetch_size == 3000
    assert image.prefetch_inodes() == []
    image.close()


def test_a_blob_id_of_the_caller_is_used(small_tree: Path, tmp_path: Path) -> None:
    for version in (5, 6):
        result = build(small_tree, tmp_path, BuildOptions(fs_version=version, blob_id="my-blob"))
        assert result.blob_ids == ("my-blob",)
        assert tree_of(result) == folder_tree(small_tree)


def test_a_blob_file_is_written_where_it_was_asked_for(small_tree: Path, tmp_path: Path) -> None:
    blob = tmp_path / "my.blob"
    result = build_image(small_tree, BuildOptions(), tmp_path / "boot", blob_file=blob)
    assert result.blob_path == str(blob)
    image = open_bootstrap(tmp_path / "boot")
    assert (image.blobs[0].blob_id,) == result.blob_ids
    assert image.blobs[0].compressed_size == blob.stat().st_size
    image.close()


def test_a_bootstrap_without_a_path_is_named_by_its_digest(
    small_tree: Path, tmp_path: Path
) -> None:
    result = build_image(small_tree, BuildOptions(), None, tmp_path / "out")
    path = Path(result.bootstrap)
    assert path.parent == tmp_path / "out"
    assert path.name == hashlib.sha256(path.read_bytes()).hexdigest()


def test_features_and_flags_say_what_the_image_is(small_tree: Path, tmp_path: Path) -> None:
    result = build(small_tree, tmp_path, BuildOptions(blob_toc=True, digester=Digester.SHA256))
    image = open_bootstrap(Path(result.bootstrap))
    assert image.superblock.flags == (
        SuperblockFlag.COMPRESSION_ZSTD
        | SuperblockFlag.HASH_SHA256
        | SuperblockFlag.EXPLICIT_UID_GID
        | SuperblockFlag.INLINED_CHUNK_DIGEST
        | SuperblockFlag.ENCRYPTION_NONE
    )
    info = image.blobs[0]
    assert info.features == (
        BlobFeature.ALIGNED
        | BlobFeature.INLINED_CHUNK_DIGEST
        | BlobFeature.HAS_TAR_HEADER
        | BlobFeature.HAS_TOC
        | BlobFeature.CAP_TAR_TOC
    )
    assert info.compressed_data_size == result.compressed_size
    assert info.compressed_size == result.blob_size
    image.close()


@pytest.mark.parametrize(
    ("spec", "gone"),
    [
        (WhiteoutSpec.OCI, {b"/.wh.gone", b"/d/.wh..wh..opq"}),
        (WhiteoutSpec.NONE, set()),
    ],
)
def test_oci_whiteouts_are_left_out_of_a_single_layer(
    tmp_path: Path, spec: WhiteoutSpec, gone: set[bytes]
) -> None:
    source = tmp_path / "source"
    (source / "d").mkdir(parents=True)
    for name in (".wh.gone", "d/.wh..wh..opq", "d/kept", ".whatever"):
        (source / name).touch()
    result = build(source, tmp_path, BuildOptions(whiteout_spec=spec))
    assert set(folder_tree(source)) - set(image_tree(Path(result.bootstrap), tmp_path)) == gone


@pytest.mark.skipif(os.geteuid() != 0, reason="device nodes need root")
def test_overlayfs_whiteouts_are_left_out_of_a_single_layer(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "d").mkdir(parents=True)
    os.mknod(source / "gone", 0o020000, 0)
    os.mknod(source / "null", 0o020666, os.makedev(1, 3))
    os.setxattr(source / "d", "trusted.overlay.opaque", b"y")
    options = BuildOptions(whiteout_spec=WhiteoutSpec.OVERLAYFS)
    tree = image_tree(Path(build(source, tmp_path, options).bootstrap), tmp_path)
    assert set(tree) == {b"/", b"/d", b"/null"}
    assert tree[b"/d"]["xattrs"] == {}


def damage_by_growing(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"!")


def damage_by_cutting(path: Path) -> None:
    os.truncate(path, 10)


def damage_by_removing(path: Path) -> None:
    path.unlink()


def damage_by_replacing(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize(
    "damage",
    [damage_by_growing, damage_by_cutting, damage_by_removing, damage_by_replacing],
)
def test_a_file_that_changes_meanwhile_stops_the_build_and_leaves_nothing(
    small_tree: Path, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    (tmp_path / "boot").write_bytes(b"the one before")

    def meddle(phase: str, _done: int, _total: int) -> None:
        victim = small_tree / "folder" / "text"
        if phase == "data" and victim.is_file():
            damage(victim)

    with pytest.raises(BuildError, match="source/folder/text: "):
        build_image(small_tree, BuildOptions(), tmp_path / "boot", tmp_path / "blobs", meddle)
    assert (tmp_path / "boot").read_bytes() == b"the one before"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["blobs", "boot", "source"]
    assert list((tmp_path / "blobs").iterdir()) == []


def test_a_target_that_is_a_folder_is_refused_before_anything_is_written(
    small_tree: Path, tmp_path: Path
) -> None:
    (tmp_path / "boot").mkdir()
    with pytest.raises(ConfigError, match="is a folder"):
        build(small_tree, tmp_path)
    assert not (tmp_path / "blobs").exists()


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"chunk_size": 5000}, "chunk-size is 0x1388"),
        ({"chunk_size": 2048}, "chunk-size"),
        ({"chunk_size": 32 * MIB}, "chunk-size"),
        ({"fs_version": 4}, "fs-version is 4"),
        ({"codec": Codec.GZIP}, "gzip"),
        ({"fs_version": 5, "blob_toc": True}, "blob-toc"),
        ({"aligned_chunk": True}, "aligned-chunk"),
        ({"blob_id": "x" * 65}, "blob-id"),
        ({"blob_id": "../x"}, "blob-id"),
        ({"threads": 0}, "threads"),
    ],
)
def test_options_that_no_reader_accepts_are_refused(values: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        BuildOptions(**values)  # type: ignore[arg-type]


def test_progress_tells_phases_and_bytes(small_tree: Path, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    result = build_image(
        small_tree,
        BuildOptions(),
        tmp_path / "boot",
        tmp_path / "blobs",
        lambda *step: seen.append(step),
    )
    assert [phase for phase, done, _ in seen if done == 0] == ["scan", "data", "metadata"]
    assert ("data", result.source_bytes, result.source_bytes) in seen
