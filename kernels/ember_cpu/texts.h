/* Attention of an encoder in float32: each token sees all of its text, or a window around it. Nothing is cached, and texts of any
 * lengths lie one after the other. Queries, keys and values are read where they lie, in the rows of one matrix. */
#pragma once

#include <string.h>

#include "floats.h"
#include "team.h"

#define VECTOR (STEP_WIDTH / 2) /* numbers in a register */
#define TEXT_QUERIES 240        /* queries of a task */
#if defined(__AVX512F__)
#define TEXT_ROWS 12 /* queries of a tile, which is so many rows by two registers */
#define TEXT_COUNTS(CASE, ...) \
    UP_TO_6(CASE, __VA_ARGS__) CASE(7, __VA_ARGS__) CASE(8, __VA_ARGS__) CASE(9, __VA_ARGS__) CASE(10, __VA_ARGS__) CASE(11, __VA_ARGS__) \
        CASE(12, __VA_ARGS__)
#else
#define TEXT_ROWS 6
#define TEXT_COUNTS UP_TO_6
#endif

/* The attention of one layer of an encoder (library.py has it too). Strides are elements from a token to the next one. */
typedef struct {
    const float *queries, *keys, *values, *biases; /* biases: [heads, distances], or NULL */
    float *out;                                    /* [tokens, heads, head_dim] */
    const i64 *units;                              /* [units, 3]: a text's first token, its length, and the first query of up to TEXT_QUERIES */
    i64 num_units, heads, kv_heads, head_dim;
    i64 query_stride, key_stride, value_stride;
    i64 window;   /* tokens of fewer than this distance are seen; 0: all */
    i64 span;     /* distances of a row of biases are those from -span to span */
    i64 capacity; /* keys for which each thread has memory: a multiple of 32 */
    float scale;
} Texts;

#define TEXT_PANEL (2 * VECTOR) /* keys side by side */

/* Distance of two rows of scores, for up to `capacity` keys (a multiple of 32): rows do not begin in the same set of the cache. */
static i64 score_pitch(i64 capacity) { return capacity + 16; }

/* Floats of memory that a thread needs. */
static i64 text_memory(i64 head_dim, i64 capacity) { return head_dim * capacity + TEXT_ROWS * score_pitch(capacity); }

/* turned [panels, head_dim, TEXT_PANEL] = the transposed keys times the scale. Keys after the last one repeat it, up to a whole register. */
static void turn_keys(const float *keys, i64 stride, i64 count, i64 head_dim, float scale, float *turned) {
    __m128 factor = _mm_set1_ps(scale);
    for (i64 key = 0; key < (count + VECTOR - 1) / VECTOR * VECTOR; key += 4) {
        const float *from[4];
        float *to = turned + key / TEXT_PANEL * TEXT_PANEL * head_dim + key % TEXT_PANEL;
        for (i64 i = 0; i < 4; i++) from[i] = keys + (key + i < count ? key + i : count - 1) * stride;
        for (i64 d = 0; d < head_dim; d += 4, to += 4 * TEXT_PANEL) {
            __m128 a = _mm_mul_ps(_mm_loadu_ps(from[0] + d), factor), b = _mm_mul_ps(_mm_loadu_ps(from[1] + d), factor);
            __m128 c = _mm_mul_ps(_mm_loadu_ps(from[2] + d), factor), e = _mm_mul_ps(_mm_loadu_ps(from[3] + d), factor);
            _MM_TRANSPOSE4_PS(a, b, c, e);
            _mm_storeu_ps(to, a), _mm_storeu_ps(to + TEXT_PANEL, b);
            _mm_storeu_ps(to + 2 * TEXT_PANEL, c), _mm_storeu_ps(to + 3 * TEXT_PANEL, e);
        }
    }
}

/* sums [count, registers] = rows [count, length] times a matrix [length, registers]. */
static inline __attribute__((always_inline)) void multiply_tile(const int count, const int registers, const float *rows, i64 pitch, i64 length,
                                                                const float *matrix, i64 stride, Sum sums[TEXT_ROWS][2]) {
    for (int i = 0; i < count; i++)
        for (int j = 0; j < registers; j++) sums[i][j] = SUM(setzero)();
    for (i64 k = 0; k < length; k++) {
        Sum row[2];
        for (int j = 0; j < registers; j++) row[j] = SUM(loadu)(matrix + k * stride + j * VECTOR);
        _Pragma("GCC unroll 12") for (int i = 0; i < count; i++) {
            Sum factor = SUM(set1)(rows[i * pitch + k]);
            for (int j = 0; j < registers; j++) sums[i][j] = SUM(fmadd)(factor, row[j], sums[i][j]);
        }
    }
}

