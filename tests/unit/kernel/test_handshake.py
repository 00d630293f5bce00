import struct

import pytest

from nydusd.kernel.handshake import amended, check_request
from nydusd.kernel.mount import MountError

CACHE_SYMLINKS = 1 << 23
ASYNC_READ = 1


def make_request(flags: int = CACHE_SYMLINKS, opcode: int = 26) -> bytes:
    body = struct.pack("<IIII", 7, 45, 131_072, flags)
    return struct.pack("<IIQQIIII", 40 + len(body), opcode, 2, 0, 0, 0, 0, 0) + body


def make_reply(error: int = 0, unique: int = 2, flags: int = ASYNC_READ) -> bytes:
    body = struct.pack("<IIIIHHIIHH8I", 7, 38, 131_072, flags, 0, 0, 1 << 20, 1, 256, 0, *range(8))
    return struct.pack("<IiQ", 16 + len(body), error, unique) + body


def test_the_reply_gets_our_limits_and_keeps_all_else() -> None:
    changed = amended(make_reply(), check_request(make_request()))
    assert struct.unpack_from("<IHH", changed, 28) == (ASYNC_READ | CACHE_SYMLINKS, 65535, 49149)
    assert changed[:28] == make_reply()[:28]
    assert changed[36:] == make_reply()[36:]


def test_nothing_is_agreed_that_the_kernel_did_not_offer() -> None:
    changed = amended(make_reply(), check_request(make_request(flags=0)))
    assert struct.unpack_from("<I", changed, 28) == (ASYNC_READ,)


@pytest.mark.parametrize("request_bytes", [b"", make_request()[:50], make_request(opcode=1)])
def test_what_is_no_init_is_refused(request_bytes: bytes) -> None:
    with pytest.raises(MountError, match="first request"):
        check_request(request_bytes)


@pytest.mark.parametrize("reply", [make_reply(error=-71), make_reply(unique=3), make_reply()[:20]])
def test_what_is_no_answer_to_it_is_refused(reply: bytes) -> None:
    with pytest.raises(MountError, match=r"libfuse refused INIT 7\.45"):
        amended(reply, check_request(make_request()))
