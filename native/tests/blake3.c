/* BLAKE3: published vectors, and every vector width against the scalar code. */
#include "../blake3.h"

#include "check.h"

static const struct {
    size_t length; /* of counted_bytes() */
    const char *digest;
} VECTORS[] = {
    {0, "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"},
    {1, "2d3adedff11b61f14c886e35afa036736dcd87a74d27b5c1510225d0f592e213"},
    {1023, "10108970eeda3eb932baac1428c7a2163b0e924c9a9e25b35bba72b28f70bd11"},
    {1024, "42214739f095a406f3fc83deb889744ac00df831c10daa55189b5d121c855af7"},
    {1025, "d00278ae47eb27b34faecf67b4fe263f82d5412916c1ffd97c8cb7fb814b8444"},
    {2048, "e776b6028c7cd22a4d0ba182a8bf62205d2ef576467e838ed6f2529b85fba24a"},
    {2049, "5f4d72f40d7a5f82b15ca2b2e44b1de3c2ef86c426c95c1af0b6879522563030"},
    {3072, "b98cb0ff3623be03326b373de6b9095218513e64f1ee2edd2525c7ad1e5cffd2"},
    {8192, "aae792484c8efe4f19e2ca7d371d8c467ffb10748d8a5a1ae579948f718a2a63"},
    {8193, "bab6c09cb8ce8cf459261398d2e7aef35700bf488116ceb94a36d0f5f1b7bc3b"},
    {102400, "bc3e3d41a1146b069abffad3c0d44860cf664390afce4d9661f7902e7943e085"},
    {262144, "d57dc906e20d3fd326ffaa85535500486f46a0979f5a323f028dcabfd381fd4a"},
    {262145, "531c319935cf78f34869faebd865e5748266b1799039103bfb851a680d9ed30c"},
    {1000000, "5e82c663d164c54e4fcdfcd70e3ca464662228bdbad45cce2e0c2bff999064ef"},
};

static int is_digest(const uint8_t digest[ND_BLAKE3_BYTES], const char *hex)
{
    char found[2 * ND_BLAKE3_BYTES + 1];
    for (int i = 0; i < ND_BLAKE3_BYTES; i++)
        snprintf(found + 2 * i, 3, "%02x", digest[i]);
    return strcmp(found, hex) == 0;
}

static void published_vectors_on_every_path(void)
{
    for (size_t i = 0; i < sizeof VECTORS / sizeof *VECTORS; i++) {
        uint8_t *bytes = counted_bytes(VECTORS[i].length), digest[ND_BLAKE3_BYTES];
        for (int path = ND_BLAKE3_SCALAR; path <= ND_BLAKE3_LANES_16; path++) {
            nd_blake3_by((enum nd_blake3_path)path, bytes, VECTORS[i].length, digest);
            CHECK(is_digest(digest, VECTORS[i].digest));
        }
        nd_blake3(bytes, VECTORS[i].length, digest);
        CHECK(is_digest(digest, VECTORS[i].digest));
        free(bytes);
    }
}

static void compare_paths(size_t length, uint64_t *seed)
{
    uint8_t *bytes = exactly(length), expected[ND_BLAKE3_BYTES], digest[ND_BLAKE3_BYTES];
    for (size_t i = 0; i < length; i++)
        bytes[i] = (uint8_t)next_random(seed);
    nd_blake3_by(ND_BLAKE3_SCALAR, bytes, length, expected);
    for (int path = ND_BLAKE3_LANES_4; path <= ND_BLAKE3_LANES_16; path++) {
        nd_blake3_by((enum nd_blake3_path)path, bytes, length, digest);
        CHECK(memcmp(digest, expected, sizeof digest) == 0);
    }
    free(bytes);
}

/* Around every number of chunks that fills other vectors, and around slabs of 256 KiB. */
static void widths_agree_at_boundaries(void)
{
    uint64_t seed = 1;
    for (size_t chunks = 1; chunks <= 40; chunks++)
        for (int off = -1; off <= 1; off++)
            compare_paths(chunks * 1024 + (size_t)off, &seed);
    for (size_t slabs = 1; slabs <= 9; slabs++)
        for (int off = -1; off <= 1; off++)
            compare_paths(slabs * 256 * 1024 + (size_t)off, &seed);
    for (int i = 0; i < 50; i++)
        compare_paths(next_random(&seed) % 100000, &seed);
}

static void input_may_lie_at_any_address(void)
{
    uint8_t *bytes = counted_bytes(20000), aligned[ND_BLAKE3_BYTES], shifted[ND_BLAKE3_BYTES];
    uint8_t *moved = exactly(20001);
    memcpy(moved + 1, bytes, 20000);
    nd_blake3(bytes, 20000, aligned);
    nd_blake3(moved + 1, 20000, shifted);
    CHECK(memcmp(aligned, shifted, sizeof aligned) == 0);
    free(bytes);
    free(moved);
}

void test_blake3(void)
{
    published_vectors_on_every_path();
    widths_agree_at_boundaries();
    input_may_lie_at_any_address();
}
