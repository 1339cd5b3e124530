/* Products of GGUF blocks with activations of 8 bits (slabs.h).
 *
 * Sums within a block, or a super-block, are integers, so they are exact. Blocks are added in float32, one after the other; even
 * and odd blocks of 32 weights separately. So both ways below, and all variants of the library, give the same result, bit by bit.
 *
 * Few rows of activations: four rows of the matrix at a time, weights in the order of the file.
 * More rows: the weights of LANES rows of the matrix are unpacked to a panel, in which a register holds four columns of each row.
 */
#pragma once

#include "slabs.h"

#define LANES (STEP_WIDTH / 2) /* rows of the matrix in a panel: 32-bit words of a register */
#define BYTES (STEP_WIDTH * 2) /* of a register */
#define PER_SLAB (SUPER / BYTES)

#if defined(__AVX512F__)
#define WIDE(name) _mm512_##name
#define BITS(name) _mm512_##name##_si512
INLINE Wide loadw(const void *from) { return _mm512_loadu_si512(from); }
INLINE Wide zero(void) { return _mm512_setzero_si512(); }
#define KEPT 8 /* rows of activations whose sums are in registers beside a panel */
#else
#define WIDE(name) _mm256_##name
#define BITS(name) _mm256_##name##_si256
INLINE Wide loadw(const void *from) { return _mm256_loadu_si256((const __m256i *)from); }
INLINE Wide zero(void) { return _mm256_setzero_si256(); }
#define KEPT 4
#endif
#define PRODUCT(a, b) WIDE(maddubs_epi16)(a, b)

#if defined(__AVX512VNNI__)
#define SHIFTED 1 /* codes with a sign are shifted by 128, to have none */
/* sums += the products of 16-bit integers, of pairs. */
INLINE Wide add_pairs(Wide sums, Wide a, Wide b) { return _mm512_dpwssd_epi32(sums, a, b); }
/* sums += the products of bytes without and with a sign, of fours. */
INLINE Wide add_fours(Wide sums, Wide codes, Wide x) { return _mm512_dpbusd_epi32(sums, codes, x); }
#else
#define SHIFTED 0
INLINE Wide add_pairs(Wide sums, Wide a, Wide b) { return WIDE(add_epi32)(sums, WIDE(madd_epi16)(a, b)); }
INLINE Wide add_fours(Wide sums, Wide codes, Wide x) { return add_pairs(sums, PRODUCT(codes, x), WIDE(set1_epi16)(1)); }
#endif

/* The products of bytes that both have signs, of pairs. Codes of -128 are allowed, activations of -128 are not. */
INLINE Wide signed_product(Wide codes, Wide x) {
#if defined(__AVX512F__)
    __mmask64 negative = _mm512_movepi8_mask(codes);
    return PRODUCT(_mm512_abs_epi8(codes), _mm512_mask_sub_epi8(x, negative, _mm512_setzero_si512(), x));
#else
    return PRODUCT(_mm256_abs_epi8(codes), _mm256_sign_epi8(x, codes));
#endif
}

/* ---------------------------------------------------------------- few rows: in the order of the file */

#if defined(__AVX512F__)
/* 64 codes of 4 bits: of each of two blocks the low halves of 16 bytes, then the high ones. */
INLINE Wide two_nibbles(const byte *first, const byte *second) {
    Wide both = _mm512_castsi256_si512(_mm256_inserti128_si256(_mm256_castsi128_si256(load16(first)), load16(second), 1));
    both = _mm512_permutexvar_epi64(_mm512_setr_epi64(0, 1, 0, 1, 2, 3, 2, 3), both);
    return _mm512_and_si512(_mm512_srlv_epi64(both, _mm512_setr_epi64(0, 0, 4, 4, 0, 0, 4, 4)), _mm512_set1_epi8(15));
}

/* 64 codes of a super-block whose halves are in the same 32 bytes, the second half four bits higher. */
INLINE Wide split_nibbles(const byte *from) {
    Wide both = _mm512_broadcast_i64x4(load32(from));
    return _mm512_and_si512(_mm512_srlv_epi64(both, _mm512_setr_epi64(0, 0, 0, 0, 4, 4, 4, 4)), _mm512_set1_epi8(15));
}

