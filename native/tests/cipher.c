/* AES-XTS against published vectors, the format's own, and OpenSSL's other direction. */
#include "../cipher.h"

#include "check.h"

#include <errno.h>
#include <openssl/evp.h>

static const uint8_t zero_tweak[ND_TWEAK_BYTES];

static int decrypt_whole(uint8_t *data, size_t size, const uint8_t *key, size_t key_length,
                         const uint8_t *tweak)
{
    const nd_unit unit = {.length = (uint32_t)size};
    return nd_decrypt(data, size, &unit, 1, key, key_length, tweak);
}

static uint8_t *encrypted(const uint8_t *plain, size_t size, const uint8_t *key, size_t key_length,
                          const uint8_t *tweak)
{
    uint8_t *data = exactly(size);
    int written = 0;
    EVP_CIPHER_CTX *context = EVP_CIPHER_CTX_new();
    CHECK(EVP_EncryptInit_ex(context, key_length == 64 ? EVP_aes_256_xts() : EVP_aes_128_xts(),
                             NULL, key, tweak) == 1);
    CHECK(EVP_EncryptUpdate(context, data, &written, plain, (int)size) == 1);
    CHECK(written == (int)size);
    EVP_CIPHER_CTX_free(context);
    return data;
}

/* IEEE 1619, vector 2: both keys and the tweak differ from each other. */
static void a_published_vector_is_decrypted(void)
{
    static const uint8_t expected[32] = {
        0xc4, 0x54, 0x18, 0x5e, 0x6a, 0x16, 0x93, 0x6e, 0x39, 0x33, 0x40, 0x38, 0xac, 0xef, 0x83, 0x8b,
        0xfb, 0x18, 0x6f, 0xff, 0x74, 0x80, 0xad, 0xc4, 0x28, 0x93, 0x82, 0xec, 0xd6, 0xd3, 0x94, 0xf0};
    uint8_t key[32], tweak[ND_TWEAK_BYTES] = {0x33, 0x33, 0x33, 0x33, 0x33}, plain[32];
    memset(key, 0x11, 16), memset(key + 16, 0x22, 16), memset(plain, 0x44, sizeof plain);
    uint8_t *data = copy_of(expected, sizeof expected);
    CHECK(decrypt_whole(data, sizeof expected, key, sizeof key, tweak) == 0);
    CHECK(memcmp(data, plain, sizeof plain) == 0);
    free(data);
}

/* 17 times "1", as the format's description has it: the last block steals from the one before. */
static void the_last_block_may_be_short(void)
{
    static const uint8_t stored[17] = {0x67, 0xa2, 0xd8, 0xfc, 0xc3, 0xbe, 0xed, 0x67, 0x0b,
                                       0xb6, 0x26, 0xfe, 0xab, 0x5a, 0x03, 0xf2, 0x95};
    uint8_t key[32], plain[17];
    memset(key, 0x0c, sizeof key), memset(plain, '1', sizeof plain);
    key[31] = 0x0a;
    uint8_t *data = copy_of(stored, sizeof stored);
    CHECK(decrypt_whole(data, sizeof stored, key, sizeof key, zero_tweak) == 0);
    CHECK(memcmp(data, plain, sizeof plain) == 0);
    free(data);
}

static void units_of_any_size_are_decrypted_in_their_place(size_t key_length)
{
    static const uint32_t sizes[] = {16, 17, 31, 32, 4096, 65537};
    uint64_t seed = key_length;
    uint8_t key[64], tweak[ND_TWEAK_BYTES];
    for (size_t i = 0; i < sizeof key; i++)
        key[i] = (uint8_t)next_random(&seed);
    for (size_t i = 0; i < sizeof tweak; i++)
        tweak[i] = (uint8_t)next_random(&seed);
    uint8_t *plain = counted_bytes(100000), *data = copy_of(plain, 100000);
    nd_unit units[sizeof sizes / sizeof *sizes];
    uint64_t offset = 3;
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        uint8_t *unit = encrypted(plain + offset, sizes[i], key, key_length, tweak);
        memcpy(data + offset, unit, sizes[i]);
        units[i] = (nd_unit){.offset = offset, .length = sizes[i]};
        offset += sizes[i] + 7;
        free(unit);
    }
    CHECK(nd_decrypt(data, 100000, units, sizeof sizes / sizeof *sizes, key, key_length, tweak) ==
          0);
    CHECK(memcmp(data, plain, 100000) == 0);
    free(data), free(plain);
}

static void units_that_cannot_be_are_refused(void)
{
    static const uint8_t key[64] = {1};
    static const nd_unit bad[] = {
        {0, 0, 0},       {0, 15, 0},          {0, 65, 0},         {49, 16, 0},
        {65, 16, 0},     {UINT64_MAX, 16, 0}, {UINT64_MAX - 15, 16, 0},
        {0, UINT32_MAX, 0},
    };
    uint8_t *data = counted_bytes(64);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        CHECK(nd_decrypt(data, 64, &bad[i], 1, key, 32, zero_tweak) == -EINVAL);
    const nd_unit good = {0, 64, 0};
    for (size_t length = 0; length < 65; length++)
        CHECK(nd_decrypt(data, 64, &good, 1, key, length, zero_tweak) ==
              (length == 32 || length == 64 ? 0 : -EINVAL));
    CHECK(nd_decrypt(data, 64, NULL, 0, key, 32, zero_tweak) == 0);
    free(data);
}

/* 16 MiB are the most that a unit may have: one data unit of XTS ends there. */
static void the_largest_unit_is_decrypted(void)
{
    static const uint8_t key[32] = {1};
    uint8_t *plain = counted_bytes(ND_UNIT_MAX_BYTES + 1);
    uint8_t *data = encrypted(plain, ND_UNIT_MAX_BYTES, key, sizeof key, zero_tweak);
    CHECK(decrypt_whole(data, ND_UNIT_MAX_BYTES, key, sizeof key, zero_tweak) == 0);
    CHECK(memcmp(data, plain, ND_UNIT_MAX_BYTES) == 0);
    CHECK(decrypt_whole(plain, ND_UNIT_MAX_BYTES + 1, key, sizeof key, zero_tweak) == -EINVAL);
    free(data), free(plain);
}

void test_cipher(void)
{
    a_published_vector_is_decrypted();
    the_last_block_may_be_short();
    units_of_any_size_are_decrypted_in_their_place(32);
    units_of_any_size_are_decrypted_in_their_place(64);
    units_that_cannot_be_are_refused();
    the_largest_unit_is_decrypted();
}
