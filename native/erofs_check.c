/* A walk over a RAFS v6 tree with the kernel's eyes. */
#include "erofs_check.h"

#include "bytes.h"

#include <stdlib.h>
#include <sys/stat.h>

#define BLOCK_BYTES 4096u
#define NID_BYTES 32u
#define DIRENT_BYTES 12u
#define NAME_BYTES_MAX 255u
#define TARGET_BYTES_MAX 4095u /* the kernel ends a page that is one long target with a NUL */
#define NULL_BLOCK UINT32_MAX  /* a hole for the kernel, for us an address */
#define NSEC_PER_S 1000000000u

/* Offsets within the inode, both forms (spec rafs-v6 §7). */
enum {
    I_FORMAT = 0,
    I_XATTR_ICOUNT = 2,
    I_MODE = 4,
    I_SIZE = 8,
    I_U = 16,
    I_MTIME_NSEC = 40, /* extended only */
    COMPACT_BYTES = 32,
    EXTENDED_BYTES = 64,
};

enum { FORMAT_EXTENDED = 1, LAYOUT_SHIFT = 1 };
enum { LAYOUT_PLAIN = 0, LAYOUT_INLINE = 2, LAYOUT_CHUNKED = 4 };
enum { CHUNK_FORMAT_BITS = 0x1f, CHUNK_FORMAT_INDEXES = 0x20 };
enum { XATTR_HEADER_BYTES = 12, XATTR_SHARED_COUNT = 4, XATTR_ENTRY_BYTES = 4 };
enum { XATTR_ACL_ACCESS = 2, XATTR_ACL_DEFAULT = 3 };
enum { CHUNK_INDEX_BYTES = 8 };

struct inode {
    uint64_t at; /* file offset */
    uint64_t behind; /* file offset behind inode and xattrs */
    uint64_t size;
    uint32_t mode;
    uint32_t u;
    uint32_t layout;
    uint32_t xattr_bytes;
    bool extended;
};

struct checker {
    const uint8_t *data;
    uint64_t length;
    const nd_erofs_image *image;
    const nd_erofs_blob *blobs;
    uint64_t claim_base[256]; /* by blob, in `claims` */
    nd_erofs_claim *claims;
    uint8_t *seen; /* one bit per nid */
    uint64_t nids;
    uint64_t *waiting; /* directories */
    size_t waiting_count, waiting_room;
    uint64_t left; /* bytes that may still be looked at */
    nd_erofs_walk *walk;
};

static bool within(const struct checker *c, uint64_t offset, uint64_t size)
{
    return nd_within(offset, size, 0, c->length);
}

/* Parts of an image do not overlap. If these do, walking on could take hours. */
static bool spend(struct checker *c, uint64_t bytes)
{
    if (bytes > c->left)
        return false;
    c->left -= bytes;
    return true;
}

static bool is_acl(const uint8_t *value, uint32_t size)
{
    if (size < 4 || (size - 4) % 8 != 0 || nd_load32(value) != 2)
        return false;
    for (uint32_t at = 4; at < size; at += 8) {
        uint16_t tag = nd_load16(value + at);
        if (tag == 0 || tag > 0x20 || (tag & (tag - 1)) != 0)
            return false;
    }
    return true;
}

/* Entries must fill the area exactly, each with a prefix that both sides know. */
static int check_xattrs(const struct checker *c, const struct inode *inode)
{
    uint64_t end = inode->behind, at = end - inode->xattr_bytes;
    if (c->data[at + XATTR_SHARED_COUNT] != 0)
        return ND_EROFS_XATTR;
    at += XATTR_HEADER_BYTES;
    if (at == end) /* the kernel does not support an area without entries */
        return ND_EROFS_XATTR;
    while (at < end) { /* multiples of 4, so a whole entry head fits */
        const uint8_t *entry = c->data + at;
        uint32_t name_length = entry[0], index = entry[1], value_size = nd_load16(entry + 2);
        if (name_length + value_size > end - at - XATTR_ENTRY_BYTES)
            return ND_EROFS_XATTR;
        const uint8_t *name = entry + XATTR_ENTRY_BYTES;
        if (index == XATTR_ACL_ACCESS || index == XATTR_ACL_DEFAULT) {
            if (name_length != 0 || !is_acl(name, value_size))
                return ND_EROFS_XATTR;
        } else if ((index != 1 && index != 4 && index != 6) || name_length == 0 ||
                   memchr(name, 0, name_length) != NULL) {
            return ND_EROFS_XATTR;
        }
        at += XATTR_ENTRY_BYTES + ((name_length + value_size + 3) & ~3u);
    }
    return ND_EROFS_FINE;
}

