"""The images that the reference builder made, where the machine has them: never needed, used if there.

Set NYDUS_VECTORS to their folder; the default is `../shared/vectors` beside the project.
"""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import zstandard

ROOT = Path(__file__).resolve().parents[2]
VECTORS = Path(os.environ.get("NYDUS_VECTORS", ROOT.parent / "shared" / "vectors"))
ABSENT = f"no vectors at {VECTORS}: set NYDUS_VECTORS to run this test on them"


def each_vector(*patterns: str) -> list[Any]:
    """Parameters of a test: the folders whose names match, or one that is skipped with a clear line.

    A pattern may reach below a folder ("v6-*/cache"), and names what it finds there.
    """
    if not VECTORS.is_dir():
        return [pytest.param(None, id="no-vectors", marks=pytest.mark.skip(reason=ABSENT))]
    found = sorted({path for pattern in patterns for path in VECTORS.glob(pattern)})
    assert found, f"no vector matches {patterns}"
    return [pytest.param(path, id=str(path.relative_to(VECTORS))) for path in found]


def vector(name: str) -> Path:
    """Return the folder of one vector; skips the test that asks if there are none."""
    if not VECTORS.is_dir():
        pytest.skip(ABSENT)
    return VECTORS / name


def description(folder: Path) -> dict[str, Any]:
    """Return a vector's `vector.json`."""
    found: dict[str, Any] = json.loads((folder / "vector.json").read_text())
    return found


def manifest(path: Path) -> dict[str, dict[str, Any]]:
    """Return a `*.jsonl` or `*.jsonl.zst` of the vectors by path, as `manifest.py --fuse` wrote it."""
    if not path.exists():
        packed = path.with_name(f"{path.name}.zst").read_bytes()
        text = zstandard.ZstdDecompressor().decompressobj().decompress(packed).decode()
    else:
        text = path.read_text()
    records = [json.loads(line) for line in text.splitlines()]
    return {record["path"]: record for record in records}
