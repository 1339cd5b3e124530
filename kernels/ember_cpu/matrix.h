/* Products of a matrix with few rows of input. Threads fetch the matrix's rows in chunks. */
#pragma once

#include "decoded.h"
#include "team.h"

#define MAX_PIECES 3
#define MAX_ROWS 128 /* of input, in one call */
#define STRIP 16     /* the most rows of a matrix that are computed together */

/* Some rows of a matrix, one after the other. */
typedef struct {
    const char *data;
    i64 rows, type; /* BF16, or a type of blocks, integers or codes */
    const char *scales; /* of integers and codes: [rows / height, columns / group], where the last ones may be of fewer */
    const byte *zeros;  /* of the same shape, or NULL */
    i64 group, scale_type; /* group: a multiple of 32, of codes of 4 bits also 16 */
    i64 height;            /* rows that have the same scales */
    const float *factors;  /* [rows], of the scales; or NULL */
    const float *table;    /* of TABLE4: [16], or one for each row; of E2M1: NULL */
    i64 has_tables;        /* whether it has one for each row */
    /* Single numbers, which are added to the weights: row i has counts[i] of `values`, from starts[i] on, in the columns `places`. */
    const int32_t *starts, *counts, *places; /* or NULL */
    const float *values;
} Piece;

/* A matrix [rows, columns] in up to three pieces of rows, each with a type of its own. */
typedef struct {
    Piece piece[MAX_PIECES];
    const bf16 *bias; /* [rows] or NULL */
    i64 columns;
    const int32_t *order; /* [columns], column k is multiplied with element order[k] of the input; or NULL */
    i64 floats; /* whether blocks are multiplied by restoring them to bfloat16, instead of with activations of 8 bits; without order */
} Matrix;

/* The rows [rows, columns] that a matrix is multiplied with: as they are, and in 8 bits in the forms that its pieces need. */
typedef struct {
    const bf16 *x;
    Slab *slabs[KINDS];
    i64 rows;
} Input;

/* Prefetch distance in bytes. Each thread prefetches in address order and at a constant rate: prefetching all at once would
 * delay the loads of the current tile. */
#define AHEAD 24576

static i64 num_rows(const Matrix *matrix) {
    i64 rows = 0;
    for (int i = 0; i < MAX_PIECES; i++) rows += matrix->piece[i].rows;
    return rows;
}

/* The piece with the row, whose number within the piece is `*row` afterwards. */
static const Piece *piece_of(const Matrix *matrix, i64 *row) {
    const Piece *piece = matrix->piece;
    while (*row >= piece->rows) *row -= piece++->rows;
    return piece;
}

/* Groups of a row of integers or codes. */
static i64 num_groups(const Matrix *matrix, const Piece *piece) { return (matrix->columns + piece->group - 1) / piece->group; }

/* The scales of a row of integers or codes [groups] in float32, times `unit`. */
static void scales_of_row(const Matrix *matrix, const Piece *piece, i64 row, float unit, float *d) {
    const i64 count = num_groups(matrix, piece), stride = count * scale_bytes(piece->scale_type);
    read_scales((const byte *)piece->scales + row / piece->height * stride, piece->scale_type, count, d);
    if (piece->factors)
        for (i64 i = 0; i < count; i++) d[i] *= piece->factors[row];
    if (unit != 1.0f)
        for (i64 i = 0; i < count; i++) d[i] *= unit;
}
static const byte *zeros_at(const Matrix *matrix, const Piece *piece, i64 row) {
    return piece->zeros ? piece->zeros + row * num_groups(matrix, piece) : NULL;
}

/* A row of codes, with its scales in `d`. */
static Codes codes_of_row(const Matrix *matrix, const Piece *piece, i64 row, float *d) {
    const int type = (int)piece->type;
    scales_of_row(matrix, piece, row, type == FLOAT8 ? 256.0f : 1.0f, d);
    const float *table = type == E2M1 ? E2M1_VALUES : piece->table ? piece->table + (piece->has_tables ? 16 * row : 0) : NULL;
    return (Codes){(const byte *)piece->data + row * row_bytes(type, matrix->columns), d, table};
}

/* Add the single numbers of a row to its weights. */
static void add_singles(const Piece *piece, i64 row, bf16 *weights) {
    for (i64 n = piece->starts[row], end = n + piece->counts[row]; n < end; n++)
        weights[piece->places[n]] = to_bf16(from_bf16(weights[piece->places[n]]) + piece->values[n]);
}

