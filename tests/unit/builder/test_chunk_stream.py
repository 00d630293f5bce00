"""Files become chunks: cut right, stored once, in order, within a fixed number of buffers."""

import os
from pathlib import Path

import pytest

from nydusd import native
from nydusd.blob.model import Codec, Digester
from nydusd.builder import chunk_stream, reader
from nydusd.builder.chunk_stream import ChunkStream
from nydusd.builder.encode import Batch
from nydusd.builder.ledger import ChunkLedger
from nydusd.builder.options import BuildOptions
from nydusd.builder.tree import BuildError, Node, scan
from nydusd.units import KIB, MIB
from tests.support.source_trees import seeded_bytes, text_bytes

CHUNK = 4 * KIB


def files_of(folder: Path) -> list[Node]:
    return [node for node in scan(os.fsencode(folder)).walk() if node.is_regular and node.size]


def store(
    folder: Path, options: BuildOptions, *, aligned: bool = False
) -> tuple[list[Node], ChunkLedger, bytes]:
    """Store all files of a folder and return their nodes, the ledger, the blob's data."""
    files, ledger, written = files_of(folder), ChunkLedger(aligned=aligned), bytearray()
    with ChunkStream(os.fsencode(folder), options, ledger, written.extend) as stream:
        stream.add(files)
    return files, ledger, bytes(written)


def contents(node: Node, ledger: ChunkLedger, blob: bytes) -> bytes:
    """Return a file's bytes from an uncompressed blob."""
    plain = bytearray()
    for number in ledger.references[node.first_chunk : node.first_chunk + node.chunk_count]:
        row = ledger.row(number)
        assert not row.is_compressed
        piece = blob[row.compressed_offset : row.compressed_offset + row.compressed_size]
        assert native.digest(Digester.BLAKE3, piece) == row.digest
        assert native.crc32c(piece) == row.crc32
        plain += piece
    return bytes(plain)


PLAIN = BuildOptions(codec=Codec.NONE, chunk_size=CHUNK)


@pytest.mark.parametrize("size", [1, CHUNK - 1, CHUNK, CHUNK + 1, 5 * CHUNK, 5 * CHUNK + 1])
def test_a_file_is_cut_into_full_chunks_and_a_rest(tmp_path: Path, size: int) -> None:
    data = seeded_bytes("cut", size)
    (tmp_path / "file").write_bytes(data)
    (node,), ledger, blob = store(tmp_path, PLAIN)
    assert node.chunk_count == -(-size // CHUNK)
    assert contents(node, ledger, blob) == data
    assert blob == data


def test_batches_of_any_size_give_the_same_blob(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(40):
        (tmp_path / f"{number:02}").write_bytes(text_bytes(str(number % 7), 700 * number))
    expected = store(tmp_path, BuildOptions(chunk_size=CHUNK))
    for batch_bytes, pieces, small in (
        (CHUNK, 1024, 0),
        (3 * CHUNK + 5, 1024, 0),
        (MIB, 1, 2 * KIB),
        (MIB, 3, MIB),
    ):
        monkeypatch.setattr(chunk_stream, "SMALL_PIECE_BYTES", small)
        monkeypatch.setattr(reader, "BATCH_BYTES", batch_bytes)
        monkeypatch.setattr(chunk_stream, "BATCH_BYTES", batch_bytes)
        monkeypatch.setattr(reader, "BATCH_PIECES", pieces)
        files, ledger, blob = store(tmp_path, BuildOptions(chunk_size=CHUNK, threads=3))
        assert blob == expected[2]
        assert ledger.references == expected[1].references
        assert [node.first_chunk for node in files] == [node.first_chunk for node in expected[0]]


def test_plain_offsets_are_packed_or_aligned(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / str(number)).write_bytes(seeded_bytes(str(number), 100))
    _, packed, _ = store(tmp_path, PLAIN)
    _, aligned, _ = store(tmp_path, PLAIN, aligned=True)
    assert [packed.uncompressed_offset(number) for number in range(3)] == [0, 100, 200]
    assert [aligned.uncompressed_offset(number) for number in range(3)] == [0, 4096, 8192]
    assert (packed.uncompressed_size, aligned.uncompressed_size) == (300, 12288)


def test_the_number_of_buffers_does_not_grow_with_the_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []

    class Counted(Batch):
        def __init__(self, size_bytes: int) -> None:
            made.append(size_bytes)
            super().__init__(size_bytes)

    for module in (reader, chunk_stream):
        monkeypatch.setattr(module, "Batch", Counted)
        monkeypatch.setattr(module, "BATCH_BYTES", 64 * KIB)
    (tmp_path / "large").write_bytes(seeded_bytes("large", 8 * MIB))
    _, ledger, blob = store(tmp_path, BuildOptions(codec=Codec.NONE, chunk_size=CHUNK, threads=2))
    assert len(blob) == 8 * MIB
    assert len(ledger) == 2048
    assert sum(made) <= 64 * KIB * (2 + 3)


def test_holes_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (tmp_path / "sparse").open("wb") as file:
        file.seek(40 * MIB)
        file.write(b"end")
    read_bytes = 0
    real = os.preadv

    def counting(fd: int, buffers: list[memoryview], offset: int) -> int:
        nonlocal read_bytes
        count = real(fd, buffers, offset)
        read_bytes += count
        return count

    monkeypatch.setattr(os, "preadv", counting)
    (node,), ledger, blob = store(tmp_path, BuildOptions(codec=Codec.NONE, chunk_size=MIB))
    assert read_bytes <= MIB
    assert node.chunk_count == 41
    assert len(ledger) == 2
    assert contents(node, ledger, blob) == bytes(40 * MIB) + b"end"


def test_the_chunk_table_comes_sorted_by_digest(tmp_path: Path) -> None:
    for number in range(30):
        (tmp_path / str(number)).write_bytes(seeded_bytes(str(number), 50))
    _, ledger, _ = store(tmp_path, PLAIN)
    digests = [ledger.digest(number) for number in ledger.in_digest_order()]
    assert digests == sorted(digests)
    assert len(digests) == 30


def test_more_chunks_than_an_index_can_count_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from nydusd.builder import ledger as ledger_module

    monkeypatch.setattr(ledger_module, "CHUNKS_MAX", 2)
    ledger = ChunkLedger(aligned=False)
    for number in range(2):
        ledger.add(bytes([number]) * 32, 0, 1, 1, 0, is_compressed=False)
    with pytest.raises(BuildError, match="larger --chunk-size"):
        ledger.add(b"x" * 32, 0, 1, 1, 0, is_compressed=False)


def test_files_opened_ahead_are_closed_whatever_happens(tmp_path: Path) -> None:
    for number in range(100):
        (tmp_path / f"{number:03}").write_bytes(b"%d" % number)
    files = files_of(tmp_path)
    (tmp_path / "050").unlink()
    before = len(os.listdir("/proc/self/fd"))
    with (
        pytest.raises(BuildError, match="/050: No such file"),
        ChunkStream(os.fsencode(tmp_path), PLAIN, ChunkLedger(aligned=False), len) as stream,
    ):
        stream.add(files)
    assert len(os.listdir("/proc/self/fd")) == before
