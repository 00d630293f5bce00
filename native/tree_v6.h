/* Requests for names, attributes and bytes, answered from a mapped RAFS v6 bootstrap (spec rafs-v6 §7, §8, §11).
 *
 * Pure but for the counters. Only what is as it should be is answered here: whatever breaks a rule, is
 * unusual, or is not served here, is left to Python, which knows the words for it. What is answered is
 * what Python would have answered, byte by byte.
 */
#ifndef ND_TREE_V6_H
#define ND_TREE_V6_H

#include "segment.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define ND_TREE_REPLY_BYTES_MAX 32768 /* a longer listing comes in parts */
#define ND_TREE_ASK (-1)              /* Python's */

/* Requests answered. Added to atomically, before the reply is written. */
typedef struct {
    uint64_t lookups, getattrs, listings;
    int64_t open; /* files and directories: opened less released */
} nd_tree_counts;

/* One blob of the image. */
typedef struct {
    const uint8_t *records; /* its own chunk records (chunk_layout.h); NULL: not known yet */
    uint64_t count;
    uint32_t record_bytes;
    uint32_t source; /* the relay's, of its cache file */
} nd_tree_blob;

typedef struct {
    const uint8_t *bytes; /* the bootstrap */
    uint64_t length;
    uint64_t meta_offset; /* of nid 0 */
    uint64_t root_nid;
    uint32_t block_size; /* powers of two */
    uint32_t chunk_size;
    uint64_t high;       /* what a nodeid has besides the nid: index << 56 */
    uint64_t generation;
    int64_t mounted_at_s; /* stands in for times that are not recorded */
    uint32_t uid, gid;    /* stand in for owners that do not count */
    bool explicit_ids;    /* the image's owners count */
    nd_tree_counts *counts;
    nd_read_counts *reads; /* of its files; or NULL */
    nd_tree_blob *blobs;   /* in the order of the device table; see nd_tree_set_blob */
    uint32_t blob_count;
} nd_tree;

/* Write the reply's payload into `reply` and return its length, or ND_TREE_ASK. `request`: as read from
 * /dev/fuse, any bytes; its nodeid's top byte is that of `tree`. `room`: ND_TREE_REPLY_BYTES_MAX. */
ssize_t nd_tree_answer(const nd_tree *tree, const uint8_t *request, size_t length, uint8_t *reply,
                       size_t room);

/* Files have bytes in this blob from now on; once for each. Threads may use the tree meanwhile. False: there
 * is no such blob, it is known already, or `length` bytes do not hold `count` records of that size. */
bool nd_tree_set_blob(const nd_tree *tree, uint32_t number, uint32_t source, const uint8_t *records,
                      size_t length, uint32_t record_bytes, uint64_t count);

/* Say where bytes [offset, offset + length) of a file lie, as far as it has them, and how long it is. Returns
 * the number of segments, or ND_TREE_ASK: no file, more than `room` segments, or not known here. */
int nd_tree_segments(const nd_tree *tree, uint64_t nodeid, uint64_t offset, uint64_t length,
                     uint64_t *size, nd_segment *segments, unsigned room);

/* A regular file's size, and its chunk indexes, all of them within the bootstrap. False: it is none, or breaks
 * a rule. */
bool nd_tree_find_file(const nd_tree *tree, uint64_t nodeid, uint64_t *size,
                       const uint8_t **indexes);

#endif
