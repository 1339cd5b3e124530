/* The decoder's forward pass for few rows on a CPU: bfloat16 weights where and as they lie, sums in float32.
 *
 * A step of few rows reads every weight once and does little with it, so memory's speed is the limit. One call runs
 * all layers in one parallel region; the threads meet at barriers of their own, which spin, and then yield.
 *
 * A row's numbers do not depend on the rows beside it: every dot product adds up in the same order in any batch.
 *
 * Compiled twice: for AVX-512 with BF16 dot products, and for AVX2 with FMA.
 */

#include <immintrin.h>
#include <math.h>
#include <omp.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef uint16_t bf16;
typedef int64_t i64;

#define MAX_PIECES 3

/* One matrix, [rows, columns] by rows, in up to three pieces whose rows follow each other. */
typedef struct {
    const bf16 *piece[MAX_PIECES];
    i64 rows[MAX_PIECES];
    const bf16 *bias; /* [all rows] or NULL */
    i64 columns;
} Matrix;

typedef struct {
    const bf16 *attention_norm, *mlp_norm; /* [hidden] */
    const bf16 *query_key_norm;            /* [heads + kv_heads, head_dim] or NULL */
    Matrix qkv, output, up, down;          /* up: gate's rows first */
    bf16 *keys, *values;                   /* the layer's cache by slot, [slots, kv_heads, head_dim] */
    i64 window;                            /* 0: all of the context */
} Layer;

typedef struct {
    i64 num_layers, hidden, heads, kv_heads, head_dim, intermediate, rotary_dim, block_size;
    float eps;
    const bf16 *final_norm; /* [hidden] */
    const Layer *layers;
} Model;

/* A step of `rows` tokens. What a row sees: the slots of its sequence up to its own position. */
typedef struct {
    i64 rows, max_blocks;
    const i64 *positions, *slots, *sequences; /* [rows]; sequences: rows of `block_tables` */
    const i64 *block_tables;                  /* [sequences, max_blocks] */
    const float *cosines, *sines;             /* [rows, rotary_dim]; sines negative in the first half */
    bf16 *hidden;                             /* [rows, hidden], in: embeddings, out: after the final norm */
} Step;

/* ---------------------------------------------------------------- numbers */

static inline float from_bf16(bf16 value) {
    union { uint32_t bits; float value; } u = {(uint32_t)value << 16};
    return u.value;
}

static inline bf16 to_bf16(float value) {
    union { float value; uint32_t bits; } u = {value};
    uint32_t rounded = (u.bits + 0x7fff + ((u.bits >> 16) & 1)) >> 16;
    return (bf16)(value != value ? 0x7fc0 : rounded);
}

/* e^x to about 1e-7, held between e^-87 and e^88; plain arithmetic, so that loops over it become vectors. */
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

/* ---------------------------------------------------------------- dot products */

#if defined(__AVX512BF16__)
#define STEP_WIDTH 32 /* elements in a register of weights */
#define ROWS_X 6      /* a tile: 4 rows of the matrix by up to this many of the input */
typedef __m512 Sum;
typedef __m512i Wide;
#define SUM(name) _mm512_##name##_ps
static inline Wide load(const bf16 *from) { return _mm512_loadu_si512(from); }
static inline Sum evens(Wide w) { return _mm512_castsi512_ps(_mm512_slli_epi32(w, 16)); }
static inline Sum odds(Wide w) { return _mm512_castsi512_ps(_mm512_and_si512(w, _mm512_set1_epi32((int)0xffff0000))); }
static inline Sum add_dot(Sum sum, Wide a, Wide b) { return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b); }
static inline __m256 halves(Sum sum) {
    return _mm256_add_ps(_mm512_castps512_ps256(sum), _mm512_extractf32x8_ps(sum, 1));
}
#else
#define STEP_WIDTH 16
#define ROWS_X 2
typedef __m256 Sum;
typedef __m256i Wide;
#define SUM(name) _mm256_##name##_ps
static inline Wide load(const bf16 *from) { return _mm256_loadu_si256((const __m256i *)from); }
/* As float32: the odd elements are the upper halves of 32-bit words, the even ones are shifted there. */
static inline Sum evens(Wide w) { return _mm256_castsi256_ps(_mm256_slli_epi32(w, 16)); }
static inline Sum odds(Wide w) { return _mm256_castsi256_ps(_mm256_and_si256(w, _mm256_set1_epi32((int)0xffff0000))); }
static inline Sum add_dot(Sum sum, Wide a, Wide b) {
    return SUM(fmadd)(odds(a), odds(b), SUM(fmadd)(evens(a), evens(b), sum));
}
static inline __m256 halves(Sum sum) { return sum; }
#endif

