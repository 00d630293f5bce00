/* The relay over socket pairs that stand in for /dev/fuse: one end plays the kernel. */
#define _GNU_SOURCE
#include "../relay.h"

#include "../chunk_map.h"
#include "../relay_parts.h"
#include "check.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <poll.h>
#include <sched.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#define CHUNK_BYTES 16384
#define CHUNKS 40
#define PLAIN_BYTES (CHUNK_BYTES * CHUNKS - 1000)
#define BITS_BYTES (CHUNKS / 8)
#define NODE 5
#define SOON_MS 10000

/* A relay with one flat file of one source, no chunk of which is ready, and one device. */
struct bench {
    int kernel, device, wake, cache;
    uint8_t *plain, bits[BITS_BYTES], watch[BITS_BYTES];
    uint64_t hits;
    uint32_t blocks[CHUNKS];
    nd_read_counts counts;
    nd_relay *relay;
    unsigned source;
};

static int cache_with(const uint8_t *bytes, size_t length)
{
    int fd = memfd_create("cache", 0);
    CHECK(fd >= 0 && write(fd, bytes, length) == (ssize_t)length);
    return fd;
}

static struct bench *set_up(void)
{
    struct bench *bench = calloc(1, sizeof *bench);
    int pair[2], room = 4 << 20;
    if (bench == NULL || socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair) != 0)
        abort();
    bench->kernel = pair[0];
    bench->device = pair[1];
    setsockopt(bench->device, SOL_SOCKET, SO_SNDBUFFORCE, &room, sizeof room);
    setsockopt(bench->device, SOL_SOCKET, SO_SNDBUF, &room, sizeof room);
    bench->wake = eventfd(0, EFD_NONBLOCK);
    bench->plain = counted_bytes(PLAIN_BYTES);
    bench->cache = cache_with(bench->plain, PLAIN_BYTES);
    for (uint32_t i = 0; i < CHUNKS; i++)
        bench->blocks[i] = i * (CHUNK_BYTES / 4096);
    bench->relay = nd_relay_new(bench->wake);
    bench->source = (unsigned)nd_relay_add_source(bench->relay, bench->cache, bench->bits,
                                                  BITS_BYTES, CHUNKS, bench->watch, &bench->hits);
    CHECK(nd_relay_add_flat(bench->relay, NODE, PLAIN_BYTES, bench->source, bench->blocks, CHUNKS,
                            &bench->counts) == 0);
    return bench;
}

static void start(struct bench *bench, unsigned threads, unsigned threads_max)
{
    CHECK(nd_relay_start(bench->relay, &bench->device, 1, threads, threads_max) == 0);
}

static void tear_down(struct bench *bench)
{
    CHECK(nd_relay_stop(bench->relay, SOON_MS) == 0);
    nd_relay_free(bench->relay);
    close(bench->kernel);
    close(bench->device);
    close(bench->wake);
    close(bench->cache);
    free(bench->plain);
    free(bench);
}

static void mark(struct bench *bench, uint32_t first, uint32_t end)
{
    for (; first < end; first++)
        CHECK(nd_map_mark(bench->bits, BITS_BYTES, CHUNKS, &first, 1) >= 0);
}

static size_t make_read(uint8_t *room, uint64_t nodeid, uint64_t offset, uint32_t size)
{
    struct fuse_read_in read = {.offset = offset, .size = size};
    struct fuse_in_header header = {.len = sizeof header + sizeof read,
                                    .opcode = FUSE_READ,
                                    .unique = offset ^ size,
                                    .nodeid = nodeid};
    memcpy(room, &header, sizeof header);
    memcpy(room + sizeof header, &read, sizeof read);
    return header.len;
}

static void ask(struct bench *bench, uint64_t nodeid, uint64_t offset, uint32_t size)
{
    uint8_t request[256];
    size_t length = make_read(request, nodeid, offset, size);
    CHECK(send(bench->kernel, request, length, 0) == (ssize_t)length);
}

static bool is_readable(int fd, int timeout_ms)
{
    struct pollfd poll_fd = {.fd = fd, .events = POLLIN};
    return poll(&poll_fd, 1, timeout_ms) == 1;
}

/* The kernel gets a good reply to ask() with just these bytes. */
static void expect_reply(struct bench *bench, uint64_t offset, uint32_t size,
                         const uint8_t *bytes, size_t length)
{
    static uint8_t room[ND_REPLY_BYTES_MAX + 4096];
    struct fuse_out_header header;
    CHECK(is_readable(bench->kernel, SOON_MS));
    ssize_t got = recv(bench->kernel, room, sizeof room, MSG_DONTWAIT);
    CHECK(got == (ssize_t)(sizeof header + length));
    if (got != (ssize_t)(sizeof header + length))
        return;
    memcpy(&header, room, sizeof header);
    CHECK(header.error == 0 && header.unique == (offset ^ size) && header.len == (uint32_t)got);
    CHECK(memcmp(room + sizeof header, bytes, length) == 0);
}

/* The next message; its body has at most `length` bytes. */
static nd_message expect_message(struct bench *bench, uint8_t *body, size_t length)
{
    static uint8_t room[ND_REQUEST_BYTES_MAX + 8];
    nd_message message = {0};
    CHECK(is_readable(bench->wake, SOON_MS));
    ssize_t taken = nd_relay_take(bench->relay, room, sizeof message + ((length + 7) & ~7u));
    CHECK(taken > 0);
    if (taken > 0) {
        memcpy(&message, room, sizeof message);
        CHECK(message.length <= sizeof message + length);
        memcpy(body, room + sizeof message, message.length - sizeof message);
    }
    return message;
}