/* Restore row number `row` of the piece to bfloat16, in the order of its columns. */
static void restore_of(const Matrix *matrix, const Piece *piece, i64 row, bf16 *out) {
    const int type = (int)piece->type;
    const char *data = piece->data + row * row_bytes(type, matrix->columns);
    if (!has_groups(type) && !is_decoded(type)) {
        restore_row(type, data, matrix->columns, out);
        return;
    }
    float d[num_groups(matrix, piece)];
    if (is_decoded(type)) {
        const Codes codes = codes_of_row(matrix, piece, row, d);
        restore_codes(type, &codes, piece->group, matrix->columns, out);
        if (piece->starts) add_singles(piece, row, out);
        return;
    }
    scales_of_row(matrix, piece, row, 1.0f, d);
    restore_integers(type, (const byte *)data, d, zeros_at(matrix, piece, row), matrix->columns, piece->group, out);
}

static const char *row_of(const Matrix *matrix, i64 row) {
    const Piece *piece = piece_of(matrix, &row);
    return piece->data + row * row_bytes((int)piece->type, matrix->columns);
}

/* The form of activations that a piece is multiplied with. */
static int kind_for(const Matrix *matrix, const Piece *piece) {
    const int type = (int)piece->type;
    if (is_decoded(type) && (type != E2M1 || piece->group % SMALL)) return FLOATS;
    return matrix->floats ? FLOATS : kind_of(type);
}

/* ---------------------------------------------------------------- activations */

/* Whether some piece of the matrix needs activations of this kind. */
static int needs(const Matrix *matrix, int kind) {
    for (int i = 0; i < MAX_PIECES; i++)
        if (matrix->piece[i].rows && kind_for(matrix, matrix->piece + i) == kind) return 1;
    return 0;
}

/* Quantise row number `row` of the input in the forms that the matrix needs. */
static void quantise_input(const Matrix *matrix, const Input *input, i64 row) {
    i64 columns = matrix->columns;
    const bf16 *x = input->x + row * columns;
    bf16 ordered[matrix->order ? columns : 1];
    if (matrix->order) {
        for (i64 k = 0; k < columns; k++) ordered[k] = x[matrix->order[k]];
        x = ordered;
    }
    for (int kind = FLOATS + 1; kind < KINDS; kind++)
        if (needs(matrix, kind)) quantise_slabs(x, columns, kind, input->rows, input->slabs[kind] + row);
}

static int needs_slabs(const Matrix *matrix) { return needs(matrix, SMALL_SCALES) || needs(matrix, SUPER_SCALES); }

/* ---------------------------------------------------------------- strips: some rows of a piece */

/* Rows of the piece that are best computed together, with `rows` rows of input. */
static inline i64 strip_rows(const Matrix *matrix, const Piece *piece, i64 rows) {
    return kind_for(matrix, piece) == FLOATS || rows <= FEW ? 4 : LANES;
}

/* As `multiply_floats`, of `width` rows that are restored before. */
static void multiply_restored(const Matrix *matrix, const Piece *piece, i64 first, i64 width, const Input *input, float *out, i64 pitch) {
    bf16 own[4][matrix->columns];
    const bf16 *restored[4];
    for (i64 j = 0; j < 4; j++) {
        restored[j] = own[j < width ? j : 0];
        if (j < width) restore_of(matrix, piece, first + j, own[j]);
    }
    multiply_floats(restored, input->x, input->rows, matrix->columns, (const char *)own[0], out, pitch);
}

/* As `multiply_floats`, of `width` rows of codes, whose scales are converted before. */
static void multiply_codes(const Matrix *matrix, const Piece *piece, i64 first, i64 width, const Input *input, const char *ahead, float *out,
                           i64 pitch) {
    const i64 count = num_groups(matrix, piece);
    float d[4 * count];
    Codes rows[4];
    for (i64 j = 0; j < 4; j++) rows[j] = j < width ? codes_of_row(matrix, piece, first + j, d + j * count) : rows[0];
    multiply_decoded((int)piece->type, rows, piece->group, input->x, input->rows, matrix->columns, ahead, out, pitch);
}

/* Add the products of the single numbers of `width` rows. */
static void multiply_singles(const Matrix *matrix, const Piece *piece, i64 first, i64 width, const Input *input, float (*out)[STRIP]) {
    for (i64 j = 0; j < width; j++)
        for (i64 n = piece->starts[first + j], end = n + piece->counts[first + j]; n < end; n++)
            for (i64 i = 0; i < input->rows; i++) out[i][j] += piece->values[n] * from_bf16(input->x[i * matrix->columns + piece->places[n]]);
}

