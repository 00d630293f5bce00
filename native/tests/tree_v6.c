/* Names and attributes of the small tree of erofs_check.c; what is out of order is Python's. */
#include "../tree_v6.h"

#include "check.h"
#include "erofs_sample.h"

#include <linux/fuse.h>
#include <sys/stat.h>

enum { FILE_NID = 16, LINK_NID = 24, DEVICE_NID = 28, SUB_NID = 32 };
enum { ROOT_NAMES = META + 64 };
#define HIGH (UINT64_C(3) << 56)

static uint8_t reply[ND_TREE_REPLY_BYTES_MAX];
static nd_tree_counts counts;

static nd_tree sample_tree(const uint8_t *file, size_t length, nd_tree_counts *into)
{
    return (nd_tree){.bytes = file,
                     .length = length,
                     .meta_offset = META,
                     .root_nid = 0,
                     .block_size = BLOCK,
                     .chunk_size = BLOCK,
                     .high = HIGH,
                     .generation = 7,
                     .mounted_at_s = 1000,
                     .uid = 11,
                     .gid = 12,
                     .explicit_ids = true,
                     .counts = into};
}

static size_t put_request(uint8_t *room, uint32_t opcode, uint64_t nid, const void *body, size_t length)
{
    const struct fuse_in_header header = {.len = (uint32_t)(sizeof header + length),
                                          .opcode = opcode,
                                          .unique = 2,
                                          .nodeid = HIGH | nid};
    memcpy(room, &header, sizeof header);
    memcpy(room + sizeof header, body, length);
    return sizeof header + length;
}

static ssize_t ask(const nd_tree *tree, uint32_t opcode, uint64_t nid, const void *body, size_t length)
{
    uint8_t *request = exactly(sizeof(struct fuse_in_header) + length);
    size_t size = put_request(request, opcode, nid, body, length);
    ssize_t answered = nd_tree_answer(tree, request, size, reply, sizeof reply);
    free(request);
    return answered;
}

static ssize_t look_up(const nd_tree *tree, uint64_t nid, const char *name)
{
    return ask(tree, FUSE_LOOKUP, nid, name, strlen(name) + 1);
}

static ssize_t list(const nd_tree *tree, uint32_t opcode, uint64_t nid, uint64_t after, uint32_t size)
{
    const struct fuse_read_in span = {.offset = after, .size = size};
    return ask(tree, opcode, nid, &span, sizeof span);
}

static struct fuse_entry_out entry_at(size_t at)
{
    struct fuse_entry_out entry;
    memcpy(&entry, reply + at, sizeof entry);
    return entry;
}

struct line { /* struct fuse_dirent without its name */
    uint64_t ino, off;
    uint32_t namelen, type;
};

static struct line line_at(size_t at)
{
    struct line line;
    memcpy(&line, reply + at, sizeof line);
    return line;
}

