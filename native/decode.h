/* From stored bytes to checked plain bytes: a run of chunks in one call (spec blob §6, §8).
 *
 * Every function works through all chunks, whatever becomes of one of them, and writes one result per
 * chunk. It returns the number of chunks that are not ND_SAVED, or a negative errno if it could not
 * start: -EINVAL for an unknown codec or digester, -ENOMEM. Threads may call at once; nothing is kept.
 */
#ifndef ND_DECODE_H
#define ND_DECODE_H

#include "digest.h"

#include <stddef.h>
#include <stdint.h>

#define ND_CHUNK_MAX_BYTES (16u << 20) /* the formats' largest chunk */

enum nd_status {
    ND_SAVED = 0,           /* decoded, checked, written */
    ND_UNSAVED = 1,         /* the file could not be written (or read, in a check): see `error` */
    ND_OUT_OF_BUFFER = 2,   /* a range of the chunk lies outside the buffers or address space */
    ND_DECODE_FAILED = 3,   /* the stored bytes do not decode to the chunk's size */
    ND_DIGEST_MISMATCH = 4, /* the plain bytes are not those that the digest names */
    ND_CRC_MISMATCH = 5,    /* the same by the CRC-32C */
};

enum nd_chunk_flag { ND_COMPRESSED = 1, ND_HAS_DIGEST = 2, ND_HAS_CRC = 4 };

/* A chunk as the caller knows it; 64 bytes, which nydusd/native.py packs by hand. */
typedef struct {
    uint64_t compressed_offset;   /* in the stored blob */
    uint64_t uncompressed_offset; /* in the plain address space, thus in the cache file */
    uint32_t compressed_size;
    uint32_t uncompressed_size;
    uint32_t flags;
    uint32_t crc32;
    uint8_t digest[ND_DIGEST_BYTES];
} nd_chunk;

typedef struct {
    int32_t status; /* enum nd_status */
    int32_t error;  /* errno, with ND_UNSAVED; 0 there: end of file, or a write of no bytes */
} nd_result;

/* `stored` holds bytes [stored_offset, stored_offset + stored_length) of the blob in all of them. */

/* Write each right chunk to `fd` at its uncompressed_offset. */
int nd_decode_to_file(const uint8_t *stored, size_t stored_length, uint64_t stored_offset,
                      const nd_chunk *chunks, size_t count, uint32_t codec, uint32_t digester,
                      int fd, nd_result *results);

/* Write each right chunk to `target`, whose first byte is plain address `target_offset`.
 *
 * The range of a chunk that fails its check holds zeros afterwards, never the wrong bytes.
 */
int nd_decode_to_memory(const uint8_t *stored, size_t stored_length, uint64_t stored_offset,
                        const nd_chunk *chunks, size_t count, uint32_t codec, uint32_t digester,
                        uint8_t *target, size_t target_length, uint64_t target_offset,
                        nd_result *results);

/* Read each chunk's plain bytes from `fd` and check them; a chunk without digest and CRC is right. */
int nd_verify_file(int fd, const nd_chunk *chunks, size_t count, uint32_t digester,
                   nd_result *results);

#endif
