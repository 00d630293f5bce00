/* Contexts: whatever block of a gzip file they begin at, they give what the file gives there. */
#include "../inflate.h"

#include "check.h"

#include <errno.h>
#include <stdbool.h>
#include <zlib.h>

#define PLAIN_BYTES 60000u
#define ROOM_BYTES 200000u /* for the worst that the tests do to PLAIN_BYTES */
#define POINTS_MAX 512

/* Text that deflates to more than literals, from one seed. */
static uint8_t *words(size_t size, uint64_t seed)
{
    uint8_t *bytes = exactly(size);
    size_t at = 0;
    while (at < size) {
        uint32_t choice = next_random(&seed);
        if (choice % 3 && at > 400) { /* repeat something from up to 32 KiB before */
            size_t reach = at < 32000 ? at : 32000, back = 1 + next_random(&seed) % reach;
            for (size_t i = 3 + choice / 3 % 60; i > 0 && at < size; i--, at++)
                bytes[at] = bytes[at - back];
        } else {
            for (size_t i = 1 + choice / 3 % 40; i > 0 && at < size; i--, at++)
                bytes[at] = (uint8_t)(next_random(&seed) % 64);
        }
    }
    return bytes;
}

struct file {
    uint8_t *bytes;
    size_t size;
};

/* Append one gzip member: `step` plain bytes at a time, each step flushed as `flush` says. */
static void append_member(struct file *file, const uint8_t *plain, size_t size, int level,
                          size_t step, int flush)
{
    z_stream stream = {0};
    CHECK(deflateInit2(&stream, level, Z_DEFLATED, 16 + MAX_WBITS, 8, Z_DEFAULT_STRATEGY) == Z_OK);
    stream.next_in = (Bytef *)(uintptr_t)plain;
    stream.next_out = file->bytes + file->size;
    stream.avail_out = (uInt)(ROOM_BYTES - file->size);
    for (size_t done = 0; done < size; done += step) {
        size_t part = size - done < step ? size - done : step;
        stream.avail_in = (uInt)part;
        CHECK(deflate(&stream, flush) == Z_OK && stream.avail_in == 0);
    }
    CHECK(deflate(&stream, Z_FINISH) == Z_STREAM_END);
    file->size += stream.total_out;
    deflateEnd(&stream);
}

/* Where one can begin: as zlib's own reader sees the file (its examples/zran.c does the same). */
struct point {
    size_t in, out, window_start;
    unsigned bits;
};

static size_t find_points(const struct file *file, uint8_t *plain, struct point *points)
{
    size_t count = 0, member_start = 0;
    z_stream stream = {0};
    CHECK(inflateInit2(&stream, 16 + MAX_WBITS) == Z_OK);
    stream.next_in = file->bytes;
    stream.avail_in = (uInt)file->size;
    stream.next_out = plain;
    stream.avail_out = PLAIN_BYTES;
    for (;;) {
        int code = inflate(&stream, Z_BLOCK);
        CHECK(code == Z_OK || code == Z_STREAM_END);
        size_t in = (size_t)(stream.next_in - file->bytes), out = (size_t)(stream.next_out - plain);
        if (code == Z_STREAM_END) {
            if (stream.avail_in == 0 || inflateReset(&stream) != Z_OK)
                break;
            member_start = out;
        } else if (code != Z_OK) {
            break;
        } else if (stream.data_type & 128 && !(stream.data_type & 64) && count < POINTS_MAX) {
            size_t start = out - member_start > ND_WINDOW_MAX_BYTES ? out - ND_WINDOW_MAX_BYTES
                                                                    : member_start;
            points[count++] = (struct point){in, out, start, (unsigned)stream.data_type & 7};
        }
    }
    inflateEnd(&stream);
    return count;
}

