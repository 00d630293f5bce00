/* Requests for names and attributes, answered from a mapped RAFS v6 bootstrap (spec rafs-v6 §7, §8).
 *
 * Pure but for the counters. Only what is as it should be is answered here: whatever breaks a rule, is
 * unusual, or is not served here, is left to Python, which knows the words for it. What is answered is
 * what Python would have answered, byte by byte.
 */
#ifndef ND_TREE_V6_H
#define ND_TREE_V6_H

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
} nd_tree;

/* Write the reply's payload into `reply` and return its length, or ND_TREE_ASK. `request`: as read from
 * /dev/fuse, any bytes; its nodeid's top byte is that of `tree`. `room`: ND_TREE_REPLY_BYTES_MAX. */
ssize_t nd_tree_answer(const nd_tree *tree, const uint8_t *request, size_t length, uint8_t *reply,
                       size_t room);

#endif
