/* One READ: which chunks, are they ready, their bytes, its counts. Four walks over the same pieces.
 * No sum can overflow: adding the file has checked its offsets. */
#define _GNU_SOURCE
#include "relay_parts.h"

#include "chunk_map.h"

#include <errno.h>
#include <string.h>
#include <sys/uio.h>

_Static_assert(sizeof(nd_segment) == 32, "nydusd/native_relay.py packs segments of 32 bytes");
_Static_assert(sizeof(nd_read_counts) == 152, "nydusd/native_relay.py reads 19 counters");

#define BLOCK_BYTES 4096
#define NONE UINT32_MAX

/* Bytes of one chunk. No chunk: nothing has to be ready for them. No source: zeros. */
struct piece {
    uint32_t source, chunk;
    uint64_t cache_offset, length;
};

struct walk {
    const struct nd_file *file;
    size_t next; /* segment that ends, or chunk that begins, behind position */
    uint64_t position, end;
};

static uint64_t begin_of_chunk(const struct nd_file *file, size_t chunk)
{
    return (uint64_t)file->blocks[chunk] * BLOCK_BYTES;
}

static uint64_t end_of_segment(const nd_segment *segment)
{
    return segment->file_offset + segment->length;
}

static struct walk walk_of(const struct nd_read *read)
{
    const struct nd_file *file = read->file;
    size_t low = 0, high = file->count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        uint64_t passed = file->is_flat ? begin_of_chunk(file, middle)
                                        : end_of_segment(&file->segments[middle]);
        if (passed <= read->offset)
            low = middle + 1;
        else
            high = middle;
    }
    return (struct walk){file, low, read->offset, read->end};
}

static bool step(struct walk *walk, struct piece *piece)
{
    const struct nd_file *file = walk->file;
    uint64_t position = walk->position, limit = walk->end;
    if (position >= limit)
        return false;
    *piece = (struct piece){NONE, NONE, 0, 0};
    if (file->is_flat) {
        uint32_t chunk = walk->next > 0 ? (uint32_t)walk->next - 1 : NONE;
        *piece = (struct piece){file->source, chunk, position, 0};
        if (walk->next < file->count)
            limit = begin_of_chunk(file, walk->next++);
    } else if (walk->next < file->count) {
        const nd_segment *segment = &file->segments[walk->next];
        if (segment->file_offset > position) { /* a gap comes first */
            limit = segment->file_offset;
        } else {
            uint64_t cache_offset = segment->cache_offset + (position - segment->file_offset);
            *piece = (struct piece){segment->source, segment->chunk, cache_offset, 0};
            limit = end_of_segment(segment);
            walk->next++;
        }
    }
    walk->position = limit < walk->end ? limit : walk->end;
    piece->length = walk->position - position;
    return true;
}

static struct nd_source *source_of(const struct nd_read *read, uint32_t number)
{
    if (number >= read->source_count)
        return NULL;
    return __atomic_load_n(&read->sources[number], __ATOMIC_RELAXED);
}

static bool is_all_ready(const struct nd_read *read)
{
    struct walk walk = walk_of(read);
    for (struct piece piece; step(&walk, &piece);) {
        if (piece.source == NONE) {
            if (!read->file->zero_gaps)
                return false;
            continue;
        }
        const struct nd_source *source = source_of(read, piece.source);
        if (source == NULL)
            return false;
        if (piece.chunk == NONE)
            continue;
        if (nd_map_is_ready(source->bits, source->bits_length, source->chunk_count, piece.chunk) != 1)
            return false;
    }
    return true;
}

/* First what the page cache has, then the rest by waiting for the disk. An end of file means that it
 * was cut short under its map, and Python knows what to do about that. */
