/* The codecs of chunks, by the algorithm ids of the blob table (spec blob §6.1). */
#ifndef ND_CODEC_H
#define ND_CODEC_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum nd_codec { ND_NONE = 0, ND_LZ4_BLOCK = 1, ND_GZIP = 2, ND_ZSTD = 3 };

/* Contexts that are worth keeping over the chunks of one call; each is created when first needed. */
struct nd_codec_state {
    void *zstd; /* ZSTD_DCtx */
    void *gzip; /* z_stream */
};

/* Decode `source` into exactly `target_length` bytes; true if it gives just as many.
 *
 * Never writes past them, whatever the source claims. gzip: one member, of which what follows the
 * wanted bytes is left alone; a wrong trailer within reach is an error. lz4, zstd: all of the source.
 * ND_NONE has no coded form and always fails. On failure the target's content is undefined.
 */
bool nd_decompress(struct nd_codec_state *state, uint32_t codec, const uint8_t *source,
                   size_t source_length, uint8_t *target, size_t target_length);

void nd_codec_free(struct nd_codec_state *state);

/* The same once, with no state of the caller's: 1, or 0 where nd_decompress() is false. */
int nd_decompress_once(uint32_t codec, const uint8_t *source, size_t source_length,
                       uint8_t *target, size_t target_length);

/* Encode `source`; the encoded size, or 0 if it does not fit in `capacity` (or cannot be encoded).
 *
 * Codecs ND_LZ4_BLOCK and ND_ZSTD. Level 0 is the codec's own default; lz4 levels above are LZ4HC's.
 */
size_t nd_compress(uint32_t codec, int level, const uint8_t *source, size_t source_length,
                   uint8_t *target, size_t capacity);

#endif