static void expect_queued_read(struct bench *bench, uint64_t offset)
{
    uint8_t body[80];
    struct fuse_read_in read;
    nd_message message = expect_message(bench, body, sizeof body);
    CHECK(message.kind == ND_MESSAGE_REQUEST && message.length == sizeof message + sizeof body);
    memcpy(&read, body + sizeof(struct fuse_in_header), sizeof read);
    CHECK(read.offset == offset);
}

static void ready_ranges_are_answered_and_counted(void)
{
    struct bench *bench = set_up();
    mark(bench, 2, 5);
    start(bench, 2, 2);
    uint32_t sizes[] = {1, 4096, 3 * CHUNK_BYTES};
    for (int i = 0; i < 3; i++) {
        ask(bench, NODE, 2 * CHUNK_BYTES, sizes[i]);
        expect_reply(bench, 2 * CHUNK_BYTES, sizes[i], bench->plain + 2 * CHUNK_BYTES, sizes[i]);
    }
    ask(bench, NODE, 5 * CHUNK_BYTES - 7, 7);
    expect_reply(bench, 5 * CHUNK_BYTES - 7, 7, bench->plain + 5 * CHUNK_BYTES - 7, 7);
    CHECK(bench->counts.reads == 4 && bench->hits == 4);
    CHECK(bench->counts.bytes == 8 + 4096 + 3 * CHUNK_BYTES);
    CHECK(bench->counts.by_size[0] == 2 && bench->counts.by_size[2] == 1);
    CHECK(bench->counts.by_size[3] == 1);
    uint64_t by_latency = 0;
    for (int i = 0; i < 8; i++)
        by_latency += bench->counts.by_latency[i];
    CHECK(by_latency == 4);
    CHECK(!is_readable(bench->wake, 0));
    tear_down(bench);
}

static void one_absent_chunk_makes_it_pythons(void)
{
    struct bench *bench = set_up();
    mark(bench, 0, 3);
    mark(bench, 4, 6);
    start(bench, 1, 1);
    ask(bench, NODE, 3 * CHUNK_BYTES - 1, CHUNK_BYTES + 2);
    expect_queued_read(bench, 3 * CHUNK_BYTES - 1);
    CHECK(!is_readable(bench->wake, 0));
    CHECK(bench->counts.reads == 0 && bench->hits == 0);

    uint8_t request[256];
    size_t length = make_read(request, NODE, 3 * CHUNK_BYTES - 1, 2);
    CHECK(nd_relay_answer(bench->relay, bench->device, request, length) == 0);
    mark(bench, 3, 4);
    CHECK(nd_relay_answer(bench->relay, bench->device, request, length) == 1);
    expect_reply(bench, 3 * CHUNK_BYTES - 1, 2, bench->plain + 3 * CHUNK_BYTES - 1, 2);
    CHECK(nd_relay_answer(bench->relay, bench->device, request, length - 1) == 0);
    CHECK(nd_relay_answer(bench->relay, -1, request, length) == -EBADF);
    make_read(request, NODE + 1, 0, 1);
    CHECK(nd_relay_answer(bench->relay, bench->device, request, length) == 0);
    tear_down(bench);
}

static void reads_end_with_the_file(void)
{
    struct bench *bench = set_up();
    mark(bench, 0, CHUNKS);
    start(bench, 1, 1);
    const uint64_t from[] = {PLAIN_BYTES - 10, PLAIN_BYTES, PLAIN_BYTES + 1, INT64_MAX};
    for (int i = 0; i < 4; i++) {
        ask(bench, NODE, from[i], 4096);
        expect_reply(bench, from[i], 4096, bench->plain + PLAIN_BYTES - 10, i == 0 ? 10 : 0);
    }
    ask(bench, NODE, 0, 0);
    expect_reply(bench, 0, 0, bench->plain, 0);
    ask(bench, NODE, 0, ND_REPLY_BYTES_MAX);
    expect_reply(bench, 0, ND_REPLY_BYTES_MAX, bench->plain, PLAIN_BYTES);
    ask(bench, NODE, 0, ND_REPLY_BYTES_MAX + 1);
    expect_queued_read(bench, 0);
    ask(bench, NODE, (uint64_t)INT64_MAX + 1, 1);
    expect_queued_read(bench, (uint64_t)INT64_MAX + 1);
    CHECK(bench->counts.reads == 6 && bench->counts.bytes == PLAIN_BYTES + 10);
    tear_down(bench);
}

static void bytes_before_the_first_chunk_need_no_bit(void)
{
    struct bench *bench = set_up();
    const uint32_t blocks[] = {2, 3};
    CHECK(nd_relay_add_flat(bench->relay, 6, 20000, bench->source, blocks, 2, NULL) == 0);
    start(bench, 1, 1);
    ask(bench, 6, 0, 2 * 4096);
    expect_reply(bench, 0, 2 * 4096, bench->plain, 2 * 4096);
    ask(bench, 6, 1, 2 * 4096);
    expect_queued_read(bench, 1);
    mark(bench, 0, 1);
    ask(bench, 6, 2, 3 * 4096 - 2);
    expect_reply(bench, 2, 3 * 4096 - 2, bench->plain + 2, 3 * 4096 - 2);
    mark(bench, 1, 2); /* reaches to the end of the file */
    ask(bench, 6, 3, 30000);
    expect_reply(bench, 3, 30000, bench->plain + 3, 20000 - 3);
    tear_down(bench);
}

