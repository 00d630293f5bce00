/* The bitmap of a chunk map file, shared by every daemon on the cache (spec blobcache §3).
 *
 * `bits` is the bitmap alone, at least (count + 7) / 8 bytes: bit i of the map is bit 7 - i % 8 of byte
 * i / 8. Calls on one map may run at once, in several processes too: bits are only ever set, one atomic
 * or each. A `length` too short for `count`, or an index not below it, is refused with -1.
 */
#ifndef ND_CHUNK_MAP_H
#define ND_CHUNK_MAP_H

#include <stddef.h>
#include <stdint.h>

/* Set the bits in `indices`; the number of them that were clear before. Refused: nothing was set. */
int64_t nd_map_mark(uint8_t *bits, size_t length, uint64_t count, const uint32_t *indices,
                    size_t number);

/* 1 or 0. */
int64_t nd_map_is_ready(const uint8_t *bits, size_t length, uint64_t count, uint64_t index);

/* How many of the first `count` bits are set. */
int64_t nd_map_count_ready(const uint8_t *bits, size_t length, uint64_t count);

/* The first clear bit at or behind `start`, `count` if there is none. */
int64_t nd_map_next_absent(const uint8_t *bits, size_t length, uint64_t count, uint64_t start);

#endif
