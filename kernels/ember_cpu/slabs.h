/* Activations of 8 bits, for the products with GGUF blocks. A slab is 256 elements of a row of activations.
 *
 * For blocks of 32 weights each 32 elements have a scale, for super-blocks the whole slab has one: its largest magnitude over
 * 127. A slab with a NaN or infinity has the scale NaN there, so that the fault is detected.
 */
#pragma once

#include "blocks.h"

typedef struct {
    int8_t codes[SUPER];
    float scales[8];      /* of each 32 elements; only the first is used with super-blocks */
    float scaled_sums[8]; /* of each 32 elements: the sum of the codes times the scale */
    int32_t sums[8];      /* of each 32 codes */
    int16_t pairs[2][16]; /* the sums of each 16 codes; of each 32 codes, eight of them */
} __attribute__((aligned(64))) Slab;

enum { FLOATS, SMALL_SCALES, SUPER_SCALES, KINDS }; /* of activations */

INLINE int kind_of(int type) { return type == BF16 ? FLOATS : is_super(type) ? SUPER_SCALES : SMALL_SCALES; }

static inline i64 num_slabs(i64 columns) { return (columns + SUPER - 1) / SUPER; }

/* The scale of `count` elements, and in `inverse` the factor from elements to codes. */
static inline float slab_scale(const float *x, int count, float *inverse) {
    float most[16] = {0}, strange[16] = {0}, largest = 0, odd = 0;
    for (int i = 0; i < count; i += 16)
        for (int j = 0; j < 16; j++) {
            float size = fabsf(x[i + j]);
            most[j] = size > most[j] ? size : most[j];
            strange[j] += x[i + j] * 0.0f;
        }
    for (int j = 0; j < 16; j++) largest = most[j] > largest ? most[j] : largest, odd += strange[j];
    float scale = largest / 127.0f;
    *inverse = 0.0f;
    if (odd != odd) return odd;
    if (scale < 0x1p-126f) return 0.0f; /* too small for float32's range */
    *inverse = 1.0f / scale;
    return scale;
}

/* Quantise up to 256 elements, a multiple of 32; the rest of the slab is 0. */
static void quantise_slab(const bf16 *from, i64 count, int kind, Slab *out) {
    float x[SUPER], inverse = 0;
    if (count < SUPER) memset(out, 0, sizeof *out), memset(x, 0, sizeof x);
    for (int i = 0; i < (int)count; i++) x[i] = from_bf16(from[i]);
    memset(out->pairs[1] + 8, 0, 8 * sizeof(int16_t));
    if (kind == SUPER_SCALES) out->scales[0] = slab_scale(x, SUPER, &inverse);
    for (int j = 0; j < (int)count / 32; j++) {
        float *part = x + 32 * j;
        if (kind == SMALL_SCALES) out->scales[j] = slab_scale(part, 32, &inverse);
        int32_t codes[32], first = 0, second = 0;
        for (int i = 0; i < 32; i++) codes[i] = (int32_t)rintf(inverse == 0.0f ? 0.0f : part[i] * inverse);
        for (int i = 0; i < 32; i++) out->codes[32 * j + i] = (int8_t)codes[i];
        for (int i = 0; i < 16; i++) first += codes[i], second += codes[16 + i];
        out->sums[j] = first + second;
        out->scaled_sums[j] = (float)(first + second) * out->scales[kind == SMALL_SCALES ? j : 0];
        out->pairs[0][2 * j] = (int16_t)first, out->pairs[0][2 * j + 1] = (int16_t)second;
        out->pairs[1][j] = (int16_t)(first + second);
    }
}

/* Quantise a row of activations. `out`: the row's first slab; the next one is `rows` further. */
static void quantise_slabs(const bf16 *x, i64 columns, int kind, i64 rows, Slab *out) {
    for (i64 k = 0; k < columns; k += SUPER, out += rows)
        quantise_slab(x + k, columns - k < SUPER ? columns - k : SUPER, kind, out);
}
