/* One blake3_lanes_fn for LANES inputs. A template: included once per width by blake3_lanes.c.
 *
 * Word i of the hash state of all inputs lies in one vector, input k in element k, so the rounds are
 * the scalar code on vectors. Only the way in and out differs: 4x4 words at a time are transposed.
 *
 * Wants the macros LANES, LANES_TARGET (function attribute), LANES_NAME(x) and the index lists
 * UNPACK_LOW_32, UNPACK_HIGH_32, UNPACK_LOW_64, UNPACK_HIGH_64, which interleave within 16 bytes.
 */
#define WORDS LANES_NAME(words)
#define INLINE LANES_TARGET static inline __attribute__((always_inline))

typedef uint32_t WORDS __attribute__((vector_size(4 * LANES)));

#ifdef ROTATE_BYTES_16
/* Whole bytes move in one shuffle where a rotation costs two shifts and an or. */
typedef uint8_t LANES_NAME(bytes) __attribute__((vector_size(4 * LANES)));
#define SHUFFLE_BYTES(x, ...) \
    ((WORDS)__builtin_shufflevector((LANES_NAME(bytes))(x), (LANES_NAME(bytes))(x), __VA_ARGS__))
#define ROTATE_16(x) SHUFFLE_BYTES(x, ROTATE_BYTES_16)
#define ROTATE_8(x) SHUFFLE_BYTES(x, ROTATE_BYTES_8)
#else
#define ROTATE_16(x) ((x) >> 16 | (x) << 16)
#define ROTATE_8(x) ((x) >> 8 | (x) << 24)
#endif

#define LANES_G(a, b, c, d, x, y)    \
    do {                             \
        a = a + b + (x);             \
        d = ROTATE_16(d ^ a);        \
        c = c + d;                   \
        b = b ^ c;                   \
        b = b >> 12 | b << 20;       \
        a = a + b + (y);             \
        d = ROTATE_8(d ^ a);         \
        c = c + d;                   \
        b = b ^ c;                   \
        b = b >> 7 | b << 25;        \
    } while (0)

/* Transpose the 4x4 words of each group of four inputs in place; its own inverse. */
INLINE void LANES_NAME(transpose)(WORDS row[4])
{
    WORDS low01 = __builtin_shufflevector(row[0], row[1], UNPACK_LOW_32);
    WORDS high01 = __builtin_shufflevector(row[0], row[1], UNPACK_HIGH_32);
    WORDS low23 = __builtin_shufflevector(row[2], row[3], UNPACK_LOW_32);
    WORDS high23 = __builtin_shufflevector(row[2], row[3], UNPACK_HIGH_32);
    row[0] = __builtin_shufflevector(low01, low23, UNPACK_LOW_64);
    row[1] = __builtin_shufflevector(low01, low23, UNPACK_HIGH_64);
    row[2] = __builtin_shufflevector(high01, high23, UNPACK_LOW_64);
    row[3] = __builtin_shufflevector(high01, high23, UNPACK_HIGH_64);
}

/* Gather 16 bytes of inputs r, r + 4, r + 8, ... */
INLINE WORDS LANES_NAME(load_row)(const uint8_t *bytes, size_t stride)
{
    words_4 quad[LANES / 4];
    for (int group = 0; group < LANES / 4; group++)
        memcpy(&quad[group], bytes + 4 * (size_t)group * stride, sizeof quad[group]);
#if LANES == 4
    return quad[0];
#elif LANES == 8
    return __builtin_shufflevector(quad[0], quad[1], 0, 1, 2, 3, 4, 5, 6, 7);
#else
    words_8 low = __builtin_shufflevector(quad[0], quad[1], 0, 1, 2, 3, 4, 5, 6, 7);
    words_8 high = __builtin_shufflevector(quad[2], quad[3], 0, 1, 2, 3, 4, 5, 6, 7);
    return __builtin_shufflevector(low, high, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
#endif
}

INLINE void LANES_NAME(load_block)(WORDS m[16], const uint8_t *inputs, size_t stride)
{
    for (int quad = 0; quad < 4; quad++) {
        for (int r = 0; r < 4; r++)
            m[4 * quad + r] = LANES_NAME(load_row)(inputs + (size_t)r * stride + 16 * quad, stride);
        LANES_NAME(transpose)(m + 4 * quad);
    }
}

LANES_TARGET void LANES_NAME(nd_blake3_lanes)(const uint8_t *inputs, size_t stride, size_t blocks,
                                              uint64_t counter, unsigned counter_step, uint8_t flags,
                                              uint8_t first_flags, uint8_t last_flags, uint8_t *cvs)
{
    WORDS cv[CV_WORDS], counter_low, counter_high;
    const WORDS zero = {0};

    for (int i = 0; i < CV_WORDS; i++)
        cv[i] = zero + IV[i];
    for (int i = 0; i < LANES; i++) {
        uint64_t own = counter + (uint64_t)i * counter_step;
        counter_low[i] = (uint32_t)own;
        counter_high[i] = (uint32_t)(own >> 32);
    }
    for (size_t block = 0; block < blocks; block++) {
        uint32_t block_flags = flags;
        if (block == 0)
            block_flags |= first_flags;
        if (block + 1 == blocks)
            block_flags |= last_flags;

        WORDS m[16];
        LANES_NAME(load_block)(m, inputs + block * BLOCK_BYTES, stride);
        WORDS v[16] = {
            cv[0],        cv[1],        cv[2],              cv[3],
            cv[4],        cv[5],        cv[6],              cv[7],
            zero + IV[0], zero + IV[1], zero + IV[2],       zero + IV[3],
            counter_low,  counter_high, zero + BLOCK_BYTES, zero + block_flags,
        };
        BLAKE3_ROUND(LANES_G, v, m, SCHEDULE[0]);
        BLAKE3_ROUND(LANES_G, v, m, SCHEDULE[1]);
        BLAKE3_ROUND(LANES_G, v, m, SCHEDULE[2]);
        BLAKE3_ROUND(LANES_G, v, m, SCHEDULE[3]);
        BLAKE3_ROUND(LANES_G, v, m, SCHEDULE[4]);
        BLAKE3_ROUND(LANES_G, v, m, SCHEDULE[5]);
        BLAKE3_ROUND(LANES_G, v, m, SCHEDULE[6]);
        for (int i = 0; i < CV_WORDS; i++)
            cv[i] = v[i] ^ v[i + 8];
    }
    /* All inputs have been read by now: `cvs` may be the same memory. */
    for (int half = 0; half < 2; half++) {
        LANES_NAME(transpose)(cv + 4 * half);
        for (int r = 0; r < 4; r++)
            for (int group = 0; group < LANES / 4; group++)
                memcpy(cvs + (4 * group + r) * CV_BYTES + 16 * half,
                       (const uint8_t *)&cv[4 * half + r] + 16 * group, 16);
    }
}

#undef WORDS
#undef INLINE
#undef SHUFFLE_BYTES
#undef ROTATE_16
#undef ROTATE_8
#undef LANES_G
#undef LANES
#undef LANES_TARGET
#undef LANES_NAME
#undef UNPACK_LOW_32
#undef UNPACK_HIGH_32
#undef UNPACK_LOW_64
#undef UNPACK_HIGH_64
#undef ROTATE_BYTES_16
#undef ROTATE_BYTES_8
