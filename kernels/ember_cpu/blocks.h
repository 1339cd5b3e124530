/* GGUF blocks, as they lie in the file (format: ggml-quants.c and ggml-common.h of github.com/ggml-org/llama.cpp).
 *
 * A block holds 32 weights, or 256 for the types with a K in their name and IQ4_XS ("super-block"). A weight is
 *
 *     d * s * (code - offset) - dmin * m      blocks of 256; s and m are integers for each PART_OF(type) weights
 *     d * (code - offset) + m                 blocks of 32
 *
 * where the offset belongs to the type, and d, dmin and a block's m are 16-bit floats. A type without m has m = 0. Codes are
 * bytes without a sign, except for the types with WITH_SIGN: their codes have one, and no offset.
 */
#pragma once

#include <math.h>
#include <string.h>

#include "numbers.h"

enum { /* the file format's own numbers */
    Q4_0 = 2, Q4_1 = 3, Q5_0 = 6, Q5_1 = 7, Q8_0 = 8, Q2_K = 10, Q3_K = 11, Q4_K = 12, Q5_K = 13, Q6_K = 14,
    IQ4_NL = 20, IQ4_XS = 23, BF16 = 30, MXFP4 = 39,
    /* Our own: integers of a row one after the other, 4 bits with the first one lowest; scales, and zeros, lie elsewhere. */
    INT4 = 200, INT8 = 201, INT4_ZEROS = 202, INT8_ZEROS = 203,
    /* Floats, whose scales lie elsewhere too: of 4 bits (MXFP4's, nibbles as INT4's), codes of 4 bits with a table, e4m3. */
    E2M1 = 204, TABLE4 = 205, FLOAT8 = 206
};

#define EVERY_SMALL(CASE, ...) \
    CASE(Q4_0, __VA_ARGS__) CASE(Q4_1, __VA_ARGS__) CASE(Q5_0, __VA_ARGS__) CASE(Q5_1, __VA_ARGS__) \
    CASE(Q8_0, __VA_ARGS__) CASE(IQ4_NL, __VA_ARGS__) CASE(MXFP4, __VA_ARGS__)
#define EVERY_INTEGER(CASE, ...) \
    CASE(INT4, __VA_ARGS__) CASE(INT8, __VA_ARGS__) CASE(INT4_ZEROS, __VA_ARGS__) CASE(INT8_ZEROS, __VA_ARGS__) \
    CASE(E2M1, __VA_ARGS__)
#define EVERY_SUPER(CASE, ...) \
    CASE(Q2_K, __VA_ARGS__) CASE(Q3_K, __VA_ARGS__) CASE(Q4_K, __VA_ARGS__) CASE(Q5_K, __VA_ARGS__) \
    CASE(Q6_K, __VA_ARGS__) CASE(IQ4_XS, __VA_ARGS__)

#define SMALL 32  /* weights in a small block */
#define SUPER 256 /* weights in a super-block */
#define INLINE static inline __attribute__((always_inline))

typedef uint8_t byte;

INLINE int is_super(int type) { return type == Q2_K || type == Q3_K || type == Q4_K || type == Q5_K || type == Q6_K || type == IQ4_XS; }
INLINE int has_zeros(int type) { return type == INT4_ZEROS || type == INT8_ZEROS; }
/* Integers, also of E2M1, with scales and zeros elsewhere. */
INLINE int has_groups(int type) { return type == INT4 || type == INT8 || type == E2M1 || has_zeros(type); }
INLINE int is_decoded(int type) { return type == E2M1 || type == TABLE4 || type == FLOAT8; } /* decoded.h multiplies it as floats */
INLINE int is_byte(int type) { return type == INT8 || type == INT8_ZEROS; }
INLINE int has_sign(int type) { return type == Q8_0 || type == IQ4_NL || type == IQ4_XS || is_byte(type); }
INLINE int has_minimum(int type) {
    return type == Q4_1 || type == Q5_1 || type == Q2_K || type == Q4_K || type == Q5_K || has_zeros(type);
}
INLINE int part_of(int type) { return type == Q2_K || type == Q3_K || type == Q6_K ? 16 : 32; }
INLINE int offset_of(int type) {
    switch (type) {
    case Q3_K: return 4;
    case Q4_0: case INT4: return 8;
    case Q5_0: return 16;
    case Q6_K: return 32;
    case MXFP4: case E2M1: return 12;
    default: return 0;
    }
}
/* Bytes of a block; 0: there is no such type. */
INLINE i64 block_bytes(int type) {
    switch (type) {
    case Q4_0: case IQ4_NL: return 18;
    case Q4_1: return 20;
    case Q5_0: return 22;
    case Q5_1: return 24;
    case Q8_0: return 34;
    case MXFP4: return 17;
    case Q2_K: return 84;
    case Q3_K: return 110;
    case Q4_K: return 144;
    case Q5_K: return 176;
    case Q6_K: return 210;
    case IQ4_XS: return 136;
    case INT4: case INT4_ZEROS: case E2M1: case TABLE4: return 16;
    case INT8: case INT8_ZEROS: case FLOAT8: return 32;
    default: return 0;
    }
}
/* Bytes of a row. */
INLINE i64 row_bytes(int type, i64 columns) {
    if (type == BF16) return columns * 2;
    return columns / (is_super(type) ? SUPER : SMALL) * block_bytes(type);
}

