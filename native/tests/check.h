/* The tests' one macro, and buffers that end where they say, so that AddressSanitizer sees every overrun. */
#ifndef ND_CHECK_H
#define ND_CHECK_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

extern unsigned failures, checks;

#define CHECK(condition)                                                           \
    do {                                                                           \
        __atomic_fetch_add(&checks, 1, __ATOMIC_RELAXED);                          \
        if (!(condition)) {                                                        \
            __atomic_fetch_add(&failures, 1, __ATOMIC_RELAXED);                    \
            fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition); \
        }                                                                          \
    } while (0)

/* Memory of exactly `size` bytes; ends the run if there is none. */
static inline uint8_t *exactly(size_t size)
{
    uint8_t *bytes = malloc(size ? size : 1);
    if (bytes == NULL)
        abort();
    return bytes;
}

static inline uint8_t *copy_of(const void *source, size_t size)
{
    uint8_t *bytes = exactly(size);
    memcpy(bytes, source, size);
    return bytes;
}

/* The next number of a fixed sequence: a failing run can be run again. */
static inline uint32_t next_random(uint64_t *state)
{
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(*state >> 33);
}

/* Bytes 0, 1, ... 250, 0, 1, ...: the input of BLAKE3's published test vectors. */
static inline uint8_t *counted_bytes(size_t size)
{
    uint8_t *bytes = exactly(size);
    for (size_t i = 0; i < size; i++)
        bytes[i] = (uint8_t)(i % 251);
    return bytes;
}

void test_blake3(void);
void test_bootstrap_index(void);
void test_chunk_layout(void);
void test_chunk_map(void);
void test_cipher(void);
void test_codec(void);
void test_crc32c(void);
void test_cut_maps(void);
void test_decode(void);
void test_erofs_check(void);
void test_inflate(void);
void test_mutations(void);
void test_relay(void);
void test_tree_files(void);
void test_tree_v6(void);

#endif
