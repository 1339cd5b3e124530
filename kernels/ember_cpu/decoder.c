/* The decoder's forward pass for few rows on a CPU: weights where and as they lie, sums in float32.
 *
 * A step of few rows reads every weight once and does little with it, so memory's speed is the limit; with more rows it
 * is arithmetic, and memory is read meanwhile. One call runs all layers in one parallel region.
 *
 * A row's numbers do not depend on the rows beside it: every dot product adds up in the same order in any batch.
 *
 * Compiled twice: for AVX-512 with BF16 dot products, and for AVX2 with FMA.
 */

#include <omp.h>

#include "attention.h"

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
            attend_rows(&team, model, layer, step, NULL, rows, parts, queries, mixed);
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
            rotate(model, step, row, norm, x, h < heads ? queries + (row * heads + h) * size : keys + (row * kv_heads + h - heads) * size);
        }
        if (slot < 0) continue;
        memcpy(layer->keys + slot, keys + row * kv_heads * size, kv_heads * size * sizeof(bf16));
        memcpy(layer->values + slot, from + (heads + kv_heads) * size, kv_heads * size * sizeof(bf16));
    }
}

/* Attention of `count` of the step's rows, those that `chosen` lists; queries and out are [rows, heads, head_dim] of all.
 * What the rows see must be in the cache. */
void ember_attend(const Model *model, const Layer *layer, const Step *step, const i64 *chosen, i64 count, const bf16 *queries, bf16 *out, int threads) {
    i64 parts = longest(step, chosen, count) > LONG ? model->kv_heads : 1;
    Team team = {0, 0, 0, threads};
#pragma omp parallel num_threads(threads)
    attend_rows(&team, model, layer, step, chosen, count, parts, queries, out);
}

/* out [rows, half] = silu(x[:, :half]) * x[:, half:]. */
void ember_gate(const bf16 *x, bf16 *out, i64 rows, i64 half, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (i64 row = 0; row < rows; row++) {
        const bf16 *gate = x + row * 2 * half, *up = gate + half;
        for (i64 i = 0; i < half; i++) out[row * half + i] = to_bf16(silu(from_bf16(gate[i])) * from_bf16(up[i]));
    }
}

/* ---------------------------------------------------------------- weights of fewer bits */

/* A bfloat16 matrix in `bits` (8, 4): `out` [all rows, columns * bits / 8] bytes, `scales` [all rows, columns / GROUP]. */
void ember_quantise(const Matrix *matrix, int bits, char *out, float *scales, int threads) {
    i64 rows = num_rows(matrix), columns = matrix->columns;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (i64 row = 0; row < rows; row++) {
        const bf16 *from = (const bf16 *)row_of(matrix, row);
        quantise_row(from, columns, bits, out + row * columns * bits / 8, scales + row * (columns / GROUP));
    }
}

/* out [all rows, columns] = the matrix of 8 or 4 bits as bfloat16. */
void ember_restore(const Matrix *matrix, bf16 *out, int threads) {
    i64 rows = num_rows(matrix), columns = matrix->columns;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (i64 row = 0; row < rows; row++) {
        const char *from = row_of(matrix, row);
        unpack_row((int)matrix->bits, 0, from, matrix->scales + row * (columns / GROUP), columns, from, out + row * columns);
    }
}
