/* Tables of sources and files, and the walk from a range of a file to ranges of cache files. */
#define _GNU_SOURCE
#include "relay_files.h"

#include "chunk_map.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

_Static_assert(sizeof(nd_segment) == 32, "nydusd/native_relay.py packs segments of 32 bytes");
_Static_assert(sizeof(nd_read_counts) == 152, "nydusd/native_relay.py reads 19 counters");

#define BLOCK_BYTES 4096
#define NO_CHUNK UINT32_MAX /* bytes that need no bit */
#define NO_SOURCE UINT32_MAX /* zeros */

struct nd_source {
    int fd;
    bool refuses_nowait; /* its file system does not know RWF_NOWAIT */
    const uint8_t *bits;
    size_t bits_length;
    uint64_t chunk_count;
    uint8_t *watch;
    uint64_t *hits;
};

struct nd_file {
    struct nd_file *next;
    uint64_t nodeid, size;
    bool is_flat;
    const nd_segment *segments; /* or: */
    const uint32_t *blocks;
    size_t count; /* of either */
    uint32_t source; /* of a flat file */
    bool zero_gaps;
    nd_read_counts *counts;
};

int nd_files_init(struct nd_files *files)
{
    *files = (struct nd_files){.bucket_count = 64};
    files->buckets = calloc(files->bucket_count, sizeof *files->buckets);
    if (files->buckets == NULL)
        return -ENOMEM;
    pthread_mutex_init(&files->lock, NULL);
    pthread_cond_init(&files->changed, NULL);
    return 0;
}

void nd_files_free(struct nd_files *files)
{
    for (size_t i = 0; i < files->source_count; i++)
        free(files->sources[i]);
    free(files->sources);
    for (size_t i = 0; i < files->bucket_count; i++)
        for (struct nd_file *file = files->buckets[i], *next; file != NULL; file = next) {
            next = file->next;
            free(file);
        }
    free(files->buckets);
    for (void *room = files->spare, *next; room != NULL; room = next) {
        memcpy(&next, room, sizeof next);
        munmap(room, ND_REPLY_BYTES_MAX);
    }
    pthread_cond_destroy(&files->changed);
    pthread_mutex_destroy(&files->lock);
}

/* Wait, with the lock held, until every section that has begun by now has ended.
 *
 * New sections count in the other phase, so they cannot keep us waiting for ever. That phase is empty when
 * it begins: the drain before this one waited for it, and drains go one after another. A section that
 * began before our caller unlinked is in the phase we empty, or in the one that a drain ahead of us
 * empties before it is our turn. */
static void drain(struct nd_files *files)
{
    while (files->is_draining)
        pthread_cond_wait(&files->changed, &files->lock);
    files->is_draining = true;
    unsigned old = files->phase;
    files->phase = !old;
    while (files->readers[old] > 0)
        pthread_cond_wait(&files->changed, &files->lock);
    files->is_draining = false;
    pthread_cond_broadcast(&files->changed);
}

static bool is_aligned(const void *pointer, size_t to)
{
    return (uintptr_t)pointer % to == 0;
}

int nd_files_add_source(struct nd_files *files, int fd, const uint8_t *bits, size_t bits_length,
                        uint64_t chunk_count, uint8_t *watch, uint64_t *hits)
{
    if (fd < 0 || chunk_count > NO_CHUNK || (chunk_count + 7) / 8 > bits_length ||
        !is_aligned(hits, sizeof *hits))
        return -EINVAL;
    struct nd_source *source = malloc(sizeof *source);
    if (source == NULL)
        return -ENOMEM;
    *source = (struct nd_source){.fd = fd, .bits = bits, .bits_length = bits_length,
                                 .chunk_count = chunk_count, .watch = watch, .hits = hits};
    struct nd_source **outgrown = NULL;
    pthread_mutex_lock(&files->lock);
    int number = (int)files->source_count;
    if (files->source_count == files->source_room) {
        size_t room = 2 * files->source_room + 16;
        struct nd_source **larger = room < INT32_MAX ? calloc(room, sizeof *larger) : NULL;
        if (larger == NULL) {
            pthread_mutex_unlock(&files->lock);
            free(source);
            return -ENOMEM;
        }
        if (number > 0)
            memcpy(larger, files->sources, (size_t)number * sizeof *larger);
        outgrown = files->sources; /* sections may hold it, with its number of entries */
        files->sources = larger;
        files->source_room = room;
    }
    files->sources[files->source_count++] = source;
    if (outgrown != NULL)
        drain(files);
    pthread_mutex_unlock(&files->lock);
    free(outgrown);
    return number;
}

