/* Sources and files by number, and the sections that use them (relay_parts.h, struct nd_files). */
#define _GNU_SOURCE
#include "relay_parts.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

int nd_files_init(struct nd_files *files)
{
    *files = (struct nd_files){.bucket_count = 64, .spare_max = 1};
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
    for (size_t i = 0; i < ND_TREES_MAX; i++)
        free(files->trees[i]);
    for (void *room = files->spare, *next; room != NULL; room = next) {
        memcpy(&next, room, sizeof next);
        munmap(room, ND_REPLY_BYTES_MAX);
    }
    pthread_cond_destroy(&files->changed);
    pthread_mutex_destroy(&files->lock);
}

/* Wait, with the lock held, until every section that has begun by now has ended.
 *
 * New sections count in the other phase, so they cannot keep us waiting for ever. That phase is
 * empty when it begins: the drain before this one waited for it, and drains go one after another.
 * A section that began before our caller unlinked is in the phase that we empty, or in the one that
 * a drain ahead of us empties before it is our turn. */
static void drain(struct nd_files *files)
{
    while (files->is_draining)
        pthread_cond_wait(&files->changed, &files->lock);
    files->is_draining = true;
    unsigned old = files->phase;
    files->phase = !old;
    while (files->sections[old] > 0)
        pthread_cond_wait(&files->changed, &files->lock);
    files->is_draining = false;
    pthread_cond_broadcast(&files->changed);
}

static bool is_aligned(const void *pointer, size_t to)
{
    return (uintptr_t)pointer % to == 0;
}

/* With the lock held. The table is replaced, not moved: sections look at the old one. Returns that
 * one, to be freed after a drain. */
static int double_sources(struct nd_files *files, struct nd_source ***outgrown)
{
    size_t room = 2 * files->source_room + 16;
    struct nd_source **larger = room <= INT32_MAX ? calloc(room, sizeof *larger) : NULL;
    if (larger == NULL)
        return -ENOMEM;
    for (size_t i = 0; i < files->source_count; i++)
        larger[i] = files->sources[i];
    *outgrown = files->sources;
    files->sources = larger;
    files->source_room = room;
    return 0;
}

int nd_relay_add_source(nd_relay *relay, int fd, const uint8_t *bits, size_t bits_length,
                        uint64_t chunk_count, uint8_t *watch, uint64_t *hits)
{
    if (fd < 0 || chunk_count > UINT32_MAX || (chunk_count + 7) / 8 > bits_length ||
        !is_aligned(hits, sizeof *hits))
        return -EINVAL;
    struct nd_source *source = malloc(sizeof *source);
    if (source == NULL)
        return -ENOMEM;
    *source = (struct nd_source){fd, bits, bits_length, chunk_count, watch, hits};
    struct nd_files *files = &relay->files;
    struct nd_source **outgrown = NULL;
    pthread_mutex_lock(&files->lock);
    int number = (int)files->source_count;
    if (files->source_count == files->source_room && double_sources(files, &outgrown) != 0)
        number = -ENOMEM;
    else
        files->sources[files->source_count++] = source;
    if (outgrown != NULL)
        drain(files);
    pthread_mutex_unlock(&files->lock);
    free(outgrown);
    if (number < 0)
        free(source);
    return number;
}

int nd_relay_drop_source(nd_relay *relay, unsigned source)
{
    struct nd_files *files = &relay->files;
    struct nd_source *dropped = NULL;
    pthread_mutex_lock(&files->lock);
    if (source < files->source_count)
        dropped = files->sources[source];
    if (dropped != NULL) {
        /* Sections look at the entry without the lock. */
        __atomic_store_n(&files->sources[source], NULL, __ATOMIC_RELAXED);
        drain(files);
    }
    pthread_mutex_unlock(&files->lock);
    free(dropped);
    return dropped == NULL ? -ENOENT : 0;
}

static struct nd_file **bucket_of(struct nd_file **buckets, size_t count, uint64_t nodeid)
{
    return &buckets[(nodeid * UINT64_C(0x9e3779b97f4a7c15) >> 32) & (count - 1)];
}

/* The link that points to the file, or the one at the end of its bucket. */
static struct nd_file **find(struct nd_files *files, uint64_t nodeid)
{
    struct nd_file **link = bucket_of(files->buckets, files->bucket_count, nodeid);
    while (*link != NULL && (*link)->nodeid != nodeid)
        link = &(*link)->next;
    return link;
}

/* Without memory for it the buckets just grow longer. */
static void double_buckets(struct nd_files *files)
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
    if (files->file_count >= files->bucket_count)
        double_buckets(files);
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

int nd_relay_add_file(nd_relay *relay, uint64_t nodeid, uint64_t size, const nd_segment *segments,
                      size_t count, int zero_gaps, nd_read_counts *counts)
{
    if (!is_aligned(segments, sizeof(uint64_t)))
        return -EINVAL;
    size_t source_count = count_sources(&relay->files);
    uint64_t reached = 0;
    for (size_t i = 0; i < count; i++) {
        const nd_segment *segment = &segments[i];
        if (segment->length == 0 || segment->file_offset < reached ||
            segment->file_offset > INT64_MAX || segment->cache_offset > INT64_MAX - UINT32_MAX ||
            segment->source >= source_count)
            return -EINVAL;
        reached = segment->file_offset + segment->length;
    }
    return add(&relay->files, (struct nd_file){.nodeid = nodeid,
                                               .size = size,
                                               .segments = segments,
                                               .count = count,
                                               .zero_gaps = zero_gaps != 0,
                                               .counts = counts});
}

