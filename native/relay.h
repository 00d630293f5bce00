/* The relay: threads between /dev/fuse and Python. They answer READs of what a cache file holds
 * already, and requests for names and attributes of trees that they know. They queue every other
 * request, but FORGETs, which nobody here needs.
 *
 * Devices are descriptors of one FUSE connection: /dev/fuse itself, or clones of it. A reply goes to
 * the descriptor that its request was read from. Pointers given stay the caller's and must outlive
 * what they were given for; so must descriptors. All functions but start, stop and free may be
 * called from any thread at any time; those three by one caller, free only when all threads have
 * ended. Functions return 0 or what is said, or -errno: -EINVAL for offsets, counts and numbers that
 * do not fit each other, -ENOMEM.
 */
#ifndef ND_RELAY_H
#define ND_RELAY_H

#include "segment.h"
#include "tree_v6.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define ND_RELAY_THREADS_MAX 64
#define ND_REPLY_BYTES_MAX (1u << 20) /* a READ of more is Python's */
/* At least 8192 and max_write + 80, or the kernel gives nothing out. A BATCH_FORGET fills it, and
 * pages that were touched stay: so it is no larger than needed. */
#define ND_REQUEST_BYTES_MAX 16384

typedef struct nd_relay nd_relay;

enum nd_message_kind {
    /* A request as the kernel sent it, at least a whole header. */
    ND_MESSAGE_REQUEST = 0,
    /* u32 source, u32 chunk: a watched ready chunk was read; its watch bit is clear now. */
    ND_MESSAGE_TOUCHED = 1,
    /* i32 errno: a device cannot be read any more (unmounted: ENODEV). Once after each start. */
    ND_MESSAGE_ENDED = 2,
};

typedef struct {
    uint32_t length; /* of header and body; the next message begins at the next multiple of 8 */
    uint16_t kind, device;
} nd_message;

/* `wake_fd`: a non-blocking eventfd, left alone by others; readable exactly while something is
 * queued. NULL: no memory. */
nd_relay *nd_relay_new(int wake_fd);

/* Thread i reads devices[i % device_count]. More threads, up to threads_max, are started when all
 * wait for the disk. Clears O_NONBLOCK of the devices. -EBUSY: not stopped. */
int nd_relay_start(nd_relay *relay, const int *devices, size_t device_count, unsigned threads,
                   unsigned threads_max);

/* Have the threads end. What they took stays in the queue, later requests stay in the kernel.
 * -ETIMEDOUT: some have not ended (they wait for a disk) and will; stop again. */
int nd_relay_stop(nd_relay *relay, unsigned timeout_ms);

void nd_relay_free(nd_relay *relay);

/* A cache file and its chunk map. Returns its number, which is never given again. `watch`: bits as in
 * `bits`, or NULL. `hits`: one is added per run of a READ's bytes that lies in this source; or NULL. */
int nd_relay_add_source(nd_relay *relay, int fd, const uint8_t *bits, size_t bits_length,
                        uint64_t chunk_count, uint8_t *watch, uint64_t *hits);

/* Waits until no thread uses it. READs that need it are Python's from now on. -ENOENT. */
int nd_relay_drop_source(nd_relay *relay, unsigned source);

/* A file whose bytes lie in segments: ascending, not overlapping, of sources known now. Bytes between
 * them are zeros (`zero_gaps`) or Python's. -EEXIST. */
int nd_relay_add_file(nd_relay *relay, uint64_t nodeid, uint64_t size, const nd_segment *segments,
                      size_t count, int zero_gaps, nd_read_counts *counts);

/* A file that lies in its cache file at the same offsets. Chunk i is [4096 * blocks[i],
 * 4096 * blocks[i + 1]), the last one ends with the file; `blocks` are strictly ascending. Bytes
 * before chunk 0 need no bit. -EEXIST. */
int nd_relay_add_flat(nd_relay *relay, uint64_t nodeid, uint64_t size, unsigned source,
                      const uint32_t *blocks, size_t count, nd_read_counts *counts);

/* Waits until no thread uses it. -ENOENT. */
int nd_relay_drop_file(nd_relay *relay, uint64_t nodeid);

/* A tree: requests whose nodeid's top byte is `index` (not 0) are answered from it, as far as tree_v6.h
 * goes, and READs of its files that are not known by themselves. The struct is copied; what it points to
 * is borrowed. -EEXIST. */
int nd_relay_add_tree(nd_relay *relay, unsigned index, const nd_tree *tree);

/* Waits until no thread uses it. -ENOENT. */
int nd_relay_drop_tree(nd_relay *relay, unsigned index);

/* Take whole messages out of the queue, as many as fit; bytes copied, 0: nothing queued.
 * ND_REQUEST_BYTES_MAX + 8 bytes hold any message; -EMSGSIZE: the first one does not fit. */
ssize_t nd_relay_take(nd_relay *relay, uint8_t *room, size_t length);

/* Answer one READ from the caller's thread, which may wait for the disk: 1 done (or withdrawn), 0 it
 * is not a READ of bytes that are all there, or -errno of the reply's write. */
int nd_relay_answer(nd_relay *relay, int device_fd, const uint8_t *request, size_t length);

/* Requests dropped because they had not even a header. */
uint64_t nd_relay_dropped(const nd_relay *relay);

#endif
