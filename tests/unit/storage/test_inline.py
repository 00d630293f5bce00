import pytest

from nydusd.errors import BackendError, FormatError
from nydusd.storage.inline import open_inline_bootstrap
from nydusd.storage.threads import Workers
from tests.support.memory_backend import MemoryBackend


class Missing(MemoryBackend):
    async def size(self, blob_id: str) -> int:
        raise BackendError(f"blob {blob_id}: not found")


async def test_garbage_given_as_bootstrap_is_named_with_the_rule_it_breaks(tmp_path):
    path = tmp_path / "garbage"
    with pytest.raises(BackendError, match=f"{path}: neither RAFS v5 nor v6.*not found"):
        await open_inline_bootstrap(path, Missing({}), None, Workers(2))


async def test_a_blob_without_a_bootstrap_is_no_bootstrap_either(tmp_path):
    path = tmp_path / "ab"
    backend = MemoryBackend({"ab": bytes(5000)})
    with pytest.raises(FormatError, match="nor one inside a blob"):
        await open_inline_bootstrap(path, backend, None, Workers(2))