/* `codes`, with the bits of `high` that `mask` has. */
INLINE Wide with_bits(Wide codes, Wide high, char mask) {
    return _mm512_ternarylogic_epi64(codes, high, _mm512_set1_epi8(mask), 0xf8);
}

/* As `codes_of`, in fewer instructions than two halves; only for types of which it returns 1. */
INLINE int codes64(const int type, const byte *block, const int j, Wide *codes) {
    const byte *next = block + block_bytes(type);
    switch (type) {
    case Q4_0: *codes = two_nibbles(block + 2, next + 2); return 1;
    case Q4_1: *codes = two_nibbles(block + 4, next + 4); return 1;
    case IQ4_NL: *codes = _mm512_shuffle_epi8(_mm512_broadcast_i32x4(iq4_values()), two_nibbles(block + 2, next + 2)); return 1;
    case MXFP4: *codes = _mm512_shuffle_epi8(_mm512_broadcast_i32x4(mxfp4_values()), two_nibbles(block + 1, next + 1)); return 1;
    case INT4: case INT4_ZEROS: case E2M1: { /* 32 bytes: a byte becomes two, of which the second has its high half */
        Wide both = _mm512_cvtepu8_epi16(load32(block));
        *codes = _mm512_ternarylogic_epi64(both, _mm512_slli_epi16(both, 4), _mm512_set1_epi8(15), 0xa8); /* (a | b) & c */
        if (type == E2M1) *codes = _mm512_shuffle_epi8(_mm512_broadcast_i32x4(mxfp4_values()), *codes);
        return 1;
    }
    case INT8: case INT8_ZEROS: *codes = _mm512_xor_si512(_mm512_loadu_si512(block), _mm512_set1_epi8((char)128)); return 1;
    case Q4_K: *codes = split_nibbles(block + 16 + 32 * j); return 1;
    case Q5_K: { /* the fifth bits of parts 2j and 2j + 1, moved to bit 4 */
        Wide high = _mm512_broadcast_i64x4(load32(block + 16));
        high = _mm512_rorv_epi64(high, _mm512_setr_epi64(2 * j + 60, 2 * j + 60, 2 * j + 60, 2 * j + 60, 2 * j + 61, 2 * j + 61, 2 * j + 61, 2 * j + 61));
        *codes = with_bits(split_nibbles(block + 48 + 32 * j), high, 16);
        return 1;
    }
    case Q6_K: { /* bits 4 j % 2 and two more of each byte, moved to bits 4 and 5 */
        Wide low = _mm512_loadu_si512(block + j / 2 * 64), high = _mm512_broadcast_i64x4(load32(block + 128 + j / 2 * 32));
        const int first = j % 2 * 4 + 60, second = first + 2;
        low = _mm512_and_si512(j % 2 ? _mm512_srli_epi64(low, 4) : low, _mm512_set1_epi8(15));
        high = _mm512_rorv_epi64(high, _mm512_setr_epi64(first, first, first, first, second, second, second, second));
        *codes = with_bits(low, high, 0x30);
        return 1;
    }
    default: return 0;
    }
}
#endif

/* A register of codes: number j of a super-block; of small blocks the one at `block`, and the next one if a register holds two. */
INLINE Wide codes_of(const int type, const byte *block, const int j) {
#if defined(__AVX512F__)
    Wide codes;
    if (codes64(type, block, j, &codes)) return codes;
    __m256i first = is_super(type) ? codes32(type, block, 2 * j) : codes32(type, block, 0);
    __m256i second = is_super(type) ? codes32(type, block, 2 * j + 1) : codes32(type, block + block_bytes(type), 0);
    return _mm512_inserti64x4(_mm512_castsi256_si512(first), second, 1);
#else
    return codes32(type, block, is_super(type) ? j : 0);
#endif
}

/* The scales of register j's parts, each as often as the part has pairs. */
INLINE Wide spread(const int type, __m256i scales, const int j) {
    const int part = part_of(type);
#if defined(__AVX512F__)
    int16_t at[32];
    for (int i = 0; i < 32; i++) at[i] = (int16_t)((j * BYTES + 2 * i) / part);
    return _mm512_permutexvar_epi16(_mm512_loadu_si512(at), _mm512_castsi256_si512(scales));
#else
    int first = j * BYTES / part, second = (j * BYTES + 16) / part;
    __m128i half = first < 8 ? _mm256_castsi256_si128(scales) : _mm256_extracti128_si256(scales, 1);
    first = first % 8 * 0x0202 + 0x0100, second = second % 8 * 0x0202 + 0x0100;
    return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(half),
                               _mm256_inserti128_si256(_mm256_set1_epi16((int16_t)first), _mm_set1_epi16((int16_t)second), 1));