/* `multiply_blocks` with integers, whose scales and zeros are converted before. */
static void multiply_integers(const Matrix *matrix, const Piece *piece, i64 first, i64 width, const byte *const w[STRIP], const Slab *x,
                              i64 rows, const char *ahead, float *out) {
    const i64 count = num_groups(matrix, piece), most = rows <= FEW ? 4 : LANES;
    float d[count * most], m[count * most], row_d[count], row_m[count];
    const int has_m = has_zeros((int)piece->type);
    for (i64 j = 0; j < most; j++) {
        i64 row = first + (j < width ? j : width - 1);
        if (j < width) scales_of_row(matrix, piece, row, piece->type == E2M1 ? 0.5f : 1.0f, row_d); /* its integers are twice the numbers */
        if (j < width && has_m) read_zeros((int)piece->type, zeros_at(matrix, piece, row), row_d, count, row_m);
        for (i64 i = 0; i < count; i++) d[i * most + j] = row_d[i];
        for (i64 i = 0; i < count && has_m; i++) m[i * most + j] = row_m[i];
    }
    const Groups groups = {d, m, (unsigned)(piece->group / SMALL)};
    multiply_blocks((int)piece->type, w, &groups, x, rows, matrix->columns, ahead, out, STRIP);
}

/* Rows [first, first + width) of the matrix, which are in one piece, times all rows of the input: out[row][0..width - 1]. `width`
 * is at most `strip_rows`; more columns of `out` may be written. Prefetches from `ahead` on. */
static void strip(const Matrix *matrix, i64 first, i64 width, const char *ahead, const Input *input, float (*out)[STRIP]) {
    const char *w[STRIP];
    const Piece *piece = piece_of(matrix, &first);
    const int type = (int)piece->type, kind = kind_for(matrix, piece);
    i64 columns = matrix->columns, bytes = row_bytes(type, columns);
    for (i64 j = 0; j < STRIP; j++) w[j] = piece->data + (first + (j < width ? j : width - 1)) * bytes;
    const byte *const *blocks = (const byte *const *)w;
    if (kind != FLOATS && has_groups(type))
        multiply_integers(matrix, piece, first, width, blocks, input->slabs[kind], input->rows, ahead, out[0]);
    else if (kind != FLOATS) multiply_blocks(type, blocks, NULL, input->slabs[kind], input->rows, columns, ahead, out[0], STRIP);
    else if (type == BF16) multiply_floats((const bf16 *const *)w, input->x, input->rows, columns, ahead, out[0], STRIP);
    else if (is_decoded(type)) multiply_codes(matrix, piece, first, width, input, ahead, out[0], STRIP);
    else multiply_restored(matrix, piece, first, width, input, out[0], STRIP);
    if (piece->starts) multiply_singles(matrix, piece, first, width, input, out);
}

/* ---------------------------------------------------------------- chunks: what a thread fetches */

/* Rows of a matrix that a thread fetches at a time: up to 128 KiB of weights. A small matrix has smaller chunks, so that fetching
 * one chunk early leaves enough for the other threads. */
static inline i64 rows_per_chunk(i64 bytes, i64 rows, i64 unit, int threads) {
    i64 chunk = (128 << 10) / bytes / unit * unit, fair = rows / (4 * threads) / unit * unit;
    if (chunk > fair) chunk = fair;
    return chunk < unit ? unit : chunk;
}

/* A thread's current chunk of a matrix's rows. The thread fetches its next chunk before it starts this one, so that it can
 * prefetch across the boundary. */
typedef struct {
    i64 first, end, next, total, chunk, lead; /* in rows; chunk: rows per chunk; lead: prefetch distance */
} Chunk;

static Chunk first_chunk(Team *team, const Matrix *matrix, i64 rows, i64 total) {
    i64 unit = 4, bytes = row_bytes((int)matrix->piece[0].type, matrix->columns);
    for (int i = 0; i < MAX_PIECES; i++)
        if (matrix->piece[i].rows && strip_rows(matrix, matrix->piece + i, rows) > unit) unit = strip_rows(matrix, matrix->piece + i, rows);
    i64 lead = (AHEAD + unit * bytes / 2) / (unit * bytes) * unit, chunk = rows_per_chunk(bytes, total, unit, team->threads);
    return (Chunk){0, 0, fetch_work(team, chunk), total, chunk, lead < unit ? unit : lead};
}

/* Move on to the next chunk: whether there is one. */
static int next_chunk(Team *team, Chunk *work) {
    work->first = work->next;
    work->end = work->first + work->chunk < work->total ? work->first + work->chunk : work->total;
    if (work->first >= work->total) return 0;
    work->next = fetch_work(team, work->chunk);
    return 1;
}

