"""Bootstraps with flipped bits: whatever the kernel is let show of them is what the other frontend would show.

No daemon and no FUSE: our readers on one side, the kernel's EROFS on the plain address space on the other,
and between them the two checks that decide what the kernel gets to see.
"""

import os
import random
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from nydusd.blob.blob_meta import CiTable
from nydusd.builder.blob_files import BlobFiles
from nydusd.builder.build import build_image
from nydusd.builder.options import BuildOptions
from nydusd.errors import NydusError
from nydusd.rafs.bootstrap import open_bootstrap
from nydusd.rafs.erofs_v6 import check_for_erofs
from nydusd.rafs.model import Bootstrap, Inode
from nydusd.units import KIB, MIB
from tests.integration.test_image_erofs import write_plain_blob
from tests.support.erofs_mounts import erofs, needs_erofs
from tests.support.source_trees import seeded_bytes, write_small_tree

pytestmark = needs_erofs

MUTANTS = 250
READ_MAX_BYTES = MIB  # of a file whose size is damaged
DEPTH_MAX = 8
WRONG = "cannot be had"

Tree = dict[bytes, dict[str, Any]]


class Made(NamedTuple):
    folder: Path
    sound: bytes  # the bootstrap
    plain: Path
    table: CiTable


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("damaged")
    source = write_small_tree(folder / "source")
    for number in range(30):
        (source / f"file-{number:02}").write_bytes(seeded_bytes(str(number), 1 + 1999 * number))
    boot, blobs, plain = folder / "boot", folder / "blobs", folder / "plain"
    build_image(source, BuildOptions(chunk_size=16 * KIB), boot, blobs)
    write_plain_blob(boot, blobs, plain)
    image = open_bootstrap(boot)
    table = BlobFiles(blobs).chunk_table(image.blobs[0], image.digests(0))
    assert isinstance(table, CiTable)
    return Made(folder, boot.read_bytes(), plain, table)


def mutant(sound: bytes, seed: int) -> bytes:
    """Return the bootstrap with a few damaged bytes, most of them where something is written."""
    chance = random.Random(seed)
    written = [at for at, byte in enumerate(sound) if byte]
    damaged = bytearray(sound)
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        at = chance.choice((chance.choice(written), chance.randrange(1024, len(sound))))
        damaged[at] = chance.choice((damaged[at] ^ 1 << chance.randrange(8), 0, 0xFF))
    return bytes(damaged)


def attempt(read: Callable[[], Any]) -> Any:
    try:
        return read()
    except (NydusError, OSError):
        return WRONG


# ---- what our readers say ---------------------------------------------------------------------------


def told(image: Bootstrap, made: Made) -> Tree:
    """Return what the tree frontend would show, times of the root aside."""
    plain = made.plain.read_bytes()

    def content(inode: Inode) -> bytes:
        parts = []
        for extent in image.extents(inode, 0, min(inode.size, READ_MAX_BYTES)):
            if made.table.claim(extent.chunk_index) != (extent.chunk_offset, extent.chunk_size):
                raise NydusError("contradicted")
            start = extent.chunk_offset + extent.offset
            parts.append(plain[start : start + extent.length])
        return b"".join(parts)

    def below(inode: Inode) -> Iterator[tuple[bytes, Inode | str]]:
        for entry in image.entries(inode):
            if entry.name not in (b".", b".."):
                yield entry.name, attempt(lambda name=entry.name: image.lookup(inode, name))

    tree: Tree = {}
    pending: list[tuple[bytes, Any]] = [(b"/", image.inode(image.root_ino))]
    while pending:
        path, inode = pending.pop()
        tree[path] = record = {}
        if inode == WRONG or inode is None:
            record["mode"] = WRONG
            continue
        record |= {"mode": inode.mode, "owner": (inode.uid, inode.gid), "nlink": inode.nlink}
        if path != b"/":
            record["time"] = (inode.mtime_s, inode.mtime_ns)
        record["xattrs"] = attempt(lambda inode=inode: dict(image.xattrs(inode)))
        if stat.S_ISREG(inode.mode):
            record["size"] = inode.size
            record["content"] = attempt(lambda inode=inode: content(inode))
        elif stat.S_ISLNK(inode.mode):
            record["target"] = attempt(lambda inode=inode: image.readlink(inode))
        elif stat.S_ISDIR(inode.mode) and path.count(b"/") < DEPTH_MAX:
            children = attempt(lambda inode=inode: list(below(inode)))
            record["names"] = WRONG if children == WRONG else {name for name, _ in children}
            for name, child in () if children == WRONG else children:
                pending.append((path.rstrip(b"/") + b"/" + name, child))
    return tree