#endif
}

/* Four registers' sums of each 128 bits, side by side. */
INLINE Wide reduce_lanes(Wide a, Wide b, Wide c, Wide d) {
    Wide ab = WIDE(add_epi32)(WIDE(unpacklo_epi32)(a, b), WIDE(unpackhi_epi32)(a, b));
    Wide cd = WIDE(add_epi32)(WIDE(unpacklo_epi32)(c, d), WIDE(unpackhi_epi32)(c, d));
    return WIDE(add_epi32)(WIDE(unpacklo_epi64)(ab, cd), WIDE(unpackhi_epi64)(ab, cd));
}
INLINE __m128i two_halves(__m256i sums) { return _mm_add_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256(sums, 1)); }
INLINE __m128i reduce_four(const Wide sums[4]) {
    Wide lanes = reduce_lanes(sums[0], sums[1], sums[2], sums[3]);
#if defined(__AVX512F__)
    return two_halves(_mm256_add_epi32(_mm512_castsi512_si256(lanes), _mm512_extracti64x4_epi64(lanes, 1)));
#else
    return two_halves(lanes);
#endif
}
INLINE __m128i reduce_low(const __m128i sums[4]) {
    __m128i ab = _mm_hadd_epi32(sums[0], sums[1]), cd = _mm_hadd_epi32(sums[2], sums[3]);
    return _mm_hadd_epi32(ab, cd);
}

/* Four numbers of the blocks at `w`, `at` bytes into them, as float32. */
#define FOUR(OF, TYPE, W, AT) _mm_setr_ps(OF(TYPE, W[0] + AT), OF(TYPE, W[1] + AT), OF(TYPE, W[2] + AT), OF(TYPE, W[3] + AT))

INLINE void prefetch_bytes(const char *from, const i64 bytes) {
    for (i64 i = 0; i < bytes; i += LINE) _mm_prefetch(from + i, _MM_HINT_T1);
}

/* out[i][0..3] = four rows of the matrix, of super-blocks, times row i of the activations, for `count` rows. */
INLINE void few_super(const int type, const int count, const byte *const w[4], const Groups *groups, const Slab *x, i64 rows, i64 columns,
                      const char *ahead, float *out, i64 pitch) {
    (void)groups;
    __m128 totals[4] = {_mm_setzero_ps(), _mm_setzero_ps(), _mm_setzero_ps(), _mm_setzero_ps()};
    const i64 bytes = block_bytes(type), end = columns / SUPER * bytes;
    for (i64 at = 0; at < end; at += bytes, x += rows, ahead += 4 * bytes) {
        Wide sums[4][4];
        __m128i low[4][4];
        prefetch_bytes(ahead, 4 * bytes);
        _Pragma("GCC unroll 4") for (int r = 0; r < 4; r++) {
            const byte *block = w[r] + at;
            __m256i scales = scales_of(type, block), minimums = minimums_of(type, block);
            for (int i = 0; i < count; i++) sums[i][r] = zero();
            _Pragma("GCC unroll 8") for (int j = 0; j < PER_SLAB; j++) {
                Wide codes = codes_of(type, block, j), s = spread(type, scales, j);
                for (int i = 0; i < count; i++) {
                    Wide v = loadw(x[i].codes + j * BYTES);
                    Wide product = has_sign(type) ? signed_product(codes, v) : PRODUCT(codes, v);
                    sums[i][r] = add_pairs(sums[i][r], product, s);
                }
            }
            for (int i = 0; i < count; i++) {
                const int16_t *pairs = x[i].pairs[part_of(type) / 32];
                if (part_of(type) == 32) low[i][r] = _mm_madd_epi16(_mm256_castsi256_si128(minimums), _mm_loadu_si128((const __m128i *)pairs));
                else low[i][r] = two_halves(_mm256_madd_epi16(minimums, _mm256_loadu_si256((const __m256i *)pairs)));
            }
        }
        __m128 d = FOUR(factor_of, type, w, at), dmin = FOUR(minimum_of, type, w, at);
        for (int i = 0; i < count; i++) {
            __m128 scale = _mm_set1_ps(x[i].scales[0]);
            __m128i whole = reduce_four(sums[i]);
            if (offset_of(type)) whole = _mm_sub_epi32(whole, reduce_low(low[i]));
            totals[i] = _mm_fmadd_ps(_mm_cvtepi32_ps(whole), _mm_mul_ps(d, scale), totals[i]);
            if (has_minimum(type)) totals[i] = _mm_fnmadd_ps(_mm_cvtepi32_ps(reduce_low(low[i])), _mm_mul_ps(dmin, scale), totals[i]);
        }
    }
    for (int i = 0; i < count; i++) _mm_storeu_ps(out + i * pitch, totals[i]);
}

