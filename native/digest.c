/* Chunk digests: BLAKE3 is ours, SHA-256 is OpenSSL's, which uses the processor's own instructions. */
#include "digest.h"

#include "blake3.h"

#include <errno.h>
#include <openssl/evp.h>

static bool sha256_with(struct nd_digest_state *state, const uint8_t *data, size_t length,
                        uint8_t digest[ND_DIGEST_BYTES])
{
    if (state->sha256 == NULL)
        state->sha256 = EVP_MD_CTX_new();
    if (state->sha256 == NULL)
        return false;
    return EVP_DigestInit_ex(state->sha256, EVP_sha256(), NULL) == 1 &&
           EVP_DigestUpdate(state->sha256, data, length) == 1 &&
           EVP_DigestFinal_ex(state->sha256, digest, NULL) == 1;
}

bool nd_digest_with(struct nd_digest_state *state, uint32_t digester, const uint8_t *data,
                    size_t length, uint8_t digest[ND_DIGEST_BYTES])
{
    switch (digester) {
    case ND_BLAKE3:
        nd_blake3(data, length, digest);
        return true;
    case ND_SHA256:
        return sha256_with(state, data, length, digest);
    default:
        return false;
    }
}

void nd_digest_free(struct nd_digest_state *state)
{
    EVP_MD_CTX_free(state->sha256);
    state->sha256 = NULL;
}

int nd_digest(uint32_t digester, const uint8_t *data, size_t length,
              uint8_t digest[ND_DIGEST_BYTES])
{
    if (digester != ND_BLAKE3 && digester != ND_SHA256)
        return -EINVAL;
    struct nd_digest_state state = {0};
    bool done = nd_digest_with(&state, digester, data, length, digest);
    nd_digest_free(&state);
    return done ? 0 : -ENOMEM;
}