INLINE uint16_t read16(const byte *from) { uint16_t bits; memcpy(&bits, from, 2); return bits; }
INLINE uint32_t read32(const byte *from) { uint32_t bits; memcpy(&bits, from, 4); return bits; }
INLINE __m128i load16(const byte *from) { return _mm_loadu_si128((const __m128i *)from); }
INLINE __m256i load32(const byte *from) { return _mm256_loadu_si256((const __m256i *)from); }
INLINE float half_at(const byte *from) { return _cvtsh_ss(read16(from)); }

/* Numbers in e4m3, in the upper bytes of 16-bit words, as float16: each over 256, also the subnormal ones. */
INLINE __m256i e4m3_halves(__m256i words) {
    const __m256i magnitude = _mm256_set1_epi16(0x7f00);
    __m256i nan = _mm256_cmpeq_epi16(_mm256_and_si256(words, magnitude), magnitude);
    __m256i half = _mm256_and_si256(_mm256_srli_epi16(words, 1), _mm256_set1_epi16(0x3f80));
    return _mm256_or_si256(_mm256_or_si256(half, _mm256_and_si256(words, _mm256_set1_epi16((short)0x8000))), nan);
}
/* The first eight bytes, numbers in e4m3. */
INLINE __m256 e4m3_numbers(__m128i bytes) {
    __m256i halves = e4m3_halves(_mm256_castsi128_si256(_mm_unpacklo_epi8(_mm_setzero_si128(), bytes)));
    return _mm256_mul_ps(_mm256_cvtph_ps(_mm256_castsi256_si128(halves)), _mm256_set1_ps(256.0f));
}

/* ---------------------------------------------------------------- codes */

/* 16 bytes of nibbles: the low ones, then the high ones. */
INLINE __m256i nibbles_of(__m128i both) {
    __m256i halves = _mm256_inserti128_si256(_mm256_castsi128_si256(both), _mm_srli_epi16(both, 4), 1);
    return _mm256_and_si256(halves, _mm256_set1_epi8(15));
}

/* Each of 32 bits as a byte: `value` where it is 1, else 0. */
INLINE __m256i bits_of(uint32_t bits, char value) {
#if defined(__AVX512BW__) && defined(__AVX512VL__)
    return _mm256_maskz_set1_epi8(bits, value);
#else
    const __m256i place = _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303);
    const __m256i bit = _mm256_set1_epi64x((i64)0x8040201008040201);
    __m256i spread = _mm256_shuffle_epi8(_mm256_set1_epi32((int)bits), place);
    return _mm256_and_si256(_mm256_cmpeq_epi8(_mm256_and_si256(spread, bit), bit), _mm256_set1_epi8(value));
#endif
}

INLINE __m256i look_up(__m128i table, __m256i codes) { return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(table), codes); }
INLINE __m128i iq4_values(void) { return _mm_setr_epi8(-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113); }
/* The 4-bit floats of MXFP4, doubled, and 12 more. */
INLINE __m128i mxfp4_values(void) { return _mm_setr_epi8(12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0); }