int nd_files_drop_source(struct nd_files *files, unsigned number)
{
    pthread_mutex_lock(&files->lock);
    struct nd_source *source = number < files->source_count ? files->sources[number] : NULL;
    if (source != NULL) {
        /* Sections that hold the table look at its entries without the lock. */
        __atomic_store_n(&files->sources[number], NULL, __ATOMIC_RELAXED);
        drain(files);
    }
    pthread_mutex_unlock(&files->lock);
    free(source);
    return source == NULL ? -ENOENT : 0;
}

static struct nd_file **bucket_of(struct nd_file **buckets, size_t count, uint64_t nodeid)
{
    return &buckets[(nodeid * UINT64_C(0x9e3779b97f4a7c15) >> 32) & (count - 1)];
}

/* The link that points to the file, or to the NULL behind its chain. */
static struct nd_file **find(struct nd_files *files, uint64_t nodeid)
{
    struct nd_file **link = bucket_of(files->buckets, files->bucket_count, nodeid);
    while (*link != NULL && (*link)->nodeid != nodeid)
        link = &(*link)->next;
    return link;
}

/* Double the buckets. Without memory the chains just grow longer. */
static void spread(struct nd_files *files)
{
    size_t count = 2 * files->bucket_count;
    struct nd_file **buckets = calloc(count, sizeof *buckets);
    if (buckets == NULL)
        return;
    for (size_t i = 0; i < files->bucket_count; i++)
        for (struct nd_file *file = files->buckets[i], *next; file != NULL; file = next) {
            struct nd_file **link = bucket_of(buckets, count, file->nodeid);
            next = file->next;
            file->next = *link;
            *link = file;
        }
    free(files->buckets);
    files->buckets = buckets;
    files->bucket_count = count;
}

static int add(struct nd_files *files, struct nd_file new)
{
    if (new.size > INT64_MAX || !is_aligned(new.counts, sizeof(uint64_t)))
        return -EINVAL;
    struct nd_file *file = malloc(sizeof *file);
    if (file == NULL)
        return -ENOMEM;
    *file = new;
    pthread_mutex_lock(&files->lock);
    if (files->file_count > files->bucket_count)
        spread(files);
    struct nd_file **link = find(files, new.nodeid);
    bool is_new = *link == NULL;
    if (is_new) {
        *link = file;
        files->file_count++;
    }
    pthread_mutex_unlock(&files->lock);
    if (!is_new)
        free(file);
    return is_new ? 0 : -EEXIST;
}

static size_t count_sources(struct nd_files *files)
{
    pthread_mutex_lock(&files->lock);
    size_t count = files->source_count;
    pthread_mutex_unlock(&files->lock);
    return count;
}

int nd_files_add_segments(struct nd_files *files, uint64_t nodeid, uint64_t size,
                          const nd_segment *segments, size_t count, bool zero_gaps,
                          nd_read_counts *counts)
{
    if (!is_aligned(segments, sizeof(uint64_t)))
        return -EINVAL;
    size_t sources = count_sources(files);
    uint64_t reached = 0;
    for (size_t i = 0; i < count; i++) {
        const nd_segment *segment = &segments[i];
        if (segment->length == 0 || segment->file_offset < reached ||
            segment->file_offset > INT64_MAX || segment->cache_offset > INT64_MAX - UINT32_MAX ||
            segment->source >= sources)
            return -EINVAL;
        reached = segment->file_offset + segment->length;
    }
    return add(files, (struct nd_file){.nodeid = nodeid, .size = size, .segments = segments,
                                       .count = count, .zero_gaps = zero_gaps, .counts = counts});
}

int nd_files_add_flat(struct nd_files *files, uint64_t nodeid, uint64_t size, unsigned source,
                      const uint32_t *blocks, size_t count, nd_read_counts *counts)
{
    if (!is_aligned(blocks, sizeof *blocks) || source >= count_sources(files))
        return -EINVAL;
    for (size_t i = 1; i < count; i++)
        if (blocks[i] <= blocks[i - 1]) /* the bit of a chunk before could be the one that counts */
            return -EINVAL;
    return add(files, (struct nd_file){.nodeid = nodeid, .size = size, .is_flat = true, .source = source,
                                       .blocks = blocks, .count = count, .counts = counts});
}

int nd_files_drop(struct nd_files *files, uint64_t nodeid)
{
    pthread_mutex_lock(&files->lock);
    struct nd_file **link = find(files, nodeid), *file = *link;
    if (file != NULL) {
        *link = file->next;
        files->file_count--;
        drain(files);
    }
    pthread_mutex_unlock(&files->lock);
    free(file);
    return file == NULL ? -ENOENT : 0;
}

