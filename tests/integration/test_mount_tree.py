"""What programs see of an image through a real mount. The image is `mount_runner.rich`."""

import concurrent.futures
import errno
import mmap
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.mount_runner import BIG, MOUNTED_AT_S
from tests.support.mounts import ServedMount, served, wait_until

NS = 1_000_000_000


@pytest.fixture
def rich() -> Iterator[ServedMount]:
    with served("rich=/") as mount:
        yield mount


def errno_of(call: object, *arguments: object, **keywords: object) -> int | None:
    """Return the errno a system call fails with, None if it does not."""
    try:
        call(*arguments, **keywords)  # type: ignore[operator]
    except OSError as exc:
        return exc.errno
    return None


def test_stat_shows_the_image(rich: ServedMount) -> None:
    root, hosts = os.stat(rich.path), os.stat(rich.path / "etc/hosts")
    assert root.st_mode == stat.S_IFDIR | 0o755
    assert root.st_ino >> 56 == hosts.st_ino >> 56 == 1
    assert hosts.st_mode == stat.S_IFREG | 0o640
    assert (hosts.st_uid, hosts.st_gid) == (1000, 1001)
    assert (hosts.st_size, hosts.st_blocks, hosts.st_blksize) == (20, 1, 4096)
    assert hosts.st_mtime_ns == 1_600_000_000_123_456_789
    assert hosts.st_atime_ns == hosts.st_ctime_ns == 0
    assert os.stat(rich.path / "run/setuid").st_mode == stat.S_IFREG | 0o4755


def test_times_that_are_not_recorded_and_times_before_1970(rich: ServedMount) -> None:
    undated, old = os.stat(rich.path / "undated"), os.stat(rich.path / "old")
    assert undated.st_mtime_ns == undated.st_atime_ns == undated.st_ctime_ns == MOUNTED_AT_S * NS
    assert old.st_mtime == -86_400


def test_hard_links_share_an_inode(rich: ServedMount) -> None:
    one, two = os.stat(rich.path / "etc/hosts"), os.stat(rich.path / "usr/hard")
    assert one.st_ino == two.st_ino
    assert one.st_nlink == two.st_nlink == 2


def test_symlinks_keep_their_bytes(rich: ServedMount) -> None:
    assert os.readlink(rich.path / "usr/soft") == "../etc/hosts"
    assert os.readlink(os.fsencode(rich.path / "usr/dangling")) == b"/nowhere/\xff"
    assert (rich.path / "usr/soft").read_bytes() == b"127.0.0.1 localhost\n"


def test_special_files_keep_kind_and_numbers(rich: ServedMount) -> None:
    null = os.stat(rich.path / "dev/null")
    assert stat.S_ISCHR(null.st_mode)
    assert null.st_rdev == os.makedev(1, 3)
    assert stat.S_ISFIFO(os.stat(rich.path / "dev/fifo").st_mode)
    assert stat.S_ISSOCK(os.stat(rich.path / "dev/socket").st_mode)
    assert errno_of(open, rich.path / "dev/null") == errno.EACCES  # mounted nodev


def test_names_are_bytes(rich: ServedMount) -> None:
    name = b"\xff\xfename with spaces\n"
    assert name in os.listdir(os.fsencode(rich.path))
    assert Path(os.fsdecode(os.fsencode(rich.path) + b"/" + name)).read_bytes() == b"bytes"


def test_a_long_listing_is_whole_and_knows_the_kinds(rich: ServedMount) -> None:
    with os.scandir(rich.path / "many") as entries:
        found = sorted((entry.name, entry.is_file(), entry.inode()) for entry in entries)
    assert [name for name, _, _ in found] == [f"file-{number:04}" for number in range(500)]
    assert all(is_file for _, is_file, _ in found)
    for name, _, ino in found[::100]:
        assert os.stat(rich.path / "many" / name).st_ino == ino


def test_a_listing_can_be_taken_up_again(rich: ServedMount) -> None:
    first, again = os.listdir(rich.path / "many"), os.listdir(rich.path / "many")
    assert first == again


def test_a_broken_inode_hides_nothing_but_itself(rich: ServedMount) -> None:
    assert sorted(os.listdir(rich.path / "bad")) == ["broken", "sound"]
    assert (rich.path / "bad/sound").read_bytes() == b"kept"
    for _ in range(2):
        assert errno_of(os.stat, rich.path / "bad/broken") == errno.EIO
    assert "Traceback" not in rich.log()


def test_every_byte_is_right_however_it_is_read(rich: ServedMount) -> None:
    path = rich.path / "big"
    assert path.read_bytes() == BIG
    fd = os.open(path, os.O_RDONLY)
    direct = os.open(path, os.O_RDONLY | os.O_DIRECT)
    try:
        for offset, size in ((0, 1), (4095, 2), (1 << 20, 1 << 20), (len(BIG) - 3, 100)):
            assert os.pread(fd, size, offset) == BIG[offset : offset + size]
        assert os.pread(fd, 100, len(BIG)) == b""
        buffer = mmap.mmap(-1, 1 << 20)
        for offset in range(0, len(BIG), 1 << 20):
            assert os.preadv(direct, [buffer], offset) == 1 << 20
            assert buffer[:] == BIG[offset : offset + (1 << 20)]
        with mmap.mmap(fd, 0, access=mmap.ACCESS_READ) as mapped:
            assert mapped[123_456:234_567] == BIG[123_456:234_567]
    finally:
        os.close(fd)
        os.close(direct)
    assert (rich.path / "empty").read_bytes() == b""


def test_many_readers_of_one_file_get_the_right_bytes(rich: ServedMount) -> None:
    def read(part: int) -> bytes:
        fd = os.open(rich.path / "big", os.O_RDONLY)
        try:
            return os.pread(fd, 65_536, part * 65_536)
        finally:
            os.close(fd)

    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        assert b"".join(pool.map(read, range(48))) == BIG


