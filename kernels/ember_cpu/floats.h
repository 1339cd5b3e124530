/* Products of bfloat16 weights with bfloat16 activations: four rows of the matrix at a time. */
#pragma once

#include "numbers.h"

/* Rows of input in a tile, which is 4 rows of the matrix by up to this many: as many as have their sums in registers. ROWS_X is
 * for weights as stored, ROWS_WIDE for weights unpacked to float32. */
#if defined(__AVX512BF16__)
#define ROWS_X 6
#define COUNTS UP_TO_6
#define ROWS_WIDE 5
#define WIDE_COUNTS UP_TO_5
#elif defined(__AVX512F__)
#define ROWS_X 4
#define COUNTS UP_TO_4
#define ROWS_WIDE 5
#define WIDE_COUNTS UP_TO_5
#else
#define ROWS_X 2
#define COUNTS UP_TO_2
#define ROWS_WIDE 3
#define WIDE_COUNTS UP_TO_3
#endif

/* out[i][0..3] = four rows of the matrix times row i of x, for `count` rows; rows of `out` are `pitch` elements apart. Prefetches
 * `lines` cache lines from `ahead` on with each register of a row's weights. */
static inline __attribute__((always_inline)) void tile(const int count, const int lines, const bf16 *const w[4], const bf16 *x, i64 columns,
                                                       const char *ahead, float *out, i64 pitch) {
    Sum sums[ROWS_X][4];
    for (int i = 0; i < count; i++)
        for (int j = 0; j < 4; j++) sums[i][j] = SUM(setzero)();
    for (i64 k = 0; k < columns; k += STEP_WIDTH) {
        Wide weights[4];
        for (int j = 0; j < 4; j++) weights[j] = load(w[j] + k);
        for (int j = 0; j < lines; j++, ahead += LINE) _mm_prefetch(ahead, _MM_HINT_T1);
        _Pragma("GCC unroll 8") for (int i = 0; i < count; i++) {
            Wide v = load(x + i * columns + k);
            for (int j = 0; j < 4; j++) sums[i][j] = add_dot(sums[i][j], weights[j], v);
        }
    }
    for (int i = 0; i < count; i++) _mm_storeu_ps(out + i * pitch, reduce4(sums[i][0], sums[i][1], sums[i][2], sums[i][3]));
}

#define LINES (8 * STEP_WIDTH / LINE) /* cache lines in one register of each of four rows */
#define CASE(COUNT, ASKED) \
    case COUNT * 8 + ASKED: tile(COUNT, ASKED, w, x, columns, ahead, out, pitch); break;

static void some_tile(i64 count, int lines, const bf16 *const w[4], const bf16 *x, i64 columns, const char *ahead, float *out, i64 pitch) {
    switch (count * 8 + lines) {
    COUNTS(CASE, LINES)
#if defined(__AVX512BF16__)
    COUNTS(CASE, 2) COUNTS(CASE, 1)
#endif
    default: __builtin_unreachable();
    }
}
#undef CASE

/* As `odds`, without a register for the mask. The sums occupy all registers, and the compiler would spill one of them. */
#if defined(__AVX512F__)
static inline Sum odds_of(Wide both) { return _mm512_castsi512_ps(_mm512_maskz_mov_epi16(0xaaaaaaaa, both)); }
#else
static const uint32_t ODD[8] __attribute__((aligned(32))) = {
    0xffff0000, 0xffff0000, 0xffff0000, 0xffff0000, 0xffff0000, 0xffff0000, 0xffff0000, 0xffff0000};
static inline Sum odds_of(Wide both) {
    Wide kept;
    __asm__("vpand %1, %2, %0" : "=x"(kept) : "m"(ODD), "x"(both));
    return _mm256_castsi256_ps(kept);
}
#endif

/* As `tile`, with weights [4, columns] in float32: in each STEP_WIDTH first the even elements, then the odd ones. The order of
 * summation is that of `tile`. */