INLINE __m256i shifted(__m256i codes, int right, char mask) {
    return _mm256_and_si256(right ? _mm256_srli_epi16(codes, right) : codes, _mm256_set1_epi8(mask));
}
/* Bit `place` of each byte, moved to bit `to`. */
INLINE __m256i bit_moved(__m256i from, int place, int to) {
    __m256i moved = place > to ? _mm256_srli_epi16(from, place - to) : _mm256_slli_epi16(from, to - place);
    return _mm256_and_si256(moved, _mm256_set1_epi8((char)(1 << to)));
}

/* 32 codes in the order of the weights: number j of a super-block's eight, or those of a small block. */
INLINE __m256i codes32(const int type, const byte *block, const int j) {
    switch (type) {
    case Q4_0: return nibbles_of(load16(block + 2));
    case Q4_1: return nibbles_of(load16(block + 4));
    case Q5_0: return _mm256_or_si256(nibbles_of(load16(block + 6)), bits_of(read32(block + 2), 16));
    case Q5_1: return _mm256_or_si256(nibbles_of(load16(block + 8)), bits_of(read32(block + 4), 16));
    case Q8_0: return load32(block + 2);
    case IQ4_NL: return look_up(iq4_values(), nibbles_of(load16(block + 2)));
    case MXFP4: return look_up(mxfp4_values(), nibbles_of(load16(block + 1)));
    case Q2_K: return shifted(load32(block + 16 + j / 4 * 32), j % 4 * 2, 3);
    case Q3_K: return _mm256_or_si256(shifted(load32(block + 32 + j / 4 * 32), j % 4 * 2, 3), bit_moved(load32(block), j, 2));
    case Q4_K: return shifted(load32(block + 16 + j / 2 * 32), j % 2 * 4, 15);
    case Q5_K: return _mm256_or_si256(shifted(load32(block + 48 + j / 2 * 32), j % 2 * 4, 15), bit_moved(load32(block + 16), j, 4));
    case Q6_K: {
        __m256i low = shifted(load32(block + j / 4 * 64 + j % 2 * 32), j % 4 / 2 * 4, 15), high = load32(block + 128 + j / 4 * 32);
        int place = j % 4 * 2;
        high = place < 4 ? _mm256_slli_epi16(high, 4 - place) : _mm256_srli_epi16(high, place - 4);
        return _mm256_or_si256(low, _mm256_and_si256(high, _mm256_set1_epi8(0x30)));
    }
    case IQ4_XS: return look_up(iq4_values(), nibbles_of(load16(block + 8 + j * 16)));
    case INT4: case INT4_ZEROS: { /* a byte becomes two, of which the second has its high half */
        __m256i both = _mm256_cvtepu8_epi16(load16(block));
        return _mm256_and_si256(_mm256_or_si256(both, _mm256_slli_epi16(both, 4)), _mm256_set1_epi8(15));
    }
    case INT8: case INT8_ZEROS: return _mm256_xor_si256(load32(block), _mm256_set1_epi8((char)128)); /* less 128 */
    case E2M1: return look_up(mxfp4_values(), codes32(INT4, block, 0));
    default: __builtin_unreachable();
    }
}

/* ---------------------------------------------------------------- scales */

/* The 6-bit numbers of Q4_K and Q5_K as bytes: eight scales, then eight m. */
INLINE __m128i six_bits(const byte *block) {
    __m128i packed = load16(block + 4); /* the last four bytes are not read below */
    __m128i low = _mm_shuffle_epi8(packed, _mm_setr_epi8(0, 1, 2, 3, 8, 9, 10, 11, 4, 5, 6, 7, 8, 9, 10, 11));
    __m128i high = _mm_shuffle_epi8(packed, _mm_setr_epi8(-1, -1, -1, -1, 0, 1, 2, 3, -1, -1, -1, -1, 4, 5, 6, 7));
    low = _mm_and_si128(_mm_srlv_epi32(low, _mm_setr_epi32(0, 0, 0, 4)), _mm_setr_epi32(0x3f3f3f3f, 0x0f0f0f0f, 0x3f3f3f3f, 0x0f0f0f0f));
    return _mm_or_si128(low, _mm_and_si128(_mm_srli_epi32(high, 2), _mm_set1_epi8(0x30)));
}

