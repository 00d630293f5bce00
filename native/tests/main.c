/* Runs every test of the C code; exit code 1 if a check failed. */
#include "check.h"

unsigned failures, checks;

int main(void)
{
    test_blake3();
    test_bootstrap_index();
    test_chunk_layout();
    test_chunk_map();
    test_cipher();
    test_codec();
    test_crc32c();
    test_cut_maps();
    test_decode();
    test_erofs_check();
    test_inflate();
    test_mutations();
    test_relay();
    test_tree_files();
    test_tree_v6();
    printf("%u checks, %u failed\n", checks, failures);
    return failures != 0;
}