/* A file of random segments from two sources, against the bytes that it should have. */
static void segments_give_the_bytes_that_they_name(void)
{
    struct bench *bench = set_up();
    uint8_t other_bits[BITS_BYTES], *other_plain = exactly(PLAIN_BYTES), *model = exactly(200000);
    memset(other_bits, 0xff, sizeof other_bits);
    memset(bench->bits, 0xff, BITS_BYTES);
    memset(other_plain, 0xee, PLAIN_BYTES);
    memset(model, 0, 200000);
    int other_fd = cache_with(other_plain, PLAIN_BYTES);
    uint64_t other_hits = 0, seed = 9, end = 0;
    int other = nd_relay_add_source(bench->relay, other_fd, other_bits, BITS_BYTES, CHUNKS, NULL,
                                    &other_hits);
    nd_segment segments[100];
    for (int i = 0; i < 100; i++) {
        uint32_t length = next_random(&seed) % 1500 + 1, kind = next_random(&seed) % 4;
        uint64_t gap = kind == 0 ? next_random(&seed) % 500 : 0;
        bool follows = i > 0 && kind == 1; /* one read for both */
        segments[i] = (nd_segment){
            .file_offset = end + gap,
            .cache_offset = follows ? segments[i - 1].cache_offset + segments[i - 1].length
                                    : next_random(&seed) % (PLAIN_BYTES - 200000),
            .length = length,
            .chunk = next_random(&seed) % CHUNKS,
            .source = follows ? segments[i - 1].source
                              : (next_random(&seed) % 2 ? (uint32_t)other : bench->source)};
        const uint8_t *from = segments[i].source == bench->source ? bench->plain : other_plain;
        memcpy(model + end + gap, from + segments[i].cache_offset, length);
        end += gap + length;
    }
    uint64_t size = end + 100;
    CHECK(nd_relay_add_file(bench->relay, 6, size, segments, 100, 1, &bench->counts) == 0);
    CHECK(nd_relay_add_file(bench->relay, 7, size, segments, 100, 0, NULL) == 0);
    CHECK(nd_relay_add_file(bench->relay, 8, 50, NULL, 0, 1, NULL) == 0);
    start(bench, 1, 1);
    for (int i = 0; i < 300; i++) {
        uint64_t offset = next_random(&seed) % size;
        uint32_t length = next_random(&seed) % 20000;
        ask(bench, 6, offset, length);
        expect_reply(bench, offset, length, model + offset,
                     length < size - offset ? length : size - offset);
    }
    CHECK(bench->counts.reads == 300 && bench->hits > 100 && other_hits > 100);
    ask(bench, 6, end + 1, 10); /* a gap alone */
    expect_reply(bench, end + 1, 10, model + end + 1, 10);
    ask(bench, 7, end - 1, 10);
    expect_queued_read(bench, end - 1);
    ask(bench, 7, end - 1, 1);
    expect_reply(bench, end - 1, 1, model + end - 1, 1);
    ask(bench, 8, 0, 50);
    expect_reply(bench, 0, 50, model + end, 50);
    tear_down(bench);
    close(other_fd);
    free(other_plain);
    free(model);
}

static void a_hit_is_counted_for_each_run_in_a_source(void)
{
    struct bench *bench = set_up();
    uint64_t hits = 0;
    memset(bench->bits, 0xff, BITS_BYTES);
    unsigned other = (unsigned)nd_relay_add_source(bench->relay, bench->cache, bench->bits,
                                                   BITS_BYTES, CHUNKS, NULL, &hits);
    const nd_segment segments[] = {{0, 0, 10, 0, bench->source, 0},
                                   {10, 500, 10, 1, bench->source, 0},
                                   {30, 0, 10, 2, other, 0}};
    CHECK(nd_relay_add_file(bench->relay, 6, 40, segments, 3, 1, NULL) == 0);
    start(bench, 1, 1);
    uint8_t expected[40] = {0};
    memcpy(expected, bench->plain, 10);
    memcpy(expected + 10, bench->plain + 500, 10);
    memcpy(expected + 30, bench->plain, 10);
    ask(bench, 6, 0, 40);
    expect_reply(bench, 0, 40, expected, 40);
    CHECK(bench->hits == 1 && hits == 1);
    tear_down(bench);
}

static void watched_chunks_are_told_once(void)
{
    struct bench *bench = set_up();
    mark(bench, 0, 8);
    bench->watch[0] = 0x7f; /* all but chunk 0 */
    start(bench, 2, 2);
    ask(bench, NODE, 0, 10);
    expect_reply(bench, 0, 10, bench->plain, 10);
    ask(bench, NODE, 10, 2 * CHUNK_BYTES);
    expect_reply(bench, 10, 2 * CHUNK_BYTES, bench->plain + 10, 2 * CHUNK_BYTES);
    for (uint32_t chunk = 1; chunk <= 2; chunk++) {
        uint32_t body[2];
        CHECK(expect_message(bench, (uint8_t *)body, sizeof body).kind == ND_MESSAGE_TOUCHED);
        CHECK(body[0] == bench->source && body[1] == chunk);
    }
    ask(bench, NODE, 10, 2 * CHUNK_BYTES);
    expect_reply(bench, 10, 2 * CHUNK_BYTES, bench->plain + 10, 2 * CHUNK_BYTES);
    CHECK(nd_relay_stop(bench->relay, SOON_MS) == 0); /* it would be queued by now */
    CHECK(!is_readable(bench->wake, 0) && bench->watch[0] == 0x1f);
    tear_down(bench);
}

