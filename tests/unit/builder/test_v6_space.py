"""Where inodes and directory blocks of a v6 image go: what the kernel and other readers rely on."""

import os
import stat
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from nydusd.builder.tree import Node, Xattrs
from nydusd.builder.v6_space import (
    ROOT_NID,
    Space,
    named_xattrs,
    names_of,
    xattr_size,
)
from nydusd.rafs.erofs_parts import directory_blocks, index_offset, pack_xattrs

BLOCK = 4096


def make_node(
    kind: int = stat.S_IFREG,
    *,
    name: bytes = b"n",
    chunks: int = 0,
    target: int = 0,
    xattrs: Xattrs = (),
    children: tuple[bytes, ...] = (),
) -> Node:
    node = Node(name, None, os.stat_result((kind | 0o644, 0, 0, 1, 0, 0, target, 0, 0, 0)))
    node.chunk_count = chunks
    node.target = b"t" * target
    node.xattrs = xattrs
    if kind == stat.S_IFDIR:
        node.children = [make_node(name=child) for child in sorted(children)]
    return node


names_lists = st.lists(st.binary(min_size=1, max_size=255), max_size=400, unique=True)


@given(names_lists)
def test_directory_blocks_hold_all_names_in_order_and_never_fill_up(names: list[bytes]) -> None:
    names.sort()
    start = 0
    for end, used in directory_blocks(names):
        assert used == sum(12 + len(name) for name in names[start:end])
        assert used < BLOCK  # one byte stays free
        if end < len(names):
            assert used + 12 + len(names[end]) >= BLOCK  # the next name had no room
        start = end
    assert start == len(names)


sizes = st.one_of(
    st.builds(make_node, chunks=st.integers(0, 2000)),
    st.builds(make_node, st.just(stat.S_IFLNK), target=st.integers(1, 4095)),
    st.builds(
        make_node,
        st.just(stat.S_IFDIR),
        children=st.lists(st.binary(min_size=1, max_size=255), max_size=60, unique=True).map(tuple),
    ),
    st.builds(
        make_node,
        st.sampled_from([stat.S_IFREG, stat.S_IFIFO]),
        xattrs=st.lists(
            st.tuples(st.just(b"user.x"), st.binary(max_size=6000)), min_size=1, max_size=3
        ).map(tuple),
    ),
)


@given(st.lists(sizes, min_size=1, max_size=60))
def test_inodes_never_overlap_and_tails_stay_in_one_block(nodes: list[Node]) -> None:
    space = Space()
    taken: list[tuple[int, int]] = []
    blocks: list[tuple[int, int]] = []
    for node in nodes:
        space.add(node)
        start = node.number * 32
        behind = 64 + xattr_size(node.xattrs)
        if node.is_directory or node.is_symlink:
            place = space.place_of(node)
            inline = node.size % BLOCK if place.inline else 0
            assert place.blocks * BLOCK >= node.size - inline
            if place.blocks:
                blocks.append((place.first_block, place.first_block + place.blocks))
            tail = start + behind
            if inline:
                assert tail // BLOCK == (tail + inline - 1) // BLOCK
            end = tail + inline
        else:
            end = start + behind
            if node.chunk_count:
                end = start + index_offset(xattr_size(node.xattrs)) + 8 * node.chunk_count
        assert start // BLOCK == (start + 63) // BLOCK  # the inode itself
        taken.append((start, end))
    assert nodes[0].number == ROOT_NID
    taken.sort()
    for (_, end), (start, _) in pairwise(taken):
        assert end <= start
    assert taken[-1][1] <= BLOCK + space.inode_bytes
    blocks.sort()
    assert [start for start, _ in blocks] == [0, *(end for _, end in blocks)][: len(blocks)]
    assert (blocks[-1][1] if blocks else 0) == space.directory_blocks


def test_small_inodes_fill_the_gap_before_a_folder_that_did_not_fit() -> None:
    space = Space()
    first = make_node(stat.S_IFLNK, target=3000)
    folder = make_node(stat.S_IFDIR, children=tuple(b"%0200d" % n for n in range(10)))
    small = make_node()
    for node in (first, folder, small):
        space.add(node)
    assert folder.number * 32 % BLOCK == 0
    assert first.number < small.number < folder.number


def test_dots_are_sorted_among_the_names() -> None:
    folder = make_node(stat.S_IFDIR, children=(b"!x", b".-x", b"...", b"a"))
    assert names_of(folder) == [b"!x", b".", b".-x", b"..", b"...", b"a"]


def test_the_xattr_area_is_a_header_and_padded_entries() -> None:
    assert xattr_size(()) == 0
    assert xattr_size(((b"user.a", b""),)) == 12 + 8
    assert xattr_size(((b"user.abcd", b"1"), (b"trusted.x", b"123"))) == 12 + 12 + 8


@given(
    st.lists(
        st.tuples(st.sampled_from([b"user.", b"trusted.a", b"security.b"]), st.binary(max_size=99))
    )
)
def test_the_xattr_area_is_packed_to_the_size_that_was_reserved(
    xattrs: list[tuple[bytes, bytes]],
) -> None:
    assert len(pack_xattrs(named_xattrs(tuple(xattrs)))) == xattr_size(tuple(xattrs))
