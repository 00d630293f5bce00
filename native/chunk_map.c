/* Chunk map bits: set atomically, read with acquire order, so that a bit seen set means bytes written. */
#include "chunk_map.h"

#include <stdbool.h>

static bool is_long_enough(size_t length, uint64_t count)
{
    return count / 8 < length || (count / 8 == length && count % 8 == 0);
}

static uint8_t mask_of(uint64_t index)
{
    return (uint8_t)(0x80 >> index % 8);
}

static uint8_t load(const uint8_t *byte)
{
    return __atomic_load_n(byte, __ATOMIC_ACQUIRE);
}

int64_t nd_map_mark(uint8_t *bits, size_t length, uint64_t count, const uint32_t *indices,
                    size_t number)
{
    if (!is_long_enough(length, count))
        return -1;
    for (size_t i = 0; i < number; i++)
        if (indices[i] >= count)
            return -1;
    int64_t fresh = 0;
    for (size_t i = 0; i < number; i++) {
        uint8_t mask = mask_of(indices[i]);
        uint8_t before = __atomic_fetch_or(&bits[indices[i] / 8], mask, __ATOMIC_RELEASE);
        fresh += (before & mask) == 0;
    }
    return fresh;
}

int64_t nd_map_is_ready(const uint8_t *bits, size_t length, uint64_t count, uint64_t index)
{
    if (!is_long_enough(length, count) || index >= count)
        return -1;
    return (load(&bits[index / 8]) & mask_of(index)) != 0;
}

int64_t nd_map_count_ready(const uint8_t *bits, size_t length, uint64_t count)
{
    if (!is_long_enough(length, count))
        return -1;
    int64_t ready = 0;
    for (uint64_t byte = 0; byte < count / 8; byte++)
        ready += __builtin_popcount(load(&bits[byte]));
    if (count % 8 != 0) {
        unsigned used = 0xff00u >> count % 8 & 0xff; /* bits past the count mean nothing */
        ready += __builtin_popcount(load(&bits[count / 8]) & used);
    }
    return ready;
}

int64_t nd_map_next_absent(const uint8_t *bits, size_t length, uint64_t count, uint64_t start)
{
    if (!is_long_enough(length, count))
        return -1;
    for (uint64_t index = start; index < count; index = (index / 8 + 1) * 8) {
        unsigned behind = 0xffu >> index % 8;
        unsigned absent = ~load(&bits[index / 8]) & behind;
        if (absent != 0) {
            uint64_t found = index / 8 * 8 + (uint64_t)__builtin_clz(absent) - 24;
            return (int64_t)(found < count ? found : count);
        }
    }
    return (int64_t)count;
}