/* scores [count, registers] of `count` queries with as many keys as the registers hold. */
static inline __attribute__((always_inline)) void score_tile(const int count, const int registers, const float *queries, i64 stride,
                                                             const float *turned, i64 head_dim, i64 pitch, float *scores) {
    Sum sums[TEXT_ROWS][2];
    multiply_tile(count, registers, queries, stride, head_dim, turned, TEXT_PANEL, sums);
    for (int i = 0; i < count; i++)
        for (int j = 0; j < registers; j++) SUM(storeu)(scores + i * pitch + j * VECTOR, sums[i][j]);
}

/* out [count, registers] = the sums of `keys` values weighted by shares [count, keys], times the rows' factors. */
static inline __attribute__((always_inline)) void mix_tile(const int count, const int registers, const float *shares, i64 pitch, i64 keys,
                                                           const float *values, i64 stride, const float *factors, float *out, i64 out_stride) {
    Sum sums[TEXT_ROWS][2];
    multiply_tile(count, registers, shares, pitch, keys, values, stride, sums);
    for (int i = 0; i < count; i++)
        for (int j = 0; j < registers; j++)
            SUM(storeu)(out + i * out_stride + j * VECTOR, SUM(mul)(sums[i][j], SUM(set1)(factors[i])));
}

#define CASE(COUNT, REGISTERS) \
    case COUNT: score_tile(COUNT, REGISTERS, queries, stride, turned, head_dim, pitch, scores); break;
static void score_rows(i64 count, i64 registers, const float *queries, i64 stride, const float *turned, i64 head_dim, i64 pitch, float *scores) {
    if (registers == 2) switch (count) {
        TEXT_COUNTS(CASE, 2)
        default: __builtin_unreachable();
        }
    else switch (count) {
        TEXT_COUNTS(CASE, 1)
        default: __builtin_unreachable();
        }
}
#undef CASE

#define CASE(COUNT, REGISTERS) \
    case COUNT: mix_tile(COUNT, REGISTERS, shares, pitch, keys, values, stride, factors, out, out_stride); break;
static void mix_rows(i64 count, i64 registers, const float *shares, i64 pitch, i64 keys, const float *values, i64 stride, const float *factors,
                     float *out, i64 out_stride) {
    if (registers == 2) switch (count) {
        TEXT_COUNTS(CASE, 2)
        default: __builtin_unreachable();
        }
    else switch (count) {
        TEXT_COUNTS(CASE, 1)
        default: __builtin_unreachable();
        }
}
#undef CASE

static inline float sum_of(Sum x) {
    __m256 both = halves(x);
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(both), _mm256_extractf128_ps(both, 1));
    four = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(four, _mm_movehdup_ps(four)));
}

static inline float greatest_of(Sum x) {
#if defined(__AVX512F__)
    __m256 both = _mm256_max_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));
#else
    __m256 both = x;
#endif
    __m128 four = _mm_max_ps(_mm256_castps256_ps128(both), _mm256_extractf128_ps(both, 1));
    four = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(four, _mm_movehdup_ps(four)));
}

/* e^x of numbers that are not above 0, with a relative error of about 1e-7; 0 far below. */
static inline Sum exponentials(Sum x) {
#if defined(__AVX512F__)
    x = _mm512_max_ps(x, _mm512_set1_ps(-200.0f));
    Sum power = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), 8);
#else
    Sum is_small = _mm256_cmp_ps(x, _mm256_set1_ps(-87.0f), _CMP_LT_OQ);
    x = _mm256_max_ps(x, _mm256_set1_ps(-87.0f));
    Sum power = _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(1.44269504f)), 8);
#endif
    Sum r = SUM(fnmadd)(power, SUM(set1)(-2.12194440e-4f), SUM(fnmadd)(power, SUM(set1)(0.693359375f), x));
    Sum p = SUM(fmadd)(SUM(set1)(1.9875691500e-4f), r, SUM(set1)(1.3981999507e-3f));
    p = SUM(fmadd)(p, r, SUM(set1)(8.3334519073e-3f));
    p = SUM(fmadd)(p, r, SUM(set1)(4.1665795894e-2f));
    p = SUM(fmadd)(p, r, SUM(set1)(1.6666665459e-1f));
    p = SUM(fmadd)(p, r, SUM(set1)(5.0000001201e-1f));
    p = SUM(add)(SUM(fmadd)(SUM(mul)(p, r), r, r), SUM(set1)(1.0f));
#if defined(__AVX512F__)
    return _mm512_scalef_ps(p, power);
#else
    __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(power), _mm256_set1_epi32(127));
    return _mm256_andnot_ps(is_small, _mm256_mul_ps(p, _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23))));
#endif
}

/* Let row [from, to) be e^(score - highest) of its elements [first, last), and 0 elsewhere. `from` and `to` are multiples of VECTOR.
 * Returns 1 / their sum. */
