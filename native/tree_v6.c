/* LOOKUP, GETATTR, listings, and the opening and releasing that says nothing but "yes". */
#include "tree_v6.h"

#include "bytes.h"

#include <linux/fuse.h>
#include <sys/stat.h>

#define NID_BYTES 32u
#define NID_MAX ((UINT64_C(1) << 56) - 1)
#define DIRENT_BYTES 12u
#define NAME_BYTES_MAX 255u
#define TARGET_BYTES_MAX 4096u
#define CHUNK_INDEX_BYTES 8u
#define NSEC_PER_S 1000000000u
#define FOR_EVER_S (UINT64_C(1) << 32) /* as kernel/wire.py */
#define STAT_BLOCK_BYTES 4096u
#define ROOT_PERMISSIONS 0755u

/* Offsets within the inode, both forms. */
enum {
    I_FORMAT = 0,
    I_XATTR_ICOUNT = 2,
    I_MODE = 4,
    I_COMPACT_NLINK = 6,
    I_SIZE = 8,
    I_U = 16,
    I_UID = 24,
    I_COMPACT_GID = 26,
    I_GID = 28,
    I_MTIME = 32,
    I_MTIME_NSEC = 40,
    I_NLINK = 44,
    COMPACT_BYTES = 32,
    EXTENDED_BYTES = 64,
};
enum { FORMAT_EXTENDED = 1, LAYOUT_SHIFT = 1 };
enum { LAYOUT_PLAIN = 0, LAYOUT_INLINE = 2, LAYOUT_CHUNKED = 4 };
enum { CHUNK_FORMAT_INDEXES = 0x20, XATTR_HEADER_BYTES = 12, XATTR_ENTRY_BYTES = 4 };

struct inode {
    uint64_t nid, size;
    uint64_t behind; /* offset behind inode and xattrs */
    int64_t mtime;
    uint32_t mtime_nsec, mode, nlink, uid, gid, rdev, u, layout;
};

static bool has_its_layout(const struct inode *inode)
{
    switch (inode->mode & S_IFMT) {
    case S_IFREG:
        return inode->layout == LAYOUT_CHUNKED;
    case S_IFDIR:
    case S_IFLNK:
        return inode->layout == LAYOUT_PLAIN || inode->layout == LAYOUT_INLINE;
    case S_IFCHR:
    case S_IFBLK:
    case S_IFIFO:
    case S_IFSOCK:
        return inode->layout == LAYOUT_PLAIN;
    default:
        return false;
    }
}

static uint64_t chunk_indexes_of(const struct inode *inode)
{
    return (inode->behind + CHUNK_INDEX_BYTES - 1) & ~(uint64_t)(CHUNK_INDEX_BYTES - 1);
}

static bool chunk_indexes_fit(const nd_tree *tree, const struct inode *inode)
{
    uint64_t chunks = inode->size / tree->chunk_size + (inode->size % tree->chunk_size != 0);
    return (inode->u & CHUNK_FORMAT_INDEXES) && chunks <= UINT64_MAX / CHUNK_INDEX_BYTES &&
           nd_within(chunk_indexes_of(inode), chunks * CHUNK_INDEX_BYTES, 0, tree->length);
}

/* False: the record breaks a rule. */
static bool load_inode(const nd_tree *tree, uint64_t nid, struct inode *inode)
{
    if (nid > NID_MAX || tree->meta_offset > tree->length)
        return false;
    uint64_t at = tree->meta_offset + nid * NID_BYTES; /* no overflow: 2^63 and 2^61 at most */
    if (!nd_within(at, COMPACT_BYTES, 0, tree->length))
        return false;
    const uint8_t *record = tree->bytes + at;
    uint32_t format = nd_load16(record + I_FORMAT), icount = nd_load16(record + I_XATTR_ICOUNT);
    *inode = (struct inode){.nid = nid,
                            .mode = nd_load16(record + I_MODE),
                            .u = nd_load32(record + I_U),
                            .layout = format >> LAYOUT_SHIFT};
    uint32_t type = inode->mode & S_IFMT;
    if (format & FORMAT_EXTENDED) {
        if (!nd_within(at, EXTENDED_BYTES, 0, tree->length))
            return false;
        inode->behind = at + EXTENDED_BYTES;
        inode->size = nd_load64(record + I_SIZE);
        inode->uid = nd_load32(record + I_UID);
        inode->gid = nd_load32(record + I_GID);
        inode->mtime = (int64_t)nd_load64(record + I_MTIME);
        inode->mtime_nsec = nd_load32(record + I_MTIME_NSEC);
        inode->nlink = nd_load32(record + I_NLINK);
        inode->rdev = type == S_IFCHR || type == S_IFBLK ? inode->u : 0;
    } else {
        inode->behind = at + COMPACT_BYTES;
        inode->size = nd_load32(record + I_SIZE);
        inode->uid = nd_load16(record + I_UID);
        inode->gid = nd_load16(record + I_COMPACT_GID);
        inode->nlink = nd_load16(record + I_COMPACT_NLINK);
    }
    if (icount)
        inode->behind += XATTR_HEADER_BYTES + XATTR_ENTRY_BYTES * (icount - 1);
    if (!has_its_layout(inode) || inode->size > INT64_MAX || inode->mtime_nsec >= NSEC_PER_S)
        return false;
    if (type == S_IFREG)
        return chunk_indexes_fit(tree, inode);
    return type != S_IFLNK || (inode->size > 0 && inode->size <= TARGET_BYTES_MAX);
}

