/* A small v6 tree made here, and what becomes of it when one thing in it changes. */
#include "../erofs_check.h"

#include "check.h"
#include "erofs_sample.h"

#include <sys/stat.h>

enum {
    ROOT = META,
    FILE_INODE = META + 32 * 16,
    LINK = META + 32 * 24,
    DEVICE = META + 32 * 28,
    SUB = META + 32 * 32,
    SUB_NAMES = 2 * BLOCK,
};

static void put16(uint8_t *at, uint16_t value)
{
    memcpy(at, &value, sizeof value);
}

static void put32(uint8_t *at, uint32_t value)
{
    memcpy(at, &value, sizeof value);
}

static void put64(uint8_t *at, uint64_t value)
{
    memcpy(at, &value, sizeof value);
}

static void put_extended(uint8_t *at, uint16_t layout, uint16_t mode, uint64_t size, uint32_t u)
{
    put16(at, (uint16_t)(layout << 1 | 1));
    put16(at + 4, mode);
    put64(at + 8, size);
    put32(at + 16, u);
}

static void put_entry(uint8_t *block, uint32_t number, uint64_t nid, uint16_t name_at, uint8_t type)
{
    put64(block + 12 * number, nid);
    put16(block + 12 * number + 8, name_at);
    block[12 * number + 10] = type;
}

static void put_index(uint8_t *at, uint8_t device, uint16_t chunk, uint32_t block)
{
    put16(at, chunk);
    at[2] = device;
    put32(at + 4, block);
}

void make_erofs_sample(uint8_t *file)
{
    memset(file, 0, SAMPLE_BYTES);
    uint8_t *names = file + ROOT + 64;
    put_extended(file + ROOT, 2, S_IFDIR | 0755, 6 * 12 + 14, 0);
    put_entry(names, 0, 0, 72, 2);
    put_entry(names, 1, 0, 73, 2);
    put_entry(names, 2, 28, 75, 3);
    put_entry(names, 3, 16, 78, 1);
    put_entry(names, 4, 24, 82, 7);
    put_entry(names, 5, 32, 84, 2);
    memcpy(names + 72, "...devfilelnzz", 14);

    uint8_t *inode = file + FILE_INODE; /* xattr area of one entry: 12 + 4 * 3 bytes */
    put_extended(inode, 4, S_IFREG | 0644, BLOCK + 100, 0x20);
    put16(inode + 2, 4);
    inode[64 + 12] = 3; /* "user.abc" = "value" */
    inode[64 + 13] = 1;
    put16(inode + 64 + 14, 5);
    memcpy(inode + 64 + 16, "abcvalue", 8);
    put_index(inode + 88, 1, 3, 5);
    put_index(inode + 96, 1, 4, 6);

    put16(file + LINK, 2 << 1); /* compact */
    put16(file + LINK + 4, S_IFLNK | 0777);
    put32(file + LINK + 8, 6);
    memcpy(file + LINK + 32, "target", 6);

    put_extended(file + DEVICE, 0, S_IFCHR | 0600, 0, 0x103);

    put_extended(file + SUB, 0, S_IFDIR | 0700, BLOCK, SUB_NAMES / BLOCK);
    put_entry(file + SUB_NAMES, 0, 32, 36, 2);
    put_entry(file + SUB_NAMES, 1, 0, 37, 2);
    put_entry(file + SUB_NAMES, 2, 16, 39, 1); /* a second name of the file */
    memcpy(file + SUB_NAMES + 36, "...hard", 7);
}

const nd_erofs_image erofs_sample_image = {
    .meta_offset = META, .root_nid = 0, .chunk_size = BLOCK, .blob_count = 1};
const nd_erofs_blob erofs_sample_blob = {.blocks = 7, .chunks = CHUNKS};

static int check(const uint8_t *file, size_t size, nd_erofs_claim *claims, nd_erofs_walk *walk)
{
    memset(claims, 0, CHUNKS * sizeof *claims);
    return nd_erofs_check(file, size, &erofs_sample_image, &erofs_sample_blob, claims, walk);
}

static void a_tree_in_order_is_fine(void)
{
    uint8_t *file = exactly(SAMPLE_BYTES);
    nd_erofs_claim claims[CHUNKS];
    nd_erofs_walk walk;
    make_erofs_sample(file);
    CHECK(check(file, SAMPLE_BYTES, claims, &walk) == ND_EROFS_FINE);
    CHECK(walk.inodes == 5 && walk.with_xattrs == 1);
    CHECK(claims[3].block == 5 && claims[3].size == BLOCK);
    CHECK(claims[4].block == 6 && claims[4].size == 100);
    CHECK(claims[0].size == 0);
    free(file);
}

