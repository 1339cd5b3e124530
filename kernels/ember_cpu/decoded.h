/* Products of weights that stand for floats: float8 (e4m3), and codes of 4 bits with a table of 16 numbers. They are decoded to
 * float32, which is not rounded, and multiplied with activations in bfloat16.
 *
 * A weight is its code's number times the scale of its group. A group has 16 columns, or a multiple of 32, and the last one may be
 * smaller. Of STEP_WIDTH weights the even ones are decoded to one register, the odd ones to another, as activations are.
 *
 * Few rows of activations: weights are multiplied as they are decoded.
 * More rows: four rows of the matrix are decoded to memory (`wide_rows`). The order of summation is the same.
 */
#pragma once

#include "floats.h"
#include "integers.h"

typedef struct {
    const byte *codes;
    const float *d;     /* [columns / group] */
    const float *table; /* [16], of codes of 4 bits */
} Codes;                /* a row */

static const float E2M1_VALUES[16] __attribute__((aligned(64))) = {
    0.0f, 0.5f, 1.0f, 1.5f, 2.0f, 3.0f, 4.0f, 6.0f, -0.0f, -0.5f, -1.0f, -1.5f, -2.0f, -3.0f, -4.0f, -6.0f};

#if defined(__AVX512F__)
#define TABLES 1     /* registers that have a table */
#define FEW_FLOATS 4 /* rows of activations that are multiplied with weights as these are decoded */
#define UP_TO_FEW_FLOATS UP_TO_4
#else
#define TABLES 2
#define FEW_FLOATS 2
#define UP_TO_FEW_FLOATS UP_TO_2
#endif

/* Whether a register has columns of two groups. */
INLINE int is_fine(i64 group) { return group < STEP_WIDTH; }
/* Columns with the same `Decoder`. */
INLINE i64 unit_of(i64 group) { return is_fine(group) ? STEP_WIDTH : group; }
INLINE i64 step_bytes(const int type) { return STEP_WIDTH * block_bytes(type) / SMALL; }

/* How the codes of a unit become weights. */
typedef struct {
    Sum table[TABLES]; /* times the scale, unless there are two */
    Sum scales;
} Decoder;

/* The decoder of unit number `unit` of a row. */
INLINE Decoder decoder_of(const int type, const int fine, const Codes *row, i64 unit) {
    Decoder made;
#if defined(__AVX512F__)
    if (fine) {
        const __m512i halves = _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1);
        __m128 two = _mm_castsi128_ps(_mm_loadl_epi64((const __m128i *)(row->d + 2 * unit)));
        made.scales = _mm512_permutexvar_ps(halves, _mm512_castps128_ps512(two));
    } else
#endif
        made.scales = SUM(set1)(row->d[unit]);
    if (type == FLOAT8) return made;
    for (int i = 0; i < TABLES; i++) {
        if (i && type == E2M1) break; /* its numbers from 8 on differ in the sign alone */
        made.table[i] = SUM(loadu)(row->table + 8 * i);
        if (!fine) made.table[i] = SUM(mul)(made.table[i], made.scales);
    }
    return made;
}

/* Decode STEP_WIDTH weights: the even ones and the odd ones. */
INLINE void decode(const int type, const int fine, const Decoder *by, const byte *codes, Sum *even, Sum *odd) {
#if defined(__AVX512F__)
    if (type == FLOAT8) {
        __m256i both = load32(codes), shifted = _mm256_slli_epi16(both, 8);
        *even = _mm512_cvtph_ps(e4m3_halves(shifted)), *odd = _mm512_cvtph_ps(e4m3_halves(both));
    } else {
        __m512i pairs = _mm512_cvtepu8_epi32(load16(codes)); /* the lookup reads the lowest 4 bits */
        *even = _mm512_permutexvar_ps(pairs, by->table[0]);
        *odd = _mm512_permutexvar_ps(_mm512_srli_epi32(pairs, 4), by->table[0]);
    }
#else
    if (type == FLOAT8) {
        __m128i both = load16(codes);
        __m256i halves = e4m3_halves(_mm256_set_m128i(both, _mm_slli_epi16(both, 8)));
        *even = _mm256_cvtph_ps(_mm256_castsi256_si128(halves)), *odd = _mm256_cvtph_ps(_mm256_extracti128_si256(halves, 1));
    } else {
        __m256i pairs = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)codes)); /* the lookup reads the lowest 3 bits */
        for (int i = 0; i < 2; i++) {
            __m256i index = i ? _mm256_srli_epi32(pairs, 4) : pairs;
            __m256 number = _mm256_permutevar8x32_ps(by->table[0], index), fourth = _mm256_castsi256_ps(_mm256_slli_epi32(index, 28));
            if (type == E2M1) number = _mm256_xor_ps(number, _mm256_and_ps(fourth, _mm256_set1_ps(-0.0f)));
            else number = _mm256_blendv_ps(number, _mm256_permutevar8x32_ps(by->table[1], index), fourth);
            *(i ? odd : even) = number;
        }
    }
