"""A v6 bootstrap written byte by byte from the worked example of the spec (rafs-v6 §20)."""

import struct

import pytest

from nydusd.blob.model import BlobFeature, CiLocation, Codec, Digester
from nydusd.rafs.model import DirEntry, Extent, SuperblockFlag
from nydusd.rafs.v6 import BootstrapV6, open_v6

BLOB_ID = "be7d77ee" + "0" * 56
DIGEST_0, DIGEST_1 = bytes.fromhex("f7e2") + bytes(30), bytes.fromhex("8124") + bytes(30)


@pytest.fixture
def bootstrap() -> BootstrapV6:
    return open_v6(example(), "rafs-v6-2.2.boot")


def example() -> bytes:
    data = bytearray(20480)

    def put(offset: int, text: str) -> None:
        raw = bytes.fromhex(text)
        data[offset : offset + len(raw)] = raw

    put(0x400, "e2e1f5e0 00000000 00000040 0c 00 8000 03")
    put(0x424, "09000000 02000000")
    put(0x450, "0c000000 0000 0100 0b00")
    put(0x480, "9401")
    put(0x488, "0010000000000000 00010000 00001000")
    put(0x498, "0040000000000000 a0")
    data[0x580:0x5C0] = BLOB_ID.encode()
    put(0x5C0, "09000000 00020000")
    data[0x1000:0x1040] = BLOB_ID.encode()
    put(0x1040, "00000000 00001000 02000000 03000000 00000000 21000070")
    put(0x1058, "da38000000000000 0090000000000000")
    put(0x1068, "00040000 00000000 7a20000000000000 2000000000000000 2000000000000000")
    put(0x3000, "0500 0000 ed41 0000 4300000000000000 03000000")
    put(0x302C, "02000000")
    put(0x3040, "8000000000000000 3000 02 00")
    put(0x304C, "8000000000000000 3100 02 00")
    put(0x3058, "8500000000000000 3300 01 00")
    put(0x3064, "8800000000000000 3900 01 00")
    data[0x3070:0x3083] = b"...lib.rssync_io.rs"
    for offset, size, entry in (
        (0x30A0, 16931, "0000 01 00 00000000"),
        (0x3100, 13400, "0100 01 00 05000000"),
    ):
        put(offset, "0900 0000 a481 0000")
        put(offset + 8, struct.pack("<Q", size).hex() + "28000000 02000000")
        put(offset + 44, "01000000")
        put(offset + 64, entry)
    put(0x30C0, struct.pack("<QI", 1676819553, 628661334).hex())
    row = struct.Struct("<32s4I3Q2I")
    row.pack_into(data, 0x4000, DIGEST_1, 0, 1, 2974, 13400, 4828, 0x5000, 0, 1, 0)
    row.pack_into(data, 0x4050, DIGEST_0, 0, 1, 4828, 16931, 0, 0, 0, 0, 0)
    return bytes(data)


def test_superblock_of_the_example(bootstrap: BootstrapV6) -> None:
    superblock = bootstrap.superblock
    assert superblock.flags == (
        SuperblockFlag.COMPRESSION_ZSTD
        | SuperblockFlag.HASH_BLAKE3
        | SuperblockFlag.EXPLICIT_UID_GID
        | SuperblockFlag.INLINED_CHUNK_DIGEST
    )
    assert (superblock.version, superblock.chunk_size, superblock.inode_count) == (6, 1 << 20, 3)
    assert bootstrap.root_ino == 128


def test_blob_table_of_the_example(bootstrap: BootstrapV6) -> None:
    (blob,) = bootstrap.blobs
    assert blob.blob_id == blob.meta_blob_id == BLOB_ID
    assert (blob.chunk_count, blob.codec, blob.digester) == (2, Codec.ZSTD, Digester.BLAKE3)
    assert blob.features & BlobFeature.INLINED_CHUNK_DIGEST
    assert (blob.compressed_size, blob.uncompressed_size) == (14554, 0x9000)
    assert blob.compressed_data_size == 0x1E7A
    assert blob.ci == CiLocation(0x207A, 32, 32, Codec.NONE)
    assert blob.toc_size == 0x400


def test_tree_of_the_example(bootstrap: BootstrapV6) -> None:
    root = bootstrap.inode(128)
    assert (root.mode, root.size, root.nlink, root.mtime_s) == (0o40755, 67, 2, 0)
    assert list(bootstrap.entries(root)) == [
        DirEntry(b".", 128, 1),
        DirEntry(b"..", 128, 2),
        DirEntry(b"lib.rs", 133, 3),
        DirEntry(b"sync_io.rs", 136, 4),
    ]
    lib = bootstrap.lookup(root, b"lib.rs")
    assert lib is not None
    assert (lib.ino, lib.mode, lib.size, lib.blocks) == (133, 0o100644, 16931, 34)
    assert (lib.mtime_s, lib.mtime_ns) == (1676819553, 628661334)
    assert lib.rdev == 0, "i_u of a file is its chunk format"
    assert bootstrap.lookup(root, b"lib") is None


def test_extents_of_the_example(bootstrap: BootstrapV6) -> None:
    assert bootstrap.extents(bootstrap.inode(133), 0, 1 << 20) == [Extent(0, 0, 0, 16931, 0, 16931)]
    assert bootstrap.extents(bootstrap.inode(136), 400, 1000) == [
        Extent(0, 1, 0x5000, 13400, 400, 1000)
    ]


def test_digests_of_the_example_are_found_by_index_not_by_position(bootstrap: BootstrapV6) -> None:
    digests = bootstrap.digests(0)
    assert digests is not None
    assert digests.lookup(0, 0) == (DIGEST_0, None)
    assert digests.lookup(1, 0x5000) == (DIGEST_1, None)
