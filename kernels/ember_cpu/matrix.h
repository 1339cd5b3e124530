/* Products of a matrix with few rows of input. Threads fetch the matrix's rows in chunks. */
#pragma once

#include <string.h>

#include "quantised.h"
#include "team.h"

#define MAX_PIECES 3
#define MAX_ROWS 128 /* of input, in one call */

/* A matrix [rows, columns], row-major, in up to three pieces of rows. */
typedef struct {
    const char *piece[MAX_PIECES];
    i64 rows[MAX_PIECES];
    const bf16 *bias;    /* [rows] or NULL */
    const float *scales; /* [rows, columns / GROUP] if bits < 16; such a matrix has one piece */
    i64 columns, bits;   /* 16: bfloat16; 8, 4: see quantised.h */
} Matrix;

/* Prefetch distance in bytes. Each thread prefetches in address order and at a constant rate: prefetching all at once would
 * delay the loads of the current tile. */
#define AHEAD 24576

#define UP_TO_2(CASE, ...) CASE(1, __VA_ARGS__) CASE(2, __VA_ARGS__)
#define UP_TO_3(CASE, ...) UP_TO_2(CASE, __VA_ARGS__) CASE(3, __VA_ARGS__)
#define UP_TO_4(CASE, ...) UP_TO_3(CASE, __VA_ARGS__) CASE(4, __VA_ARGS__)
#define UP_TO_5(CASE, ...) UP_TO_4(CASE, __VA_ARGS__) CASE(5, __VA_ARGS__)
#define UP_TO_6(CASE, ...) UP_TO_5(CASE, __VA_ARGS__) CASE(6, __VA_ARGS__)

/* Rows of input in a tile, which is 4 rows of the matrix by up to this many: as many as have their sums in registers. ROWS_X is
 * for weights as stored, ROWS_WIDE for weights unpacked to float32. */
#if defined(__AVX512BF16__)
#define ROWS_X 6
#define COUNTS UP_TO_6
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

/* out[i][0..3] = four rows of the matrix times row i of x, for `count` rows. Prefetches `lines` cache lines from `ahead` on with
 * each register of a row's weights. `scales`: those of the four rows, if bits < 16. */
static inline __attribute__((always_inline)) void tile(const int count, const int lines, const int bits, const char *const w[4],
                                                       const float *const scales[4], const bf16 *x, i64 columns, const char *ahead,
                                                       float (*out)[4]) {
    Sum sums[ROWS_X][4];
    for (int i = 0; i < count; i++)
        for (int j = 0; j < 4; j++) sums[i][j] = SUM(setzero)();
    for (i64 k = 0, at = 0; k < columns; k += HELD(bits), at += 2 * STEP_WIDTH) {
        Wide parts[4][4];
        for (int j = 0; j < 4; j++) unpack(bits, w[j] + at, bits < 16 ? scales[j] + k / GROUP : NULL, parts[j]);
        for (int j = 0; j < lines; j++, ahead += LINE) _mm_prefetch(ahead, _MM_HINT_T1);
        _Pragma("GCC unroll 4") for (int p = 0; p < HELD(bits) / STEP_WIDTH; p++)
            _Pragma("GCC unroll 8") for (int i = 0; i < count; i++) {
                Wide v = load(x + i * columns + k + p * STEP_WIDTH);
                for (int j = 0; j < 4; j++) sums[i][j] = add_dot(sums[i][j], parts[j][p], v);
            }
    }
    for (int i = 0; i < count; i++) _mm_storeu_ps(out[i], reduce4(sums[i][0], sums[i][1], sums[i][2], sums[i][3]));
}

static const char *row_of(const Matrix *matrix, i64 row) {
    int piece = 0;
    while (row >= matrix->rows[piece]) row -= matrix->rows[piece++];
    return matrix->piece[piece] + row * matrix->columns * matrix->bits / 8;
}

#define LINES (8 * STEP_WIDTH / LINE) /* cache lines in one register of each of four rows */
#define CASE(COUNT, ASKED, BITS)                                                                                       \
    case (COUNT * 8 + ASKED) * 32 + BITS: tile(COUNT, ASKED, BITS, w, scales, x, columns, ahead, out); break;

