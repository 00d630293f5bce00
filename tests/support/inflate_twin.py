"""Deflate in plain Python, bit by bit (RFC 1951, 1952): the twin of native/inflate.c, and a finder of blocks.

Slow, and made to be read. It knows where blocks begin, which zlib's Python module does not tell.
"""

import struct
from collections.abc import Iterator
from typing import NamedTuple

WINDOW = 32768
_LENGTH = [(3 + i, 0) for i in range(8)]
_LENGTH += [
    (11 + 8 * ((1 << (i // 4)) - 1) + (i % 4 << (1 + i // 4)), 1 + i // 4) for i in range(20)
]
_LENGTH += [(258, 0)]
_DISTANCE = [(1, 0), (2, 0)]
_DISTANCE += [(1 + (2 + i % 2 << i // 2), i // 2) for i in range(28)]
_CODE_LENGTH_ORDER = (16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15)

Tree = dict[tuple[int, int], int]  # (bits, code) → symbol


class DeflateError(Exception):
    """The bytes are not deflate, or end too early."""


class Bits:
    def __init__(self, data: bytes, position: int = 0) -> None:
        self.data, self.position = data, position

    def take(self, count: int) -> int:
        """Return the next bits as a number, least significant first."""
        value = 0
        for shift in range(count):
            byte, bit = divmod(self.position, 8)
            if byte >= len(self.data):
                raise DeflateError("input ends")
            value |= (self.data[byte] >> bit & 1) << shift
            self.position += 1
        return value

    def symbol(self, tree: Tree) -> int:
        code = 0
        for length in range(1, 16):
            code = code << 1 | self.take(1)
            if (length, code) in tree:
                return tree[length, code]
        raise DeflateError("no such code")

    def align(self) -> int:
        """Skip to the next whole byte and return its number."""
        self.position = -(-self.position // 8) * 8
        return self.position // 8


def tree_of(lengths: list[int]) -> Tree:
    tree: Tree = {}
    code = 0
    for length in range(1, 16):
        code <<= 1
        for symbol, own in enumerate(lengths):
            if own == length:
                tree[length, code] = symbol
                code += 1
    return tree


_FIXED = tree_of([8] * 144 + [9] * 112 + [7] * 24 + [8] * 8), tree_of([5] * 30)


def _dynamic_trees(bits: Bits) -> tuple[Tree, Tree]:
    literals, distances, count = bits.take(5) + 257, bits.take(5) + 1, bits.take(4) + 4
    first = [0] * 19
    for place in _CODE_LENGTH_ORDER[:count]:
        first[place] = bits.take(3)
    tree, lengths = tree_of(first), list[int]()
    while len(lengths) < literals + distances:
        symbol = bits.symbol(tree)
        if symbol < 16:
            lengths.append(symbol)
        elif symbol == 16:
            if not lengths:
                raise DeflateError("nothing to repeat")
            lengths += [lengths[-1]] * (3 + bits.take(2))
        else:
            lengths += [0] * (3 + bits.take(3) if symbol == 17 else 11 + bits.take(7))
    return tree_of(lengths[:literals]), tree_of(lengths[literals:])


def _block(bits: Bits, out: bytearray, enough: int) -> bool:
    """Read one block; return whether it is the last. Stops early once `out` is `enough` long."""
    is_last, kind = bits.take(1) == 1, bits.take(2)
    if kind == 0:
        at = bits.align()
        size, check = struct.unpack("<HH", bits.data[at : at + 4].ljust(4, b"\0"))
        if size ^ check != 0xFFFF:
            raise DeflateError("sizes of a stored block")
        piece = bits.data[at + 4 : at + 4 + size]
        out += piece
        bits.position = 8 * (at + 4 + size)
        if len(piece) < size and len(out) < enough:
            raise DeflateError("input ends")
        return is_last
    if kind == 3:
        raise DeflateError("kind of block")
    literals, distances = _FIXED if kind == 1 else _dynamic_trees(bits)
    while len(out) < enough:
        symbol = bits.symbol(literals)
        if symbol == 256:
            return is_last
        if symbol < 256:
            out.append(symbol)
            continue
        base, extra = _LENGTH[symbol - 257]
        length = base + bits.take(extra)
        base, extra = _DISTANCE[bits.symbol(distances)]
        distance = base + bits.take(extra)
        if distance > len(out):
            raise DeflateError("distance")
        for _ in range(length):
            out.append(out[-distance])
    return is_last


def _skip_header(bits: Bits) -> None:
    at = bits.align()
    if bits.data[at : at + 3] != b"\x1f\x8b\x08" or bits.data[at + 3 : at + 4] != b"\0":
        raise DeflateError("no member of the plainest kind")
    bits.position += 8 * 10


def inflate_context(
    stored: bytes, size: int, dictionary: bytes, prior_byte: int, prior_bits: int
) -> bytes | None:
    """Do what native.inflate_context does, but for what it does with broken bytes and trailers."""
    bits = Bits(bytes([prior_byte]) + stored, 8 - prior_bits)
    found = b""
    out = bytearray(dictionary)
    known = len(dictionary)
    try:
        while len(found) + len(out) - known < size:
            if _block(bits, out, known + size - len(found)):
                found += bytes(out[known:])
                out, known = bytearray(), 0
                if len(found) < size:
                    bits.align()
                    bits.position += 8 * 8
                    _skip_header(bits)
    except DeflateError:
        return None
    return (found + bytes(out[known:]))[:size]


class BlockStart(NamedTuple):
    """Where a deflate block begins, and with it what can be a context."""

    bit: int  # of the gzip file
    out: int  # in what the whole file gives
    history: int  # how many bytes before `out` it may look back at


def block_starts(gzip_file: bytes) -> Iterator[BlockStart]:
    """Yield each block of each member, in order."""
    bits, before = Bits(gzip_file), 0
    while bits.align() < len(gzip_file):
        _skip_header(bits)
        out = bytearray()
        is_last = False
        while not is_last:
            yield BlockStart(bits.position, before + len(out), min(len(out), WINDOW))
            is_last = _block(bits, out, 1 << 62)
        bits.align()
        bits.position += 8 * 8
        before += len(out)
