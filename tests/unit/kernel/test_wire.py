import errno
import stat
import struct

import pytest

from nydusd.errors import FormatError
from nydusd.kernel import wire
from nydusd.kernel.attributes import Attributes, Statfs
from nydusd.kernel.wire import FOR_EVER_S, Listing, Opcode
from tests.support.fuse_requests import (
    attr_of,
    entry_of,
    interrupt_message,
    lines_of,
    lookup_message,
    make_message,
    read_message,
    reply_of,
)

NS = 1_000_000_000
FILE = Attributes(7, stat.S_IFREG | 0o640, 2, 1000, 1001, 0, 4097, 9, 0, -1, 5 * NS + 6)


def test_a_request_is_taken_apart() -> None:
    request = wire.parse(make_message(Opcode.GETATTR, 9, b"body", unique=4, uid=5, gid=6, pid=7))
    assert request[:6] == (Opcode.GETATTR, 4, 9, 5, 6, 7)
    assert request.message[wire.HEADER_BYTES :] == b"body"


@pytest.mark.parametrize(
    "message",
    [
        b"",
        make_message(Opcode.GETATTR)[:39],
        make_message(3, length=41),
        make_message(3, length=39),
    ],
)
def test_a_request_that_lies_about_its_length_is_refused(message: bytes) -> None:
    with pytest.raises(FormatError):
        wire.parse(message)


def test_a_resent_request_keeps_its_mark() -> None:
    request = wire.parse(read_message(3, 0, 1, unique=wire.RESENT | 8))
    assert request.unique == 1 << 63 | 8
    assert reply_of(wire.refusal(request.unique, errno.EIO)) == (errno.EIO, 1 << 63 | 8, b"")


def test_bodies_are_read_where_they_are() -> None:
    parse = wire.parse
    assert wire.span(parse(read_message(3, 4096, 1 << 20))) == (3, 4096, 1 << 20)
    assert wire.name(parse(lookup_message(1, b"na\xffme"))) == b"na\xffme"
    xattr = parse(make_message(Opcode.GETXATTR, 1, struct.pack("=II", 9, 0) + b"user.one\0"))
    assert (wire.xattr_name(xattr), wire.xattr_size(xattr)) == (b"user.one", 9)
    assert wire.access_mask(parse(make_message(Opcode.ACCESS, 1, struct.pack("=II", 5, 0)))) == 5
    assert (
        wire.handle(parse(make_message(Opcode.RELEASE, 1, struct.pack("=QIIQ", 6, 0, 0, 0)))) == 6
    )
    assert wire.interrupted(parse(interrupt_message(12))) == 12


@pytest.mark.parametrize(
    ("read", "body"),
    [
        (wire.span, bytes(23)),
        (wire.name, b""),
        (wire.name, b"no end"),
        (wire.name, b"\0"),
        (wire.xattr_name, bytes(8)),
        (wire.xattr_name, bytes(8) + b"name"),
        (wire.xattr_size, bytes(3)),
        (wire.access_mask, b""),
        (wire.handle, bytes(7)),
        (wire.interrupted, bytes(7)),
    ],
)
def test_a_body_that_is_cut_short_is_refused(read: object, body: bytes) -> None:
    with pytest.raises(FormatError):
        read(wire.parse(make_message(Opcode.LOOKUP, 1, body)))  # type: ignore[operator]


def test_an_entry_holds_for_ever_and_times_may_lie_before_1970() -> None:
    entry = entry_of(wire.entry_out(1 << 56 | 7, 3, FILE))
    assert entry[:4] == (1 << 56 | 7, 3, FOR_EVER_S, FOR_EVER_S)
    shown = entry.attr
    assert shown.ino == 1 << 56 | 7
    assert (shown.size, shown.blocks, shown.blksize) == (4097, 9, 4096)
    assert (shown.mode, shown.nlink, shown.uid, shown.gid) == (FILE.mode, 2, 1000, 1001)
    assert (shown.atime, shown.mtime, shown.mtime_ns) == (0, -1, NS - 1)
    assert (shown.ctime, shown.ctime_ns) == (5, 6)
    assert attr_of(wire.attr_out(1 << 56 | 7, FILE)) == (FOR_EVER_S, shown)


def test_no_such_name_is_nodeid_0_to_be_remembered() -> None:
    entry = entry_of(wire.NO_ENTRY)
    assert len(wire.NO_ENTRY) == 128
    assert (entry.nodeid, entry.entry_valid) == (0, FOR_EVER_S)


def test_fixed_replies_have_the_kernels_sizes() -> None:
    assert wire.open_out(9, 2) == struct.pack("=QII", 9, 2, 0)
    statfs = wire.statfs_out(Statfs(512, 255, 33))
    assert len(statfs) == 80
    assert struct.unpack_from("=QQQQQII", statfs) == (0, 0, 0, 33, 0, 512, 255)


def test_a_value_is_given_whole_or_measured_or_not_at_all() -> None:
    assert wire.xattr_out(b"value", 0) == struct.pack("=II", 5, 0)
    assert wire.xattr_out(b"value", 5) == b"value"
    assert wire.xattr_out(b"value", 4) is None


@pytest.mark.parametrize("plus", [False, True])
def test_a_listing_stops_before_it_is_longer_than_its_room(plus: bool) -> None:
    names = [b"n" * length for length in range(1, 60)]
    for size in range(0, 3000, 8):
        listing = Listing(size, plus=plus)
        told = 0
        for cookie, name in enumerate(names, 1):
            if not listing.add(name, cookie, 1 << 56 | cookie, 2, FILE):
                break
            told += 1
        payload = bytes(listing.payload)
        assert len(payload) <= size
        lines = lines_of(payload, plus=plus)
        assert [line.name for line in lines] == names[:told]
        each = (128 if plus else 0) + 24
        if told < len(names):
            assert len(payload) + each + len(names[told]) + -len(names[told]) % 8 > size


def test_a_line_tells_number_position_and_kind() -> None:
    listing = Listing(4096, plus=True)
    assert listing.add(b"file", 5, 1 << 56 | 7, 2, FILE)
    assert listing.add(b"broken", 6, 1 << 56 | 8, 2, None)
    file, broken = lines_of(bytes(listing.payload), plus=True)
    assert file[:4] == (b"file", 1 << 56 | 7, 5, stat.S_IFREG >> 12)
    assert file.entry is not None
    assert (file.entry.nodeid, file.entry.attr.size) == (1 << 56 | 7, 4097)
    assert broken[:4] == (b"broken", 1 << 56 | 8, 6, 0)
    assert broken.entry is not None
    assert broken.entry.nodeid == 0  # the kernel lists the name and keeps nothing


def test_unknown_opcodes_have_a_title_too() -> None:
    assert (wire.title(15), wire.title(4711)) == ("READ", "opcode 4711")