static float softmax_row(float *row, i64 from, i64 to, i64 first, i64 last) {
    Sum most = SUM(set1)(-INFINITY), total = SUM(setzero)();
    for (i64 i = from; i < first; i++) row[i] = -INFINITY;
    for (i64 i = last; i < to; i++) row[i] = -INFINITY;
    for (i64 i = from; i < to; i += VECTOR) most = SUM(max)(most, SUM(loadu)(row + i));
    Sum highest = SUM(set1)(greatest_of(most));
    for (i64 i = from; i < to; i += VECTOR) {
        Sum share = exponentials(SUM(sub)(SUM(loadu)(row + i), highest));
        SUM(storeu)(row + i, share);
        total = SUM(add)(total, share);
    }
    return 1.0f / sum_of(total);
}

/* One head's attention for some queries of a text. */
static void text_task(const Texts *texts, const i64 *unit, i64 head, float *memory) {
    i64 start = unit[0], length = unit[1], begin = unit[2], size = texts->head_dim, window = texts->window ? texts->window : length;
    i64 end = begin + TEXT_QUERIES < length ? begin + TEXT_QUERIES : length, kv = head / (texts->heads / texts->kv_heads);
    i64 low = begin - window + 1 > 0 ? begin - window + 1 : 0, high = end + window - 1 < length ? end + window - 1 : length;
    i64 pitch = score_pitch(texts->capacity);
    const float *keys = texts->keys + (start + low) * texts->key_stride + kv * size;
    const float *values = texts->values + (start + low) * texts->value_stride + kv * size;
    const float *biases = texts->biases ? texts->biases + head * (2 * texts->span + 1) + texts->span : NULL;
    float *turned = memory, *scores = memory + size * texts->capacity, factors[TEXT_ROWS];
    turn_keys(keys, texts->key_stride, high - low, size, texts->scale, turned);
    i64 tiles = (end - begin + TEXT_ROWS - 1) / TEXT_ROWS, query = begin;
    for (i64 tile = 0; tile < tiles; tile++) {
        i64 count = (end - begin) / tiles + (tile < (end - begin) % tiles);
        const float *queries = texts->queries + (start + query) * texts->query_stride + head * size;
        i64 first = query - window + 1 - low, last = query + count - 1 + window - low; /* keys that some query sees */
        first = first > 0 ? first : 0, last = last < high - low ? last : high - low;
        i64 from = first / TEXT_PANEL * TEXT_PANEL, to = (last + VECTOR - 1) / VECTOR * VECTOR;
        for (i64 at = from; at < to; at += TEXT_PANEL)
            score_rows(count, at + VECTOR < to ? 2 : 1, queries, texts->query_stride, turned + at * size, size, pitch, scores + at);
        for (i64 i = 0; i < count; i++) {
            i64 own = query + i - low, seen = own - window + 1 > first ? own - window + 1 : first, until = own + window < last ? own + window : last;
            float *row = scores + i * pitch;
            if (biases)
                for (i64 key = seen; key < until; key++) row[key] += biases[key - own];
            factors[i] = softmax_row(row, from, to, seen, until);
        }
        float *out = texts->out + ((start + query) * texts->heads + head) * size;
        for (i64 d = 0; d < size; d += 2 * VECTOR)
            mix_rows(count, d + VECTOR < size ? 2 : 1, scores + first, pitch, last - first, values + first * texts->value_stride + d,
                     texts->value_stride, factors, out + d, texts->heads * size);
        query += count;
    }
}

/* out = LayerNorm of hidden + delta (unless it is NULL). All are [rows, size], and the size is a multiple of VECTOR. */
static void layer_norm_row(float *hidden, const float *delta, const float *weight, const float *bias, float *out, i64 size, float eps, int keeps) {
    Sum total = SUM(setzero)(), squares = SUM(setzero)();
    for (i64 i = 0; i < size; i += VECTOR) {
        Sum x = SUM(loadu)(hidden + i);
        if (delta) x = SUM(add)(x, SUM(loadu)(delta + i));
        SUM(storeu)(out + i, x);
        if (keeps) SUM(storeu)(hidden + i, x);
        total = SUM(add)(total, x);
    }
    Sum middle = SUM(set1)(sum_of(total) / (float)size);
    for (i64 i = 0; i < size; i += VECTOR) {
        Sum x = SUM(sub)(SUM(loadu)(out + i), middle);
        squares = SUM(fmadd)(x, x, squares);
    }
    Sum factor = SUM(set1)(1.0f / __builtin_sqrtf(sum_of(squares) / (float)size + eps));
    for (i64 i = 0; i < size; i += VECTOR) {
        Sum x = SUM(mul)(SUM(sub)(SUM(loadu)(out + i), middle), factor);
        if (weight) x = SUM(mul)(x, SUM(loadu)(weight + i));
        if (bias) x = SUM(add)(x, SUM(loadu)(bias + i));
        SUM(storeu)(out + i, x);
    }
}
