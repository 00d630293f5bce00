/* What a request read from /dev/fuse asks for, as far as the relay must know (linux/fuse.h).
 *
 * Pure: `bytes` may hold anything, its `length` bytes are all that is looked at.
 */
#ifndef ND_FUSE_REQUEST_H
#define ND_FUSE_REQUEST_H

#include <stddef.h>
#include <stdint.h>

enum nd_request_kind {
    ND_REQUEST_HEADLESS, /* shorter than a header: nobody can answer it */
    ND_REQUEST_FORGET,   /* FORGET, BATCH_FORGET: no reply is due */
    ND_REQUEST_READ,     /* a whole READ with an offset that a file can have */
    ND_REQUEST_OTHER,    /* everything else, malformed ones as well */
};

typedef struct {
    uint64_t unique; /* set for every kind but HEADLESS; the rest for READ only */
    uint64_t nodeid, offset;
    uint32_t size;
} nd_request;

enum nd_request_kind nd_request_parse(const uint8_t *bytes, size_t length, nd_request *request);

#endif
