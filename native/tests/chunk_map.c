/* Chunk map bits: order of bits, bounds, counts. */
#include "../chunk_map.h"

#include "check.h"

static void first_chunk_is_the_most_significant_bit(void)
{
    uint8_t *bits = exactly(2);
    memset(bits, 0, 2);
    const uint32_t indices[] = {0, 9};
    CHECK(nd_map_mark(bits, 2, 16, indices, 2) == 2);
    CHECK(bits[0] == 0x80 && bits[1] == 0x40);
    CHECK(nd_map_is_ready(bits, 2, 16, 0) == 1 && nd_map_is_ready(bits, 2, 16, 1) == 0);
    CHECK(nd_map_is_ready(bits, 2, 16, 9) == 1);
    free(bits);
}

static void a_bit_counts_as_new_once(void)
{
    uint8_t *bits = exactly(1);
    *bits = 0;
    const uint32_t indices[] = {3, 3, 4};
    CHECK(nd_map_mark(bits, 1, 8, indices, 3) == 2);
    CHECK(nd_map_mark(bits, 1, 8, indices, 3) == 0);
    CHECK(nd_map_mark(bits, 1, 8, indices, 0) == 0);
    CHECK(nd_map_count_ready(bits, 1, 8) == 2);
    free(bits);
}

static void indices_outside_are_refused_as_a_whole(void)
{
    uint8_t *bits = exactly(2);
    memset(bits, 0, 2);
    const uint32_t indices[] = {1, 11}, huge[] = {UINT32_MAX};
    CHECK(nd_map_mark(bits, 2, 11, indices, 2) == -1);
    CHECK(nd_map_mark(bits, 2, 11, huge, 1) == -1);
    CHECK(bits[0] == 0 && bits[1] == 0);
    CHECK(nd_map_is_ready(bits, 2, 11, 11) == -1);
    free(bits);
}

static void short_maps_are_refused(void)
{
    uint8_t *bits = exactly(2);
    memset(bits, 0xff, 2);
    const uint32_t index = 0;
    CHECK(nd_map_count_ready(bits, 2, 16) == 16);
    CHECK(nd_map_count_ready(bits, 2, 17) == -1);
    CHECK(nd_map_mark(bits, 2, 17, &index, 1) == -1);
    CHECK(nd_map_is_ready(bits, 2, UINT64_MAX, 0) == -1);
    CHECK(nd_map_next_absent(bits, 2, UINT64_MAX, 0) == -1);
    CHECK(nd_map_count_ready(bits, 0, 0) == 0);
    CHECK(nd_map_next_absent(bits, 0, 0, 0) == 0);
    free(bits);
}

static void padding_bits_mean_nothing(void)
{
    uint8_t *bits = exactly(1);
    *bits = 0xff;
    CHECK(nd_map_count_ready(bits, 1, 3) == 3);
    CHECK(nd_map_next_absent(bits, 1, 3, 0) == 3);
    *bits = 0x1f; /* bits 0 to 2 clear, only padding set */
    CHECK(nd_map_count_ready(bits, 1, 3) == 0);
    CHECK(nd_map_next_absent(bits, 1, 3, 1) == 1);
    *bits = 0xe0; /* bits 0 to 2 set, padding clear */
    CHECK(nd_map_next_absent(bits, 1, 3, 0) == 3);
    free(bits);
}

static void absent_bits_are_found_from_any_start(void)
{
    uint64_t seed = 3;
    for (int round = 0; round < 200; round++) {
        uint64_t count = next_random(&seed) % 100;
        size_t length = (size_t)(count + 7) / 8;
        uint8_t *bits = exactly(length);
        for (size_t i = 0; i < length; i++)
            bits[i] = (uint8_t)(next_random(&seed) | next_random(&seed));
        int64_t ready = 0;
        for (uint64_t start = 0; start < count; start++) {
            int64_t expected = (int64_t)start;
            while ((uint64_t)expected < count &&
                   nd_map_is_ready(bits, length, count, (uint64_t)expected) == 1)
                expected++;
            CHECK(nd_map_next_absent(bits, length, count, start) == expected);
            ready += nd_map_is_ready(bits, length, count, start);
        }
        CHECK(nd_map_count_ready(bits, length, count) == ready);
        CHECK(nd_map_next_absent(bits, length, count, count + 5) == (int64_t)count);
        free(bits);
    }
}

void test_chunk_map(void)
{
    first_chunk_is_the_most_significant_bit();
    a_bit_counts_as_new_once();
    indices_outside_are_refused_as_a_whole();
    short_maps_are_refused();
    padding_bits_mean_nothing();
    absent_bits_are_found_from_any_start();
}