static void a_file_that_was_cut_short_is_pythons(void)
{
    struct bench *bench = set_up();
    mark(bench, 0, CHUNKS);
    CHECK(ftruncate(bench->cache, 100) == 0);
    start(bench, 1, 1);
    ask(bench, NODE, 50, 51);
    expect_queued_read(bench, 50);
    ask(bench, NODE, 50, 50);
    expect_reply(bench, 50, 50, bench->plain + 50, 50);
    CHECK(bench->counts.reads == 1);
    tear_down(bench);
}

static void what_was_dropped_is_pythons(void)
{
    struct bench *bench = set_up();
    mark(bench, 0, CHUNKS);
    const nd_segment segment = {0, 0, 10, 0, bench->source, 0};
    CHECK(nd_relay_add_file(bench->relay, 6, 10, &segment, 1, 0, NULL) == 0);
    start(bench, 2, 2);
    CHECK(nd_relay_drop_file(bench->relay, NODE) == 0);
    CHECK(nd_relay_drop_file(bench->relay, NODE) == -ENOENT);
    ask(bench, NODE, 1, 1);
    expect_queued_read(bench, 1);
    ask(bench, 6, 0, 10);
    expect_reply(bench, 0, 10, bench->plain, 10);
    CHECK(nd_relay_drop_source(bench->relay, bench->source) == 0);
    CHECK(nd_relay_drop_source(bench->relay, bench->source) == -ENOENT);
    CHECK(nd_relay_drop_source(bench->relay, UINT32_MAX) == -ENOENT);
    ask(bench, 6, 2, 5);
    expect_queued_read(bench, 2);
    /* The number is not given again: an old file must not read from a new source. */
    CHECK(nd_relay_add_source(bench->relay, bench->cache, bench->bits, BITS_BYTES, CHUNKS, NULL,
                              NULL) == (int)bench->source + 1);
    ask(bench, 6, 3, 5);
    expect_queued_read(bench, 3);
    tear_down(bench);
}