static bool read_run(nd_relay *relay, const struct nd_source *source, const struct piece *run,
                     uint8_t *target, bool may_wait)
{
    struct iovec rest = {target, run->length};
    uint64_t offset = run->cache_offset;
    while (rest.iov_len > 0) {
        ssize_t got = preadv2(source->fd, &rest, 1, (off_t)offset, may_wait ? 0 : RWF_NOWAIT);
        if (got > 0) {
            rest.iov_base = (uint8_t *)rest.iov_base + got;
            rest.iov_len -= (size_t)got;
            offset += (uint64_t)got;
        } else if (got == 0 || may_wait) {
            return false;
        } else if (errno == EAGAIN || errno == EOPNOTSUPP) {
            nd_relay_keep_one_waiting(relay);
            may_wait = true;
        } else {
            return false;
        }
    }
    return true;
}

bool nd_read_fetch(nd_relay *relay, struct nd_read *read, bool may_wait)
{
    if (!is_all_ready(read))
        return false;
    struct walk walk = walk_of(read);
    struct piece run = {NONE, NONE, 0, 0}, piece;
    uint8_t *target = read->room;
    bool has_more;
    do { /* pieces that continue one another are read as one */
        has_more = step(&walk, &piece);
        if (has_more && piece.source == run.source &&
            (run.source == NONE || piece.cache_offset == run.cache_offset + run.length)) {
            run.length += piece.length;
            continue;
        }
        const struct nd_source *source = source_of(read, run.source);
        if (run.source == NONE)
            memset(target, 0, run.length);
        else if (source == NULL || !read_run(relay, source, &run, target, may_wait))
            return false;
        target += run.length;
        run = piece;
    } while (has_more);
    return true;
}

static void increase(uint64_t *counter, uint64_t by)
{
    __atomic_fetch_add(counter, by, __ATOMIC_RELAXED);
}

/* nydusd/storage/stats.py SIZE_BOUNDS_BYTES: the first bucket whose bound is above. */
static unsigned size_bucket(uint64_t bytes)
{
    static const uint32_t bounds[] = {1 << 10,   4 << 10,   16 << 10, 64 << 10,
                                      128 << 10, 512 << 10, 1 << 20};
    unsigned bucket = 0;
    while (bucket < sizeof bounds / sizeof *bounds && bytes >= bounds[bucket])
        bucket++;
    return bucket;
}

/* nydusd/kernel/stats.py READ_LATENCY_BOUNDS_US: the first bucket whose bound it does not exceed. */
static unsigned latency_bucket(uint64_t us)
{
    static const uint32_t bounds[] = {200, 1000, 20000, 50000, 500000, 1000000, 2000000};
    unsigned bucket = 0;
    while (bucket < sizeof bounds / sizeof *bounds && us > bounds[bucket])
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
    uint32_t last = NONE;
    for (struct piece piece; step(&walk, &piece);) {
        const struct nd_source *source = source_of(read, piece.source);
        if (source == NULL || piece.source == last)
            continue;
        last = piece.source;
        if (source->hits != NULL)
            increase(source->hits, 1);
    }
}

void nd_read_touch(nd_relay *relay, struct nd_read *read)
{
    struct walk walk = walk_of(read);
    for (struct piece piece; step(&walk, &piece);) {
        const struct nd_source *source = source_of(read, piece.source);
        if (source == NULL || source->watch == NULL || piece.chunk == NONE)
            continue;
        uint8_t *byte = &source->watch[piece.chunk / 8], mask = (uint8_t)(0x80 >> piece.chunk % 8);
        /* Look before writing, which would take the cache line from the other threads each time. */
        if (!(__atomic_load_n(byte, __ATOMIC_RELAXED) & mask) ||
            !(__atomic_fetch_and(byte, (uint8_t)~mask, __ATOMIC_RELAXED) & mask))
            continue;
        const uint32_t body[] = {piece.source, piece.chunk};
        /* Lost without memory: it is a hint, nothing rests on it. */
        nd_queue_put(&relay->queue, ND_MESSAGE_TOUCHED, 0, body, sizeof body);
    }
}