#endif
    if (type == FLOAT8 || fine) *even = SUM(mul)(*even, by->scales), *odd = SUM(mul)(*odd, by->scales);
}

/* As two calls of `decode`, of float8. A code that is no number becomes one: `largest` is to show it. */
INLINE void decode_two(const Decoder *by, const byte *codes, Sum even[2], Sum odd[2], Wide *largest) {
    const Wide magnitude = WIDE(set1_epi16)(0x3f80), sign = WIDE(set1_epi16)((short)0x8000);
    Wide both = loadw(codes), words[2] = {WIDE(slli_epi16)(both, 8), both};
    *largest = WIDE(max_epu8)(*largest, BITS(or)(both, WIDE(set1_epi8)((char)128)));
    for (int i = 0; i < 2; i++) {
        Wide half = BITS(or)(BITS(and)(WIDE(srli_epi16)(words[i], 1), magnitude), BITS(and)(words[i], sign));
        Sum *to = i ? odd : even;
#if defined(__AVX512F__)
        to[0] = _mm512_cvtph_ps(_mm512_castsi512_si256(half)), to[1] = _mm512_cvtph_ps(_mm512_extracti64x4_epi64(half, 1));
#else
        to[0] = _mm256_cvtph_ps(_mm256_castsi256_si128(half)), to[1] = _mm256_cvtph_ps(_mm256_extracti128_si256(half, 1));
#endif
        to[0] = SUM(mul)(to[0], by->scales), to[1] = SUM(mul)(to[1], by->scales);
    }
}

/* Whether some code in e4m3 is no number, by the bytes that `decode_two` collects. */
INLINE int is_no_number(Wide largest) {
#if defined(__AVX512F__)
    return _mm512_cmpeq_epi8_mask(largest, _mm512_set1_epi8((char)255)) != 0;
#else
    return _mm256_movemask_epi8(_mm256_cmpeq_epi8(largest, _mm256_set1_epi8((char)255))) != 0;
#endif
}

/* sums[i][j] += four rows of the matrix times row i of the activations, whose halves are `low` and `high`. */
INLINE void add_step(const int count, const int j, Sum even, Sum odd, const Sum *low, const Sum *high, Sum (*sums)[4]) {
    for (int i = 0; i < count; i++) sums[i][j] = SUM(fmadd)(odd, high[i], SUM(fmadd)(even, low[i], sums[i][j]));
}

/* out[i][0..3] = four rows of the matrix times row i of x, for `count` rows. Prefetches from `ahead` on. */
INLINE void few_decoded(const int type, const int fine, const int count, const Codes rows[4], i64 group, const bf16 *x, i64 columns,
                        const char *ahead, float *out, i64 pitch) {
    Sum sums[FEW_FLOATS][4];
    Wide largest[4] = {zero(), zero(), zero(), zero()};
    const i64 bytes = step_bytes(type);
    for (int i = 0; i < count; i++)
        for (int j = 0; j < 4; j++) sums[i][j] = SUM(setzero)();
    for (i64 first = 0, number = 0, at = 0; first < columns; first += unit_of(group), number++) {
        const i64 end = first + unit_of(group) < columns ? first + unit_of(group) : columns;
        Decoder by[4];
        for (int j = 0; j < 4; j++) by[j] = decoder_of(type, fine, rows + j, number);
        i64 k = first;
        for (; type == FLOAT8 && k + 2 * STEP_WIDTH <= end; k += 2 * STEP_WIDTH, at += 2 * bytes, ahead += 8 * bytes) {
            Sum low[2][FEW_FLOATS], high[2][FEW_FLOATS];
            prefetch_bytes(ahead, 8 * bytes);
            for (int i = 0; i < count; i++)
                for (int part = 0; part < 2; part++) {
                    Wide both = load(x + i * columns + k + part * STEP_WIDTH);
                    low[part][i] = evens(both), high[part][i] = odds(both);
                }
            _Pragma("GCC unroll 4") for (int j = 0; j < 4; j++) {
                Sum even[2], odd[2];
                decode_two(by + j, rows[j].codes + at, even, odd, largest + j);
                for (int part = 0; part < 2; part++) add_step(count, j, even[part], odd[part], low[part], high[part], sums);
            }
        }
        for (; k < end; k += STEP_WIDTH, at += bytes, ahead += 4 * bytes) {
            Sum low[FEW_FLOATS], high[FEW_FLOATS];
            prefetch_bytes(ahead, 4 * bytes);
            for (int i = 0; i < count; i++) {
                Wide both = load(x + i * columns + k);
                low[i] = evens(both), high[i] = odds(both);
            }
            _Pragma("GCC unroll 4") for (int j = 0; j < 4; j++) {
                Sum even, odd;
                decode(type, fine, by + j, rows[j].codes + at, &even, &odd);
                add_step(count, j, even, odd, low, high, sums);
            }
        }
    }
    for (int j = 0; type == FLOAT8 && j < 4; j++)
        if (is_no_number(largest[j]))
            for (int i = 0; i < count; i++) sums[i][j] = SUM(set1)(NAN);
    for (int i = 0; i < count; i++) _mm_storeu_ps(out + i * pitch, reduce4(sums[i][0], sums[i][1], sums[i][2], sums[i][3]));
}