static void numbers_that_do_not_fit_are_refused(void)
{
    struct bench *bench = set_up();
    nd_relay *relay = bench->relay;
    uint64_t room[8];
    uint8_t *odd = (uint8_t *)room + 1;
    CHECK(nd_relay_add_source(relay, -1, odd, 8, 64, NULL, NULL) == -EINVAL);
    CHECK(nd_relay_add_source(relay, 0, odd, 8, 65, NULL, NULL) == -EINVAL);
    CHECK(nd_relay_add_source(relay, 0, odd, 8, UINT64_MAX, NULL, NULL) == -EINVAL);
    CHECK(nd_relay_add_source(relay, 0, odd, 8, 64, NULL, (void *)odd) == -EINVAL);
    const uint32_t good[] = {0, 1}, equal[] = {1, 1}, back[] = {2, 1};
    CHECK(nd_relay_add_flat(relay, 9, 1, bench->source + 1, good, 2, NULL) == -EINVAL);
    CHECK(nd_relay_add_flat(relay, 9, 1, bench->source, equal, 2, NULL) == -EINVAL);
    CHECK(nd_relay_add_flat(relay, 9, 1, bench->source, back, 2, NULL) == -EINVAL);
    CHECK(nd_relay_add_flat(relay, 9, UINT64_MAX, bench->source, good, 2, NULL) == -EINVAL);
    CHECK(nd_relay_add_flat(relay, 9, 1, bench->source, good, 2, (void *)odd) == -EINVAL);
    CHECK(nd_relay_add_flat(relay, 9, 1, bench->source, (void *)odd, 1, NULL) == -EINVAL);
    CHECK(nd_relay_add_flat(relay, NODE, 1, bench->source, good, 2, NULL) == -EEXIST);
    const nd_segment bad[][2] = {
        {{0, 0, 0, 0, 0, 0}, {9, 0, 1, 0, 0, 0}},          /* empty */
        {{0, 0, 9, 0, 0, 0}, {8, 0, 1, 0, 0, 0}},          /* overlap */
        {{0, 0, 9, 0, 1, 0}, {9, 0, 1, 0, 0, 0}},          /* no such source */
        {{0, UINT64_MAX, 9, 0, 0, 0}, {9, 0, 1, 0, 0, 0}}, /* no such place */
        {{0, 0, 9, 0, 0, 0}, {UINT64_MAX, 0, 1, 0, 0, 0}},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        CHECK(nd_relay_add_file(relay, 9, 10, bad[i], 2, 1, NULL) == -EINVAL);
    CHECK(nd_relay_add_file(relay, 9, 10, (void *)odd, 0, 1, NULL) == -EINVAL);
    CHECK(nd_relay_drop_file(relay, 9) == -ENOENT);
    CHECK(nd_relay_start(relay, &bench->device, 0, 1, 1) == -EINVAL);
    CHECK(nd_relay_start(relay, &bench->device, 1, 0, 1) == -EINVAL);
    CHECK(nd_relay_start(relay, &bench->device, 1, 2, 1) == -EINVAL);
    CHECK(nd_relay_start(relay, &bench->device, 1, 1, ND_RELAY_THREADS_MAX + 1) == -EINVAL);
    const int closed = -1;
    CHECK(nd_relay_start(relay, &closed, 1, 1, 1) == -EBADF);
    start(bench, 1, 1);
    CHECK(nd_relay_start(relay, &bench->device, 1, 1, 1) == -EBUSY);
    tear_down(bench);
}

/* A chunk number that a segment may carry but the source does not have: not ready, for ever. */
static void a_chunk_past_the_map_is_never_ready(void)
{
    struct bench *bench = set_up();
    memset(bench->bits, 0xff, BITS_BYTES);
    const nd_segment segments[] = {{0, 0, 10, CHUNKS, bench->source, 0},
                                   {10, 0, 10, UINT32_MAX - 1, bench->source, 0}};
    CHECK(nd_relay_add_file(bench->relay, 6, 20, segments, 2, 0, NULL) == 0);
    start(bench, 1, 1);
    ask(bench, 6, 0, 1);
    expect_queued_read(bench, 0);
    ask(bench, 6, 10, 1);
    expect_queued_read(bench, 10);
    tear_down(bench);
}

static void only_forgets_and_headless_requests_vanish(void)
{
    struct bench *bench = set_up();
    mark(bench, 0, CHUNKS);
    start(bench, 1, 1);
    uint8_t request[ND_REQUEST_BYTES_MAX + 100] = {0}, body[ND_REQUEST_BYTES_MAX];
    struct fuse_in_header header = {.len = 48, .opcode = FUSE_FORGET, .nodeid = NODE};
    memcpy(request, &header, sizeof header);
    CHECK(send(bench->kernel, request, 48, 0) == 48);
    header.opcode = FUSE_BATCH_FORGET;
    memcpy(request, &header, sizeof header);
    CHECK(send(bench->kernel, request, 48, 0) == 48);
    CHECK(send(bench->kernel, request, sizeof header - 1, 0) == sizeof header - 1);
    CHECK(send(bench->kernel, request, 1, 0) == 1);

    /* Lengths that lie, a READ cut short, an unknown operation, one longer than the room. */
    size_t length = make_read(request, NODE, 0, 10);
    const size_t sent[] = {length - 1, length + 1, sizeof header};
    for (int i = 0; i < 3; i++) {
        CHECK(send(bench->kernel, request, sent[i], 0) == (ssize_t)sent[i]);
        nd_message message = expect_message(bench, body, sizeof body);
        CHECK(message.kind == ND_MESSAGE_REQUEST && message.length == sizeof message + sent[i]);
        CHECK(memcmp(body, request, sent[i]) == 0);
    }
    const uint32_t opcodes[] = {FUSE_READ, FUSE_INTERRUPT, FUSE_LOOKUP, UINT32_MAX};
    for (int i = 0; i < 4; i++) {
        header = (struct fuse_in_header){.len = 50, .opcode = opcodes[i], .nodeid = NODE};
        memcpy(request, &header, sizeof header);
        CHECK(send(bench->kernel, request, 50, 0) == 50);
        CHECK(expect_message(bench, body, sizeof body).length == sizeof(nd_message) + 50);
        CHECK(memcmp(body, request, 50) == 0);
    }
    header.len = sizeof request;
    memcpy(request, &header, sizeof header);
    CHECK(send(bench->kernel, request, sizeof request, 0) == sizeof request);
    CHECK(expect_message(bench, body, sizeof body).length ==
          sizeof(nd_message) + ND_REQUEST_BYTES_MAX);
    CHECK(nd_relay_dropped(bench->relay) == 2 && bench->counts.reads == 0);
    tear_down(bench);
}

/* A message numbered `number`: its body repeats its length. */
static bool is_numbered(const uint8_t *bytes, uint64_t number)
{
    nd_message message;
    uint64_t found;
    memcpy(&message, bytes, sizeof message);
    memcpy(&found, bytes + sizeof message, sizeof found);
    for (size_t i = sizeof found; i < message.device; i++)
        if (bytes[sizeof message + i] != (uint8_t)message.device)
            return false;
    return message.kind == 7 && message.length == sizeof message + message.device && found == number;
}

static void a_long_queue_keeps_order_and_lets_go_of_its_room(void)
{
    struct bench *bench = set_up();
    struct nd_queue *queue = &bench->relay->queue;
    size_t least = queue->room, most = 0;
    uint8_t body[512], room[4096];
    uint64_t put = 0, taken = 0, seed = 4;
    while (taken < 4000) { /* grows first, then moves, then shrinks */
        if (put < 4000 && (put < 1000 || next_random(&seed) % 4)) {
            uint16_t length = (uint16_t)(next_random(&seed) % 500 + sizeof put);
            memset(body, (uint8_t)length, length);
            memcpy(body, &put, sizeof put);
            CHECK(nd_queue_put(queue, 7, length, body, length) == 0);
            put++;
        } else {
            ssize_t got = nd_relay_take(bench->relay, room, next_random(&seed) % 3000 + 520);
            CHECK(got > 0 || taken == put);
            for (ssize_t at = 0; at < got; taken++) {
                nd_message message;
                memcpy(&message, room + at, sizeof message);
                CHECK(is_numbered(room + at, taken));
                at += (message.length + 7) & ~7u;
            }
        }
        CHECK(is_readable(bench->wake, 0) == (taken < put));
        most = queue->room > most ? queue->room : most;
    }
    CHECK(most >= 4 * least && queue->room == least);
    CHECK(nd_relay_take(bench->relay, room, 8) == 0);
    CHECK(nd_queue_put(queue, 7, 0, body, 1) == 0);
    CHECK(nd_relay_take(bench->relay, room, 8) == -EMSGSIZE);
    tear_down(bench);
}

static void a_stopped_relay_leaves_requests_in_the_kernel(void)
{
    struct bench *bench = set_up();
    start(bench, 3, 3);
    ask(bench, NODE, 1, 1);
    CHECK(is_readable(bench->wake, SOON_MS)); /* taken, so it stays in the queue */
    CHECK(nd_relay_stop(bench->relay, SOON_MS) == 0);
    CHECK(nd_relay_stop(bench->relay, SOON_MS) == 0);
    ask(bench, NODE, 2, 1);
    expect_queued_read(bench, 1);
    CHECK(!is_readable(bench->wake, 0) && is_readable(bench->device, 0));
    start(bench, 1, 1);
    expect_queued_read(bench, 2);
    tear_down(bench);
}

static void the_end_of_a_device_is_told_once(void)
{
    struct bench *bench = set_up();
    start(bench, 3, 3);
    CHECK(shutdown(bench->kernel, SHUT_RDWR) == 0);
    int32_t error = 0;
    CHECK(expect_message(bench, (uint8_t *)&error, sizeof error).kind == ND_MESSAGE_ENDED);
    CHECK(error == ECONNABORTED);
    CHECK(nd_relay_stop(bench->relay, SOON_MS) == 0);
    CHECK(!is_readable(bench->wake, 0));

    const int no_device = open("/dev/null", O_WRONLY); /* read(2): EBADF */
    CHECK(nd_relay_start(bench->relay, &no_device, 1, 2, 2) == 0);
    CHECK(expect_message(bench, (uint8_t *)&error, sizeof error).kind == ND_MESSAGE_ENDED);
    CHECK(error == EBADF);
    CHECK(nd_relay_stop(bench->relay, SOON_MS) == 0);
    close(no_device);
    tear_down(bench);
}

static void each_thread_answers_on_its_own_device(void)
{
    struct bench *bench = set_up();
    mark(bench, 0, CHUNKS);
    struct bench *second = set_up();
    const int devices[] = {bench->device, second->device};
    CHECK(nd_relay_start(bench->relay, devices, 2, 2, 2) == 0);
    ask(second, NODE, 1, 10);
    expect_reply(second, 1, 10, bench->plain + 1, 10);
    ask(second, NODE + 1, 1, 10);
    uint8_t body[80];
    CHECK(expect_message(bench, body, sizeof body).device == 1);
    ask(bench, NODE + 1, 1, 10);
    CHECK(expect_message(bench, body, sizeof body).device == 0);
    tear_down(bench);
    tear_down(second);
}

static void a_non_blocking_device_does_not_make_threads_spin(void)
{
    struct bench *bench = set_up();
    mark(bench, 0, CHUNKS);
    start(bench, 1, 1);
    CHECK(fcntl(bench->device, F_SETFL, O_NONBLOCK) == 0);
    for (uint64_t i = 0; i < 3; i++) {
        ask(bench, NODE, i, 10);
        expect_reply(bench, i, 10, bench->plain + i, 10);
    }
    struct timespec before, after;
    clockid_t clock;
    /* Processor time, not time: a thread that waits uses none, however busy the machine. */
    CHECK(pthread_getcpuclockid(bench->relay->workers[0].thread, &clock) == 0);
    clock_gettime(clock, &before);
    CHECK(!is_readable(bench->kernel, 100));
    clock_gettime(clock, &after);
    CHECK((after.tv_sec - before.tv_sec) * 1000000000 + after.tv_nsec - before.tv_nsec < 5000000);
    tear_down(bench);
}

static unsigned started(struct bench *bench)
{
    pthread_mutex_lock(&bench->relay->lock);
    unsigned count = bench->relay->started;
    pthread_mutex_unlock(&bench->relay->lock);
    return count;
}

static void who_is_about_to_wait_leaves_another_at_the_device(void)
{
    struct bench *bench = set_up();
    unsigned *waiting = &bench->relay->waiting;
    start(bench, 1, 3);
    nd_relay_keep_one_waiting(bench->relay);
    CHECK(started(bench) == 1);
    /* One thread after the other is held at the queue as they might be at a disk. */
    pthread_mutex_lock(&bench->relay->queue.lock);
    for (unsigned threads = 1; threads <= 3; threads++) {
        ask(bench, NODE, threads, 1);
        while (__atomic_load_n(waiting, __ATOMIC_SEQ_CST) > 0)
            sched_yield();
        CHECK(started(bench) == threads);
        nd_relay_keep_one_waiting(bench->relay);
        nd_relay_keep_one_waiting(bench->relay);
        CHECK(started(bench) == (threads < 3 ? threads + 1 : 3));
    }
    pthread_mutex_unlock(&bench->relay->queue.lock);
    CHECK(nd_relay_stop(bench->relay, SOON_MS) == 0);
    start(bench, 1, 1); /* the new threads are forgotten */
    CHECK(started(bench) == 1);
    tear_down(bench);
}

static void a_stop_that_cannot_end_a_thread_says_so_and_starts_none(void)
{
    struct bench *bench = set_up();
    start(bench, 1, 2);
    pthread_mutex_lock(&bench->relay->queue.lock);
    ask(bench, NODE, 0, 1);
    while (__atomic_load_n(&bench->relay->waiting, __ATOMIC_SEQ_CST) > 0)
        sched_yield();
    CHECK(nd_relay_stop(bench->relay, 1) == -ETIMEDOUT);
    nd_relay_keep_one_waiting(bench->relay);
    CHECK(started(bench) == 1);
    CHECK(nd_relay_start(bench->relay, &bench->device, 1, 1, 1) == -EBUSY);
    pthread_mutex_unlock(&bench->relay->queue.lock);
    CHECK(nd_relay_stop(bench->relay, SOON_MS) == 0);
    expect_queued_read(bench, 0);
    tear_down(bench);
}

/* Drops one file in a thread of its own. */
struct drop {
    nd_relay *relay;
    uint64_t nodeid;
    pthread_t thread;
    bool is_done;
};

static void *drop_file(void *argument)
{
    struct drop *drop = argument;
    CHECK(nd_relay_drop_file(drop->relay, drop->nodeid) == 0);
    __atomic_store_n(&drop->is_done, true, __ATOMIC_SEQ_CST);
    return NULL;
}

static bool begin(struct bench *bench, uint64_t nodeid, struct nd_read *read)
{
    const nd_request request = {.nodeid = nodeid, .size = 1};
    return nd_read_begin(&bench->relay->files, &request, read);
}

/* Returns when the file cannot be found any more: what is left to do is to wait for sections. */
static void begin_drop(struct bench *bench, uint64_t nodeid, struct drop *drop)
{
    struct nd_read read;
    *drop = (struct drop){.relay = bench->relay, .nodeid = nodeid};
    CHECK(pthread_create(&drop->thread, NULL, drop_file, drop) == 0);
    while (begin(bench, nodeid, &read)) {
        nd_read_end(&bench->relay->files, &read);
        sched_yield();
    }
}

static bool is_done(struct drop *drop)
{
    sched_yield(); /* time to go wrong in; nothing has to happen in it */
    return __atomic_load_n(&drop->is_done, __ATOMIC_SEQ_CST);
}

/* Returns when new sections count in `phase`: a drop that waited for its turn has got it. */
static void await_phase(struct nd_files *files, unsigned phase)
{
    for (bool is_there = false; !is_there; sched_yield()) {
        pthread_mutex_lock(&files->lock);
        is_there = files->phase == phase;
        pthread_mutex_unlock(&files->lock);
    }
}

static void a_drop_waits_for_sections_that_began_before_it(void)
{
    struct bench *bench = set_up();
    struct nd_files *files = &bench->relay->files;
    const unsigned phase = files->phase;
    for (uint64_t nodeid = 6; nodeid <= 8; nodeid++)
        CHECK(nd_relay_add_file(bench->relay, nodeid, 10, NULL, 0, 1, NULL) == 0);
    struct drop first, second, third;
    struct nd_read before_first, before_second, before_third;
    CHECK(begin(bench, NODE, &before_first));
    begin_drop(bench, 6, &first);
    CHECK(!is_done(&first) && begin(bench, NODE, &before_second));
    begin_drop(bench, 7, &second);
    CHECK(!is_done(&first) && !is_done(&second));
    nd_read_end(files, &before_first); /* lets the first go, though another is open by now */
    pthread_join(first.thread, NULL);
    await_phase(files, phase);
    CHECK(!is_done(&second) && begin(bench, NODE, &before_third));
    begin_drop(bench, 8, &third);
    nd_read_end(files, &before_second);
    pthread_join(second.thread, NULL);
    CHECK(!is_done(&third));
    nd_read_end(files, &before_third);
    pthread_join(third.thread, NULL);
    tear_down(bench);
}

static void *add_source(void *argument)
{
    struct bench *bench = argument;
    CHECK(nd_relay_add_source(bench->relay, bench->cache, bench->bits, BITS_BYTES, CHUNKS, NULL,
                              NULL) > 0);
    return NULL;
}

/* The table that a section beginning now sees. */
static struct nd_source **begin_sources(struct bench *bench)
{
    struct nd_read read = {0};
    CHECK(begin(bench, NODE, &read));
    nd_read_end(&bench->relay->files, &read);
    return read.sources;
}

static void a_table_of_sources_that_is_outgrown_stays_for_its_readers(void)
{
    struct bench *bench = set_up();
    mark(bench, 0, 1);
    CHECK(bench->relay->files.source_room == 16);
    for (int number = 1; number < 200; number++)
        CHECK(nd_relay_add_source(bench->relay, bench->cache, bench->bits, BITS_BYTES, CHUNKS, NULL,
                                  NULL) == number);
    start(bench, 1, 1);
    ask(bench, NODE, 0, 10);
    expect_reply(bench, 0, 10, bench->plain, 10);
    CHECK(nd_relay_stop(bench->relay, SOON_MS) == 0);

    struct nd_read read; /* sees its source through the old table, until it ends */
    while (bench->relay->files.source_count < bench->relay->files.source_room)
        CHECK(nd_relay_add_source(bench->relay, bench->cache, bench->bits, BITS_BYTES, CHUNKS, NULL,
                                  NULL) > 0);
    CHECK(begin(bench, NODE, &read));
    struct nd_source **seen = read.sources;
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, add_source, bench) == 0);
    while (begin_sources(bench) == seen)
        sched_yield();
    CHECK(nd_read_fetch(bench->relay, &read, true) && read.room[0] == bench->plain[0]);
    nd_read_end(&bench->relay->files, &read);
    pthread_join(thread, NULL);
    tear_down(bench);
}

