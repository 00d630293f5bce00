/* BLAKE3-256, unkeyed, of one buffer. */
#ifndef ND_BLAKE3_H
#define ND_BLAKE3_H

#include <stddef.h>
#include <stdint.h>

#define ND_BLAKE3_BYTES 32

/* Which code compresses: chosen by the processor in nd_blake3(), by the caller in tests. */
enum nd_blake3_path {
    ND_BLAKE3_SCALAR,
    ND_BLAKE3_LANES_4,  /* SSE2, NEON */
    ND_BLAKE3_LANES_8,  /* AVX2 */
    ND_BLAKE3_LANES_16, /* AVX-512F */
};

/* The fastest path of this processor; every path below it in the enumeration works too. */
enum nd_blake3_path nd_blake3_best_path(void);

void nd_blake3(const uint8_t *data, size_t length, uint8_t digest[ND_BLAKE3_BYTES]);

/* The same with a path of the caller's choice, lowered to what the processor has. */
void nd_blake3_by(enum nd_blake3_path path, const uint8_t *data, size_t length,
                  uint8_t digest[ND_BLAKE3_BYTES]);

#endif