/* The sums of four registers. */
static inline __m128 reduce4(Sum a, Sum b, Sum c, Sum d) {
    __m256 ab = _mm256_hadd_ps(halves(a), halves(b)), cd = _mm256_hadd_ps(halves(c), halves(d));
    __m256 all = _mm256_hadd_ps(ab, cd);
    return _mm_add_ps(_mm256_castps256_ps128(all), _mm256_extractf128_ps(all, 1));
}

/* Four rows are read side by side, but memory is asked for in the order in which it lies, so many bytes ahead. */
#define AHEAD 12288

/* out[x][0..3] = four rows of the matrix times `count` rows of x. */
#define TILE(COUNT)                                                                                                    \
    static inline void tile##COUNT(const bf16 *const w[4], const bf16 *x, i64 columns, float (*out)[4]) {              \
        Sum sums[COUNT][4];                                                                                            \
        for (int i = 0; i < COUNT; i++)                                                                                \
            for (int j = 0; j < 4; j++) sums[i][j] = SUM(setzero)();                                                         \
        for (i64 k = 0; k < columns; k += STEP_WIDTH) {                                                                \
            Wide w0 = load(w[0] + k), w1 = load(w[1] + k), w2 = load(w[2] + k), w3 = load(w[3] + k);                   \
            for (int j = 0; j < 4; j++) _mm_prefetch((const char *)(w[0] + 4 * k + 32 * j) + AHEAD, _MM_HINT_T1);      \
            _Pragma("GCC unroll 8") for (int i = 0; i < COUNT; i++) {                                                  \
                Wide v = load(x + i * columns + k);                                                                    \
                sums[i][0] = add_dot(sums[i][0], w0, v);                                                               \
                sums[i][1] = add_dot(sums[i][1], w1, v);                                                               \
                sums[i][2] = add_dot(sums[i][2], w2, v);                                                               \
                sums[i][3] = add_dot(sums[i][3], w3, v);                                                               \
            }                                                                                                          \
        }                                                                                                              \
        for (int i = 0; i < COUNT; i++)                                                                                \
            _mm_storeu_ps(out[i], reduce4(sums[i][0], sums[i][1], sums[i][2], sums[i][3]));                            \
    }
TILE(1)
TILE(2)
#if ROWS_X == 6
TILE(3)
TILE(4)
TILE(5)
TILE(6)
#endif

/* Rows [first, first + 4) of the matrix, clamped to its last row, times all rows of x: out[row][0..3]. */
static void four_rows(const Matrix *matrix, i64 first, i64 last, const bf16 *x, i64 rows, float (*out)[4]) {
    const bf16 *w[4];
    for (int j = 0; j < 4; j++) {
        i64 row = first + j < last ? first + j : last;
        int piece = 0;
        while (row >= matrix->rows[piece]) row -= matrix->rows[piece++];
        w[j] = matrix->piece[piece] + row * matrix->columns;
    }
    i64 columns = matrix->columns, tiles = (rows + ROWS_X - 1) / ROWS_X;
    for (i64 tile = 0, i = 0; tile < tiles; tile++) { /* as even as they can be */
        i64 count = rows / tiles + (tile < rows % tiles);
        const bf16 *from = x + i * columns;
        switch (count) {
        case 1: tile1(w, from, columns, out + i); break;
        case 2: tile2(w, from, columns, out + i); break;
#if ROWS_X == 6
        case 3: tile3(w, from, columns, out + i); break;
        case 4: tile4(w, from, columns, out + i); break;
        case 5: tile5(w, from, columns, out + i); break;
        case 6: tile6(w, from, columns, out + i); break;
#endif
        }
        i += count;
    }
}