def test_extended_attributes(rich: ServedMount) -> None:
    hosts = rich.path / "etc/hosts"
    assert os.listxattr(hosts) == ["user.one", "user.empty", "trusted.overlay.opaque"]
    assert os.getxattr(hosts, "user.one") == b"1"
    assert os.getxattr(hosts, "user.empty") == b""
    assert os.getxattr(rich.path / "etc", "user.large") == b"x" * 4000
    assert errno_of(os.getxattr, hosts, "user.none") == errno.ENODATA
    assert os.listxattr(rich.path / "big") == []


def test_an_image_without_xattrs_does_not_switch_them_off_for_others() -> None:
    with served("plain=/plain", "rich=/rich") as mount:
        for path in (mount.path, mount.path / "plain/plain"):
            assert errno_of(os.getxattr, path, "user.one") == errno.EOPNOTSUPP
            assert errno_of(os.listxattr, path) == errno.EOPNOTSUPP
        assert os.getxattr(mount.path / "rich/etc/hosts", "user.one") == b"1"


def test_nothing_can_be_written(rich: ServedMount) -> None:
    hosts = rich.path / "etc/hosts"
    assert errno_of(os.open, hosts, os.O_RDWR) == errno.EROFS
    assert errno_of(os.open, rich.path / "new", os.O_CREAT | os.O_WRONLY) == errno.EROFS
    assert errno_of(os.unlink, hosts) == errno.EROFS
    assert errno_of(os.mkdir, rich.path / "dir") == errno.EROFS
    assert errno_of(os.setxattr, hosts, "user.two", b"2") == errno.EROFS
    assert errno_of(os.utime, hosts) == errno.EROFS


def test_statfs_and_mount_flags(rich: ServedMount) -> None:
    shown = os.statvfs(rich.path)
    assert (shown.f_bsize, shown.f_namemax, shown.f_blocks) == (512, 255, 0)
    wanted = os.ST_RDONLY | os.ST_NOSUID | os.ST_NODEV | os.ST_NOATIME
    assert shown.f_flag & wanted == wanted
    [line] = [
        line
        for line in Path("/proc/self/mountinfo").read_text().splitlines()
        if line.split()[4] == str(rich.path)
    ]
    kind, source, options = line.partition(" - ")[2].split()
    assert (kind, source) == ("fuse", "rafs")
    wanted_options = {"default_permissions", "allow_other", "max_read=1052672"}
    assert wanted_options <= set(options.split(","))
    assert line.split()[2] == f"0:{rich.connection_id}"


def test_modes_are_enforced_for_other_users(rich: ServedMount) -> None:
    child = os.fork()
    if child == 0:
        os.setgroups([])
        os.setgid(65_534)
        os.setuid(65_534)
        denied = errno_of(os.open, rich.path / "etc/hosts", os.O_RDONLY)
        granted = errno_of(os.open, rich.path / "other", os.O_RDONLY)
        os._exit(0 if (denied, granted) == (errno.EACCES, None) else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_a_missing_name_is_asked_for_only_once(rich: ServedMount) -> None:
    before = rich.do("stats", "/")["fop_hits"][9]
    for _ in range(5):
        assert errno_of(os.stat, rich.path / "missing") == errno.ENOENT
    assert rich.do("stats", "/")["fop_hits"][9] == before + 1


def test_reading_a_small_file_counts_once(rich: ServedMount) -> None:
    assert (rich.path / "etc/hosts").read_bytes()
    stats = rich.do("stats", "/")
    assert (stats["data_read"], stats["fop_hits"][4]) == (20, 1)


@pytest.mark.parametrize(
    ("kind", "number", "word"),
    [
        ("backend", errno.EIO, "WARNING"),
        ("auth", errno.EACCES, "WARNING"),
        ("bug", errno.EIO, "ERROR"),
    ],
)
def test_a_fault_is_told_and_does_not_stick(
    rich: ServedMount, kind: str, number: int, word: str
) -> None:
    fd = os.open(rich.path / "big", os.O_RDONLY | os.O_DIRECT)
    buffer = mmap.mmap(-1, 4096)
    try:
        rich.do("fail", "/", kind, 20)
        for _ in range(20):
            assert errno_of(os.preadv, fd, [buffer], 8192) == number
        assert os.preadv(fd, [buffer], 8192) == 4096
    finally:
        os.close(fd)
    assert buffer[:] == BIG[8192:12288]
    [line] = [line for line in rich.log().splitlines() if line.startswith(word)]
    assert "mount=/" in line
    assert "offset=8192" in line


def test_names_are_answered_while_all_readers_wait(rich: ServedMount) -> None:
    rich.do("gate", "/", False)
    with concurrent.futures.ThreadPoolExecutor(40) as pool:

        def read(part: int) -> bytes:
            fd = os.open(rich.path / "big", os.O_RDONLY | os.O_DIRECT)
            try:
                buffer = mmap.mmap(-1, 4096)
                os.preadv(fd, [buffer], part * 4096)
                return buffer[:]
            finally:
                os.close(fd)

        reads = [pool.submit(read, part) for part in range(40)]
        try:
            wait_until(lambda: len(rich.do("in_flight")) == 40, "all reads are in flight")
            assert rich.do("in_flight")[0] == [os.stat(rich.path / "big").st_ino, 15]
            assert len(os.listdir(rich.path / "many")) == 500
        finally:
            rich.do("gate", "/", True)
        for part, answer in enumerate(reads):
            assert answer.result() == BIG[part * 4096 : part * 4096 + 4096]
    assert rich.do("in_flight") == []
