/* BLAKE3-256: the tree over a buffer's chunks, and the scalar compression function.
 *
 * Written from the BLAKE3 paper ("one function, fast everywhere", sections 2.1 to 2.6). The whole
 * input is at hand, so no state is kept between calls: slabs of 256 chunks are hashed to one chaining
 * value each, level by level and several inputs at a time, and the slabs' values are merged on a stack.
 */
#include "blake3.h"

#include "blake3_core.h"
#include "bytes.h"

#define SLAB_CHUNKS 256
#define SLAB_BYTES ((size_t)SLAB_CHUNKS * CHUNK_BYTES)
#define STACK_DEPTH 64 /* one level per bit of the number of slabs */

static inline uint32_t rotate_right(uint32_t word, unsigned bits)
{
    return word >> bits | word << (32 - bits);
}

#define SCALAR_G(a, b, c, d, x, y)      \
    do {                                \
        a = a + b + (x);                \
        d = rotate_right(d ^ a, 16);    \
        c = c + d;                      \
        b = rotate_right(b ^ c, 12);    \
        a = a + b + (y);                \
        d = rotate_right(d ^ a, 8);     \
        c = c + d;                      \
        b = rotate_right(b ^ c, 7);     \
    } while (0)

/* Replace `cv` by the first half of the compression of one block, of which `length` bytes count. */
static void compress(uint32_t cv[CV_WORDS], const uint8_t block[BLOCK_BYTES], uint32_t length,
                     uint64_t counter, uint32_t flags)
{
    uint32_t m[16];
    for (int i = 0; i < 16; i++)
        m[i] = nd_load32(block + 4 * i);
    uint32_t v[16] = {
        cv[0],
        cv[1],
        cv[2],
        cv[3],
        cv[4],
        cv[5],
        cv[6],
        cv[7],
        IV[0],
        IV[1],
        IV[2],
        IV[3],
        (uint32_t)counter,
        (uint32_t)(counter >> 32),
        length,
        flags,
    };
    for (int round = 0; round < ROUNDS; round++)
        BLAKE3_ROUND(SCALAR_G, v, m, SCHEDULE[round]);
    for (int i = 0; i < CV_WORDS; i++)
        cv[i] = v[i] ^ v[i + 8];
}

static void store_cv(uint8_t *bytes, const uint32_t cv[CV_WORDS])
{
    for (int i = 0; i < CV_WORDS; i++)
        nd_store32(bytes + 4 * i, cv[i]);
}

/* Hash one chunk of 0 to 1024 bytes; `flags` go to its last block (ROOT if it is the only chunk). */
static void hash_chunk(const uint8_t *bytes, size_t length, uint64_t counter, uint32_t flags,
                       uint8_t *out)
{
    uint32_t cv[CV_WORDS], start = CHUNK_START;
    memcpy(cv, IV, sizeof cv);
    for (; length > BLOCK_BYTES; bytes += BLOCK_BYTES, length -= BLOCK_BYTES, start = 0)
        compress(cv, bytes, BLOCK_BYTES, counter, start);

    uint8_t last[BLOCK_BYTES] = {0};
    if (length > 0)
        memcpy(last, bytes, length);
    compress(cv, last, (uint32_t)length, counter, start | CHUNK_END | flags);
    store_cv(out, cv);
}

/* Hash the two chaining values in `pair` to their parent's; `out` may be `pair`. */
static void hash_parent(const uint8_t pair[BLOCK_BYTES], uint32_t flags, uint8_t *out)
{
    uint32_t cv[CV_WORDS];
    memcpy(cv, IV, sizeof cv);
    compress(cv, pair, BLOCK_BYTES, 0, PARENT | flags);
    store_cv(out, cv);
}

/* Hash as many of `count` whole inputs as fill vectors of the path; return how many were done. */
static size_t hash_in_lanes(enum nd_blake3_path path, const uint8_t *inputs, size_t stride,
                            size_t count, uint64_t counter, unsigned counter_step, uint8_t flags,
                            uint8_t first_flags, uint8_t last_flags, uint8_t *cvs)
{
    size_t done = 0;
#ifdef BLAKE3_HAS_LANES
    static const struct {
        enum nd_blake3_path path;
        size_t lanes;
        blake3_lanes_fn *hash;
    } widths[] = {
#ifdef BLAKE3_HAS_WIDE_LANES
        {ND_BLAKE3_LANES_16, 16, nd_blake3_lanes_16},
        {ND_BLAKE3_LANES_8, 8, nd_blake3_lanes_8},
#endif
        {ND_BLAKE3_LANES_4, 4, nd_blake3_lanes_4},
    };
    for (size_t i = 0; i < sizeof widths / sizeof *widths; i++)
        while (path >= widths[i].path && count - done >= widths[i].lanes) {
            widths[i].hash(inputs + done * stride, stride, stride / BLOCK_BYTES,
                           counter + done * counter_step, counter_step, flags, first_flags,
                           last_flags, cvs + done * CV_BYTES);
            done += widths[i].lanes;
        }
#else
    (void)path, (void)inputs, (void)stride, (void)count, (void)counter, (void)counter_step;
    (void)flags, (void)first_flags, (void)last_flags, (void)cvs;
#endif
    return done;
}