bool nd_tree_find_file(const nd_tree *tree, uint64_t nodeid, uint64_t *size,
                       const uint8_t **indexes)
{
    struct inode inode;
    if ((nodeid & ~NID_MAX) != tree->high || !load_inode(tree, nodeid & NID_MAX, &inode) ||
        !S_ISREG(inode.mode))
        return false;
    *size = inode.size;
    *indexes = tree->bytes + chunk_indexes_of(&inode);
    return true;
}

/* What stat shows (kernel/tree.py, present). */
static struct fuse_attr attributes_of(const nd_tree *tree, const struct inode *inode)
{
    bool is_dated = inode->mtime != 0 || inode->mtime_nsec != 0;
    uint64_t other_s = is_dated ? 0 : (uint64_t)tree->mounted_at_s;
    uint32_t mode = inode->mode;
    if (inode->nid == tree->root_nid)
        mode = (mode & S_IFMT) | ROOT_PERMISSIONS;
    return (struct fuse_attr){
        .ino = tree->high | inode->nid,
        .size = inode->size,
        .blocks = (inode->size + 511) / 512,
        .atime = other_s,
        .mtime = is_dated ? (uint64_t)inode->mtime : other_s,
        .ctime = other_s,
        .mtimensec = inode->mtime_nsec,
        .mode = mode,
        .nlink = inode->nlink,
        .uid = tree->explicit_ids ? inode->uid : tree->uid,
        .gid = tree->explicit_ids ? inode->gid : tree->gid,
        .rdev = inode->rdev,
        .blksize = STAT_BLOCK_BYTES,
    };
}

static struct fuse_entry_out entry_of(const nd_tree *tree, const struct inode *inode)
{
    return (struct fuse_entry_out){
        .nodeid = tree->high | inode->nid,
        .generation = tree->generation,
        .entry_valid = FOR_EVER_S,
        .attr_valid = FOR_EVER_S,
        .attr = attributes_of(tree, inode),
    };
}

/* ---- directories ---- */

/* Whole blocks, then a tail, maybe behind the inode. */
struct flat {
    uint64_t start, blocks, tail;
    uint32_t block_size, tail_length;
};

struct block {
    const uint8_t *bytes;
    uint32_t length, count; /* of entries */
};

static bool find_flat(const nd_tree *tree, const struct inode *directory, struct flat *flat)
{
    uint32_t size = tree->block_size;
    uint64_t blocks = directory->size / size + (directory->size % size != 0);
    uint64_t start = (uint64_t)directory->u * size;
    uint64_t whole = blocks > 0 ? (blocks - 1) * size : 0; /* below 2^63, as the size is */
    *flat = (struct flat){.start = start,
                          .blocks = blocks,
                          .tail = directory->layout == LAYOUT_INLINE ? directory->behind
                                                                      : start + whole,
                          .block_size = size,
                          .tail_length = (uint32_t)(directory->size - whole)};
    return (whole == 0 || nd_within(start, whole, 0, tree->length)) &&
           nd_within(flat->tail, flat->tail_length, 0, tree->length);
}

/* False: no entries, or not where they should be. The first name follows the last entry. */
static bool load_block(const nd_tree *tree, const struct flat *flat, uint64_t number,
                       struct block *block)
{
    bool is_last = number == flat->blocks - 1;
    uint64_t at = is_last ? flat->tail : flat->start + number * flat->block_size;
    block->bytes = tree->bytes + at;
    block->length = is_last ? flat->tail_length : flat->block_size;
    if (block->length < DIRENT_BYTES)
        return false;
    uint32_t first = nd_load16(block->bytes + 8);
    block->count = first / DIRENT_BYTES;
    return first >= DIRENT_BYTES && first < block->length && first % DIRENT_BYTES == 0;
}

struct name {
    const uint8_t *bytes;
    uint32_t length;
};

