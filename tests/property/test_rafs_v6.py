"""v6 bootstraps: whatever the bytes, each question ends in a value or in one of two errors; and a listing,
a look-up and a range agree with the tree that the image was made of.
"""

import stat
import struct
from contextlib import suppress
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nydusd.errors import FormatError, NotFoundError
from nydusd.rafs.model import Extent, Inode
from nydusd.rafs.v6 import BootstrapV6, open_v6
from tests.support.rafs_v6_image import (
    BLOB_TABLE,
    EXT_SUPERBLOCK,
    ROOT_NID,
    SLOTS,
    SUPERBLOCK,
    BlobSpec,
    ChunkRow,
    Node,
    directory,
    make_image,
    regular,
    symlink,
)

CHUNK = 4096
SOURCE = "fuzzed/image.boot"
ENTRIES_PER_LISTING = 500  # of a spoilt directory, which may hold as many as the file has room for
STEPS_MAX = 300


@pytest.fixture(autouse=True)
def faults_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    """A spoilt prefetch or chunk table is worth a warning."""


def sample() -> bytes:
    """One of everything, small enough that a random byte matters."""
    many = {f"n{number:03}-{'x' * 60}".encode(): regular(0, []) for number in range(90)}
    shared = regular(
        9000, [(0, 0, 0), (0, 1, 1), (1, 0, 0)], xattrs=[(1, b"k", b"v"), (6, b"c", b"")]
    )
    root = directory(
        {
            b"many": directory(many),
            b"deep": directory({b"er": directory({b"hard": shared}, xattrs=[(4, b"o", b"y")])}),
            b"hard": shared,
            b"compact": regular(10, [(1, 1, 2)], compact=True),
            b"link": symlink(b"deep/er"),
            b"long": symlink(b"t" * 4000),
            b"dev": Node(stat.S_IFCHR | 0o600, rdev=5),
            b"fifo": Node(stat.S_IFIFO | 0o600),
        }
    )
    rows = [ChunkRow(0, 1, 4096), ChunkRow(1, 0, 0), ChunkRow(0, 0, 0)]
    image = make_image(
        root,
        [BlobSpec("a" * 64), BlobSpec("b" * 64)],
        chunk_size=CHUNK,
        prefetch=[ROOT_NID],
        chunk_rows=rows,
    )
    return image.data()


SAMPLE = sample()
# Where bytes mean something: a flip in zero padding tells nothing.
MEANINGFUL = [
    offset
    for start, end in (
        (SUPERBLOCK, SLOTS + 256),
        (BLOB_TABLE, BLOB_TABLE + 520),
        (12288, len(SAMPLE)),
    )
    for offset in range(start, end)
    if start in (SUPERBLOCK, BLOB_TABLE) or any(SAMPLE[offset - 8 : offset + 8])
]
EDGES = [0, 1, 2, 4095, 4096, (1 << 31) - 1, (1 << 32) - 1, (1 << 63) - 1, 1 << 63, (1 << 64) - 1]


@given(
    st.lists(st.tuples(st.sampled_from(MEANINGFUL), st.integers(0, 255)), min_size=1, max_size=8)
)
def test_any_flipped_bytes_end_in_a_value_or_a_format_error(flips: list[tuple[int, int]]) -> None:
    data = bytearray(SAMPLE)
    for offset, value in flips:
        data[offset] = value
    ask_everything(bytes(data))


@given(
    st.lists(
        st.tuples(st.sampled_from(MEANINGFUL), st.sampled_from("HIQ"), st.sampled_from(EDGES)),
        min_size=1,
        max_size=3,
    )
)
def test_any_extreme_number_ends_in_a_value_or_a_format_error(
    patches: list[tuple[int, str, int]],
) -> None:
    data = bytearray(SAMPLE)
    for offset, code, value in patches:
        raw = struct.pack("<Q", value)[: struct.calcsize(code)]
        data[offset : offset + len(raw)] = raw
    ask_everything(bytes(data[: len(SAMPLE)]))