INLINE __m128i q3_scales(const byte *block) {
    uint32_t low = read32(block + 96), next = read32(block + 100), high = read32(block + 104);
    __m128i parts = _mm_setr_epi32((int)low, (int)next, (int)(low >> 4), (int)(next >> 4));
    __m128i upper = _mm_setr_epi32((int)(high << 4), (int)(high << 2), (int)high, (int)(high >> 2));
    parts = _mm_or_si128(_mm_and_si128(parts, _mm_set1_epi8(15)), _mm_and_si128(upper, _mm_set1_epi8(0x30)));
    return _mm_sub_epi8(parts, _mm_set1_epi8(32));
}

INLINE __m128i iq4_scales(const byte *block) {
    const __m128i shifts = _mm_setr_epi32(0, 4, 8, 12);
    uint32_t high = read16(block + 2);
    /* Eight nibbles to eight bytes, and eight pairs of bits. */
    __m128i low = _mm_cvtsi32_si128((int)read32(block + 4));
    low = _mm_and_si128(_mm_unpacklo_epi8(low, _mm_srli_epi16(low, 4)), _mm_set1_epi8(15));
    __m128i pairs = _mm_srlv_epi32(_mm_set1_epi32((int)high), shifts); /* word n: pairs 2n and 2n + 1 lowest */
    pairs = _mm_or_si128(_mm_and_si128(pairs, _mm_set1_epi32(3)), _mm_slli_epi32(_mm_and_si128(pairs, _mm_set1_epi32(12)), 6));
    pairs = _mm_shuffle_epi8(pairs, _mm_setr_epi8(0, 1, 4, 5, 8, 9, 12, 13, -1, -1, -1, -1, -1, -1, -1, -1));
    return _mm_sub_epi8(_mm_or_si128(low, _mm_slli_epi16(pairs, 4)), _mm_setr_epi8(32, 32, 32, 32, 32, 32, 32, 32, 0, 0, 0, 0, 0, 0, 0, 0));
}

/* The scales s of a super-block as 16-bit integers: sixteen, or eight in the lower half. */
INLINE __m256i scales_of(const int type, const byte *block) {
    switch (type) {
    case Q2_K: return _mm256_cvtepu8_epi16(_mm_and_si128(load16(block), _mm_set1_epi8(15)));
    case Q3_K: return _mm256_cvtepi8_epi16(q3_scales(block));
    case Q4_K: case Q5_K: return _mm256_cvtepu8_epi16(six_bits(block));
    case Q6_K: return _mm256_cvtepi8_epi16(load16(block + 192));
    case IQ4_XS: return _mm256_cvtepi8_epi16(iq4_scales(block));
    default: __builtin_unreachable();
    }
}

/* The numbers m of a super-block, as above; for a type without m but with an offset, the scales times the offset. */
INLINE __m256i minimums_of(const int type, const byte *block) {
    switch (type) {
    case Q2_K: return _mm256_cvtepu8_epi16(_mm_and_si128(_mm_srli_epi16(load16(block), 4), _mm_set1_epi8(15)));
    case Q4_K: case Q5_K: return _mm256_zextsi128_si256(_mm_cvtepu8_epi16(_mm_srli_si128(six_bits(block), 8)));
    case Q3_K: return _mm256_slli_epi16(scales_of(type, block), 2);
    case Q6_K: return _mm256_slli_epi16(scales_of(type, block), 5);
    default: return _mm256_setzero_si256();
    }
}

/* Half of the power of two whose exponent it is. The smallest are no normal numbers. */
INLINE float half_power(byte exponent) {
    union { uint32_t bits; float value; } u = {exponent < 2 ? 0x200000u << exponent : (uint32_t)(exponent - 1) << 23};
    return u.value;
}

/* d. */
INLINE float factor_of(const int type, const byte *block) {
    switch (type) {
    case Q2_K: return half_at(block + 80);
    case Q3_K: return half_at(block + 108);
    case Q6_K: return half_at(block + 208);
    case MXFP4: return half_power(*block);
    default: return half_at(block);
    }
}
/* dmin of a super-block, m of a small block. */
INLINE float minimum_of(const int type, const byte *block) {
    switch (type) {
    case Q2_K: return half_at(block + 82);
    case Q4_K: case Q5_K: case Q4_1: case Q5_1: return half_at(block + 2);
    default: return 0;
    }
}

