/* Quantised weights: integers of 8 or 4 bits, and a float32 scale for each GROUP of a row. Their product, rounded to bfloat16, is
 * the weight.
 *
 * 8 bits: -127..127; the largest magnitude of a group is 127. 4 bits: -8..7; the value of the largest magnitude is -8 (as in
 * llama.cpp's Q4_0, github.com/ggml-org/llama.cpp, with groups of GROUP).
 *
 * The layout lets a register be unpacked without shuffles. 8 bits: byte `lane` of 32-bit word d is the element PLACE(lane, d)
 * of the register's first STEP_WIDTH (lanes 0 and 1) or second (2 and 3). 4 bits: in 16-bit word e, bits 4 n to 4 n + 3, less
 * 8, are element e of its n-th STEP_WIDTH.
 */
#pragma once

#include <math.h>

#include "numbers.h"

#define GROUP 64
#define UNIT 128 /* the number of columns is a multiple of it, so that no register has parts of two rows */

/* Number of weights in a register. */
#define HELD(bits) (STEP_WIDTH * 16 / (bits))

#if defined(__AVX512F__)
#define LANE(w, left) _mm512_cvtepi32_ps(_mm512_srai_epi32(_mm512_slli_epi32(w, left), 24))
#if defined(__AVX512BF16__)
#define PLACE(lane, d) ((lane) % 2 * STEP_WIDTH / 2 + (d))
static inline Wide lanes(Sum first, Sum second, Sum scale) {
    return (Wide)_mm512_cvtne2ps_pbh(_mm512_mul_ps(second, scale), _mm512_mul_ps(first, scale));
}
#else
#define PLACE(lane, d) (2 * (d) + (lane) % 2)
/* The nearest bfloat16, in the upper half of each word. */
static inline Wide rounded(Sum value) {
    Wide bits = _mm512_castps_si512(value), even = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    return _mm512_add_epi32(bits, _mm512_add_epi32(even, _mm512_set1_epi32(0x7fff)));
}
static inline Wide lanes(Sum first, Sum second, Sum scale) {
    Wide low = _mm512_srli_epi32(rounded(_mm512_mul_ps(first, scale)), 16);
    return _mm512_mask_mov_epi16(low, 0xaaaaaaaa, rounded(_mm512_mul_ps(second, scale)));
}
#endif
/* The value, minus 8, that lane d of `lanes` takes from a table of sixteen entries that is stored twice. */
static inline Sum entries(int lane) {
    float all[16];
    for (int d = 0; d < 16; d++) all[d] = (float)(PLACE(lane, d) % 16 - 8);
    return _mm512_loadu_ps(all);
}
/* Look each nibble up in a table of the sixteen products. A look-up reads five bits, so the table is stored twice. */
static inline void nibbles(Wide w, const float *scales, Wide out[4]) {
    for (int g = 0; g < 2; g++) {
        Wide table = lanes(entries(0), entries(1), _mm512_set1_ps(scales[g]));
        out[2 * g] = _mm512_permutexvar_epi16(_mm512_srli_epi16(w, 8 * g), table);
        out[2 * g + 1] = _mm512_permutexvar_epi16(_mm512_srli_epi16(w, 8 * g + 4), table);
    }
}
static inline void keep(bf16 *to, Wide value) { _mm512_storeu_si512(to, value); }
#else
#define PLACE(lane, d) (2 * (d) + (lane) % 2)
#define LANE(w, left) _mm256_cvtepi32_ps(_mm256_srai_epi32(_mm256_slli_epi32(w, left), 24))
/* The nearest bfloat16, in the upper half of each word. */
static inline Wide rounded(Sum value) {
    Wide bits = _mm256_castps_si256(value), even = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    return _mm256_add_epi32(bits, _mm256_add_epi32(even, _mm256_set1_epi32(0x7fff)));
}
static inline Wide lanes(Sum first, Sum second, Sum scale) {
    Wide low = _mm256_srli_epi32(rounded(_mm256_mul_ps(first, scale)), 16);
    return _mm256_blend_epi16(low, rounded(_mm256_mul_ps(second, scale)), 0xaa);
}
/* 0x4300 is 128 as a bfloat16, whose lowest bit is 1: so 0x4300 + n is 128 + n. */
static inline void nibbles(Wide w, const float *scales, Wide out[4]) {
    for (int n = 0; n < 4; n++) {
        Wide low = _mm256_and_si256(_mm256_srli_epi16(w, 4 * n), _mm256_set1_epi16(15));
        Wide above = _mm256_or_si256(low, _mm256_set1_epi16(0x4300));
        Sum offset = _mm256_set1_ps(136.0f);
        out[n] = lanes(_mm256_sub_ps(evens(above), offset), _mm256_sub_ps(odds(above), offset), _mm256_set1_ps(scales[0]));
    }
}
static inline void keep(bf16 *to, Wide value) { _mm256_storeu_si256((__m256i *)to, value); }
#endif

/* Unpack one register of weights to HELD(bits) / STEP_WIDTH registers of bfloat16. `scales`: from its first element's scale on. */
static inline __attribute__((always_inline)) void unpack(const int bits, const char *from, const float *scales, Wide out[4]) {
    Wide w = load((const bf16 *)from);
    if (bits == 16) {
        out[0] = w;
    } else if (bits == 8) {
        Sum scale = SUM(set1)(scales[0]);
        out[0] = lanes(LANE(w, 24), LANE(w, 16), scale);
        out[1] = lanes(LANE(w, 8), LANE(w, 0), scale);
    } else {
        nibbles(w, scales, out);
    }
}

