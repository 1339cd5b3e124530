/* The decoder's forward pass for few rows on a CPU. Weights are read in the layout of the checkpoint; sums are float32.
 *
 * With few rows the memory bandwidth is the limit, since every weight is read once and used little. With more rows arithmetic
 * is the limit, and threads prefetch while they compute. One call runs all layers in one parallel region.
 *
 * A row's results do not depend on the other rows: every dot product has the same order of summation in any batch.
 *
 * variants.py lists the instruction sets that this file is compiled for.
 */

#include <omp.h>

#include "attention.h"
#include "float32.h"
#include "texts.h"

#ifndef EMBER_BUILD
#define EMBER_BUILD "unknown"
#endif
/* Build fingerprint, a digest of sources and compiler options: library.py refuses a library built from other sources. */
const char ember_build[] = EMBER_BUILD;
const i64 ember_sizes[] = {sizeof(Matrix), sizeof(Layer), sizeof(Model), sizeof(Step), sizeof(Experts), sizeof(Texts)};

/* Slabs of each kind for any matrix product of the model. */
static i64 most_slabs(const Model *model, i64 rows) {
    i64 most = model->hidden, heads = model->heads * model->head_dim;
    most = heads > most ? heads : most;
    return rows * num_slabs(model->intermediate > most ? model->intermediate : most);
}

/* Slabs of each kind for the pairs of rows and experts. */
static i64 pair_slabs(const Model *model, i64 rows) {
    return rows * model->experts_per_token * num_slabs(model->hidden > model->expert_size ? model->hidden : model->expert_size);
}

/* Bytes that a step with experts needs in addition. */
static i64 expert_workspace(const Model *model, i64 rows) {
    i64 pairs = rows * model->experts_per_token;
    if (!model->experts) return 0;
    i64 numbers = 2 * model->experts + 1 + 2 * pairs, floats = rows * model->experts + pairs + pairs * model->hidden;
    i64 halves = pairs * (model->hidden + model->expert_size);
    return numbers * 8 + floats * 4 + halves * 2 + (KINDS - 1) * pair_slabs(model, rows) * (i64)sizeof(Slab) + 16 * 64;
}

/* Size of the workspace of `ember_forward`, in bytes. */
i64 ember_workspace(const Model *model, i64 rows) {
    i64 heads = model->heads * model->head_dim, kv = model->kv_heads * model->head_dim;
    i64 floats = 2 * model->hidden + heads + 2 * kv, halves = model->hidden + 2 * heads + model->intermediate;
    i64 slabs = (KINDS - 1) * most_slabs(model, rows) * (i64)sizeof(Slab);
    return rows * (floats * 4 + halves * 2) + slabs + 16 * 64 + expert_workspace(model, rows);
}

static void *allocate(char **at, i64 bytes) {
    char *start = *at + (64 - (uintptr_t)*at % 64) % 64;
    *at = start + (bytes + 63) / 64 * 64;
    return start;
}

/* Quantise the input for a matrix after all threads have written it; the input is ready for `multiply` when this returns. */
static void share_input(Team *team, const Matrix *matrix, const Input *input) {
    i64 row;
    barrier(team);
    if (!needs_slabs(matrix)) return;
    while ((row = fetch_work(team, 1)) < input->rows) quantise_input(matrix, input, row);
    barrier(team);
}

/* The product that attention or an MLP ends with: added to the residual, or written to `delta` if it has a norm. */
static void multiply_output(Team *team, const Model *model, const Matrix *matrix, const float *norm, const Input *input, float *residual,
                            float *delta) {
    if (norm) multiply(team, matrix, input, delta, 0.0f);
    else multiply(team, matrix, input, residual, model->residual_scale);
}

/* Add a row of `delta` to that of the residual, if the output has a norm. */
static void add_output(const Model *model, const float *norm, const float *delta, float *residual) {
    if (norm) add_normalised(delta, norm, model->hidden, model->eps, model->residual_scale, residual);
}

/* The memory of a step with experts. */
typedef struct {
    Choice choice;
    float *logits;  /* [rows, experts] */
    float *outputs; /* [pairs, hidden] */
    bf16 *sorted;   /* [pairs, hidden], the rows of the pairs */
    bf16 *inner;    /* [pairs, expert_size] */
    Slab *slabs;
} ExpertStep;

