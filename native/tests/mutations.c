/* Hostile input: whatever the bytes say, no walk and no decode leaves its buffers.
 *
 * The sanitizers judge; here only results that would be wrong by any input are checked. The same
 * entry points serve `make fuzz`, where clang's libFuzzer chooses the bytes.
 */
#define _GNU_SOURCE
#include "../bootstrap_index.h"
#include "../cipher.h"
#include "../codec.h"
#include "../decode.h"
#include "../fuse_request.h"
#include "../inflate.h"
#include "../relay.h"
#include "../tree_v6.h"
#include "check.h"
#include "erofs_sample.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>

#ifdef ND_FUZZER
unsigned failures, checks;
#endif

#define CHUNKS_MAX 4
#define TARGET_BYTES 8192

/* Bytes: codec, digester, number of chunks, then the chunk records as they are, then stored bytes. */
static void decode_anything(const uint8_t *input, size_t size)
{
    if (size < 3)
        return;
    uint32_t codec = input[0] % 5, digester = input[1] % 3;
    size_t count = input[2] % (CHUNKS_MAX + 1);
    input += 3, size -= 3;
    if (size < count * sizeof(nd_chunk))
        return;
    nd_chunk chunks[CHUNKS_MAX];
    memcpy(chunks, input, count * sizeof(nd_chunk));
    input += count * sizeof(nd_chunk), size -= count * sizeof(nd_chunk);
    uint8_t *stored = copy_of(input, size), *target = exactly(TARGET_BYTES);
    memset(target, 0x55, TARGET_BYTES);
    nd_result results[CHUNKS_MAX];
    int failed = nd_decode_to_memory(stored, size, 100, chunks, count, codec, digester, target,
                                     TARGET_BYTES, 4096, results);
    if (codec > ND_ZSTD || digester > ND_SHA256) {
        CHECK(failed == -EINVAL);
    } else {
        CHECK(failed >= 0 && (size_t)failed <= count);
        for (size_t i = 0; i < count; i++)
            CHECK(results[i].status >= ND_SAVED && results[i].status <= ND_CRC_MISMATCH);
        CHECK(nd_decode_to_file(stored, size, 100, chunks, count, codec, digester, -1, results) ==
              (int)count);
    }
    free(stored);
    free(target);
}

/* Bytes: bits, byte, length of the dictionary in units of 8, dictionary, stored bytes of a context. */
static void inflate_anything(const uint8_t *input, size_t size)
{
    if (size < 3)
        return;
    uint32_t bits = input[0] % 9, byte = input[1];
    size_t history = (size_t)input[2] * 8;
    input += 3, size -= 3;
    history = history < size ? history : size;
    uint8_t *dictionary = copy_of(input, history), *stored = copy_of(input + history, size - history);
    for (size_t length = 1; length <= TARGET_BYTES; length *= 8) {
        uint8_t *target = exactly(length);
        int done = nd_inflate_context(stored, size - history, dictionary, history, bits, byte, target,
                                      length);
        CHECK(done == (bits > 7 ? -EINVAL : done == 1));
        free(target);
    }
    free(dictionary);
    free(stored);
}

/* Bytes: table offset and entries (u32 each), then the bootstrap. */
static void walk_anything(const uint8_t *input, size_t size)
{
    if (size < 8)
        return;
    uint32_t offset, entries, records[64];
    memcpy(&offset, input, 4);
    memcpy(&entries, input + 4, 4);
    size -= 8;
    uint8_t *file = copy_of(input + 8, size);
    nd_v5_walk walk;
    if (nd_index_v5_chunks(file, size, offset, entries, 0, records, 64, &walk) == 0) {
        CHECK(walk.chunk_count <= ND_CHUNK_COUNT_MAX && walk.malformed_inodes <= entries);
        for (int i = 0; i < 64; i++)
            CHECK(records[i] == ND_NO_RECORD ||
                  ((uint64_t)records[i] << 3) + ND_CHUNK_RECORD_BYTES <= size);
    }
    if (nd_index_chunk_table(file, size, offset, entries, 0, records, 64) == 0)
        for (int i = 0; i < 64; i++)
            CHECK(records[i] == ND_NO_RECORD || records[i] < entries / ND_CHUNK_RECORD_BYTES);
    free(file);
}

