/* Attention from the cache's pages, as few rows need it: memory's speed is the limit, so what comes next is asked for meanwhile. */
#pragma once

#include <string.h>

#include "model.h"

#define KEYS 32      /* keys whose scores are kept at a time */
#define MAX_HEAD 256 /* head_dim */

/* Attention of one row's query heads that belong to some of the KV heads. */
typedef struct {
    i64 row, kv, kv_count; /* KV heads [kv, kv + kv_count) */
    i64 start, end;        /* positions that the row sees */
} Share;

/* Up to KEYS keys of a share, and their values: where they lie, and what was asked for of them. */
typedef struct {
    i64 count, places[KEYS]; /* elements from the cache's start, of the first KV head */
    const char *from[2 * KEYS];
    i64 lines, at, line; /* of each of `from`; next to ask for: line of from[at] */
} Block;

static Share share_of(const Model *model, const Layer *layer, const Step *step, i64 row, i64 part, i64 parts) {
    i64 end = step->positions[row] + 1, start = layer->window && end > layer->window ? end - layer->window : 0;
    i64 kv_count = model->kv_heads / parts;
    return (Share){row, part * kv_count, kv_count, start, end};
}

static void find(const Model *model, const Layer *layer, const Step *step, const Share *share, i64 first, Block *block) {
    i64 size = model->head_dim, block_size = model->block_size;
    const i64 *table = step->block_tables + step->sequences[share->row] * step->max_blocks;
    i64 count = share->end - first < KEYS ? share->end - first : KEYS;
    for (i64 i = 0; i < KEYS; i++) {
        i64 position = first + (i < count ? i : count - 1);
        i64 place = (table[position / block_size] * block_size + position % block_size) * model->kv_heads * size;
        block->places[i] = place;
        if (i >= count) continue;
        block->from[i] = (const char *)(layer->keys + place + share->kv * size);
        block->from[count + i] = (const char *)(layer->values + place + share->kv * size);
    }
    block->count = count, block->lines = (share->kv_count * size * 2 + LINE - 1) / LINE, block->at = block->line = 0;
}

/* Asks for so many more lines of the block. */
static inline void ask(Block *block, i64 lines) {
    for (; lines > 0 && block->at < 2 * block->count; lines--) {
        _mm_prefetch(block->from[block->at] + block->line * LINE, _MM_HINT_T1);
        if (++block->line == block->lines) block->line = 0, block->at++;
    }
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

/* One share: a running softmax, KEYS at a time. What several heads read of a page lies side by side. `queries` and `out`:
 * [heads, head_dim] of all rows. blocks[0]: the share's first keys, asked for; in the end, those of `then`, if there is one. */
static void attend(const Model *model, const Layer *layer, const Step *step, const Share *now, const Share *then, Block blocks[2],
                   const bf16 *queries, bf16 *out) {
    i64 size = model->head_dim, group = model->heads / model->kv_heads, head = now->kv * group, count = now->kv_count * group;
    float scale = 1.0f / sqrtf((float)size);
    float mixed[count][size], best[count], total[count];
    queries += (now->row * model->heads + head) * size, out += (now->row * model->heads + head) * size;
    memset(mixed, 0, sizeof mixed);
    for (i64 g = 0; g < count; g++) best[g] = -INFINITY, total[g] = 0;
    Block *block = blocks, *next = blocks + 1;
    for (i64 first = now->start; first < now->end; first += KEYS) {
        i64 keys = block->count, places[KEYS];
        next->count = next->at = 0;
        if (first + KEYS < now->end) find(model, layer, step, now, first + KEYS, next);
        else if (then) find(model, layer, step, then, then->start, next);
        i64 lines = next->count ? 2 * next->count * next->lines / (count * ((keys + 3) / 4)) + 1 : 0;
        for (i64 g = 0; g < count; g++) {
            float scores[KEYS], highest = best[g], parts[16] = {0}, sum = 0;
            for (i64 i = 0; i < KEYS; i++) places[i] = block->places[i] + (head + g) / group * size;
            for (i64 i = 0; i < keys; i += 4) {
                const bf16 *key[4];
                for (int j = 0; j < 4; j++) key[j] = layer->keys + places[i + j];
                four_keys(key, queries + g * size, size, scores + i);
                ask(next, lines);
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

/* Attention of `count` of the step's rows, those that `chosen` lists, or the first ones. */
static void attend_rows(Team *team, const Model *model, const Layer *layer, const Step *step, const i64 *chosen, i64 count, i64 parts,
                        const bf16 *queries, bf16 *out) {
    Block blocks[2];
    Share now, then;
    i64 task = take(team, 1);
    if (task >= count * parts) return;
    now = share_of(model, layer, step, chosen ? chosen[task / parts] : task / parts, task % parts, parts);
    find(model, layer, step, &now, now.start, blocks);
    ask(blocks, 2 * KEYS * blocks->lines);
    for (int more = 1; more; now = then) {
        task = take(team, 1);
        more = task < count * parts;
        if (more) then = share_of(model, layer, step, chosen ? chosen[task / parts] : task / parts, task % parts, parts);
        attend(model, layer, step, &now, more ? &then : NULL, blocks, queries, out);
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