static ExpertStep expert_step(const Model *model, i64 rows, char **workspace) {
    i64 pairs = rows * model->experts_per_token;
    ExpertStep made = {0};
    if (!model->experts) return made;
    made.choice.experts = allocate(workspace, model->experts * 8), made.choice.starts = allocate(workspace, (model->experts + 1) * 8);
    made.choice.ids = allocate(workspace, pairs * 8), made.choice.places = allocate(workspace, pairs * 8);
    made.choice.weights = allocate(workspace, pairs * 4), made.logits = allocate(workspace, rows * model->experts * 4);
    made.outputs = allocate(workspace, pairs * model->hidden * 4), made.sorted = allocate(workspace, pairs * model->hidden * 2);
    made.inner = allocate(workspace, pairs * model->expert_size * 2);
    made.slabs = allocate(workspace, (KINDS - 1) * pair_slabs(model, rows) * (i64)sizeof(Slab));
    return made;
}

#define ONE_THREAD 4 /* rows up to which one thread chooses their experts and sorts them */

/* Copy the row of a pair to its place, and quantise it for its expert. */
static void sort_row(const Experts *e, const Choice *choice, i64 pair, const Input *normed, const Input *sorted, i64 hidden) {
    i64 place = choice->places[pair];
    memcpy((bf16 *)sorted->x + place * hidden, normed->x + pair / e->per_token * hidden, hidden * sizeof(bf16));
    quantise_place(choice, place, e->up, sorted);
}

/* Experts of `normed` [rows, hidden], and the MLP that computes every row, added to the residual, or in `delta` if the output has a
 * norm. `normed` is ready, also in 8 bits for the MLP's first matrix; the result is ready after the next barrier. */
static void run_experts(Team *team, const Model *model, const Layer *layer, ExpertStep *step, const Input *normed, bf16 *inner, float *residual,
                        float *delta) {
    const Experts *e = layer->experts;
    Choice *choice = &step->choice;
    i64 rows = normed->rows, hidden = model->hidden, k = e->per_token, row, pair;
    Input sorted = {step->sorted, {NULL, step->slabs, step->slabs + pair_slabs(model, rows)}, rows * k}, made = sorted, shared = *normed;
    made.x = step->inner, shared.x = inner;
    multiply(team, &e->router, normed, step->logits, 0.0f);
    if (rows > ONE_THREAD) {
        barrier(team);
        while ((row = fetch_work(team, 1)) < rows) choose(e, step->logits + row * e->count, choice->weights + row * k, choice->ids + row * k);
    }
    if (arrive(team)) {
        for (row = 0; row < rows && rows <= ONE_THREAD; row++)
            choose(e, step->logits + row * e->count, choice->weights + row * k, choice->ids + row * k);
        sort_pairs(e, rows, choice);
        for (pair = 0; pair < rows * k && rows <= ONE_THREAD; pair++) sort_row(e, choice, pair, normed, &sorted, hidden);
        release(team);
    }
    if (rows > ONE_THREAD) {
        while ((pair = fetch_work(team, 1)) < rows * k) sort_row(e, choice, pair, normed, &sorted, hidden);
        barrier(team);
    }
    multiply_experts_gated(team, choice, e->up, &sorted, model->activation, step->inner);
    barrier(team);
    if (needs_slabs(e->down)) {
        while ((pair = fetch_work(team, 1)) < rows * k) quantise_place(choice, pair, e->down, &made);
        barrier(team);
    }
    multiply_experts(team, choice, e->down, &made, step->outputs);
    barrier(team);
    if (e->shared) {
        multiply_gated(team, &e->shared_up, normed, model->activation, inner);
        share_input(team, &e->shared_down, &shared);
        multiply(team, &e->shared_down, &shared, delta, 0.0f);
        barrier(team);
    }
    while ((row = fetch_work(team, 1)) < rows) {
        float sum[hidden], *own = delta + row * hidden;
        mix(e, choice, row, step->outputs, normed->x + row * hidden, hidden, own, sum);
        if (layer->mlp_output_norm) memcpy(own, sum, hidden * sizeof(float));
        else
            for (i64 i = 0; i < hidden; i++) residual[row * hidden + i] += model->residual_scale * sum[i];
    }
}