# ---- what the kernel says ---------------------------------------------------------------------------


def xattrs_of(full: bytes) -> dict[bytes, bytes]:
    names = os.listxattr(full, follow_symlinks=False)
    return {os.fsencode(n): os.getxattr(full, n, follow_symlinks=False) for n in names}


def head_of(full: bytes) -> bytes:
    with open(full, "rb", buffering=0) as file:
        parts = []
        while sum(map(len, parts)) < READ_MAX_BYTES and (part := file.read(64 * KIB)):
            parts.append(part)
        return b"".join(parts)


def shown(root: Path) -> Tree:
    """Return what is mounted at `root`."""
    base = os.fsencode(root)
    tree: Tree = {}
    pending = [b"/"]
    while pending:
        path = pending.pop()
        full = base + path
        tree[path] = record = {}
        status = attempt(lambda full=full: os.lstat(full))
        if status == WRONG:
            record["mode"] = WRONG
            continue
        mode = status.st_mode
        record |= {"mode": mode, "owner": (status.st_uid, status.st_gid), "nlink": status.st_nlink}
        if path != b"/":
            record["time"] = divmod(status.st_mtime_ns, 10**9)
        record["xattrs"] = attempt(lambda full=full: xattrs_of(full))
        if stat.S_ISREG(mode):
            record["size"] = status.st_size
            record["content"] = attempt(lambda full=full: head_of(full))
        elif stat.S_ISLNK(mode):
            record["target"] = attempt(lambda full=full: os.readlink(full))
        elif stat.S_ISDIR(mode) and path.count(b"/") < DEPTH_MAX:
            names = attempt(lambda full=full: set(os.listdir(full)))
            record["names"] = names
            pending += [] if names == WRONG else [path.rstrip(b"/") + b"/" + n for n in names]
    return tree


def differences(ours: Tree, kernels: Tree) -> list[str]:
    """Return what both can show, but show differently."""
    found = [f"{path!r} is only in one" for path in ours.keys() ^ kernels.keys()]
    for path in ours.keys() & kernels.keys():
        left, right = ours[path], kernels[path]
        if WRONG in (left["mode"], right["mode"]):
            continue
        for key in left.keys() | right.keys():
            one, other = left.get(key), right.get(key)
            if one != other and WRONG not in (one, other):
                found.append(f"{path!r} {key}: {one!r:.80} and {other!r:.80}")
    return found


# ---- the comparison -----------------------------------------------------------------------------------


def test_what_the_kernel_may_show_of_damaged_images_is_what_we_would_show(
    made: Made,
    caplog: pytest.LogCaptureFixture,  # some damage is told: chunks without digests
) -> None:
    compared = 0
    boot = made.folder / "mutant"
    for seed in range(MUTANTS):
        boot.unlink(missing_ok=True)
        boot.write_bytes(mutant(made.sound, seed))
        try:
            image = open_bootstrap(boot)
            claims = check_for_erofs(boot, image.blobs).claims
        except NydusError:
            continue
        if len(image.blobs) != 1 or made.table.contradicted(claims[0]) is not None:
            continue
        try:
            with erofs(boot, made.plain, made.folder / f"mnt-{seed}") as mounted:
                kernels = shown(mounted)
        except OSError:  # the kernel has refused it
            continue
        assert differences(told(image, made), kernels) == [], f"seed {seed}"
        compared += 1
    assert compared > MUTANTS // 5  # some damage is a matter of taste: another time, another name