static void some_tile(i64 count, int lines, int bits, const char *const w[4], const float *const scales[4], const bf16 *x, i64 columns,
                      const char *ahead, float (*out)[4]) {
    switch ((count * 8 + lines) * 32 + bits) {
    COUNTS(CASE, LINES, 16) COUNTS(CASE, LINES, 8) COUNTS(CASE, LINES, 4)
#if defined(__AVX512BF16__)
    COUNTS(CASE, 2, 16) COUNTS(CASE, 1, 16)
#endif
    default: __builtin_unreachable();
    }
}
#undef CASE

/* As `tile`, for all rows of x, in tiles of equal size as far as possible. */
#if defined(__AVX512BF16__)
static void many_rows(int bits, const char *w[4], const float *const scales[4], const bf16 *x, i64 columns, i64 rows, const char *ahead,
                      float (*out)[4]) {
    i64 tiles = (rows + ROWS_X - 1) / ROWS_X;
    int lines = tiles < 4 ? 2 : 1;
    bf16 own[bits < 16 ? 4 : 1][columns];
    for (int j = 0; bits < 16 && j < 4; j++) { /* once for all tiles */
        unpack_row(bits, 0, w[j], scales[j], columns, ahead + j * columns * bits / 8, own[j]);
        w[j] = (const char *)own[j];
    }
    if (bits < 16) ahead = w[0];
    for (i64 at = 0, i = 0; at < tiles; at++) {
        i64 count = rows / tiles + (at < rows % tiles);
        some_tile(count, lines, 16, w, scales, x + i * columns, columns, ahead, out + i);
        i += count;
        ahead = (at + 1) * lines < 4 ? ahead + columns / STEP_WIDTH * LINE * lines : w[0]; /* each line is prefetched once */
    }
}
#else
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
static inline __attribute__((always_inline)) void wide_tile(const int count, const float *w, const bf16 *x, i64 columns, float (*out)[4]) {
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
    for (int i = 0; i < count; i++) _mm_storeu_ps(out[i], reduce4(sums[i][0], sums[i][1], sums[i][2], sums[i][3]));
}

#define CASE(COUNT, ...) \
    case COUNT: wide_tile(COUNT, own[0], x + i * columns, columns, out + i); break;