/* The last name of a block ends at the first NUL or with the block. */
static bool load_name(const struct block *block, uint32_t number, struct name *name)
{
    const uint8_t *entry = block->bytes + number * DIRENT_BYTES;
    bool is_last = number == block->count - 1;
    uint32_t start = nd_load16(entry + 8);
    uint32_t end = is_last ? block->length : nd_load16(entry + DIRENT_BYTES + 8);
    if (start < block->count * DIRENT_BYTES || start > end || end > block->length)
        return false;
    name->bytes = block->bytes + start;
    name->length = end - start;
    if (is_last)
        name->length = (uint32_t)strnlen((const char *)name->bytes, name->length);
    return true;
}

static bool is_possible(const struct name *name)
{
    return name->length > 0 && name->length <= NAME_BYTES_MAX &&
           memchr(name->bytes, '/', name->length) == NULL &&
           memchr(name->bytes, 0, name->length) == NULL;
}

static bool is_dots(const struct name *name)
{
    return name->bytes[0] == '.' &&
           (name->length == 1 || (name->length == 2 && name->bytes[1] == '.'));
}

/* Bytewise, as bytes compare in Python: the shorter of two that begin alike comes first. */
static int compare(const struct name *one, const struct name *other)
{
    uint32_t shared = one->length < other->length ? one->length : other->length;
    int order = memcmp(one->bytes, other->bytes, shared);
    if (order != 0)
        return order;
    return (one->length > other->length) - (one->length < other->length);
}

enum found { FOUND, NOT_FOUND, BROKEN };

/* All names of a directory are one sorted list. */
static enum found find_name(const nd_tree *tree, const struct flat *flat, const struct name *wanted,
                            uint64_t *nid)
{
    struct block block;
    struct name name;
    if (flat->blocks == 0)
        return NOT_FOUND;
    /* The block wanted is the last one whose first name is not behind `wanted`. */
    uint64_t low = 0, high = flat->blocks;
    while (high - low > 1) {
        uint64_t middle = low + (high - low) / 2;
        if (!load_block(tree, flat, middle, &block) || !load_name(&block, 0, &name))
            return BROKEN;
        if (compare(&name, wanted) <= 0)
            low = middle;
        else
            high = middle;
    }
    if (!load_block(tree, flat, low, &block))
        return BROKEN;
    uint32_t first = 0, behind = block.count;
    while (first < behind) {
        uint32_t middle = first + (behind - first) / 2;
        if (!load_name(&block, middle, &name))
            return BROKEN;
        int order = compare(&name, wanted);
        if (order == 0) {
            *nid = nd_load64(block.bytes + middle * DIRENT_BYTES);
            return FOUND;
        }
        if (order < 0)
            first = middle + 1;
        else
            behind = middle;
    }
    return NOT_FOUND;
}

static bool load_directory(const nd_tree *tree, uint64_t nid, struct flat *flat)
{
    struct inode directory;
    return load_inode(tree, nid, &directory) && S_ISDIR(directory.mode) &&
           find_flat(tree, &directory, flat);
}

/* ---- operations ---- */

struct request {
    struct fuse_in_header header;
    const uint8_t *body;
    size_t body_length;
    uint64_t nid;
};

static ssize_t lookup(const nd_tree *tree, const struct request *request, uint8_t *reply)
{
    struct name name = {request->body,
                        (uint32_t)strnlen((const char *)request->body, request->body_length)};
    if (name.length == request->body_length || !is_possible(&name) || is_dots(&name))
        return ND_TREE_ASK;
    struct flat flat;
    if (!load_directory(tree, request->nid, &flat))
        return ND_TREE_ASK;
    struct fuse_entry_out entry = {.entry_valid = FOR_EVER_S}; /* "no", to be remembered */
    struct inode inode;
    uint64_t nid;
    switch (find_name(tree, &flat, &name, &nid)) {
    case FOUND:
        if (!load_inode(tree, nid, &inode))
            return ND_TREE_ASK;
        entry = entry_of(tree, &inode);
        break;
    case NOT_FOUND:
        break;
    case BROKEN:
        return ND_TREE_ASK;
    }
    memcpy(reply, &entry, sizeof entry);
    __atomic_fetch_add(&tree->counts->lookups, 1, __ATOMIC_RELAXED);
    return sizeof entry;
}

static ssize_t getattr(const nd_tree *tree, const struct request *request, uint8_t *reply)
{
    struct inode inode;
    if (!load_inode(tree, request->nid, &inode))
        return ND_TREE_ASK;
    struct fuse_attr_out out = {.attr_valid = FOR_EVER_S, .attr = attributes_of(tree, &inode)};
    memcpy(reply, &out, sizeof out);
    __atomic_fetch_add(&tree->counts->getattrs, 1, __ATOMIC_RELAXED);
    return sizeof out;
}

