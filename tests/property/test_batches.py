"""Batches and encrypted blobs of any make: what is stored comes back, what is changed is found or refused."""

import struct
import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from nydusd.blob.blob_meta import open_meta
from nydusd.blob.encryption import decrypt, stored_size
from nydusd.blob.model import BlobFeature, Codec
from nydusd.builder.blob_files import BlobFiles
from nydusd.errors import FormatError
from tests.support.blob_bytes import make_header, make_info
from tests.support.v2_blobs import V2Blob, make_v2_blob
from tests.support.xts_twin import KEY, encrypt

CODECS = st.sampled_from([Codec.NONE, Codec.LZ4_BLOCK, Codec.ZSTD])
SIZES = st.one_of(st.integers(1, 40), st.integers(1, 3000))
GROUPS = st.lists(st.one_of(SIZES, st.lists(SIZES, min_size=1, max_size=6)), min_size=1, max_size=6)


def faults_of(made: V2Blob, stored: bytes) -> tuple[list[str], int]:
    """Check a blob as a file; return faults and the number of chunks found right."""
    found: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / made.info.blob_id).write_bytes(stored)
        files = BlobFiles(Path(folder))
        try:
            table = files.chunk_table(made.info, made)
        except FormatError as exc:
            return [str(exc)], 0
        files.check_chunks(
            made.info, table, lambda where, what: found.append(f"{where}: {what}"), verify=True
        )
    return found, files.verified


@settings(max_examples=60, deadline=None)
@given(groups=GROUPS, codec=CODECS, encrypted=st.booleans(), seed=st.integers(0, 99))
def test_any_mix_of_chunks_and_batches_comes_back(
    groups: list[int | list[int]], codec: Codec, encrypted: bool, seed: int
) -> None:
    made = make_v2_blob(groups, codec=codec, key=KEY if encrypted else None, seed=seed)
    assert faults_of(made, made.stored) == ([], len(made.plain))


@settings(max_examples=60, deadline=None)
@given(groups=GROUPS, codec=CODECS, encrypted=st.booleans(), data=st.data())
def test_a_changed_byte_of_the_data_is_found_or_makes_no_difference(
    groups: list[int | list[int]], codec: Codec, encrypted: bool, data: st.DataObject
) -> None:
    made = make_v2_blob(groups, codec=codec, key=KEY if encrypted else None)
    stored = bytearray(made.stored)
    place = data.draw(st.integers(0, made.info.compressed_data_size - 1))
    stored[place] ^= data.draw(st.integers(1, 255))
    faults, right = faults_of(made, bytes(stored))
    # Some bits of a compressed frame mean nothing, and some of a unit are its padding.
    assert faults or right == len(made.plain)
    if codec is Codec.NONE and not encrypted:
        assert faults


@settings(max_examples=300, deadline=None)
@given(data=st.data(), encrypted=st.booleans())
def test_any_record_and_any_context_end_in_a_chunk_within_bounds_or_an_error(
    data: st.DataObject, encrypted: bool
) -> None:
    more = BlobFeature.CHUNK_INFO_V2 | BlobFeature.BATCH
    more |= BlobFeature.ENCRYPTED if encrypted else BlobFeature(0)
    edges = st.sampled_from([0, 1, 15, 16, 18, 4096, 1 << 20, 1 << 24, (1 << 24) + 1, 0xFFFF_FFFF])
    number = st.one_of(edges, st.integers(0, 0xFFFF_FFFF))
    pairs = data.draw(st.lists(st.tuples(number, number), max_size=4))
    contexts = b"".join(struct.pack("<II32x", *pair) for pair in pairs)
    records = b"".join(
        struct.pack(
            "<QQQ",
            data.draw(st.integers(0, 1 << 12))
            | data.draw(st.one_of(st.integers(0, 5000), st.integers(0, 0xFF_FFFF))) << 32
            | data.draw(st.sampled_from([0, 1, 5, 5, 5, 13, 8, 9, 16, 0xFF])) << 56,
            data.draw(st.one_of(st.integers(0, 1 << 16), st.integers(0, (1 << 64) - 1))),
            data.draw(st.integers(0, 4)) << 32 | data.draw(number),
        )
        for _ in range(3)
    )
    info = make_info(more=more, context_bytes=len(contexts), compressed_data_size=1 << 16)
    info = info._replace(uncompressed_size=1 << 22)
    header = make_header(
        info,
        context_offset=data.draw(st.sampled_from([72, 72, 72, 0, 71, 4096, (1 << 64) - 1])),
        context_size=data.draw(st.sampled_from([len(contexts)] * 3 + [0, 39, (1 << 64) - 1])),
        context_count=data.draw(st.sampled_from([len(pairs)] * 3 + [0, 0xFFFF_FFFF])),
    )
    ci = records + contexts
    try:
        table = open_meta(memoryview(ci.ljust(-(-len(ci) // 4096) * 4096, b"\0") + header), info)
    except FormatError:
        return
    for index in range(3):
        try:
            chunk = table.chunk(index)
        except FormatError:
            continue
        assert 0 < chunk.compressed_size <= 16 << 20
        assert chunk.compressed_end <= 1 << 16
        assert 0 < chunk.uncompressed_size <= info.chunk_size
        assert not chunk.is_encrypted or chunk.compressed_size >= 16
        if chunk.context is not None:
            assert chunk.context_offset + chunk.uncompressed_size <= chunk.context.uncompressed_size
            assert chunk.context.uncompressed_size <= 16 << 20
            assert chunk.is_encrypted == encrypted


@settings(max_examples=100, deadline=None)
@given(plain=st.binary(min_size=1, max_size=100))
def test_a_unit_of_any_bytes_comes_back_unless_it_looks_like_padding(plain: bytes) -> None:
    stored = encrypt(plain)
    assert len(stored) == stored_size(len(plain))
    if len(plain) == 18 and plain.endswith(b"\x78\x90"):
        return
    assert bytes(decrypt(stored, KEY)) == plain