/* ---------------------------------------------------------------- to bfloat16 and back */

/* The product, rounded: the compiler must not fuse it with a sum. */
INLINE __m256 times(__m256 a, __m256 b) {
    __m256 product = _mm256_mul_ps(a, b);
    __asm__("" : "+x"(product));
    return product;
}

/* Restore 32 weights: w = factor * (code - offset) + shift, each operation rounded to float32, the result to bfloat16. */
INLINE void restore32(const int type, __m256i codes, const float factor[2], const float shift[2], bf16 *out) {
    byte all[32] __attribute__((aligned(32)));
    _mm256_store_si256((__m256i *)all, codes);
    for (int i = 0; i < 4; i++) {
        __m128i eight = _mm_loadl_epi64((const __m128i *)(all + 8 * i));
        __m256i whole = has_sign(type) ? _mm256_cvtepi8_epi32(eight) : _mm256_cvtepu8_epi32(eight);
        whole = _mm256_sub_epi32(whole, _mm256_set1_epi32(offset_of(type)));
        __m256 weights = times(_mm256_cvtepi32_ps(whole), _mm256_set1_ps(factor[i / 2]));
        if (has_minimum(type)) weights = _mm256_add_ps(weights, _mm256_set1_ps(shift[i / 2]));
        float values[8] __attribute__((aligned(32)));
        _mm256_store_ps(values, weights);
        for (int n = 0; n < 8; n++) out[8 * i + n] = to_bf16(values[n]);
    }
}

INLINE void restore_blocks(const int type, const byte *row, i64 columns, bf16 *out) {
    if (!is_super(type)) {
        for (i64 k = 0; k < columns; k += SMALL, row += block_bytes(type)) {
            float d = factor_of(type, row), m = minimum_of(type, row), factor[2] = {d, d}, shift[2] = {m, m};
            restore32(type, codes32(type, row, 0), factor, shift, out + k);
        }
        return;
    }
    for (i64 k = 0; k < columns; k += SUPER, row += block_bytes(type)) {
        float d = factor_of(type, row), dmin = minimum_of(type, row), factor[16], shift[16];
        int16_t s[16], m[16];
        _mm256_storeu_si256((__m256i *)s, scales_of(type, row)), _mm256_storeu_si256((__m256i *)m, minimums_of(type, row));
        for (int i = 0; i < 16; i++) {
            int part = i * 16 / part_of(type);
            factor[i] = d * (float)s[part], shift[i] = has_minimum(type) ? -(dmin * (float)m[part]) : 0.0f;
        }
        _Pragma("GCC unroll 8") for (int j = 0; j < 8; j++)
            restore32(type, codes32(type, row, j), factor + 2 * j, shift + 2 * j, out + k + 32 * j);
    }
}

/* The scales and zeros of rows of integers, in float32: a weight is d * (code - offset) + m. */
typedef struct {
    const float *d, *m; /* [groups, rows], of as many rows as are multiplied together */
    unsigned blocks;    /* of 32 weights in a group */
} Groups;

enum { FLOAT32, FLOAT16, E4M3, E8M0 }; /* types of scales, beside BF16 */

INLINE i64 scale_bytes(i64 scale_type) { return scale_type == FLOAT32 ? 4 : scale_type == E4M3 || scale_type == E8M0 ? 1 : 2; }

/* The scales of one row with `count` groups, in float32. */
static void read_scales(const byte *scales, i64 scale_type, i64 count, float *d) {
    i64 i = 0;
    switch (scale_type) {
    case FLOAT32: memcpy(d, scales, (size_t)count * sizeof(float)); break;
    case FLOAT16:
        for (; i + 8 <= count; i += 8) _mm256_storeu_ps(d + i, _mm256_cvtph_ps(load16(scales + 2 * i)));
        for (; i < count; i++) d[i] = half_at(scales + 2 * i);
        break;
    case E8M0: /* the smallest is no normal number, and the largest exponent is no number */
        for (; i < count; i++) {
            uint32_t bits = (uint32_t)scales[i] << 23 | (scales[i] == 0 || scales[i] == 255 ? 0x400000u : 0);
            memcpy(d + i, &bits, sizeof bits);
        }
        break;
    case E4M3:
        for (; i + 8 <= count; i += 8) _mm256_storeu_ps(d + i, e4m3_numbers(_mm_loadl_epi64((const __m128i *)(scales + i))));
        for (; i < count; i++) d[i] = _mm256_cvtss_f32(e4m3_numbers(_mm_cvtsi32_si128(scales[i])));
        break;
    default: for (; i < count; i++) d[i] = from_bf16((bf16)read16(scales + 2 * i));
    }
}

