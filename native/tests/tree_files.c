/* The bytes of the sample's one file (erofs_check.c): two chunks of one blob, by that blob's own records. */
#define _GNU_SOURCE
#include "../relay.h"

#include "../chunk_layout.h"
#include "check.h"
#include "erofs_sample.h"

#include <linux/fuse.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

enum { FILE_NID = 16, FILE_BYTES = BLOCK + 100, LINK_NID = 24 };
enum { INDEXES = META + 32 * FILE_NID + 88, BLOB_BYTES = 7 * BLOCK, RECORD = ND_V2_RECORD_BYTES };
#define HIGH (UINT64_C(2) << 56)
#define NODE (HIGH | FILE_NID)

/* The sample, its blob's records and a cache file. */
struct image {
    uint8_t *file, *records, *plain;
    nd_tree_counts counts;
    nd_read_counts reads;
    nd_tree_blob blob;
    nd_tree tree;
};

static void put_record(uint8_t *records, uint32_t chunk, uint64_t block, uint64_t size)
{
    const uint64_t word = block | (size - 1) << 32;
    memset(records + chunk * RECORD, 0, RECORD);
    memcpy(records + chunk * RECORD, &word, sizeof word);
}

static struct image *set_up(void)
{
    struct image *image = calloc(1, sizeof *image);
    if (image == NULL)
        abort();
    image->file = exactly(SAMPLE_BYTES);
    make_erofs_sample(image->file);
    image->records = exactly(CHUNKS * RECORD);
    for (uint32_t chunk = 0; chunk < CHUNKS; chunk++)
        put_record(image->records, chunk, chunk + 2, chunk == 4 ? 100 : BLOCK);
    image->plain = counted_bytes(BLOB_BYTES);
    image->tree = (nd_tree){.bytes = image->file,
                            .length = SAMPLE_BYTES,
                            .meta_offset = META,
                            .block_size = BLOCK,
                            .chunk_size = BLOCK,
                            .high = HIGH,
                            .counts = &image->counts,
                            .reads = &image->reads,
                            .blobs = &image->blob,
                            .blob_count = 1};
    return image;
}

static bool know(struct image *image, uint32_t source)
{
    return nd_tree_set_blob(&image->tree, 0, source, image->records, CHUNKS * RECORD, RECORD, CHUNKS);
}

static void tear_down(struct image *image)
{
    free(image->file);
    free(image->records);
    free(image->plain);
    free(image);
}

static int segments_of(const struct image *image, uint64_t nodeid, uint64_t offset, uint64_t length,
                       nd_segment *segments, unsigned room)
{
    uint64_t size = 0;
    int count = nd_tree_segments(&image->tree, nodeid, offset, length, &size, segments, room);
    CHECK(count < 0 || size == FILE_BYTES);
    return count;
}

static void a_file_is_found_in_its_blob(void)
{
    struct image *image = set_up();
    nd_segment found[2];
    CHECK(segments_of(image, NODE, 0, 1, found, 2) == ND_TREE_ASK); /* records are not known yet */
    CHECK(know(image, 9));
    CHECK(segments_of(image, NODE, 0, UINT64_MAX, found, 2) == 2);
    CHECK(found[0].file_offset == 0 && found[0].cache_offset == 5 * BLOCK);
    CHECK(found[0].length == BLOCK && found[0].chunk == 3 && found[0].source == 9);
    CHECK(found[1].file_offset == BLOCK && found[1].cache_offset == 6 * BLOCK);
    CHECK(found[1].length == 100 && found[1].chunk == 4 && found[1].source == 9);
    CHECK(segments_of(image, NODE, 5, BLOCK, found, 2) == 2);
    CHECK(found[0].file_offset == 5 && found[0].cache_offset == 5 * BLOCK + 5);
    CHECK(found[0].length == BLOCK - 5 && found[1].length == 5);
    CHECK(segments_of(image, NODE, BLOCK + 99, 7, found, 2) == 1 && found[0].length == 1);
    CHECK(segments_of(image, NODE, 5, BLOCK, found, 1) == ND_TREE_ASK); /* no room */
    const uint64_t none[] = {FILE_BYTES, FILE_BYTES + 1, INT64_MAX, UINT64_MAX};
    for (int i = 0; i < 4; i++)
        CHECK(segments_of(image, NODE, none[i], 4096, found, 2) == 0);
    CHECK(segments_of(image, NODE, 0, 0, found, 0) == 0);
    CHECK(segments_of(image, HIGH, 0, 1, found, 2) == ND_TREE_ASK);            /* a directory */
    CHECK(segments_of(image, HIGH | LINK_NID, 0, 1, found, 2) == ND_TREE_ASK); /* a link */
    CHECK(segments_of(image, FILE_NID, 0, 1, found, 2) == ND_TREE_ASK);        /* of no tree of ours */
    tear_down(image);
}