/* The sums of two blocks of 32 weights for each of four rows: the first block's four, then the second's. */
INLINE __m256i pair_sums(const int type, const Wide codes[2][4], const Slab *x, const int j) {
    Wide sums[2][4];
    for (int part = 0; part < 64 / BYTES; part++)
        for (int r = 0; r < 4; r++) {
            Wide c = codes[part][r], v = loadw(x->codes + 64 * j + part * BYTES);
            if (!has_sign(type)) sums[part][r] = add_fours(zero(), c, v);
            else if (SHIFTED) sums[part][r] = add_fours(zero(), BITS(xor)(c, WIDE(set1_epi8)((char)128)), v);
            else sums[part][r] = add_pairs(zero(), signed_product(c, v), WIDE(set1_epi16)(1));
        }
#if defined(__AVX512F__)
    Wide lanes = reduce_lanes(sums[0][0], sums[0][1], sums[0][2], sums[0][3]);
    Wide both = _mm512_add_epi32(_mm512_shuffle_i64x2(lanes, lanes, 0x88), _mm512_shuffle_i64x2(lanes, lanes, 0xdd));
    return _mm512_castsi512_si256(both);
#else
    return _mm256_inserti128_si256(_mm256_castsi128_si256(reduce_four(sums[0])), reduce_four(sums[1]), 1);
#endif
}

/* d of block `number` for four rows, then of the block after it. */
INLINE __m256 eight_halves(const byte *const now[4], const i64 bytes) {
    __m128i halves = _mm_setzero_si128();
#define HALF(I, R, AT) halves = _mm_insert_epi16(halves, read16(now[R] + AT), I);
    HALF(0, 0, 0) HALF(1, 1, 0) HALF(2, 2, 0) HALF(3, 3, 0) HALF(4, 0, bytes) HALF(5, 1, bytes) HALF(6, 2, bytes) HALF(7, 3, bytes)
#undef HALF
    return _mm256_cvtph_ps(halves);
}

