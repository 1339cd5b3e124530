/* Weights of 8 or 4 bits: integers, and a float32 scale for each GROUP of a row. Their product, rounded to bfloat16, is the weight.
 *
 * 8 bits: -127..127, the largest of a group is 127. 4 bits: -8..7, that of the largest magnitude is -8 (the form of
 * llama.cpp's Q4_0, github.com/ggml-org/llama.cpp, with groups of GROUP).
 *
 * They lie so that a register unpacks without shuffling. 8 bits: byte `lane` of 32-bit word d is the element PLACE(lane, d)
 * of the register's first STEP_WIDTH (lanes 0 and 1) or second (2 and 3). 4 bits: in 16-bit word e, bits 4 n to 4 n + 3, less
 * 8, are element e of its n-th STEP_WIDTH.
 */
#pragma once

#include <math.h>

#include "numbers.h"

#define GROUP 64
#define UNIT 128 /* columns are a multiple of it: no register holds parts of two rows */

/* A register of weights: so many elements. */
#define HELD(bits) (STEP_WIDTH * 16 / (bits))

#if defined(__AVX512BF16__)
#define PLACE(lane, d) ((lane) % 2 * STEP_WIDTH / 2 + (d))
#define LANE(w, left) _mm512_cvtepi32_ps(_mm512_srai_epi32(_mm512_slli_epi32(w, left), 24))
static inline Wide lanes(Sum first, Sum second, Sum scale) {
    return (Wide)_mm512_cvtne2ps_pbh(_mm512_mul_ps(second, scale), _mm512_mul_ps(first, scale));
}
/* Looks each nibble up among the sixteen products. A look-up takes five bits: the table is there twice. */
static inline void nibbles(Wide w, const float *scales, Wide out[4]) {
    const Sum whole = _mm512_set_ps(7, 6, 5, 4, 3, 2, 1, 0, -1, -2, -3, -4, -5, -6, -7, -8);
    for (int g = 0; g < 2; g++) {
        Sum products = _mm512_mul_ps(whole, _mm512_set1_ps(scales[g]));
        Wide table = (Wide)_mm512_cvtne2ps_pbh(products, products);
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
/* 0x4300 is 128 as a bfloat16, and its last bits count ones. */
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

/* A register of weights, as HELD(bits) / STEP_WIDTH of bfloat16. `scales`: from that of its first element on. */
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

/* A row to `out` (columns * bits / 8 bytes) and its scales. */
static void quantise_row(const bf16 *row, i64 columns, int bits, uint8_t *out, float *scales) {
    for (i64 start = 0; start < columns; start += UNIT, row += UNIT, out += UNIT * bits / 8) {
        int whole[UNIT];
        for (int group = 0; group < UNIT; group += GROUP) {
            float x[GROUP], largest = 0, lowest = 0;
            for (int i = 0; i < GROUP; i++) x[i] = from_bf16(row[group + i]);
            for (int i = 0; i < GROUP; i++) largest = x[i] > largest ? x[i] : largest, lowest = x[i] < lowest ? x[i] : lowest;
            float magnitude = largest > -lowest ? largest : -lowest;
            float scale = bits == 8 ? magnitude / 127.0f : (largest > -lowest ? largest : lowest) / -8.0f;
            float inverse = scale == 0.0f ? 0.0f : 1.0f / scale, most = bits == 8 ? 127.0f : 7.0f;
            for (int i = 0; i < GROUP; i++) {
                float nearest = rintf(x[i] * inverse);
                whole[group + i] = (int)(nearest < most ? nearest : most);
            }
            *scales++ = scale;
        }
        for (int i = 0; bits == 8 && i < UNIT; i++) {
            int base = i / HELD(8) * HELD(8), d = i % HELD(8) / 4, lane = i % 4;
            out[i] = (uint8_t)whole[base + lane / 2 * STEP_WIDTH + PLACE(lane, d)];
        }
        for (int i = 0; bits == 4 && i < UNIT / 2; i++) { /* a word's first byte: its nibbles 0 and 1; the second: 2 and 3 */
            int e = i % (2 * STEP_WIDTH) / 2, n = i % 2 * 2, base = i / (2 * STEP_WIDTH) * HELD(4);
            int low = whole[base + n * STEP_WIDTH + e] + 8, high = whole[base + (n + 1) * STEP_WIDTH + e] + 8;
            out[i] = (uint8_t)(low | high << 4);
        }
    }
}

/* A row as bfloat16; asks for as much memory from `ahead` on. */
static inline __attribute__((always_inline)) void unpack_all(const int bits, const char *row, const float *scales, i64 columns,
                                                             const char *ahead, bf16 *out) {
    for (i64 k = 0; k < columns; k += HELD(bits), row += 2 * STEP_WIDTH, ahead += 2 * STEP_WIDTH) {
        Wide parts[4];
        _mm_prefetch(ahead, _MM_HINT_T1);
        unpack(bits, row, scales + k / GROUP, parts);
        _Pragma("GCC unroll 4") for (int p = 0; p < HELD(bits) / STEP_WIDTH; p++) keep(out + k + p * STEP_WIDTH, parts[p]);
    }
}

static void unpack_row(int bits, const char *row, const float *scales, i64 columns, const char *ahead, bf16 *out) {
    if (bits == 8) unpack_all(8, row, scales, columns, ahead, out);
    else unpack_all(4, row, scales, columns, ahead, out);
}
