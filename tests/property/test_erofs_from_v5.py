"""Old images as EROFS: any tree comes out as v5's own reader shows it; broken ones are refused or shown alike."""

import stat
import struct

from hypothesis import given, settings
from hypothesis import strategies as st

from nydusd.errors import FormatError, NotFoundError, UnsupportedError
from nydusd.rafs.erofs_from_v5 import SEGMENT, ErofsImage, lay_out
from nydusd.rafs.model import Inode
from nydusd.rafs.v5 import BootstrapV5, open_v5
from tests.property.test_rafs_v5 import OLD_SAMPLE, SAMPLE, directories
from tests.support.erofs_reader import ErofsReader, Shown
from tests.support.rafs_v5_image import Image, Node, make_image
from tests.support.tree import walk

NOW_S = 1_700_000_000


def without_nul(root: Node) -> Node:
    """No path holds a NUL; v5 would show such a target, and EROFS does not."""
    root.target = root.target.replace(b"\0", b"x")
    for child in root.children:
        without_nul(child)
    return root


TREES = directories().map(without_nul)
CHUNK_SIZES = st.sampled_from([4096, 8192, 1 << 20, 16 << 20])


def lay_out_and_compare(bootstrap: BootstrapV5) -> None:
    """Lay the image out and compare what EROFS shows with what v5 says, path by path."""
    image = lay_out(bootstrap, NOW_S)
    shown = ErofsReader(image.metadata).tree()
    paths = dict(walk(bootstrap))
    assert shown.keys() == paths.keys()
    nids: dict[int, int] = {}
    for path, inode in paths.items():
        compare(bootstrap, inode, shown[path])
        assert nids.setdefault(inode.ino, shown[path].nid) == shown[path].nid
        if stat.S_ISREG(inode.mode):
            compare_data(bootstrap, inode, shown[path], image)
    assert len(set(nids.values())) == len(nids)
    check_segments(image)


def compare(bootstrap: BootstrapV5, inode: Inode, shown: Shown) -> None:
    mode = inode.mode if inode.ino != 1 else stat.S_IFDIR | 0o755
    when = (inode.mtime_s, inode.mtime_ns)
    assert (shown.mode, shown.uid, shown.gid) == (mode, inode.uid, inode.gid)
    assert (shown.nlink, shown.rdev) == (inode.nlink, inode.rdev)
    assert shown.mtime == (when if when != (0, 0) else (NOW_S, 0))
    assert shown.xattrs == bootstrap.xattrs(inode)
    if stat.S_ISLNK(inode.mode):
        assert shown.target == bootstrap.readlink(inode)
    elif stat.S_ISREG(inode.mode):
        assert shown.size == inode.size


def compare_data(bootstrap: BootstrapV5, inode: Inode, shown: Shown, image: ErofsImage) -> None:
    """Every extent of the file lies where EROFS looks for it."""
    segments = {row[0]: row for row in SEGMENT.iter_unpack(image.segments)}
    position = 0
    for extent in bootstrap.extents(inode, 0, inode.size):
        address = device_address(shown.runs, position)
        _, plain, length, number, blob = segments[address]
        assert (blob, number) == (extent.blob_index, extent.chunk_index)
        assert (plain, length) == (extent.chunk_offset, extent.chunk_size)
        assert (extent.offset, extent.length) == (0, length)
        position += length
    assert position == inode.size == sum(length for _, length in shown.runs)


def device_address(runs: list[tuple[int, int]], position: int) -> int:
    for address, length in runs:
        if position < length:
            return address + position
        position -= length
    raise AssertionError("behind the file's end")


def check_segments(image: ErofsImage) -> None:
    """Segments ascend, do not overlap, start on blocks and lie on the device."""
    end = 0
    for address, _, length, _, _ in SEGMENT.iter_unpack(image.segments):
        assert address == end
        assert length > 0
        end = -(-(address + length) // 4096) * 4096
    assert end == image.device_blocks * 4096


@settings(max_examples=60, deadline=None)
@given(root=TREES, chunk_size=CHUNK_SIZES, extended=st.booleans())
def test_any_tree_is_shown_as_v5_shows_it(root: Node, chunk_size: int, extended: bool) -> None:
    made = make_image(root, chunk_size=chunk_size, extended=extended)
    lay_out_and_compare(open_v5(made.bootstrap, "image.boot"))


@settings(max_examples=30, deadline=None)
@given(root=TREES)
def test_the_layout_depends_on_the_bootstrap_alone(root: Node) -> None:
    made = make_image(root)
    assert lay_out(open_v5(made.bootstrap, "a"), 5) == lay_out(open_v5(made.bootstrap, "b"), 5)


def try_layout(data: bytes) -> None:
    try:
        bootstrap = open_v5(data, "image.boot")
    except (FormatError, NotFoundError, UnsupportedError):
        return
    try:
        image = lay_out(bootstrap, NOW_S)
    except UnsupportedError:
        return
    assert len(image.metadata) + len(image.segments) < 4 * len(data) + (1 << 16)
    lay_out_and_compare(bootstrap)


@settings(max_examples=400, deadline=None)
@given(data=st.data(), image=st.sampled_from([SAMPLE, OLD_SAMPLE]))
def test_flipped_bytes_are_refused_or_shown_as_v5_shows_them(
    data: st.DataObject, image: Image
) -> None:
    out = bytearray(image.bootstrap)
    interesting = [*range(80), *range(8192, len(out))]  # the rest is reserved
    for _ in range(data.draw(st.integers(1, 4))):
        out[data.draw(st.sampled_from(interesting))] = data.draw(st.integers(0, 255))
    try_layout(bytes(out))


@settings(max_examples=400, deadline=None)
@given(
    data=st.data(),
    image=st.sampled_from([SAMPLE, OLD_SAMPLE]),
    value=st.sampled_from([0, 1, 2, 5, 8, 4096, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF]),
)
def test_extreme_fields_are_refused_or_shown_as_v5_shows_them(
    data: st.DataObject,
    image: Image,
    value: int,
) -> None:
    out = bytearray(image.bootstrap)
    fields = [*range(0, 80, 4), *range(8192, len(out) - 4, 4)]
    for _ in range(data.draw(st.integers(1, 2))):
        struct.pack_into("<I", out, data.draw(st.sampled_from(fields)), value)
    try_layout(bytes(out))


@settings(max_examples=100, deadline=None)
@given(size=st.integers(0, len(SAMPLE.bootstrap)))
def test_a_cut_file_is_refused(size: int) -> None:
    try_layout(SAMPLE.bootstrap[: size & ~7])
