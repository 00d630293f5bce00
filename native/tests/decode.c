/* Runs of chunks: into a file, into memory, and checked in a file. */
#define _GNU_SOURCE /* memfd_create */
#include "../decode.h"

#include "../codec.h"
#include "../crc32c.h"
#include "check.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#define BLOB_OFFSET 1000 /* of the first stored byte */
#define PLAIN_BYTES 10000

/* One good chunk at plain address 4096, of counted bytes. */
struct sample {
    uint8_t *plain, *stored;
    size_t stored_length;
    uint32_t codec;
    nd_chunk chunk;
};

static struct sample make_sample(uint32_t codec, uint32_t digester)
{
    struct sample sample = {.plain = counted_bytes(PLAIN_BYTES), .codec = codec};
    if (codec == ND_NONE) {
        sample.stored = copy_of(sample.plain, PLAIN_BYTES);
        sample.stored_length = PLAIN_BYTES;
    } else {
        uint8_t *room = exactly(PLAIN_BYTES);
        sample.stored_length = nd_compress(codec, 0, sample.plain, PLAIN_BYTES, room, PLAIN_BYTES);
        sample.stored = copy_of(room, sample.stored_length);
        free(room);
    }
    sample.chunk = (nd_chunk){
        .compressed_offset = BLOB_OFFSET,
        .compressed_size = (uint32_t)sample.stored_length,
        .uncompressed_offset = 4096,
        .uncompressed_size = PLAIN_BYTES,
        .flags = (codec == ND_NONE ? 0u : ND_COMPRESSED) | ND_HAS_DIGEST | ND_HAS_CRC,
        .crc32 = nd_crc32c(sample.plain, PLAIN_BYTES),
    };
    CHECK(nd_digest(digester, sample.plain, PLAIN_BYTES, sample.chunk.digest) == 0);
    return sample;
}

static void free_sample(struct sample *sample)
{
    free(sample->plain);
    free(sample->stored);
}

static int temporary_file(void)
{
    int fd = memfd_create("native-tests", MFD_CLOEXEC);
    if (fd < 0)
        abort();
    return fd;
}

static int file_holds(int fd, const uint8_t *plain, size_t size, off_t offset)
{
    uint8_t *found = exactly(size);
    int equal = pread(fd, found, size, offset) == (ssize_t)size && memcmp(found, plain, size) == 0;
    free(found);
    return equal;
}

static int to_file(const struct sample *sample, const nd_chunk *chunk, int fd, nd_result *result)
{
    return nd_decode_to_file(sample->stored, sample->stored_length, BLOB_OFFSET, chunk, 1,
                             sample->codec, ND_SHA256, fd, result);
}

static void good_chunks_reach_file_and_memory(uint32_t codec, uint32_t digester)
{
    struct sample sample = make_sample(codec, digester);
    nd_result result;
    int fd = temporary_file();
    CHECK(nd_decode_to_file(sample.stored, sample.stored_length, BLOB_OFFSET, &sample.chunk, 1,
                            codec, digester, fd, &result) == 0);
    CHECK(result.status == ND_SAVED && result.error == 0);
    CHECK(file_holds(fd, sample.plain, PLAIN_BYTES, 4096));
    CHECK(nd_verify_file(fd, &sample.chunk, 1, digester, &result) == 0);

    uint8_t *target = exactly(PLAIN_BYTES);
    CHECK(nd_decode_to_memory(sample.stored, sample.stored_length, BLOB_OFFSET, &sample.chunk, 1,
                              codec, digester, target, PLAIN_BYTES, 4096, &result) == 0);
    CHECK(memcmp(target, sample.plain, PLAIN_BYTES) == 0);
    free(target);
    close(fd);
    free_sample(&sample);
}