/* The row to prefetch while row n is computed; n itself at the end of the matrix. */
static i64 row_to_prefetch(const Chunk *work, i64 n) {
    i64 row = n + work->lead;
    if (row < work->end) return row;
    row = work->next + row - work->end;
    return row < work->total ? row : n;
}

/* How many rows from `n` on, and before `end`, are a strip. */
static i64 strip_width(const Matrix *matrix, i64 n, i64 end, i64 rows) {
    i64 within = n;
    const Piece *piece = piece_of(matrix, &within);
    i64 width = strip_rows(matrix, piece, rows), left = piece->rows - within < end - n ? piece->rows - within : end - n;
    return width < left ? width : left;
}

/* ---------------------------------------------------------------- products */

/* Add a bias [width] to each of the sums [rows]. */
static void add_bias(const bf16 *bias, i64 width, i64 rows, float (*sums)[STRIP]) {
    for (i64 i = 0; i < rows; i++)
        for (i64 j = 0; j < width; j++) sums[i][j] += from_bf16(bias[j]);
}

/* out [rows, matrix rows] = input [rows, columns] times the transposed matrix, plus its bias; unless `factor` is 0, it is added to
 * `out` with that factor. */
static void multiply(Team *team, const Matrix *matrix, const Input *input, float *out, float factor) {
    i64 total = num_rows(matrix), rows = input->rows;
    float sums[MAX_ROWS][STRIP] __attribute__((aligned(64)));
    for (Chunk work = first_chunk(team, matrix, rows, total); next_chunk(team, &work);)
        for (i64 n = work.first, width; n < work.end; n += width) {
            width = strip_width(matrix, n, work.end, rows);
            strip(matrix, n, width, row_of(matrix, row_to_prefetch(&work, n)), input, sums);
            if (matrix->bias) add_bias(matrix->bias + n, width, rows, sums);
            for (i64 i = 0; i < rows; i++) {
                float *to = out + i * total + n;
                if (factor != 0.0f)
                    for (i64 j = 0; j < width; j++) to[j] += factor * sums[i][j];
                else if (width == 4) memcpy(to, sums[i], 4 * sizeof(float));
                else if (width == STRIP) memcpy(to, sums[i], sizeof sums[i]);
                else memcpy(to, sums[i], (size_t)width * sizeof(float));
            }
        }
}

/* made [width] = activation(gate) * up. */
static inline __attribute__((always_inline)) void gated(const int activation, const float *gate, const float *up, i64 width, bf16 *made) {
    for (i64 j = 0; j < width; j++) made[j] = to_bf16((activation == SILU ? silu(gate[j]) : gelu_tanh(gate[j])) * up[j]);
}

/* out [rows, width] = activation(gate) * up; rows of `out` are `pitch` elements apart. */
static void store_gated(i64 activation, float (*gate)[STRIP], float (*up)[STRIP], i64 rows, i64 width, bf16 *out, i64 pitch) {
    for (i64 i = 0; i < rows; i++) {
        bf16 made[STRIP];
        if (activation == SILU) gated(SILU, gate[i], up[i], width <= 4 ? 4 : STRIP, made);
        else gated(GELU_TANH, gate[i], up[i], width <= 4 ? 4 : STRIP, made);
        memcpy(out + i * pitch, made, (size_t)width * sizeof(bf16));
    }
}

/* out [rows, intermediate] = activation(input times gate) * (input times up), where the matrix has the rows of gate first. */
static void multiply_gated(Team *team, const Matrix *matrix, const Input *input, i64 activation, bf16 *out) {
    i64 half = num_rows(matrix) / 2, rows = input->rows;
    float gate[MAX_ROWS][STRIP] __attribute__((aligned(64))), up[MAX_ROWS][STRIP] __attribute__((aligned(64)));
    for (Chunk work = first_chunk(team, matrix, rows, half); next_chunk(team, &work);)
        for (i64 n = work.first, width; n < work.end; n += width) {
            i64 then = row_to_prefetch(&work, n), other = strip_width(matrix, half + n, half + work.end, rows);
            width = strip_width(matrix, n, work.end, rows);
            width = other < width ? other : width;
            strip(matrix, n, width, row_of(matrix, then), input, gate);
            strip(matrix, half + n, width, row_of(matrix, half + then), input, up);
            if (matrix->bias) {
                add_bias(matrix->bias + n, width, rows, gate);
                add_bias(matrix->bias + half + n, width, rows, up);
            }
            store_gated(activation, gate, up, rows, width, out + n, half);
        }
}