@given(st.integers(0, len(SAMPLE) // 512).map(lambda sectors: sectors * 512))
def test_any_cut_ends_in_a_value_or_a_format_error(size: int) -> None:
    ask_everything(SAMPLE[:size])


@given(st.binary(max_size=6000))
def test_no_bytes_at_all_are_mistaken_for_a_bootstrap(data: bytes) -> None:
    head = SAMPLE[: EXT_SUPERBLOCK + 256]
    for candidate in (data, head + data):
        ask_everything(candidate)


def ask_everything(data: bytes) -> None:
    """Put every question to a bootstrap; any exception but the two of the contract gets out."""
    try:
        bootstrap = open_v6(data, SOURCE)
    except FormatError:
        return
    bootstrap.prefetch_inodes()
    for blob in bootstrap.blobs:
        source = bootstrap.digests(blob.index)
        if source is not None:
            for index in range(4):
                source.lookup(index, index * CHUNK)
    pending = [bootstrap.inode(bootstrap.root_ino)]
    for _ in range(STEPS_MAX):
        if not pending:
            break
        pending += ask_one(bootstrap, pending.pop())


def ask_one(bootstrap: BootstrapV6, inode: Inode) -> list[Inode]:
    for question in (bootstrap.xattrs, bootstrap.readlink):
        with suppress(FormatError):
            question(inode)
    for offset in (0, inode.size // 2, max(inode.size - 1, 0)):
        try:
            extents = bootstrap.extents(inode, offset, 3 * CHUNK)
        except FormatError:
            continue
        assert sum(extent.length for extent in extents) in (0, min(3 * CHUNK, inode.size - offset))
    children = []
    with suppress(FormatError):
        for entry in islice(bootstrap.entries(inode), ENTRIES_PER_LISTING):
            children += resolve(bootstrap, inode, entry.name)
            with suppress(FormatError, NotFoundError):
                bootstrap.inode(entry.ino)
    return children[:50]


def resolve(bootstrap: BootstrapV6, parent: Inode, name: bytes) -> list[Inode]:
    try:
        child = bootstrap.lookup(parent, name)
    except FormatError:
        return []
    return [] if child is None or name in (b".", b"..") else [child]


names = st.sets(
    st.binary(min_size=1, max_size=60).filter(
        lambda name: not {0, ord("/")} & set(name) and name not in (b".", b"..")
    ),
    max_size=300,
)


@given(names, names, st.sampled_from([512, 4096]))
def test_any_names_are_listed_in_byte_order_and_found(
    present: set[bytes], asked: set[bytes], block_size: int
) -> None:
    root = directory({name: regular(0, []) for name in present})
    flags, blobs = (0x0100_0219, []) if block_size == 512 else (0x0100_0094, [BlobSpec()])
    image = make_image(root, blobs, flags=flags, block_size=block_size)
    bootstrap = open_v6(image.data(), SOURCE)
    inode = bootstrap.inode(bootstrap.root_ino)
    listed = [entry.name for entry in bootstrap.entries(inode)]
    assert listed == sorted([*present, b".", b".."])
    for name in present | asked:
        child = bootstrap.lookup(inode, name)
        assert (child is not None) == (name in present)
        assert child is None or child.ino == image.nid(b"/" + name)


@given(
    st.integers(0, 20 * CHUNK),
    st.integers(0, 21 * CHUNK),
    st.integers(0, 21 * CHUNK),
    st.booleans(),
)
def test_any_range_is_covered_once_in_order(
    file_size: int, offset: int, size: int, compact: bool
) -> None:
    chunks = [(number % 2, number, number * 3) for number in range(-(-file_size // CHUNK))]
    blobs = [BlobSpec("a" * 64), BlobSpec("b" * 64)]
    node = regular(file_size, chunks, compact=compact, xattrs=[(1, b"k", b"v" * (size % 7))])
    image = make_image(directory({b"f": node}), blobs, chunk_size=CHUNK)
    bootstrap = open_v6(image.data(), SOURCE)
    extents = bootstrap.extents(bootstrap.inode(image.nid(b"/f")), offset, size)
    position = offset
    for extent in extents:
        number, within = divmod(position, CHUNK)
        chunk_size = min(CHUNK, file_size - number * CHUNK)
        length = min(chunk_size - within, offset + size - position)
        blob, index, block = chunks[number]
        assert extent == Extent(blob, index, block * 4096, chunk_size, within, length)
        position += extent.length
    assert position == max(offset, min(offset + size, file_size)) or not extents
    assert bool(extents) == (offset < file_size and size > 0)
