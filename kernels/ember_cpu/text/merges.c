/* The merges of a SentencePiece vocabulary: every pair of tokens that together are a token.
 *
 * Tokens are found by a polynomial hash of their bytes, from which the hash of each beginning and of the rest of a
 * token follow. The bytes are compared afterwards, so that the result does not depend on the hash. */

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef uint64_t u64;
typedef int64_t i64;

#define BASE 0x9E3779B97F4A7C15ull

const char ember_merges_build[] = EMBER_BUILD;

typedef struct {
    const char *text;  /* all tokens, with one byte between two */
    const i64 *starts; /* [count + 1]: of each token, and where one after the last would begin */
    u64 *hashes;       /* [count] */
    int32_t *slots;    /* [mask + 1]: the index of a token, or -1 */
    u64 mask;
} Vocabulary;

static i64 length_of(const Vocabulary *vocabulary, i64 token) {
    return vocabulary->starts[token + 1] - vocabulary->starts[token] - 1;
}

static u64 slot_of(const Vocabulary *vocabulary, u64 hash) {
    return (hash ^ (hash >> 29)) * 0xBF58476D1CE4E5B9ull >> 20 & vocabulary->mask;
}

/* The token with these bytes, or -1. */
static int32_t find(const Vocabulary *vocabulary, const char *bytes, i64 length, u64 hash) {
    for (u64 slot = slot_of(vocabulary, hash);; slot = (slot + 1) & vocabulary->mask) {
        const int32_t token = vocabulary->slots[slot];
        if (token < 0)
            return -1;
        if (vocabulary->hashes[token] == hash && length_of(vocabulary, token) == length
            && !memcmp(vocabulary->text + vocabulary->starts[token], bytes, length))
            return token;
    }
}

static int fill(Vocabulary *vocabulary, i64 count) {
    u64 size = 1024;
    while (size < 2 * (u64)count)
        size *= 2;
    vocabulary->mask = size - 1;
    vocabulary->hashes = malloc((count + 1) * sizeof(u64));
    vocabulary->slots = malloc(size * sizeof(int32_t));
    if (!vocabulary->hashes || !vocabulary->slots)
        return 0;
    memset(vocabulary->slots, 0xFF, size * sizeof(int32_t));
    for (i64 token = 0; token < count; token++) {
        const char *bytes = vocabulary->text + vocabulary->starts[token];
        const i64 length = length_of(vocabulary, token);
        u64 hash = 0;
        for (i64 at = 0; at < length; at++)
            hash = hash * BASE + (unsigned char)bytes[at] + 1;
        vocabulary->hashes[token] = hash;
        if (find(vocabulary, bytes, length, hash) >= 0)
            continue;
        u64 slot = slot_of(vocabulary, hash);
        while (vocabulary->slots[slot] >= 0)
            slot = (slot + 1) & vocabulary->mask;
        vocabulary->slots[slot] = (int32_t)token;
    }
    return 1;
}

/* Write the pairs of each of the tokens `order` [ordered], the shortest beginning first, to `pairs` [capacity, 2].
 * Returns how many there are, or -1 for lack of memory or of room. */
i64 ember_merges(const char *text, const i64 *starts, i64 count, const int32_t *order, i64 ordered, int32_t *pairs,
                 i64 capacity) {
    Vocabulary vocabulary = {text, starts, NULL, NULL, 0};
    i64 found = fill(&vocabulary, count) ? 0 : -1;
    for (i64 i = 0; i < ordered && found >= 0; i++) {
        const char *bytes = text + starts[order[i]];
        const i64 length = length_of(&vocabulary, order[i]);
        u64 left_hash = 0, power = 1; /* BASE to the number of bytes of the rest */
        for (i64 at = 1; at < length; at++)
            power *= BASE;
        u64 inverse = 1; /* of BASE, which is odd: Newton's iteration doubles the right bits */
        for (int step = 0; step < 6; step++)
            inverse *= 2 - BASE * inverse;
        for (i64 at = 1; at < length; at++, power *= inverse) {
            left_hash = left_hash * BASE + (unsigned char)bytes[at - 1] + 1;
            if ((bytes[at] & 0xC0) == 0x80) /* within a character */
                continue;
            const int32_t left = find(&vocabulary, bytes, at, left_hash);
            if (left < 0)
                continue;
            const u64 right_hash = vocabulary.hashes[order[i]] - left_hash * power;
            const int32_t right = find(&vocabulary, bytes + at, length - at, right_hash);
            if (right < 0)
                continue;
            if (found == capacity) {
                found = -1;
                break;
            }
            pairs[2 * found] = left;
            pairs[2 * found++ + 1] = right;
        }
    }
    free(vocabulary.hashes);
    free(vocabulary.slots);
    return found;
}