static int inflate_from(const struct file *file, const uint8_t *plain, struct point point,
                        size_t stored_length, uint8_t *target, size_t length)
{
    uint8_t *stored = copy_of(file->bytes + point.in, stored_length);
    size_t known = point.out - point.window_start;
    uint8_t *history = known > 0 ? copy_of(plain + point.window_start, known) : NULL;
    uint8_t before = point.in > 0 ? file->bytes[point.in - 1] : 0;
    int done = nd_inflate_context(stored, stored_length, history, known, point.bits, before, target,
                                  length);
    free(stored), free(history);
    return done;
}

/* From every point, some lengths: the bytes of the file come out, and no other length is taken. */
static void check_every_point(const struct file *file)
{
    struct point points[POINTS_MAX];
    uint8_t *plain = exactly(PLAIN_BYTES);
    size_t count = find_points(file, plain, points);
    CHECK(count > 0);
    uint64_t seed = file->size;
    for (size_t i = 0; i < count; i++) {
        size_t left = PLAIN_BYTES - points[i].out, stored = file->size - points[i].in;
        if (left == 0)
            continue;
        size_t lengths[] = {left, 1, 1 + next_random(&seed) % left};
        for (size_t k = 0; k < sizeof lengths / sizeof *lengths; k++) {
            uint8_t *target = exactly(lengths[k]);
            CHECK(inflate_from(file, plain, points[i], stored, target, lengths[k]) == 1);
            CHECK(memcmp(target, plain + points[i].out, lengths[k]) == 0);
            free(target);
        }
        uint8_t *more = exactly(left + 1);
        CHECK(inflate_from(file, plain, points[i], stored, more, left + 1) == 0);
        free(more);
    }
    free(plain);
}

static struct file empty_file(void)
{
    return (struct file){.bytes = exactly(ROOM_BYTES), .size = 0};
}

static void every_block_of_one_member(int level, size_t step, int flush)
{
    uint8_t *plain = words(PLAIN_BYTES, (uint64_t)level + step);
    struct file file = empty_file();
    append_member(&file, plain, PLAIN_BYTES, level, step, flush);
    check_every_point(&file);
    free(plain), free(file.bytes);
}

static void every_block_of_many_members(void)
{
    uint8_t *plain = words(PLAIN_BYTES, 99);
    struct file file = empty_file();
    const int levels[] = {9, 0, 6, 1};
    size_t at = 0;
    for (size_t i = 0; at < PLAIN_BYTES; i++) {
        size_t size = i % 5 == 3 ? 0 : 1 + (i * 3001) % 9000; /* empty members, too */
        size = size < PLAIN_BYTES - at ? size : PLAIN_BYTES - at;
        append_member(&file, plain + at, size, levels[i % 4], 700, i % 2 ? Z_BLOCK : Z_NO_FLUSH);
        at += size;
    }
    check_every_point(&file);
    free(plain), free(file.bytes);
}

static void a_context_on_a_trailer_begins_behind_it(void)
{
    uint8_t *plain = words(PLAIN_BYTES, 7), *out = exactly(1000);
    struct file file = empty_file();
    append_member(&file, plain, 1000, 6, 1000, Z_NO_FLUSH);
    size_t trailer = file.size - 8;
    append_member(&file, plain + 1000, 1000, 6, 1000, Z_NO_FLUSH);
    /* As the reference's builder wrote it: bits of nothing, a window that is not needed. */
    for (uint32_t bits = 0; bits < 8; bits++) {
        size_t size = file.size - trailer;
        uint8_t *stored = copy_of(file.bytes + trailer, size);
        CHECK(nd_inflate_context(stored, size, plain, 512, bits, 0, out, 1000) == 1);
        CHECK(memcmp(out, plain + 1000, 1000) == 0);
        stored[8] ^= 1; /* no member there */
        CHECK(nd_inflate_context(stored, size, plain, 512, bits, 0, out, 1000) == 0);
        free(stored);
    }
    free(plain), free(out), free(file.bytes);
}

