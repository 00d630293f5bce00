/* Whether the kernel's EROFS will show a RAFS v6 bootstrap as we do (spec rafs-v6 §7 to §11).
 *
 * One walk over all that a path can reach. What is unusual is a fault, even where the kernel might cope:
 * then nobody has to know how it copes. No fault means: every name, inode, target, xattr and chunk index
 * is inside the file, in the form that both read alike, each directory is reached once, and each chunk
 * index names bytes within its device, the same for all who name the chunk.
 */
#ifndef ND_EROFS_CHECK_H
#define ND_EROFS_CHECK_H

#include <stddef.h>
#include <stdint.h>

typedef struct {
    uint64_t meta_offset; /* of nid 0 */
    uint64_t root_nid;
    uint32_t chunk_size; /* a power of two, 4096 or more */
    uint32_t blob_count; /* below 256 */
} nd_erofs_image;

typedef struct {
    uint32_t blocks; /* of 4096 bytes: its plain address space */
    uint32_t chunks;
} nd_erofs_blob;

/* What files say of one chunk; size 0: no file names it. */
typedef struct {
    uint32_t block, size;
} nd_erofs_claim;

enum nd_erofs_fault {
    ND_EROFS_FINE = 0,
    ND_EROFS_NO_MEMORY,
    ND_EROFS_OUTSIDE,   /* of the file */
    ND_EROFS_INODE,     /* a form, type or size that is not both ours and the kernel's */
    ND_EROFS_DIRECTORY, /* entries that are no sorted list of possible names, or lie about types */
    ND_EROFS_TWICE,     /* a directory that is reached by two paths */
    ND_EROFS_TARGET,    /* of a symlink */
    ND_EROFS_XATTR,
    ND_EROFS_OVERLAP,   /* more inodes, names and indexes than the file has room for */
    ND_EROFS_CHUNK,     /* an index that names no chunk, or not the one that another file names so */
};

typedef struct {
    uint64_t inodes;      /* reached */
    uint64_t with_xattrs; /* of these */
    uint64_t nid;         /* where the fault is */
} nd_erofs_walk;

/* Walk. `claims`: all zero, as many as the blobs have chunks, blob after blob. Returns a fault. */
int nd_erofs_check(const uint8_t *bootstrap, size_t length, const nd_erofs_image *image,
                   const nd_erofs_blob *blobs, nd_erofs_claim *claims, nd_erofs_walk *walk);

#endif