static void ranges_outside_the_buffers_are_refused(void)
{
    struct sample sample = make_sample(ND_NONE, ND_SHA256);
    nd_chunk before = sample.chunk, behind = sample.chunk, far = sample.chunk, high = sample.chunk;
    before.compressed_offset = BLOB_OFFSET - 1;
    behind.compressed_offset = BLOB_OFFSET + 1;
    far.compressed_offset = UINT64_MAX - 5;
    high.uncompressed_offset = INT64_MAX - 5;
    const nd_chunk chunks[] = {before, behind, far, high};
    nd_result results[4];
    int fd = temporary_file();
    CHECK(nd_decode_to_file(sample.stored, sample.stored_length, BLOB_OFFSET, chunks, 4, ND_NONE,
                            ND_SHA256, fd, results) == 4);
    for (int i = 0; i < 4; i++)
        CHECK(results[i].status == ND_OUT_OF_BUFFER);
    CHECK(lseek(fd, 0, SEEK_END) == 0);

    uint8_t *target = exactly(PLAIN_BYTES);
    CHECK(nd_decode_to_memory(sample.stored, sample.stored_length, BLOB_OFFSET, &sample.chunk, 1,
                              ND_NONE, ND_SHA256, target, PLAIN_BYTES - 1, 4096, results) == 1);
    CHECK(results->status == ND_OUT_OF_BUFFER);
    CHECK(nd_decode_to_memory(sample.stored, sample.stored_length, BLOB_OFFSET, &sample.chunk, 1,
                              ND_NONE, ND_SHA256, target, PLAIN_BYTES, 4097, results) == 1);
    CHECK(results->status == ND_OUT_OF_BUFFER);
    CHECK(nd_verify_file(fd, &high, 1, ND_SHA256, results) == 1);
    CHECK(results->status == ND_OUT_OF_BUFFER);
    free(target);
    close(fd);
    free_sample(&sample);
}

static void sizes_that_no_chunk_has_are_refused(void)
{
    struct sample sample = make_sample(ND_ZSTD, ND_SHA256);
    nd_chunk empty = sample.chunk, huge = sample.chunk, shorter = sample.chunk, raw = sample.chunk;
    nd_chunk nothing = sample.chunk;
    empty.uncompressed_size = 0;
    huge.uncompressed_size = ND_CHUNK_MAX_BYTES + 1;
    shorter.uncompressed_size = PLAIN_BYTES - 1; /* a bomb: decodes to more than it says */
    raw.flags &= ~(uint32_t)ND_COMPRESSED;       /* stored raw, but with two different sizes */
    nothing.compressed_size = 0;
    const nd_chunk chunks[] = {empty, huge, shorter, raw, nothing};
    nd_result results[5];
    int fd = temporary_file();
    CHECK(nd_decode_to_file(sample.stored, sample.stored_length, BLOB_OFFSET, chunks, 5, ND_ZSTD,
                            ND_SHA256, fd, results) == 5);
    for (int i = 0; i < 5; i++)
        CHECK(results[i].status == ND_DECODE_FAILED);
    CHECK(nd_verify_file(fd, chunks, 2, ND_SHA256, results) == 2);
    CHECK(results[0].status == ND_DECODE_FAILED && results[1].status == ND_DECODE_FAILED);
    CHECK(lseek(fd, 0, SEEK_END) == 0);
    close(fd);
    free_sample(&sample);
}

static void wrong_bytes_are_never_saved(uint32_t flags, enum nd_status expected)
{
    struct sample sample = make_sample(ND_LZ4_BLOCK, ND_SHA256);
    sample.chunk.flags = ND_COMPRESSED | flags;
    if (expected == ND_DIGEST_MISMATCH)
        sample.chunk.digest[31] ^= 1;
    if (expected == ND_CRC_MISMATCH)
        sample.chunk.crc32 ^= 1;
    nd_result result;
    int fd = temporary_file();
    CHECK(to_file(&sample, &sample.chunk, fd, &result) == (expected != ND_SAVED));
    CHECK(result.status == (int32_t)expected);
    CHECK((lseek(fd, 0, SEEK_END) == 0) == (expected != ND_SAVED));

    uint8_t *target = exactly(PLAIN_BYTES), *zeros = exactly(PLAIN_BYTES);
    memset(target, 0xee, PLAIN_BYTES);
    memset(zeros, 0, PLAIN_BYTES);
    nd_decode_to_memory(sample.stored, sample.stored_length, BLOB_OFFSET, &sample.chunk, 1,
                        ND_LZ4_BLOCK, ND_SHA256, target, PLAIN_BYTES, 4096, &result);
    CHECK(memcmp(target, expected == ND_SAVED ? sample.plain : zeros, PLAIN_BYTES) == 0);

    CHECK(pwrite(fd, sample.plain, PLAIN_BYTES, 4096) == PLAIN_BYTES);
    nd_verify_file(fd, &sample.chunk, 1, ND_SHA256, &result);
    CHECK(result.status == (int32_t)expected);
    free(target), free(zeros);
    close(fd);
    free_sample(&sample);
}