static void names_are_found_and_missed(void)
{
    uint8_t *file = exactly(SAMPLE_BYTES);
    make_erofs_sample(file);
    nd_tree tree = sample_tree(file, SAMPLE_BYTES, &counts);
    memset(&counts, 0, sizeof counts);
    CHECK(look_up(&tree, 0, "file") == sizeof(struct fuse_entry_out));
    struct fuse_entry_out found = entry_at(0);
    CHECK(found.nodeid == (HIGH | FILE_NID) && found.generation == 7);
    CHECK(found.attr.ino == found.nodeid && found.attr.size == BLOCK + 100);
    CHECK(found.attr.blocks == 9 && found.attr.mode == (S_IFREG | 0644));
    CHECK(found.entry_valid == UINT64_C(1) << 32 && found.attr_valid == found.entry_valid);
    CHECK(found.attr.mtime == 1000 && found.attr.atime == 1000); /* not recorded */
    CHECK(look_up(&tree, 0, "ln") > 0 && entry_at(0).nodeid == (HIGH | LINK_NID));
    CHECK(look_up(&tree, 0, "dev") > 0 && entry_at(0).attr.rdev == 0x103);
    CHECK(look_up(&tree, SUB_NID, "hard") > 0 && entry_at(0).nodeid == (HIGH | FILE_NID));
    static const char *const missing[] = {"a", "d", "devi", "filf", "zzzz", "\xff"};
    for (size_t i = 0; i < sizeof missing / sizeof *missing; i++) {
        CHECK(look_up(&tree, 0, missing[i]) == sizeof(struct fuse_entry_out));
        CHECK(entry_at(0).nodeid == 0 && entry_at(0).entry_valid == UINT64_C(1) << 32);
    }
    CHECK(counts.lookups == 4 + 6);
    static const char *const not_ours[] = {"", ".", "..", "a/b"};
    for (size_t i = 0; i < sizeof not_ours / sizeof *not_ours; i++)
        CHECK(look_up(&tree, 0, not_ours[i]) == ND_TREE_ASK);
    CHECK(ask(&tree, FUSE_LOOKUP, 0, "file", 4) == ND_TREE_ASK); /* no NUL */
    CHECK(look_up(&tree, FILE_NID, "file") == ND_TREE_ASK);      /* no directory */
    free(file);
}

static void attributes_are_those_of_the_image_or_of_the_mount(void)
{
    uint8_t *file = exactly(SAMPLE_BYTES);
    make_erofs_sample(file);
    nd_tree tree = sample_tree(file, SAMPLE_BYTES, &counts);
    const uint64_t mtime = (uint64_t)-5;
    memcpy(file + META + 32 * FILE_NID + 32, &mtime, 8);
    file[META + 32 * FILE_NID + 24] = 42;
    struct fuse_attr_out out;
    CHECK(ask(&tree, FUSE_GETATTR, FILE_NID, reply, 16) == sizeof out);
    memcpy(&out, reply, sizeof out);
    CHECK(out.attr.mtime == mtime && out.attr.atime == 0 && out.attr.uid == 42);
    tree.explicit_ids = false;
    CHECK(ask(&tree, FUSE_GETATTR, FILE_NID, reply, 16) == sizeof out);
    memcpy(&out, reply, sizeof out);
    CHECK(out.attr.uid == 11 && out.attr.gid == 12);
    file[META + 4] = 0; /* S_IFDIR without permissions */
    CHECK(ask(&tree, FUSE_GETATTR, 0, reply, 16) == sizeof out);
    memcpy(&out, reply, sizeof out);
    CHECK((out.attr.mode & 07777) == 0755); /* the root, whatever the image says */
    CHECK(ask(&tree, FUSE_GETATTR, (UINT64_C(1) << 56) - 1, reply, 16) == ND_TREE_ASK);
    free(file);
}

static void a_listing_comes_whole_or_in_parts(void)
{
    uint8_t *file = exactly(SAMPLE_BYTES);
    make_erofs_sample(file);
    nd_tree tree = sample_tree(file, SAMPLE_BYTES, &counts);
    memset(&counts, 0, sizeof counts);
    static const char *const names[] = {".", "..", "dev", "file", "ln", "zz"};
    for (uint32_t size = 24; size < 1200; size += 4)
        for (uint32_t opcode = FUSE_READDIR; opcode <= FUSE_READDIRPLUS; opcode += 16) {
            bool plus = opcode == FUSE_READDIRPLUS;
            size_t head = plus ? sizeof(struct fuse_entry_out) : 0;
            uint64_t after = 0;
            for (ssize_t used; (used = list(&tree, opcode, 0, after, size)) > 0;) {
                CHECK((uint32_t)used <= size);
                for (size_t at = 0; at < (size_t)used;) {
                    struct line line = line_at(at + head);
                    CHECK(line.off == ++after && after <= 6);
                    CHECK(line.namelen == strlen(names[after - 1]));
                    CHECK(memcmp(reply + at + head + FUSE_NAME_OFFSET, names[after - 1],
                                 line.namelen) == 0);
                    CHECK(!plus || (entry_at(at).nodeid == 0) == (after <= 2));
                    CHECK((line.type == 0) == (after <= 2));
                    at += FUSE_REC_ALIGN(head + FUSE_NAME_OFFSET + line.namelen);
                }
            }
            CHECK(after == 6 || size < head + 32);
        }
    CHECK(counts.listings > 0);
    /* A broken inode is a name and a number; a broken name is Python's. */
    file[META + 32 * LINK_NID] = 0x7e;
    CHECK(list(&tree, FUSE_READDIRPLUS, 0, 4, 4096) > 0);
    CHECK(entry_at(0).nodeid == 0 && line_at(128).ino == (HIGH | LINK_NID) && line_at(128).type == 0);
    file[ROOT_NAMES + 82] = '/';
    CHECK(list(&tree, FUSE_READDIRPLUS, 0, 0, 4096) == ND_TREE_ASK);
    CHECK(list(&tree, FUSE_READDIRPLUS, FILE_NID, 0, 4096) == ND_TREE_ASK);
    CHECK(ask(&tree, FUSE_READDIR, 0, reply, sizeof(struct fuse_read_in) - 1) == ND_TREE_ASK);
    free(file);
}