/* Bytes of another chunk might be where a file says, or none yet. */
static void a_file_that_the_blob_contradicts_is_pythons(void)
{
    static const struct {
        uint32_t chunk;
        uint64_t block, size;
    } others[] = {{3, 4, BLOCK}, {3, 5, BLOCK - 1}, {4, 6, 101}, {4, 6, BLOCK}};
    struct image *image = set_up();
    nd_segment found[2];
    CHECK(know(image, 0));
    for (size_t i = 0; i < sizeof others / sizeof *others; i++) {
        uint8_t *record = image->records + others[i].chunk * RECORD, before[RECORD];
        memcpy(before, record, RECORD);
        put_record(image->records, others[i].chunk, others[i].block, others[i].size);
        CHECK(segments_of(image, NODE, 0, FILE_BYTES, found, 2) == ND_TREE_ASK);
        memcpy(record, before, RECORD);
    }
    CHECK(segments_of(image, NODE, 0, FILE_BYTES, found, 2) == 2);
    image->file[INDEXES + 2] = 0; /* no device */
    CHECK(segments_of(image, NODE, 0, 1, found, 2) == ND_TREE_ASK);
    CHECK(segments_of(image, NODE, BLOCK, 1, found, 2) == 1);
    image->file[INDEXES + 2] = 2; /* one device only */
    CHECK(segments_of(image, NODE, 0, 1, found, 2) == ND_TREE_ASK);
    image->file[INDEXES + 2] = 1;
    image->file[INDEXES + 3] = 1; /* chunk 65539 */
    CHECK(segments_of(image, NODE, 0, 1, found, 2) == ND_TREE_ASK);
    tear_down(image);
}

static void records_are_taken_once_and_whole(void)
{
    struct image *image = set_up();
    const nd_tree *tree = &image->tree;
    const uint8_t *records = image->records;
    CHECK(!nd_tree_set_blob(tree, 1, 0, records, CHUNKS * RECORD, RECORD, CHUNKS));
    CHECK(!nd_tree_set_blob(tree, 0, 0, records, CHUNKS * RECORD - 1, RECORD, CHUNKS));
    CHECK(!nd_tree_set_blob(tree, 0, 0, records, CHUNKS * RECORD, RECORD, UINT64_MAX));
    CHECK(!nd_tree_set_blob(tree, 0, 0, records, CHUNKS * RECORD, 8, CHUNKS));
    CHECK(know(image, 0) && !know(image, 1) && image->blob.source == 0);
    tear_down(image);
}

static void the_relay_reads_files_of_a_tree(void)
{
    struct image *image = set_up();
    int wake = eventfd(0, EFD_NONBLOCK), cache = memfd_create("cache", 0), ends[2];
    CHECK(write(cache, image->plain, BLOB_BYTES) == BLOB_BYTES && pipe(ends) == 0);
    uint8_t bits = 0x10, watch = 0; /* chunk 3 */
    uint64_t hits = 0;
    nd_relay *relay = nd_relay_new(wake);
    int source = nd_relay_add_source(relay, cache, &bits, 1, CHUNKS, &watch, &hits);
    CHECK(know(image, (uint32_t)source));
    CHECK(nd_relay_add_tree(relay, 2, &image->tree) == 0);

    struct {
        struct fuse_in_header header;
        struct fuse_read_in read;
    } request = {.header = {.len = sizeof request, .opcode = FUSE_READ, .nodeid = NODE},
                 .read = {.offset = 10, .size = BLOCK - 10}};
    struct {
        struct fuse_out_header header;
        uint8_t bytes[2 * BLOCK];
    } reply;
    const uint8_t *bytes = (const uint8_t *)&request;
    CHECK(nd_relay_answer(relay, ends[1], bytes, sizeof request) == 1);
    CHECK(read(ends[0], &reply, sizeof reply) == (ssize_t)sizeof reply.header + BLOCK - 10);
    CHECK(reply.header.error == 0);
    CHECK(memcmp(reply.bytes, image->plain + 5 * BLOCK + 10, BLOCK - 10) == 0);
    CHECK(hits == 1 && image->reads.reads == 1 && image->reads.bytes == BLOCK - 10);

    request.read = (struct fuse_read_in){.offset = 0, .size = 2 * BLOCK};
    CHECK(nd_relay_answer(relay, ends[1], bytes, sizeof request) == 0); /* chunk 4 is absent */
    bits |= 0x08;
    CHECK(nd_relay_answer(relay, ends[1], bytes, sizeof request) == 1);
    CHECK(read(ends[0], &reply, sizeof reply) == (ssize_t)sizeof reply.header + FILE_BYTES);
    CHECK(memcmp(reply.bytes, image->plain + 5 * BLOCK, FILE_BYTES) == 0);

    CHECK(nd_relay_drop_source(relay, (unsigned)source) == 0);
    CHECK(nd_relay_answer(relay, ends[1], bytes, sizeof request) == 0);
    CHECK(nd_relay_drop_tree(relay, 2) == 0);
    CHECK(nd_relay_answer(relay, ends[1], bytes, sizeof request) == 0);
    CHECK(image->reads.reads == 2);
    nd_relay_free(relay);
    for (int i = 0; i < 2; i++)
        close(ends[i]);
    close(wake);
    close(cache);
    tear_down(image);
}

void test_tree_files(void)
{
    a_file_is_found_in_its_blob();
    a_file_that_the_blob_contradicts_is_pythons();
    records_are_taken_once_and_whole();
    the_relay_reads_files_of_a_tree();
}