int nd_relay_add_flat(nd_relay *relay, uint64_t nodeid, uint64_t size, unsigned source,
                      const uint32_t *blocks, size_t count, nd_read_counts *counts)
{
    if (!is_aligned(blocks, sizeof *blocks) || source >= count_sources(&relay->files))
        return -EINVAL;
    for (size_t i = 1; i < count; i++)
        if (blocks[i] <= blocks[i - 1]) /* two chunks of one block: no telling whose bit counts */
            return -EINVAL;
    return add(&relay->files, (struct nd_file){.nodeid = nodeid,
                                               .size = size,
                                               .is_flat = true,
                                               .source = source,
                                               .blocks = blocks,
                                               .count = count,
                                               .counts = counts});
}

int nd_relay_drop_file(nd_relay *relay, uint64_t nodeid)
{
    struct nd_files *files = &relay->files;
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

int nd_relay_add_tree(nd_relay *relay, unsigned index, const nd_tree *tree)
{
    if (index == 0 || index >= ND_TREES_MAX || tree->high != (uint64_t)index << 56 ||
        tree->bytes == NULL || tree->block_size == 0 || tree->chunk_size == 0 ||
        tree->counts == NULL || !is_aligned(tree->counts, sizeof(uint64_t)))
        return -EINVAL;
    nd_tree *copy = malloc(sizeof *copy);
    if (copy == NULL)
        return -ENOMEM;
    *copy = *tree;
    struct nd_files *files = &relay->files;
    pthread_mutex_lock(&files->lock);
    bool is_new = files->trees[index] == NULL;
    if (is_new)
        files->trees[index] = copy;
    pthread_mutex_unlock(&files->lock);
    if (!is_new)
        free(copy);
    return is_new ? 0 : -EEXIST;
}

int nd_relay_drop_tree(nd_relay *relay, unsigned index)
{
    if (index >= ND_TREES_MAX)
        return -ENOENT;
    struct nd_files *files = &relay->files;
    pthread_mutex_lock(&files->lock);
    nd_tree *tree = files->trees[index];
    files->trees[index] = NULL;
    if (tree != NULL)
        drain(files);
    pthread_mutex_unlock(&files->lock);
    free(tree);
    return tree == NULL ? -ENOENT : 0;
}

const nd_tree *nd_tree_begin(struct nd_files *files, uint64_t nodeid, unsigned *phase)
{
    pthread_mutex_lock(&files->lock);
    const nd_tree *tree = files->trees[nodeid >> 56];
    if (tree != NULL) {
        *phase = files->phase;
        files->sections[*phase]++;
    }
    pthread_mutex_unlock(&files->lock);
    return tree;
}

/* With the lock held. */
static void end_section(struct nd_files *files, unsigned phase)
{
    if (--files->sections[phase] == 0 && files->is_draining)
        pthread_cond_broadcast(&files->changed);
}

void nd_tree_end(struct nd_files *files, unsigned phase)
{
    pthread_mutex_lock(&files->lock);
    end_section(files, phase);
    pthread_mutex_unlock(&files->lock);
}

/* Make `read->file` a file of the tree, as far as this READ goes. */
static bool find_in_tree(const nd_tree *tree, const nd_request *request, struct nd_read *read)
{
    uint64_t size;
    int count = nd_tree_segments(tree, request->nodeid, request->offset, request->size, &size,
                                 read->segments, ND_READ_SEGMENTS_MAX);
    if (count < 0)
        return false;
    read->found = (struct nd_file){.nodeid = request->nodeid,
                                   .size = size,
                                   .segments = read->segments,
                                   .count = (size_t)count,
                                   .counts = tree->reads};
    read->file = &read->found;
    return true;
}

bool nd_read_begin(struct nd_files *files, const nd_request *request, struct nd_read *read)
{
    if (request->size > ND_REPLY_BYTES_MAX)
        return false;
    pthread_mutex_lock(&files->lock);
    read->file = *find(files, request->nodeid);
    const nd_tree *tree = read->file == NULL ? files->trees[request->nodeid >> 56] : NULL;
    if (read->file == NULL && tree == NULL) {
        pthread_mutex_unlock(&files->lock);
        return false;
    }
    read->sources = files->sources;
    read->source_count = files->source_count;
    read->phase = files->phase;
    files->sections[read->phase]++;
    read->room = files->spare;
    if (read->room != NULL) {
        memcpy(&files->spare, read->room, sizeof files->spare); /* the next one stands in it */
        files->spare_count--;
    }
    pthread_mutex_unlock(&files->lock);

    if (tree != NULL && !find_in_tree(tree, request, read)) {
        nd_read_end(files, read);
        return false;
    }
    uint64_t size = read->file->size;
    read->offset = request->offset < size ? request->offset : size;
    uint64_t left = size - read->offset;
    read->end = read->offset + (request->size < left ? request->size : left);
    if (read->room == NULL) {
        void *room = mmap(NULL, ND_REPLY_BYTES_MAX, PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (room == MAP_FAILED) {
            nd_read_end(files, read);
            return false;
        }
        read->room = room;
    }
    return true;
}

void nd_read_end(struct nd_files *files, struct nd_read *read)
{
    pthread_mutex_lock(&files->lock);
    if (read->room != NULL && files->spare_count < files->spare_max) {
        memcpy(read->room, &files->spare, sizeof files->spare);
        files->spare = read->room;
        files->spare_count++;
        read->room = NULL;
    }
    end_section(files, read->phase);
    pthread_mutex_unlock(&files->lock);
    if (read->room != NULL)
        munmap(read->room, ND_REPLY_BYTES_MAX);
}