/* Hash a slab's 1 to 256 chunks, of which the last may be short; return their number. */
static size_t hash_chunks(enum nd_blake3_path path, const uint8_t *bytes, size_t length,
                          uint64_t counter, uint8_t *cvs)
{
    size_t whole = length / CHUNK_BYTES;
    size_t done = hash_in_lanes(path, bytes, CHUNK_BYTES, whole, counter, 1, 0, CHUNK_START,
                                CHUNK_END, cvs);
    size_t chunks = (length + CHUNK_BYTES - 1) / CHUNK_BYTES;
    for (; done < chunks; done++) {
        size_t offset = done * CHUNK_BYTES;
        size_t own = length - offset < CHUNK_BYTES ? length - offset : CHUNK_BYTES;
        hash_chunk(bytes + offset, own, counter + done, 0, cvs + done * CV_BYTES);
    }
    return chunks;
}

/* Join neighbours level by level, an odd last one moving up as it is, until at most `most` are left.
 *
 * That gives the tree of the paper, whose left subtrees are the largest powers of two.
 */
static size_t join_parents(enum nd_blake3_path path, uint8_t *cvs, size_t count, size_t most)
{
    while (count > most) {
        size_t pairs = count / 2;
        size_t done = hash_in_lanes(path, cvs, BLOCK_BYTES, pairs, 0, 0, PARENT, 0, 0, cvs);
        for (; done < pairs; done++)
            hash_parent(cvs + done * BLOCK_BYTES, 0, cvs + done * CV_BYTES);
        if (count % 2 == 1)
            memmove(cvs + pairs * CV_BYTES, cvs + (count - 1) * CV_BYTES, CV_BYTES);
        count = pairs + count % 2;
    }
    return count;
}

void nd_blake3_by(enum nd_blake3_path path, const uint8_t *data, size_t length,
                  uint8_t digest[ND_BLAKE3_BYTES])
{
    enum nd_blake3_path best = nd_blake3_best_path();
    if (path > best)
        path = best;
    if (length <= CHUNK_BYTES) {
        hash_chunk(data, length, 0, ROOT, digest);
        return;
    }
    uint8_t cvs[SLAB_CHUNKS * CV_BYTES];
    if (length <= SLAB_BYTES) {
        join_parents(path, cvs, hash_chunks(path, data, length, 0, cvs), 2);
        hash_parent(cvs, ROOT, digest);
        return;
    }
    uint8_t stack[STACK_DEPTH * CV_BYTES];
    size_t depth = 0, slabs = 0;
    for (size_t offset = 0; offset < length; offset += SLAB_BYTES, slabs++) {
        /* Every trailing zero bit of the number of slabs so far is a finished pair, but only a
         * following slab shows that a pair is not the root: hence the merge on arrival. */
        for (size_t rest = slabs; rest > 0 && rest % 2 == 0; rest /= 2, depth--)
            hash_parent(stack + (depth - 2) * CV_BYTES, 0, stack + (depth - 2) * CV_BYTES);
        size_t own = length - offset < SLAB_BYTES ? length - offset : SLAB_BYTES;
        size_t chunks = hash_chunks(path, data + offset, own, (uint64_t)slabs * SLAB_CHUNKS, cvs);
        join_parents(path, cvs, chunks, 1);
        memcpy(stack + depth++ * CV_BYTES, cvs, CV_BYTES);
    }
    for (; depth > 2; depth--)
        hash_parent(stack + (depth - 2) * CV_BYTES, 0, stack + (depth - 2) * CV_BYTES);
    hash_parent(stack, ROOT, digest);
}

enum nd_blake3_path nd_blake3_best_path(void)
{
#if defined(BLAKE3_HAS_WIDE_LANES)
    if (__builtin_cpu_supports("avx512f"))
        return ND_BLAKE3_LANES_16;
    return __builtin_cpu_supports("avx2") ? ND_BLAKE3_LANES_8 : ND_BLAKE3_LANES_4;
#elif defined(BLAKE3_HAS_LANES)
    return ND_BLAKE3_LANES_4;
#else
    return ND_BLAKE3_SCALAR;
#endif
}

void nd_blake3(const uint8_t *data, size_t length, uint8_t digest[ND_BLAKE3_BYTES])
{
    nd_blake3_by(ND_BLAKE3_LANES_16, data, length, digest);
}
