# Types of the cffi module, as far as nydusd/native*.py use it. The C side is native/*.h.

from collections.abc import Callable, Sequence
from mmap import mmap
from typing import Self

# A C array over memory that a Python object owns; it keeps that object's buffer exported.
class CData:
    def __len__(self) -> int: ...
    def __enter__(self) -> Self: ...
    def __exit__(self, *exc: object) -> None: ...

class _FFI:
    NULL: CData
    def from_buffer(
        self,
        cdecl: str,
        python_buffer: bytes | bytearray | memoryview | mmap,
        require_writable: bool = False,
    ) -> CData: ...
    # cffi returns a `buffer` object; a slice of it is bytes.
    def buffer(self, cdata: CData, size: int = -1) -> memoryview: ...
    def new(self, cdecl: str, init: dict[str, object] | int) -> CData: ...
    def new_allocator(self, *, should_clear_after_alloc: bool) -> Callable[[str, int], CData]: ...
    def sizeof(self, cdecl: str) -> int: ...
    def release(self, cdata: CData) -> None: ...
    def offsetof(self, cdecl: str, field: str) -> int: ...

class _Lib:
    def nd_survive_cut_maps(self, tell_fd: int, /) -> int: ...
    def nd_decode_to_file(
        self,
        stored: CData,
        stored_length: int,
        stored_offset: int,
        chunks: CData,
        count: int,
        codec: int,
        digester: int,
        fd: int,
        results: CData,
    ) -> int: ...
    def nd_decode_to_memory(
        self,
        stored: CData,
        stored_length: int,
        stored_offset: int,
        chunks: CData,
        count: int,
        codec: int,
        digester: int,
        target: CData,
        target_length: int,
        target_offset: int,
        results: CData,
    ) -> int: ...
    def nd_verify_file(
        self, fd: int, chunks: CData, count: int, digester: int, results: CData
    ) -> int: ...
    def nd_digest(self, digester: int, data: CData, length: int, digest: CData) -> int: ...
    def nd_crc32c(self, data: CData, length: int) -> int: ...
    def nd_map_mark(
        self, bits: CData, length: int, count: int, indices: CData, number: int
    ) -> int: ...
    def nd_map_is_ready(self, bits: CData, length: int, count: int, index: int) -> int: ...
    def nd_map_count_ready(self, bits: CData, length: int, count: int) -> int: ...
    def nd_map_next_absent(self, bits: CData, length: int, count: int, start: int) -> int: ...
    def nd_index_chunk_table(
        self,
        bootstrap: CData,
        length: int,
        offset: int,
        size: int,
        blob_index: int,
        records: CData,
        chunk_count: int,
    ) -> int: ...
    def nd_index_v5_chunks(
        self,
        bootstrap: CData,
        length: int,
        table_offset: int,
        entries: int,
        blob_index: int,
        records: CData,
        chunk_count: int,
        walk: CData,
    ) -> int: ...
    def nd_chunk_blocks(
        self,
        records: CData,
        length: int,
        record_bytes: int,
        count: int,
        blocks: CData,
        layout: CData,
    ) -> int: ...
    def nd_inflate_context(
        self,
        stored: CData,
        stored_length: int,
        dictionary: CData,
        dictionary_length: int,
        prior_bits: int,
        prior_byte: int,
        target: CData,
        target_length: int,
    ) -> int: ...
    def nd_decompress_once(
        self,
        codec: int,
        source: CData,
        source_length: int,
        target: CData,
        target_length: int,
    ) -> int: ...
    def nd_compress(
        self,
        codec: int,
        level: int,
        source: CData,
        source_length: int,
        target: CData,
        capacity: int,
    ) -> int: ...
    def nd_chunk_claims(
        self, records: CData, length: int, record_bytes: int, count: int, claims: CData
    ) -> int: ...
    def nd_erofs_check(
        self,
        bootstrap: CData,
        length: int,
        image: CData,
        blobs: CData,
        claims: CData,
        walk: CData,
    ) -> int: ...
    def nd_relay_new(self, wake_fd: int) -> CData: ...
    def nd_relay_start(
        self,
        relay: CData,
        devices: Sequence[int],
        device_count: int,
        threads: int,
        threads_max: int,
    ) -> int: ...
    def nd_relay_stop(self, relay: CData, timeout_ms: int) -> int: ...
    def nd_relay_free(self, relay: CData) -> None: ...
    def nd_relay_add_source(
        self,
        relay: CData,
        fd: int,
        bits: CData,
        bits_length: int,
        chunk_count: int,
        watch: CData,
        hits: CData,
    ) -> int: ...
    def nd_relay_drop_source(self, relay: CData, source: int) -> int: ...
    def nd_relay_add_file(
        self,
        relay: CData,
        nodeid: int,
        size: int,
        segments: CData,
        count: int,
        zero_gaps: bool,
        counts: CData,
    ) -> int: ...
    def nd_relay_add_flat(
        self,
        relay: CData,
        nodeid: int,
        size: int,
        source: int,
        blocks: CData,
        count: int,
        counts: CData,
    ) -> int: ...
    def nd_decrypt(
        self,
        data: CData,
        length: int,
        units: CData,
        count: int,
        key: CData,
        key_length: int,
        tweak: CData,
    ) -> int: ...
    def nd_relay_drop_file(self, relay: CData, nodeid: int) -> int: ...
    def nd_relay_add_tree(self, relay: CData, index: int, tree: CData) -> int: ...
    def nd_relay_drop_tree(self, relay: CData, index: int) -> int: ...
    def nd_tree_answer(
        self, tree: CData, request: CData, length: int, reply: CData, room: int
    ) -> int: ...
    def nd_tree_set_blob(
        self,
        tree: CData,
        number: int,
        source: int,
        records: CData,
        length: int,
        record_bytes: int,
        count: int,
    ) -> bool: ...
    def nd_relay_take(self, relay: CData, room: CData, length: int) -> int: ...
    def nd_relay_answer(self, relay: CData, device_fd: int, request: CData, length: int) -> int: ...
    def nd_relay_dropped(self, relay: CData) -> int: ...

ffi: _FFI
lib: _Lib
