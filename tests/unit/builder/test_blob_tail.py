"""What stands behind a blob's data: read back with the functions that mounts and tools use."""

import hashlib
from pathlib import Path

import pytest

from nydusd.blob.blob_meta import HEADER_BYTES, check_header, decode_ci, open_ci, pack_v1
from nydusd.blob.model import Codec
from nydusd.blob.segment import Segment
from nydusd.blob.tar_trailer import walk_back
from nydusd.blob.toc import DigestArray, parse_toc
from nydusd.builder.build import build_image
from nydusd.builder.options import BuildOptions
from nydusd.rafs.bootstrap import open_bootstrap
from tests.support.source_trees import write_small_tree


def build(tmp_path: Path, options: BuildOptions) -> tuple[bytes, Path]:
    """Return the blob's bytes and the bootstrap's path."""
    source = write_small_tree(tmp_path / "source")
    bootstrap = None if options.inline_meta else tmp_path / "boot"
    result = build_image(source, options, bootstrap, tmp_path)
    return Path(result.blob_path).read_bytes(), tmp_path / "boot"


def segments(blob: bytes) -> tuple[Segment, ...]:
    walk = walk_back(len(blob))
    wanted = next(walk)
    while True:
        try:
            wanted = walk.send(blob[wanted.offset : wanted.end])
        except StopIteration as stop:
            return tuple(stop.value)


@pytest.mark.parametrize("codec", [Codec.NONE, Codec.LZ4_BLOCK, Codec.ZSTD])
def test_chunk_records_agree_with_the_bootstraps_chunk_table(tmp_path: Path, codec: Codec) -> None:
    blob, bootstrap = build(tmp_path, BuildOptions(codec=codec, chunk_size=4096))
    image = open_bootstrap(bootstrap)
    info = image.blobs[0]
    assert info.ci is not None
    assert info.compressed_data_size == info.ci.offset
    assert info.compressed_size == len(blob)
    stored = blob[info.ci.offset : info.ci.offset + info.ci.compressed_size]
    header = blob[info.ci.offset + info.ci.compressed_size :]
    assert len(header) == HEADER_BYTES
    check_header(header, info)
    digests = image.digests(0)
    assert digests is not None
    table = open_ci(decode_ci(stored, info), info, digests)
    ends = (0, 0)
    for index in range(len(table)):
        chunk = table.chunk(index)
        assert chunk.digest is not None
        assert chunk.crc32 is not None
        assert chunk.compressed_offset == ends[0]
        assert chunk.uncompressed_offset == -(-ends[1] // 4096) * 4096
        ends = (chunk.compressed_end, chunk.uncompressed_end)
    assert ends[0] == info.compressed_data_size
    image.close()


def test_a_plain_blob_has_no_tar_trailers(tmp_path: Path) -> None:
    blob, _ = build(tmp_path, BuildOptions())
    assert b"ustar" not in blob[-512:]
    (tmp_path / "v5").mkdir()
    blob, bootstrap = build(tmp_path / "v5", BuildOptions(fs_version=5))
    image = open_bootstrap(bootstrap)
    assert image.blobs[0].compressed_size == len(blob) == image.blobs[0].compressed_data_size
    image.close()


@pytest.mark.parametrize(
    ("options", "names"),
    [
        (BuildOptions(inline_meta=True), ["image.blob", "blob.meta", "image.boot"]),
        (BuildOptions(fs_version=5, inline_meta=True), ["image.blob", "image.boot"]),
        (BuildOptions(blob_toc=True), ["image.blob", "blob.meta", "blob.digest", "rafs.blob.toc"]),
        (
            BuildOptions(inline_meta=True, blob_toc=True),
            ["image.blob", "blob.meta", "blob.digest", "image.boot", "rafs.blob.toc"],
        ),
    ],
    ids=["inline", "v5-inline", "toc", "inline-toc"],
)
def test_segments_stand_in_the_order_of_the_format(
    tmp_path: Path, options: BuildOptions, names: list[str]
) -> None:
    blob, _ = build(tmp_path, options)
    assert [segment.name for segment in segments(blob)] == names


def test_the_table_of_contents_finds_every_segment(tmp_path: Path) -> None:
    blob, _ = build(tmp_path, BuildOptions(blob_toc=True, inline_meta=True, chunk_size=4096))
    toc = parse_toc(blob)
    assert [segment.name for segment in toc.segments] == [
        "image.blob", "blob.meta", "blob.meta.header", "blob.digest", "image.boot",
    ]  # fmt: skip
    for segment in toc.segments[1:]:
        stored = blob[segment.byte_range.offset : segment.byte_range.end]
        assert len(segment.extract(stored)) == segment.uncompressed_size  # its digest is checked
    data = toc.segments[0]
    trailer_end = data.compressed_size + 512
    assert hashlib.sha256(blob[:trailer_end]).digest() == data.digest  # spec blob §13: with trailer


def test_the_blob_table_names_the_table_of_contents(tmp_path: Path) -> None:
    blob, bootstrap = build(tmp_path, BuildOptions(blob_toc=True, chunk_size=4096))
    image = open_bootstrap(bootstrap)
    info = image.blobs[0]
    toc = parse_toc(blob[-info.toc_size :], info.toc_digest)  # raises if the digest differs
    segment = toc.find("blob.digest")
    assert segment is not None
    stored = blob[segment.byte_range.offset : segment.byte_range.end]
    array = DigestArray(stored, info.chunk_count)
    table = image.digests(0)
    assert table is not None
    for index in range(info.chunk_count):
        assert array.lookup(index, 0)[0] is not None
    image.close()


@pytest.mark.parametrize("size", [1, 4096, 1 << 20, (1 << 20) + 1, 1 << 24])
def test_a_packed_record_keeps_offsets_and_sizes(size: int) -> None:
    compressed_offset, uncompressed_offset = (1 << 40) - 1, (1 << 44) - 4096
    record = pack_v1(compressed_offset, size, uncompressed_offset, size)
    plain, stored = (int.from_bytes(record[at : at + 8], "little") for at in (0, 8))
    assert stored & 0xFFFFFFFFFF == compressed_offset
    assert ((stored >> 44) | ((stored & 0xF0000000000) >> 20)) + 1 == size
    assert plain & 0xFFFFFFFF000 == uncompressed_offset
    assert ((plain >> 44) | ((plain & 0xF00) << 12)) + 1 == size
