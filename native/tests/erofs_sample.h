/* A small v6 tree in memory, for tests of erofs_check.c and for mutations of it. */
#ifndef ND_EROFS_SAMPLE_H
#define ND_EROFS_SAMPLE_H

#include "../erofs_check.h"

enum { BLOCK = 4096, META = BLOCK, CHUNKS = 6, SAMPLE_BYTES = 3 * BLOCK };

extern const nd_erofs_image erofs_sample_image;
extern const nd_erofs_blob erofs_sample_blob;

void make_erofs_sample(uint8_t *file); /* SAMPLE_BYTES */

#endif