/* Run all layers and the final norm on a step of at most MAX_ROWS rows. `workspace`: `ember_workspace` bytes. */
void ember_forward(const Model *model, const Step *step, char *workspace, int threads) {
    i64 rows = step->rows, hidden = model->hidden, size = model->head_dim, heads = model->heads;
    i64 width = (heads + 2 * model->kv_heads) * size, placed = heads + model->kv_heads;
    i64 parts = rows < 4 * threads || longest_context(step, NULL, rows) > LONG ? model->kv_heads : 1; /* tasks per row of attention */
    float *residual = allocate(&workspace, rows * hidden * 4), *qkv = allocate(&workspace, rows * width * 4);
    float *delta = allocate(&workspace, rows * hidden * 4); /* the output of attention or MLP, where it is normalised */
    bf16 *normed = allocate(&workspace, rows * hidden * 2), *queries = allocate(&workspace, rows * heads * size * 2);
    bf16 *mixed = allocate(&workspace, rows * heads * size * 2);
    bf16 *inner = allocate(&workspace, rows * model->intermediate * 2);
    Slab *slabs = allocate(&workspace, (KINDS - 1) * most_slabs(model, rows) * (i64)sizeof(Slab));
    const Input for_heads = {normed, {NULL, slabs, slabs + most_slabs(model, rows)}, rows};
    Input for_output = for_heads, for_up = for_heads, for_down = for_heads;
    for_output.x = mixed, for_down.x = inner;
    ExpertStep experts = expert_step(model, rows, &workspace);
    Team team = {0, 0, 0, threads};
#pragma omp parallel num_threads(threads)
    {
        if (omp_get_num_threads() != threads) {
#pragma omp single
            team.threads = omp_get_num_threads();
        }
        i64 row, task;
        while ((row = fetch_work(&team, 1)) < rows)
            for (i64 i = 0; i < hidden; i++) residual[row * hidden + i] = from_bf16(step->hidden[row * hidden + i]);
        barrier(&team);
        for (i64 l = 0; l < model->num_layers; l++) {
            const Layer *layer = model->layers + l, *last = l ? layer - 1 : NULL;
            while ((row = fetch_work(&team, 1)) < rows) {
                if (last) add_output(model, last->mlp_output_norm, delta + row * hidden, residual + row * hidden);
                rms_norm(residual + row * hidden, layer->attention_norm, hidden, model->eps, normed + row * hidden);
                quantise_input(&layer->qkv, &for_heads, row);
            }
            barrier(&team);
            multiply(&team, &layer->qkv, &for_heads, qkv, 0.0f);
            barrier(&team);
            while ((task = fetch_work(&team, 4)) < rows * placed)
                for (i64 end = task + 4 < rows * placed ? task + 4 : rows * placed; task < end; task++) {
                    row = task / placed;
                    store_head(model, layer, step, row, task % placed, qkv + row * width, queries + row * heads * size);
                }
            barrier(&team);
            attend_rows(&team, model, layer, step, NULL, rows, parts, queries, mixed);
            share_input(&team, &layer->output, &for_output);
            multiply_output(&team, model, &layer->output, layer->attention_output_norm, &for_output, residual, delta);
            barrier(&team);
            while ((row = fetch_work(&team, 1)) < rows) {
                add_output(model, layer->attention_output_norm, delta + row * hidden, residual + row * hidden);
                rms_norm(residual + row * hidden, layer->mlp_norm, hidden, model->eps, normed + row * hidden);
                if (!layer->experts) quantise_input(&layer->up, &for_up, row);
                else if (layer->experts->shared) quantise_input(&layer->experts->shared_up, &for_up, row);
            }
            barrier(&team);
            if (layer->experts) run_experts(&team, model, layer, &experts, &for_up, inner, residual, delta);
            else {
                multiply_gated(&team, &layer->up, &for_up, model->activation, inner);
                share_input(&team, &layer->down, &for_down);
                multiply_output(&team, model, &layer->down, layer->mlp_output_norm, &for_down, residual, delta);
            }
            barrier(&team);
        }
        while ((row = fetch_work(&team, 1)) < rows) {
            add_output(model, model->layers[model->num_layers - 1].mlp_output_norm, delta + row * hidden, residual + row * hidden);
            rms_norm(residual + row * hidden, model->final_norm, hidden, model->eps, step->hidden + row * hidden);
        }
    }
}