/* What changes: `size` bytes of `value`, little-endian, at `at`. */
static const struct change {
    uint32_t at, size;
    uint64_t value;
    int fault;
    uint64_t nid; /* that is named */
} CHANGES[] = {
    /* inodes */
    {ROOT + 4, 2, S_IFREG | 0755, ND_EROFS_INODE, 0},
    {ROOT, 2, 4 << 1 | 1, ND_EROFS_INODE, 0},
    {ROOT, 2, 0x12 << 1 | 1, ND_EROFS_INODE, 0},
    {FILE_INODE, 2, 0 << 1 | 1, ND_EROFS_INODE, 16},
    {FILE_INODE + 4, 2, 0xf000 | 0644, ND_EROFS_INODE, 16},
    {FILE_INODE + 8, 8, UINT64_MAX, ND_EROFS_INODE, 16},
    {FILE_INODE + 8, 8, INT64_MAX, ND_EROFS_OUTSIDE, 16},
    {FILE_INODE + 40, 4, 1000000000, ND_EROFS_INODE, 16},
    {FILE_INODE + 16, 4, 0x00, ND_EROFS_INODE, 16},
    {FILE_INODE + 16, 4, 0x60, ND_EROFS_INODE, 16},
    {DEVICE, 2, 0 << 1, ND_EROFS_INODE, 28}, /* compact, with a device number */
    {SUB + 16, 4, 3, ND_EROFS_OUTSIDE, 32},
    {SUB + 8, 8, 2 * BLOCK, ND_EROFS_OUTSIDE, 32},
    /* directories */
    {ROOT + 64 + 8, 2, 71, ND_EROFS_DIRECTORY, 0},
    {ROOT + 64 + 8, 2, 0, ND_EROFS_DIRECTORY, 0},
    {ROOT + 64 + 20, 2, 0xfff0, ND_EROFS_DIRECTORY, 0},
    {ROOT + 64 + 32, 2, 73, ND_EROFS_DIRECTORY, 0}, /* an empty name before it */
    {ROOT + 64 + 76, 1, 'a', ND_EROFS_FINE, 0}, /* "dav" is still before "file" */
    {ROOT + 64 + 78, 1, 'a', ND_EROFS_DIRECTORY, 0}, /* "aile" is not */
    {ROOT + 64 + 79, 1, '/', ND_EROFS_DIRECTORY, 0},
    {ROOT + 64 + 79, 1, 0, ND_EROFS_DIRECTORY, 0},
    {ROOT + 64 + 3 * 12 + 10, 1, 7, ND_EROFS_DIRECTORY, 16},
    {ROOT + 64 + 3 * 12, 8, UINT64_C(1) << 60, ND_EROFS_OUTSIDE, UINT64_C(1) << 60},
    {ROOT + 64 + 3 * 12, 8, 0x7fffffff, ND_EROFS_OUTSIDE, 0x7fffffff},
    {ROOT + 64 + 5 * 12, 8, 0, ND_EROFS_TWICE, 0},
    {SUB_NAMES + 2 * 12, 8, 32, ND_EROFS_TWICE, 32},
    /* targets */
    {LINK + 8, 4, 0, ND_EROFS_TARGET, 24},
    {LINK + 8, 4, 4096, ND_EROFS_TARGET, 24},
    {LINK + 34, 1, 0, ND_EROFS_TARGET, 24},
    {LINK + 8, 4, 4000, ND_EROFS_INODE, 24}, /* would cross the block's end */
    /* xattrs */
    {FILE_INODE + 2, 2, 1, ND_EROFS_XATTR, 16},
    {FILE_INODE + 2, 2, 0xffff, ND_EROFS_OUTSIDE, 16},
    {FILE_INODE + 64 + 4, 1, 1, ND_EROFS_XATTR, 16},
    {FILE_INODE + 64 + 12, 1, 255, ND_EROFS_XATTR, 16},
    {FILE_INODE + 64 + 13, 1, 5, ND_EROFS_XATTR, 16},
    {FILE_INODE + 64 + 13, 1, 2, ND_EROFS_XATTR, 16}, /* an ACL has no name */
    {FILE_INODE + 64 + 17, 1, 0, ND_EROFS_XATTR, 16},
    /* chunks */
    {FILE_INODE + 88 + 2, 1, 0, ND_EROFS_CHUNK, 16},
    {FILE_INODE + 88 + 2, 1, 2, ND_EROFS_CHUNK, 16},
    {FILE_INODE + 88, 2, CHUNKS, ND_EROFS_CHUNK, 16},
    {FILE_INODE + 88 + 3, 1, 1, ND_EROFS_CHUNK, 16},
    {FILE_INODE + 88, 2, 4, ND_EROFS_CHUNK, 16}, /* the second index says otherwise */
    {FILE_INODE + 96 + 4, 4, 7, ND_EROFS_CHUNK, 16},
    {FILE_INODE + 96 + 4, 4, UINT32_MAX, ND_EROFS_CHUNK, 16},
};

