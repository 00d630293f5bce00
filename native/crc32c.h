/* CRC-32C (Castagnoli): polynomial 0x1EDC6F41, reflected, starts and ends with ~ (spec blob §6.3). */
#ifndef ND_CRC32C_H
#define ND_CRC32C_H

#include <stddef.h>
#include <stdint.h>

uint32_t nd_crc32c(const uint8_t *data, size_t length);

/* The same without the processor's CRC instructions: what runs where there are none. */
uint32_t nd_crc32c_by_table(const uint8_t *data, size_t length);

#endif
