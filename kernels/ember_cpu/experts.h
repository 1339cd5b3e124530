/* Experts in place of the MLP: the choice of some for each row, and the products of their matrices with the rows that chose them.
 *
 * A pair is a row and one of its experts. Pairs are sorted by expert: a place is a pair's number in that order. The products of all
 * chosen experts are one list of work, so that threads need not wait for each other between experts.
 */
#pragma once

#include <math.h>

#include "matrix.h"

typedef struct {
    i64 count, per_token;
    Matrix router;            /* [count, hidden] */
    const float *correction;  /* [count], added to the scores for the choice alone, or NULL */
    const Matrix *up, *down;  /* [count]; up: gate's rows first */
    i64 sigmoid;              /* scores are sigmoids of the router's logits; otherwise their softmax */
    i64 normalised;           /* whether the chosen scores are divided by their sum, of at least `norm_min` */
    i64 groups, chosen_groups; /* consecutive experts form groups, of which the best ones are chosen first */
    float norm_min, scale;    /* scale: of the scores, after that */
    i64 shared;               /* intermediate size of an MLP that computes every row; 0: there is none */
    Matrix shared_up, shared_down;
    const bf16 *shared_router; /* [hidden], the sigmoid of whose product weighs that MLP's output, or NULL */
} Experts;

/* The choice of a step, in one layer. */
typedef struct {
    i64 count;       /* experts that some row chose */
    i64 *experts;    /* [count], their numbers */
    i64 *starts;     /* [count + 1], the first place of each */
    i64 *ids;        /* [rows, per_token], the experts of each row */
    i64 *places;     /* [rows, per_token], the place of each pair */
    float *weights;  /* [rows, per_token] */
    i64 most;        /* rows of the expert with the most */
} Choice;

/* The number of the largest value that is not -infinity. With NaNs it is one of them. */
static i64 largest(const float *values, i64 count) {
    i64 best = -1;
    for (i64 i = 0; i < count; i++)
        if (values[i] != -INFINITY && (best < 0 || !(values[i] <= values[best]))) best = i;
    return best < 0 ? 0 : best;
}

/* Leave the best groups of the `ranked` scores: those whose two best scores have the largest sums. */
static void keep_groups(const Experts *e, float *ranked) {
    i64 size = e->count / e->groups;
    float sums[e->groups];
    int kept[e->groups];
    for (i64 g = 0; g < e->groups; g++) {
        float first = -INFINITY, second = -INFINITY;
        for (i64 i = g * size; i < (g + 1) * size; i++) {
            if (ranked[i] > first) second = first, first = ranked[i];
            else if (ranked[i] > second) second = ranked[i];
        }
        sums[g] = first + second, kept[g] = 0;
    }
    for (i64 n = 0; n < e->chosen_groups; n++) {
        i64 best = largest(sums, e->groups);
        kept[best] = 1, sums[best] = -INFINITY;
    }
    for (i64 i = 0; i < e->count; i++)
        if (!kept[i / size]) ranked[i] = -INFINITY;
}

/* The experts of a row by the router's `logits` [count]: their weights and numbers, [per_token]. */
static void choose(const Experts *e, const float *logits, float *weights, i64 *ids) {
    i64 count = e->count;
    float scores[count], ranked[count], most = -INFINITY, total = 0;
    for (i64 i = 0; i < count; i++) most = logits[i] > most ? logits[i] : most;
    for (i64 i = 0; i < count; i++) scores[i] = e->sigmoid ? 1.0f / (1.0f + exponential(-logits[i])) : exponential(logits[i] - most);
    for (i64 i = 0; i < count && !e->sigmoid; i++) total += scores[i];
    for (i64 i = 0; i < count && !e->sigmoid; i++) scores[i] /= total;
    for (i64 i = 0; i < count; i++) ranked[i] = scores[i] + (e->correction ? e->correction[i] : 0.0f);
    if (e->groups > 1) keep_groups(e, ranked);
    float sum = 0;
    for (i64 k = 0; k < e->per_token; k++) {
        ids[k] = largest(ranked, count);
        weights[k] = scores[ids[k]];
        ranked[ids[k]] = -INFINITY;
        sum += weights[k];
    }
    float factor = e->normalised ? e->scale / (sum < e->norm_min ? e->norm_min : sum) : e->scale;
    for (i64 k = 0; k < e->per_token; k++) weights[k] *= factor;
}

/* Sort the pairs of `rows` rows by expert. */
static void sort_pairs(const Experts *e, i64 rows, Choice *choice) {
    i64 pairs = rows * e->per_token, next[e->count], place = 0;
    for (i64 i = 0; i < e->count; i++) next[i] = 0;
    for (i64 pair = 0; pair < pairs; pair++) next[choice->ids[pair]]++;
    choice->count = choice->most = 0;
    for (i64 i = 0; i < e->count; i++) {
        i64 size = next[i];
        next[i] = place;
        if (!size) continue;
        choice->experts[choice->count] = i, choice->starts[choice->count++] = place;
        choice->most = size > choice->most ? size : choice->most;
        place += size;
    }
    choice->starts[choice->count] = place;
    for (i64 pair = 0; pair < pairs; pair++) choice->places[pair] = next[choice->ids[pair]]++;
}

