/* CRC-32C: known values, and the instruction against the tables and one bit at a time. */
#include "../crc32c.h"

#include "check.h"

static uint32_t crc_by_bits(const uint8_t *bytes, size_t length)
{
    uint32_t crc = ~0U;
    for (size_t i = 0; i < length; i++) {
        crc ^= bytes[i];
        for (int bit = 0; bit < 8; bit++)
            crc = crc >> 1 ^ (crc & 1 ? 0x82f63b78 : 0);
    }
    return ~crc;
}

static void known_values(void)
{
    const uint8_t digits[] = "123456789", zeros[32] = {0};
    CHECK(nd_crc32c(digits, 9) == 0xe3069283);
    CHECK(nd_crc32c_by_table(digits, 9) == 0xe3069283);
    CHECK(nd_crc32c(zeros, 32) == 0x8a9136aa); /* RFC 3720 B.4 */
    CHECK(nd_crc32c(digits, 0) == 0);
}

static void all_ways_agree_at_every_length(void)
{
    uint64_t seed = 2;
    for (size_t length = 0; length < 300; length++) {
        uint8_t *bytes = exactly(length);
        for (size_t i = 0; i < length; i++)
            bytes[i] = (uint8_t)next_random(&seed);
        uint32_t expected = crc_by_bits(bytes, length);
        CHECK(nd_crc32c(bytes, length) == expected);
        CHECK(nd_crc32c_by_table(bytes, length) == expected);
        free(bytes);
    }
}

/* Around the lengths where three runs go side by side. */
static void long_input_agrees_with_the_tables(void)
{
    uint8_t *bytes = counted_bytes(40000);
    for (size_t length = 6000; length < 40000; length += 131)
        CHECK(nd_crc32c(bytes, length) == nd_crc32c_by_table(bytes, length));
    for (size_t blocks = 1; blocks <= 6; blocks++)
        for (size_t length = blocks * 6144 - 9; length <= blocks * 6144 + 9; length++)
            CHECK(nd_crc32c(bytes, length) == nd_crc32c_by_table(bytes, length));
    CHECK(nd_crc32c_by_table(bytes, 40000) == crc_by_bits(bytes, 40000));
    free(bytes);
}

void test_crc32c(void)
{
    known_values();
    all_ways_agree_at_every_length();
    long_input_agrees_with_the_tables();
}