/* Bytes: a request as the kernel would send it, for a relay that knows file 5 (flat) and file 6. */
static void request_anything(const uint8_t *input, size_t size)
{
    static int cache = -1, nowhere = -1;
    static const uint8_t bits[] = {0xfd};
    static const uint32_t blocks[] = {1, 2, 4};
    static const nd_segment segments[] = {{10, 4096, 5000, 0, 0, 0}, {5010, 9096, 70, 7, 0, 0}};
    if (cache < 0) {
        cache = memfd_create("cache", 0);
        nowhere = open("/dev/null", O_WRONLY | O_CLOEXEC);
        CHECK(ftruncate(cache, 1 << 20) == 0);
    }
    uint8_t *request = copy_of(input, size);
    nd_request parsed;
    enum nd_request_kind kind = nd_request_parse(request, size, &parsed);
    CHECK((kind == ND_REQUEST_HEADLESS) == (size < sizeof(struct fuse_in_header)));
    CHECK(kind != ND_REQUEST_READ || parsed.offset <= INT64_MAX);

    int wake = eventfd(0, EFD_NONBLOCK);
    nd_relay *relay = nd_relay_new(wake);
    nd_read_counts counts = {0};
    uint64_t hits = 0;
    CHECK(nd_relay_add_source(relay, cache, bits, 1, 8, NULL, &hits) == 0);
    CHECK(nd_relay_add_flat(relay, 5, 1 << 20, 0, blocks, 3, &counts) == 0);
    CHECK(nd_relay_add_file(relay, 6, 1 << 21, segments, 2, 1, &counts) == 0);
    int answered = nd_relay_answer(relay, nowhere, request, size);
    CHECK(answered == 0 || answered == 1);
    CHECK(answered == 0 || kind == ND_REQUEST_READ);
    CHECK(counts.reads == (uint64_t)answered && hits <= counts.reads);
    CHECK(counts.bytes <= ND_REPLY_BYTES_MAX);
    nd_relay_free(relay);
    close(wake);
    free(request);
}

#define UNITS 3

/* Bytes: key length, the units as they are, then key, tweak and data in one: they may overlap. */
static void decrypt_anything(const uint8_t *input, size_t size)
{
    if (size < 1 + UNITS * sizeof(nd_unit) + 64)
        return;
    nd_unit units[UNITS];
    memcpy(units, input + 1, sizeof units);
    const uint8_t *key = input + 1 + sizeof units;
    size_t key_length = input[0] % 66;
    size -= 1 + sizeof units;
    uint8_t *data = copy_of(key, size);
    int code = nd_decrypt(data, size, units, UNITS, key, key_length, key + 40);
    CHECK(code == 0 || code == -EINVAL || code == -ENOMEM);
    CHECK(code != 0 || key_length == 32 || key_length == 64);
    for (int i = 0; code == 0 && i < UNITS; i++)
        CHECK(units[i].length >= ND_UNIT_MIN_BYTES && units[i].offset <= size &&
              units[i].length <= size - units[i].offset);
    free(data);
}

/* Bytes: the bootstrap. Whatever it says, claims are only made within the blob. */
static void tree_anything(const uint8_t *input, size_t size)
{
    uint8_t *file = copy_of(input, size);
    nd_erofs_claim claims[CHUNKS] = {0};
    nd_erofs_walk walk;
    const nd_erofs_image image = {.meta_offset = META, .chunk_size = BLOCK, .blob_count = 1};
    const nd_erofs_blob blob = {.blocks = 7, .chunks = CHUNKS};
    int fault = nd_erofs_check(file, size, &image, &blob, claims, &walk);
    CHECK(fault >= ND_EROFS_FINE && fault <= ND_EROFS_CHUNK && fault != ND_EROFS_NO_MEMORY);
    for (int i = 0; i < CHUNKS; i++)
        CHECK(claims[i].block + (claims[i].size + BLOCK - 1) / BLOCK <= 7 && claims[i].size <= BLOCK);
    free(file);
}

