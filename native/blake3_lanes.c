/* BLAKE3 compression of 4, 8 and 16 inputs side by side: blake3_lanes.h at three widths.
 *
 * Which of them the processor can run is nd_blake3_best_path()'s to say.
 */
#include "blake3_core.h"

#include <string.h>

#ifdef BLAKE3_HAS_LANES

#define LANES 4
#define LANES_TARGET
#define LANES_NAME(x) x##_4
#define UNPACK_LOW_32 0, 4, 1, 5
#define UNPACK_HIGH_32 2, 6, 3, 7
#define UNPACK_LOW_64 0, 1, 4, 5
#define UNPACK_HIGH_64 2, 3, 6, 7
#include "blake3_lanes.h"

#ifdef BLAKE3_HAS_WIDE_LANES

#define LANES 8
#define LANES_TARGET __attribute__((target("avx2")))
#define LANES_NAME(x) x##_8
#define UNPACK_LOW_32 0, 8, 1, 9, 4, 12, 5, 13
#define UNPACK_HIGH_32 2, 10, 3, 11, 6, 14, 7, 15
#define UNPACK_LOW_64 0, 1, 8, 9, 4, 5, 12, 13
#define UNPACK_HIGH_64 2, 3, 10, 11, 6, 7, 14, 15
#define ROTATE_BYTES_16 \
    2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13, 18, 19, 16, 17, 22, 23, 20, 21, 26, 27, \
    24, 25, 30, 31, 28, 29
#define ROTATE_BYTES_8 \
    1, 2, 3, 0, 5, 6, 7, 4, 9, 10, 11, 8, 13, 14, 15, 12, 17, 18, 19, 16, 21, 22, 23, 20, 25, 26, \
    27, 24, 29, 30, 31, 28
#include "blake3_lanes.h"

#define LANES 16
#define LANES_TARGET __attribute__((target("avx512f")))
#define LANES_NAME(x) x##_16
#define UNPACK_LOW_32 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29
#define UNPACK_HIGH_32 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31
#define UNPACK_LOW_64 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29
#define UNPACK_HIGH_64 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31
#include "blake3_lanes.h"

#endif
#endif
