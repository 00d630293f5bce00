/* Decryption of stored bytes: AES-XTS, each unit by itself (spec blob §11). */
#ifndef ND_CIPHER_H
#define ND_CIPHER_H

#include <stddef.h>
#include <stdint.h>

#define ND_TWEAK_BYTES 16
#define ND_UNIT_MIN_BYTES 16          /* what XTS needs; builders pad what is shorter */
#define ND_UNIT_MAX_BYTES (16u << 20) /* what XTS allows: 2^20 blocks */

/* One unit: `length` bytes at `offset` of the data. */
typedef struct {
    uint64_t offset;
    uint32_t length;
    uint32_t pad;
} nd_unit;

/* Decrypt each unit in its place, with the same key and tweak; what is between units stays.
 *
 * `key` holds both keys of XTS, one behind the other: 32 bytes for AES-128, 64 for AES-256. 0, or a
 * negative errno with the data changed in part: -EINVAL for another key length or a unit that is too
 * short, too long or not within the data; -ENOMEM also for what else OpenSSL may have against it.
 */
int nd_decrypt(uint8_t *data, size_t length, const nd_unit *units, size_t count, const uint8_t *key,
               size_t key_length, const uint8_t tweak[ND_TWEAK_BYTES]);

#endif
