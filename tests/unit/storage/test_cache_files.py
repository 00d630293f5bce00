import errno
import fcntl
import os
import struct
from pathlib import Path

import pytest

from nydusd.errors import ProtectionError
from nydusd.storage.cache import files
from nydusd.storage.cache.files import CacheFile, open_cache_file, replace_file
from nydusd.storage.cache.memory import MemoryChunks

ID = "cd" * 32


def flock(kind: int) -> bytes:
    return struct.pack("@hhqqi4x", kind, os.SEEK_SET, 0, 0, 0)


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


def whole(directory: Path, size: int = 40_000) -> CacheFile:
    file = opened(directory, size)
    os.pwrite(file.fd, b"x" * size, 0)
    file.map.mark(range(10))
    return file


def test_a_file_that_is_not_whole_cannot_be_protected(tmp_path):
    file = opened(tmp_path)
    with pytest.raises(ProtectionError, match="not whole"):
        file.protect()
    os.pwrite(file.fd, b"x" * 40_000, 0)
    file.protect()
    file.protect()
    file.close()
    file = opened(tmp_path)
    os.truncate(tmp_path / f"{ID}.blob.data", 20_000)
    with pytest.raises(ProtectionError, match="not whole"):
        file.protect()
    fcntl.fcntl(file.fd, fcntl.F_OFD_SETLK, flock(fcntl.F_WRLCK))  # and no lock is left behind
    file.close()


def test_a_protected_file_is_opened_and_written_by_others_as_ever(tmp_path):
    one = whole(tmp_path)
    one.protect()
    two = opened(tmp_path)
    assert os.fstat(one.fd).st_ino == os.fstat(two.fd).st_ino
    assert two.map.is_complete()
    two.protect()
    one.close()
    two.close()


@pytest.mark.parametrize("expected", [40_001, 39_999])
def test_who_wants_another_size_leaves_a_protected_file_alone(tmp_path, caplog, expected):
    one = whole(tmp_path)
    one.protect()
    two = opened(tmp_path, expected)
    assert os.fstat(one.fd).st_size == 40_000
    assert os.fstat(two.fd).st_ino != os.fstat(one.fd).st_ino
    assert os.fstat(two.fd).st_size == expected
    assert two.map.count_ready() == 0
    one.map.mark([5])  # goes to the old data file's map
    assert two.map.count_ready() == 0
    assert "not of this blob" in caplog.text
    one.close()
    two.close()


def test_a_short_file_that_nobody_protects_is_made_longer_in_place(tmp_path):
    (tmp_path / f"{ID}.blob.data").write_bytes(bytes(100))
    inode = (tmp_path / f"{ID}.blob.data").stat().st_ino
    file = opened(tmp_path)
    status = os.fstat(file.fd)
    assert (status.st_ino, status.st_size) == (inode, 40_000)
    os.pwrite(file.fd, b"x" * 40_000, 0)
    file.protect()  # the lock of the extension is gone
    file.close()


def test_openers_who_find_the_file_right_do_not_keep_each_other_out(tmp_path, monkeypatch):
    whole(tmp_path).close()
    held = os.open(tmp_path / f"{ID}.blob.data", os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_SH)  # another one, in the middle of it
    monkeypatch.setattr(files, "OPEN_LOCK_TRIES", 1)
    file = opened(tmp_path)
    assert file.map.is_complete()
    file.close()
    os.close(held)


def test_bits_of_a_file_that_is_gone_do_not_stay_where_no_new_map_can_be_made(
    tmp_path, monkeypatch, caplog
):
    whole(tmp_path).close()
    (tmp_path / f"{ID}.blob.data").unlink()

    def full(*_args: object, **_kwargs: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", full)
        file = opened(tmp_path)
    os.pwrite(file.fd, b"x", 0)  # the data file is whole and not empty from now on
    assert file.map.count_ready() == 0
    file.close()
    again = opened(tmp_path)
    assert again.map.count_ready() == 0
    again.close()


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
