"""An image in batches and encrypted, made byte by byte: what a mount of it shows, and what is told of its key."""

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.erofs_mounts import mounts_at, why_not_erofs
from tests.support.mounts import temporary_mountpoint, umount_lazily
from tests.support.processes import Process
from tests.support.rafs_v6_image import directory, make_image, regular
from tests.support.v2_blobs import BLOCK, V2Blob, make_v2_blob
from tests.support.xts_twin import KEY

GROUPS = [70_000, [9, 100, 700, 4097], 40, [1, 2], 6000, [300], 5]
ENCRYPTED_FLAG = 0x0200_0094  # of the superblock: as the support's default, but AES-128-XTS
EROFS = pytest.param(
    "erofs", marks=pytest.mark.skipif(bool(why_not_erofs()), reason=str(why_not_erofs()))
)


class House:
    """The image, its blob, its cache and its mountpoint."""

    def __init__(self, folder: Path, mountpoint: Path) -> None:
        self.folder = folder
        self.mountpoint = mountpoint
        self.made: V2Blob = make_v2_blob(GROUPS, key=KEY)
        blobs = folder / "blobs"
        blobs.mkdir()
        (blobs / self.made.info.blob_id).write_bytes(self.made.stored)
        files = {
            b"file%d" % index: regular(
                row.uncompressed_size, [(0, index, row.uncompressed_offset // BLOCK)]
            )
            for index, row in enumerate(self.made.rows)
        }
        image = make_image(
            directory(files),
            [self.made.spec()],
            flags=ENCRYPTED_FLAG,
            chunk_rows=self.made.chunk_rows(),
        )
        (folder / "boot").write_bytes(image.data())
        config = {
            "device": {
                "backend": {"type": "localfs", "config": {"dir": str(blobs)}},
                "cache": {"type": "blobcache", "config": {"work_dir": str(folder / "cache")}},
            },
            "mode": "direct",
        }
        (folder / "config.json").write_text(json.dumps(config))

    def start(self, frontend: str) -> Process:
        return Process(
            self.folder, self.mountpoint, "--log-level", "trace", "--frontend", frontend,
            "--config", str(self.folder / "config.json"), "--bootstrap", str(self.folder / "boot"),
        ).running()  # fmt: skip

    def assert_all_is_right(self) -> None:
        for index, plain in enumerate(self.made.plain):
            assert (self.mountpoint / f"file{index}").read_bytes() == plain


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    with temporary_mountpoint() as mountpoint:
        try:
            yield House(tmp_path, mountpoint)
        finally:
            umount_lazily(mountpoint)


@pytest.mark.parametrize("frontend", ["fuse", EROFS])
def test_every_file_is_right_cold_and_from_the_cache(house: House, frontend: str) -> None:
    for _ in range(2):
        process = house.start(frontend)
        try:
            assert mounts_at(house.mountpoint)[-1].partition(".")[0] == frontend
            house.assert_all_is_right()
            process.process.send_signal(signal.SIGTERM)
            assert process.wait() == 0
        finally:
            process.end()
    cached = (house.folder / "cache" / f"{house.made.info.blob_id}.blob.data").read_bytes()
    for row, plain in zip(house.made.rows, house.made.plain, strict=True):
        assert cached[row.uncompressed_offset :][: len(plain)] == plain


@pytest.mark.parametrize("frontend", ["fuse", EROFS])
def test_damage_is_eio_in_what_it_hits_and_nowhere_else(house: House, frontend: str) -> None:
    offset, length = house.made.stored_range(0)
    blob = house.folder / "blobs" / house.made.info.blob_id
    stored = bytearray(house.made.stored)
    stored[offset : offset + length] = bytes(length)
    blob.write_bytes(stored)
    process = house.start(frontend)
    try:
        hit = set(house.made.batches[0])
        for index, plain in enumerate(house.made.plain):
            if index in hit:
                with pytest.raises(OSError, match="Input/output error"):
                    (house.mountpoint / f"file{index}").read_bytes()
            else:
                assert (house.mountpoint / f"file{index}").read_bytes() == plain
        blob.write_bytes(house.made.stored)
        house.assert_all_is_right()
    finally:
        process.end()


def test_the_key_is_in_no_log_no_answer_and_no_file_of_ours(house: House) -> None:
    blob = house.folder / "blobs" / house.made.info.blob_id
    blob.write_bytes(bytes(len(house.made.stored)))  # so that errors are told, too
    process = house.start("fuse")
    try:
        with pytest.raises(OSError, match="Input/output error"):
            (house.mountpoint / "file0").read_bytes()
        blob.write_bytes(house.made.stored)
        house.assert_all_is_right()
        targets = ("/daemon", "/metrics", "/metrics/files", "/metrics/backend", "/metrics/blobcache",
                   "/metrics/pattern", "/metrics/inflight", "/daemon/events")  # fmt: skip
        told = [process.log.read_bytes()]
        told += [json.dumps(process.ask("GET", target)).encode() for target in targets]
        told += [path.read_bytes() for path in (house.folder / "cache").iterdir()]
        assert len(told) > len(targets) + 3
    finally:
        process.end()
    for secret in (KEY.key, KEY.key[:16], KEY.key[16:], KEY.tweak):
        for text in (secret, secret.hex().encode(), repr(secret)[2:-1].encode()):
            assert not any(text in what for what in told)
