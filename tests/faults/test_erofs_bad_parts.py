"""A device fails in the middle of what the kernel asks for at once: right bytes or EIO, never zeros."""

import os
from pathlib import Path

import pytest
import trio

from nydusd.builder.build import build_image
from nydusd.builder.options import BuildOptions
from nydusd.daemon.erofs_frontend import ErofsFrontend
from nydusd.daemon.erofs_layout import Layout
from nydusd.errors import BackendError
from nydusd.kernel.erofs import ErofsMount
from nydusd.kernel.stats import FsStats
from nydusd.rafs.bootstrap import open_bootstrap
from nydusd.units import KIB, MIB
from tests.support.erofs_mounts import needs_erofs
from tests.support.mounts import temporary_mountpoint
from tests.support.source_trees import seeded_bytes

pytestmark = needs_erofs

BIG = seeded_bytes("bad parts", 4 * MIB)
BAD = range(MIB + 5 * 4096, MIB + 15 * 4096)  # of the file


class BadDevice:
    """Bytes in memory, of which some cannot be had."""

    name = "bad"

    def __init__(self, content: bytes, bad: range) -> None:
        self._content, self._bad = content, bad
        self.size = len(content)

    async def read(self, offset: int, length: int) -> bytes:
        await trio.lowlevel.checkpoint()
        if offset < self._bad.stop and offset + length > self._bad.start:
            raise BackendError("cannot be had")
        return self._content[offset : offset + length]

    async def fill(self, offset: int, length: int) -> bool:
        await trio.lowlevel.checkpoint()
        return False

    async def native_map(self) -> None:
        await trio.lowlevel.checkpoint()

    def is_complete(self) -> bool:
        return False

    def cache_path(self) -> Path | None:
        return None


@pytest.fixture
def plain(tmp_path: Path) -> tuple[bytes, int]:
    """The address space of the image at `boot`, and where BIG begins in it."""
    (tmp_path / "source").mkdir()
    (tmp_path / "source/big").write_bytes(BIG)
    build_image(
        tmp_path / "source", BuildOptions(chunk_size=MIB), tmp_path / "boot", tmp_path / "blobs"
    )
    bootstrap = open_bootstrap(tmp_path / "boot")
    inode = bootstrap.lookup(bootstrap.inode(bootstrap.root_ino), b"big")
    assert inode is not None
    base = bootstrap.extents(inode, 0, 1)[0].chunk_offset
    content = bytearray(-(-bootstrap.blobs[0].uncompressed_size // 4096) * 4096)
    content[base : base + len(BIG)] = BIG
    return bytes(content), base


def read_pieces(path: Path) -> tuple[int, int]:
    """Read in large and in small pieces; return how many bytes were right, and how many pieces EIO."""
    right = failed = 0
    with path.open("rb", buffering=0) as file:
        for piece in (128 * KIB, 4 * KIB):
            for start in range(0, len(BIG), piece):
                try:
                    got = os.pread(file.fileno(), piece, start)
                except OSError:
                    failed += 1
                else:
                    assert got
                    assert got == BIG[start : start + len(got)]
                    right += len(got)
    return right, failed


async def test_what_cannot_be_had_is_eio_and_the_rest_is_right(
    tmp_path: Path, plain: tuple[bytes, int], caplog: pytest.LogCaptureFixture
) -> None:
    content, base = plain
    device = BadDevice(content, range(base + BAD.start, base + BAD.stop))
    with temporary_mountpoint() as mountpoint:
        async with trio.open_nursery() as nursery:
            layout = Layout(tmp_path / "boot", [device])
            frontend = await ErofsFrontend.mount(
                mountpoint, layout, FsStats("/"), nursery, threads=2, clones=False
            )
            right, failed = await trio.to_thread.run_sync(read_pieces, mountpoint / "big")
            frontend.unmount()
            frontend.stop(grace_s=1)
            await frontend.serve()
            frontend.close()
    assert failed >= len(BAD) // 4096
    # The kernel reads and gives up a large folio as a whole: neighbours within 128 KiB are lost as well.
    assert right >= 2 * (len(BIG) - 128 * KIB)
    assert "cannot be had" in caplog.text


@pytest.mark.parametrize("cut", [MIB, MIB + 5 * 4096, MIB + 5 * 4096 + 100])
async def test_a_device_that_was_cut_gives_no_zeros(
    tmp_path: Path, plain: tuple[bytes, int], cut: int
) -> None:
    content, base = plain
    (tmp_path / "device").write_bytes(content[: base + cut])
    with temporary_mountpoint() as mountpoint:
        mounted = await ErofsMount.mount(tmp_path / "boot", [str(tmp_path / "device")], mountpoint)
        right, failed = await trio.to_thread.run_sync(read_pieces, mountpoint / "big")
        assert mounted.unmount()
    assert failed
    assert right
