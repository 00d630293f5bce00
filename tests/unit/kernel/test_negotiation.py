import struct

import pytest

from nydusd.kernel.mount import MAX_READ_BYTES, MountError
from nydusd.kernel.negotiation import (
    MAX_PAGES_COUNT,
    MAX_WRITE_BYTES,
    REQUEST_MAX_BYTES,
    WANTED,
    Feature,
    answer,
    check_request,
)
from nydusd.kernel.wire import Opcode
from tests.support.fuse_requests import make_message, reply_of

EVERYTHING = (1 << 64) - 1


def make_init(
    *, major: int = 7, minor: int = 45, flags: int = EVERYTHING, readahead: int = 131_072
) -> bytes:
    body = struct.pack("=IIII", major, minor, readahead, flags & 0xFFFF_FFFF)
    if flags & Feature.INIT_EXT:
        body += struct.pack("=I44x", flags >> 32)
    return make_message(Opcode.INIT, 0, body)


def fields(request: bytes) -> tuple[int, ...]:
    reply = reply_of(answer(check_request(request)))
    assert (reply.error, reply.unique, len(reply.payload)) == (0, 2, 64)
    return struct.unpack("=IIIIHHIIHHI28x", reply.payload)


def test_what_we_want_and_nothing_else_is_agreed_to() -> None:
    major, minor, readahead, flags, background, congestion, write, gran, pages, _, flags2 = fields(
        make_init()
    )
    assert (major, minor, readahead) == (7, 45, 131_072)
    assert flags | flags2 << 32 == WANTED
    assert (background, congestion) == (65535, 49149)
    assert (write, gran, pages) == (MAX_WRITE_BYTES, 1, 256)


def test_an_old_kernel_gets_what_it_offered_in_its_own_version() -> None:
    """7.31 is Linux 5.4: no upper word of features, half as long a request."""
    offered = Feature.ASYNC_READ | Feature.MAX_PAGES
    reply = fields(make_init(minor=31, flags=int(offered)))
    assert (reply[0], reply[1], reply[3], reply[10]) == (7, 31, offered, 0)
    assert fields(make_init(minor=23, flags=0))[8] == 0  # pages without MAX_PAGES


def test_it_is_known_whether_the_kernel_can_send_requests_again() -> None:
    assert Feature.HAS_RESEND in check_request(make_init()).offered
    lower = EVERYTHING & ~(1 << 39)
    assert Feature.HAS_RESEND not in check_request(make_init(flags=lower)).offered
    assert Feature.HAS_RESEND not in check_request(make_init(flags=0xFFFF_FFFF)).offered


def test_bits_that_nobody_knows_yet_are_not_agreed_to() -> None:
    assert int(check_request(make_init()).offered) == EVERYTHING
    assert not int(WANTED) & ~sum(int(bit) for bit in Feature)


def test_readahead_is_never_more_than_the_kernel_says() -> None:
    assert fields(make_init(readahead=4096))[2] == 4096
    assert fields(make_init(readahead=1 << 30))[2] == 1 << 20


def test_requests_fit_the_buffer_and_reads_the_mount_option() -> None:
    assert max(8192, 40 + 40 + MAX_WRITE_BYTES) <= REQUEST_MAX_BYTES
    assert MAX_PAGES_COUNT * 4096 <= MAX_READ_BYTES


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"",
        make_init()[:50],
        make_message(Opcode.INIT, 0, bytes(15)),
        make_message(Opcode.LOOKUP, 0, bytes(64)),
        make_init(major=8),
        make_init(major=6),
        make_init(minor=22),
    ],
)
def test_what_is_no_init_of_a_kernel_that_we_can_serve_is_refused(request_bytes: bytes) -> None:
    with pytest.raises(MountError):
        check_request(request_bytes)
