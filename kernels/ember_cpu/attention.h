/* Attention over the pages of the KV cache for few rows. The memory bandwidth is the limit, so each task prefetches the next keys. */
#pragma once

#include <string.h>

#include "model.h"

#define KEYS 32      /* keys in one block of the running softmax */
#define MAX_HEAD 256 /* head_dim */

/* One unit of work: one row's attention for the query heads of some KV heads. */
typedef struct {
    i64 row, kv, kv_count; /* KV heads [kv, kv + kv_count) */
    i64 start, end;        /* positions that the row attends to */
} AttentionTask;

/* Up to KEYS keys of a task, and their values: their addresses, and how far they have been prefetched. */
typedef struct {
    i64 count, places[KEYS]; /* element offsets in the cache, of the first KV head */
    const char *from[2 * KEYS];
    i64 lines, at, line; /* cache lines of each of `from`; the next one to prefetch is `line` of from[at] */
} Block;

static AttentionTask attention_task(const Model *model, const Layer *layer, const Step *step, i64 row, i64 part, i64 parts) {
    i64 end = step->positions[row] + 1, start = layer->window && end > layer->window ? end - layer->window : 0;
    if (layer->window && model->window_is_chunk) start = (end - 1) / layer->window * layer->window;
    i64 kv_count = model->kv_heads / parts;
    return (AttentionTask){row, part * kv_count, kv_count, start, end};
}

/* Fill `block` with the addresses of the task's keys and values from position `first` on. */
static void locate_block(const Model *model, const Layer *layer, const Step *step, const AttentionTask *task, i64 first, Block *block) {
    i64 size = model->head_dim, block_size = model->block_size;
    i64 row_of_tables = layer->group * step->num_sequences + step->sequences[task->row];
    const i64 *table = step->block_tables + row_of_tables * step->max_blocks;
    i64 count = task->end - first < KEYS ? task->end - first : KEYS;
    for (i64 i = 0; i < KEYS; i++) {
        i64 position = first + (i < count ? i : count - 1);
        i64 place = (table[position / block_size] * block_size + position % block_size) * model->kv_heads * size;
        block->places[i] = place;
        if (i >= count) continue;
        block->from[i] = (const char *)(layer->keys + place + task->kv * size);
        block->from[count + i] = (const char *)(layer->values + place + task->kv * size);
    }
    block->count = count, block->lines = (task->kv_count * size * 2 + LINE - 1) / LINE, block->at = block->line = 0;
}

/* Prefetch the next `lines` cache lines of the block. */
static inline void prefetch(Block *block, i64 lines) {
    for (; lines > 0 && block->at < 2 * block->count; lines--) {
        _mm_prefetch(block->from[block->at] + block->line * LINE, _MM_HINT_T1);
        if (++block->line == block->lines) block->line = 0, block->at++;
    }
}

/* scores[0..3] = dot products of the query with four keys. */
static inline void four_keys(const bf16 *const key[4], const bf16 *query, i64 size, float *scores) {
    Sum sums[4] = {SUM(setzero)(), SUM(setzero)(), SUM(setzero)(), SUM(setzero)()};
    for (i64 k = 0; k < size; k += STEP_WIDTH) {
        Wide q = load(query + k);
        for (int j = 0; j < 4; j++) sums[j] = add_dot(sums[j], load(key[j] + k), q);
    }
    _mm_storeu_ps(scores, reduce4(sums[0], sums[1], sums[2], sums[3]));
}

/* mixed [size] = mixed * kept + the sum of values weighted by `shares` [count]. In `mixed` the even elements of each STEP_WIDTH
 * come first, then the odd ones: so the halves of 32-bit words need no shuffle. */
