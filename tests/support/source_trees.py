"""Folders to build images from: every kind of file, name and content that an image must carry.

`write_tree` makes all of them; the single builders make what one test is about. Contents come from a
seed, so that a tree made twice is the same but for inode numbers.
"""

import os
import random
import socket
import stat
from hashlib import blake2b
from pathlib import Path

from nydusd.units import GIB, KIB, MIB

ODD_NAMES = (  # around `.` and `..` in byte order, bytes that are no UTF-8, blanks, the longest name
    b"!bang",
    b"+plus",
    b"-dash",
    b".-between-the-dots",
    b".hidden",
    b"..two-dots",
    b"...three",
    b"/slash".replace(b"/", b"\\"),
    b" blank ",
    b"new\nline",
    b"\xff\xfe-not-utf8",
    b"\x01control",
    "größe-日本語".encode(),
    b"n" * 255,
    b"\x7f",
    b"~",
)
BASE_TIME_NS = 1_600_000_000_123_456_789


def seeded_bytes(seed: str, size: int) -> bytes:
    """Return `size` incompressible bytes that depend on the seed only."""
    return random.Random(seed).randbytes(size)


def text_bytes(seed: str, size: int) -> bytes:
    """Return `size` bytes that compress well."""
    words = b"chunk blob inode extent mount layer cache fetch".split()
    source = random.Random(seed)
    block = b" ".join(source.choice(words) for _ in range(2048))
    return (block * (size // len(block) + 1))[:size]


def set_times(root: Path) -> None:
    """Give every path a time that depends on its name only; some before 1970, some without seconds."""
    for folder, folders, files in os.walk(os.fsencode(root), topdown=False):
        for name in [*files, *folders]:
            path = os.path.join(folder, name)
            number = int.from_bytes(blake2b(name, digest_size=4).digest())
            when = BASE_TIME_NS + number * 1_000_000_007
            if name == b"before-1970":
                when = -86_400_000_000_000 + 5
            os.utime(path, ns=(when, when), follow_symlinks=False)


def add_contents(root: Path, *, big: int = 3 * MIB + 17) -> None:
    """Add files of all sizes around chunk and block limits, twins and sparse ones."""
    root.mkdir()
    (root / "empty").touch()
    for size in (1, 2, 511, 512, 4095, 4096, 4097, 65535, 65536, 65537, 131072):
        (root / f"text-{size}").write_bytes(text_bytes(str(size), size))
        (root / f"random-{size}").write_bytes(seeded_bytes(str(size), size))
    (root / "big-random").write_bytes(seeded_bytes("big", big))
    (root / "big-text").write_bytes(text_bytes("big", big))
    (root / "twin").write_bytes(text_bytes("big", big))
    (root / "half-twin").write_bytes(text_bytes("big", MIB) + seeded_bytes("half", MIB))
    (root / "zeros").write_bytes(bytes(2 * MIB + 5))
    with (root / "sparse").open("wb") as file:
        file.seek(5 * MIB)
        file.write(b"in the middle")
        file.truncate(9 * MIB + 3)
    with (root / "all-hole").open("wb") as file:
        file.truncate(3 * MIB)


def add_huge_hole(root: Path, size: int = 64 * GIB + 1) -> None:
    """Add a file that nobody could read in full."""
    with (root / "huge-hole").open("wb") as file:
        file.truncate(size)


def add_names(root: Path) -> None:
    """Add files and folders with the names that sort, print or decode badly."""
    root.mkdir()
    base = os.fsencode(root) + b"/"
    for position, name in enumerate(ODD_NAMES):
        if position % 3 == 2:
            os.mkdir(base + name)
        else:
            with open(base + name, "wb") as file:
                file.write(name * position)


def add_links(root: Path) -> None:
    """Add hard links within and across folders, symlinks of all lengths, dangling ones too."""
    (root / "z-later").mkdir(parents=True)
    (root / "first").write_bytes(b"one content, three names")
    os.link(root / "first", root / "second")
    os.link(root / "first", root / "z-later" / "third")
    os.link(root / "z-later" / "third", root / "a-name-before")
    (root / "to-file").symlink_to("first")
    (root / "dangling").symlink_to("/no/such/thing")
    os.symlink(b"\xff\xfe", os.fsencode(root / "bytes"))
    (root / "long").symlink_to("x" * 4000)
    (root / "longest").symlink_to("y" * 4095)


def add_directories(root: Path, entries: int = 700) -> None:
    """Add empty, deep and large folders; the large one takes several 4 KiB blocks."""
    (root / "empty").mkdir(parents=True)
    deep = root / "deep"
    for level in range(40):
        deep = deep / f"level-{level:02}"
    deep.mkdir(parents=True)
    (deep / "bottom").write_bytes(b"down here")
    large = root / "large"
    large.mkdir()
    for number in range(entries):
        path = large / f"entry-{number:05}-{'p' * (number % 37)}"
        if number % 5:
            path.write_bytes(b"%d" % number)
        else:
            path.symlink_to(f"target-{number}")
    exact = root / "exact-block"  # dots and these entries fill one block to the byte
    exact.mkdir()
    room = 4096 - (12 + 1) - (12 + 2)
    for number in range(room // (12 + 100) - 1):
        (exact / f"{number:0100}").touch()
        room -= 112
    while room > 12 + 255:
        (exact / f"{room:0100}").touch()
        room -= 112
    (exact / ("r" * (room - 12))).touch()


def add_modes(root: Path) -> None:
    """Add files with setuid, setgid, sticky and no permission at all."""
    root.mkdir()
    for mode in (0o4755, 0o2755, 0o1777, 0o000, 0o600, 0o777):
        path = root / f"mode-{mode:04o}"
        path.write_bytes(b"%o" % mode)
        path.chmod(mode)
    (root / "sticky").mkdir()
    (root / "sticky").chmod(0o1777)
    (root / "before-1970").write_bytes(b"old")


def add_owners(root: Path) -> None:
    """Add files of other owners, ids beyond 16 bits too. Needs root."""
    root.mkdir()
    for uid, gid in ((1000, 1000), (65534, 65534), (70_000, 123_456), (2**32 - 2, 2**32 - 2)):
        path = root / f"owner-{uid}"
        path.write_bytes(b"owned")
        os.chown(path, uid, gid)


def add_special(root: Path, *, devices: bool) -> None:
    """Add a FIFO, a socket and, as root, device nodes with small and large numbers."""
    root.mkdir()
    os.mkfifo(root / "fifo", 0o640)
    with socket.socket(socket.AF_UNIX) as listener:
        here = Path.cwd()
        os.chdir(root)  # the path of a socket must be short
        try:
            listener.bind("socket")
        finally:
            os.chdir(here)
    if devices:
        os.mknod(root / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        os.mknod(root / "block", stat.S_IFBLK | 0o660, os.makedev(259, 300_000))
        os.mknod(root / "char", stat.S_IFCHR | 0o600, os.makedev(4095, 255))


def add_xattrs(root: Path, *, trusted: bool) -> None:
    """Add user xattrs, empty, binary and large ones, and as root those of other prefixes."""
    (root / "folder").mkdir(parents=True)
    (root / "file").write_bytes(b"with attributes")
    (root / "no-data").touch()
    (root / "many").write_bytes(b"many attributes")
    (root / "large").write_bytes(b"one large attribute")
    for path in (root / "file", root / "folder", root / "no-data"):
        os.setxattr(path, "user.plain", b"value")
        os.setxattr(path, "user.empty", b"")
        os.setxattr(path, "user.binary", b"\x00\xff\x00")
    for number in range(20):
        os.setxattr(root / "many", f"user.name-{number}", b"v" * number)
    os.setxattr(root / "large", "user.large", seeded_bytes("xattr", 3000))
    (root / "link").symlink_to("file")
    if trusted:
        os.setxattr(root / "file", "trusted.secret", b"for root")
        os.setxattr(root / "link", "trusted.on-link", b"l", follow_symlinks=False)
        capability = bytes.fromhex("0100000200040000000000000000000000000000")
        os.setxattr(root / "file", "security.capability", capability)
        acl = bytes.fromhex("0200000001000600ffffffff04000400ffffffff20000400ffffffff")
        os.setxattr(root / "file", "system.posix_acl_access", acl)


def write_tree(root: Path, *, big: int = 3 * MIB + 17, entries: int = 700) -> Path:
    """Make a folder with all of the above and return it. As root it has devices and trusted xattrs."""
    is_root = os.geteuid() == 0
    root.mkdir(parents=True)
    add_contents(root / "contents", big=big)
    add_names(root / "names")
    add_links(root / "links")
    add_directories(root / "directories", entries)
    add_modes(root / "modes")
    add_special(root / "special", devices=is_root)
    add_xattrs(root / "xattrs", trusted=is_root)
    if is_root:
        add_owners(root / "owners")
    set_times(root)
    return root


def write_small_tree(root: Path) -> Path:
    """Make a folder with a bit of everything that any user may create, some 100 KiB."""
    root.mkdir(parents=True)
    (root / "hello.txt").write_bytes(b"hello, world\n")
    (root / "folder").mkdir()
    (root / "folder" / "text").write_bytes(text_bytes("small", 70 * KIB))
    (root / "folder" / "random").write_bytes(seeded_bytes("small", 20 * KIB))
    (root / "folder" / "link").symlink_to("text")
    os.link(root / "hello.txt", root / "folder" / "hard")
    (root / "none").mkdir()
    (root / "nothing").touch()
    set_times(root)
    return root