/* As `few_super`, of small blocks. */
INLINE void few_small(const int type, const int count, const byte *const w[4], const Groups *groups, const Slab *x, i64 rows, i64 columns,
                      const char *ahead, float *out, i64 pitch) {
    __m256 totals[4] = {_mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps()};
    const i64 bytes = block_bytes(type), blocks = columns / SMALL;
    const int offset = has_sign(type) && SHIFTED ? 128 : offset_of(type);
    const __m256i halves = _mm256_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1);
    for (i64 block = 0; block < blocks; block += 2) {
        const i64 at = block * bytes;
        const int j = (int)(block / 2 % 4), is_alone = block + 1 == blocks;
        const byte *now[4];
        byte last[4][2 * 34];
        for (int r = 0; r < 4; r++) now[r] = w[r] + at;
        if (is_alone) /* beside a block of zeros */
            for (int r = 0; r < 4; r++) {
                memset(last[r], 0, sizeof last[r]);
                memcpy(last[r], now[r], (size_t)bytes);
                now[r] = last[r];
            }
        prefetch_bytes(ahead, 8 * bytes);
        ahead += 8 * bytes;
        Wide codes[2][4];
        for (int r = 0; r < 4; r++)
            for (int part = 0; part < 64 / BYTES; part++) codes[part][r] = codes_of(type, now[r] + part * bytes, 0);
        const unsigned number = (unsigned)block, next = is_alone ? number : number + 1;
        __m256 d, m = _mm256_setzero_ps();
        if (has_groups(type)) {
            const unsigned here = number / groups->blocks * 4, there = next / groups->blocks * 4;
            d = _mm256_set_m128(_mm_loadu_ps(groups->d + there), _mm_loadu_ps(groups->d + here));
            if (has_minimum(type)) m = _mm256_set_m128(_mm_loadu_ps(groups->m + there), _mm_loadu_ps(groups->m + here));
        } else {
            d = type == MXFP4 ? _mm256_set_m128(FOUR(factor_of, type, now, bytes), FOUR(factor_of, type, now, 0)) : eight_halves(now, bytes);
            if (has_minimum(type)) m = _mm256_set_m128(FOUR(minimum_of, type, now, bytes), FOUR(minimum_of, type, now, 0));
        }
        if (is_alone) d = _mm256_insertf128_ps(d, _mm_setzero_ps(), 1);
        for (int i = 0; i < count; i++) {
            const Slab *slab = x + i;
            __m256i sums = pair_sums(type, codes, slab, j);
            __m256i pair = _mm256_permutevar8x32_epi32(_mm256_castsi128_si256(_mm_loadl_epi64((const __m128i *)(slab->sums + 2 * j))), halves);
            if (offset) sums = _mm256_sub_epi32(sums, _mm256_mullo_epi32(pair, _mm256_set1_epi32(offset)));
            __m256 scale = _mm256_set_m128(_mm_set1_ps(slab->scales[2 * j + 1]), _mm_set1_ps(slab->scales[2 * j]));
            totals[i] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sums), _mm256_mul_ps(d, scale), totals[i]);
            if (!has_minimum(type)) continue;
            __m256 scaled = _mm256_set_m128(_mm_set1_ps(slab->scaled_sums[2 * j + 1]), _mm_set1_ps(slab->scaled_sums[2 * j]));
            totals[i] = _mm256_fmadd_ps(m, scaled, totals[i]);
        }
        if (j == 3) x += rows;
    }
    for (int i = 0; i < count; i++)
        _mm_storeu_ps(out + i * pitch, _mm_add_ps(_mm256_castps256_ps128(totals[i]), _mm256_extractf128_ps(totals[i], 1)));
}

/* ---------------------------------------------------------------- more rows: panels */

typedef struct {
    byte codes[SUPER / 4][LANES][4]; /* four columns of each row */
    int32_t scales[8][LANES];        /* of a super-block, two 16-bit integers in each */
    int32_t minimums[8][LANES];
    float d[8][LANES]; /* of a row's blocks; of a super-block only the first */
    float m[8][LANES]; /* dmin of a super-block, m of blocks */
} __attribute__((aligned(64))) Panel;

/* Eight rows of eight 32-bit words: word n of each of them to `out[n]`. */
INLINE void transpose8(__m256i rows[8], int32_t (*out)[LANES]) {
    __m256i pairs[8], fours[8];
    for (int i = 0; i < 8; i += 2) {
        pairs[i] = _mm256_unpacklo_epi32(rows[i], rows[i + 1]);
        pairs[i + 1] = _mm256_unpackhi_epi32(rows[i], rows[i + 1]);
    }
    for (int i = 0; i < 8; i += 4) {
        fours[i] = _mm256_unpacklo_epi64(pairs[i], pairs[i + 2]), fours[i + 1] = _mm256_unpackhi_epi64(pairs[i], pairs[i + 2]);
        fours[i + 2] = _mm256_unpacklo_epi64(pairs[i + 1], pairs[i + 3]), fours[i + 3] = _mm256_unpackhi_epi64(pairs[i + 1], pairs[i + 3]);
    }
    for (int i = 0; i < 4; i++) {
        _mm256_storeu_si256((__m256i *)out[i], _mm256_permute2x128_si256(fours[i], fours[i + 4], 0x20));
        _mm256_storeu_si256((__m256i *)out[i + 4], _mm256_permute2x128_si256(fours[i], fours[i + 4], 0x31));
    }
}

/* Unpack up to 256 columns of LANES rows, whose blocks are `at` bytes into the rows: `count` times 32 columns. Prefetches as much
 * from `ahead` on. */
