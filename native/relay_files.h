/* Which bytes of which cache file a READ needs, and whether they are there.
 *
 * Sources and files come and go while threads read. A thread that reads is in a section, from
 * nd_read_begin to nd_read_end; what it found stays valid until then. Dropping unlinks under the lock,
 * so that no new section finds the object, and then waits until the sections that began before have
 * ended (relay_files.c: `drain`). So nothing is counted per object, and a READ costs two short locks.
 */
#ifndef ND_RELAY_FILES_H
#define ND_RELAY_FILES_H

#include "fuse_request.h"
#include "relay.h"

#include <pthread.h>

struct nd_source;
struct nd_file;

struct nd_files {
    pthread_mutex_t lock;
    pthread_cond_t changed; /* a drain may go on */
    unsigned phase;         /* the one that new sections count in */
    size_t readers[2];      /* sections not ended, by phase */
    bool is_draining;
    struct nd_source **sources; /* by number; NULL: dropped */
    size_t source_count, source_room;
    struct nd_file **buckets; /* chained, by nodeid */
    size_t file_count, bucket_count;
    void *spare; /* reply buffers, last used first: what idle ones touched stays small */
    unsigned spare_count, spare_max;
};

/* A section of one READ. */
struct nd_read {
    struct nd_files *files;
    const struct nd_file *file;
    struct nd_source **sources;
    size_t source_count;
    uint64_t offset, end; /* of the file; never past its size */
    uint8_t *room;        /* ND_REPLY_BYTES_MAX, page-aligned */
    unsigned phase;
};

int nd_files_init(struct nd_files *files);
void nd_files_free(struct nd_files *files);

/* The same as in relay.h, without `nd_relay`. */
int nd_files_add_source(struct nd_files *files, int fd, const uint8_t *bits, size_t bits_length,
                        uint64_t chunk_count, uint8_t *watch, uint64_t *hits);
int nd_files_drop_source(struct nd_files *files, unsigned number);
int nd_files_add_segments(struct nd_files *files, uint64_t nodeid, uint64_t size,
                          const nd_segment *segments, size_t count, bool zero_gaps,
                          nd_read_counts *counts);
int nd_files_add_flat(struct nd_files *files, uint64_t nodeid, uint64_t size, unsigned source,
                      const uint32_t *blocks, size_t count, nd_read_counts *counts);
int nd_files_drop(struct nd_files *files, uint64_t nodeid);

/* False, and no section: not a known file, or more than a reply buffer holds. */
bool nd_read_begin(struct nd_files *files, const nd_request *request, struct nd_read *read);

/* Put the bytes into `room`, if they are all there. `before_blocking` (or NULL) is called with `context`
 * each time before this waits for a disk. */
bool nd_read_fetch(struct nd_read *read, void (*before_blocking)(void *), void *context);

/* Add this read to the counts of its file and sources. */
void nd_read_count(struct nd_read *read, uint64_t latency_us);

/* Clear the watch bits of its chunks and tell of each that was set. */
void nd_read_touch(struct nd_read *read, void (*touched)(void *, uint32_t source, uint32_t chunk),
                   void *context);

void nd_read_end(struct nd_read *read);

#endif