/* What comes and goes while threads read from it. */
struct churn {
    struct bench *bench;
    bool is_over;
};

static void *drop_and_add(void *argument)
{
    struct churn *churn = argument;
    struct bench *bench = churn->bench;
    for (int round = 0; round < 300; round++) {
        /* Memory of its own for each round: a use after the drop is a use after free. */
        uint8_t *bits = exactly(BITS_BYTES);
        uint64_t *hits = (uint64_t *)exactly(sizeof *hits);
        uint32_t *blocks = (uint32_t *)copy_of(bench->blocks, sizeof bench->blocks);
        memset(bits, 0xff, BITS_BYTES);
        int cache = dup(bench->cache);
        int source = nd_relay_add_source(bench->relay, cache, bits, BITS_BYTES, CHUNKS, NULL, hits);
        CHECK(nd_relay_add_flat(bench->relay, 6, PLAIN_BYTES, (unsigned)source, blocks, CHUNKS,
                                NULL) == 0);
        if (round % 2) {
            CHECK(nd_relay_drop_source(bench->relay, (unsigned)source) == 0);
            close(cache);
            CHECK(nd_relay_drop_file(bench->relay, 6) == 0);
        } else {
            CHECK(nd_relay_drop_file(bench->relay, 6) == 0);
            CHECK(nd_relay_drop_source(bench->relay, (unsigned)source) == 0);
            close(cache);
        }
        free(bits);
        free(hits);
        free(blocks);
    }
    __atomic_store_n(&churn->is_over, true, __ATOMIC_SEQ_CST);
    return NULL;
}