INLINE void unpack_panel(const int type, const byte *const w[LANES], const Groups *groups, i64 at, int count, const char *ahead,
                         Panel *panel) {
    const i64 bytes = block_bytes(type);
    const __m256i shift = _mm256_set1_epi8(has_sign(type) && SHIFTED ? (char)128 : 0);
    for (int g = 0; g < LANES; g += 8) {
        __m256i rows[8];
        const byte *blocks[8];
        for (int r = 0; r < 8; r++) blocks[r] = w[g + r] + at;
        if (is_super(type)) {
            _Pragma("GCC unroll 8") for (int j = 0; j < 8; j++) {
                for (int r = 0; r < 8; r++) rows[r] = _mm256_xor_si256(codes32(type, blocks[r], j), shift);
                transpose8(rows, (int32_t (*)[LANES])(panel->codes[8 * j] + g));
                prefetch_bytes(ahead, bytes);
                ahead += bytes;
            }
            for (int r = 0; r < 8; r++) rows[r] = scales_of(type, blocks[r]);
            transpose8(rows, (int32_t (*)[LANES])(panel->scales[0] + g));
            for (int r = 0; r < 8; r++)
                rows[r] = has_sign(type) && SHIFTED ? _mm256_slli_epi16(scales_of(type, blocks[r]), 7) : minimums_of(type, blocks[r]);
            transpose8(rows, (int32_t (*)[LANES])(panel->minimums[0] + g));
            for (int r = 0; r < 8; r++) {
                panel->d[0][g + r] = factor_of(type, blocks[r]);
                panel->m[0][g + r] = minimum_of(type, blocks[r]);
            }
            continue;
        }
        for (int j = 0; j < count; j++) {
            for (int r = 0; r < 8; r++) {
                rows[r] = _mm256_xor_si256(codes32(type, blocks[r] + j * bytes, 0), shift);
                if (has_groups(type)) continue;
                panel->d[j][g + r] = factor_of(type, blocks[r] + j * bytes);
                if (has_minimum(type)) panel->m[j][g + r] = minimum_of(type, blocks[r] + j * bytes);
            }
            if (has_groups(type)) {
                const i64 group = ((unsigned)(at / bytes) + (unsigned)j) / groups->blocks * LANES + g;
                _mm256_storeu_ps(panel->d[j] + g, _mm256_loadu_ps(groups->d + group));
                if (has_minimum(type)) _mm256_storeu_ps(panel->m[j] + g, _mm256_loadu_ps(groups->m + group));
            }
            transpose8(rows, (int32_t (*)[LANES])(panel->codes[8 * j] + g));
            prefetch_bytes(ahead, 8 * bytes);
            ahead += 8 * bytes;
        }
    }
}

INLINE Wide broadcast4(const void *from) { int32_t word; memcpy(&word, from, 4); return WIDE(set1_epi32)(word); }

/* sums[i] += a register of the panel times four columns of row i. Without VNNI `s` are factors of each pair. */
INLINE Wide add_columns(const int with_sign, Wide sums, Wide codes, const int8_t *x, Wide s) {
    Wide v = broadcast4(x);
    if (SHIFTED) return add_fours(sums, codes, v);
    return add_pairs(sums, with_sign ? signed_product(codes, v) : PRODUCT(codes, v), s);
}

