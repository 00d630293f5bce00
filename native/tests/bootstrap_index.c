/* Walks over chunk records, on bootstraps made here. */
#include "../bootstrap_index.h"

#include "check.h"

#include <sys/stat.h>

#define TABLE 8192
#define FIRST_INODE 8448
#define LENGTH 16384

static void put16(uint8_t *bytes, uint16_t value)
{
    memcpy(bytes, &value, sizeof value);
}

static void put32(uint8_t *bytes, uint32_t value)
{
    memcpy(bytes, &value, sizeof value);
}

static void put64(uint8_t *bytes, uint64_t value)
{
    memcpy(bytes, &value, sizeof value);
}

static void put_chunk(uint8_t *record, uint32_t blob_index, uint32_t index)
{
    memset(record, 0xcc, ND_CHUNK_RECORD_BYTES);
    put32(record + 32, blob_index);
    put32(record + 72, index);
}

/* Write an inode record for slot `slot` at `at`; returns where its chunk records begin. */
static size_t put_inode(uint8_t *file, unsigned slot, size_t at, uint32_t mode, uint32_t chunks,
                        uint16_t name_size, uint64_t xattr_size)
{
    put32(file + TABLE + 4 * slot, (uint32_t)(at >> 3));
    memset(file + at, 0, 128);
    put32(file + at + 60, mode);
    put64(file + at + 80, xattr_size ? 4 : 0);
    put32(file + at + 96, chunks);
    put16(file + at + 100, name_size);
    at += 128 + ((name_size + 7u) & ~7u);
    if (xattr_size) {
        put64(file + at, xattr_size);
        at += 8 + (size_t)((xattr_size + 7) & ~UINT64_C(7));
    }
    return at;
}

static uint8_t *blank(void)
{
    uint8_t *file = exactly(LENGTH);
    memset(file, 0, LENGTH);
    return file;
}

static void v5_finds_records_behind_names_and_xattrs(void)
{
    uint8_t *file = blank();
    size_t first = put_inode(file, 0, FIRST_INODE, S_IFREG | 0644, 2, 3, 0);
    put_chunk(file + first, 0, 1);
    put_chunk(file + first + 80, 1, 0);
    size_t second = put_inode(file, 1, FIRST_INODE + 512, S_IFREG, 2, 9, 13);
    put_chunk(file + second, 0, 0);
    put_chunk(file + second + 80, 0, 1); /* a duplicate: the first record of an index stays */
    put_inode(file, 2, FIRST_INODE + 1024, S_IFDIR, 77, 1, 0);

    uint32_t records[3];
    nd_v5_walk walk;
    CHECK(nd_index_v5_chunks(file, LENGTH, TABLE, 3, 0, records, 3, &walk) == 0);
    CHECK(records[0] == second >> 3 && records[1] == first >> 3 && records[2] == ND_NO_RECORD);
    CHECK(walk.chunk_count == 2 && walk.malformed_inodes == 0);
    CHECK(nd_index_v5_chunks(file, LENGTH, TABLE, 3, 1, NULL, 0, &walk) == 0);
    CHECK(walk.chunk_count == 1);
    free(file);
}

static void v5_passes_over_malformed_inodes(void)
{
    uint8_t *file = blank();
    size_t good = put_inode(file, 0, FIRST_INODE, S_IFREG, 1, 1, 0);
    put_chunk(file + good, 0, 0);
    put_inode(file, 1, FIRST_INODE + 256, S_IFREG, 5000, 1, 0);          /* chunks past the end */
    put_inode(file, 2, FIRST_INODE + 512, S_IFREG, UINT32_MAX, 65535, 0);
    put_inode(file, 3, FIRST_INODE + 768, S_IFREG, 1, 1, 8);
    put64(file + FIRST_INODE + 768 + 136, UINT64_MAX - 3);                /* xattr size */
    put_inode(file, 4, LENGTH - 128, S_IFREG, 0, 1, 0);                   /* name past the end */
    put32(file + TABLE + 4 * 5, UINT32_MAX);                              /* far outside */
    put32(file + TABLE + 4 * 6, (LENGTH - 120) >> 3);                     /* half outside */
    put32(file + TABLE + 4 * 7, 0);                                       /* the superblock */

    uint32_t record;
    nd_v5_walk walk;
    CHECK(nd_index_v5_chunks(file, LENGTH, TABLE, 8, 0, &record, 1, &walk) == 0);
    CHECK(record == good >> 3 && walk.chunk_count == 1 && walk.malformed_inodes == 7);
    free(file);
}

