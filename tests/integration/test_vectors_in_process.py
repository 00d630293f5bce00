"""Every reference image that is served, read through the pool without a kernel: each byte, cold and warm.

The mount on top is tested elsewhere; this finds a wrong byte in seconds and without privileges.
"""

import fnmatch
import hashlib
import json
import stat
from pathlib import Path

import pytest
import zstandard

from nydusd.config.load import load
from nydusd.storage.image import Image
from nydusd.storage.pool import open_pool
from tests.conftest import vectors_dir

PLAIN = [
    "empty-*",
    "onefile-*",
    "deep-*",
    "hugedir-*",
    "zeros-*",
    "v5-lz4*",
    "v5-none*",
    "v5-zstd*",
    "v6-lz4*",
    "v6-none*",
    "v6-zstd*",
    "v6-toc",
    "v5-inline",
    "v6-inline*",
    "merge3-v5",
    "merge3-v6",
    "parent-v6",
    "chunk-dict-v6",
    "overlayfs-v6",
    "prefetch-*",
    "repeatable-v6",
    "sortnames-v6",
    "tar-rafs-*",
    "targz-rafs-v6",
    "estargz-rafs",
    "merge3-inline-toc",
    "external-*",
    "targz-ref*",
    "tar-ref",
    "merge3-zran*",
    "estargz-ref",
]
SIZE_READ_MAX = 64 << 20


def plain_vectors() -> list[Path]:
    folder = vectors_dir()
    if not folder.is_dir():
        return []
    return sorted(
        path.parent
        for path in folder.glob("*/vector.json")
        if any(fnmatch.fnmatch(path.parent.name, pattern) for pattern in PLAIN)
        and list_of_paths(path.parent) is not None
    )


def list_of_paths(vector: Path) -> Path | None:
    """What the reference shows, but where it fails, what is right."""
    found = [*vector.glob("truth.jsonl*"), *vector.glob("expected.jsonl*")]
    return found[0] if found else None


def expected(vector: Path) -> dict[str, dict[str, object]]:
    path = list_of_paths(vector)
    assert path is not None
    text = path.read_bytes()
    if path.suffix == ".zst":
        text = zstandard.ZstdDecompressor().decompressobj().decompress(text)
    return {entry["path"]: entry for entry in map(json.loads, text.splitlines())}


def escaped(path: bytes) -> str:
    return path.decode("utf-8", "surrogateescape").encode("unicode_escape").decode()


async def digests_of_all_files(image: Image, step: int) -> dict[str, str]:
    bootstrap = image.bootstrap
    found: dict[str, str] = {}
    stack = [(b"", bootstrap.root_ino)]
    while stack:
        path, ino = stack.pop()
        inode = bootstrap.inode(ino)
        if stat.S_ISDIR(inode.mode):
            stack += [
                (path + b"/" + entry.name, entry.ino)
                for entry in bootstrap.entries(inode)
                if entry.name not in (b".", b"..")
            ]
        elif stat.S_ISREG(inode.mode) and inode.size <= SIZE_READ_MAX:
            digest = hashlib.sha256()
            for offset in range(0, inode.size, step):
                digest.update(await image.read(inode, offset, step))
            found[escaped(path)] = digest.hexdigest()
    return found


@pytest.mark.parametrize("vector", plain_vectors(), ids=lambda p: p.name)
async def test_every_file_has_its_bytes_cold_and_warm(vector, tmp_path):
    spec = json.loads((vector / "vector.json").read_text())
    source = spec.get("mount_source") or spec["bootstrap"]
    text = json.dumps(spec["daemon"]["config"])
    text = text.replace("@DIR@", str(vector)).replace("@CACHE@", str(tmp_path))
    config = load(text, "vector.json")
    want = {
        path: entry["sha256"]
        for path, entry in expected(vector).items()
        if "sha256" in entry and entry["size"] <= SIZE_READ_MAX
    }
    for step in (1 << 20, 50_000):
        async with open_pool() as pool:
            image = await pool.open_image(vector / source, config)
            assert await digests_of_all_files(image, step) == want
            if step == 50_000 and image.backend_stats.read_count:
                pytest.fail(
                    f"the warm walk asked the backend {image.backend_stats.read_count} times"
                )
            await image.aclose()


def test_the_reference_images_are_there_or_it_is_said(vectors):
    assert plain_vectors()
