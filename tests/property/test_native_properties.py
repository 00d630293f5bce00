"""The C module against plain Python on any input hypothesis can think of."""

import os
from typing import NamedTuple

from hypothesis import given, settings
from hypothesis import strategies as st

from nydusd import native
from nydusd.blob.model import Chunk, Codec, Digester
from nydusd.native import NO_RECORD, Decoded, Status
from tests.support import native_twins

STORED_OFFSET = 5000
TARGET_OFFSET = 1 << 35


class Run(NamedTuple):
    stored: bytes
    chunks: list[Chunk]
    codec: Codec
    digester: Digester
    target_bytes: int


plain_bytes = st.one_of(
    st.binary(min_size=1, max_size=300),
    st.builds(
        lambda unit, times: unit * times, st.binary(min_size=1, max_size=9), st.integers(1, 400)
    ),
)


@st.composite
def runs(draw: st.DrawFn) -> Run:
    """A run of chunks, of which some say something wrong about themselves."""
    codec, digester = draw(st.sampled_from(Codec)), draw(st.sampled_from(Digester))
    stored, chunks, target = b"", [], 0
    for number in range(draw(st.integers(0, 6))):
        plain = draw(plain_bytes)
        compressed = codec is not Codec.NONE and draw(st.booleans())
        packed = native_twins.encode(codec, plain) if compressed else plain
        target += draw(st.integers(0, 20))
        chunk = Chunk(
            number,
            STORED_OFFSET + len(stored),
            len(packed),
            TARGET_OFFSET + target,
            len(plain),
            compressed,
            native_twins.digest(digester, plain) if draw(st.booleans()) else None,
            native_twins.crc32c(plain) if draw(st.booleans()) else None,
        )
        stored += packed
        target += len(plain)
        chunks.append(chunk._replace(**draw(wrong_words(chunk))))
    cut = draw(st.one_of(st.just(0), st.integers(0, 40)))
    return Run(stored[: max(len(stored) - cut, 0)], chunks, codec, digester, target)


def wrong_words(chunk: Chunk) -> st.SearchStrategy[dict[str, object]]:
    sizes = st.one_of(
        st.sampled_from([0, 1, (16 << 20) + 1, (1 << 32) - 1]),
        st.integers(-3, 3).map(lambda off: max(chunk.uncompressed_size + off, 0)),
    )
    offsets = st.one_of(
        st.sampled_from([0, 1 << 40, (1 << 63) - 1, (1 << 64) - 1]),
        st.integers(-3, 3).map(lambda off: chunk.compressed_offset + off),
    )
    wrong = st.one_of(
        st.fixed_dictionaries({"compressed_offset": offsets}),
        st.fixed_dictionaries({"compressed_size": sizes}),
        st.fixed_dictionaries({"uncompressed_size": sizes}),
        st.fixed_dictionaries({"is_compressed": st.booleans()}),
        st.fixed_dictionaries({"digest": st.binary(min_size=32, max_size=32)}),
        st.fixed_dictionaries({"crc32": st.integers(0, (1 << 32) - 1)}),
    )
    return st.one_of(st.just({}), st.just({}), wrong)


def expected_of(run: Run) -> list[tuple[Status, bytes]]:
    return [
        native_twins.plain_of(run.stored, STORED_OFFSET, chunk, run.codec, run.digester)
        for chunk in run.chunks
    ]


