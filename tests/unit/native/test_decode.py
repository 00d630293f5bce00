"""Runs of chunks into files and memory: statuses, and what is left behind."""

import errno
import hashlib
import os
import resource
import threading
from collections.abc import Iterator

import pytest

from nydusd import native
from nydusd._native import ffi
from nydusd.blob.model import Chunk, Codec, Digester
from nydusd.errors import FormatError
from nydusd.native import Decoded, Status
from tests.support import native_twins

BLOB_OFFSET = 1 << 33  # of the first stored byte: beyond 32 bits
PLAIN = b"".join(b"%d squared is %d\n" % (n, n * n) for n in range(500))
SAVED = Decoded(Status.SAVED, 0)


def make_chunk(stored: bytes, plain: bytes = PLAIN, **changes: object) -> Chunk:
    chunk = Chunk(
        chunk_index=0,
        compressed_offset=BLOB_OFFSET,
        compressed_size=len(stored),
        uncompressed_offset=4096,
        uncompressed_size=len(plain),
        is_compressed=stored != plain,
        digest=hashlib.sha256(plain).digest(),
        crc32=native.crc32c(plain),
    )
    return chunk._replace(**changes)


def to_file(fd: int, stored: bytes, *chunks: Chunk, codec: int = Codec.ZSTD) -> list[Decoded]:
    return native.decode_to_file(stored, BLOB_OFFSET, chunks, codec, Digester.SHA256, fd)


def to_memory(stored: bytes, chunk: Chunk, codec: int = Codec.ZSTD) -> tuple[Status, bytes]:
    target = bytearray(b"\xee" * chunk.uncompressed_size)
    results = native.decode_to_memory(
        stored, BLOB_OFFSET, [chunk], codec, Digester.SHA256, target, chunk.uncompressed_offset
    )
    return results[0].status, bytes(target)


@pytest.fixture
def fd() -> Iterator[int]:
    descriptor = os.memfd_create("native")
    yield descriptor
    os.close(descriptor)


STORED = native_twins.encode(Codec.ZSTD, PLAIN)


def test_the_c_structs_are_laid_out_as_they_are_packed_here() -> None:
    assert ffi.sizeof("nd_chunk") == native._CHUNK.size == 64
    assert ffi.sizeof("nd_result") == native._RESULT.size
    assert ffi.sizeof("nd_v5_walk") == native._V5_WALK.size
    names = (
        "compressed_offset uncompressed_offset compressed_size uncompressed_size flags crc32 digest"
    )
    assert [ffi.offsetof("nd_chunk", name) for name in names.split()] == [0, 8, 16, 20, 24, 28, 32]


@pytest.mark.parametrize("codec", Codec)
def test_a_good_chunk_reaches_the_file_at_its_plain_address(fd: int, codec: Codec) -> None:
    stored = native_twins.encode(codec, PLAIN)
    chunk = make_chunk(stored)
    assert to_file(fd, stored, chunk, codec=codec) == [SAVED]
    assert os.pread(fd, 1 << 20, 0) == bytes(4096) + PLAIN
    assert to_memory(stored, chunk, codec) == (Status.SAVED, PLAIN)
    assert native.verify_file(fd, [chunk], Digester.SHA256) == [SAVED]


def test_no_chunk_is_no_work(fd: int) -> None:
    assert to_file(fd, STORED) == []
    assert to_file(fd, b"") == []
    assert native.verify_file(fd, [], Digester.BLAKE3) == []


def test_a_raw_chunk_in_a_compressed_blob_is_taken_as_it_is(fd: int) -> None:
    raw = os.urandom(100)
    stored = STORED + raw
    chunks = [
        make_chunk(STORED),
        make_chunk(
            raw, raw, compressed_offset=BLOB_OFFSET + len(STORED), uncompressed_offset=1 << 40
        ),
    ]
    assert to_file(fd, stored, *chunks) == [SAVED, SAVED]
    assert os.pread(fd, 100, 1 << 40) == raw


def test_one_bad_chunk_does_not_stop_the_others(fd: int) -> None:
    good = make_chunk(STORED)
    chunks = [
        good._replace(uncompressed_offset=0, digest=bytes(32)),
        good._replace(uncompressed_offset=1 << 20, crc32=good.crc32 ^ 1 if good.crc32 else 1),
        good._replace(compressed_offset=0),
        good._replace(compressed_size=len(STORED) - 1),
        good,
    ]
    assert [status for status, _ in to_file(fd, STORED, *chunks)] == [
        Status.DIGEST_MISMATCH,
        Status.CRC_MISMATCH,
        Status.OUT_OF_BUFFER,
        Status.DECODE_FAILED,
        Status.SAVED,
    ]
    assert os.pread(fd, 1 << 21, 0) == bytes(4096) + PLAIN


def test_wrong_bytes_leave_no_trace_in_memory() -> None:
    chunk = make_chunk(STORED, digest=bytes(32))
    assert to_memory(STORED, chunk) == (Status.DIGEST_MISMATCH, bytes(len(PLAIN)))
    raw = make_chunk(PLAIN, digest=bytes(32))
    assert to_memory(PLAIN, raw) == (Status.DIGEST_MISMATCH, bytes(len(PLAIN)))


def test_a_digest_does_not_make_up_for_a_wrong_crc_nor_the_other_way() -> None:
    good = make_chunk(STORED)
    assert good.crc32 is not None
    assert to_memory(STORED, good._replace(crc32=good.crc32 ^ 1))[0] is Status.CRC_MISMATCH
    assert to_memory(STORED, good._replace(digest=b"\1" * 32))[0] is Status.DIGEST_MISMATCH
    assert to_memory(STORED, good._replace(digest=None))[0] is Status.SAVED
    assert to_memory(STORED, good._replace(digest=None, crc32=0))[0] is Status.CRC_MISMATCH
    assert to_memory(STORED, good._replace(digest=None, crc32=None))[0] is Status.SAVED


