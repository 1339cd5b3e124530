/* The arrays of strings in a GGUF file's metadata: each string is its length in 8 bytes, the lowest first, and its
 * bytes. */

#include <stdint.h>
#include <string.h>

typedef int64_t i64;

const char ember_vocabulary_build[] = EMBER_BUILD;

/* The length of the string at `at`; -1 if it does not lie whole within `size` bytes. */
static i64 length_at(const unsigned char *data, i64 size, i64 at) {
    uint64_t length = 0;
    if (size - at < 8)
        return -1;
    for (int byte = 0; byte < 8; byte++)
        length |= (uint64_t)data[at + byte] << 8 * byte;
    return length <= (uint64_t)(size - at - 8) ? (i64)length : -1;
}

/* Pass over at most `count` strings from `*at` on, as long as they lie whole within `size` bytes. Returns how many they
 * are; `*at` is then where the next one begins. */
i64 ember_skip_strings(const unsigned char *data, i64 size, i64 count, i64 *at) {
    i64 passed = 0;
    for (i64 length; passed < count && (length = length_at(data, size, *at)) >= 0; passed++)
        *at += 8 + length;
    return passed;
}

/* Write `count` strings to `text` [size], with a NUL behind each. Returns the number of bytes written; -1 if a string has
 * a NUL in it, or does not lie whole within `size` bytes. */
i64 ember_join_strings(const unsigned char *data, i64 size, i64 count, char *text) {
    i64 at = 0, written = 0;
    for (i64 index = 0; index < count; index++) {
        const i64 length = length_at(data, size, at);
        if (length < 0 || memchr(data + at + 8, 0, length))
            return -1;
        memcpy(text + written, data + at + 8, length);
        text[written + length] = 0;
        written += length + 1;
        at += 8 + length;
    }
    return written;
}
