/* One pass over chunk-info records: positions, order and holes. */
#include "chunk_layout.h"

#include "bytes.h"

nd_chunk_place nd_chunk_place_of(const uint8_t *record, uint32_t record_bytes)
{
    uint64_t word = nd_load64(record);
    if (record_bytes == ND_V1_RECORD_BYTES) /* size - 1: low 20 bits at 44, high 4 bits at 8 */
        return (nd_chunk_place){(uint32_t)(word >> 12),
                                (uint32_t)((word >> 44) | (word & 0xf00) << 12) + 1};
    return (nd_chunk_place){(uint32_t)word, (uint32_t)(word >> 32 & 0xffffff) + 1};
}

bool nd_chunk_records_fit(size_t length, uint32_t record_bytes, uint64_t count)
{
    return (record_bytes == ND_V1_RECORD_BYTES || record_bytes == ND_V2_RECORD_BYTES) &&
           count <= length / record_bytes;
}

int nd_chunk_blocks(const uint8_t *records, size_t length, uint32_t record_bytes, uint64_t count,
                    uint32_t *blocks, nd_chunk_layout *layout)
{
    *layout = (nd_chunk_layout){0};
    if (!nd_chunk_records_fit(length, record_bytes, count))
        return -1;
    for (uint64_t i = 0; i < count; i++) {
        nd_chunk_place place = nd_chunk_place_of(records + i * record_bytes, record_bytes);
        if (place.block < layout->end_block)
            break;
        layout->holes += place.block > layout->end_block;
        layout->end_block = (uint64_t)place.block + (place.size + ND_BLOCK_BYTES - 1) / ND_BLOCK_BYTES;
        layout->ordered = i + 1;
        blocks[i] = place.block;
    }
    return 0;
}

int64_t nd_chunk_claims(const uint8_t *records, size_t length, uint32_t record_bytes, uint64_t count,
                        const uint32_t *claims)
{
    if (!nd_chunk_records_fit(length, record_bytes, count))
        return -1;
    for (uint64_t i = 0; i < count; i++) {
        uint32_t block = claims[2 * i], size = claims[2 * i + 1];
        nd_chunk_place place = nd_chunk_place_of(records + i * record_bytes, record_bytes);
        if (size != 0 && (block != place.block || size != place.size))
            return (int64_t)i;
    }
    return (int64_t)count;
}