/* The bytes of a directory or symlink: whole blocks, the last of them maybe behind the inode. */
static int check_flat(const struct checker *c, const struct inode *inode)
{
    if (inode->layout != LAYOUT_PLAIN && inode->layout != LAYOUT_INLINE)
        return ND_EROFS_INODE;
    uint64_t blocks = (inode->size + BLOCK_BYTES - 1) / BLOCK_BYTES;
    uint64_t start = (uint64_t)inode->u * BLOCK_BYTES;
    if (inode->layout == LAYOUT_PLAIN)
        return within(c, start, inode->size) ? ND_EROFS_FINE : ND_EROFS_OUTSIDE;
    if (blocks == 0)
        return ND_EROFS_INODE;
    uint64_t whole = (blocks - 1) * BLOCK_BYTES, tail = inode->size - whole;
    if (!within(c, start, whole) || !within(c, inode->behind, tail))
        return ND_EROFS_OUTSIDE;
    /* The kernel reads a tail from one block. */
    return inode->behind % BLOCK_BYTES + tail <= BLOCK_BYTES ? ND_EROFS_FINE : ND_EROFS_INODE;
}

static const uint8_t *flat_block(const struct checker *c, const struct inode *inode, uint64_t block,
                                 uint32_t *length)
{
    uint64_t blocks = (inode->size + BLOCK_BYTES - 1) / BLOCK_BYTES;
    bool last = block == blocks - 1;
    *length = last ? (uint32_t)(inode->size - block * BLOCK_BYTES) : BLOCK_BYTES;
    if (last && inode->layout == LAYOUT_INLINE)
        return c->data + inode->behind;
    return c->data + (uint64_t)inode->u * BLOCK_BYTES + block * BLOCK_BYTES;
}

static int check_target(struct checker *c, const struct inode *inode)
{
    if (inode->size == 0 || inode->size > TARGET_BYTES_MAX)
        return ND_EROFS_TARGET;
    int fault = check_flat(c, inode);
    if (fault)
        return fault;
    if (!spend(c, inode->size))
        return ND_EROFS_OVERLAP;
    uint32_t length;
    return memchr(flat_block(c, inode, 0, &length), 0, inode->size) == NULL ? ND_EROFS_FINE
                                                                            : ND_EROFS_TARGET;
}

struct chunk {
    uint32_t device, index, block;
};

static struct chunk load_chunk(const uint8_t *index)
{
    return (struct chunk){
        .device = index[2],
        .index = nd_load16(index) | (uint32_t)index[3] << 16,
        .block = nd_load32(index + 4),
    };
}

static int check_chunk(struct checker *c, struct chunk chunk, uint32_t size)
{
    if (chunk.device == 0 || chunk.device > c->image->blob_count || chunk.block == NULL_BLOCK)
        return ND_EROFS_CHUNK;
    uint32_t blob = chunk.device - 1;
    uint64_t blocks = ((uint64_t)size + BLOCK_BYTES - 1) / BLOCK_BYTES;
    if (chunk.index >= c->blobs[blob].chunks || chunk.block + blocks > c->blobs[blob].blocks)
        return ND_EROFS_CHUNK;
    nd_erofs_claim *claim = c->claims + c->claim_base[blob] + chunk.index;
    if (claim->size == 0)
        *claim = (nd_erofs_claim){chunk.block, size};
    return claim->block == chunk.block && claim->size == size ? ND_EROFS_FINE : ND_EROFS_CHUNK;
}

/* Builders tell the kernel of larger chunks than there are, where a file lies in one piece: the kernel
 * then looks at the first index only.
 */
static int check_file(struct checker *c, const struct inode *inode)
{
    uint32_t chunk_size = c->image->chunk_size, chunk_blocks = chunk_size / BLOCK_BYTES;
    if (inode->layout != LAYOUT_CHUNKED || !(inode->u & CHUNK_FORMAT_INDEXES) ||
        inode->u > (CHUNK_FORMAT_INDEXES | CHUNK_FORMAT_BITS))
        return ND_EROFS_INODE;
    uint64_t kernel_chunk_size = (uint64_t)BLOCK_BYTES << (inode->u & CHUNK_FORMAT_BITS);
    bool in_one_piece = kernel_chunk_size != chunk_size;
    if (in_one_piece && inode->size > kernel_chunk_size)
        return ND_EROFS_INODE;
    uint64_t chunks = inode->size / chunk_size + (inode->size % chunk_size != 0);
    uint64_t at = (inode->behind + CHUNK_INDEX_BYTES - 1) / CHUNK_INDEX_BYTES * CHUNK_INDEX_BYTES;
    if (chunks > c->length / CHUNK_INDEX_BYTES || !within(c, at, chunks * CHUNK_INDEX_BYTES))
        return ND_EROFS_OUTSIDE;
    if (!spend(c, chunks * CHUNK_INDEX_BYTES))
        return ND_EROFS_OVERLAP;
    uint64_t left = inode->size;
    struct chunk first = {0};
    for (uint64_t i = 0; i < chunks; i++) {
        uint32_t size = left < chunk_size ? (uint32_t)left : chunk_size;
        struct chunk chunk = load_chunk(c->data + at + i * CHUNK_INDEX_BYTES);
        int fault = check_chunk(c, chunk, size);
        if (fault)
            return fault;
        if (i == 0)
            first = chunk;
        if (in_one_piece &&
            (chunk.device != first.device || chunk.block != first.block + i * chunk_blocks))
            return ND_EROFS_CHUNK;
        left -= size;
    }
    return ND_EROFS_FINE;
}