static i64 num_rows(const Matrix *matrix) {
    i64 rows = 0;
    for (int i = 0; i < MAX_PIECES; i++) rows += matrix->rows[i];
    return rows;
}

/* ---------------------------------------------------------------- threads */

#define MAX_ROWS 128
#define SPINS 4000

typedef struct {
    _Atomic int waiting, round;
    _Atomic i64 next; /* of the work that is handed out now */
    int threads;
} Team;

static void meet(Team *team) {
    int round = atomic_load_explicit(&team->round, memory_order_relaxed);
    if (atomic_fetch_add_explicit(&team->waiting, 1, memory_order_acq_rel) == team->threads - 1) {
        atomic_store_explicit(&team->waiting, 0, memory_order_relaxed);
        atomic_store_explicit(&team->next, 0, memory_order_relaxed);
        atomic_store_explicit(&team->round, round + 1, memory_order_release);
        return;
    }
    for (int spins = 0; atomic_load_explicit(&team->round, memory_order_acquire) == round; spins++) {
        if (spins < SPINS) _mm_pause();
        else sched_yield();
    }
}

/* The start of the next `count` of `total`; total or more: there is none left. Between two meetings. */
static inline i64 take(Team *team, i64 count) {
    return atomic_fetch_add_explicit(&team->next, count, memory_order_relaxed);
}

/* Rows of a matrix that one thread takes at a time: some tens of KiB of weights. */
static inline i64 share(const Matrix *matrix, i64 rows, int threads) {
    i64 chunk = (128 << 10) / (matrix->columns * 2) / 4 * 4, fair = rows / threads / 4 * 4;
    if (chunk > fair) chunk = fair;
    return chunk < 4 ? 4 : chunk;
}

/* ---------------------------------------------------------------- parts of a layer */

/* 1 / the root of the mean of squares; `size` is a multiple of 16. */
static float inverse_rms(const float *x, i64 size, float eps) {
    float parts[16] = {0}, sum = 0;
    for (i64 i = 0; i < size; i += 16)
        for (int j = 0; j < 16; j++) parts[j] += x[i + j] * x[i + j];
    for (int j = 0; j < 16; j++) sum += parts[j];
    return 1.0f / sqrtf(sum / (float)size + eps);
}

static void normalise(const float *x, const bf16 *weight, i64 size, float eps, bf16 *out) {
    float scale = inverse_rms(x, size, eps);
    for (i64 i = 0; i < size; i++) out[i] = to_bf16(x[i] * scale * from_bf16(weight[i]));
}

static void add_bias(const bf16 *bias, i64 width, i64 rows, float (*sums)[4]) {
    for (i64 i = 0; i < rows; i++)
        for (i64 j = 0; j < width; j++) sums[i][j] += from_bf16(bias[j]);
}