/* totals[i] += a panel of super-blocks times row i, for `count` rows. */
INLINE void panel_super(const int part, const int with_sign, const int with_minimum, const int count, const Panel *panel, const Slab *x,
                        float (*totals)[2][LANES]) {
    Wide sums[KEPT], low[KEPT];
    for (int i = 0; i < count; i++) sums[i] = zero();
    for (int j = 0; j < SUPER / part; j++) {
        Wide pair = loadw(panel->scales[j / 2]), s, parts[KEPT];
        if (SHIFTED) s = WIDE(srai_epi32)(j % 2 ? pair : WIDE(slli_epi32)(pair, 16), 16);
        else if (j % 2) s = BITS(or)(WIDE(srli_epi32)(pair, 16), BITS(and)(pair, WIDE(set1_epi32)((int)0xffff0000)));
        else s = BITS(or)(WIDE(slli_epi32)(pair, 16), BITS(and)(pair, WIDE(set1_epi32)(0xffff)));
        for (int i = 0; i < count; i++) parts[i] = SHIFTED ? zero() : sums[i];
        _Pragma("GCC unroll 8") for (int q = 0; q < part / 4; q++) {
            Wide codes = loadw(panel->codes[j * part / 4 + q]);
            _Pragma("GCC unroll 8") for (int i = 0; i < count; i++)
                parts[i] = add_columns(with_sign, parts[i], codes, x[i].codes + j * part + 4 * q, s);
        }
        for (int i = 0; i < count; i++) sums[i] = SHIFTED ? WIDE(add_epi32)(sums[i], WIDE(mullo_epi32)(parts[i], s)) : parts[i];
    }
    for (int i = 0; i < count; i++) low[i] = zero();
    _Pragma("GCC unroll 8") for (int j = 0; j < SUPER / part / 2; j++) {
        Wide pair = loadw(panel->minimums[j]);
        for (int i = 0; i < count; i++) low[i] = add_pairs(low[i], pair, broadcast4(x[i].pairs[part / 32] + 2 * j));
    }
    Sum d = SUM(loadu)(panel->d[0]), m = SUM(loadu)(panel->m[0]);
    for (int i = 0; i < count; i++) {
        Sum scale = SUM(set1)(x[i].scales[0]), total = SUM(loadu)(totals[i][0]);
        if (!with_minimum) sums[i] = WIDE(sub_epi32)(sums[i], low[i]);
        total = SUM(fmadd)(WIDE(cvtepi32_ps)(sums[i]), SUM(mul)(d, scale), total);
        if (with_minimum) total = SUM(fnmadd)(WIDE(cvtepi32_ps)(low[i]), SUM(mul)(m, scale), total);
        SUM(storeu)(totals[i][0], total);
    }
}

/* As `panel_super`, with `blocks` blocks of 32 weights. */
INLINE void panel_small(const int with_sign, const int with_minimum, const int count, const int offset, int blocks, const Panel *panel,
                        const Slab *x, float (*totals)[2][LANES]) {
    for (int j = 0; j < blocks; j++) {
        Wide sums[KEPT], ones = WIDE(set1_epi16)(1);
        for (int i = 0; i < count; i++) sums[i] = WIDE(set1_epi32)(-offset * x[i].sums[j]);
        _Pragma("GCC unroll 8") for (int q = 0; q < 8; q++) {
            Wide codes = loadw(panel->codes[8 * j + q]);
            _Pragma("GCC unroll 8") for (int i = 0; i < count; i++)
                sums[i] = add_columns(with_sign, sums[i], codes, x[i].codes + 32 * j + 4 * q, ones);
        }
        Sum d = SUM(loadu)(panel->d[j]), m = SUM(loadu)(panel->m[j]);
        for (int i = 0; i < count; i++) {
            Sum total = SUM(loadu)(totals[i][j % 2]), scale = SUM(mul)(d, SUM(set1)(x[i].scales[j]));
            total = SUM(fmadd)(WIDE(cvtepi32_ps)(sums[i]), scale, total);
            if (with_minimum) total = SUM(fmadd)(m, SUM(set1)(x[i].scaled_sums[j]), total);
            SUM(storeu)(totals[i][j % 2], total);
        }
    }
}

#define UP_TO_FEW(CASE, ...) CASE(1, __VA_ARGS__) CASE(2, __VA_ARGS__)
#define FEW 2 /* rows of activations that are multiplied in the order of the file */
#if KEPT == 8
#define UP_TO_KEPT(CASE, ...) UP_TO_6(CASE, __VA_ARGS__) CASE(7, __VA_ARGS__) CASE(8, __VA_ARGS__)
#else
#define UP_TO_KEPT(CASE, ...) UP_TO_4(CASE, __VA_ARGS__)
#endif

#define CASE(COUNT, PART, SIGN, MINIMUM) \
    case COUNT: panel_super(PART, SIGN, MINIMUM, COUNT, panel, x, totals); break;
#define COUNTED(NAME, PART, SIGN, MINIMUM)                                                                    \
    static void NAME(i64 count, int offset, int blocks, const Panel *panel, const Slab *x, float (*totals)[2][LANES]) { \
        (void)offset, (void)blocks;                                                                           \
        switch (count) {                                                                                      \
        UP_TO_KEPT(CASE, PART, SIGN, MINIMUM)                                                                 \
        default: __builtin_unreachable();                                                                     \
        }                                                                                                     \
    }