static int read_inode(struct checker *c, uint64_t nid, struct inode *inode)
{
    if (nid >= c->nids)
        return ND_EROFS_OUTSIDE;
    uint64_t at = c->image->meta_offset + nid * NID_BYTES;
    const uint8_t *record = c->data + at;
    uint32_t format = nd_load16(record + I_FORMAT), icount = nd_load16(record + I_XATTR_ICOUNT);
    uint64_t bytes = format & FORMAT_EXTENDED ? EXTENDED_BYTES : COMPACT_BYTES;
    if (!within(c, at, bytes))
        return ND_EROFS_OUTSIDE;
    uint32_t xattrs = icount ? XATTR_HEADER_BYTES + 4 * (icount - 1) : 0;
    *inode = (struct inode){
        .at = at,
        .behind = at + bytes + xattrs,
        .size = format & FORMAT_EXTENDED ? nd_load64(record + I_SIZE) : nd_load32(record + I_SIZE),
        .mode = nd_load16(record + I_MODE),
        .u = nd_load32(record + I_U),
        .layout = format >> LAYOUT_SHIFT,
        .xattr_bytes = xattrs,
        .extended = format & FORMAT_EXTENDED,
    };
    if (inode->size > INT64_MAX)
        return ND_EROFS_INODE;
    if (inode->extended && nd_load32(record + I_MTIME_NSEC) >= NSEC_PER_S)
        return ND_EROFS_INODE;
    return within(c, at + bytes, xattrs) ? ND_EROFS_FINE : ND_EROFS_OUTSIDE;
}

static int wait_for_turn(struct checker *c, uint64_t directory)
{
    if (c->waiting_count == c->waiting_room) {
        size_t room = c->waiting_room ? 2 * c->waiting_room : 1024;
        uint64_t *grown = realloc(c->waiting, room * sizeof *grown);
        if (grown == NULL)
            return ND_EROFS_NO_MEMORY;
        c->waiting = grown;
        c->waiting_room = room;
    }
    c->waiting[c->waiting_count++] = directory;
    return ND_EROFS_FINE;
}

/* All that the inode itself says; a directory's entries wait for their turn. */
static int check_inode(struct checker *c, uint64_t nid, const struct inode *inode)
{
    c->walk->inodes++;
    if (!spend(c, NID_BYTES + inode->xattr_bytes))
        return ND_EROFS_OVERLAP;
    if (inode->xattr_bytes) {
        c->walk->with_xattrs++;
        int fault = check_xattrs(c, inode);
        if (fault)
            return fault;
    }
    switch (inode->mode & S_IFMT) {
    case S_IFREG:
        return check_file(c, inode);
    case S_IFLNK:
        return check_target(c, inode);
    case S_IFCHR:
    case S_IFBLK: /* we read no device number from a compact inode, the kernel does */
        return inode->layout == LAYOUT_PLAIN && (inode->extended || !inode->u) ? ND_EROFS_FINE
                                                                               : ND_EROFS_INODE;
    case S_IFIFO:
    case S_IFSOCK:
        return inode->layout == LAYOUT_PLAIN ? ND_EROFS_FINE : ND_EROFS_INODE;
    case S_IFDIR:
        break;
    default:
        return ND_EROFS_INODE;
    }
    int fault = check_flat(c, inode);
    if (fault)
        return fault;
    return spend(c, inode->size) ? wait_for_turn(c, nid) : ND_EROFS_OVERLAP;
}

/* The type byte of a directory entry: 0 says nothing. */
static uint32_t type_byte(uint32_t mode)
{
    switch (mode & S_IFMT) {
    case S_IFREG:
        return 1;
    case S_IFDIR:
        return 2;
    case S_IFCHR:
        return 3;
    case S_IFBLK:
        return 4;
    case S_IFIFO:
        return 5;
    case S_IFSOCK:
        return 6;
    default:
        return 7; /* S_IFLNK: there is no other among checked inodes */
    }
}

