import contextlib
import os
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nydusd.errors import FormatError
from nydusd.storage.cache.chunk_map import ChunkMap, check_header, map_file_bytes

HEADER = struct.pack("<4I", 0x424D4150, 1, 0x434D4150, 0).ljust(4096, b"\0")


def bits(path: Path) -> bytes:
    return path.read_bytes()[4096:]


def test_a_new_map_is_what_the_reference_writes(tmp_path):
    path = tmp_path / "m"
    ChunkMap.open(path, 11, trusted=True).close()
    assert path.read_bytes() == HEADER + bytes(2)
    assert os.listdir(tmp_path) == ["m"]


def test_chunk_1_of_2_is_bit_0x40(tmp_path):
    """The worked example of spec blobcache §18."""
    path = tmp_path / "m"
    chunk_map = ChunkMap.open(path, 2, trusted=True)
    assert chunk_map.mark([1]) == 1
    assert bits(path) == b"\x40"
    assert chunk_map.mark([0, 1]) == 1
    assert bits(path) == b"\xc0"
    assert path.read_bytes()[12:16] == bytes(4)
    chunk_map.close()
    reopened = ChunkMap.open(path, 2, trusted=True)
    assert reopened.is_complete()
    assert path.read_bytes()[12:16] == b"PAMM"


def test_bits_set_through_another_mapping_are_seen_at_once(tmp_path):
    one = ChunkMap.open(tmp_path / "m", 100, trusted=True)
    two = ChunkMap.open(tmp_path / "m", 100, trusted=True)
    one.mark([17])
    assert two.is_ready(17)
    two.mark([16, 17, 18])
    assert [i for i in range(100) if one.is_ready(i)] == [16, 17, 18]


@given(indices=st.sets(st.integers(0, 40)))
def test_memory_and_bits_agree(indices):
    chunk_map = ChunkMap.in_memory(41)
    chunk_map.mark(sorted(indices))
    assert {i for i in range(41) if chunk_map.is_ready(i)} == indices
    assert chunk_map.count_ready() == len(indices)
    assert chunk_map.is_complete() == (len(indices) == 41)


@pytest.mark.parametrize(
    "content",
    [
        b"short",
        HEADER + bytes(3),
        b"\1" + HEADER[1:] + bytes(2),
        HEADER[:8] + b"no!!" + HEADER[12:] + bytes(2),
        bytes(3000),
    ],
)
def test_a_foreign_map_is_replaced_under_a_new_inode(tmp_path, content, caplog):
    path = tmp_path / "m"
    path.write_bytes(content)
    with path.open("rb") as before:
        chunk_map = ChunkMap.open(path, 11, trusted=True)
        chunk_map.mark([3])
        assert before.read() == content
    assert path.read_bytes() == HEADER + b"\x10\0"
    assert "chunk map replaced" in caplog.text


def test_a_map_between_the_references_two_steps_is_completed_in_place(tmp_path):
    path = tmp_path / "m"
    path.write_bytes(bytes(4098))
    inode = path.stat().st_ino
    ChunkMap.open(path, 11, trusted=True).close()
    assert path.read_bytes() == HEADER + bytes(2)
    assert path.stat().st_ino == inode


def test_bits_that_outlived_their_data_file_are_not_trusted(tmp_path, caplog):
    path = tmp_path / "m"
    path.write_bytes(HEADER + b"\xff\xe0")
    chunk_map = ChunkMap.open(path, 11, trusted=False)
    assert chunk_map.count_ready() == 0
    assert "not theirs" in caplog.text


def test_an_empty_map_beside_a_new_data_file_is_kept_because_others_use_it(tmp_path):
    one = ChunkMap.open(tmp_path / "m", 11, trusted=False)
    two = ChunkMap.open(tmp_path / "m", 11, trusted=False)
    one.mark([4])
    assert two.is_ready(4)


def test_version_0_has_bits_but_no_all_ready_flag(tmp_path):
    path = tmp_path / "m"
    path.write_bytes(struct.pack("<4I", 0x424D4150, 0, 7, 0x4D4D4150).ljust(4096, b"\0") + b"\x80")
    chunk_map = ChunkMap.open(path, 2, trusted=True)
    assert (chunk_map.is_ready(0), chunk_map.is_ready(1)) == (True, False)


def test_a_directory_that_refuses_files_gives_a_map_in_memory(tmp_path, caplog):
    chunk_map = ChunkMap.open(tmp_path / "nowhere" / "m", 9, trusted=True)
    chunk_map.mark([8])
    assert chunk_map.is_ready(8)
    assert not chunk_map.is_persistent
    assert "memory only" in caplog.text


@given(head=st.binary(max_size=32), count=st.integers(1, 50))
def test_any_header_is_accepted_or_refused(head, count):
    with contextlib.suppress(FormatError):
        check_header(head.ljust(4096, b"\0"), map_file_bytes(count), count)
