"""Blobs and cache files of the reference builder and daemon."""

import hashlib
import re
from pathlib import Path
from typing import Any

import pytest
import zstandard

from nydusd import native
from nydusd.blob.blob_meta import (
    check_header,
    decode_ci,
    meta_file_size,
    open_header,
    open_meta,
    stored_range,
)
from nydusd.blob.inline import extract_bootstrap, find_bootstrap, tail_range
from nydusd.blob.model import BlobInfo, Codec
from nydusd.blob.segment import Segment
from nydusd.blob.tar_trailer import TRAILER_BYTES, walk_back
from nydusd.blob.toc import DigestArray, parse_toc, toc_range
from nydusd.errors import FormatError, IntegrityError, NotFoundError
from nydusd.rafs.bootstrap import open_bootstrap
from tests.support.vectors import description, each_vector, vector

# All but optimize-v6, whose tables contradict each other: the reference cannot read it back either.
V6_BOOTSTRAPS = [
    "[!o]*v6*/bootstrap",
    "overlayfs-v6/bootstrap",
    "*v6*/image.boot",
    "*zran*/bootstrap",
    "*inline-toc/bootstrap",
]


def blobs_of(bootstrap: Path) -> list[BlobInfo]:
    source = Path(description(bootstrap.parent).get("mount_source") or "").name
    extracted_from = source if bootstrap.name == "image.boot" else None
    opened = open_bootstrap(bootstrap, extracted_from=extracted_from)
    blobs = list(opened.blobs)
    opened.close()
    return blobs


def cached_meta(folder: Path, info: BlobInfo) -> bytes | None:
    name = f"*/{info.blob_id}.blob.meta"
    return next((path.read_bytes() for path in sorted(folder.glob(name))), None)


def file_of(folder: Path, info: BlobInfo, blob_id: str) -> Path | None:
    """Return the blob's file; the vectors' other folders are asked for chunk dictionaries."""
    entry = description(folder)["blobs"][info.index]
    name = entry.get("meta_file") if blob_id != info.blob_id else entry.get("file")
    return folder / name if name else None


@pytest.mark.parametrize("bootstrap", each_vector(*V6_BOOTSTRAPS))
def test_the_tail_of_a_blob_gives_its_cached_records(bootstrap: Path) -> None:
    folder = bootstrap.parent
    for info in blobs_of(bootstrap):
        path = file_of(folder, info, info.meta_blob_id)
        if path is None or not path.exists() or info.ci is None or not info.chunk_count:
            continue
        at = stored_range(info)
        stored = path.read_bytes()[at.offset : at.end]
        assert len(stored) == at.length
        header = open_header(stored[info.ci.compressed_size :], info)
        ci = decode_ci(stored[: info.ci.compressed_size], info)
        cached = cached_meta(folder, info)
        if cached is not None:
            assert cached[: len(ci)] == ci
            assert cached[-len(header) :] == header
            assert not any(cached[len(ci) : -len(header)])


