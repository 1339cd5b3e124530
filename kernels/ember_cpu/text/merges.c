/* The merges of a SentencePiece vocabulary: the pairs of tokens that BPE joins, the token with the highest score first.
 *
 * A token has a pair for each of its splits into two tokens, but BPE applies only one of them in any text: until the
 * token exists, no merge crosses its ends, so its characters are merged in the same order as if they were the whole
 * text. The pair is therefore the last merge of the token's own characters. If these end as other tokens, then BPE
 * never makes this token.
 *
 * Tokens are found by a polynomial hash of their bytes, which follows for each part of a token from the hashes of its
 * beginnings. The bytes are compared afterwards, so that the result does not depend on the hash. Its base is the
 * caller's, drawn at random for each call: with a known one, a file could have tokens that all have the same hash. */

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef uint64_t u64;
typedef int64_t i64;

#define PRIME ((1ull << 61) - 1)
#define MAX_PROBES 1024 /* of slots for one token: with a random base the longest are below 100 */
#define END '\xff'      /* behind each token; no byte of UTF-8 is this one */
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
    u64 probes; /* the most that a token of the table needs: behind these a token that is looked up is not there */
    u64 base;   /* of the hashes, below PRIME */
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
    u64 *powers; /* of the base, by their exponents */
    Part *parts; /* with one behind the last, whose `begin` is the token's length */
} Making;

static const Slot NOTHING = {0, -1, NEVER};

static i64 length_of(const Vocabulary *vocabulary, i64 token) {
    return vocabulary->starts[token + 1] - vocabulary->starts[token] - 1;
}

static u64 product(u64 one, u64 other) {
    const unsigned __int128 whole = (unsigned __int128)one * other;
    const u64 sum = (u64)(whole & PRIME) + (u64)(whole >> 61);
    return sum >= PRIME ? sum - PRIME : sum;
}

/* The hash of bytes and one more. */
static u64 extended(u64 hash, u64 base, char byte) {
    const u64 sum = product(hash, base) + (unsigned char)byte + 1;
    return sum >= PRIME ? sum - PRIME : sum;
}

static u64 mixed(u64 hash) {
    return (hash ^ (hash >> 29)) * 0xBF58476D1CE4E5B9ull;
}

/* The slot of the token with these bytes, or the free one where it would be, or NULL after `most` probes. `probes`: how
 * many there were. */
static Slot *slot_of(
    const Vocabulary *vocabulary, const char *bytes, i64 length, u64 hash, u64 most, u64 *probes
) {
    const u64 key = mixed(hash);
    for (*probes = 1; *probes <= most; ++*probes) {
        Slot *slot = vocabulary->slots + (((key >> 32) + *probes) & vocabulary->mask);
        if (slot->token < 0
            || (slot->tag == (uint32_t)key && length_of(vocabulary, slot->token) == length
                && !memcmp(vocabulary->text + vocabulary->starts[slot->token], bytes, length)))
            return slot;
    }
    return NULL;
}

/* Make the table. Returns 0 for lack of memory, or if too many tokens have the same hash. */
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
            hash = extended(hash, vocabulary->base, bytes[at]);
        u64 probes;
        Slot *slot = slot_of(vocabulary, bytes, length, hash, MAX_PROBES, &probes);
        if (!slot) {
            free(ranks);
            return 0;
        }
        if (probes > vocabulary->probes)
            vocabulary->probes = probes;
        if (slot->token < 0) /* of equal ones the first */
            *slot = (Slot){(uint32_t)mixed(hash), (int32_t)token, ranks[token]};
    }
    free(ranks);
    return 1;
}

static Slot between(const Vocabulary *vocabulary, const Making *making, i64 begin, i64 end) {
    const u64 before = product(making->hashes[begin], making->powers[end - begin]), all = making->hashes[end];
    const u64 hash = all >= before ? all - before : all + PRIME - before;
    u64 probes;
    const Slot *slot = slot_of(vocabulary, making->bytes + begin, end - begin, hash, vocabulary->probes, &probes);
    return slot ? *slot : NOTHING;
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
        making->hashes[at + 1] = extended(making->hashes[at], vocabulary->base, bytes[at]);
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

/* Find where each of `count` tokens begins in `text` [size], in which each has END behind it. Returns the bytes that
 * the longest has, END included. */
static i64 find_starts(const char *text, i64 size, i64 count, i64 *starts) {
    i64 longest = 1, at = 0;
    for (i64 token = 0; token < count; token++) {
        const char *end = memchr(text + at, (unsigned char)END, size - at);
        starts[token] = at;
        at = end ? end - text + 1 : size;
        if (at - starts[token] > longest)
            longest = at - starts[token];
    }
    starts[count] = at;
    return longest;
}

/* Write the merges that make the tokens `order` [ordered] to `pairs` [ordered, 2], in this order, which is also the one
 * in which BPE prefers them. `text` [size] has all tokens, `count` of them, and END behind each. `base`: of the hashes,
 * a random number below PRIME. Returns how many merges there are, or -1 for lack of memory, or if too many tokens have
 * the same hash. */
i64 ember_merges(
    const char *text, i64 size, i64 count, const int32_t *order, i64 ordered, int32_t *pairs, u64 base
) {
    Vocabulary vocabulary = {.text = text, .base = base, .starts = malloc((count + 1) * sizeof(i64))};
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
                making.powers[at] = product(making.powers[at - 1], base);
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
