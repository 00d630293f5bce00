from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest

from nydusd.storage.lazy_blob import LazyBlob
from tests.support.blobs import MadeBlob
from tests.support.memory_backend import MemoryBackend
from tests.support.open_blob import opened_blob

OpenBlob = Callable[..., AbstractAsyncContextManager[LazyBlob]]


@pytest.fixture
def open_blob(tmp_path: Path) -> OpenBlob:
    """Open a made blob on a backend, with its cache in the test's folder (or without, cached=False)."""

    def opened(
        made: MadeBlob,
        backend: MemoryBackend,
        *,
        cached: bool = True,
        amplify_bytes: int = 0,
        validate: bool = False,
    ) -> AbstractAsyncContextManager[LazyBlob]:
        return opened_blob(
            made,
            backend,
            tmp_path if cached else None,
            amplify_bytes=amplify_bytes,
            validate=validate,
        )

    return opened
