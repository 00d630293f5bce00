"""RAFS v5: what was put in comes out; what was broken ends in a value or one of three errors, quickly."""

import stat
import struct
from collections.abc import Callable

from hypothesis import given, settings
from hypothesis import strategies as st

from nydusd.errors import FormatError, NotFoundError, UnsupportedError
from nydusd.rafs.model import Inode
from nydusd.rafs.v5 import BootstrapV5, open_v5
from tests.support.rafs_v5_image import (
    Image,
    Node,
    directory,
    link,
    make_image,
    regular,
    special,
    symlink,
)

NAMES = st.binary(min_size=1, max_size=255).filter(
    lambda name: b"/" not in name and b"\0" not in name and name not in (b".", b"..")
)
XATTRS = st.lists(
    st.tuples(st.sampled_from([b"user.a", b"user.b", b"trusted.c"]), st.binary(max_size=40)),
    unique_by=lambda pair: pair[0],
    max_size=3,
)
MET = (FormatError, NotFoundError, UnsupportedError)
NODES_MAX = 200  # a walk stops there: broken images may list the same inodes again and again


@st.composite
def leaves(draw: st.DrawFn, name: bytes) -> Node:
    kind = draw(st.sampled_from(["file", "link", "device"]))
    xattrs = draw(XATTRS)
    if kind == "file":
        return regular(name, draw(st.binary(max_size=9000)), xattrs=xattrs)
    if kind == "link":
        return symlink(name, draw(st.binary(min_size=1, max_size=300)), xattrs=xattrs)
    return special(name, stat.S_IFCHR | 0o600, rdev=draw(st.integers(0, 0xFFFF_FFFF)))


@st.composite
def directories(draw: st.DrawFn, name: bytes = b"/", depth: int = 2) -> Node:
    children = []
    for child in draw(st.lists(NAMES, unique=True, max_size=5)):
        if depth and draw(st.booleans()):
            children.append(draw(directories(child, depth - 1)))
        else:
            children.append(draw(leaves(child)))
    return directory(name, *children, xattrs=draw(XATTRS))


@settings(max_examples=60, deadline=None)
@given(root=directories(), offset=st.integers(0, 10_000), size=st.integers(0, 10_000))
def test_a_tree_comes_out_as_it_went_in(root: Node, offset: int, size: int) -> None:
    image = make_image(root)
    bootstrap = open_v5(image.bootstrap, "image.boot")
    table = bootstrap.chunk_table(0)

    def compare(node: Node, inode: Inode) -> None:
        assert (inode.ino, inode.mode) == (node.index, node.mode)
        assert bootstrap.xattrs(inode) == dict(node.xattrs)
        if stat.S_ISLNK(node.mode):
            assert bootstrap.readlink(inode) == node.target
        elif stat.S_ISREG(node.mode):
            covered = sum(extent.length for extent in bootstrap.extents(inode, offset, size))
            assert covered == len(node.content[offset : offset + size])
            for extent in bootstrap.extents(inode, 0, inode.size):
                assert table.claim(extent.chunk_index) == (extent.chunk_offset, extent.chunk_size)
        elif stat.S_ISDIR(node.mode):
            listed = [entry.name for entry in bootstrap.entries(inode, 2)]
            assert listed == [child.name for child in node.children]
            for child in node.children:
                found = bootstrap.lookup(inode, child.name)
                assert found is not None
                compare(child, found)

    compare(root, bootstrap.inode(1))


def sample(*, extended: bool) -> Image:
    a = regular(b"a", bytes(5000), xattrs=[(b"user.a", b"1"), (b"user.b", b"")])
    inner = directory(b"d", regular(b"x", b"text"), link(b"y", a), symlink(b"z", b"../a"))
    return make_image(
        directory(b"/", a, inner, regular(b"m"), regular(b"n")), prefetch=(2, 3), extended=extended
    )


SAMPLE = sample(extended=True)
OLD_SAMPLE = sample(extended=False)
SAMPLES = st.sampled_from([SAMPLE.bootstrap, OLD_SAMPLE.bootstrap])


