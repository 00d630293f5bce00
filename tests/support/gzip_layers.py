"""OCI layers made in the test, gzipped in all ways that layers are, and the blobs that reference them."""

import hashlib
import random
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

from nydusd.blob.model import BlobFeature, BlobInfo, CiLocation, Codec, Digester
from nydusd.blob.zran import CONTEXT_BYTES
from tests.support.blob_bytes import make_header
from tests.support.inflate_twin import WINDOW, BlockStart, block_starts

ZRAN_FLAGS = 0x3  # compressed, zran
LAYER_FEATURES = (
    BlobFeature.ALIGNED
    | BlobFeature.CAP_TAR_TOC
    | BlobFeature.CHUNK_INFO_V2
    | BlobFeature.SEPARATE
    | BlobFeature.ZRAN
)


def words(size: int, seed: int) -> bytes:
    """Bytes that deflate to literals and to matches from near and far."""
    rng = random.Random(seed)
    out = bytearray()
    while len(out) < size:
        if len(out) > 300 and rng.random() < 0.6:
            start = rng.randrange(max(len(out) - WINDOW, 0), len(out))
            out += out[start : start + rng.randrange(3, 200)]
        else:
            out += rng.randbytes(rng.randrange(1, 50)).translate(_FEW)
    return bytes(out[:size])


_FEW = bytes(byte % 64 for byte in range(256))


@dataclass(frozen=True)
class Member:
    """How one gzip member is written: `flush` after every `step` plain bytes."""

    size: int
    level: int = 6  # 0: stored blocks
    step: int = 1 << 30
    flush: int = zlib.Z_NO_FLUSH


def gzipped(plain: bytes, members: Sequence[Member]) -> bytes:
    """Return `plain` as that many members; what they do not take is in one more."""
    out, at = b"", 0
    rest = len(plain) - sum(member.size for member in members)
    for member in [*members, Member(rest)] if rest > 0 else members:
        deflate = zlib.compressobj(member.level, zlib.DEFLATED, 31)
        part = plain[at : at + member.size]
        for start in range(0, len(part), member.step):
            out += deflate.compress(part[start : start + member.step])
            if member.flush != zlib.Z_NO_FLUSH:
                out += deflate.flush(member.flush)
        out += deflate.flush()
        at += member.size
    return out


@dataclass(frozen=True)
class Piece:
    """What one chunk is: plain bytes [start, start + size) of the layer, out of one context."""

    context: int
    start: int
    size: int


@dataclass(frozen=True)
class Layer:
    """A layer, contexts that cover it, and the CI array that an image has of it."""

    info: BlobInfo
    plain: bytes
    stored: bytes
    pieces: tuple[Piece, ...]
    ci: bytes
    header: bytes

    @property
    def meta_blob(self) -> bytes:
        return self.ci + self.header

    @property
    def meta_file(self) -> bytes:
        return self.ci + bytes(-len(self.ci) % 4096) + self.header

    def bytes_of(self, index: int) -> bytes:
        piece = self.pieces[index]
        return self.plain[piece.start : piece.start + piece.size]


def context_record(stored: bytes, start: BlockStart, end_bit: int, size: int, at: int) -> bytes:
    """Return a context from a block on; at: where its dictionary begins."""
    first, bits = -(-start.bit // 8), -start.bit % 8
    prior = stored[first - 1] if bits else 0
    length = min(-(-end_bit // 8) + 1, len(stored)) - first
    fields = (first, start.out, at, length, size, start.history, prior, bits)
    return struct.pack("<QQQIIIBBxx", *fields)


def make_layer(
    plain: bytes,
    stored: bytes,
    *,
    context_size: int = 20_000,
    chunk_size: int = 4096,
    data_id: str = "da" * 32,
    meta_id: str = "3e" * 32,
) -> Layer:
    """Cut a layer into contexts, as the builder does: each begins at a block, and ends with a chunk.

    context_size: plain bytes after which the next block that begins opens a context.
    """
    starts = list(block_starts(stored))
    opened = [starts[0]]
    for start in starts:
        if start.out - opened[-1].out >= context_size:
            opened.append(start)
    contexts, dictionaries, pieces = b"", b"", list[Piece]()
    places: list[int] = []  # of each piece, in its context
    done = 0
    for place, start in enumerate(opened):
        number = len(contexts) // CONTEXT_BYTES
        target = opened[place + 1].out if place + 1 < len(opened) else len(plain)
        if done >= target:
            continue  # the chunks of the one before go beyond it
        while done < target:
            size = min(chunk_size, len(plain) - done)
            pieces.append(Piece(number, done, size))
            places.append(done - start.out)
            done += size
        # The last chunk ends in a later block, maybe of a later member: all of that one is needed.
        behind = (other.bit for other in starts if other.out >= done and other.bit > start.bit)
        end = min(behind, default=8 * len(stored))
        contexts += context_record(stored, start, end, done - start.out, len(dictionaries))
        dictionaries += plain[start.out - start.history : start.out]
    records = b"".join(
        struct.pack(
            "<QQQ",
            number | (piece.size - 1) << 32 | ZRAN_FLAGS << 56,
            0,  # where the gzip reader stood: of no use
            piece.context << 32 | place,
        )
        for number, (piece, place) in enumerate(zip(pieces, places, strict=True))
    )
    ci = records + contexts + dictionaries
    info = BlobInfo(
        index=0,
        blob_id=data_id,
        chunk_size=max(chunk_size, 4096),
        chunk_count=len(pieces),
        codec=Codec.GZIP,
        digester=Digester.SHA256,
        features=LAYER_FEATURES,
        compressed_size=len(stored),
        compressed_data_size=len(stored),
        uncompressed_size=len(pieces) * 4096,
        ci=CiLocation(0, len(ci), len(ci), Codec.NONE),
        meta_blob_id=meta_id,
    )
    header = make_header(
        info,
        context_offset=len(records),
        context_size=len(contexts) + len(dictionaries),
        context_count=len(contexts) // CONTEXT_BYTES,
    )
    return Layer(info, plain, stored, tuple(pieces), ci, header)


class LayerDigests:
    """The part of a v6 bootstrap that a blob asks: no records, but digests of a layer's chunks."""

    def __init__(self, layer: Layer) -> None:
        self.digests_by_index = [
            hashlib.sha256(layer.bytes_of(index)).digest() for index in range(len(layer.pieces))
        ]

    def chunk_table(self, blob_index: int) -> None:
        return None

    def digests(self, blob_index: int) -> "LayerDigests":
        return self

    def lookup(self, index: int, uncompressed_offset: int) -> tuple[bytes | None, int | None]:
        return self.digests_by_index[index], None
