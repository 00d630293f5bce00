"""The kernel's own EROFS mounts what the builder writes: bootstrap and plain blob, no daemon at all."""

from pathlib import Path

import pytest

from nydusd import native
from nydusd.blob.model import Codec
from nydusd.builder.blob_files import BlobFiles
from nydusd.builder.build import build_image
from nydusd.builder.options import BuildOptions
from nydusd.rafs.bootstrap import open_bootstrap
from nydusd.units import KIB, MIB
from tests.support.erofs_mounts import erofs, needs_erofs
from tests.support.image_trees import folder_tree
from tests.support.source_trees import write_tree

pytestmark = needs_erofs


def write_plain_blob(bootstrap: Path, blob_dir: Path, plain: Path) -> None:
    """Decode the whole blob into its plain address space, as the cache holds it."""
    image = open_bootstrap(bootstrap)
    (info,) = image.blobs
    table = BlobFiles(blob_dir).chunk_table(info, image.digests(0))
    stored = (blob_dir / info.blob_id).read_bytes()
    chunks = [table.chunk(index) for index in range(len(table))]
    with plain.open("wb") as file:
        file.truncate(info.uncompressed_size)
        results = native.decode_to_file(stored, 0, chunks, info.codec, info.digester, file.fileno())
    assert {result.status for result in results} == {native.Status.SAVED}
    image.close()


@pytest.mark.parametrize("chunk_size", [4 * KIB, MIB, 16 * MIB])
def test_the_kernel_shows_the_folder_from_bootstrap_and_plain_blob(
    tmp_path: Path, chunk_size: int
) -> None:
    source = write_tree(tmp_path / "source")
    options = BuildOptions(codec=Codec.LZ4_BLOCK, chunk_size=chunk_size)
    build_image(source, options, tmp_path / "boot", tmp_path / "blobs")
    write_plain_blob(tmp_path / "boot", tmp_path / "blobs", tmp_path / "plain")
    with erofs(tmp_path / "boot", tmp_path / "plain", tmp_path / "mnt") as mounted:
        assert folder_tree(mounted) == folder_tree(source)
