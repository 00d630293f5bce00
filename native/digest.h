/* The digest of a chunk's plain bytes, by the algorithm ids of the blob table (spec blob §6.2). */
#ifndef ND_DIGEST_H
#define ND_DIGEST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define ND_DIGEST_BYTES 32

enum nd_digester { ND_BLAKE3 = 0, ND_SHA256 = 1 };

/* Kept over the chunks of one call, because OpenSSL's look-up of SHA-256 costs as much as 1 KiB. */
struct nd_digest_state {
    void *sha256; /* EVP_MD_CTX, created at the first SHA-256 */
};

/* Write the digest of `data`. False: unknown digester, or OpenSSL has no memory or no SHA-256. */
bool nd_digest_with(struct nd_digest_state *state, uint32_t digester, const uint8_t *data,
                    size_t length, uint8_t digest[ND_DIGEST_BYTES]);

void nd_digest_free(struct nd_digest_state *state);

/* The same for a single buffer: 0, or -EINVAL for an unknown digester, -ENOMEM for OpenSSL's reasons. */
int nd_digest(uint32_t digester, const uint8_t *data, size_t length,
              uint8_t digest[ND_DIGEST_BYTES]);

#endif