static void what_is_opened_and_released_is_counted(void)
{
    uint8_t *file = exactly(SAMPLE_BYTES);
    make_erofs_sample(file);
    nd_tree tree = sample_tree(file, SAMPLE_BYTES, &counts);
    memset(&counts, 0, sizeof counts);
    struct fuse_open_out out;
    CHECK(ask(&tree, FUSE_OPEN, FILE_NID, reply, 8) == sizeof out);
    memcpy(&out, reply, sizeof out);
    CHECK(out.fh == (HIGH | FILE_NID) && out.open_flags == FOPEN_KEEP_CACHE);
    CHECK(ask(&tree, FUSE_OPENDIR, SUB_NID, reply, 8) == sizeof out);
    memcpy(&out, reply, sizeof out);
    CHECK(out.open_flags == (FOPEN_KEEP_CACHE | FOPEN_CACHE_DIR));
    CHECK(counts.open == 2);
    CHECK(ask(&tree, FUSE_RELEASE, FILE_NID, reply, 24) == 0);
    CHECK(ask(&tree, FUSE_RELEASEDIR, SUB_NID, reply, 24) == 0);
    CHECK(counts.open == 0);
    free(file);
}

static void all_else_is_pythons(void)
{
    uint8_t *file = exactly(SAMPLE_BYTES), request[64] = {0};
    make_erofs_sample(file);
    nd_tree tree = sample_tree(file, SAMPLE_BYTES, &counts);
    CHECK(ask(&tree, FUSE_STATFS, 0, reply, 0) == ND_TREE_ASK);
    CHECK(ask(&tree, FUSE_READLINK, LINK_NID, reply, 0) == ND_TREE_ASK);
    CHECK(ask(&tree, 4711, 0, reply, 0) == ND_TREE_ASK);
    size_t size = put_request(request, FUSE_GETATTR, 0, reply, 16);
    CHECK(nd_tree_answer(&tree, request, size, reply, sizeof reply) > 0);
    CHECK(nd_tree_answer(&tree, request, size - 1, reply, sizeof reply) == ND_TREE_ASK);
    CHECK(nd_tree_answer(&tree, request, 39, reply, sizeof reply) == ND_TREE_ASK);
    CHECK(nd_tree_answer(&tree, request, size, reply, 4096) == ND_TREE_ASK); /* too little room */
    tree.high = UINT64_C(4) << 56;
    CHECK(nd_tree_answer(&tree, request, size, reply, sizeof reply) == ND_TREE_ASK);
    free(file);
}

void test_tree_v6(void)
{
    names_are_found_and_missed();
    attributes_are_those_of_the_image_or_of_the_mount();
    a_listing_comes_whole_or_in_parts();
    what_is_opened_and_released_is_counted();
    all_else_is_pythons();
}
