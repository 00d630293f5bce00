/* Codecs: what is compressed comes back, and nothing is written past the wanted size. */
#include "../codec.h"

#include "check.h"

#include <zlib.h>

#define PLAIN_BYTES 50000

static void round_trips_in_buffers_of_the_exact_size(uint32_t codec, int level)
{
    uint8_t *plain = counted_bytes(PLAIN_BYTES), *room = exactly(PLAIN_BYTES);
    size_t size = nd_compress(codec, level, plain, PLAIN_BYTES, room, PLAIN_BYTES);
    CHECK(size > 0 && size < PLAIN_BYTES);
    uint8_t *packed = copy_of(room, size), *again = exactly(PLAIN_BYTES);
    CHECK(nd_decompress_once(codec, packed, size, again, PLAIN_BYTES) == 1);
    CHECK(memcmp(again, plain, PLAIN_BYTES) == 0);

    uint8_t *shorter = exactly(PLAIN_BYTES - 1), *longer = exactly(PLAIN_BYTES + 1);
    CHECK(nd_decompress_once(codec, packed, size, shorter, PLAIN_BYTES - 1) == 0);
    CHECK(nd_decompress_once(codec, packed, size, longer, PLAIN_BYTES + 1) == 0);
    for (size_t cut = 0; cut < size; cut += 1 + size / 97) {
        uint8_t *part = copy_of(packed, cut);
        CHECK(nd_decompress_once(codec, part, cut, again, PLAIN_BYTES) == 0);
        free(part);
    }
    uint8_t *tight = exactly(size - 1);
    CHECK(nd_compress(codec, level, plain, PLAIN_BYTES, tight, size - 1) == 0);
    free(plain), free(room), free(packed), free(again), free(shorter), free(longer), free(tight);
}

/* Compress with zlib, gzip header and trailer; the caller frees. */
static uint8_t *gzipped(const uint8_t *plain, size_t length, size_t *size)
{
    uint8_t *room = exactly(length + 100);
    z_stream stream = {.next_in = (Bytef *)(uintptr_t)plain, .avail_in = (uInt)length};
    CHECK(deflateInit2(&stream, 6, Z_DEFLATED, 16 + MAX_WBITS, 8, Z_DEFAULT_STRATEGY) == Z_OK);
    stream.next_out = room;
    stream.avail_out = (uInt)length + 100;
    CHECK(deflate(&stream, Z_FINISH) == Z_STREAM_END);
    *size = stream.total_out;
    deflateEnd(&stream);
    return room;
}

static void gzip_gives_the_wanted_bytes_and_leaves_the_rest(void)
{
    uint8_t *plain = counted_bytes(PLAIN_BYTES), *out = exactly(PLAIN_BYTES);
    size_t size;
    uint8_t *member = gzipped(plain, PLAIN_BYTES, &size);
    uint8_t *followed = exactly(size + 10);
    memcpy(followed, member, size);
    memset(followed + size, 0xaa, 10);

    CHECK(nd_decompress_once(ND_GZIP, member, size, out, PLAIN_BYTES) == 1);
    CHECK(memcmp(out, plain, PLAIN_BYTES) == 0);
    CHECK(nd_decompress_once(ND_GZIP, followed, size + 10, out, PLAIN_BYTES) == 1);
    CHECK(nd_decompress_once(ND_GZIP, member, size, out, 1000) == 1);
    CHECK(memcmp(out, plain, 1000) == 0);
    CHECK(nd_decompress_once(ND_GZIP, member, size / 2, out, PLAIN_BYTES) == 0);
    member[size - 5] ^= 1; /* CRC of the trailer */
    CHECK(nd_decompress_once(ND_GZIP, member, size, out, PLAIN_BYTES) == 0);
    CHECK(nd_decompress_once(ND_GZIP, member + 10, size - 10, out, PLAIN_BYTES) == 0);
    free(plain), free(out), free(member), free(followed);
}

static void one_state_serves_many_chunks_after_a_failure_too(uint32_t codec)
{
    uint8_t *plain = counted_bytes(PLAIN_BYTES), *out = exactly(PLAIN_BYTES), *packed;
    size_t size;
    if (codec == ND_GZIP)
        packed = gzipped(plain, PLAIN_BYTES, &size);
    else
        size = nd_compress(codec, 0, plain, PLAIN_BYTES, packed = exactly(PLAIN_BYTES), PLAIN_BYTES);
    struct nd_codec_state state = {0};
    for (int i = 0; i < 3; i++) {
        CHECK(!nd_decompress(&state, codec, packed, size / 2, out, PLAIN_BYTES));
        CHECK(nd_decompress(&state, codec, packed, size, out, PLAIN_BYTES));
        CHECK(memcmp(out, plain, PLAIN_BYTES) == 0);
    }
    nd_codec_free(&state);
    nd_codec_free(&state); /* twice is harmless */
    free(plain), free(out), free(packed);
}

static void other_codecs_are_refused(void)
{
    uint8_t byte = 0;
    CHECK(nd_decompress_once(ND_NONE, &byte, 1, &byte, 1) == 0);
    CHECK(nd_decompress_once(4, &byte, 1, &byte, 1) == 0);
    CHECK(nd_compress(ND_NONE, 0, &byte, 1, &byte, 1) == 0);
    CHECK(nd_compress(ND_GZIP, 0, &byte, 1, &byte, 1) == 0);
}

void test_codec(void)
{
    round_trips_in_buffers_of_the_exact_size(ND_LZ4_BLOCK, 0);
    round_trips_in_buffers_of_the_exact_size(ND_LZ4_BLOCK, 9);
    round_trips_in_buffers_of_the_exact_size(ND_ZSTD, 0);
    round_trips_in_buffers_of_the_exact_size(ND_ZSTD, 9);
    gzip_gives_the_wanted_bytes_and_leaves_the_rest();
    one_state_serves_many_chunks_after_a_failure_too(ND_LZ4_BLOCK);
    one_state_serves_many_chunks_after_a_failure_too(ND_GZIP);
    one_state_serves_many_chunks_after_a_failure_too(ND_ZSTD);
    other_codecs_are_refused();
}