/* out [rows, matrix rows] float32 = x [rows, columns] times the transposed matrix, plus its bias. At most MAX_ROWS rows.
 * `workspace`: `ember_linear_workspace` bytes. */
void ember_linear(const Matrix *matrix, const bf16 *x, i64 rows, float *out, char *workspace, int threads) {
    i64 slabs = rows * num_slabs(matrix->columns);
    Slab *own = allocate(&workspace, 0);
    const Input input = {x, {NULL, own, own + (needs(matrix, SMALL_SCALES) ? slabs : 0)}, rows};
    Team team = {0, 0, 0, threads};
#pragma omp parallel num_threads(threads)
    {
        if (omp_get_num_threads() != threads) {
#pragma omp single
            team.threads = omp_get_num_threads();
        }
        if (needs_slabs(matrix)) share_input(&team, matrix, &input);
        multiply(&team, matrix, &input, out, 0.0f);
    }
}

/* Size of the workspace of `ember_linear`, in bytes. */
i64 ember_linear_workspace(const Matrix *matrix, i64 rows) {
    int kinds = needs(matrix, SMALL_SCALES) + needs(matrix, SUPER_SCALES);
    return kinds * rows * num_slabs(matrix->columns) * (i64)sizeof(Slab) + 64;
}

/* out [rows, matrix rows] = x [rows, columns] times the transposed matrix, plus `bias` (NULL: none), all in float32. `columns` is a
 * multiple of FLOATS_WIDE, and the matrix has four rows at least. */
void ember_linear_float32(const float *weights, const float *bias, i64 matrix_rows, i64 columns, const float *x, i64 rows, float *out,
                          int threads) {
    i64 last = matrix_rows - 4;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (i64 first = 0; first < matrix_rows; first += 4) {
        i64 row = first < last ? first : last; /* the last four, of which some may have been computed before */
        __m128 added = bias ? _mm_loadu_ps(bias + row) : _mm_setzero_ps();
        multiply_float32(weights + row * columns, x, columns, rows, added, out + row, matrix_rows);
    }
}

/* ---------------------------------------------------------------- operators for many rows, beside torch's matrix products */

/* hidden += delta (unless it is NULL), out = RMS norm of hidden. All are [rows, size] bfloat16. */
void ember_add_norm(bf16 *hidden, const bf16 *delta, const float *weight, bf16 *out, i64 rows, i64 size, float eps, int threads) {
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
            rms_norm(x, weight, size, eps, out + row * size);
        }
    }
}

/* Apply QK norm and rotary embedding to qkv [rows, heads + 2 kv_heads, head_dim]. Writes `queries` [rows, heads, head_dim] and
 * `keys` [rows, kv_heads, head_dim], and stores keys and values in the cache. Reads rows, slots, cosines and sines of the step. */
void ember_place(const Model *model, const Layer *layer, const Step *step, const bf16 *qkv, bf16 *queries, bf16 *keys, int threads) {
    i64 size = model->head_dim, heads = model->heads, kv_heads = model->kv_heads;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (i64 row = 0; row < step->rows; row++) {
        const bf16 *from = qkv + row * (heads + 2 * kv_heads) * size;
        i64 slot = slot_of(layer, step, row) * kv_heads * size;
        float x[MAX_HEAD];
        for (i64 h = 0; h < heads + kv_heads; h++) {
            const float *norm = layer->query_key_norm ? layer->query_key_norm + h * size : NULL;
            for (i64 i = 0; i < size; i++) x[i] = from_bf16(from[h * size + i]);
            bf16 *to = h < heads ? queries + (row * heads + h) * size : keys + (row * kv_heads + h - heads) * size;
            place_head(model, layer, step, row, h < heads, norm, x, to);
        }
        if (slot < 0) continue;
        memcpy(layer->keys + slot, keys + row * kv_heads * size, kv_heads * size * sizeof(bf16));
        memcpy(layer->values + slot, from + (heads + kv_heads) * size, kv_heads * size * sizeof(bf16));
    }
}

