/* The hot path: bounds, decode, check, write, for every chunk of a run. */
#include "decode.h"

#include "bytes.h"
#include "codec.h"
#include "crc32c.h"

#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

_Static_assert(sizeof(nd_chunk) == 64, "nydusd/native.py packs chunks of 64 bytes");
_Static_assert(sizeof(off_t) == 8, "offsets of cache files need 64 bits");

/* What one call keeps from chunk to chunk. */
struct workspace {
    struct nd_codec_state codecs;
    struct nd_digest_state digests;
    uint8_t *scratch; /* room for the largest chunk of the call, or NULL */
};

static bool has_valid_size(const nd_chunk *chunk)
{
    return chunk->uncompressed_size > 0 && chunk->uncompressed_size <= ND_CHUNK_MAX_BYTES;
}

/* Give the workspace room for any chunk of the run that must be decoded (or read: `read_all`). */
static int reserve_scratch(struct workspace *work, const nd_chunk *chunks, size_t count,
                           bool read_all)
{
    size_t largest = 0;
    for (size_t i = 0; i < count; i++)
        if ((read_all || chunks[i].flags & ND_COMPRESSED) && has_valid_size(&chunks[i]) &&
            chunks[i].uncompressed_size > largest)
            largest = chunks[i].uncompressed_size;
    if (largest == 0)
        return 0;
    work->scratch = malloc(largest);
    return work->scratch == NULL ? -ENOMEM : 0;
}

static void free_workspace(struct workspace *work)
{
    nd_codec_free(&work->codecs);
    nd_digest_free(&work->digests);
    free(work->scratch);
}

/* A digest that cannot be computed counts as one that differs: unchecked bytes are never saved. */
static enum nd_status check_plain(struct workspace *work, const nd_chunk *chunk, uint32_t digester,
                                  const uint8_t *plain)
{
    if (chunk->flags & ND_HAS_DIGEST) {
        uint8_t digest[ND_DIGEST_BYTES];
        if (!nd_digest_with(&work->digests, digester, plain, chunk->uncompressed_size, digest) ||
            memcmp(digest, chunk->digest, sizeof digest) != 0)
            return ND_DIGEST_MISMATCH;
    }
    if (chunk->flags & ND_HAS_CRC && nd_crc32c(plain, chunk->uncompressed_size) != chunk->crc32)
        return ND_CRC_MISMATCH;
    return ND_SAVED;
}

/* Find or make the plain bytes of a chunk: in `stored` itself if raw, else decoded into `room`. */
static enum nd_status decode_chunk(struct workspace *work, const uint8_t *stored,
                                   size_t stored_length, uint64_t stored_offset,
                                   const nd_chunk *chunk, uint32_t codec, uint8_t *room,
                                   const uint8_t **plain)
{
    if (!nd_within(chunk->compressed_offset, chunk->compressed_size, stored_offset, stored_length))
        return ND_OUT_OF_BUFFER;
    const uint8_t *source = stored + (chunk->compressed_offset - stored_offset);
    if (chunk->flags & ND_COMPRESSED) {
        *plain = room;
        return nd_decompress(&work->codecs, codec, source, chunk->compressed_size, room,
                             chunk->uncompressed_size)
                   ? ND_SAVED
                   : ND_DECODE_FAILED;
    }
    *plain = source;
    return chunk->compressed_size == chunk->uncompressed_size ? ND_SAVED : ND_DECODE_FAILED;
}

/* Write all bytes at `offset`; 1, or 0 with errno (0 if the file took nothing and named no reason). */
static bool write_all(int fd, const uint8_t *bytes, size_t size, uint64_t offset)
{
    while (size > 0) {
        ssize_t written = pwrite(fd, bytes, size, (off_t)offset);
        if (written < 0 && errno == EINTR)
            continue;
        if (written <= 0) {
            errno = written < 0 ? errno : 0;
            return false;
        }
        bytes += written;
        size -= (size_t)written;
        offset += (uint64_t)written;
    }
    return true;
}

/* The same for reading: end of file is errno 0. */
static bool read_all(int fd, uint8_t *bytes, size_t size, uint64_t offset)
{
    while (size > 0) {
        ssize_t got = pread(fd, bytes, size, (off_t)offset);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0) {
            errno = got < 0 ? errno : 0;
            return false;
        }
        bytes += got;
        size -= (size_t)got;
        offset += (uint64_t)got;
    }
    return true;
}

