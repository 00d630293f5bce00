import os
from pathlib import Path

import pytest

from nydusd.storage.cache.files import open_cache_file, replace_file
from nydusd.storage.cache.memory import MemoryChunks

ID = "cd" * 32


def opened(directory: Path, size: int = 40_000, count: int = 10):
    file = open_cache_file(directory, ID, size, count, indexed=True)
    assert file is not None
    return file


def test_a_new_data_file_is_sparse_and_of_full_size(tmp_path):
    file = opened(tmp_path)
    status = os.fstat(file.fd)
    assert (status.st_size, status.st_blocks) == (40_000, 0)
    file.close()


def test_ready_bits_survive_a_reopening(tmp_path):
    file = opened(tmp_path)
    os.pwrite(file.fd, b"plain", 4096)
    file.map.mark([1])
    file.close()
    again = opened(tmp_path)
    assert again.map.is_ready(1)
    assert again.read(4096, 5) == b"plain"
    assert again.read_now(4096, 5) == b"plain"
    again.close()


def test_a_map_whose_data_file_was_removed_is_not_trusted(tmp_path, caplog):
    file = opened(tmp_path)
    os.pwrite(file.fd, b"plain", 4096)
    file.map.mark([1])
    file.close()
    (tmp_path / f"{ID}.blob.data").unlink()
    again = opened(tmp_path)
    assert again.map.count_ready() == 0
    again.close()


def test_a_map_that_may_speak_of_a_raw_file_is_not_trusted(tmp_path, caplog):
    file = opened(tmp_path)
    os.pwrite(file.fd, b"plain", 4096)
    file.map.mark([1])
    file.close()
    (tmp_path / f"{ID}.blob.raw").write_bytes(b"stored")
    again = opened(tmp_path)
    assert again.map.count_ready() == 0
    again.close()


def test_a_longer_data_file_is_replaced_not_truncated(tmp_path, caplog):
    path = tmp_path / f"{ID}.blob.data"
    path.write_bytes(bytes(50_000))
    with path.open("rb") as held:
        file = opened(tmp_path)
        assert os.fstat(held.fileno()).st_size == 50_000
    assert os.fstat(file.fd).st_size == 40_000
    assert "not of this blob" in caplog.text
    file.close()


def test_two_openers_share_bits(tmp_path):
    one, two = opened(tmp_path), opened(tmp_path)
    os.pwrite(one.fd, b"x", 0)
    one.map.mark([0])
    assert two.map.is_ready(0)
    one.close()
    two.close()


def test_without_an_index_the_map_leaves_no_file(tmp_path):
    file = open_cache_file(tmp_path, ID, 100, 5, indexed=False)
    assert file is not None
    file.map.mark([2])
    assert os.listdir(tmp_path) == [f"{ID}.blob.data"]
    file.close()


def test_an_unusable_directory_gives_no_file_and_one_warning(tmp_path, caplog):
    assert open_cache_file(tmp_path / "missing", ID, 100, 5, indexed=True) is None
    assert "not cached on disk" in caplog.text


def test_replace_file_writes_whole_or_not_at_all(tmp_path):
    path = tmp_path / "side"
    replace_file(path, [b"a", b"b"])
    assert path.read_bytes() == b"ab"
    with pytest.raises(TypeError):
        replace_file(path, [b"c", None])  # type: ignore[list-item]
    assert path.read_bytes() == b"ab"
    assert os.listdir(tmp_path) == ["side"]


def test_memory_drops_the_least_recently_used():
    memory = MemoryChunks(limit_bytes=100)
    memory.put("a", 0, bytes(40))
    memory.put("a", 1, bytes(40))
    assert memory.get("a", 0) is not None
    memory.put("b", 0, bytes(40))
    assert memory.get("a", 1) is None
    assert memory.size_bytes == 80
    memory.put("b", 1, bytes(101))
    assert memory.get("b", 1) is None
    memory.discard_blob("b")
    assert memory.size_bytes == 40
