/* The merges of a SentencePiece vocabulary: the pairs of tokens that BPE joins, the token with the highest score first.
 *
 * A token has a pair for each of its splits into two tokens, but BPE applies only one of them in any text: until the
 * token exists, no merge crosses its ends, so its characters are merged in the same order as if they were the whole
 * text. The pair is therefore the last merge of the token's own characters. If these end as other tokens, then BPE
 * never makes this token.
 *
 * Tokens are found by a polynomial hash of their bytes, which follows for each part of a token from the hashes of its
 * beginnings. The bytes are compared afterwards, so that the result does not depend on the hash. */

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef uint64_t u64;
typedef int64_t i64;

#define BASE 0x9E3779B97F4A7C15ull
#define NEVER INT32_MAX /* the rank of what is no merge */

typedef struct {
    uint32_t tag;  /* of the token's hash, so that few others are compared with it */
    int32_t token; /* or -1 */
    int32_t rank;  /* when BPE makes the token; NEVER if no merge does */
} Slot;

typedef struct {
    const char *text; /* all tokens, with one byte behind each */
    i64 *starts;      /* [count + 1]: of each token, and where one after the last would begin */
    Slot *slots;      /* [mask + 1] */
    u64 mask;
} Vocabulary;

/* A part of the token that is being made. At first each character is one. */
typedef struct {
    i64 begin;            /* in the token's bytes */
    int32_t token;        /* or -1 */
    int32_t joined, rank; /* which token the part and the next one are together, or -1, and its rank */
} Part;

/* What is known of the token that is being made. Each array has room for all of its bytes. */
typedef struct {
    const char *bytes;
    u64 *hashes; /* of the token's beginnings, by their number of bytes */
    u64 *powers; /* of BASE, by their exponents */
    Part *parts; /* with one behind the last, whose `begin` is the token's length */
} Making;

static const Slot NOTHING = {0, -1, NEVER};

static i64 length_of(const Vocabulary *vocabulary, i64 token) {
    return vocabulary->starts[token + 1] - vocabulary->starts[token] - 1;
}

static u64 mixed(u64 hash) {
    return (hash ^ (hash >> 29)) * 0xBF58476D1CE4E5B9ull;
}

/* The slot of the token with these bytes, or the free one where it would be. */
static Slot *slot_of(const Vocabulary *vocabulary, const char *bytes, i64 length, u64 hash) {
    const u64 key = mixed(hash);
    for (u64 at = key >> 32;; at++) {
        Slot *slot = vocabulary->slots + (at & vocabulary->mask);
        if (slot->token < 0
            || (slot->tag == (uint32_t)key && length_of(vocabulary, slot->token) == length
                && !memcmp(vocabulary->text + vocabulary->starts[slot->token], bytes, length)))
            return slot;
    }
}

static int fill(Vocabulary *vocabulary, i64 count, const int32_t *order, i64 ordered) {
    u64 size = 1024;
    while (size < 2 * (u64)count)
        size *= 2;
    int32_t *ranks = malloc((count + 1) * sizeof(int32_t));
    vocabulary->mask = size - 1;
    vocabulary->slots = malloc(size * sizeof(Slot));
    if (!ranks || !vocabulary->slots) {
        free(ranks);
        return 0;
    }
    for (i64 token = 0; token < count; token++)
        ranks[token] = NEVER;
    for (i64 rank = 0; rank < ordered; rank++)
        ranks[order[rank]] = (int32_t)rank;
    for (u64 at = 0; at < size; at++)
        vocabulary->slots[at] = NOTHING;
    for (i64 token = 0; token < count; token++) {
        const char *bytes = vocabulary->text + vocabulary->starts[token];
        const i64 length = length_of(vocabulary, token);
        u64 hash = 0;
        for (i64 at = 0; at < length; at++)
            hash = hash * BASE + (unsigned char)bytes[at] + 1;
        Slot *slot = slot_of(vocabulary, bytes, length, hash);
        if (slot->token < 0) /* of equal ones the first */
            *slot = (Slot){(uint32_t)mixed(hash), (int32_t)token, ranks[token]};
    }
    free(ranks);
    return 1;
}