/* Where the bytes of a file lie, by the bootstrap and by records of any kind: within the READ, in order. */
static void bytes_anything(const uint8_t *file, size_t length, const uint8_t *records)
{
    nd_tree_blob blob = {0};
    const nd_tree tree = {.bytes = file,
                          .length = length,
                          .meta_offset = META,
                          .block_size = BLOCK,
                          .chunk_size = BLOCK,
                          .blobs = &blob,
                          .blob_count = 1};
    /* Chunks 3 and 4, as the sample has them. */
    const uint64_t words[] = {5 * BLOCK | UINT64_C(4095) << 44, 6 * BLOCK | UINT64_C(99) << 44};
    uint8_t known[CHUNKS * 16];
    memcpy(known, records, sizeof known);
    memcpy(known + 3 * 16, &words[0], sizeof words[0]);
    memcpy(known + 4 * 16, &words[1], sizeof words[1]);
    CHECK(nd_tree_set_blob(&tree, 0, 1, known, sizeof known, 16, CHUNKS));
    nd_segment found[3];
    uint64_t size;
    int count = nd_tree_segments(&tree, 16, 7, 2 * BLOCK, &size, found, 3);
    uint64_t reached = 7;
    CHECK(count >= ND_TREE_ASK && count <= 3);
    for (int i = 0; i < count; i++) {
        CHECK(found[i].file_offset == reached && found[i].length > 0 && found[i].length <= BLOCK);
        CHECK(found[i].source == 1 && found[i].chunk < CHUNKS);
        reached += found[i].length;
    }
    CHECK(count <= 0 || (reached <= size && reached <= 7 + 2 * BLOCK));
}

#define REQUEST_BYTES 96

/* Bytes: a request, padded with zeros, its length the last of its bytes; then the bootstrap. */
static void names_anything(const uint8_t *input, size_t size)
{
    if (size < REQUEST_BYTES)
        return;
    size_t length = input[REQUEST_BYTES - 1] % REQUEST_BYTES;
    uint8_t *request = copy_of(input, length), *reply = exactly(ND_TREE_REPLY_BYTES_MAX);
    uint8_t *file = copy_of(input + REQUEST_BYTES, size - REQUEST_BYTES);
    nd_tree_counts counts = {0};
    const nd_tree tree = {.bytes = file,
                          .length = size - REQUEST_BYTES,
                          .meta_offset = META,
                          .block_size = BLOCK,
                          .chunk_size = BLOCK,
                          .high = UINT64_C(1) << 56,
                          .counts = &counts};
    ssize_t answered = nd_tree_answer(&tree, request, length, reply, ND_TREE_REPLY_BYTES_MAX);
    CHECK(answered >= ND_TREE_ASK && answered <= ND_TREE_REPLY_BYTES_MAX);
    uint64_t counted = counts.lookups + counts.getattrs + counts.listings + (counts.open != 0);
    CHECK(counted == (answered != ND_TREE_ASK));
    bytes_anything(file, size - REQUEST_BYTES, input);
    free(request);
    free(reply);
    free(file);
}

#ifdef ND_FUZZER

int LLVMFuzzerTestOneInput(const uint8_t *input, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *input, size_t size)
{
    if (size == 0)
        return 0;
    static void (*const attempts[])(const uint8_t *, size_t) = {decode_anything, walk_anything,
                                                                request_anything, tree_anything,
                                                                inflate_anything, names_anything,
                                                                decrypt_anything};
    attempts[input[0] % 7](input + 1, size - 1);
    if (failures > 0)
        abort();
    return 0;
}

#else

#define ROUNDS 4000

/* Change 1 to 4 places of a good input, cut it sometimes, and try it. */
static void mutate(const uint8_t *good, size_t size, uint64_t seed,
                   void (*attempt)(const uint8_t *, size_t))
{
    static const uint8_t telling[] = {0x00, 0x01, 0x7f, 0x80, 0xff};
    attempt(good, size);
    for (int round = 0; round < ROUNDS; round++) {
        uint8_t *bad = copy_of(good, size);
        for (uint32_t change = next_random(&seed) % 4 + 1; change > 0; change--) {
            uint32_t value = next_random(&seed);
            bad[next_random(&seed) % size] =
                value % 2 ? telling[value / 2 % sizeof telling] : (uint8_t)(value >> 8);
        }
        attempt(bad, next_random(&seed) % 4 == 0 ? next_random(&seed) % size : size);
        free(bad);
    }
}

