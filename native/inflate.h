/* Inflating from the middle of a gzip file: contexts of zran (spec blob §9). */
#ifndef ND_INFLATE_H
#define ND_INFLATE_H

#include <stddef.h>
#include <stdint.h>

#define ND_WINDOW_MAX_BYTES 32768 /* how far deflate looks back */

/* Inflate `stored`, which begins within a gzip member, into exactly `target_length` bytes.
 *
 * dictionary   what the member gave just before, as far as it is needed; length 0: nothing
 * prior_byte   the byte before `stored`, of which the `prior_bits` (0 to 7) high bits belong to it
 *
 * Where a member ends, its trailer is passed over and the next member's header is read, with an empty
 * window; CRCs of members that began within `stored` are checked if they end before the target is full.
 * A context that begins on the trailer of a member, as those of eStargz do (spec observed §4.4), begins
 * with the member behind it. Never writes past the target, whatever the bytes claim.
 *
 * 1: done. 0: the bytes do not decode to so many. -EINVAL: numbers that no context has. -ENOMEM.
 * On failure the target's content is undefined.
 */
int nd_inflate_context(const uint8_t *stored, size_t stored_length, const uint8_t *dictionary,
                       size_t dictionary_length, uint32_t prior_bits, uint32_t prior_byte,
                       uint8_t *target, size_t target_length);

#endif