@given(run=runs())
@settings(max_examples=300, deadline=None)
def test_a_file_gets_what_the_twin_decodes_and_nothing_else(run: Run) -> None:
    expected = expected_of(run)
    with open(os.memfd_create("native"), "w+b", buffering=0) as file:
        results = native.decode_to_file(
            run.stored, STORED_OFFSET, run.chunks, run.codec, run.digester, file.fileno()
        )
        assert results == [Decoded(status, 0) for status, _ in expected]
        image: dict[int, int] = {}
        for chunk, (status, plain) in zip(run.chunks, expected, strict=True):
            if status is Status.SAVED:
                image.update(enumerate(plain, chunk.uncompressed_offset))
        end = max(image, default=-1) + 1
        assert os.fstat(file.fileno()).st_size == end
        written = os.pread(file.fileno(), max(end - TARGET_OFFSET, 0), TARGET_OFFSET)
        assert written == bytes(image.get(at, 0) for at in range(TARGET_OFFSET, end))
        saved = [
            c for c, (status, _) in zip(run.chunks, expected, strict=True) if status is Status.SAVED
        ]
        # A chunk whose range a later one wrote over is not there any more: check the last of each.
        alone = [c for c in saved if not any(o is not c and overlaps(o, c) for o in saved)]
        checked = native.verify_file(file.fileno(), alone, run.digester)
        assert checked == [Decoded(Status.SAVED, 0)] * len(alone)


def overlaps(one: Chunk, other: Chunk) -> bool:
    return (
        one.uncompressed_offset < other.uncompressed_end
        and other.uncompressed_offset < one.uncompressed_end
    )


@given(run=runs())
@settings(max_examples=300, deadline=None)
def test_memory_gets_the_same_and_zeros_where_a_chunk_is_wrong(run: Run) -> None:
    target = bytearray(b"\xee" * run.target_bytes)
    twin = bytearray(target)
    statuses = []
    for chunk, (decoded, plain) in zip(run.chunks, expected_of(run), strict=True):
        start = chunk.uncompressed_offset - TARGET_OFFSET
        status = decoded
        if 0 < chunk.uncompressed_size <= native_twins.CHUNK_MAX_BYTES:
            if start + chunk.uncompressed_size > run.target_bytes:
                status = Status.OUT_OF_BUFFER
            else:
                size = chunk.uncompressed_size
                twin[start : start + size] = plain if status is Status.SAVED else bytes(size)
        statuses.append(Decoded(status, 0))
    results = native.decode_to_memory(
        run.stored, STORED_OFFSET, run.chunks, run.codec, run.digester, target, TARGET_OFFSET
    )
    assert results == statuses
    assert target == twin


@given(
    codec=st.sampled_from([Codec.LZ4_BLOCK, Codec.GZIP, Codec.ZSTD]),
    plain=plain_bytes,
    flips=st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(1, 255)), min_size=1, max_size=3),
)
@settings(max_examples=300, deadline=None)
def test_flipped_bytes_are_found_or_harmless(
    codec: Codec, plain: bytes, flips: list[tuple[int, int]]
) -> None:
    stored = bytearray(native_twins.encode(codec, plain))
    for place, mask in flips:
        stored[place % len(stored)] ^= mask
    digest = native_twins.digest(Digester.BLAKE3, plain)
    chunk = Chunk(0, 0, len(stored), 0, len(plain), True, digest)
    target = bytearray(len(plain))
    ((status, _),) = native.decode_to_memory(stored, 0, [chunk], codec, 0, target, 0)
    if status is Status.SAVED:
        assert target == plain
    else:
        assert status in (Status.DECODE_FAILED, Status.DIGEST_MISMATCH)
        assert target == bytes(len(plain))


@given(codec=st.sampled_from([1, 2, 3]), garbage=st.binary(max_size=400), size=st.integers(0, 5000))
@settings(max_examples=300, deadline=None)
def test_garbage_decodes_to_the_promised_size_or_not_at_all(
    codec: int, garbage: bytes, size: int
) -> None:
    plain = native.decompress(codec, garbage, size)
    assert plain is None or len(plain) == size


@given(data=st.binary(max_size=5000), start=st.integers(0, 70))
def test_digests_agree_with_other_implementations_at_any_address(data: bytes, start: int) -> None:
    view = memoryview(data)[min(start, len(data)) :]
    for digester in Digester:
        assert native.digest(digester, view) == native_twins.digest(digester, bytes(view))
    assert native.crc32c(view) == native_twins.crc32c(bytes(view))