def test_the_target_may_be_any_part_of_the_address_space() -> None:
    chunk = make_chunk(STORED, uncompressed_offset=(1 << 40) + 10)
    target = bytearray(b"\xee" * (len(PLAIN) + 20))
    results = native.decode_to_memory(
        STORED, BLOB_OFFSET, [chunk], Codec.ZSTD, Digester.SHA256, memoryview(target), 1 << 40
    )
    assert results == [SAVED]
    assert target == b"\xee" * 10 + PLAIN + b"\xee" * 10


@pytest.mark.parametrize("target_offset", [4097, 0, 1 << 62])
def test_a_chunk_outside_the_target_is_not_written(target_offset: int) -> None:
    target = bytearray(len(PLAIN))
    results = native.decode_to_memory(
        STORED, BLOB_OFFSET, [make_chunk(STORED)], Codec.ZSTD, 1, target, target_offset
    )
    assert results == [Decoded(Status.OUT_OF_BUFFER, 0)]
    assert target == bytes(len(PLAIN))


@pytest.mark.parametrize("codec", [Codec.LZ4_BLOCK, Codec.ZSTD])
def test_a_bomb_is_an_error_and_takes_no_more_than_the_chunk_says(fd: int, codec: Codec) -> None:
    bomb = native.compress(codec, bytes(8 << 20))
    assert bomb is not None
    chunk = make_chunk(bomb, bytes(4096))
    assert to_file(fd, bomb, chunk, codec=codec) == [Decoded(Status.DECODE_FAILED, 0)]
    assert os.fstat(fd).st_size == 0


@pytest.mark.parametrize("size", [0, (16 << 20) + 1, (1 << 32) - 1])
def test_sizes_that_no_chunk_has_fail(fd: int, size: int) -> None:
    chunk = make_chunk(STORED, uncompressed_size=size)
    raw = chunk._replace(is_compressed=False)
    assert [s for s, _ in to_file(fd, STORED, chunk, raw)] == [Status.DECODE_FAILED] * 2
    assert [s for s, _ in native.verify_file(fd, [chunk], 1)] == [Status.DECODE_FAILED]


def test_a_range_past_the_end_of_files_is_refused(fd: int) -> None:
    chunk = make_chunk(STORED, uncompressed_offset=(1 << 63) - 5)
    assert to_file(fd, STORED, chunk) == [Decoded(Status.OUT_OF_BUFFER, 0)]


@pytest.mark.parametrize(
    "changes",
    [
        {"compressed_size": 1 << 32},
        {"uncompressed_size": -1},
        {"compressed_offset": -1},
        {"uncompressed_offset": 1 << 64},
        {"crc32": 1 << 32},
        {"digest": bytes(31)},
        {"digest": bytes(33)},
    ],
)
def test_numbers_that_fit_no_record_are_named(fd: int, changes: dict[str, object]) -> None:
    with pytest.raises(FormatError):
        to_file(fd, STORED, make_chunk(STORED, **changes))


def test_a_failed_write_is_unsaved_with_its_errno(fd: int) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    try:
        assert to_file(full, STORED, make_chunk(STORED)) == [Decoded(Status.UNSAVED, errno.ENOSPC)]
    finally:
        os.close(full)
    assert to_file(-1, STORED, make_chunk(STORED)) == [Decoded(Status.UNSAVED, errno.EBADF)]
    assert native.verify_file(fd, [make_chunk(STORED)], 1) == [Decoded(Status.UNSAVED, 0)]


def test_a_short_write_goes_on_and_then_tells_why_it_stopped(fd: int) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, before[1]))
    try:
        results = to_file(fd, STORED, make_chunk(STORED))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert results == [Decoded(Status.UNSAVED, errno.EFBIG)]
    assert os.fstat(fd).st_size == 5000


def test_verify_tells_changed_bytes(fd: int) -> None:
    chunk = make_chunk(STORED)
    to_file(fd, STORED, chunk)
    os.pwrite(fd, b"?", 4096 + 77)
    unknown = chunk._replace(digest=None, crc32=None)
    crc_only = chunk._replace(digest=None)
    statuses = [s for s, _ in native.verify_file(fd, [chunk, crc_only, unknown], 1)]
    assert statuses == [Status.DIGEST_MISMATCH, Status.CRC_MISMATCH, Status.SAVED]


def test_an_unknown_codec_or_digester_is_a_bug_and_said_so(fd: int) -> None:
    with pytest.raises(ValueError, match="unknown codec"):
        to_file(fd, STORED, make_chunk(STORED), codec=4)
    with pytest.raises(ValueError, match="unknown codec"):
        native.verify_file(fd, [make_chunk(STORED)], 2)
    assert os.fstat(fd).st_size == 0


def test_threads_decode_side_by_side_without_touching_each_other(fd: int) -> None:
    threads, pieces = 4, [PLAIN[n:] for n in range(40)]
    stored, chunks = b"", []
    for number, plain in enumerate(pieces):
        packed = native_twins.encode(Codec.ZSTD, plain)
        place = {
            "compressed_offset": BLOB_OFFSET + len(stored),
            "uncompressed_offset": number << 14,
        }
        chunks.append(make_chunk(packed, plain, **place))
        stored += packed
    results: list[list[Decoded]] = [[] for _ in range(threads)]

    def work(number: int) -> None:
        for _ in range(5):
            results[number] += to_file(fd, stored, *chunks[number::threads])

    workers = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert results == [[SAVED] * 50] * threads
    for number, plain in enumerate(pieces):
        assert os.pread(fd, len(plain), number << 14) == plain
