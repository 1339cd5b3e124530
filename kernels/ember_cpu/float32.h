/* Products of float32 weights with float32 activations, of few rows. */
#pragma once

#include "floats.h"

#define FLOATS_WIDE (STEP_WIDTH / 2) /* numbers in a register */

/* out[i][0..3] = four rows of the matrix, one after the other from `w` on, times row i of x, plus `bias` [4], for `count` rows.
 * Prefetches the four rows that follow in memory, unless `ahead` is 0. */
static inline __attribute__((always_inline)) void float_tile(const int count, const int ahead, const float *w, const float *x, i64 columns,
                                                             __m128 bias, float *out, i64 pitch) {
    Sum sums[ROWS_WIDE][4];
    for (int i = 0; i < count; i++)
        for (int j = 0; j < 4; j++) sums[i][j] = SUM(setzero)();
    for (i64 k = 0; k < columns; k += FLOATS_WIDE) {
        Sum v[ROWS_WIDE];
        for (int i = 0; i < count; i++) v[i] = SUM(loadu)(x + i * columns + k);
        _Pragma("GCC unroll 4") for (int j = 0; j < 4; j++) {
            const float *at = w + j * columns + k;
            Sum weights = SUM(loadu)(at);
            if (ahead) _mm_prefetch((const char *)(at + 4 * columns), _MM_HINT_T1);
            _Pragma("GCC unroll 5") for (int i = 0; i < count; i++) sums[i][j] = SUM(fmadd)(weights, v[i], sums[i][j]);
        }
    }
    for (int i = 0; i < count; i++)
        _mm_storeu_ps(out + i * pitch, _mm_add_ps(reduce4(sums[i][0], sums[i][1], sums[i][2], sums[i][3]), bias));
}

#define CASE(COUNT, AHEAD) \
    case COUNT: float_tile(COUNT, AHEAD, w, x + i * columns, columns, bias, out + i * pitch, pitch); break;

/* As `float_tile`, for all rows of x, in tiles of equal size as far as possible. */
static void multiply_float32(const float *w, const float *x, i64 columns, i64 rows, __m128 bias, float *out, i64 pitch) {
    i64 tiles = (rows + ROWS_WIDE - 1) / ROWS_WIDE;
    for (i64 at = 0, i = 0; at < tiles; at++) {
        i64 count = rows / tiles + (at < rows % tiles);
        if (at == 0) switch (count) {
            WIDE_COUNTS(CASE, 1)
            default: __builtin_unreachable();
            }
        else switch (count) {
            WIDE_COUNTS(CASE, 0)
            default: __builtin_unreachable();
            }
        i += count;
    }
}
#undef CASE
