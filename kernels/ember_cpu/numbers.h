/* Number types and vector registers: bfloat16 operands, float32 sums. */
#pragma once

#include <immintrin.h>
#include <stdint.h>

typedef uint16_t bf16;
typedef int64_t i64;

#define LINE 64 /* bytes in a cache line */

static inline float from_bf16(bf16 value) {
    union { uint32_t bits; float value; } u = {(uint32_t)value << 16};
    return u.value;
}

static inline bf16 to_bf16(float value) {
    union { float value; uint32_t bits; } u = {value};
    uint32_t rounded = (u.bits + 0x7fff + ((u.bits >> 16) & 1)) >> 16;
    return (bf16)(value != value ? 0x7fc0 : rounded);
}

/* e^x with a relative error of about 1e-7; x is clamped to [-87, 88]. It is plain arithmetic, so that loops are vectorised. */
static inline float exponential(float x) {
    x = x < -87.0f ? -87.0f : x;
    x = x > 88.0f ? 88.0f : x;
    float shifted = x * 1.44269504f + 12582912.0f; /* rounds to an integer in the low bits */
    float power = shifted - 12582912.0f;
    float r = x - power * 0.693359375f + power * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    union { int32_t bits; float value; } scale = {((int32_t)power + 127) << 23};
    return p * scale.value;
}

static inline float silu(float x) { return x / (1.0f + exponential(-x)); }

/* GELU by way of tanh: x (1 + tanh(u)) / 2 = x / (1 + e^(-2 u)). */
static inline float gelu_tanh(float x) { return x / (1.0f + exponential(-1.5957691216f * (x + 0.044715f * x * x * x))); }

enum { SILU, GELU_TANH }; /* activations */

/* tanh with an absolute error of about 1e-7. */
static inline float tangent(float x) { return 1.0f - 2.0f / (exponential(2.0f * x) + 1.0f); }

#if defined(__AVX512F__)
#define STEP_WIDTH 32 /* elements in a register of weights */
typedef __m512 Sum;
typedef __m512i Wide;
#define SUM(name) _mm512_##name##_ps
static inline Wide load(const bf16 *from) { return _mm512_loadu_si512(from); }
static inline Sum evens(Wide w) { return _mm512_castsi512_ps(_mm512_slli_epi32(w, 16)); }
static inline Sum odds(Wide w) { return _mm512_castsi512_ps(_mm512_and_si512(w, _mm512_set1_epi32((int)0xffff0000))); }
static inline __m256 halves(Sum sum) {
    return _mm256_add_ps(_mm512_castps512_ps256(sum), _mm512_extractf32x8_ps(sum, 1));
}
#else
#define STEP_WIDTH 16
typedef __m256 Sum;
typedef __m256i Wide;
#define SUM(name) _mm256_##name##_ps
static inline Wide load(const bf16 *from) { return _mm256_loadu_si256((const __m256i *)from); }
/* The even and odd elements as float32. The odd ones are the upper halves of 32-bit words; the even ones are shifted there. */
static inline Sum evens(Wide w) { return _mm256_castsi256_ps(_mm256_slli_epi32(w, 16)); }
static inline Sum odds(Wide w) { return _mm256_castsi256_ps(_mm256_and_si256(w, _mm256_set1_epi32((int)0xffff0000))); }
static inline __m256 halves(Sum sum) { return sum; }
#endif

#if defined(__AVX512BF16__)
static inline Sum add_dot(Sum sum, Wide a, Wide b) { return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b); }
#else
static inline Sum add_dot(Sum sum, Wide a, Wide b) {
    return SUM(fmadd)(odds(a), odds(b), SUM(fmadd)(evens(a), evens(b), sum));
}
#endif

/* The sums of four registers. */
static inline __m128 reduce4(Sum a, Sum b, Sum c, Sum d) {
    __m256 ab = _mm256_hadd_ps(halves(a), halves(b)), cd = _mm256_hadd_ps(halves(c), halves(d));
    __m256 all = _mm256_hadd_ps(ab, cd);
    return _mm_add_ps(_mm256_castps256_ps128(all), _mm256_extractf128_ps(all, 1));
}

/* CASE for 1 to N. */
#define UP_TO_1(CASE, ...) CASE(1, __VA_ARGS__)
#define UP_TO_2(CASE, ...) UP_TO_1(CASE, __VA_ARGS__) CASE(2, __VA_ARGS__)
#define UP_TO_3(CASE, ...) UP_TO_2(CASE, __VA_ARGS__) CASE(3, __VA_ARGS__)
#define UP_TO_4(CASE, ...) UP_TO_3(CASE, __VA_ARGS__) CASE(4, __VA_ARGS__)
#define UP_TO_5(CASE, ...) UP_TO_4(CASE, __VA_ARGS__) CASE(5, __VA_ARGS__)
#define UP_TO_6(CASE, ...) UP_TO_5(CASE, __VA_ARGS__) CASE(6, __VA_ARGS__)
