/* One pass over chunk-info records: positions, order and holes. */
#include "chunk_layout.h"

#include "bytes.h"

/* A chunk in the plain address space: whole blocks, the last one maybe in part. */
struct run {
    uint32_t block;
    uint64_t size;   /* bytes */
    uint64_t blocks; /* 1 to 4096 */
};

static struct run run_of(const uint8_t *record, uint32_t record_bytes)
{
    uint64_t word = nd_load64(record), size;
    uint32_t block;
    if (record_bytes == ND_V1_RECORD_BYTES) { /* size - 1: low 20 bits at 44, high 4 bits at 8 */
        block = (uint32_t)(word >> 12);
        size = ((word >> 44) | (word & 0xf00) << 12) + 1;
    } else {
        block = (uint32_t)word;
        size = (word >> 32 & 0xffffff) + 1;
    }
    return (struct run){block, size, (size + ND_BLOCK_BYTES - 1) / ND_BLOCK_BYTES};
}

static bool holds(size_t length, uint32_t record_bytes, uint64_t count)
{
    return (record_bytes == ND_V1_RECORD_BYTES || record_bytes == ND_V2_RECORD_BYTES) &&
           count <= length / record_bytes;
}

int nd_chunk_blocks(const uint8_t *records, size_t length, uint32_t record_bytes, uint64_t count,
                    uint32_t *blocks, nd_chunk_layout *layout)
{
    *layout = (nd_chunk_layout){0};
    if (!holds(length, record_bytes, count))
        return -1;
    for (uint64_t i = 0; i < count; i++) {
        struct run run = run_of(records + i * record_bytes, record_bytes);
        if (run.block < layout->end_block)
            break;
        layout->holes += run.block > layout->end_block;
        layout->end_block = run.block + run.blocks;
        layout->ordered = i + 1;
        blocks[i] = run.block;
    }
    return 0;
}

int64_t nd_chunk_claims(const uint8_t *records, size_t length, uint32_t record_bytes, uint64_t count,
                        const uint32_t *claims)
{
    if (!holds(length, record_bytes, count))
        return -1;
    for (uint64_t i = 0; i < count; i++) {
        uint32_t block = claims[2 * i], size = claims[2 * i + 1];
        struct run run = run_of(records + i * record_bytes, record_bytes);
        if (size != 0 && (block != run.block || size != run.size))
            return (int64_t)i;
    }
    return (int64_t)count;
}
