/* See words.h. */
#include "common/words.h"

#include <string.h>

size_t word_distance(const char *a, const char *b)
{
    size_t row[WORD_BYTES_MAX + 1];
    size_t n = strnlen(b, WORD_BYTES_MAX);

    for (size_t j = 0; j <= n; j++)
        row[j] = j;
    for (size_t i = 1; i <= WORD_BYTES_MAX && a[i - 1] != '\0'; i++) {
        size_t diagonal = row[0];
        row[0] = i;
        for (size_t j = 1; j <= n; j++) {
            size_t change = diagonal + (a[i - 1] == b[j - 1] ? 0 : 1);
            diagonal = row[j];
            row[j] = min_u64(min_u64(row[j] + 1, row[j - 1] + 1), change);
        }
    }
    return row[n];
}
