/* The structures that the caller fills (a model, a step), and the operators on one row. */
#pragma once

#include <math.h>

#include "experts.h"

#define ROPES 2 /* kinds of rotary positions in a model */

typedef struct {
    const float *attention_norm, *mlp_norm;               /* [hidden] */
    const float *attention_output_norm, *mlp_output_norm; /* [hidden], of outputs before they are added; NULL: none */
    const float *query_key_norm;                          /* [heads + kv_heads, head_dim] or NULL */
    Matrix qkv, output, up, down;                         /* up: gate's rows first */
    const Experts *experts;                               /* in place of up and down; NULL: there are none */
    bf16 *keys, *values;                   /* the layer's cache by slot, [slots, kv_heads, head_dim] */
    i64 window;                            /* tokens of the sliding window; 0: the whole context */
    i64 group;                             /* the cache group: which slots and block tables are the layer's */
    i64 rope;                              /* which of the step's angles its heads have; -1: none */
    float scale;                           /* of the products of queries and keys */
} Layer;

typedef struct {
    i64 num_layers, hidden, heads, kv_heads, head_dim, intermediate, block_size;
    i64 experts, experts_per_token, expert_size; /* of the layers with experts; expert_size: intermediate size of each */
    i64 rotary_dims[ROPES];  /* dimensions of a head that are rotated */
    i64 interleaved;         /* whether dimensions 2i and 2i + 1 are a pair; otherwise i and i + half */
    i64 rotates_before_norm; /* whether heads are rotated, then normalised */
    i64 window_is_chunk;     /* a window begins at a multiple of its length, not that many tokens before */
    i64 activation;          /* of the gate: SILU or GELU_TANH */
    float eps;               /* of norms */
    float residual_scale;    /* of the outputs of attention and MLP */
    float soft_cap;          /* scaled products become cap * tanh(products / cap); 0: none */
    const float *final_norm; /* [hidden] */
    const Layer *layers;
} Model;

/* A step of `rows` tokens. A row attends to the slots of its sequence up to its own position. */
typedef struct {
    i64 rows, num_sequences, max_blocks;
    const i64 *positions, *sequences; /* [rows]; sequences: rows of a group's block tables */
    const i64 *slots;                 /* [groups, rows] */
    const i64 *block_tables;          /* [groups, num_sequences, max_blocks]; what no row sees is not read */
    const float *cosines[ROPES], *sines[ROPES]; /* [rows, rotary_dim]; sines negative for the first of each pair */
    const float *query_scales[ROPES];           /* [rows], or NULL */
    bf16 *hidden;                     /* [rows, hidden], in: embeddings, out: after the final norm */
} Step;

/* Where the layer keeps the row's key and value. */
static inline i64 slot_of(const Layer *layer, const Step *step, i64 row) {
    return step->slots[layer->group * step->rows + row];
}

/* The factor of an RMS norm: 1 / sqrt(mean of squares + eps). `size` is a multiple of 16. */
static float inverse_rms(const float *x, i64 size, float eps) {
    float parts[16] = {0}, sum = 0;
    for (i64 i = 0; i < size; i += 16)
        for (int j = 0; j < 16; j++) parts[j] += x[i + j] * x[i + j];
    for (int j = 0; j < 16; j++) sum += parts[j];
    return 1.0f / sqrtf(sum / (float)size + eps);
}

/* out [size] bfloat16 = RMS norm of x [size] float32, times `weight`. */
static void rms_norm(const float *x, const float *weight, i64 size, float eps, bf16 *out) {
    float scale = inverse_rms(x, size, eps);
    for (i64 i = 0; i < size; i++) out[i] = to_bf16(x[i] * scale * weight[i]);
}

/* sum [size] += `factor` times the RMS norm of x [size], times `weight`. */
static void add_normalised(const float *x, const float *weight, i64 size, float eps, float factor, float *sum) {
    float scale = inverse_rms(x, size, eps) * factor;
    for (i64 i = 0; i < size; i++) sum[i] += x[i] * scale * weight[i];
}

static void normalise_head(const Model *model, const float *norm, float *head) {
    float scale = inverse_rms(head, model->head_dim, model->eps);
    for (i64 i = 0; i < model->head_dim; i++) head[i] *= scale * norm[i];
}

/* Rotary embedding of one head by the angles number `rope` of a row. */
static void rotate_head(const Model *model, const Step *step, i64 rope, i64 row, float *head) {
    i64 rotary = model->rotary_dims[rope], half = rotary / 2;
    const float *cosines = step->cosines[rope] + row * rotary, *sines = step->sines[rope] + row * rotary;
    if (model->interleaved) {
        for (i64 i = 0; i < rotary; i += 2) {
            float first = head[i], second = head[i + 1];
            head[i] = first * cosines[i] + second * sines[i];
            head[i + 1] = second * cosines[i + 1] + first * sines[i + 1];
        }
        return;
    }
    for (i64 i = 0; i < half; i++) {
        float first = head[i], second = head[i + half];
        head[i] = first * cosines[i] + second * sines[i];
        head[i + half] = second * cosines[i + half] + first * sines[i + half];
    }
}

/* QK norm (unless `norm` is NULL), rotary embedding, scale (of a query) and rounding of one head [head_dim]. It overwrites `head`. */
static void place_head(const Model *model, const Layer *layer, const Step *step, i64 row, int is_query, const float *norm, float *head, bf16 *out) {
    const float *scales = layer->rope >= 0 && is_query ? step->query_scales[layer->rope] : NULL;
    if (norm && !model->rotates_before_norm) normalise_head(model, norm, head);
    if (layer->rope >= 0) rotate_head(model, step, layer->rope, row, head);
    if (norm && model->rotates_before_norm) normalise_head(model, norm, head);
    float scale = scales ? scales[row] : 1.0f;
    for (i64 i = 0; i < model->head_dim; i++) out[i] = to_bf16(head[i] * scale);
}

/* Place head number `head` of a row and store it: a query in `queries` [heads, head_dim], a key with its value in the cache.
 * `qkv`: [heads + 2 kv_heads, head_dim] float32. A row whose slot is negative stores nothing in the cache. */
static void store_head(const Model *model, const Layer *layer, const Step *step, i64 row, i64 head, float *qkv, bf16 *queries) {
    i64 size = model->head_dim, heads = model->heads, kv_heads = model->kv_heads;
    const float *norm = layer->query_key_norm ? layer->query_key_norm + head * size : NULL;
    if (head < heads) {
        place_head(model, layer, step, row, 1, norm, qkv + head * size, queries + head * size);
        return;
    }
    i64 slot = slot_of(layer, step, row);
    if (slot < 0) return;
    i64 at = (slot * kv_heads + head - heads) * size;
    place_head(model, layer, step, row, 0, norm, qkv + head * size, layer->keys + at);
    const float *value = qkv + (head + kv_heads) * size;
    for (i64 i = 0; i < size; i++) layer->values[at + i] = to_bf16(value[i]);
}
