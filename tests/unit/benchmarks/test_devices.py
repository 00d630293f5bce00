from pathlib import Path

import pytest

from benchmarks.devices import plan_of_devices
from benchmarks.reads import plan_reads
from nydusd.builder.build import build_image
from nydusd.builder.options import BuildOptions
from nydusd.rafs.bootstrap import open_bootstrap

MIB = 1 << 20


@pytest.fixture
def source(tmp_path):
    """Two files of several chunks, the second of which begins with a chunk of the first."""
    folder = tmp_path / "source"
    (folder / "deep").mkdir(parents=True)
    one = b"".join(bytes([n]) * 4096 for n in range(250)) * 3
    (folder / "deep" / "one").write_bytes(one)
    (folder / "two").write_bytes(one[:MIB] + b"2" * MIB)
    (tmp_path / "blobs").mkdir()
    return folder


def built(source, version):
    bootstrap = source.parent / "bootstrap"
    build_image(source, BuildOptions(fs_version=version), bootstrap, source.parent / "blobs")
    return bootstrap


def test_reads_of_files_are_the_same_reads_of_the_blob(source):
    bootstrap_file = built(source, 6)
    plan = plan_reads(source, [Path("deep/one"), Path("two")], 128)
    found = plan_of_devices(plan, bootstrap_file)
    assert found is not None
    assert found.files == plan
    assert found.device.size == plan.size
    device = bytearray(8 * MIB)  # as the bootstrap says, from the source's bytes
    bootstrap = open_bootstrap(bootstrap_file)
    root = bootstrap.inode(bootstrap.root_ino)
    for path in plan.files:
        inode = root
        for name in path.parts:
            inode = bootstrap.lookup(inode, name.encode())
        at = 0
        for extent in bootstrap.extents(inode, 0, inode.size):
            begin = extent.chunk_offset
            device[begin : begin + extent.length] = (source / path).read_bytes()[
                at : at + extent.length
            ]
            at += extent.length
    bootstrap.close()
    for mine, its in zip(found.device.places, found.files.places, strict=True):
        expected = (source / plan.files[its.file]).read_bytes()[its.offset :][: plan.size]
        assert found.device.files[mine.file] == Path("0")
        assert device[mine.offset : mine.offset + plan.size] == expected


def test_the_device_of_a_v5_image_is_laid_out_elsewhere(source):
    plan = plan_reads(source, [Path("two")], 128)
    assert plan_of_devices(plan, built(source, 5)) is None
