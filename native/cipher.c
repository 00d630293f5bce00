/* AES-XTS is OpenSSL's, which uses the processor's own instructions; the library is there for digests. */
#include "cipher.h"

#include "bytes.h"

#include <errno.h>
#include <openssl/evp.h>

static const EVP_CIPHER *cipher_for(size_t key_length)
{
    switch (key_length) {
    case 32:
        return EVP_aes_128_xts();
    case 64:
        return EVP_aes_256_xts();
    default:
        return NULL;
    }
}

static bool is_valid(const nd_unit *unit, size_t length)
{
    return unit->length >= ND_UNIT_MIN_BYTES && unit->length <= ND_UNIT_MAX_BYTES &&
           nd_within(unit->offset, unit->length, 0, length);
}

int nd_decrypt(uint8_t *data, size_t length, const nd_unit *units, size_t count, const uint8_t *key,
               size_t key_length, const uint8_t tweak[ND_TWEAK_BYTES])
{
    const EVP_CIPHER *cipher = cipher_for(key_length);
    if (cipher == NULL)
        return -EINVAL;
    EVP_CIPHER_CTX *context = EVP_CIPHER_CTX_new();
    if (context == NULL)
        return -ENOMEM;
    int code = EVP_DecryptInit_ex(context, cipher, NULL, key, NULL) == 1 ? 0 : -ENOMEM;
    for (size_t i = 0; code == 0 && i < count; i++) {
        int size = 0;
        if (!is_valid(&units[i], length)) {
            code = -EINVAL;
            break;
        }
        uint8_t *unit = data + units[i].offset;
        if (EVP_DecryptInit_ex(context, NULL, NULL, NULL, tweak) != 1 ||
            EVP_DecryptUpdate(context, unit, &size, unit, (int)units[i].length) != 1 ||
            size != (int)units[i].length)
            code = -ENOMEM;
    }
    EVP_CIPHER_CTX_free(context); /* wipes its copy of the key */
    return code;
}