/* One name into the reply. Returns its length there, 0 if it does not fit. An inode that is broken, or
 * that the kernel knows itself, is a name and a number. */
static size_t put_line(const nd_tree *tree, bool plus, const struct name *name, uint64_t nid,
                       uint64_t cookie, uint8_t *at, size_t room)
{
    size_t head = plus ? sizeof(struct fuse_entry_out) + FUSE_NAME_OFFSET : FUSE_NAME_OFFSET;
    size_t length = FUSE_REC_ALIGN(head + name->length);
    if (length > room)
        return 0;
    struct fuse_entry_out entry = {0};
    struct fuse_dirent dirent = {
        .ino = tree->high | nid, .off = cookie, .namelen = name->length, .type = 0};
    struct inode inode;
    if (!is_dots(name) && load_inode(tree, nid, &inode)) {
        entry = entry_of(tree, &inode);
        dirent.type = entry.attr.mode >> 12;
    }
    memset(at + length - 8, 0, 8); /* the padding */
    if (plus)
        memcpy(at, &entry, sizeof entry);
    memcpy(at + head - FUSE_NAME_OFFSET, &dirent, FUSE_NAME_OFFSET);
    memcpy(at + head, name->bytes, name->length);
    return length;
}

/* A cookie is an entry's ordinal in the directory, from 1; the kernel asks for what is behind it. */
static ssize_t list(const nd_tree *tree, const struct request *request, uint8_t *reply, size_t room)
{
    struct fuse_read_in span;
    if (request->body_length < sizeof span)
        return ND_TREE_ASK;
    memcpy(&span, request->body, sizeof span);
    struct flat flat;
    if (!load_directory(tree, request->nid, &flat))
        return ND_TREE_ASK;
    bool plus = request->header.opcode == FUSE_READDIRPLUS;
    if (room > span.size)
        room = span.size;
    size_t used = 0;
    uint64_t seen = 0; /* entries of the blocks before this one */
    for (uint64_t number = 0; number < flat.blocks; number++) {
        struct block block;
        if (!load_block(tree, &flat, number, &block))
            return ND_TREE_ASK;
        uint64_t skip = span.offset > seen ? span.offset - seen : 0;
        for (uint64_t i = skip; i < block.count; i++) {
            struct name name;
            uint64_t nid = nd_load64(block.bytes + i * DIRENT_BYTES);
            if (!load_name(&block, (uint32_t)i, &name) || !is_possible(&name) || nid > NID_MAX)
                return ND_TREE_ASK;
            size_t length = put_line(tree, plus, &name, nid, seen + i + 1, reply + used, room - used);
            if (length == 0)
                goto full;
            used += length;
        }
        seen += block.count;
    }
full:
    __atomic_fetch_add(&tree->counts->listings, 1, __ATOMIC_RELAXED);
    return (ssize_t)used;
}

/* A handle is the nodeid. The kernel may keep pages, and listings, of earlier opens. */
static ssize_t open_object(const nd_tree *tree, const struct request *request, uint8_t *reply)
{
    struct fuse_open_out out = {.fh = request->header.nodeid, .open_flags = FOPEN_KEEP_CACHE};
    if (request->header.opcode == FUSE_OPENDIR)
        out.open_flags |= FOPEN_CACHE_DIR;
    memcpy(reply, &out, sizeof out);
    __atomic_fetch_add(&tree->counts->open, 1, __ATOMIC_RELAXED);
    return sizeof out;
}

static ssize_t release(const nd_tree *tree)
{
    __atomic_fetch_sub(&tree->counts->open, 1, __ATOMIC_RELAXED);
    return 0;
}

ssize_t nd_tree_answer(const nd_tree *tree, const uint8_t *bytes, size_t length, uint8_t *reply,
                       size_t room)
{
    struct request request;
    if (length < sizeof request.header || room < ND_TREE_REPLY_BYTES_MAX)
        return ND_TREE_ASK;
    memcpy(&request.header, bytes, sizeof request.header);
    request.body = bytes + sizeof request.header;
    request.body_length = length - sizeof request.header;
    request.nid = request.header.nodeid & NID_MAX;
    if (request.header.len != length || (request.header.nodeid & ~NID_MAX) != tree->high)
        return ND_TREE_ASK;
    switch (request.header.opcode) {
    case FUSE_LOOKUP:
        return lookup(tree, &request, reply);
    case FUSE_GETATTR:
        return getattr(tree, &request, reply);
    case FUSE_READDIR:
    case FUSE_READDIRPLUS:
        return list(tree, &request, reply, room);
    case FUSE_OPEN:
    case FUSE_OPENDIR:
        return open_object(tree, &request, reply);
    case FUSE_RELEASE:
    case FUSE_RELEASEDIR:
        return release(tree);
    default:
        return ND_TREE_ASK;
    }
}