/* The scale of a group, and in `inverse` the factor from weights to integers. A group with a NaN or infinity becomes NaN
 * completely, so that the fault is detected. A group too small for float32's range becomes zero. */
static float scale_of(const float x[GROUP], int bits, float *inverse) {
    float high[16] = {0}, low[16] = {0}, odd[16] = {0}, largest = 0, lowest = 0, strange = 0;
    for (int i = 0; i < GROUP; i += 16)
        for (int j = 0; j < 16; j++) {
            high[j] = x[i + j] > high[j] ? x[i + j] : high[j];
            low[j] = x[i + j] < low[j] ? x[i + j] : low[j];
            odd[j] += x[i + j] * 0.0f;
        }
    for (int j = 0; j < 16; j++) {
        largest = high[j] > largest ? high[j] : largest;
        lowest = low[j] < lowest ? low[j] : lowest;
        strange += odd[j];
    }
    float extreme = largest > -lowest ? largest : lowest, scale = bits == 8 ? fabsf(extreme) / 127.0f : extreme / -8.0f;
    *inverse = 0.0f;
    if (strange != strange) return strange;
    if (fabsf(scale) < 0x1p-126f) return 0.0f;
    *inverse = 1.0f / scale;
    return scale;
}

static void lay_bytes(const int32_t whole[UNIT], uint32_t out[UNIT / 4]) {
    for (int from = 0; from < UNIT; from += HELD(8), out += HELD(8) / 4)
        for (int d = 0; d < STEP_WIDTH / 2; d++) {
            const int32_t *first = whole + from, *second = whole + from + STEP_WIDTH;
            out[d] = (uint32_t)(first[PLACE(0, d)] & 255) | (uint32_t)(first[PLACE(1, d)] & 255) << 8 |
                     (uint32_t)(second[PLACE(0, d)] & 255) << 16 | (uint32_t)(second[PLACE(1, d)] & 255) << 24;
        }
}

static void lay_nibbles(const int32_t whole[UNIT], uint16_t out[UNIT / 4]) {
    for (int from = 0; from < UNIT; from += HELD(4), out += HELD(4) / 4)
        for (int e = 0; e < STEP_WIDTH; e++) {
            const int32_t *n = whole + from + e;
            out[e] = (uint16_t)((n[0] + 8) | (n[STEP_WIDTH] + 8) << 4 | (n[2 * STEP_WIDTH] + 8) << 8 | (n[3 * STEP_WIDTH] + 8) << 12);
        }
}

/* Quantise a row: columns * bits / 8 bytes to `out`, columns / GROUP scales to `scales`. */
static void quantise_row(const bf16 *row, i64 columns, int bits, char *out, float *scales) {
    float most = bits == 8 ? 127.0f : 7.0f;
    for (i64 start = 0; start < columns; start += UNIT, row += UNIT, out += UNIT * bits / 8) {
        int32_t whole[UNIT];
        for (int group = 0; group < UNIT; group += GROUP) {
            float x[GROUP], inverse;
            for (int i = 0; i < GROUP; i++) x[i] = from_bf16(row[group + i]);
            *scales++ = scale_of(x, bits, &inverse);
            for (int i = 0; i < GROUP; i++) {
                float nearest = inverse == 0.0f ? 0.0f : rintf(x[i] * inverse);
                whole[group + i] = (int32_t)(nearest < most ? nearest : most);
            }
        }
        if (bits == 8) lay_bytes(whole, (uint32_t *)out);
        else lay_nibbles(whole, (uint16_t *)out);
    }
}

/* Unpack a row to bfloat16, or if `wide` to float32: in each STEP_WIDTH first the even elements, then the odd ones. Prefetches as
 * many bytes from `ahead` on as it reads. */
static inline __attribute__((always_inline)) void unpack_all(const int bits, const int wide, const char *row, const float *scales,
                                                             i64 columns, const char *ahead, void *out) {
    for (i64 k = 0; k < columns; k += HELD(bits), row += 2 * STEP_WIDTH, ahead += 2 * STEP_WIDTH) {
        Wide parts[4];
        _mm_prefetch(ahead, _MM_HINT_T1);
        unpack(bits, row, bits < 16 ? scales + k / GROUP : NULL, parts);
        _Pragma("GCC unroll 4") for (int p = 0; p < HELD(bits) / STEP_WIDTH; p++) {
            i64 at = k + p * STEP_WIDTH;
            if (!wide) {
                keep((bf16 *)out + at, parts[p]);
                continue;
            }
            SUM(storeu)((float *)out + at, evens(parts[p]));
            SUM(storeu)((float *)out + at + STEP_WIDTH / 2, odds(parts[p]));
        }
    }
}

static inline void unpack_row(int bits, const int wide, const char *row, const float *scales, i64 columns, const char *ahead, void *out) {
    if (bits == 16) unpack_all(16, wide, row, scales, columns, ahead, out);
    else if (bits == 8) unpack_all(8, wide, row, scales, columns, ahead, out);
    else unpack_all(4, wide, row, scales, columns, ahead, out);
}