/* m of one row of integers, by its scales. `zeros` may be NULL. */
static void read_zeros(int type, const byte *zeros, const float *d, i64 count, float *m) {
    if (!zeros) return;
    for (i64 i = 0; i < count; i++) m[i] = -d[i] * (float)(zeros[i] - (is_byte(type) ? 128 : 0));
}

/* Restore a row of integers: (code - zero) times the group's scale, rounded to bfloat16. `d`: the scales. */
static void restore_integers(int type, const byte *row, const float *d, const byte *zeros, i64 columns, i64 group, bf16 *out) {
    for (i64 k = 0; k < columns; k++) {
        int code = is_byte(type) ? row[k] : row[k / 2] >> k % 2 * 4 & 15, zero = zeros ? zeros[k / group] : is_byte(type) ? 128 : 8;
        out[k] = to_bf16((float)(code - zero) * d[k / group]);
    }
}

/* Restore a row of blocks to bfloat16. */
static void restore_row(int type, const char *row, i64 columns, bf16 *out) {
#define CASE(TYPE, ...) \
    case TYPE: restore_blocks(TYPE, (const byte *)row, columns, out); break;
    switch (type) {
    EVERY_SMALL(CASE, 0) EVERY_SUPER(CASE, 0)
    default: memcpy(out, row, (size_t)columns * sizeof(bf16));
    }
#undef CASE
}

/* Quantise a row to Q8_0 or Q4_0. d is the weight of the largest magnitude over 127 or -8, so that this weight has no error but
 * that of d. A block with a NaN or infinity becomes NaN completely, so that the fault is detected. */
static void quantise_row(const bf16 *row, i64 columns, int type, byte *out) {
    for (i64 k = 0; k < columns; k += SMALL, out += block_bytes(type)) {
        float x[SMALL], high[8] = {0}, low[8] = {0}, odd[8] = {0}, largest = 0, lowest = 0, strange = 0;
        for (int i = 0; i < SMALL; i++) x[i] = from_bf16(row[k + i]);
        for (int i = 0; i < SMALL; i += 8)
            for (int j = 0; j < 8; j++) {
                high[j] = x[i + j] > high[j] ? x[i + j] : high[j];
                low[j] = x[i + j] < low[j] ? x[i + j] : low[j];
                odd[j] += x[i + j] * 0.0f;
            }
        for (int j = 0; j < 8; j++) {
            largest = high[j] > largest ? high[j] : largest;
            lowest = low[j] < lowest ? low[j] : lowest;
            strange += odd[j];
        }
        float extreme = largest > -lowest ? largest : lowest, d = type == Q8_0 ? fabsf(extreme) / 127.0f : extreme / -8.0f;
        uint16_t bits = strange != strange || fabsf(d) > 65504.0f ? 0x7e00 : _cvtss_sh(d, _MM_FROUND_TO_NEAREST_INT);
        float inverse = fabsf(d) < 0x1p-24f || bits == 0x7e00 ? 0.0f : 1.0f / d;
        if (inverse == 0.0f && bits != 0x7e00) bits = 0;
        memcpy(out, &bits, 2);
        for (int i = 0; i < (type == Q8_0 ? SMALL : SMALL / 2); i++) {
            float first = inverse == 0.0f ? 0.0f : rintf(x[i] * inverse);
            if (type == Q8_0) {
                out[2 + i] = (byte)(int8_t)first;
                continue;
            }
            float second = inverse == 0.0f ? 0.0f : rintf(x[i + 16] * inverse);
            int low = (int)(first < 7.0f ? first : 7.0f) + 8, high = (int)(second < 7.0f ? second : 7.0f) + 8;
            out[2 + i] = (byte)(low | high << 4);
        }
    }
}