@pytest.mark.parametrize("meta", each_vector("*/cache*/*.blob.meta", "*/blob-cache/*.blob.meta"))
def test_cache_files_of_the_reference_are_used_as_they_are(meta: Path) -> None:
    bootstrap = next(
        path for name in ("image.boot", "bootstrap") if (path := meta.parents[1] / name).exists()
    )
    blob_id = meta.name.removesuffix(".blob.meta")
    (info,) = (blob for blob in blobs_of(bootstrap) if blob.blob_id == blob_id)
    table = open_meta(meta.read_bytes(), info)
    assert meta.stat().st_size == meta_file_size(info)
    assert len(table) == info.chunk_count
    end = 0
    for index in range(len(table)):
        offset, size = table.claim(index)
        assert offset >= end
        end = offset + size
        assert table.locate(offset) == table.locate(end - 1) == index
        chunk = table.chunk(index)
        assert (chunk.uncompressed_offset, chunk.uncompressed_size) == (offset, size)
    assert end <= -(-info.uncompressed_size // 4096) * 4096


@pytest.mark.parametrize("meta", each_vector("v6-lz4*/cache/*.blob.meta", "v6-*toc/cache/*.meta"))
def test_records_lead_to_the_bytes_that_digests_name(meta: Path) -> None:
    folder = meta.parents[1]
    bootstrap = next(
        path for name in ("image.boot", "bootstrap") if (path := folder / name).exists()
    )
    opened = open_bootstrap(
        bootstrap, extracted_from=meta.name[:64] if bootstrap.name == "image.boot" else None
    )
    (info,) = opened.blobs
    stored = (folder / "blobs" / info.blob_id).read_bytes()
    table = open_meta(meta.read_bytes(), info, opened.digests(0))
    for index in range(len(table)):
        chunk = table.chunk(index)
        plain: bytes | None = stored[chunk.compressed_offset : chunk.compressed_end]
        if chunk.is_compressed:
            assert plain is not None
            plain = native.decompress(info.codec, plain, chunk.uncompressed_size)
        assert plain is not None
        assert chunk.digest == native.digest(info.digester, plain)
        assert chunk.crc32 == native.crc32c(plain)
    opened.close()


def segments_of(blob: bytes) -> tuple[Segment, ...]:
    plan = walk_back(len(blob))
    wanted = next(plan)
    while True:
        try:
            wanted = plan.send(blob[wanted.offset : wanted.end])
        except StopIteration as end:
            found: tuple[Segment, ...] = end.value
            return found


def blobs_with_trailers() -> list[Any]:
    """Parameters: all blobs that end in a tar trailer; others are the foreign layers beside them."""
    return [
        param
        for param in each_vector("*/blobs/*")
        if param.values[0] is None or param.values[0].read_bytes()[-255:-250] == b"ustar"
    ]


@pytest.mark.parametrize("path", blobs_with_trailers())
def test_every_segment_of_a_blob_is_found_and_is_what_its_toc_says(path: Path) -> None:
    blob = path.read_bytes()
    segments = segments_of(blob)
    assert segments[0].offset == 0
    known = {"image.blob", "blob.meta", "blob.digest", "image.boot", "rafs.blob.toc"}
    assert {segment.name for segment in segments} <= known
    if segments[-1].name != "rafs.blob.toc":
        return
    at = toc_range(len(blob), segments[-1].compressed_size + TRAILER_BYTES)
    toc = parse_toc(blob[at.offset : at.end])
    for entry in toc.segments:
        if entry.name == "image.blob":
            continue
        stored = blob[entry.byte_range.offset : entry.byte_range.end]
        plain = entry.extract(stored)
        assert hashlib.sha256(plain).digest() == entry.digest
        if entry.name in ("blob.digest", "image.boot"):
            (segment,) = (segment for segment in segments if segment.name == entry.name)
            assert segment.byte_range == entry.byte_range


@pytest.mark.parametrize("toc_file", each_vector("*/cache*/*.blob.toc"))
def test_cached_tocs_and_digests_of_the_reference_are_used_as_they_are(toc_file: Path) -> None:
    (info,) = blobs_of(toc_file.parents[1] / "bootstrap")
    toc = parse_toc(toc_file.read_bytes(), info.toc_digest, "toc")
    entry = toc.find("blob.digest")
    assert entry is not None
    stored = toc_file.with_suffix(".digest").read_bytes()
    array = DigestArray(entry.extract(stored), info.chunk_count)
    opened = open_bootstrap(toc_file.parents[1] / "bootstrap")
    digests = opened.digests(0)
    assert digests is not None
    table = open_meta(toc_file.with_suffix(".meta").read_bytes(), info)
    for index in range(info.chunk_count):
        offset = table.claim(index)[0]
        assert array.lookup(index, offset)[0] == digests.lookup(index, offset)[0]
    opened.close()
    with pytest.raises(IntegrityError):
        parse_toc(toc_file.read_bytes(), b"x" * 32, "toc")


@pytest.mark.parametrize("extracted", each_vector("*/image.boot"))
def test_an_inlined_bootstrap_is_the_one_that_the_reference_took_out(extracted: Path) -> None:
    folder = extracted.parent
    blob = (folder / description(folder)["mount_source"]).read_bytes()
    segment = find_bootstrap(blob[tail_range(len(blob)).offset :], len(blob))
    stored = blob[segment.byte_range.offset : segment.byte_range.end]
    assert extract_bootstrap(stored, segment) == extracted.read_bytes()


@pytest.mark.parametrize("name", ["v5-zstd-sha256-128k", "v6-lz4-sha256-64k", "v6-toc"])
def test_a_blob_without_bootstrap_holds_none(name: str) -> None:
    (path,) = (vector(name) / "blobs").iterdir()
    blob = path.read_bytes()
    with pytest.raises(NotFoundError):
        find_bootstrap(blob[tail_range(len(blob)).offset :], len(blob))


def test_a_ruined_header_is_refused() -> None:
    folder = vector("broken/v6-blob-meta-bad-magic")
    (info,) = blobs_of_broken(folder)
    (path,) = (folder / "blobs").iterdir()
    at = stored_range(info)
    stored = path.read_bytes()[at.offset : at.end]
    with pytest.raises(FormatError, match="CI header magic"):
        check_header(stored[-4096:], info)


def test_a_record_whose_stored_size_is_wrong_is_found_out_by_decoding() -> None:
    folder = vector("broken/v6-chunk-truncated")
    (info,) = blobs_of_broken(folder)
    (path,) = (folder / "blobs").iterdir()
    blob = path.read_bytes()
    at = stored_range(info)
    stored = blob[at.offset : at.end]
    assert info.ci is not None
    check_header(stored[-4096:], info)
    ci = decode_ci(stored[: info.ci.compressed_size], info)
    table = open_meta(ci.ljust(meta_file_size(info) - 4096, b"\0") + stored[-4096:], info)
    chunk = table.chunk(0)
    raw = blob[chunk.compressed_offset : chunk.compressed_end]
    assert chunk.is_compressed
    assert native.decompress(info.codec, raw, chunk.uncompressed_size) is None


def blobs_of_broken(folder: Path) -> list[BlobInfo]:
    opened = open_bootstrap(folder / "bootstrap")
    blobs = list(opened.blobs)
    opened.close()
    return blobs


@pytest.mark.parametrize("bootstrap", each_vector("v6-inline-toc/image.boot", "v6-toc/bootstrap"))
def test_the_tocs_digest_is_that_of_the_blob_table(bootstrap: Path) -> None:
    (info,) = blobs_of(bootstrap)
    path = bootstrap.parent / "blobs" / info.blob_id
    blob = path.read_bytes()
    at = toc_range(len(blob), info.toc_size)
    toc = parse_toc(blob[at.offset : at.end], info.toc_digest)
    meta = toc.find("blob.meta")
    assert meta is not None
    assert info.ci is not None
    assert (meta.offset, meta.compressed_size) == (info.ci.offset, info.ci.compressed_size)
    assert meta.codec is Codec.ZSTD
    assert re.fullmatch("[0-9a-f]{64}", meta.digest.hex())
    with pytest.raises(FormatError):
        open_meta(zstandard.ZstdCompressor().compress(b""), info._replace(index=1))