static void the_end_of_a_member_needs_no_trailer_if_nothing_follows(void)
{
    uint8_t *plain = words(1000, 8), *out = exactly(1000);
    struct file file = empty_file();
    append_member(&file, plain, 1000, 6, 1000, Z_NO_FLUSH);
    const size_t header = 10, trailer = 8;
    struct point start = {header, 0, 0, 0};
    for (size_t cut = 0; cut <= trailer; cut++) {
        CHECK(inflate_from(&file, plain, start, file.size - header - cut, out, 1000) == 1);
        CHECK(memcmp(out, plain, 1000) == 0);
    }
    CHECK(inflate_from(&file, plain, start, file.size / 2, out, 1000) == 0);
    CHECK(inflate_from(&file, plain, start, 0, out, 1000) == 0);
    free(plain), free(out), free(file.bytes);
}

static void a_member_behind_the_first_is_checked(void)
{
    uint8_t *plain = words(3000, 9), *out = exactly(3000);
    struct file file = empty_file();
    for (size_t at = 0; at < 3000; at += 1000)
        append_member(&file, plain + at, 1000, 6, 1000, Z_NO_FLUSH);
    struct point start = {10, 0, 0, 0};
    CHECK(inflate_from(&file, plain, start, file.size - 10, out, 3000) == 1);
    size_t last = file.size;
    struct file again = empty_file();
    append_member(&again, plain + 2000, 1000, 6, 1000, Z_NO_FLUSH);
    last -= again.size;        /* where the third begins */
    file.bytes[last - 5] ^= 1; /* CRC of the second */
    CHECK(inflate_from(&file, plain, start, file.size - 10, out, 3000) == 0);
    file.bytes[last - 5] ^= 1;
    file.bytes[last + 2] ^= 1; /* header of the third */
    CHECK(inflate_from(&file, plain, start, file.size - 10, out, 3000) == 0);
    CHECK(inflate_from(&file, plain, start, file.size - 10, out, 2000) == 1);
    free(plain), free(out), free(file.bytes), free(again.bytes);
}

static void numbers_that_no_context_has_are_refused(void)
{
    uint8_t byte = 3, out = 0, *window = exactly(ND_WINDOW_MAX_BYTES + 1);
    memset(window, 0, ND_WINDOW_MAX_BYTES + 1);
    CHECK(nd_inflate_context(&byte, 1, window, ND_WINDOW_MAX_BYTES + 1, 0, 0, &out, 1) == -EINVAL);
    CHECK(nd_inflate_context(&byte, 1, window, 0, 8, 0, &out, 1) == -EINVAL);
    CHECK(nd_inflate_context(&byte, 1, window, 0, 0, 256, &out, 1) == -EINVAL);
    CHECK(nd_inflate_context(&byte, 1, window, 0, 0, 0, &out, 0) == -EINVAL);
    CHECK(nd_inflate_context(&byte, (size_t)1 << 32, window, 0, 0, 0, &out, 1) == -EINVAL);
    CHECK(nd_inflate_context(&byte, 1, window, 0, 0, 0, &out, (size_t)1 << 32) == -EINVAL);
    CHECK(nd_inflate_context(&byte, 1, window, ND_WINDOW_MAX_BYTES, 7, 255, &out, 1) == 0);
    free(window);
}

void test_inflate(void)
{
    every_block_of_one_member(6, PLAIN_BYTES, Z_NO_FLUSH);
    every_block_of_one_member(9, 500, Z_BLOCK);
    every_block_of_one_member(1, 3000, Z_SYNC_FLUSH);
    every_block_of_one_member(6, 7000, Z_FULL_FLUSH);
    every_block_of_one_member(6, 1000, Z_PARTIAL_FLUSH);
    every_block_of_one_member(0, 1000, Z_BLOCK); /* stored blocks */
    every_block_of_many_members();
    a_context_on_a_trailer_begins_behind_it();
    the_end_of_a_member_needs_no_trailer_if_nothing_follows();
    a_member_behind_the_first_is_checked();
    numbers_that_no_context_has_are_refused();
}