static int check_child(struct checker *c, uint64_t nid, uint32_t type)
{
    struct inode inode;
    int fault = read_inode(c, nid, &inode);
    if (fault == ND_EROFS_FINE) {
        if (!(c->seen[nid / 8] & 1u << nid % 8)) {
            c->seen[nid / 8] |= (uint8_t)(1u << nid % 8);
            fault = check_inode(c, nid, &inode);
        } else if (S_ISDIR(inode.mode)) {
            fault = ND_EROFS_TWICE;
        }
    }
    if (fault == ND_EROFS_FINE && type != 0 && type != type_byte(inode.mode))
        fault = ND_EROFS_DIRECTORY;
    if (fault)
        c->walk->nid = nid;
    return fault;
}

/* A name and where it stands; names of a directory ascend, over all its blocks. */
struct name {
    const uint8_t *text;
    uint32_t length;
};

static bool is_behind(struct name one, struct name other)
{
    uint32_t common = one.length < other.length ? one.length : other.length;
    int order = memcmp(one.text, other.text, common);
    return order > 0 || (order == 0 && one.length > other.length);
}

static bool is_possible(struct name name)
{
    return name.length != 0 && name.length <= NAME_BYTES_MAX &&
           memchr(name.text, 0, name.length) == NULL && memchr(name.text, '/', name.length) == NULL;
}

static bool is_dots(struct name name)
{
    return name.text[0] == '.' && (name.length == 1 || (name.length == 2 && name.text[1] == '.'));
}

static int check_block(struct checker *c, const uint8_t *block, uint32_t length, struct name *last)
{
    if (length < DIRENT_BYTES)
        return ND_EROFS_DIRECTORY;
    uint32_t first = nd_load16(block + 8);
    if (first < DIRENT_BYTES || first >= length || first % DIRENT_BYTES != 0)
        return ND_EROFS_DIRECTORY;
    uint32_t count = first / DIRENT_BYTES, start = first;
    for (uint32_t i = 0; i < count; i++) {
        const uint8_t *entry = block + i * DIRENT_BYTES;
        bool is_last = i == count - 1;
        uint32_t end = is_last ? length : nd_load16(entry + DIRENT_BYTES + 8);
        if (end < start || end > length)
            return ND_EROFS_DIRECTORY;
        struct name name = {block + start, end - start};
        if (is_last)
            name.length = (uint32_t)strnlen((const char *)name.text, name.length);
        if (!is_possible(name) || (last->text != NULL && !is_behind(name, *last)))
            return ND_EROFS_DIRECTORY;
        if (!is_dots(name)) {
            int fault = check_child(c, nd_load64(entry), entry[10]);
            if (fault)
                return fault;
        }
        *last = name;
        start = end;
    }
    return ND_EROFS_FINE;
}

static int check_directory(struct checker *c, uint64_t nid)
{
    struct inode inode;
    struct name last = {NULL, 0};
    int fault = read_inode(c, nid, &inode); /* checked when it was met */
    for (uint64_t block = 0; !fault && block * BLOCK_BYTES < inode.size; block++) {
        uint32_t length;
        const uint8_t *bytes = flat_block(c, &inode, block, &length);
        c->walk->nid = nid;
        fault = check_block(c, bytes, length, &last);
    }
    return fault;
}

static int walk_tree(struct checker *c)
{
    uint32_t directory = 2;
    int fault = check_child(c, c->image->root_nid, directory);
    while (!fault && c->waiting_count != 0)
        fault = check_directory(c, c->waiting[--c->waiting_count]);
    return fault;
}

int nd_erofs_check(const uint8_t *bootstrap, size_t length, const nd_erofs_image *image,
                   const nd_erofs_blob *blobs, nd_erofs_claim *claims, nd_erofs_walk *walk)
{
    *walk = (nd_erofs_walk){0};
    if (image->meta_offset > length || length - image->meta_offset < NID_BYTES ||
        image->blob_count > 255 || image->chunk_size < BLOCK_BYTES ||
        (image->chunk_size & (image->chunk_size - 1)) != 0)
        return ND_EROFS_OUTSIDE;
    struct checker c = {
        .data = bootstrap,
        .length = length,
        .image = image,
        .blobs = blobs,
        .claims = claims,
        .nids = (length - image->meta_offset) / NID_BYTES,
        .left = length,
        .walk = walk,
    };
    uint64_t base = 0;
    for (uint32_t blob = 0; blob < image->blob_count; blob++) {
        c.claim_base[blob] = base;
        base += blobs[blob].chunks;
    }
    c.seen = calloc(c.nids / 8 + 1, 1);
    int fault = c.seen == NULL ? ND_EROFS_NO_MEMORY : walk_tree(&c);
    free(c.seen);
    free(c.waiting);
    return fault;
}