/* out [rows, all rows of the matrix] = x times the matrix, plus bias; or added to out. */
static void multiply(Team *team, const Matrix *matrix, const bf16 *x, i64 rows, float *out, int adds) {
    i64 total = num_rows(matrix), chunk = share(matrix, total, team->threads), first;
    float sums[MAX_ROWS][4];
    while ((first = take(team, chunk)) < total) {
        i64 end = first + chunk < total ? first + chunk : total;
        for (i64 n = first; n < end; n += 4) {
            four_rows(matrix, n, total - 1, x, rows, sums);
            i64 width = end - n < 4 ? end - n : 4;
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

/* out [rows, intermediate] = silu(gate) * up. */
static void gated(Team *team, const Matrix *matrix, const bf16 *x, i64 rows, bf16 *out) {
    i64 half = num_rows(matrix) / 2, chunk = share(matrix, half, team->threads), first;
    float gate[MAX_ROWS][4], up[MAX_ROWS][4];
    bf16 made[MAX_ROWS * 4];
    while ((first = take(team, chunk)) < half) {
        i64 end = first + chunk < half ? first + chunk : half;
        for (i64 n = first; n < end; n += 4) {
            four_rows(matrix, n, half - 1, x, rows, gate);
            four_rows(matrix, half + n, 2 * half - 1, x, rows, up);
            i64 width = end - n < 4 ? end - n : 4;
            if (matrix->bias) {
                add_bias(matrix->bias + n, width, rows, gate);
                add_bias(matrix->bias + half + n, width, rows, up);
            }
            float *g = gate[0], *u = up[0]; /* in one piece: the compiler makes vectors of it */
            for (i64 i = 0; i < rows * 4; i++) made[i] = to_bf16(silu(g[i]) * u[i]);
            for (i64 i = 0; i < rows; i++) memcpy(out + i * half + n, made + i * 4, (size_t)width * sizeof(bf16));
        }
    }
}

/* One head: norm, rotation, rounding. `head`: [head_dim] float32. */
static void turn(const Model *model, const Step *step, i64 row, const bf16 *norm, float *head, bf16 *out) {
    i64 size = model->head_dim, rotary = model->rotary_dim, half = rotary / 2;
    if (norm) {
        float scale = inverse_rms(head, size, model->eps);
        for (i64 i = 0; i < size; i++) head[i] *= scale * from_bf16(norm[i]);
    }
    const float *cosines = step->cosines + row * rotary, *sines = step->sines + row * rotary;
    for (i64 i = 0; i < half; i++) {
        out[i] = to_bf16(head[i] * cosines[i] + head[i + half] * sines[i]);
        out[i + half] = to_bf16(head[i + half] * cosines[i + half] + head[i] * sines[i + half]);
    }
    for (i64 i = rotary; i < size; i++) out[i] = to_bf16(head[i]);
}

/* One head of a row: a query into `queries` [heads, head_dim], a key with its value into the cache. */
static void place_head(const Model *model, const Layer *layer, const Step *step, i64 row, i64 head, float *qkv, bf16 *queries) {
    i64 size = model->head_dim, heads = model->heads, kv_heads = model->kv_heads;
    const bf16 *norm = layer->query_key_norm ? layer->query_key_norm + head * size : NULL;
    if (head < heads) {
        turn(model, step, row, norm, qkv + head * size, queries + head * size);
        return;
    }
    if (step->slots[row] < 0) return;
    i64 at = (step->slots[row] * kv_heads + head - heads) * size;
    turn(model, step, row, norm, qkv + head * size, layer->keys + at);
    const float *value = qkv + (head + kv_heads) * size;
    for (i64 i = 0; i < size; i++) layer->values[at + i] = to_bf16(value[i]);
}

#define KEYS 32      /* keys whose scores are kept at a time */
#define MAX_HEAD 256 /* head_dim */

static inline void ask(const bf16 *at, i64 size) {
    for (i64 d = 0; d < size; d += 32) _mm_prefetch((const char *)(at + d), _MM_HINT_T1);
}

/* scores[0..3] = the query times four keys. */
static inline void four_keys(const bf16 *const key[4], const bf16 *query, i64 size, float *scores) {
    Sum sums[4] = {SUM(setzero)(), SUM(setzero)(), SUM(setzero)(), SUM(setzero)()};
    for (i64 k = 0; k < size; k += STEP_WIDTH) {
        Wide q = load(query + k);
        for (int j = 0; j < 4; j++) sums[j] = add_dot(sums[j], load(key[j] + k), q);
    }
    _mm_storeu_ps(scores, reduce4(sums[0], sums[1], sums[2], sums[3]));
}

/* mixed [size] = mixed * kept + the sum of shares times values. In `mixed` the even elements of each STEP_WIDTH come
 * first, then the odd ones: the halves of 32-bit words need no shuffling. */
static inline void mix(const bf16 *values, const i64 *places, const float *shares, i64 count, float kept, i64 size, float *mixed) {
    for (i64 d = 0; d < size; d += STEP_WIDTH) {
        float *even = mixed + d, *odd = even + STEP_WIDTH / 2;
        Sum a = SUM(mul)(SUM(loadu)(even), SUM(set1)(kept)), b = SUM(mul)(SUM(loadu)(odd), SUM(set1)(kept));
        for (i64 i = 0; i < count; i++) {
            Wide value = load(values + places[i] + d);
            Sum share = SUM(set1)(shares[i]);
            a = SUM(fmadd)(share, evens(value), a);
            b = SUM(fmadd)(share, odds(value), b);
        }
        SUM(storeu)(even, a);
        SUM(storeu)(odd, b);
    }
}

/* The query heads of one row that belong to KV heads [kv, kv + kv_count): a running softmax, KEYS at a time. What several
 * heads read of a page lies side by side. `queries` and `out`: [heads, head_dim] of the row. */
static void attend(const Model *model, const Layer *layer, const Step *step, i64 row, i64 kv, i64 kv_count, const bf16 *queries, bf16 *out) {
    i64 size = model->head_dim, block_size = model->block_size, stride = model->kv_heads * size;
    i64 group = model->heads / model->kv_heads, head = kv * group, count = kv_count * group, end = step->positions[row] + 1;
    i64 start = layer->window && end > layer->window ? end - layer->window : 0;
    const i64 *table = step->block_tables + step->sequences[row] * step->max_blocks;
    float scale = 1.0f / sqrtf((float)size);
    float mixed[count][size], best[count], total[count];
    memset(mixed, 0, sizeof mixed);
    for (i64 g = 0; g < count; g++) best[g] = -INFINITY, total[g] = 0;
    for (i64 first = start; first < end; first += KEYS) {
        i64 keys = end - first < KEYS ? end - first : KEYS, slots[KEYS], places[KEYS];
        for (i64 i = 0; i < KEYS; i++) {
            i64 position = first + (i < keys ? i : keys - 1);
            slots[i] = (table[position / block_size] * block_size + position % block_size) * stride;
        }
        for (i64 i = 0; i < keys; i++) ask(layer->keys + slots[i] + kv * size, kv_count * size);
        for (i64 i = 0; i < keys; i++) ask(layer->values + slots[i] + kv * size, kv_count * size);
        for (i64 g = 0; g < count; g++) {
            float scores[KEYS], highest = best[g], parts[16] = {0}, sum = 0;
            for (i64 i = 0; i < KEYS; i++) places[i] = slots[i] + (head + g) / group * size;
            for (i64 i = 0; i < keys; i += 4) {
                const bf16 *key[4];
                for (int j = 0; j < 4; j++) key[j] = layer->keys + places[i + j];
                four_keys(key, queries + (head + g) * size, size, scores + i);
            }
            for (i64 i = 0; i < keys; i++) scores[i] *= scale;
            for (i64 i = 0; i < keys; i++) highest = scores[i] > highest ? scores[i] : highest;
            for (i64 i = keys; i < KEYS; i++) scores[i] = -INFINITY;
            for (i64 i = 0; i < KEYS; i++) scores[i] = i < keys ? exponential(scores[i] - highest) : 0.0f;
            for (i64 i = 0; i < KEYS; i += 16)
                for (int j = 0; j < 16; j++) parts[j] += scores[i + j];
            for (int j = 0; j < 16; j++) sum += parts[j];
            float kept = best[g] == -INFINITY ? 0.0f : exponential(best[g] - highest);
            total[g] = total[g] * kept + sum;
            best[g] = highest;
            mix(layer->values, places, scores, keys, kept, size, mixed[g]);
        }
    }
    for (i64 g = 0; g < count; g++)
        for (i64 d = 0; d < size; d += STEP_WIDTH)
            for (int j = 0; j < STEP_WIDTH / 2; j++) {
                bf16 *to = out + (head + g) * size + d + 2 * j;
                to[0] = to_bf16(mixed[g][d + j] / total[g]);
                to[1] = to_bf16(mixed[g][d + STEP_WIDTH / 2 + j] / total[g]);
            }
}

#define LONG 2048 /* keys; a row that sees more is shared by several threads */

/* The most that one of the rows sees; `chosen` NULL: of the first `count` rows. */
static i64 longest(const Step *step, const i64 *chosen, i64 count) {
    i64 most = 0;
    for (i64 i = 0; i < count; i++) {
        i64 position = step->positions[chosen ? chosen[i] : i];
        most = position + 1 > most ? position + 1 : most;
    }
    return most;
}

/* ---------------------------------------------------------------- what is called */

#ifndef EMBER_BUILD
#define EMBER_BUILD "unknown"
#endif
/* Of which source and options this is: who has other structures in mind must not call it. */
const char ember_build[] = EMBER_BUILD;
const i64 ember_sizes[] = {sizeof(Matrix), sizeof(Layer), sizeof(Model), sizeof(Step)};

/* Bytes that `ember_forward` needs to work in. */
i64 ember_workspace(const Model *model, i64 rows) {
    i64 heads = model->heads * model->head_dim, kv = model->kv_heads * model->head_dim;
    i64 floats = model->hidden + heads + 2 * kv, halves = model->hidden + 2 * heads + model->intermediate;
    return rows * (floats * 4 + halves * 2) + 8 * 64;
}

static void *reserve(char **at, i64 bytes) {
    char *start = *at;
    *at = start + (bytes + 63) / 64 * 64;
    return start;
}

/* All layers and the final norm. `workspace`: 64-byte aligned, of `ember_workspace` bytes. At most MAX_ROWS rows. */
void ember_forward(const Model *model, const Step *step, char *workspace, int threads) {
    i64 rows = step->rows, hidden = model->hidden, size = model->head_dim, heads = model->heads;
    i64 width = (heads + 2 * model->kv_heads) * size, placed = heads + model->kv_heads;
    i64 parts = rows < 4 * threads || longest(step, NULL, rows) > LONG ? model->kv_heads : 1; /* of a row's attention */
    float *residual = reserve(&workspace, rows * hidden * 4), *qkv = reserve(&workspace, rows * width * 4);
    bf16 *normed = reserve(&workspace, rows * hidden * 2), *queries = reserve(&workspace, rows * heads * size * 2);
    bf16 *mixed = reserve(&workspace, rows * heads * size * 2);
    bf16 *inner = reserve(&workspace, rows * model->intermediate * 2);
    Team team = {0, 0, 0, threads};
#pragma omp parallel num_threads(threads)
    {
        if (omp_get_num_threads() != threads) {
#pragma omp single
            team.threads = omp_get_num_threads();
        }
        i64 row, task;
        while ((row = take(&team, 1)) < rows)
            for (i64 i = 0; i < hidden; i++) residual[row * hidden + i] = from_bf16(step->hidden[row * hidden + i]);
        meet(&team);
        for (i64 l = 0; l < model->num_layers; l++) {
            const Layer *layer = model->layers + l;
            while ((row = take(&team, 1)) < rows)
                normalise(residual + row * hidden, layer->attention_norm, hidden, model->eps, normed + row * hidden);
            meet(&team);
            multiply(&team, &layer->qkv, normed, rows, qkv, 0);
            meet(&team);
            while ((task = take(&team, 4)) < rows * placed)
                for (i64 end = task + 4 < rows * placed ? task + 4 : rows * placed; task < end; task++) {
                    row = task / placed;
                    place_head(model, layer, step, row, task % placed, qkv + row * width, queries + row * heads * size);
                }
            meet(&team);
            while ((task = take(&team, 1)) < rows * parts) {
                i64 at = task / parts * heads * size, kv_count = model->kv_heads / parts;
                attend(model, layer, step, task / parts, task % parts * kv_count, kv_count, queries + at, mixed + at);
            }
            meet(&team);
            multiply(&team, &layer->output, mixed, rows, residual, 1);
            meet(&team);
            while ((row = take(&team, 1)) < rows)
                normalise(residual + row * hidden, layer->mlp_norm, hidden, model->eps, normed + row * hidden);
            meet(&team);
            gated(&team, &layer->up, normed, rows, inner);
            meet(&team);
            multiply(&team, &layer->down, inner, rows, residual, 1);
            meet(&team);
        }
        while ((row = take(&team, 1)) < rows)
            normalise(residual + row * hidden, model->final_norm, hidden, model->eps, step->hidden + row * hidden);
    }
}

/* out [rows, all rows of the matrix] float32 = x [rows, columns] times the matrix. At most MAX_ROWS rows. */
void ember_linear(const Matrix *matrix, const bf16 *x, i64 rows, float *out, int threads) {
    Team team = {0, 0, 0, threads};
#pragma omp parallel num_threads(threads)
    multiply(&team, matrix, x, rows, out, 0);
}

/* ---------------------------------------------------------------- parts for many rows, between torch's products */

/* hidden += delta (where there is one), out = its norm; all [rows, size]. */
void ember_add_norm(bf16 *hidden, const bf16 *delta, const bf16 *weight, bf16 *out, i64 rows, i64 size, float eps, int threads) {
#pragma omp parallel num_threads(threads)
    {
        float x[size];
#pragma omp for schedule(static)
        for (i64 row = 0; row < rows; row++) {
            bf16 *own = hidden + row * size;
            for (i64 i = 0; i < size; i++) x[i] = from_bf16(own[i]);
            if (delta) {
                const bf16 *added = delta + row * size;
                for (i64 i = 0; i < size; i++) {
                    own[i] = to_bf16(x[i] + from_bf16(added[i]));
                    x[i] = from_bf16(own[i]);
                }
            }
            normalise(x, weight, size, eps, out + row * size);
        }
    }
}

/* Norm and rotation of the heads of qkv [rows, heads + 2 kv_heads, head_dim]: queries [rows, heads, head_dim], keys
 * [rows, kv_heads, head_dim], and keys and values in the cache. Of the step: rows, slots, cosines, sines. */
void ember_place(const Model *model, const Layer *layer, const Step *step, const bf16 *qkv, bf16 *queries, bf16 *keys, int threads) {
    i64 size = model->head_dim, heads = model->heads, kv_heads = model->kv_heads;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (i64 row = 0; row < step->rows; row++) {
        const bf16 *from = qkv + row * (heads + 2 * kv_heads) * size;
        i64 slot = step->slots[row] * kv_heads * size;
        float x[MAX_HEAD];
        for (i64 h = 0; h < heads + kv_heads; h++) {
            const bf16 *norm = layer->query_key_norm ? layer->query_key_norm + h * size : NULL;
            for (i64 i = 0; i < size; i++) x[i] = from_bf16(from[h * size + i]);
            turn(model, step, row, norm, x, h < heads ? queries + (row * heads + h) * size : keys + (row * kv_heads + h - heads) * size);
        }
        if (slot < 0) continue;
        memcpy(layer->keys + slot, keys + row * kv_heads * size, kv_heads * size * sizeof(bf16));
        memcpy(layer->values + slot, from + (heads + kv_heads) * size, kv_heads * size * sizeof(bf16));
    }
}

/* Attention of `count` of the step's rows, those that `chosen` lists; queries and out are [rows, heads, head_dim] of all.
 * What the rows see must be in the cache. */
void ember_attend(const Model *model, const Layer *layer, const Step *step, const i64 *chosen, i64 count, const bf16 *queries, bf16 *out, int threads) {
    i64 width = model->heads * model->head_dim, parts = longest(step, chosen, count) > LONG ? model->kv_heads : 1;
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (i64 i = 0; i < count * parts; i++) {
        i64 row = chosen[i / parts], kv_count = model->kv_heads / parts;
        attend(model, layer, step, row, i % parts * kv_count, kv_count, queries + row * width, out + row * width);
    }
}

/* out [rows, half] = silu(x[:, :half]) * x[:, half:]. */
void ember_gate(const bf16 *x, bf16 *out, i64 rows, i64 half, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (i64 row = 0; row < rows; row++) {
        const bf16 *gate = x + row * 2 * half, *up = gate + half;
        for (i64 i = 0; i < half; i++) out[row * half + i] = to_bf16(silu(from_bf16(gate[i])) * from_bf16(up[i]));
    }
}