bool nd_read_begin(struct nd_files *files, const nd_request *request, struct nd_read *read)
{
    if (request->size > ND_REPLY_BYTES_MAX)
        return false;
    pthread_mutex_lock(&files->lock);
    struct nd_file *file = *find(files, request->nodeid);
    if (file == NULL) {
        pthread_mutex_unlock(&files->lock);
        return false;
    }
    *read = (struct nd_read){.files = files, .file = file, .sources = files->sources,
                             .source_count = files->source_count, .phase = files->phase};
    files->readers[read->phase]++;
    read->room = files->spare;
    if (read->room != NULL) {
        memcpy(&files->spare, read->room, sizeof files->spare);
        files->spare_count--;
    }
    pthread_mutex_unlock(&files->lock);

    read->offset = request->offset < file->size ? request->offset : file->size;
    uint64_t behind = file->size - read->offset;
    read->end = read->offset + (request->size < behind ? request->size : behind);
    if (read->room == NULL) {
        void *room = mmap(NULL, ND_REPLY_BYTES_MAX, PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (room == MAP_FAILED) {
            nd_read_end(read);
            return false;
        }
        read->room = room;
    }
    return true;
}

void nd_read_end(struct nd_read *read)
{
    struct nd_files *files = read->files;
    pthread_mutex_lock(&files->lock);
    if (read->room != NULL && files->spare_count < files->spare_max) {
        memcpy(read->room, &files->spare, sizeof files->spare);
        files->spare = read->room;
        files->spare_count++;
        read->room = NULL;
    }
    if (--files->readers[read->phase] == 0 && files->is_draining)
        pthread_cond_broadcast(&files->changed);
    pthread_mutex_unlock(&files->lock);
    if (read->room != NULL)
        munmap(read->room, ND_REPLY_BYTES_MAX);
}

/* A walk from `position` to `end` of a file, one piece after another. */
struct walk {
    const struct nd_file *file;
    size_t next; /* segment or chunk that begins the next piece but one, at the latest */
    uint64_t position, end;
};

/* Bytes of one chunk, or of none. */
struct piece {
    uint32_t source, chunk;
    uint64_t cache_offset;
    uint64_t length;
};

static uint64_t end_of_segment(const nd_segment *segment)
{
    return segment->file_offset + segment->length;
}

static struct walk walk_of(const struct nd_read *read)
{
    const struct nd_file *file = read->file;
    size_t low = 0, high = file->count;
    while (low < high) { /* first segment that ends behind the offset, first chunk that begins behind it */
        size_t middle = low + (high - low) / 2;
        bool is_before = file->is_flat
                             ? (uint64_t)file->blocks[middle] * BLOCK_BYTES <= read->offset
                             : end_of_segment(&file->segments[middle]) <= read->offset;
        if (is_before)
            low = middle + 1;
        else
            high = middle;
    }
    return (struct walk){file, low, read->offset, read->end};
}

static bool step(struct walk *walk, struct piece *piece)
{
    if (walk->position >= walk->end)
        return false;
    const struct nd_file *file = walk->file;
    uint64_t limit = walk->end;
    if (file->is_flat) {
        uint32_t chunk = walk->next > 0 ? (uint32_t)(walk->next - 1) : NO_CHUNK;
        *piece = (struct piece){file->source, chunk, walk->position, 0};
        if (walk->next < file->count)
            limit = (uint64_t)file->blocks[walk->next++] * BLOCK_BYTES;
    } else {
        *piece = (struct piece){NO_SOURCE, NO_CHUNK, 0, 0};
        const nd_segment *segment = &file->segments[walk->next];
        if (walk->next < file->count && segment->file_offset > walk->position) {
            limit = segment->file_offset;
        } else if (walk->next < file->count) {
            uint64_t skipped = walk->position - segment->file_offset;
            *piece = (struct piece){segment->source, segment->chunk,
                                    segment->cache_offset + skipped, 0};
            limit = end_of_segment(segment);
            walk->next++;
        }
    }
    piece->length = (limit < walk->end ? limit : walk->end) - walk->position;
    walk->position += piece->length;
    return true;
}

static struct nd_source *source_of(const struct nd_read *read, uint32_t number)
{
    return number < read->source_count ? __atomic_load_n(&read->sources[number], __ATOMIC_RELAXED)
                                       : NULL;
}

static bool is_all_ready(const struct nd_read *read)
{
    struct walk walk = walk_of(read);
    for (struct piece piece; step(&walk, &piece);) {
        if (piece.source == NO_SOURCE) {
            if (!read->file->zero_gaps)
                return false;
            continue;
        }
        const struct nd_source *source = source_of(read, piece.source);
        if (source == NULL ||
            (piece.chunk != NO_CHUNK && nd_map_is_ready(source->bits, source->bits_length,
                                                        source->chunk_count, piece.chunk) != 1))
            return false;
    }
    return true;
}

/* The page cache first; what it lacks, by waiting for the disk. Fewer bytes than asked for: the file was
 * cut short under its map, and the slow path knows what to do about it. */
static bool read_run(struct nd_source *source, uint8_t *target, const struct piece *run,
                     void (*before_blocking)(void *), void *context)
{
    bool may_wait = before_blocking == NULL;
    size_t done = 0;
    while (done < run->length) {
        struct iovec rest = {target + done, run->length - done};
        bool nowait = !may_wait && !__atomic_load_n(&source->refuses_nowait, __ATOMIC_RELAXED);
        if (!nowait && !may_wait) {
            before_blocking(context);
            may_wait = true;
        }
        ssize_t got = preadv2(source->fd, &rest, 1, (off_t)(run->cache_offset + done),
                              nowait ? RWF_NOWAIT : 0);
        if (got > 0) {
            done += (size_t)got;
        } else if (got < 0 && errno == EINTR) {
            continue;
        } else if (got < 0 && nowait && errno == EAGAIN) {
            before_blocking(context);
            may_wait = true;
        } else if (got < 0 && nowait && (errno == EOPNOTSUPP || errno == ENOSYS)) {
            __atomic_store_n(&source->refuses_nowait, true, __ATOMIC_RELAXED);
        } else {
            return false;
        }
    }
    return true;
}

bool nd_read_fetch(struct nd_read *read, void (*before_blocking)(void *), void *context)
{
    if (!is_all_ready(read))
        return false;
    struct walk walk = walk_of(read);
    struct piece run = {NO_SOURCE, NO_CHUNK, 0, 0};
    uint8_t *target = read->room;
    bool more;
    do { /* pieces that continue one another are one read */
        struct piece piece = {NO_SOURCE, NO_CHUNK, 0, 0};
        more = step(&walk, &piece);
        if (more && run.length > 0 && piece.source == run.source &&
            (run.source == NO_SOURCE || piece.cache_offset == run.cache_offset + run.length)) {
            run.length += piece.length;
            continue;
        }
        struct nd_source *source = source_of(read, run.source);
        if (run.source == NO_SOURCE)
            memset(target, 0, run.length);
        else if (source == NULL || !read_run(source, target, &run, before_blocking, context))
            return false;
        target += run.length;
        run = piece;
    } while (more);
    return true;
}

static void increase(uint64_t *counter, uint64_t by)
{
    __atomic_fetch_add(counter, by, __ATOMIC_RELAXED);
}

/* nydusd/storage/stats.py SIZE_BOUNDS_BYTES: the first bucket whose bound is above. */
static unsigned size_bucket(uint64_t bytes)
{
    static const uint64_t bounds[] = {1 << 10, 4 << 10, 16 << 10, 64 << 10, 128 << 10, 512 << 10, 1 << 20};
    unsigned bucket = 0;
    while (bucket < 7 && bytes >= bounds[bucket])
        bucket++;
    return bucket;
}

/* nydusd/kernel/stats.py READ_LATENCY_BOUNDS_US: the first bucket whose bound it does not exceed. */
static unsigned latency_bucket(uint64_t us)
{
    static const uint64_t bounds[] = {200, 1000, 20000, 50000, 500000, 1000000, 2000000};
    unsigned bucket = 0;
    while (bucket < 7 && us > bounds[bucket])
        bucket++;
    return bucket;
}

void nd_read_count(struct nd_read *read, uint64_t latency_us)
{
    nd_read_counts *counts = read->file->counts;
    if (counts != NULL) {
        uint64_t bytes = read->end - read->offset;
        increase(&counts->reads, 1);
        increase(&counts->bytes, bytes);
        increase(&counts->latency_us, latency_us);
        increase(&counts->by_size[size_bucket(bytes)], 1);
        increase(&counts->by_latency[latency_bucket(latency_us)], 1);
    }
    struct walk walk = walk_of(read);
    uint32_t last = NO_SOURCE;
    for (struct piece piece; step(&walk, &piece);) {
        if (piece.source == NO_SOURCE || piece.source == last)
            continue;
        last = piece.source;
        struct nd_source *source = source_of(read, last);
        if (source != NULL && source->hits != NULL)
            increase(source->hits, 1);
    }
}

void nd_read_touch(struct nd_read *read, void (*touched)(void *, uint32_t source, uint32_t chunk),
                   void *context)
{
    struct walk walk = walk_of(read);
    for (struct piece piece; step(&walk, &piece);) {
        struct nd_source *source = source_of(read, piece.source);
        if (source == NULL || source->watch == NULL || piece.chunk == NO_CHUNK)
            continue;
        uint8_t *byte = &source->watch[piece.chunk / 8], mask = (uint8_t)(0x80 >> piece.chunk % 8);
        /* Look first: a write would take the cache line from the other threads on every read. */
        if (__atomic_load_n(byte, __ATOMIC_RELAXED) & mask &&
            __atomic_fetch_and(byte, (uint8_t)~mask, __ATOMIC_RELAXED) & mask)
            touched(context, piece.source, piece.chunk);
    }
}
