/* Where the chunks of a v6 blob lie in its plain address space, by its chunk-info array (spec blob §8). */
#ifndef ND_CHUNK_LAYOUT_H
#define ND_CHUNK_LAYOUT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define ND_BLOCK_BYTES 4096
#define ND_V1_RECORD_BYTES 16
#define ND_V2_RECORD_BYTES 24

typedef struct {
    uint64_t ordered;    /* records that ascend and do not overlap, counted up to the first that breaks */
    uint64_t holes;      /* runs of whole blocks before a chunk, that no chunk covers */
    uint64_t end_block;  /* first block behind the last ordered chunk */
} nd_chunk_layout;

/* A chunk in the plain address space. */
typedef struct {
    uint32_t block;
    uint32_t size; /* bytes, at least 1 */
} nd_chunk_place;

/* Whether records have a known size, and `length` bytes hold `count` of them. */
bool nd_chunk_records_fit(size_t length, uint32_t record_bytes, uint64_t count);

nd_chunk_place nd_chunk_place_of(const uint8_t *record, uint32_t record_bytes);

/* Fill `blocks[i]` with the first block of chunk i, for the ordered records.
 *
 * 0, or -1 if `record_bytes` is no record's size or the `length` bytes do not hold `count` of them.
 */
int nd_chunk_blocks(const uint8_t *records, size_t length, uint32_t record_bytes, uint64_t count,
                    uint32_t *blocks, nd_chunk_layout *layout);

/* Compare `count` records with what files say of the chunks: pairs of first block and size in bytes,
 * size 0: nothing is said. Returns the first chunk of which something else is said, `count` if there is
 * none, -1 as above.
 */
int64_t nd_chunk_claims(const uint8_t *records, size_t length, uint32_t record_bytes, uint64_t count,
                        const uint32_t *claims);

#endif
