"""Requests as the kernel would write them, and replies taken apart, for tests of the server side."""

import struct
from typing import NamedTuple

from nydusd.kernel.wire import Opcode

HEADER = struct.Struct("=IIQQIIIHH")
OUT_HEADER = struct.Struct("=IiQ")
ATTR = struct.Struct("=QQQqqqIIIIIIIIII")


def make_message(
    opcode: int,
    nodeid: int = 1,
    body: bytes = b"",
    *,
    unique: int = 2,
    uid: int = 0,
    gid: int = 0,
    pid: int = 1,
    length: int | None = None,
) -> bytes:
    whole = HEADER.size + len(body) if length is None else length
    return HEADER.pack(whole, opcode, unique, nodeid, uid, gid, pid, 0, 0) + body


def read_message(nodeid: int, offset: int, size: int, **fields: int) -> bytes:
    return span_message(Opcode.READ, nodeid, offset, size, **fields)


def span_message(opcode: int, nodeid: int, offset: int, size: int, **fields: int) -> bytes:
    body = struct.pack("=QQIIQII", nodeid, offset, size, 0, 0, 0, 0)
    return make_message(opcode, nodeid, body, **fields)


def lookup_message(parent: int, name: bytes, **fields: int) -> bytes:
    return make_message(Opcode.LOOKUP, parent, name + b"\0", **fields)


def interrupt_message(unique: int) -> bytes:
    return make_message(Opcode.INTERRUPT, 0, struct.pack("=Q", unique), unique=unique | 1)


class Reply(NamedTuple):
    error: int
    unique: int
    payload: bytes


def reply_of(raw: bytes) -> Reply:
    length, error, unique = OUT_HEADER.unpack_from(raw)
    assert length == len(raw)
    return Reply(-error, unique, raw[OUT_HEADER.size :])


class Shown(NamedTuple):
    """struct fuse_attr."""

    ino: int
    size: int
    blocks: int
    atime: int
    mtime: int
    ctime: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    mode: int
    nlink: int
    uid: int
    gid: int
    rdev: int
    blksize: int
    flags: int


class ShownEntry(NamedTuple):
    """struct fuse_entry_out."""

    nodeid: int
    generation: int
    entry_valid: int
    attr_valid: int
    attr: Shown


def entry_of(payload: bytes) -> ShownEntry:
    head = struct.unpack_from("=QQQQII", payload)
    return ShownEntry(*head[:4], Shown(*ATTR.unpack_from(payload, 40)))


def attr_of(payload: bytes) -> tuple[int, Shown]:
    """Return validity in seconds, and the attributes."""
    assert len(payload) == 104
    return struct.unpack_from("=Q", payload)[0], Shown(*ATTR.unpack_from(payload, 16))


class Line(NamedTuple):
    """One name of a listing."""

    name: bytes
    ino: int
    cookie: int
    kind: int
    entry: ShownEntry | None


def lines_of(payload: bytes, *, plus: bool) -> list[Line]:
    lines = []
    at = 0
    while at < len(payload):
        entry = None
        if plus:
            entry = entry_of(payload[at : at + 128])
            at += 128
        ino, cookie, length, kind = struct.unpack_from("=QQII", payload, at)
        name = payload[at + 24 : at + 24 + length]
        assert len(name) == length
        lines.append(Line(name, ino, cookie, kind, entry))
        at += 24 + length + -length % 8
    assert at == len(payload)
    return lines
