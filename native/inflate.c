/* One pass over the members that a context spans; a second one if it began on a trailer. */
#include "inflate.h"

#include <errno.h>
#include <limits.h>
#include <stdbool.h>
#include <zlib.h>

#define RAW_WINDOW_BITS (-MAX_WBITS)
#define GZIP_WINDOW_BITS (16 + MAX_WBITS) /* header and trailer are zlib's business then */
#define TRAILER_BYTES 8

/* Inflate member after member until the target is full; `is_raw`: the first has no header, thus
 * zlib leaves its trailer. Each round consumes a member, so it ends with the input at the latest. */
static bool inflate_members(z_stream *stream, bool is_raw)
{
    for (;;) {
        int code = inflate(stream, Z_FINISH);
        if (stream->avail_out == 0)
            return code == Z_STREAM_END || code == Z_BUF_ERROR || code == Z_OK;
        if (code != Z_STREAM_END)
            return false;
        if (is_raw) {
            if (stream->avail_in < TRAILER_BYTES)
                return false;
            stream->next_in += TRAILER_BYTES;
            stream->avail_in -= TRAILER_BYTES;
            is_raw = false;
        }
        if (stream->avail_in == 0 || inflateReset2(stream, GZIP_WINDOW_BITS) != Z_OK)
            return false;
    }
}

static void aim(z_stream *stream, const uint8_t *stored, size_t stored_length, uint8_t *target,
                size_t target_length)
{
    stream->next_in = (Bytef *)(uintptr_t)stored; /* zlib's header lacks a const here */
    stream->avail_in = (uInt)stored_length;
    stream->next_out = target;
    stream->avail_out = (uInt)target_length;
}

static bool begins_on_trailer(const uint8_t *stored, size_t length)
{
    return length >= TRAILER_BYTES + 3 && stored[TRAILER_BYTES] == 0x1f &&
           stored[TRAILER_BYTES + 1] == 0x8b && stored[TRAILER_BYTES + 2] == Z_DEFLATED;
}

int nd_inflate_context(const uint8_t *stored, size_t stored_length, const uint8_t *dictionary,
                       size_t dictionary_length, uint32_t prior_bits, uint32_t prior_byte,
                       uint8_t *target, size_t target_length)
{
    if (stored_length > UINT_MAX || target_length > UINT_MAX || target_length == 0 ||
        dictionary_length > ND_WINDOW_MAX_BYTES || prior_bits > 7 || prior_byte > UINT8_MAX)
        return -EINVAL;
    z_stream stream = {0};
    if (inflateInit2(&stream, RAW_WINDOW_BITS) != Z_OK)
        return -ENOMEM;

    int value = (int)(prior_byte >> (8 - prior_bits));
    bool done = prior_bits == 0 || inflatePrime(&stream, (int)prior_bits, value) == Z_OK;
    if (done && dictionary_length > 0)
        done = inflateSetDictionary(&stream, dictionary, (uInt)dictionary_length) == Z_OK;
    if (done) {
        aim(&stream, stored, stored_length, target, target_length);
        done = inflate_members(&stream, true);
    }
    if (!done && begins_on_trailer(stored, stored_length) &&
        inflateReset2(&stream, GZIP_WINDOW_BITS) == Z_OK) {
        aim(&stream, stored + TRAILER_BYTES, stored_length - TRAILER_BYTES, target,
            target_length);
        done = inflate_members(&stream, false);
    }
    inflateEnd(&stream);
    return done;
}