static enum nd_status check_file_range(const nd_chunk *chunk)
{
    if (!has_valid_size(chunk))
        return ND_DECODE_FAILED;
    return nd_within(chunk->uncompressed_offset, chunk->uncompressed_size, 0, INT64_MAX)
               ? ND_SAVED
               : ND_OUT_OF_BUFFER;
}

static int note(nd_result *result, enum nd_status status, int error)
{
    *result = (nd_result){.status = status, .error = status == ND_UNSAVED ? error : 0};
    return status != ND_SAVED;
}

static bool is_known(uint32_t codec, uint32_t digester)
{
    return codec <= ND_ZSTD && digester <= ND_SHA256;
}

int nd_decode_to_file(const uint8_t *stored, size_t stored_length, uint64_t stored_offset,
                      const nd_chunk *chunks, size_t count, uint32_t codec, uint32_t digester,
                      int fd, nd_result *results)
{
    struct workspace work = {0};
    if (!is_known(codec, digester) || count > INT32_MAX)
        return -EINVAL;
    if (reserve_scratch(&work, chunks, count, false) != 0)
        return -ENOMEM;

    int failed = 0;
    for (size_t i = 0; i < count; i++) {
        const nd_chunk *chunk = &chunks[i];
        const uint8_t *plain = NULL;
        enum nd_status status = check_file_range(chunk);
        if (status == ND_SAVED)
            status = decode_chunk(&work, stored, stored_length, stored_offset, chunk, codec,
                                  work.scratch, &plain);
        if (status == ND_SAVED)
            status = check_plain(&work, chunk, digester, plain);
        if (status == ND_SAVED &&
            !write_all(fd, plain, chunk->uncompressed_size, chunk->uncompressed_offset))
            status = ND_UNSAVED;
        failed += note(&results[i], status, errno);
    }
    free_workspace(&work);
    return failed;
}

int nd_decode_to_memory(const uint8_t *stored, size_t stored_length, uint64_t stored_offset,
                        const nd_chunk *chunks, size_t count, uint32_t codec, uint32_t digester,
                        uint8_t *target, size_t target_length, uint64_t target_offset,
                        nd_result *results)
{
    struct workspace work = {0};
    if (!is_known(codec, digester) || count > INT32_MAX)
        return -EINVAL;

    int failed = 0;
    for (size_t i = 0; i < count; i++) {
        const nd_chunk *chunk = &chunks[i];
        const uint8_t *plain = NULL;
        if (!has_valid_size(chunk)) {
            failed += note(&results[i], ND_DECODE_FAILED, 0);
            continue;
        }
        if (!nd_within(chunk->uncompressed_offset, chunk->uncompressed_size, target_offset,
                       target_length)) {
            failed += note(&results[i], ND_OUT_OF_BUFFER, 0);
            continue;
        }
        uint8_t *room = target + (chunk->uncompressed_offset - target_offset);
        enum nd_status status = decode_chunk(&work, stored, stored_length, stored_offset, chunk,
                                             codec, room, &plain);
        if (status == ND_SAVED)
            status = check_plain(&work, chunk, digester, plain);
        if (status != ND_SAVED)
            memset(room, 0, chunk->uncompressed_size);
        else if (plain != room)
            memmove(room, plain, chunk->uncompressed_size);
        failed += note(&results[i], status, 0);
    }
    free_workspace(&work);
    return failed;
}

int nd_verify_file(int fd, const nd_chunk *chunks, size_t count, uint32_t digester,
                   nd_result *results)
{
    struct workspace work = {0};
    if (!is_known(ND_NONE, digester) || count > INT32_MAX)
        return -EINVAL;
    if (reserve_scratch(&work, chunks, count, true) != 0)
        return -ENOMEM;

    int failed = 0;
    for (size_t i = 0; i < count; i++) {
        const nd_chunk *chunk = &chunks[i];
        enum nd_status status = check_file_range(chunk);
        if (status == ND_SAVED && !read_all(fd, work.scratch, chunk->uncompressed_size,
                                            chunk->uncompressed_offset))
            status = ND_UNSAVED;
        if (status == ND_SAVED)
            status = check_plain(&work, chunk, digester, work.scratch);
        failed += note(&results[i], status, errno);
    }
    free_workspace(&work);
    return failed;
}
