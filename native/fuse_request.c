/* The kernel writes requests in host order and padded to its structs; copies spare us alignment. */
#include "fuse_request.h"

#include <linux/fuse.h>
#include <string.h>

enum nd_request_kind nd_request_parse(const uint8_t *bytes, size_t length, nd_request *request)
{
    struct fuse_in_header header;
    if (length < sizeof header)
        return ND_REQUEST_HEADLESS;
    memcpy(&header, bytes, sizeof header);
    *request = (nd_request){.unique = header.unique};
    if (header.len != length)
        return ND_REQUEST_OTHER;
    if (header.opcode == FUSE_FORGET || header.opcode == FUSE_BATCH_FORGET)
        return ND_REQUEST_FORGET;
    struct fuse_read_in read;
    if (header.opcode != FUSE_READ || length - sizeof header < sizeof read)
        return ND_REQUEST_OTHER;
    memcpy(&read, bytes + sizeof header, sizeof read); /* extensions may follow; none concerns us */
    if (read.offset > INT64_MAX)
        return ND_REQUEST_OTHER;
    request->nodeid = header.nodeid;
    request->offset = read.offset;
    request->size = read.size;
    return ND_REQUEST_READ;
}