static void v5_bounds_index_and_work(void)
{
    uint8_t *file = blank();
    size_t first = put_inode(file, 0, FIRST_INODE, S_IFREG, 2, 1, 0);
    put_chunk(file + first, 0, ND_CHUNK_COUNT_MAX);
    put_chunk(file + first + 80, 0, ND_CHUNK_COUNT_MAX - 1);
    nd_v5_walk walk;
    CHECK(nd_index_v5_chunks(file, LENGTH, TABLE, 1, 0, NULL, 0, &walk) == 0);
    CHECK(walk.chunk_count == ND_CHUNK_COUNT_MAX);

    put_inode(file, 0, FIRST_INODE, S_IFREG, 60, 1, 0);
    for (unsigned slot = 1; slot < 60; slot++) /* one record of 60 chunks, named sixty times */
        put32(file + TABLE + 4 * slot, FIRST_INODE >> 3);
    CHECK(nd_index_v5_chunks(file, LENGTH, TABLE, 3, 0, NULL, 0, &walk) == 0);
    CHECK(nd_index_v5_chunks(file, LENGTH, TABLE, 60, 0, NULL, 0, &walk) == -1);
    free(file);
}

static void v5_table_must_lie_in_the_file(void)
{
    uint8_t *file = blank();
    nd_v5_walk walk;
    CHECK(nd_index_v5_chunks(file, LENGTH, LENGTH - 4, 1, 0, NULL, 0, &walk) == 0);
    CHECK(nd_index_v5_chunks(file, LENGTH, LENGTH - 4, 2, 0, NULL, 0, &walk) == -1);
    CHECK(nd_index_v5_chunks(file, LENGTH, UINT64_MAX, 1, 0, NULL, 0, &walk) == -1);
    CHECK(nd_index_v5_chunks(file, LENGTH, 0, UINT64_MAX / 4 + 2, 0, NULL, 0, &walk) == -1);
    free(file);
}

static void table_keeps_the_first_record_of_an_index(void)
{
    uint8_t *table = exactly(8 + 4 * ND_CHUNK_RECORD_BYTES);
    put_chunk(table + 8, 7, 2);
    put_chunk(table + 88, 0, 2);
    put_chunk(table + 168, 0, 2);
    put_chunk(table + 248, 0, 3); /* not below the count */
    uint32_t records[3];
    CHECK(nd_index_chunk_table(table, 328, 8, 320, 0, records, 3) == 0);
    CHECK(records[0] == ND_NO_RECORD && records[1] == ND_NO_RECORD && records[2] == 1);
    CHECK(nd_index_chunk_table(table, 328, 8, 0, 0, records, 3) == 0 && records[2] == ND_NO_RECORD);
    free(table);
}

static void table_must_be_whole_records_in_the_file(void)
{
    uint8_t *table = exactly(160);
    memset(table, 0, 160);
    uint32_t record;
    CHECK(nd_index_chunk_table(table, 160, 0, 160, 0, &record, 1) == 0);
    CHECK(nd_index_chunk_table(table, 160, 80, 160, 0, &record, 1) == -1);
    CHECK(nd_index_chunk_table(table, 160, 0, 81, 0, &record, 1) == -1);
    CHECK(nd_index_chunk_table(table, 160, UINT64_MAX - 79, 160, 0, &record, 1) == -1);
    CHECK(nd_index_chunk_table(table, 160, 0, UINT64_MAX - UINT64_MAX % 80, 0, &record, 1) == -1);
    free(table);
}

void test_bootstrap_index(void)
{
    v5_finds_records_behind_names_and_xattrs();
    v5_passes_over_malformed_inodes();
    v5_bounds_index_and_work();
    v5_table_must_lie_in_the_file();
    table_keeps_the_first_record_of_an_index();
    table_must_be_whole_records_in_the_file();
}
