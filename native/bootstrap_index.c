/* Walks over chunk records: of a v6 chunk table, and of the inodes of a v5 bootstrap. */
#include "bootstrap_index.h"

#include "bytes.h"

#include <sys/stat.h>

/* Chunk record, 80 bytes (spec rafs-v5 §7). */
enum { CHUNK_BLOB_INDEX = 32, CHUNK_INDEX = 72 };

/* v5 inode record, 128 bytes and what follows (spec rafs-v5 §5). */
enum {
    INODE_MODE = 60,
    INODE_FLAGS = 80,
    INODE_CHILD_COUNT = 96,
    INODE_NAME_SIZE = 100,
    INODE_SYMLINK_SIZE = 102,
    INODE_BYTES = 128,
};

#define INODE_HAS_XATTR 0x4
#define SUPERBLOCK_BYTES 8192
#define SLOT_SHIFT_BITS 3 /* the offset table counts in 8 bytes */

static uint64_t align8(uint64_t size)
{
    return (size + 7) & ~UINT64_C(7);
}

static void forget_all(uint32_t *records, size_t chunk_count)
{
    for (size_t i = 0; i < chunk_count; i++)
        records[i] = ND_NO_RECORD;
}

int nd_index_chunk_table(const uint8_t *bootstrap, size_t length, uint64_t offset, uint64_t size,
                         uint32_t blob_index, uint32_t *records, size_t chunk_count)
{
    forget_all(records, chunk_count);
    if (!nd_within(offset, size, 0, length) || size % ND_CHUNK_RECORD_BYTES != 0 ||
        size / ND_CHUNK_RECORD_BYTES >= ND_NO_RECORD)
        return -1;
    uint32_t number = 0;
    for (uint64_t at = offset; at < offset + size; at += ND_CHUNK_RECORD_BYTES, number++) {
        uint32_t index = nd_load32(bootstrap + at + CHUNK_INDEX);
        if (nd_load32(bootstrap + at + CHUNK_BLOB_INDEX) == blob_index && index < chunk_count &&
            records[index] == ND_NO_RECORD)
            records[index] = number;
    }
    return 0;
}

/* A run of chunk records within the file. */
struct chunk_run {
    uint64_t offset;
    uint32_t count;
};

/* Find the chunk records behind an inode record; false if any of it lies outside the file.
 *
 * No sum can overflow: `offset` is below 2^35, each part below 2^39, the xattr size is checked first.
 */
static bool find_chunks(const uint8_t *bootstrap, size_t length, uint64_t offset,
                        struct chunk_run *run)
{
    *run = (struct chunk_run){0};
    if (offset < SUPERBLOCK_BYTES || !nd_within(offset, INODE_BYTES, 0, length))
        return false;
    const uint8_t *inode = bootstrap + offset;
    if (!S_ISREG(nd_load32(inode + INODE_MODE)))
        return true;
    uint64_t at = offset + INODE_BYTES + align8(nd_load16(inode + INODE_NAME_SIZE)) +
                  align8(nd_load16(inode + INODE_SYMLINK_SIZE));
    if (nd_load64(inode + INODE_FLAGS) & INODE_HAS_XATTR) {
        if (!nd_within(at, sizeof(uint64_t), 0, length))
            return false;
        uint64_t xattr_size = nd_load64(bootstrap + at);
        at += sizeof(uint64_t);
        if (!nd_within(at, xattr_size, 0, length))
            return false;
        at += align8(xattr_size);
    }
    *run = (struct chunk_run){at, nd_load32(inode + INODE_CHILD_COUNT)};
    return nd_within(at, (uint64_t)run->count * ND_CHUNK_RECORD_BYTES, 0, length);
}

int nd_index_v5_chunks(const uint8_t *bootstrap, size_t length, uint64_t table_offset,
                       uint64_t entries, uint32_t blob_index, uint32_t *records,
                       size_t chunk_count, nd_v5_walk *walk)
{
    *walk = (nd_v5_walk){0};
    forget_all(records, chunk_count);
    if (entries > UINT32_MAX || !nd_within(table_offset, entries * sizeof(uint32_t), 0, length))
        return -1;
    uint64_t chunks_left = length / ND_CHUNK_RECORD_BYTES;
    for (uint64_t slot = 0; slot < entries; slot++) {
        struct chunk_run run;
        uint64_t offset = (uint64_t)nd_load32(bootstrap + table_offset + slot * sizeof(uint32_t))
                          << SLOT_SHIFT_BITS;
        if (!find_chunks(bootstrap, length, offset, &run)) {
            walk->malformed_inodes++;
            continue;
        }
        if (run.count > chunks_left)
            return -1;
        chunks_left -= run.count;
        for (uint32_t i = 0; i < run.count; i++) {
            uint64_t at = run.offset + (uint64_t)i * ND_CHUNK_RECORD_BYTES;
            uint32_t index = nd_load32(bootstrap + at + CHUNK_INDEX);
            if (nd_load32(bootstrap + at + CHUNK_BLOB_INDEX) != blob_index ||
                index >= ND_CHUNK_COUNT_MAX)
                continue;
            if (index >= walk->chunk_count)
                walk->chunk_count = index + 1;
            if (index < chunk_count && records[index] == ND_NO_RECORD)
                records[index] = (uint32_t)(at >> SLOT_SHIFT_BITS);
        }
    }
    return 0;
}