static void one_bad_chunk_leaves_the_others(void)
{
    struct sample sample = make_sample(ND_ZSTD, ND_SHA256);
    nd_chunk bad = sample.chunk, good = sample.chunk;
    bad.digest[0] ^= 1;
    good.uncompressed_offset = 1u << 20;
    const nd_chunk chunks[] = {bad, good};
    nd_result results[2];
    int fd = temporary_file();
    CHECK(nd_decode_to_file(sample.stored, sample.stored_length, BLOB_OFFSET, chunks, 2, ND_ZSTD,
                            ND_SHA256, fd, results) == 1);
    CHECK(results[0].status == ND_DIGEST_MISMATCH && results[1].status == ND_SAVED);
    CHECK(file_holds(fd, sample.plain, PLAIN_BYTES, 1 << 20));
    close(fd);
    free_sample(&sample);
}

static void failed_writes_keep_their_errno(void)
{
    struct sample sample = make_sample(ND_ZSTD, ND_SHA256);
    nd_result result;
    int full = open("/dev/full", O_WRONLY | O_CLOEXEC);
    CHECK(full >= 0 && to_file(&sample, &sample.chunk, full, &result) == 1);
    CHECK(result.status == ND_UNSAVED && result.error == ENOSPC);
    close(full);
    CHECK(to_file(&sample, &sample.chunk, -1, &result) == 1);
    CHECK(result.status == ND_UNSAVED && result.error == EBADF);
    CHECK(nd_verify_file(-1, &sample.chunk, 1, ND_SHA256, &result) == 1);
    CHECK(result.status == ND_UNSAVED && result.error == EBADF);
    free_sample(&sample);
}

/* A file size limit in the middle of the chunk: the first pwrite is short, the second fails. */
static void short_writes_go_on_until_they_fail(void)
{
    struct sample sample = make_sample(ND_NONE, ND_SHA256);
    struct rlimit before, limit;
    nd_result result;
    int fd = temporary_file();
    signal(SIGXFSZ, SIG_IGN);
    CHECK(getrlimit(RLIMIT_FSIZE, &before) == 0);
    limit = (struct rlimit){.rlim_cur = 8192, .rlim_max = before.rlim_max};
    CHECK(setrlimit(RLIMIT_FSIZE, &limit) == 0);
    CHECK(to_file(&sample, &sample.chunk, fd, &result) == 1);
    CHECK(setrlimit(RLIMIT_FSIZE, &before) == 0);
    CHECK(result.status == ND_UNSAVED && result.error == EFBIG);
    CHECK(lseek(fd, 0, SEEK_END) == 8192);
    CHECK(nd_verify_file(fd, &sample.chunk, 1, ND_SHA256, &result) == 1);
    CHECK(result.status == ND_UNSAVED && result.error == 0); /* end of file */
    close(fd);
    free_sample(&sample);
}

static void unknown_algorithms_stop_the_call(void)
{
    struct sample sample = make_sample(ND_ZSTD, ND_SHA256);
    nd_result result;
    CHECK(nd_decode_to_file(sample.stored, sample.stored_length, BLOB_OFFSET, &sample.chunk, 1, 4,
                            ND_SHA256, -1, &result) == -EINVAL);
    CHECK(nd_decode_to_memory(sample.stored, sample.stored_length, BLOB_OFFSET, &sample.chunk, 1,
                              ND_ZSTD, 2, NULL, 0, 0, &result) == -EINVAL);
    CHECK(nd_verify_file(-1, &sample.chunk, 1, 2, &result) == -EINVAL);
    CHECK(nd_digest(2, sample.plain, 1, sample.chunk.digest) == -EINVAL);
    free_sample(&sample);
}

void test_decode(void)
{
    for (uint32_t digester = ND_BLAKE3; digester <= ND_SHA256; digester++) {
        good_chunks_reach_file_and_memory(ND_NONE, digester);
        good_chunks_reach_file_and_memory(ND_LZ4_BLOCK, digester);
        good_chunks_reach_file_and_memory(ND_ZSTD, digester);
    }
    ranges_outside_the_buffers_are_refused();
    sizes_that_no_chunk_has_are_refused();
    wrong_bytes_are_never_saved(ND_HAS_DIGEST | ND_HAS_CRC, ND_SAVED);
    wrong_bytes_are_never_saved(ND_HAS_DIGEST | ND_HAS_CRC, ND_DIGEST_MISMATCH);
    wrong_bytes_are_never_saved(ND_HAS_DIGEST | ND_HAS_CRC, ND_CRC_MISMATCH);
    wrong_bytes_are_never_saved(ND_HAS_CRC, ND_CRC_MISMATCH);
    wrong_bytes_are_never_saved(0, ND_SAVED);
    one_bad_chunk_leaves_the_others();
    failed_writes_keep_their_errno();
    short_writes_go_on_until_they_fail();
    unknown_algorithms_stop_the_call();
}