def ask_everything(bootstrap: BootstrapV5) -> int:
    """Ask every question of everything that can be reached; return how many nodes there were."""
    for blob in bootstrap.blobs[:8]:
        tried(lambda index=blob.index: ask_table(bootstrap, index))  # type: ignore[misc]
    bootstrap.prefetch_inodes()
    pending = [bootstrap.inode(1)]
    for nodes in range(NODES_MAX):
        if not pending:
            return nodes
        inode = pending.pop()
        assert isinstance(inode, Inode)
        tried(lambda: bootstrap.xattrs(inode))  # noqa: B023 - called at once
        tried(lambda: bootstrap.readlink(inode))  # noqa: B023
        tried(lambda: bootstrap.extents(inode, 0, 1 << 20))  # noqa: B023
        tried(lambda: bootstrap.extents(inode, 4095, 2))  # noqa: B023
        if stat.S_ISDIR(inode.mode):
            for entry in list(bootstrap.entries(inode))[:50]:
                assert 0 < len(entry.name) <= 255
                child = tried(lambda: bootstrap.lookup(inode, entry.name))  # noqa: B023
                if entry.name not in (b".", b"..") and isinstance(child, Inode):
                    pending.append(child)
    return NODES_MAX


def ask_table(bootstrap: BootstrapV5, blob_index: int) -> None:
    table = bootstrap.chunk_table(blob_index)
    info = bootstrap.blobs[blob_index]
    for index in range(min(len(table), 20)):
        chunk = tried(lambda: table.chunk(index))  # noqa: B023
        if chunk is not None and info.chunk_count:
            assert table.chunk(index).compressed_end <= info.compressed_data_size
            assert table.chunk(index).uncompressed_end <= info.uncompressed_size
    tried(lambda: table.locate(4096))


def tried(question: Callable[[], object]) -> object:
    try:
        return question()
    except MET:
        return None


def open_and_ask(data: bytes) -> None:
    try:
        bootstrap = open_v5(data, "image.boot")
    except MET:
        return
    ask_everything(bootstrap)


def test_the_sample_answers_all_questions() -> None:
    for image in (SAMPLE, OLD_SAMPLE):
        assert ask_everything(open_v5(image.bootstrap, "image.boot")) == len(image.nodes)


@settings(max_examples=400, deadline=None)
@given(data=st.data(), bootstrap=SAMPLES)
def test_flipped_bytes_end_in_a_value_or_an_error(data: st.DataObject, bootstrap: bytes) -> None:
    out = bytearray(bootstrap)
    interesting = [*range(80), *range(8192, len(out))]  # the rest is reserved
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.sampled_from(interesting))
        out[position] = data.draw(st.integers(0, 255))
    open_and_ask(bytes(out))


@settings(max_examples=400, deadline=None)
@given(
    data=st.data(),
    bootstrap=SAMPLES,
    value=st.sampled_from([0, 1, 2, 5, 8, 4096, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF]),
)
def test_extreme_fields_end_in_a_value_or_an_error(
    data: st.DataObject, bootstrap: bytes, value: int
) -> None:
    out = bytearray(bootstrap)
    fields = [*range(0, 80, 4), *range(8192, len(out) - 4, 4)]
    for _ in range(data.draw(st.integers(1, 2))):
        struct.pack_into("<I", out, data.draw(st.sampled_from(fields)), value)
    open_and_ask(bytes(out))


@settings(max_examples=100, deadline=None)
@given(size=st.integers(0, len(SAMPLE.bootstrap)))
def test_a_cut_file_ends_in_a_value_or_an_error(size: int) -> None:
    open_and_ask(SAMPLE.bootstrap[:size])
    open_and_ask(SAMPLE.bootstrap[: size & ~7])


@settings(max_examples=100, deadline=None)
@given(tail=st.binary(max_size=2000))
def test_garbage_behind_a_superblock_ends_in_a_value_or_an_error(tail: bytes) -> None:
    open_and_ask(SAMPLE.bootstrap[:8192] + tail)
    open_and_ask((SAMPLE.bootstrap[:8192] + tail).ljust(len(SAMPLE.bootstrap), b"\1"))
