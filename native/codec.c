/* Chunk codecs: one bounded call each into liblz4, zlib and libzstd. */
#include "codec.h"

#include <limits.h>
#include <lz4.h>
#include <lz4hc.h>
#include <stdlib.h>
#include <zlib.h>
#include <zstd.h>

#define GZIP_WINDOW_BITS (16 + MAX_WBITS) /* a gzip header is required */

static bool decompress_lz4(const uint8_t *source, size_t source_length, uint8_t *target,
                           size_t target_length)
{
    if (source_length > INT_MAX || target_length > INT_MAX)
        return false;
    int size = LZ4_decompress_safe((const char *)source, (char *)target, (int)source_length,
                                   (int)target_length);
    return size >= 0 && (size_t)size == target_length;
}

static bool decompress_zstd(struct nd_codec_state *state, const uint8_t *source,
                            size_t source_length, uint8_t *target, size_t target_length)
{
    if (state->zstd == NULL)
        state->zstd = ZSTD_createDCtx();
    if (state->zstd == NULL)
        return false;
    size_t size =
        ZSTD_decompressDCtx(state->zstd, target, target_length, source, source_length);
    return !ZSTD_isError(size) && size == target_length;
}

static z_stream *gzip_stream(struct nd_codec_state *state)
{
    if (state->gzip != NULL)
        return inflateReset(state->gzip) == Z_OK ? state->gzip : NULL;
    z_stream *stream = calloc(1, sizeof *stream);
    if (stream == NULL)
        return NULL;
    if (inflateInit2(stream, GZIP_WINDOW_BITS) != Z_OK) {
        free(stream);
        return NULL;
    }
    state->gzip = stream;
    return stream;
}

static bool decompress_gzip(struct nd_codec_state *state, const uint8_t *source,
                            size_t source_length, uint8_t *target, size_t target_length)
{
    if (source_length > UINT_MAX || target_length > UINT_MAX)
        return false;
    z_stream *stream = gzip_stream(state);
    if (stream == NULL)
        return false;
    stream->next_in = (Bytef *)(uintptr_t)source; /* zlib's header lacks a const here */
    stream->avail_in = (uInt)source_length;
    stream->next_out = target;
    stream->avail_out = (uInt)target_length;
    /* Output that is full in the middle of the member ends in Z_BUF_ERROR or Z_OK: that is success. */
    int code = inflate(stream, Z_FINISH);
    return stream->avail_out == 0 && (code == Z_STREAM_END || code == Z_BUF_ERROR || code == Z_OK);
}

bool nd_decompress(struct nd_codec_state *state, uint32_t codec, const uint8_t *source,
                   size_t source_length, uint8_t *target, size_t target_length)
{
    switch (codec) {
    case ND_LZ4_BLOCK:
        return decompress_lz4(source, source_length, target, target_length);
    case ND_GZIP:
        return decompress_gzip(state, source, source_length, target, target_length);
    case ND_ZSTD:
        return decompress_zstd(state, source, source_length, target, target_length);
    default:
        return false;
    }
}

void nd_codec_free(struct nd_codec_state *state)
{
    ZSTD_freeDCtx(state->zstd);
    if (state->gzip != NULL)
        inflateEnd(state->gzip);
    free(state->gzip);
    *state = (struct nd_codec_state){0};
}

int nd_decompress_once(uint32_t codec, const uint8_t *source, size_t source_length,
                       uint8_t *target, size_t target_length)
{
    struct nd_codec_state state = {0};
    bool done = nd_decompress(&state, codec, source, source_length, target, target_length);
    nd_codec_free(&state);
    return done;
}

static size_t compress_lz4(int level, const uint8_t *source, size_t source_length, uint8_t *target,
                           size_t capacity)
{
    if (source_length > LZ4_MAX_INPUT_SIZE)
        return 0;
    const char *from = (const char *)source;
    char *to = (char *)target;
    int room = capacity > INT_MAX ? INT_MAX : (int)capacity;
    int size = level > 0 ? LZ4_compress_HC(from, to, (int)source_length, room, level)
                         : LZ4_compress_default(from, to, (int)source_length, room);
    return size > 0 ? (size_t)size : 0;
}

static size_t compress_zstd(int level, const uint8_t *source, size_t source_length,
                            uint8_t *target, size_t capacity)
{
    size_t size = ZSTD_compress(target, capacity, source, source_length, level);
    return ZSTD_isError(size) ? 0 : size;
}

size_t nd_compress(uint32_t codec, int level, const uint8_t *source, size_t source_length,
                   uint8_t *target, size_t capacity)
{
    switch (codec) {
    case ND_LZ4_BLOCK:
        return compress_lz4(level, source, source_length, target, capacity);
    case ND_ZSTD:
        return compress_zstd(level, source, source_length, target, capacity);
    default:
        return 0;
    }
}