@given(length=st.integers(0, 3_000_000), seed=st.binary(min_size=4, max_size=4))
@settings(max_examples=40, deadline=None)
def test_blake3_agrees_on_long_input(length: int, seed: bytes) -> None:
    data = (seed * (length // 4 + 1))[:length]
    assert native.digest(0, data) == native_twins.digest(Digester.BLAKE3, data)


@given(
    chunk_count=st.integers(1, 200),
    ready=st.sets(st.integers(0, 199)),
    base=st.integers(0, 9),
    start=st.integers(0, 210),
)
def test_chunk_map_is_a_set_of_indices(
    chunk_count: int, ready: set[int], base: int, start: int
) -> None:
    chunk_map = bytearray(b"\xa5" * base + bytes((chunk_count + 7) // 8) + b"\xa5")
    present = sorted(index for index in ready if index < chunk_count)
    assert native.mark_ready(chunk_map, base, chunk_count, present) == len(present)
    assert native.mark_ready(chunk_map, base, chunk_count, present) == 0
    assert native.count_ready(chunk_map, base, chunk_count) == len(present)
    assert [
        i for i in range(chunk_count) if native.is_ready(chunk_map, base, chunk_count, i)
    ] == present
    absent = next((i for i in range(start, chunk_count) if i not in ready), None)
    assert native.next_absent(chunk_map, base, chunk_count, start) == absent
    assert chunk_map[:base] == b"\xa5" * base
    assert chunk_map[-1:] == b"\xa5"
    bits = "".join(f"{byte:08b}" for byte in chunk_map[base:-1])
    assert [i for i, bit in enumerate(bits) if bit == "1"] == present


@given(
    words=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 40)), max_size=60),
    chunk_count=st.integers(0, 30),
)
def test_chunk_table_index_agrees_with_the_twin(
    words: list[tuple[int, int]], chunk_count: int
) -> None:
    table = b"".join(
        bytes(32) + blob.to_bytes(4, "little") + bytes(36) + index.to_bytes(4, "little") + bytes(4)
        for blob, index in words
    )
    index = native.index_chunk_table(b"??" + table, 2, len(table), 1, chunk_count)
    assert {i: n for i, n in enumerate(index) if n != NO_RECORD} == native_twins.chunk_table(
        table, 1, chunk_count
    )


@given(
    body=st.binary(min_size=700, max_size=1500),
    slots=st.lists(st.integers(0, 240), min_size=1, max_size=6),
    modes=st.lists(st.integers(0, 150), max_size=20),
)
@settings(max_examples=300, deadline=None)
def test_v5_walk_agrees_with_the_twin_on_any_bytes(
    body: bytes, slots: list[int], modes: list[int]
) -> None:
    table = b"".join((1024 + slot).to_bytes(4, "little") for slot in slots)
    inodes = bytearray(body)
    for place in modes:  # make it likelier that something looks like a small regular file
        inodes[8 * place % 500 + 60 : 8 * place % 500 + 64] = (0o100644).to_bytes(4, "little")
        inodes[8 * place % 500 + 96 : 8 * place % 500 + 104] = b"\1\0\0\0\3\0\0\0"
    file = bytes(8192) + bytes(inodes) + table
    found, malformed = native_twins.v5_chunks(file, len(file) - len(table), len(slots), 0)
    walk = native.walk_v5_chunks(file, len(file) - len(table), len(slots), 0)
    assert walk.malformed_inodes == malformed
    assert walk.chunk_count == max(found, default=-1) + 1
    if walk.chunk_count < 1 << 16:
        index = native.index_v5_chunks(file, len(file) - len(table), len(slots), 0)
        assert {i: place * 8 for i, place in enumerate(index) if place != NO_RECORD} == {
            i: at // 8 * 8 for i, at in found.items()
        }