static Slot between(const Vocabulary *vocabulary, const Making *making, i64 begin, i64 end) {
    const u64 hash = making->hashes[end] - making->hashes[begin] * making->powers[end - begin];
    return *slot_of(vocabulary, making->bytes + begin, end - begin, hash);
}

/* Find which token a part and the next one are together. */
static void join(const Vocabulary *vocabulary, const Making *making, Part *part) {
    Slot found = NOTHING;
    if (part[0].token >= 0 && part[1].token >= 0)
        found = between(vocabulary, making, part[0].begin, part[2].begin);
    part->joined = found.token;
    part->rank = found.rank;
}

/* Write the last merge of a token's characters to `pair`. Returns 0 if they do not become this token. */
static int last_merge(const Vocabulary *vocabulary, Making *making, i64 token, int32_t *pair) {
    const char *bytes = making->bytes = vocabulary->text + vocabulary->starts[token];
    const i64 length = length_of(vocabulary, token);
    Part *parts = making->parts;
    i64 count = 0;
    for (i64 at = 0; at < length; at++) {
        making->hashes[at + 1] = making->hashes[at] * BASE + (unsigned char)bytes[at] + 1;
        if ((bytes[at] & 0xC0) != 0x80) /* not within a character */
            parts[count++].begin = at;
    }
    parts[count].begin = length;
    for (i64 at = 0; at < count; at++)
        parts[at].token = between(vocabulary, making, parts[at].begin, parts[at + 1].begin).token;
    for (i64 at = 0; at + 1 < count; at++)
        join(vocabulary, making, parts + at);
    for (; count > 1; count--) {
        i64 best = 0;
        for (i64 at = 1; at + 1 < count; at++)
            if (parts[at].rank < parts[best].rank)
                best = at;
        if (parts[best].rank == NEVER)
            return 0;
        if (count == 2) {
            pair[0] = parts[0].token;
            pair[1] = parts[1].token;
            return 1;
        }
        parts[best].token = parts[best].joined;
        for (i64 at = best + 1; at < count; at++)
            parts[at] = parts[at + 1];
        if (best + 2 < count)
            join(vocabulary, making, parts + best);
        if (best > 0)
            join(vocabulary, making, parts + best - 1);
    }
    return 0;
}

/* Find where each of `count` tokens begins in `text` [size], in which each has a NUL behind it. Returns the bytes that
 * the longest has, NUL included. */
static i64 find_starts(const char *text, i64 size, i64 count, i64 *starts) {
    i64 longest = 1, at = 0;
    for (i64 token = 0; token < count; token++) {
        const char *end = memchr(text + at, 0, size - at);
        starts[token] = at;
        at = end ? end - text + 1 : size;
        if (at - starts[token] > longest)
            longest = at - starts[token];
    }
    starts[count] = at;
    return longest;
}

/* Write the merges that make the tokens `order` [ordered] to `pairs` [ordered, 2], in this order, which is also the one
 * in which BPE prefers them. `text` [size] has all tokens, `count` of them, and a NUL behind each. Returns how many
 * merges there are, or -1 for lack of memory. */
i64 ember_merges(const char *text, i64 size, i64 count, const int32_t *order, i64 ordered, int32_t *pairs) {
    Vocabulary vocabulary = {.text = text, .starts = malloc((count + 1) * sizeof(i64))};
    Making making = {0};
    i64 found = -1;
    if (vocabulary.starts) {
        const i64 longest = find_starts(text, size, count, vocabulary.starts);
        making.hashes = malloc(longest * sizeof(u64));
        making.powers = malloc(longest * sizeof(u64));
        making.parts = malloc(longest * sizeof(Part));
        if (making.hashes && making.powers && making.parts && fill(&vocabulary, count, order, ordered)) {
            making.hashes[0] = 0;
            making.powers[0] = 1;
            for (i64 at = 1; at < longest; at++)
                making.powers[at] = making.powers[at - 1] * BASE;
            found = 0;
            for (i64 rank = 0; rank < ordered; rank++)
                found += last_merge(&vocabulary, &making, order[rank], pairs + 2 * found);
        }
    }
    free(vocabulary.starts);
    free(vocabulary.slots);
    free(making.hashes);
    free(making.powers);
    free(making.parts);
    return found;
}