COUNTED(panel_parts_of_16, 16, 0, 0)
COUNTED(panel_parts_of_16_minimum, 16, 0, 1)
COUNTED(panel_parts_of_32_sign, 32, 1, 0)
COUNTED(panel_parts_of_32_minimum, 32, 0, 1)
#undef CASE
#define CASE(COUNT, PART, SIGN, MINIMUM) \
    case COUNT: panel_small(SIGN, MINIMUM, COUNT, offset, blocks, panel, x, totals); break;
COUNTED(panel_blocks, 32, 0, 0)
COUNTED(panel_blocks_sign, 32, 1, 0)
COUNTED(panel_blocks_minimum, 32, 0, 1)
COUNTED(panel_blocks_sign_minimum, 32, 1, 1)
#undef CASE

/* out[i][0..LANES - 1] = LANES rows of the matrix, at `w`, times row i of the activations. */
INLINE void many_of(const int type, const byte *const w[LANES], const Groups *groups, const Slab *x, i64 rows, i64 columns,
                    const char *ahead, float *out, i64 pitch) {
    Panel panel;
    float totals[rows][2][LANES];
    const int offset = has_sign(type) && SHIFTED ? 128 : offset_of(type);
    memset(totals, 0, sizeof totals);
    for (i64 k = 0, at = 0; k < columns; k += SUPER, x += rows) {
        const int blocks = (int)(columns - k < SUPER ? columns - k : SUPER) / SMALL;
        const i64 bytes = block_bytes(type) * (is_super(type) ? 1 : blocks);
        unpack_panel(type, w, groups, at, blocks, ahead, &panel);
        at += bytes, ahead += LANES * bytes;
        for (i64 i = 0, tiles = (rows + KEPT - 1) / KEPT, tile = 0; tile < tiles; tile++) {
            i64 count = rows / tiles + (tile < rows % tiles);
            if (is_super(type)) {
                if (part_of(type) == 16)
                    (has_minimum(type) ? panel_parts_of_16_minimum : panel_parts_of_16)(count, offset, blocks, &panel, x + i, totals + i);
                else (has_minimum(type) ? panel_parts_of_32_minimum : panel_parts_of_32_sign)(count, offset, blocks, &panel, x + i, totals + i);
            } else if (has_minimum(type) && has_sign(type)) panel_blocks_sign_minimum(count, offset, blocks, &panel, x + i, totals + i);
            else if (has_minimum(type)) panel_blocks_minimum(count, offset, blocks, &panel, x + i, totals + i);
            else if (has_sign(type)) panel_blocks_sign(count, offset, blocks, &panel, x + i, totals + i);
            else panel_blocks(count, offset, blocks, &panel, x + i, totals + i);
            i += count;
        }
    }
    for (i64 i = 0; i < rows; i++)
        SUM(storeu)(out + i * pitch, SUM(add)(SUM(loadu)(totals[i][0]), SUM(loadu)(totals[i][1])));
}

/* out[i][0..n - 1] = n rows of the matrix, at `w`, times row i of the activations, where n is `strip_rows(rows)`. `ahead`: the first
 * byte to prefetch of as many rows. `groups`: those of the rows, if they are integers. */
static void multiply_blocks(int type, const byte *const w[LANES], const Groups *groups, const Slab *x, i64 rows, i64 columns,
                            const char *ahead, float *out, i64 pitch) {
#define FEW_CASE(COUNT, TYPE, HOW) \
    case COUNT: HOW(TYPE, COUNT, w, groups, x, rows, columns, ahead, out, pitch); break;
#define CASE(TYPE, HOW)                                                              \
    case TYPE:                                                                       \
        switch (rows) {                                                              \
        UP_TO_FEW(FEW_CASE, TYPE, HOW)                                               \
        default: many_of(TYPE, w, groups, x, rows, columns, ahead, out, pitch); break;       \
        }                                                                            \
        break;
    switch (type) {
    EVERY_SMALL(CASE, few_small) EVERY_INTEGER(CASE, few_small) EVERY_SUPER(CASE, few_super)
    default: __builtin_unreachable();
    }
#undef CASE
#undef FEW_CASE
}
