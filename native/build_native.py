"""Builds `nydusd._native` from the C files beside it (cffi, API mode).

Run by setup.py. cffi compiles what `set_source` includes, so the declarations below are checked
against the headers by the compiler: a wrong type or struct layout does not build.
"""

from pathlib import Path

from cffi import FFI

HERE = Path(__file__).parent if "__file__" in globals() else Path("native")
WARNINGS = ["-Wall", "-Wextra", "-Werror"]

ffibuilder = FFI()
ffibuilder.cdef(
    """
    typedef struct {
        uint64_t compressed_offset;
        uint64_t uncompressed_offset;
        uint32_t compressed_size;
        uint32_t uncompressed_size;
        uint32_t flags;
        uint32_t crc32;
        uint8_t digest[32];
    } nd_chunk;

    typedef struct {
        int32_t status;
        int32_t error;
    } nd_result;

    typedef struct {
        uint32_t chunk_count;
        uint32_t malformed_inodes;
    } nd_v5_walk;

    typedef struct {
        uint64_t ordered;
        uint64_t holes;
        uint64_t end_block;
    } nd_chunk_layout;

    int nd_decode_to_file(const uint8_t *stored, size_t stored_length, uint64_t stored_offset,
                          const nd_chunk *chunks, size_t count, uint32_t codec, uint32_t digester,
                          int fd, nd_result *results);
    int nd_decode_to_memory(const uint8_t *stored, size_t stored_length, uint64_t stored_offset,
                            const nd_chunk *chunks, size_t count, uint32_t codec, uint32_t digester,
                            uint8_t *target, size_t target_length, uint64_t target_offset,
                            nd_result *results);
    int nd_verify_file(int fd, const nd_chunk *chunks, size_t count, uint32_t digester,
                       nd_result *results);

    int nd_digest(uint32_t digester, const uint8_t *data, size_t length, uint8_t digest[32]);
    uint32_t nd_crc32c(const uint8_t *data, size_t length);
    int nd_survive_cut_maps(int tell_fd);

    typedef struct {
        uint64_t offset;
        uint32_t length;
        uint32_t pad;
    } nd_unit;

    int nd_decrypt(uint8_t *data, size_t length, const nd_unit *units, size_t count,
                   const uint8_t *key, size_t key_length, const uint8_t tweak[16]);

    int64_t nd_map_mark(uint8_t *bits, size_t length, uint64_t count, const uint32_t *indices,
                        size_t number);
    int64_t nd_map_is_ready(const uint8_t *bits, size_t length, uint64_t count, uint64_t index);
    int64_t nd_map_count_ready(const uint8_t *bits, size_t length, uint64_t count);
    int64_t nd_map_next_absent(const uint8_t *bits, size_t length, uint64_t count, uint64_t start);

    int nd_index_chunk_table(const uint8_t *bootstrap, size_t length, uint64_t offset,
                             uint64_t size, uint32_t blob_index, uint32_t *records,
                             size_t chunk_count);
    int nd_index_v5_chunks(const uint8_t *bootstrap, size_t length, uint64_t table_offset,
                           uint64_t entries, uint32_t blob_index, uint32_t *records,
                           size_t chunk_count, nd_v5_walk *walk);

    int nd_chunk_blocks(const uint8_t *records, size_t length, uint32_t record_bytes,
                        uint64_t count, uint32_t *blocks, nd_chunk_layout *layout);
    int64_t nd_chunk_claims(const uint8_t *records, size_t length, uint32_t record_bytes,
                            uint64_t count, const uint32_t *claims);

    typedef struct {
        uint64_t meta_offset;
        uint64_t root_nid;
        uint32_t chunk_size;
        uint32_t blob_count;
    } nd_erofs_image;
    typedef struct {
        uint32_t blocks, chunks;
    } nd_erofs_blob;
    typedef struct {
        uint32_t block, size;
    } nd_erofs_claim;
    typedef struct {
        uint64_t inodes;
        uint64_t with_xattrs;
        uint64_t nid;
    } nd_erofs_walk;

    int nd_erofs_check(const uint8_t *bootstrap, size_t length, const nd_erofs_image *image,
                       const nd_erofs_blob *blobs, nd_erofs_claim *claims, nd_erofs_walk *walk);

    typedef struct {
        uint64_t file_offset, cache_offset;
        uint32_t length;
        uint32_t chunk;
        uint32_t source;
        uint32_t pad;
    } nd_segment;
    typedef struct {
        uint64_t reads, bytes, latency_us;
        uint64_t by_size[8], by_latency[8];
    } nd_read_counts;

    typedef struct {
        const uint8_t *records;
        uint64_t count;
        uint32_t record_bytes;
        uint32_t source;
    } nd_tree_blob;
    typedef struct {
        uint64_t lookups, getattrs, listings;
        int64_t open;
    } nd_tree_counts;
    typedef struct {
        const uint8_t *bytes;
        uint64_t length;
        uint64_t meta_offset;
        uint64_t root_nid;
        uint32_t block_size;
        uint32_t chunk_size;
        uint64_t high;
        uint64_t generation;
        int64_t mounted_at_s;
        uint32_t uid, gid;
        bool explicit_ids;
        nd_tree_counts *counts;
        nd_read_counts *reads;
        nd_tree_blob *blobs;
        uint32_t blob_count;
    } nd_tree;

    bool nd_tree_set_blob(const nd_tree *tree, uint32_t number, uint32_t source,
                          const uint8_t *records, size_t length, uint32_t record_bytes,
                          uint64_t count);
    ssize_t nd_tree_answer(const nd_tree *tree, const uint8_t *request, size_t length,
                           uint8_t *reply, size_t room);

    typedef struct nd_relay nd_relay;

    nd_relay *nd_relay_new(int wake_fd);
    int nd_relay_start(nd_relay *relay, const int *devices, size_t device_count, unsigned threads,
                       unsigned threads_max);
    int nd_relay_stop(nd_relay *relay, unsigned timeout_ms);
    void nd_relay_free(nd_relay *relay);
    int nd_relay_add_source(nd_relay *relay, int fd, const uint8_t *bits, size_t bits_length,
                            uint64_t chunk_count, uint8_t *watch, uint64_t *hits);
    int nd_relay_drop_source(nd_relay *relay, unsigned source);
    int nd_relay_add_file(nd_relay *relay, uint64_t nodeid, uint64_t size,
                          const nd_segment *segments, size_t count, int zero_gaps,
                          nd_read_counts *counts);
    int nd_relay_add_flat(nd_relay *relay, uint64_t nodeid, uint64_t size, unsigned source,
                          const uint32_t *blocks, size_t count, nd_read_counts *counts);
    int nd_relay_drop_file(nd_relay *relay, uint64_t nodeid);
    int nd_relay_add_tree(nd_relay *relay, unsigned index, const nd_tree *tree);
    int nd_relay_drop_tree(nd_relay *relay, unsigned index);
    ssize_t nd_relay_take(nd_relay *relay, uint8_t *room, size_t length);
    int nd_relay_answer(nd_relay *relay, int device_fd, const uint8_t *request, size_t length);
    uint64_t nd_relay_dropped(const nd_relay *relay);

    int nd_inflate_context(const uint8_t *stored, size_t stored_length, const uint8_t *dictionary,
                           size_t dictionary_length, uint32_t prior_bits, uint32_t prior_byte,
                           uint8_t *target, size_t target_length);
    int nd_decompress_once(uint32_t codec, const uint8_t *source, size_t source_length,
                           uint8_t *target, size_t target_length);
    size_t nd_compress(uint32_t codec, int level, const uint8_t *source, size_t source_length,
                       uint8_t *target, size_t capacity);
    """
)
ffibuilder.set_source(
    "nydusd._native",
    """
    /* cffi's own wrappers take a `self` that they do not use. */
    #pragma GCC diagnostic ignored "-Wunused-parameter"
    #include "bootstrap_index.h"
    #include "chunk_layout.h"
    #include "chunk_map.h"
    #include "cipher.h"
    #include "codec.h"
    #include "crc32c.h"
    #include "cut_maps.h"
    #include "decode.h"
    #include "digest.h"
    #include "erofs_check.h"
    #include "inflate.h"
    #include "relay.h"
    """,
    # Relative to setup.py's folder, as setuptools wants them.
    sources=sorted(f"native/{path.name}" for path in HERE.glob("*.c")),
    depends=sorted(f"native/{path.name}" for path in HERE.glob("*.h")),
    include_dirs=["native"],
    libraries=["lz4", "z", "zstd", "crypto"],
    extra_compile_args=["-std=gnu11", "-O3", "-fvisibility=hidden", "-pthread", *WARNINGS],
    extra_link_args=["-pthread"],
)

if __name__ == "__main__":
    ffibuilder.compile(verbose=True)