static inline __attribute__((always_inline)) void wide_tile(const int count, const float *w, const bf16 *x, i64 columns, float *out,
                                                            i64 pitch) {
    Sum sums[ROWS_WIDE][4];
    for (int i = 0; i < count; i++)
        for (int j = 0; j < 4; j++) sums[i][j] = SUM(setzero)();
    for (i64 k = 0; k < columns; k += STEP_WIDTH)
        _Pragma("GCC unroll 2") for (int odd = 0; odd < 2; odd++) {
            Sum v[ROWS_WIDE];
            for (int i = 0; i < count; i++) {
                Wide both = load(x + i * columns + k);
                v[i] = odd ? odds_of(both) : evens(both);
            }
            _Pragma("GCC unroll 4") for (int j = 0; j < 4; j++) {
                Sum weights = SUM(loadu)(w + j * columns + k + odd * STEP_WIDTH / 2);
                _Pragma("GCC unroll 5") for (int i = 0; i < count; i++) sums[i][j] = SUM(fmadd)(weights, v[i], sums[i][j]);
            }
        }
    for (int i = 0; i < count; i++) _mm_storeu_ps(out + i * pitch, reduce4(sums[i][0], sums[i][1], sums[i][2], sums[i][3]));
}

#define CASE(COUNT, ...) \
    case COUNT: wide_tile(COUNT, own, x + i * columns, columns, out + i * pitch, pitch); break;

/* As `wide_tile`, for all rows of x, in tiles of equal size as far as possible. */
static void wide_rows(const float *own, const bf16 *x, i64 columns, i64 rows, float *out, i64 pitch) {
    i64 tiles = (rows + ROWS_WIDE - 1) / ROWS_WIDE;
    for (i64 at = 0, i = 0; at < tiles; at++) {
        i64 count = rows / tiles + (at < rows % tiles);
        switch (count) {
        WIDE_COUNTS(CASE, 0)
        default: __builtin_unreachable();
        }
        i += count;
    }
}
#undef CASE

#if defined(__AVX512BF16__)
/* As `tile`, for all rows of x, in tiles of equal size as far as possible. */
static void many_rows(const bf16 *const w[4], const bf16 *x, i64 columns, i64 rows, const char *ahead, float *out, i64 pitch) {
    i64 tiles = (rows + ROWS_X - 1) / ROWS_X;
    int lines = tiles < 4 ? 2 : 1;
    for (i64 at = 0, i = 0; at < tiles; at++) {
        i64 count = rows / tiles + (at < rows % tiles);
        some_tile(count, lines, w, x + i * columns, columns, ahead, out + i * pitch, pitch);
        i += count;
        /* Each line is prefetched once. */
        ahead = (at + 1) * lines < 4 ? ahead + columns / STEP_WIDTH * LINE * lines : (const char *)w[0];
    }
}
#else
/* Unpack a row to float32, in each STEP_WIDTH first the even elements, then the odd ones. Prefetches as many bytes from `ahead` on
 * as it reads. */
static void widen(const bf16 *row, i64 columns, const char *ahead, float *out) {
    for (i64 k = 0; k < columns; k += STEP_WIDTH, ahead += 2 * STEP_WIDTH) {
        Wide both = load(row + k);
        _mm_prefetch(ahead, _MM_HINT_T1);
        SUM(storeu)(out + k, evens(both));
        SUM(storeu)(out + k + STEP_WIDTH / 2, odds(both));
    }
}

static void many_rows(const bf16 *const w[4], const bf16 *x, i64 columns, i64 rows, const char *ahead, float *out, i64 pitch) {
    float own[4][columns];
    for (int j = 0; j < 4; j++) widen(w[j], columns, ahead + j * columns * 2, own[j]);
    wide_rows(own[0], x, columns, rows, out, pitch);
}
#endif

/* out[i][0..3] = four rows of the matrix, at `w`, times row i of x [rows, columns]. Prefetches from `ahead` on. */
static void multiply_floats(const bf16 *const w[4], const bf16 *x, i64 rows, i64 columns, const char *ahead, float *out, i64 pitch) {
    if (rows <= ROWS_X) some_tile(rows, LINES, w, x, columns, ahead, out, pitch);
    else many_rows(w, x, columns, rows, ahead, out, pitch);
}