static void mutate_chunks(uint32_t codec)
{
    uint8_t *plain = counted_bytes(4000);
    uint8_t input[3 + sizeof(nd_chunk) + 4000] = {(uint8_t)codec, ND_BLAKE3, 1};
    uint8_t *stored = input + 3 + sizeof(nd_chunk);
    nd_chunk chunk = {.compressed_offset = 100,
                      .uncompressed_offset = 4096,
                      .compressed_size = 4000,
                      .uncompressed_size = 4000};
    if (codec == ND_NONE) {
        memcpy(stored, plain, 4000);
    } else {
        chunk.flags = ND_COMPRESSED;
        chunk.compressed_size = (uint32_t)nd_compress(codec, 0, plain, 4000, stored, 4000);
    }
    memcpy(input + 3, &chunk, sizeof chunk);
    mutate(input, 3 + sizeof chunk + chunk.compressed_size, 10 + codec, decode_anything);
    free(plain);
}

static void mutate_units(void)
{
    uint8_t input[1 + UNITS * sizeof(nd_unit) + 300];
    const nd_unit units[UNITS] = {{.length = 100}, {.offset = 100, .length = 18}, {118, 182, 0}};
    input[0] = 32;
    memcpy(input + 1, units, sizeof units);
    for (size_t i = 1 + sizeof units; i < sizeof input; i++)
        input[i] = (uint8_t)(i * 7);
    mutate(input, sizeof input, 5, decrypt_anything);
}

static void mutate_bootstrap(void)
{
    uint8_t input[8 + 8192 + 1024] = {0};
    uint8_t *file = input + 8, *inode = file + 8192 + 64;
    const uint32_t table = 8192, entries = 4, slot = (8192 + 64) >> 3, mode = S_IFREG, chunks = 3;
    memcpy(input, &table, 4);
    memcpy(input + 4, &entries, 4);
    memcpy(file + 8192, &slot, 4);
    memcpy(inode + 60, &mode, 4);
    inode[80] = 4; /* has an xattr table, which is empty */
    memcpy(inode + 96, &chunks, 4);
    inode[100] = 5;
    for (uint8_t i = 0; i < 3; i++)
        inode[128 + 8 + 8 + 80 * i + 72] = i;
    /* Only the last 1 KiB counts for anything: put the mutations there, and on the two numbers. */
    static const size_t skipped = 8192;
    uint8_t tail[8 + 1024];
    memcpy(tail, input, 8);
    memcpy(tail + 8, file + skipped, 1024);
    for (uint64_t seed = 0; seed < 3 * ROUNDS; seed++) {
        uint64_t state = seed;
        memcpy(input, tail, 8);
        memcpy(file + skipped, tail + 8, 1024);
        for (uint32_t change = seed == 0 ? 0 : next_random(&state) % 4 + 1; change > 0; change--) {
            size_t place = next_random(&state) % (8 + 512);
            input[place < 8 ? place : place + skipped] = (uint8_t)next_random(&state);
        }
        walk_anything(input, sizeof input);
    }
}

static void mutate_request(uint64_t nodeid, uint64_t offset, uint32_t size)
{
    const struct fuse_read_in read = {.offset = offset, .size = size};
    const struct fuse_in_header header = {
        .len = sizeof header + sizeof read, .opcode = FUSE_READ, .nodeid = nodeid};
    uint8_t input[sizeof header + sizeof read];
    memcpy(input, &header, sizeof header);
    memcpy(input + sizeof header, &read, sizeof read);
    mutate(input, sizeof input, offset, request_anything);
}

/* Where the sample's bytes mean something: most changes of others would hit nothing. */
static const struct {
    size_t at, size;
} USED[] = {{META, 160},      {META + 512, 128}, {META + 768, 48},
            {META + 896, 64}, {META + 1024, 64}, {2 * BLOCK, 48}};

