/* CRC-32C: by the processor's own instruction where it has one, else by eight tables at once. */
#include "crc32c.h"

#include "bytes.h"

#if defined(__x86_64__)
#include <nmmintrin.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

/* A table maps a byte to the CRC of that byte followed by k zero bytes. The map is linear, so the
 * 256 entries follow from the eight of the single bits, at compile time. */
#define ENTRY(n, b0, b1, b2, b3, b4, b5, b6, b7)                                          \
    (((n) & 1 ? b0 : 0) ^ ((n) & 2 ? b1 : 0) ^ ((n) & 4 ? b2 : 0) ^ ((n) & 8 ? b3 : 0) ^  \
     ((n) & 16 ? b4 : 0) ^ ((n) & 32 ? b5 : 0) ^ ((n) & 64 ? b6 : 0) ^ ((n) & 128 ? b7 : 0))
#define ENTRIES_4(n, ...)                                                                 \
    ENTRY(n, __VA_ARGS__), ENTRY((n) + 1, __VA_ARGS__), ENTRY((n) + 2, __VA_ARGS__),      \
        ENTRY((n) + 3, __VA_ARGS__)
#define ENTRIES_16(n, ...)                                                                \
    ENTRIES_4(n, __VA_ARGS__), ENTRIES_4((n) + 4, __VA_ARGS__),                           \
        ENTRIES_4((n) + 8, __VA_ARGS__), ENTRIES_4((n) + 12, __VA_ARGS__)
#define ENTRIES_64(n, ...)                                                                \
    ENTRIES_16(n, __VA_ARGS__), ENTRIES_16((n) + 16, __VA_ARGS__),                        \
        ENTRIES_16((n) + 32, __VA_ARGS__), ENTRIES_16((n) + 48, __VA_ARGS__)
#define ENTRIES_256(...)                                                                  \
    {                                                                                     \
        ENTRIES_64(0, __VA_ARGS__), ENTRIES_64(64, __VA_ARGS__),                          \
            ENTRIES_64(128, __VA_ARGS__), ENTRIES_64(192, __VA_ARGS__)                    \
    }

static const uint32_t TABLE[8][256] = {
    ENTRIES_256(0xf26b8303, 0xe13b70f7, 0xc79a971f, 0x8ad958cf,
                0x105ec76f, 0x20bd8ede, 0x417b1dbc, 0x82f63b78),
    ENTRIES_256(0x13a29877, 0x274530ee, 0x4e8a61dc, 0x9d14c3b8,
                0x3fc5f181, 0x7f8be302, 0xff17c604, 0xfbc3faf9),
    ENTRIES_256(0xa541927e, 0x4f6f520d, 0x9edea41a, 0x38513ec5,
                0x70a27d8a, 0xe144fb14, 0xc76580d9, 0x8b277743),
    ENTRIES_256(0xdd45aab8, 0xbf672381, 0x7b2231f3, 0xf64463e6,
                0xe964b13d, 0xd725148b, 0xaba65fe7, 0x52a0c93f),
    ENTRIES_256(0x38116fac, 0x7022df58, 0xe045beb0, 0xc5670b91,
                0x8f2261d3, 0x1ba8b557, 0x37516aae, 0x6ea2d55c),
    ENTRIES_256(0xef306b19, 0xdb8ca0c3, 0xb2f53777, 0x6006181f,
                0xc00c303e, 0x85f4168d, 0x0e045beb, 0x1c08b7d6),
    ENTRIES_256(0x68032cc8, 0xd0065990, 0xa5e0c5d1, 0x4e2dfd53,
                0x9c5bfaa6, 0x3d5b83bd, 0x7ab7077a, 0xf56e0ef4),
    ENTRIES_256(0x493c7d27, 0x9278fa4e, 0x211d826d, 0x423b04da,
                0x847609b4, 0x0d006599, 0x1a00cb32, 0x34019664),
};

uint32_t nd_crc32c_by_table(const uint8_t *data, size_t length)
{
    uint32_t crc = ~0U;
    for (; length >= 8; data += 8, length -= 8) {
        uint32_t low = nd_load32(data) ^ crc, high = nd_load32(data + 4);
        crc = TABLE[7][low & 0xff] ^ TABLE[6][low >> 8 & 0xff] ^ TABLE[5][low >> 16 & 0xff] ^
              TABLE[4][low >> 24] ^ TABLE[3][high & 0xff] ^ TABLE[2][high >> 8 & 0xff] ^
              TABLE[1][high >> 16 & 0xff] ^ TABLE[0][high >> 24];
    }
    for (; length > 0; data++, length--)
        crc = TABLE[0][(crc ^ *data) & 0xff] ^ crc >> 8;
    return ~crc;
}