static void many_rows(int bits, const char *w[4], const float *const scales[4], const bf16 *x, i64 columns, i64 rows, const char *ahead,
                      float (*out)[4]) {
    float own[4][columns];
    i64 tiles = (rows + ROWS_WIDE - 1) / ROWS_WIDE;
    for (int j = 0; j < 4; j++) unpack_row(bits, 1, w[j], scales[j], columns, ahead + j * columns * bits / 8, own[j]);
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
#endif

/* Rows [first, first + 4) of the matrix, clamped to its last row, times all rows of x: out[row][0..3]. Prefetches from row `then`
 * on. */
static void four_rows(const Matrix *matrix, i64 first, i64 last, i64 then, const bf16 *x, i64 rows, float (*out)[4]) {
    const char *w[4], *ahead = row_of(matrix, then);
    const float *scales[4];
    i64 columns = matrix->columns, tiles = (rows + ROWS_X - 1) / ROWS_X;
    for (int j = 0; j < 4; j++) {
        i64 row = first + j < last ? first + j : last;
        w[j] = row_of(matrix, row);
        scales[j] = matrix->bits < 16 ? matrix->scales + row * (columns / GROUP) : NULL;
    }
    if (tiles == 1) some_tile(rows, LINES, (int)matrix->bits, w, scales, x, columns, ahead, out);
    else many_rows((int)matrix->bits, w, scales, x, columns, rows, ahead, out);
}

static i64 num_rows(const Matrix *matrix) {
    i64 rows = 0;
    for (int i = 0; i < MAX_PIECES; i++) rows += matrix->rows[i];
    return rows;
}

/* Rows of a matrix that a thread fetches at a time: up to 128 KiB of weights. A small matrix has smaller chunks, so that fetching
 * one chunk early leaves enough for the other threads. */
static inline i64 rows_per_chunk(const Matrix *matrix, i64 rows, int threads) {
    i64 chunk = (128 << 10) / (matrix->columns * matrix->bits / 8) / 4 * 4, fair = rows / (4 * threads) / 4 * 4;
    if (chunk > fair) chunk = fair;
    return chunk < 4 ? 4 : chunk;
}

/* Add a bias [width] to each of the sums [rows]. */
static void add_bias(const bf16 *bias, i64 width, i64 rows, float (*sums)[4]) {
    for (i64 i = 0; i < rows; i++)
        for (i64 j = 0; j < width; j++) sums[i][j] += from_bf16(bias[j]);
}

/* A thread's current chunk of a matrix's rows. The thread fetches its next chunk before it starts this one, so that it can
 * prefetch across the boundary. */
typedef struct {
    i64 first, end, next, total, chunk, lead; /* in rows; chunk: rows per chunk; lead: prefetch distance */
} Chunk;

static Chunk first_chunk(Team *team, const Matrix *matrix, i64 total) {
    i64 group = matrix->columns * matrix->bits / 8 * 4, lead = (AHEAD + group / 2) / group * 4, chunk = rows_per_chunk(matrix, total, team->threads);
    return (Chunk){0, 0, fetch_work(team, chunk), total, chunk, lead < 4 ? 4 : lead};
}

/* Move on to the next chunk: whether there is one. */
static int next_chunk(Team *team, Chunk *work) {
    work->first = work->next;
    work->end = work->first + work->chunk < work->total ? work->first + work->chunk : work->total;
    if (work->first >= work->total) return 0;
    work->next = fetch_work(team, work->chunk);
    return 1;
}

/* The row to prefetch while row n is computed; n itself at the end of the matrix. */
static i64 row_to_prefetch(const Chunk *work, i64 n) {
    i64 row = n + work->lead;
    if (row >= work->end) row = work->next + row - work->end;
    return row < work->total ? row : n;
}

/* out [rows, matrix rows] = x [rows, columns] times the transposed matrix, plus its bias; added to `out` if `adds`. */
static void multiply(Team *team, const Matrix *matrix, const bf16 *x, i64 rows, float *out, int adds) {
    i64 total = num_rows(matrix);
    float sums[MAX_ROWS][4];
    for (Chunk work = first_chunk(team, matrix, total); next_chunk(team, &work);) {
        for (i64 n = work.first; n < work.end; n += 4) {
            four_rows(matrix, n, total - 1, row_to_prefetch(&work, n), x, rows, sums);
            i64 width = work.end - n < 4 ? work.end - n : 4;
            if (matrix->bias) add_bias(matrix->bias + n, width, rows, sums);
            for (i64 i = 0; i < rows; i++) {
                float *to = out + i * total + n;
                if (adds)
                    for (i64 j = 0; j < width; j++) sums[i][j] += to[j];
                if (width == 4) memcpy(to, sums[i], sizeof sums[i]);
                else memcpy(to, sums[i], (size_t)width * sizeof(float));
            }
        }
    }
}

/* out [rows, intermediate] = silu(x times gate) * (x times up), where the matrix has the rows of gate first. */
static void multiply_gated(Team *team, const Matrix *matrix, const bf16 *x, i64 rows, bf16 *out) {
    i64 half = num_rows(matrix) / 2;
    float gate[MAX_ROWS][4], up[MAX_ROWS][4];
    bf16 made[MAX_ROWS * 4];
    for (Chunk work = first_chunk(team, matrix, half); next_chunk(team, &work);) {
        for (i64 n = work.first; n < work.end; n += 4) {
            i64 then = row_to_prefetch(&work, n);
            four_rows(matrix, n, half - 1, then, x, rows, gate);
            four_rows(matrix, half + n, 2 * half - 1, half + then, x, rows, up);
            i64 width = work.end - n < 4 ? work.end - n : 4;
            if (matrix->bias) {
                add_bias(matrix->bias + n, width, rows, gate);
                add_bias(matrix->bias + half + n, width, rows, up);
            }
            float *g = gate[0], *u = up[0]; /* contiguous, so that the compiler vectorises the loop */
            for (i64 i = 0; i < rows * 4; i++) made[i] = to_bf16(silu(g[i]) * u[i]);
            for (i64 i = 0; i < rows; i++) memcpy(out + i * half + n, made + i * 4, (size_t)width * sizeof(bf16));
        }
    }
}
