/* What the relay's source files share. Every struct has one owner, named with it. */
#ifndef ND_RELAY_PARTS_H
#define ND_RELAY_PARTS_H

#include "fuse_request.h"
#include "relay.h"

#include <pthread.h>

/* ---- relay_queue.c: messages for Python ---- */

/* The eventfd is readable exactly while the queue holds something: both change under one lock, so
 * no wake-up is lost and none comes for nothing. The kernel bounds what it sends unanswered, so
 * nothing is bounded here. No malloc: each thread that calls it would get an arena of its own. */
struct nd_queue {
    pthread_mutex_t lock;
    int wake_fd;
    uint8_t *bytes; /* mapped; whole messages lie in [head, tail) */
    size_t room, head, tail;
};

int nd_queue_init(struct nd_queue *queue, int wake_fd);
void nd_queue_free(struct nd_queue *queue);

/* Append one message. 0, or -ENOMEM and the queue as it was. */
int nd_queue_put(struct nd_queue *queue, uint16_t kind, uint16_t device, const void *body,
                 size_t length);

/* ---- relay_files.c: what is known, and sections ---- */

struct nd_source {
    int fd;
    const uint8_t *bits;
    size_t bits_length;
    uint64_t chunk_count;
    uint8_t *watch;
    uint64_t *hits;
};

struct nd_file {
    struct nd_file *next; /* of its bucket */
    uint64_t nodeid, size;
    bool is_flat, zero_gaps;
    uint32_t source;            /* of a flat file */
    const uint32_t *blocks;     /* of a flat file */
    const nd_segment *segments; /* of any other */
    size_t count;               /* of either */
    nd_read_counts *counts;
};

#define ND_TREES_MAX 256

/* Sources, files and trees come and go while threads read. A READ is a section, from nd_read_begin to
 * nd_read_end; what it found stays valid until then. Dropping unlinks under the lock, so that no
 * new section finds the object, and then waits until the sections that began before have ended.
 * So nothing is counted per object, and a READ costs two short locks. */
struct nd_files {
    pthread_mutex_t lock;
    pthread_cond_t changed; /* a wait for sections may go on */
    unsigned phase;         /* the one that new sections count in */
    size_t sections[2];     /* not ended, by phase */
    bool is_draining;
    struct nd_source **sources; /* by number; NULL: dropped */
    size_t source_count, source_room;
    struct nd_file **buckets; /* by nodeid; their number is a power of two */
    size_t file_count, bucket_count;
    nd_tree *trees[ND_TREES_MAX]; /* by the top byte of the nodeid; NULL: none */
    void *spare; /* reply buffers, last used first: as many are touched as were used at once */
    unsigned spare_count, spare_max;
};

/* Of a file of a tree: what the longest READ touches if chunks are no longer than a block. */
#define ND_READ_SEGMENTS_MAX (ND_REPLY_BYTES_MAX / 4096 + 1)

/* A section of one READ. */
struct nd_read {
    const struct nd_file *file;
    struct nd_source **sources; /* as it was when the section began; entries may become NULL */
    size_t source_count;
    uint64_t offset, end; /* of the file; never past its size */
    uint8_t *room;        /* ND_REPLY_BYTES_MAX, page-aligned */
    unsigned phase;
    struct nd_file found; /* where `file` points if it is a tree's */
    nd_segment segments[ND_READ_SEGMENTS_MAX]; /* of `found` */
};

int nd_files_init(struct nd_files *files);
void nd_files_free(struct nd_files *files);

/* False, and no section: neither a known file nor one of a tree, or more than a reply buffer holds. */
bool nd_read_begin(struct nd_files *files, const nd_request *request, struct nd_read *read);
void nd_read_end(struct nd_files *files, struct nd_read *read);

/* The tree that a nodeid belongs to, and a section; NULL: none, and no section. */
const nd_tree *nd_tree_begin(struct nd_files *files, uint64_t nodeid, unsigned *phase);
void nd_tree_end(struct nd_files *files, unsigned phase);

/* ---- relay_read.c: from a range of a file to ranges of cache files ---- */

/* Put the bytes into `room`, if all are there. `may_wait`: for the disk, without a thing done first. */
bool nd_read_fetch(nd_relay *relay, struct nd_read *read, bool may_wait);

/* Add this read to the counts of its file and sources. */
void nd_read_count(struct nd_read *read, uint64_t latency_us);

/* Clear the watch bits of its chunks and queue a message for each that was set. */
void nd_read_touch(nd_relay *relay, struct nd_read *read);

/* ---- relay.c: threads ---- */

struct nd_worker {
    nd_relay *relay;
    pthread_t thread;
    uint16_t device; /* position in devices */
    bool has_ended;
};

struct nd_relay {
    struct nd_files files;
    struct nd_queue queue;
    uint64_t dropped;       /* atomic */
    pthread_mutex_t lock;   /* of all below */
    pthread_cond_t changed; /* a thread has ended */
    struct nd_worker workers[ND_RELAY_THREADS_MAX];
    unsigned started, running, threads_max;
    unsigned waiting; /* atomic: threads at a device, or on their way there from their start */
    bool is_stopping; /* atomic */
    bool has_told;    /* atomic: ENDED was queued */
    int devices[ND_RELAY_THREADS_MAX];
    size_t device_count;
};

/* To be called before a thread of the relay waits for the disk. */
void nd_relay_keep_one_waiting(nd_relay *relay);

#endif
