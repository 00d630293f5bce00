/* Chunk positions, in records made here. */
#include "../chunk_layout.h"

#include "check.h"

static void put64(uint8_t *bytes, uint64_t value)
{
    memcpy(bytes, &value, sizeof value);
}

static void put_v1(uint8_t *record, uint64_t offset, uint64_t size)
{
    size--;
    put64(record, (size & 0xfffff) << 44 | offset | size >> 20 << 8);
    put64(record + 8, UINT64_MAX);
}

static void put_v2(uint8_t *record, uint64_t offset, uint64_t size)
{
    put64(record, UINT64_C(0x1f) << 56 | (size - 1) << 32 | offset / ND_BLOCK_BYTES);
    put64(record + 8, UINT64_MAX);
    put64(record + 16, UINT64_MAX);
}

static void put(uint8_t *record, uint32_t record_bytes, uint64_t offset, uint64_t size)
{
    (record_bytes == ND_V1_RECORD_BYTES ? put_v1 : put_v2)(record, offset, size);
}

static void positions_are_filled_in(uint32_t bytes)
{
    uint8_t *records = exactly(4 * bytes);
    put(records, bytes, 0, 1);
    put(records + bytes, bytes, 4096, 16 << 20); /* needs the high bits of the size */
    put(records + 2 * bytes, bytes, 4096 + (16 << 20), 4097);
    put(records + 3 * bytes, bytes, UINT64_C(0xffffffff) * 4096, 4096); /* the last block there is */
    uint32_t blocks[4];
    nd_chunk_layout layout;
    CHECK(nd_chunk_blocks(records, 4 * bytes, bytes, 3, blocks, &layout) == 0);
    CHECK(layout.ordered == 3 && layout.holes == 0 && layout.end_block == 4099);
    CHECK(blocks[0] == 0 && blocks[1] == 1 && blocks[2] == 4097);
    CHECK(nd_chunk_blocks(records, 4 * bytes, bytes, 4, blocks, &layout) == 0);
    CHECK(layout.ordered == 4 && layout.holes == 1 && blocks[3] == UINT32_MAX);
    CHECK(layout.end_block == UINT64_C(1) << 32);
    free(records);
}

static void order_ends_at_the_first_record_that_breaks_it(uint32_t bytes)
{
    uint8_t *records = exactly(3 * bytes);
    uint32_t blocks[3];
    nd_chunk_layout layout;
    put(records, bytes, 4096, 4097);
    put(records + bytes, bytes, 8192, 1); /* inside the first */
    put(records + 2 * bytes, bytes, 1 << 20, 1);
    CHECK(nd_chunk_blocks(records, 3 * bytes, bytes, 3, blocks, &layout) == 0);
    CHECK(layout.ordered == 1 && layout.end_block == 3 && layout.holes == 1);
    put(records + bytes, bytes, 0, 1); /* before it */
    CHECK(nd_chunk_blocks(records, 3 * bytes, bytes, 3, blocks, &layout) == 0);
    CHECK(layout.ordered == 1);
    free(records);
}

static void records_must_be_there(void)
{
    uint8_t *records = exactly(48);
    uint32_t blocks[3];
    nd_chunk_layout layout;
    memset(records, 0, 48);
    CHECK(nd_chunk_blocks(records, 48, 16, 4, blocks, &layout) == -1);
    CHECK(nd_chunk_blocks(records, 47, 24, 2, blocks, &layout) == -1);
    CHECK(nd_chunk_blocks(records, 48, 16, UINT64_MAX, blocks, &layout) == -1);
    CHECK(nd_chunk_blocks(records, 48, 0, 0, blocks, &layout) == -1);
    CHECK(nd_chunk_blocks(records, 48, 80, 0, blocks, &layout) == -1);
    CHECK(nd_chunk_blocks(records, 48, 24, 0, blocks, &layout) == 0 && layout.ordered == 0);
    free(records);
}

static void claims_are_compared(uint32_t bytes)
{
    uint8_t *records = exactly(3 * bytes);
    put(records, bytes, 0, 700);
    put(records + bytes, bytes, 4096, 16 << 20);
    put(records + 2 * bytes, bytes, 4096 + (16 << 20), 4097);
    uint32_t claims[] = {0, 700, 7, 0, 4097, 4097}; /* nothing is said of the second */
    CHECK(nd_chunk_claims(records, 3 * bytes, bytes, 3, claims) == 3);
    claims[3] = 16 << 20;
    CHECK(nd_chunk_claims(records, 3 * bytes, bytes, 3, claims) == 1);
    claims[2] = 1;
    CHECK(nd_chunk_claims(records, 3 * bytes, bytes, 3, claims) == 3);
    claims[5]--;
    CHECK(nd_chunk_claims(records, 3 * bytes, bytes, 3, claims) == 2);
    CHECK(nd_chunk_claims(records, 3 * bytes, bytes, 2, claims) == 2);
    CHECK(nd_chunk_claims(records, 3 * bytes, bytes, 4, claims) == -1);
    free(records);
}

void test_chunk_layout(void)
{
    positions_are_filled_in(ND_V1_RECORD_BYTES);
    positions_are_filled_in(ND_V2_RECORD_BYTES);
    order_ends_at_the_first_record_that_breaks_it(ND_V1_RECORD_BYTES);
    order_ends_at_the_first_record_that_breaks_it(ND_V2_RECORD_BYTES);
    records_must_be_there();
    claims_are_compared(ND_V1_RECORD_BYTES);
    claims_are_compared(ND_V2_RECORD_BYTES);
}
