/* Words that people type: how far a wrong one is from a known one, for "did you mean". */
#ifndef COMMON_WORDS_H
#define COMMON_WORDS_H

#include "common/base.h"

#define WORD_BYTES_MAX 64 /* no name of ours is longer; what is longer is cut here */

/* Levenshtein distance: letters to change, add or leave out. */
size_t word_distance(const char *a, const char *b);

#endif