/* Drops of its own, beside the other thread's: drains must wait for each other. */
static void *drop_and_add_more(void *argument)
{
    struct churn *churn = argument;
    for (uint64_t nodeid = 100; !__atomic_load_n(&churn->is_over, __ATOMIC_SEQ_CST); nodeid++) {
        CHECK(nd_relay_add_flat(churn->bench->relay, nodeid, 1, churn->bench->source,
                                churn->bench->blocks, CHUNKS, NULL) == 0);
        if (nodeid >= 300)
            CHECK(nd_relay_drop_file(churn->bench->relay, nodeid - 200) == 0);
    }
    return NULL;
}

static void registrations_may_change_under_reads(void)
{
    struct bench *bench = set_up();
    struct churn churn = {bench, false};
    pthread_t changers[2];
    mark(bench, 0, CHUNKS);
    memset(bench->watch, 0xff, sizeof bench->watch);
    start(bench, 3, 4);
    CHECK(pthread_create(&changers[0], NULL, drop_and_add, &churn) == 0);
    CHECK(pthread_create(&changers[1], NULL, drop_and_add_more, &churn) == 0);
    uint64_t asked = 0, replies = 0, queued = 0, touched = 0, seed = 5;
    while (!__atomic_load_n(&churn.is_over, __ATOMIC_SEQ_CST) || replies + queued < asked) {
        if (!__atomic_load_n(&churn.is_over, __ATOMIC_SEQ_CST) && asked - replies - queued < 8) {
            ask(bench, NODE + asked % 2, next_random(&seed) % PLAIN_BYTES, 5000);
            asked++;
        }
        uint8_t room[8192];
        if (is_readable(bench->kernel, 0))
            replies += recv(bench->kernel, room, sizeof room, 0) > 0;
        ssize_t taken = nd_relay_take(bench->relay, room, sizeof room);
        for (ssize_t at = 0; at < taken;) {
            nd_message message;
            memcpy(&message, room + at, sizeof message);
            queued += message.kind == ND_MESSAGE_REQUEST;
            touched += message.kind == ND_MESSAGE_TOUCHED;
            at += (message.length + 7) & ~7u;
        }
        if (asked % 50 == 49) { /* and threads may come and go as well */
            CHECK(nd_relay_stop(bench->relay, SOON_MS) == 0);
            start(bench, 3, 4);
        }
    }
    pthread_join(changers[0], NULL);
    pthread_join(changers[1], NULL);
    CHECK(replies + queued == asked && replies >= asked / 2 && touched <= CHUNKS);
    CHECK(nd_relay_stop(bench->relay, SOON_MS) == 0);
    uint64_t reads = __atomic_load_n(&bench->counts.reads, __ATOMIC_SEQ_CST);
    CHECK(reads == asked - asked / 2); /* none of the file that stayed was lost */
    tear_down(bench);
}

void test_relay(void)
{
    ready_ranges_are_answered_and_counted();
    one_absent_chunk_makes_it_pythons();
    reads_end_with_the_file();
    bytes_before_the_first_chunk_need_no_bit();
    segments_give_the_bytes_that_they_name();
    a_hit_is_counted_for_each_run_in_a_source();
    watched_chunks_are_told_once();
    a_file_that_was_cut_short_is_pythons();
    what_was_dropped_is_pythons();
    numbers_that_do_not_fit_are_refused();
    a_chunk_past_the_map_is_never_ready();
    only_forgets_and_headless_requests_vanish();
    a_long_queue_keeps_order_and_lets_go_of_its_room();
    a_stopped_relay_leaves_requests_in_the_kernel();
    the_end_of_a_device_is_told_once();
    each_thread_answers_on_its_own_device();
    a_non_blocking_device_does_not_make_threads_spin();
    who_is_about_to_wait_leaves_another_at_the_device();
    a_stop_that_cannot_end_a_thread_says_so_and_starts_none();
    a_drop_waits_for_sections_that_began_before_it();
    a_table_of_sources_that_is_outgrown_stays_for_its_readers();
    registrations_may_change_under_reads();
}
