/* What the bytes of a READ are put together from, and what is counted of READs. */
#ifndef ND_SEGMENT_H
#define ND_SEGMENT_H

#include <stdint.h>

typedef struct {
    uint64_t file_offset, cache_offset;
    uint32_t length; /* not 0 */
    uint32_t chunk;  /* whose bit says that the bytes are there */
    uint32_t source;
    uint32_t pad;
} nd_segment;

/* Replies with data. Added to atomically and before the reply is written, so that who has read finds
 * that read in them. */
typedef struct {
    uint64_t reads, bytes, latency_us; /* from the request's arrival to its reply */
    uint64_t by_size[8], by_latency[8];
} nd_read_counts;

#endif