static inline void add_values(const bf16 *values, const i64 *places, const float *shares, i64 count, float kept, i64 size, float *mixed) {
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

/* Compute one task with a running softmax over blocks of KEYS keys. The KV heads of a token are adjacent in a page. `queries` and
 * `out`: [rows, heads, head_dim]. In: blocks[0] holds the task's first keys, prefetched. Out: those of the next task `then`, unless
 * it is NULL. */
static void attend(const Model *model, const Layer *layer, const Step *step, const AttentionTask *now, const AttentionTask *then, Block blocks[2],
                   const bf16 *queries, bf16 *out) {
    i64 size = model->head_dim, group = model->heads / model->kv_heads, head = now->kv * group, count = now->kv_count * group;
    float mixed[count][size], best[count], total[count];
    queries += (now->row * model->heads + head) * size, out += (now->row * model->heads + head) * size;
    memset(mixed, 0, sizeof mixed);
    for (i64 g = 0; g < count; g++) best[g] = -INFINITY, total[g] = 0;
    Block *block = blocks, *next = blocks + 1;
    for (i64 first = now->start; first < now->end; first += KEYS) {
        i64 keys = block->count, places[KEYS];
        next->count = next->at = 0;
        if (first + KEYS < now->end) locate_block(model, layer, step, now, first + KEYS, next);
        else if (then) locate_block(model, layer, step, then, then->start, next);
        i64 lines = next->count ? 2 * next->count * next->lines / (count * ((keys + 3) / 4)) + 1 : 0;
        for (i64 g = 0; g < count; g++) {
            float scores[KEYS], highest = best[g], parts[16] = {0}, sum = 0;
            for (i64 i = 0; i < KEYS; i++) places[i] = block->places[i] + (head + g) / group * size;
            for (i64 i = 0; i < keys; i += 4) {
                const bf16 *key[4];
                for (int j = 0; j < 4; j++) key[j] = layer->keys + places[i + j];
                four_keys(key, queries + g * size, size, scores + i);
                prefetch(next, lines);
            }
            for (i64 i = 0; i < keys; i++) scores[i] *= layer->scale;
            if (model->soft_cap != 0.0f)
                for (i64 i = 0; i < keys; i++) scores[i] = model->soft_cap * tangent(scores[i] / model->soft_cap);
            for (i64 i = 0; i < keys; i++) highest = scores[i] > highest ? scores[i] : highest;
            for (i64 i = keys; i < KEYS; i++) scores[i] = -INFINITY;
            for (i64 i = 0; i < KEYS; i++) scores[i] = i < keys ? exponential(scores[i] - highest) : 0.0f;
            for (i64 i = 0; i < KEYS; i += 16)
                for (int j = 0; j < 16; j++) parts[j] += scores[i + j];
            for (int j = 0; j < 16; j++) sum += parts[j];
            float kept = best[g] == -INFINITY ? 0.0f : exponential(best[g] - highest);
            total[g] = total[g] * kept + sum;
            best[g] = highest;
            add_values(layer->values, places, scores, keys, kept, size, mixed[g]);
        }
        Block *other = block;
        block = next, next = other;
    }
    if (block != blocks) blocks[0] = *block;
    for (i64 g = 0; g < count; g++)
        for (i64 d = 0; d < size; d += STEP_WIDTH)
            for (int j = 0; j < STEP_WIDTH / 2; j++) {
                bf16 *to = out + g * size + d + 2 * j;
                to[0] = to_bf16(mixed[g][d + j] / total[g]);
                to[1] = to_bf16(mixed[g][d + STEP_WIDTH / 2 + j] / total[g]);
            }
}

/* Attention for `count` rows of the step: those that `chosen` lists, or the first ones if it is NULL. Each row is `parts` tasks. */
static void attend_rows(Team *team, const Model *model, const Layer *layer, const Step *step, const i64 *chosen, i64 count, i64 parts,
                        const bf16 *queries, bf16 *out) {
    Block blocks[2];
    AttentionTask now, then;
    i64 task = fetch_work(team, 1);
    if (task >= count * parts) return;
    now = attention_task(model, layer, step, chosen ? chosen[task / parts] : task / parts, task % parts, parts);
    locate_block(model, layer, step, &now, now.start, blocks);
    prefetch(blocks, 2 * KEYS * blocks->lines);
    for (int more = 1; more; now = then) {
        task = fetch_work(team, 1);
        more = task < count * parts;
        if (more) then = attention_task(model, layer, step, chosen ? chosen[task / parts] : task / parts, task % parts, parts);
        attend(model, layer, step, &now, more ? &then : NULL, blocks, queries, out);
    }
}

#define LONG 2048 /* keys; the KV heads of a row with more are separate tasks, so that several threads share it */

/* The longest context of the rows that `chosen` lists, or of the first `count` rows if it is NULL. */
static i64 longest_context(const Step *step, const i64 *chosen, i64 count) {
    i64 most = 0;
    for (i64 i = 0; i < count; i++) {
        i64 position = step->positions[chosen ? chosen[i] : i];
        most = position + 1 > most ? position + 1 : most;
    }
    return most;
}