/* Decode a row to float32, in each STEP_WIDTH first the even elements, then the odd ones. Prefetches as many bytes as it reads. */
INLINE void decode_row(const int type, const int fine, const Codes *row, i64 group, i64 columns, const char *ahead, float *out) {
    const i64 bytes = step_bytes(type);
    for (i64 first = 0, number = 0, at = 0; first < columns; first += unit_of(group), number++) {
        const i64 end = first + unit_of(group) < columns ? first + unit_of(group) : columns;
        const Decoder by = decoder_of(type, fine, row, number);
        for (i64 k = first; k < end; k += STEP_WIDTH, at += bytes) {
            Sum even, odd;
            decode(type, fine, &by, row->codes + at, &even, &odd);
            if (ahead) prefetch_bytes(ahead + at, bytes);
            SUM(storeu)(out + k, even);
            SUM(storeu)(out + k + STEP_WIDTH / 2, odd);
        }
    }
}

INLINE void decoded_of(const int type, const int fine, const Codes rows[4], i64 group, const bf16 *x, i64 count, i64 columns,
                       const char *ahead, float *out, i64 pitch) {
#define CASE(COUNT, ...) \
    case COUNT: few_decoded(type, fine, COUNT, rows, group, x, columns, ahead, out, pitch); return;
    switch (count) { UP_TO_FEW_FLOATS(CASE, 0) }
#undef CASE
    float own[4][columns];
    for (int j = 0; j < 4; j++) decode_row(type, fine, rows + j, group, columns, ahead + j * (columns / SMALL) * block_bytes(type), own[j]);
    wide_rows(own[0], x, columns, count, out, pitch);
}

/* HOW(TYPE, FINE, ...) for the type and the group of a matrix. */
#define EVERY_DECODED(HOW, ...)                                             \
    switch (type) {                                                         \
    case FLOAT8: HOW(FLOAT8, 0, __VA_ARGS__); break;                        \
    case TABLE4:                                                            \
        if (is_fine(group)) HOW(TABLE4, 1, __VA_ARGS__);                    \
        else HOW(TABLE4, 0, __VA_ARGS__);                                   \
        break;                                                              \
    case E2M1:                                                              \
        if (is_fine(group)) HOW(E2M1, 1, __VA_ARGS__);                      \
        else HOW(E2M1, 0, __VA_ARGS__);                                     \
        break;                                                              \
    default: __builtin_unreachable();                                       \
    }

/* out[i][0..3] = four rows of the matrix times row i of x [count, columns]. Prefetches from `ahead` on. */
static void multiply_decoded(int type, const Codes rows[4], i64 group, const bf16 *x, i64 count, i64 columns, const char *ahead, float *out,
                             i64 pitch) {
    EVERY_DECODED(decoded_of, rows, group, x, count, columns, ahead, out, pitch)
}

/* Restore a row to bfloat16. */
static void restore_codes(int type, const Codes *row, i64 group, i64 columns, bf16 *out) {
    float own[columns];
    EVERY_DECODED(decode_row, row, group, columns, NULL, own)
    for (i64 k = 0; k < columns; k += STEP_WIDTH)
        for (i64 i = 0; i < STEP_WIDTH / 2; i++) out[k + 2 * i] = to_bf16(own[k + i]), out[k + 2 * i + 1] = to_bf16(own[k + STEP_WIDTH / 2 + i]);
}
