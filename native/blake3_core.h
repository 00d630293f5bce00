/* What the scalar and the vector code of BLAKE3 share: constants and the word order of the rounds.
 *
 * Names follow the BLAKE3 paper: a chunk is 1024 bytes, a block 64, a chaining value (cv) 8 words.
 */
#ifndef ND_BLAKE3_CORE_H
#define ND_BLAKE3_CORE_H

#include <stddef.h>
#include <stdint.h>

#define BLOCK_BYTES 64
#define CHUNK_BYTES 1024
#define CV_WORDS 8
#define CV_BYTES 32
#define ROUNDS 7

enum { CHUNK_START = 1, CHUNK_END = 2, PARENT = 4, ROOT = 8 };

static const uint32_t IV[CV_WORDS] = {
    0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19,
};

/* Row r is the message permutation applied r times to 0..15: no round has to move words. */
static const uint8_t SCHEDULE[ROUNDS][16] = {
    {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15},
    {2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8},
    {3, 4, 10, 12, 13, 2, 7, 14, 6, 5, 9, 0, 11, 15, 8, 1},
    {10, 7, 12, 9, 14, 3, 13, 15, 4, 0, 11, 2, 5, 8, 1, 6},
    {12, 13, 9, 11, 15, 10, 14, 8, 7, 2, 5, 3, 0, 1, 6, 4},
    {9, 14, 11, 5, 8, 12, 15, 1, 13, 3, 0, 10, 2, 6, 4, 7},
    {11, 15, 5, 0, 1, 9, 8, 6, 14, 10, 2, 12, 3, 4, 7, 13},
};

/* One round over a state v[16] of any word type: columns, then diagonals. G is the quarter round. */
#define BLAKE3_ROUND(G, v, m, s)                       \
    do {                                               \
        G(v[0], v[4], v[8], v[12], m[s[0]], m[s[1]]);  \
        G(v[1], v[5], v[9], v[13], m[s[2]], m[s[3]]);  \
        G(v[2], v[6], v[10], v[14], m[s[4]], m[s[5]]); \
        G(v[3], v[7], v[11], v[15], m[s[6]], m[s[7]]); \
        G(v[0], v[5], v[10], v[15], m[s[8]], m[s[9]]); \
        G(v[1], v[6], v[11], v[12], m[s[10]], m[s[11]]); \
        G(v[2], v[7], v[8], v[13], m[s[12]], m[s[13]]);  \
        G(v[3], v[4], v[9], v[14], m[s[14]], m[s[15]]);  \
    } while (0)

/* Hash `LANES` inputs of `blocks` whole blocks each, side by side; the inputs lie `stride` bytes apart.
 *
 * Input i is hashed from the IV with counter `counter + i * counter_step`; `flags` holds for every
 * block, `first_flags` and `last_flags` are added for the outer ones. Output: LANES cvs in a row.
 */
typedef void blake3_lanes_fn(const uint8_t *inputs, size_t stride, size_t blocks, uint64_t counter,
                             unsigned counter_step, uint8_t flags, uint8_t first_flags,
                             uint8_t last_flags, uint8_t *cvs);

blake3_lanes_fn nd_blake3_lanes_4;
blake3_lanes_fn nd_blake3_lanes_8;
blake3_lanes_fn nd_blake3_lanes_16;

/* Vector code is compiled where the compiler can shuffle vectors; else every path is the scalar one. */
#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define BLAKE3_HAS_LANES 1
#if defined(__x86_64__)
#define BLAKE3_HAS_WIDE_LANES 1
#endif
#endif
#endif

#endif