static void one_change_is_found(void)
{
    uint8_t *file = exactly(SAMPLE_BYTES);
    nd_erofs_claim claims[CHUNKS];
    for (size_t i = 0; i < sizeof CHANGES / sizeof CHANGES[0]; i++) {
        const struct change *change = &CHANGES[i];
        nd_erofs_walk walk;
        make_erofs_sample(file);
        memcpy(file + change->at, &change->value, change->size);
        int fault = check(file, SAMPLE_BYTES, claims, &walk);
        if (fault != change->fault || (fault && walk.nid != change->nid))
            fprintf(stderr, "change %zu at %u: fault %d of nid %llu\n", i, change->at, fault,
                    (unsigned long long)walk.nid);
        CHECK(fault == change->fault);
        CHECK(!fault || walk.nid == change->nid);
    }
    free(file);
}

/* Builders say of a file in one piece that it is one large chunk. */
static void a_file_in_one_piece_may_be_one_chunk_for_the_kernel(void)
{
    uint8_t *file = exactly(SAMPLE_BYTES);
    nd_erofs_claim claims[CHUNKS];
    nd_erofs_walk walk;
    make_erofs_sample(file);
    file[FILE_INODE + 16] = 0x21;
    CHECK(check(file, SAMPLE_BYTES, claims, &walk) == ND_EROFS_FINE);
    file[FILE_INODE + 96 + 4] = 4; /* in two pieces */
    CHECK(check(file, SAMPLE_BYTES, claims, &walk) == ND_EROFS_CHUNK);
    file[FILE_INODE + 16] = 0x20;
    CHECK(check(file, SAMPLE_BYTES, claims, &walk) == ND_EROFS_FINE);
    free(file);
}

static void an_acl_must_be_one(void)
{
    static const uint8_t acl[] = {0, 2, 12, 0, 2, 0, 0, 0, 1, 0, 6, 0, 0xff, 0xff, 0xff, 0xff};
    uint8_t *file = exactly(SAMPLE_BYTES);
    nd_erofs_claim claims[CHUNKS];
    nd_erofs_walk walk;
    make_erofs_sample(file);
    uint8_t *inode = file + FILE_INODE, index[16];
    memcpy(index, inode + 88, 16);
    put16(inode + 2, 5);
    memcpy(inode + 64 + 12, acl, sizeof acl);
    memcpy(inode + 96, index, 16);
    CHECK(check(file, SAMPLE_BYTES, claims, &walk) == ND_EROFS_FINE);
    inode[64 + 16] = 3; /* its version */
    CHECK(check(file, SAMPLE_BYTES, claims, &walk) == ND_EROFS_XATTR);
    inode[64 + 16] = 2;
    inode[64 + 20] = 3; /* a tag of two bits */
    CHECK(check(file, SAMPLE_BYTES, claims, &walk) == ND_EROFS_XATTR);
    free(file);
}

/* Many small directories that all say their names are the same large area. */
static void overlap_ends_the_walk(void)
{
    enum { DIRECTORIES = 200, NAMES = 100 * BLOCK, SIZE = META + 3 * BLOCK + NAMES + BLOCK };
    uint8_t *file = exactly(SIZE);
    nd_erofs_claim claims[CHUNKS];
    nd_erofs_walk walk;
    memset(file, 0, SIZE);
    uint32_t root_names = META / BLOCK + 3, names = root_names + 1;
    put_extended(file + META, 0, S_IFDIR | 0755, BLOCK, root_names);
    uint8_t *block = file + root_names * BLOCK;
    for (uint32_t i = 0; i < DIRECTORIES; i++) {
        put_entry(block, i, 2 + 2 * i, (uint16_t)(12 * DIRECTORIES + 3 * i), 2);
        block[12 * DIRECTORIES + 3 * i] = (uint8_t)('a' + i / 26);
        block[12 * DIRECTORIES + 3 * i + 1] = (uint8_t)('a' + i % 26);
        block[12 * DIRECTORIES + 3 * i + 2] = 'x';
        if (i < 3 * BLOCK / 64 - 1)
            put_extended(file + META + 64 * (i + 1), 0, S_IFDIR | 0755, NAMES, names);
    }
    CHECK(check(file, SIZE, claims, &walk) == ND_EROFS_OVERLAP);
    free(file);
}

static void what_is_cut_off_is_not_read(void)
{
    uint8_t *file = exactly(SAMPLE_BYTES);
    nd_erofs_claim claims[CHUNKS];
    nd_erofs_walk walk;
    make_erofs_sample(file);
    for (size_t size = 0; size < SAMPLE_BYTES; size += 16) {
        uint8_t *cut = copy_of(file, size);
        CHECK(check(cut, size, claims, &walk) != ND_EROFS_FINE);
        free(cut);
    }
    free(file);
}

void test_erofs_check(void)
{
    a_tree_in_order_is_fine();
    one_change_is_found();
    a_file_in_one_piece_may_be_one_chunk_for_the_kernel();
    an_acl_must_be_one();
    overlap_ends_the_walk();
    what_is_cut_off_is_not_read();
}