#if defined(__x86_64__)

#define CRC_TARGET __attribute__((target("sse4.2")))
#define CRC_8(crc, word) ((uint32_t)_mm_crc32_u64(crc, word))
#define CRC_1(crc, byte) _mm_crc32_u8(crc, byte)

static int has_instruction(void)
{
    return __builtin_cpu_supports("sse4.2");
}

#elif defined(__aarch64__) && defined(__linux__)

/* By assembler, because compilers disagree on which functions <arm_acle.h> shows without -march. */
static inline uint32_t crc_8(uint32_t crc, uint64_t word)
{
    __asm__(".arch_extension crc\n\tcrc32cx %w0, %w0, %x1" : "+r"(crc) : "r"(word));
    return crc;
}

static inline uint32_t crc_1(uint32_t crc, uint8_t byte)
{
    __asm__(".arch_extension crc\n\tcrc32cb %w0, %w0, %w1" : "+r"(crc) : "r"((uint32_t)byte));
    return crc;
}

#define CRC_TARGET
#define CRC_8(crc, word) crc_8(crc, word)
#define CRC_1(crc, byte) crc_1(crc, byte)

static int has_instruction(void)
{
    const unsigned long crc32_capability = 1UL << 7; /* HWCAP_CRC32 of <asm/hwcap.h> */
    return (getauxval(AT_HWCAP) & crc32_capability) != 0;
}

#endif

#ifdef CRC_TARGET

/* The instruction takes three cycles, but one can start in each: three runs of LANE_BYTES go side by
 * side, and are joined by what LANE_BYTES zero bytes make of the first ones' CRC. */
#define LANE_BYTES 2048

/* Element b: what LANE_BYTES zero bytes make of a CRC that is bit b alone. */
static const uint32_t PAST_LANE[32] = {
    0xf7506984, 0xeb4ca5f9, 0xd3753d03, 0xa3060cf7, 0x43e06f1f, 0x87c0de3e,
    0x0a6dca8d, 0x14db951a, 0x29b72a34, 0x536e5468, 0xa6dca8d0, 0x48552751,
    0x90aa4ea2, 0x24b8ebb5, 0x4971d76a, 0x92e3aed4, 0x202b2b59, 0x405656b2,
    0x80acad64, 0x04b52c39, 0x096a5872, 0x12d4b0e4, 0x25a961c8, 0x4b52c390,
    0x96a58720, 0x28a778b1, 0x514ef162, 0xa29de2c4, 0x40d7b379, 0x81af66f2,
    0x06b2bb15, 0x0d65762a,
};

static uint32_t past_lane(uint32_t crc)
{
    uint32_t result = 0;
    for (int bit = 0; bit < 32; bit++)
        result ^= PAST_LANE[bit] & -(crc >> bit & 1);
    return result;
}

CRC_TARGET static uint32_t crc32c_by_instruction(const uint8_t *data, size_t length)
{
    uint32_t crc = ~0U;
    for (; length >= 3 * LANE_BYTES; data += 3 * LANE_BYTES, length -= 3 * LANE_BYTES) {
        uint32_t second = 0, third = 0;
        for (size_t i = 0; i < LANE_BYTES; i += 8) {
            crc = CRC_8(crc, nd_load64(data + i));
            second = CRC_8(second, nd_load64(data + LANE_BYTES + i));
            third = CRC_8(third, nd_load64(data + 2 * LANE_BYTES + i));
        }
        crc = past_lane(past_lane(crc) ^ second) ^ third;
    }
    for (; length >= 8; data += 8, length -= 8)
        crc = CRC_8(crc, nd_load64(data));
    for (; length > 0; data++, length--)
        crc = CRC_1(crc, *data);
    return ~crc;
}

uint32_t nd_crc32c(const uint8_t *data, size_t length)
{
    return has_instruction() ? crc32c_by_instruction(data, length)
                             : nd_crc32c_by_table(data, length);
}

#else

uint32_t nd_crc32c(const uint8_t *data, size_t length)
{
    return nd_crc32c_by_table(data, length);
}

#endif
