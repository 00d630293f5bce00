/* Where a bootstrap keeps the chunk records of one blob (spec rafs-v5 §4.1, §5, §7, rafs-v6 §11.2).
 *
 * `bootstrap` is the whole mapped file, read once from front to back as far as its own order allows.
 * Filled arrays hold ND_NO_RECORD where the bootstrap has no record for a chunk index. Of several
 * records for one index the first is kept; an index outside the array is passed over.
 */
#ifndef ND_BOOTSTRAP_INDEX_H
#define ND_BOOTSTRAP_INDEX_H

#include <stddef.h>
#include <stdint.h>

#define ND_CHUNK_RECORD_BYTES 80
#define ND_CHUNK_COUNT_MAX (1u << 24) /* spec rafs-v5 §10, rafs-v6 §6.1 */
#define ND_NO_RECORD UINT32_MAX

/* v6: fill `records[chunk_index]` with the number of the record in the chunk table at `offset`.
 *
 * 0, or -1 if the table is not `size` bytes of whole records within the bootstrap.
 */
int nd_index_chunk_table(const uint8_t *bootstrap, size_t length, uint64_t offset, uint64_t size,
                         uint32_t blob_index, uint32_t *records, size_t chunk_count);

/* What a walk over the inodes of a v5 bootstrap met. */
typedef struct {
    uint32_t chunk_count;      /* largest chunk index of the blob + 1, 0 if it has no chunk */
    uint32_t malformed_inodes; /* passed over: record outside the file, or chunks that cross its end */
} nd_v5_walk;

/* v5: fill `records[chunk_index]` with the record's offset in the file, divided by 8.
 *
 * `records` may be NULL with a chunk_count of 0, to learn from `walk` how long it must be. 0, or -1
 * if the inode offset table does not lie in the bootstrap, or if more chunk records are named than fit
 * in it: then inodes overlap, and walking on could take hours.
 */
int nd_index_v5_chunks(const uint8_t *bootstrap, size_t length, uint64_t table_offset,
                       uint64_t entries, uint32_t blob_index, uint32_t *records,
                       size_t chunk_count, nd_v5_walk *walk);

#endif
