/* The bytes of a v6 image's files, by the chunk indexes behind their inodes (spec rafs-v6 §11.1).
 *
 * A chunk index names a chunk and says where it lies. The chunk's ready bit says that those bytes are
 * there that the blob's own record means: so index and record are compared before the bit is believed.
 */
#include "tree_v6.h"

#include "bytes.h"
#include "chunk_layout.h"

#define CHUNK_INDEX_BYTES 8u

enum { CI_LOW = 0, CI_DEVICE = 2, CI_HIGH = 3, CI_BLOCK = 4 };

bool nd_tree_set_blob(const nd_tree *tree, uint32_t number, uint32_t source, const uint8_t *records,
                      size_t length, uint32_t record_bytes, uint64_t count)
{
    if (number >= tree->blob_count || !nd_chunk_records_fit(length, record_bytes, count))
        return false;
    nd_tree_blob *blob = &tree->blobs[number];
    if (blob->records != NULL)
        return false; /* threads may look at it */
    blob->source = source;
    blob->record_bytes = record_bytes;
    blob->count = count;
    __atomic_store_n(&blob->records, records, __ATOMIC_RELEASE);
    return true;
}

/* Where a chunk of `size` bytes begins. False: it is not known, or others say something else of it. */
static bool find_chunk(const nd_tree *tree, const uint8_t *index, uint64_t size, nd_segment *segment)
{
    uint32_t device = index[CI_DEVICE];
    if (device == 0 || device > tree->blob_count)
        return false;
    const nd_tree_blob *blob = &tree->blobs[device - 1];
    const uint8_t *records = __atomic_load_n(&blob->records, __ATOMIC_ACQUIRE);
    uint32_t chunk = nd_load16(index + CI_LOW) | (uint32_t)index[CI_HIGH] << 16;
    if (records == NULL || chunk >= blob->count)
        return false;
    nd_chunk_place place = nd_chunk_place_of(records + (uint64_t)chunk * blob->record_bytes,
                                             blob->record_bytes);
    uint64_t offset = (uint64_t)nd_load32(index + CI_BLOCK) * tree->block_size;
    if (place.size != size || (uint64_t)place.block * ND_BLOCK_BYTES != offset)
        return false;
    *segment = (nd_segment){.cache_offset = offset, .chunk = chunk, .source = blob->source};
    return true;
}

int nd_tree_segments(const nd_tree *tree, uint64_t nodeid, uint64_t offset, uint64_t length,
                     uint64_t *size, nd_segment *segments, unsigned room)
{
    const uint8_t *indexes;
    if (!nd_tree_find_file(tree, nodeid, size, &indexes))
        return ND_TREE_ASK;
    uint64_t position = offset < *size ? offset : *size;
    uint64_t end = position + (length < *size - position ? length : *size - position);
    unsigned count = 0;
    while (position < end) {
        uint64_t number = position / tree->chunk_size, begin = number * tree->chunk_size;
        uint64_t left = *size - begin, bytes = left < tree->chunk_size ? left : tree->chunk_size;
        if (count == room ||
            !find_chunk(tree, indexes + number * CHUNK_INDEX_BYTES, bytes, &segments[count]))
            return ND_TREE_ASK;
        nd_segment *segment = &segments[count++];
        uint64_t reached = begin + bytes < end ? begin + bytes : end;
        segment->file_offset = position;
        segment->cache_offset += position - begin;
        segment->length = (uint32_t)(reached - position);
        position = reached;
    }
    return (int)count;
}