static void mutate_tree(void)
{
    uint8_t *file = exactly(SAMPLE_BYTES);
    for (uint64_t seed = 0; seed < 4 * ROUNDS; seed++) {
        uint64_t state = seed;
        make_erofs_sample(file);
        for (uint32_t change = seed == 0 ? 0 : next_random(&state) % 3 + 1; change > 0; change--) {
            size_t part = next_random(&state) % (sizeof USED / sizeof *USED);
            file[USED[part].at + next_random(&state) % USED[part].size] = (uint8_t)next_random(&state);
        }
        tree_anything(file, SAMPLE_BYTES);
    }
    free(file);
}

/* Two gzip members without the first header, which is what a context is. */
static void mutate_context(void)
{
    const size_t before = 3 + 800, header = 10;
    uint8_t *plain = counted_bytes(3000), input[4000] = {0, 0, 800 / 8};
    memcpy(input + 3, plain, 800);
    size_t size = before;
    for (int member = 0; member < 2; member++) {
        z_stream stream = {.next_in = plain + 1000 * member, .avail_in = 1500};
        CHECK(deflateInit2(&stream, 6, Z_DEFLATED, 16 + MAX_WBITS, 8, Z_DEFAULT_STRATEGY) == Z_OK);
        stream.next_out = input + size;
        stream.avail_out = (uInt)(sizeof input - size);
        CHECK(deflate(&stream, Z_FINISH) == Z_STREAM_END);
        size += stream.total_out;
        deflateEnd(&stream);
    }
    size -= header;
    memmove(input + before, input + before + header, size - before);
    mutate(input, size, 77, inflate_anything);
    free(plain);
}

/* Requests for every object of the sample, in turn; the tree and the request are changed. */
static void mutate_names(void)
{
    static const uint32_t opcodes[] = {FUSE_LOOKUP, FUSE_GETATTR, FUSE_READDIR, FUSE_READDIRPLUS,
                                       FUSE_OPEN, FUSE_RELEASE};
    static const uint8_t nids[] = {0, 32, 16, 24, 28};
    const struct fuse_read_in span = {.offset = 1, .size = 4096};
    uint8_t *input = exactly(REQUEST_BYTES + SAMPLE_BYTES);
    for (uint64_t seed = 0; seed < 8 * ROUNDS; seed++) {
        uint64_t state = seed;
        memset(input, 0, REQUEST_BYTES);
        struct fuse_in_header header = {.opcode = opcodes[seed % 6],
                                        .nodeid = UINT64_C(1) << 56 | nids[seed / 6 % 5]};
        size_t length = header.opcode == FUSE_LOOKUP ? sizeof "file" : sizeof span;
        header.len = (uint32_t)(sizeof header + length);
        memcpy(input, &header, sizeof header);
        memcpy(input + sizeof header, header.opcode == FUSE_LOOKUP ? (const void *)"file" : &span, length);
        input[REQUEST_BYTES - 1] = (uint8_t)header.len;
        make_erofs_sample(input + REQUEST_BYTES);
        for (uint32_t change = seed < 30 ? 0 : next_random(&state) % 4; change > 0; change--) {
            size_t part = next_random(&state) % (sizeof USED / sizeof *USED);
            input[REQUEST_BYTES + USED[part].at + next_random(&state) % USED[part].size] =
                (uint8_t)next_random(&state);
        }
        if (seed % 3 == 2)
            input[next_random(&state) % REQUEST_BYTES] = (uint8_t)next_random(&state);
        names_anything(input, REQUEST_BYTES + SAMPLE_BYTES);
    }
    free(input);
}

void test_mutations(void)
{
    mutate_chunks(ND_NONE);
    mutate_chunks(ND_LZ4_BLOCK);
    mutate_chunks(ND_ZSTD);
    mutate_units();
    mutate_bootstrap();
    mutate_context();
    mutate_request(5, 4095, 4098);
    mutate_request(6, 5, 6000);
    mutate_tree();
    mutate_names();
}

#endif