/* The rows that chose one expert, number `which` of the choice: part of `all`, whose rows are in the order of places. */
static Input input_of(const Choice *choice, i64 which, const Input *all, i64 columns) {
    i64 start = choice->starts[which], slabs = num_slabs(columns);
    Input own = {all->x + start * columns, {NULL}, choice->starts[which + 1] - start};
    for (int kind = FLOATS + 1; kind < KINDS; kind++) own.slabs[kind] = all->slabs[kind] + start * slabs;
    return own;
}

/* Quantise the input at a place in the forms that its expert's matrix needs. */
static void quantise_place(const Choice *choice, i64 place, const Matrix *matrices, const Input *all) {
    i64 which = 0;
    while (choice->starts[which + 1] <= place) which++;
    const Matrix *matrix = matrices + choice->experts[which];
    Input own = input_of(choice, which, all, matrix->columns);
    quantise_input(matrix, &own, place - choice->starts[which]);
}

/* out [pairs, half] = activation(x times gate) * (x times up) of each pair's expert. */
static void multiply_experts_gated(Team *team, const Choice *choice, const Matrix *ups, const Input *all, i64 activation, bf16 *out) {
    i64 half = num_rows(ups + choice->experts[0]) / 2, total = choice->count * half;
    float gate[MAX_ROWS][STRIP] __attribute__((aligned(64))), up[MAX_ROWS][STRIP] __attribute__((aligned(64)));
    for (Chunk work = first_chunk(team, ups + choice->experts[0], choice->most, total); next_chunk(team, &work);)
        for (i64 n = work.first, width; n < work.end; n += width) {
            i64 which = n / half, row = n % half, end = work.end - which * half < half ? work.end - which * half : half;
            i64 then = row_to_prefetch(&work, n);
            const Matrix *matrix = ups + choice->experts[which], *next = ups + choice->experts[then / half];
            const Input input = input_of(choice, which, all, matrix->columns);
            i64 other = strip_width(matrix, half + row, half + end, input.rows);
            width = strip_width(matrix, row, end, input.rows);
            width = other < width ? other : width;
            strip(matrix, row, width, row_of(next, then % half), &input, gate);
            strip(matrix, half + row, width, row_of(next, half + then % half), &input, up);
            if (matrix->bias) {
                add_bias(matrix->bias + row, width, input.rows, gate);
                add_bias(matrix->bias + half + row, width, input.rows, up);
            }
            store_gated(activation, gate, up, input.rows, width, out + choice->starts[which] * half + row, half);
        }
}

/* out [pairs, matrix rows] = x times the matrix of each pair's expert. */
static void multiply_experts(Team *team, const Choice *choice, const Matrix *downs, const Input *all, float *out) {
    i64 size = num_rows(downs + choice->experts[0]), total = choice->count * size;
    float sums[MAX_ROWS][STRIP] __attribute__((aligned(64)));
    for (Chunk work = first_chunk(team, downs + choice->experts[0], choice->most, total); next_chunk(team, &work);)
        for (i64 n = work.first, width; n < work.end; n += width) {
            i64 which = n / size, row = n % size, end = work.end - which * size < size ? work.end - which * size : size;
            i64 then = row_to_prefetch(&work, n);
            const Matrix *matrix = downs + choice->experts[which];
            const Input input = input_of(choice, which, all, matrix->columns);
            width = strip_width(matrix, row, end, input.rows);
            strip(matrix, row, width, row_of(downs + choice->experts[then / size], then % size), &input, sums);
            if (matrix->bias) add_bias(matrix->bias + row, width, input.rows, sums);
            for (i64 i = 0; i < input.rows; i++)
                memcpy(out + (choice->starts[which] + i) * size + row, sums[i], (size_t)width * sizeof(float));
        }
}

/* sum [hidden] = the weighted outputs [pairs, hidden] of a row's experts, and `shared` [hidden] with its weight, if there is one. */
static void mix(const Experts *e, const Choice *choice, i64 row, const float *outputs, const bf16 *x, i64 hidden, const float *shared, float *sum) {
    float factor = 0.0f, parts[16] = {0};
    if (e->shared) {
        factor = 1.0f;
        if (e->shared_router) {
            float product = 0;
            for (i64 i = 0; i < hidden; i += 16)
                for (int j = 0; j < 16; j++) parts[j] += from_bf16(x[i + j]) * from_bf16(e->shared_router[i + j]);
            for (int j = 0; j < 16; j++) product += parts[j];
            factor = 1.0f / (1.0f + exponential(-product));
        }
        for (i64 i = 0; i < hidden; i++) sum[i] = factor * shared[i];
    } else {
        for (i64 i = 0; i < hidden; i++) sum[i] = 0.0f;
    }
    for (i64 k = 0; k < e->per_token; k++) {
        float weight = choice->weights[row * e->per_token + k];
        const float *own = outputs + choice->places[row * e->per_token + k] * hidden;
        for (i64 i = 0; i < hidden; i++) sum[i] += weight * own[i];
    }
}