/* Attention for the `count` rows of the step that `chosen` lists. `queries` and `out` are [rows, heads, head_dim] for all rows.
 * The keys and values that the rows attend to must be in the cache. */
void ember_attend(const Model *model, const Layer *layer, const Step *step, const i64 *chosen, i64 count, const bf16 *queries, bf16 *out, int threads) {
    i64 parts = longest_context(step, chosen, count) > LONG ? model->kv_heads : 1;
    Team team = {0, 0, 0, threads};
#pragma omp parallel num_threads(threads)
    attend_rows(&team, model, layer, step, chosen, count, parts, queries, out);
}

static inline __attribute__((always_inline)) void gate_row(const int activation, const bf16 *gate, i64 half, bf16 *out) {
    for (i64 i = 0; i < half; i++) {
        float x = from_bf16(gate[i]);
        out[i] = to_bf16((activation == SILU ? silu(x) : gelu_tanh(x)) * from_bf16(gate[half + i]));
    }
}

/* out [rows, half] = activation(x[:, :half]) * x[:, half:]. */
void ember_gate(const bf16 *x, bf16 *out, i64 rows, i64 half, i64 activation, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (i64 row = 0; row < rows; row++) {
        if (activation == SILU) gate_row(SILU, x + row * 2 * half, half, out + row * half);
        else gate_row(GELU_TANH, x + row * 2 * half, half, out + row * half);
    }
}

/* ---------------------------------------------------------------- encoders in float32 */

/* Bytes of memory that `threads` threads need in `ember_texts`. */
i64 ember_texts_workspace(i64 head_dim, i64 capacity, int threads) { return text_memory(head_dim, capacity) * (i64)sizeof(float) * threads; }

/* The attention of one layer over all texts of a step. `workspace`: `ember_texts_workspace` bytes. */
void ember_texts(const Texts *texts, float *workspace, int threads) {
    i64 task, memory = text_memory(texts->head_dim, texts->capacity);
    Team team = {0, 0, 0, threads};
#pragma omp parallel num_threads(threads) private(task)
    while ((task = fetch_work(&team, 1)) < texts->num_units * texts->heads)
        text_task(texts, texts->units + task / texts->heads * 3, task % texts->heads, workspace + memory * omp_get_thread_num());
}

/* out = LayerNorm of hidden + delta (unless it is NULL), and hidden += delta if it `keeps` the sum. Weight and bias may be NULL. All are
 * float32, [rows, size]; the size is a multiple of VECTOR. */
void ember_add_layer_norm(float *hidden, const float *delta, const float *weight, const float *bias, float *out, i64 rows, i64 size, float eps,
                          int keeps, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (i64 row = 0; row < rows; row++)
        layer_norm_row(hidden + row * size, delta ? delta + row * size : NULL, weight, bias, out + row * size, size, eps, keeps);
}

/* ---------------------------------------------------------------- blocks */

/* Quantise rows [rows, columns] of bfloat16 to Q8_0 or Q4_0. */
void ember_quantise(const bf16 *from, i64 rows, i64 columns, int type, char *out, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (i64 row = 0; row < rows; row++) quantise_row(from + row * columns, columns, type, (byte *)out + row * row_bytes(type, columns));
}

/* Restore `count` rows of a matrix, those that `chosen` lists or the first ones if it is NULL: out [count, columns] bfloat16. */
void ember_restore(const Matrix *matrix, const i64 *chosen, i64 count, bf16 *out, int threads) {
    i64 columns = matrix->columns;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (i64 i = 0; i < count; i++) { /* in the order of the columns */
        i64 row = chosen ? chosen[i] : i;
        const Piece *piece = piece_of(matrix, &row);
        restore_of(matrix, piece, row, out + i * columns);
    }
}
