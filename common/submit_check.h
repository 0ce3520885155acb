/* Rules of a job's fields that their types (submit.c's tables) do not say: known words, fields that
 * need or exclude each other. Of submit*.c only; a job is the canonical one, whose export_method is
 * split already. */
#ifndef COMMON_SUBMIT_CHECK_H
#define COMMON_SUBMIT_CHECK_H

#include "common/submit.h"

#define SUBMIT_KEY_REF "default" /* of encrypt */

/* The words of `later` exist in the reference only: 422; others never existed: 400. Lists end with
 * NULL. */
MUST_CHECK int submit_check_word(const char *field, const char *word, const char *const *known,
                                 const char *const *later, struct field_problem *problem,
                                 struct error *err);
/* export_method names a format or a transport method (rest-api.md 1.1): it becomes that member. */
MUST_CHECK int submit_split_export_method(json_t *job, struct field_problem *problem,
                                          struct error *err);
/* All the other rules. Sets members that follow from others. */
MUST_CHECK int submit_check_rules(const struct submit_settings *settings, json_t *job,
                                  struct field_problem *problem, struct error *err);
/* A delay that is given alone moves the other's default out of its way. */
void submit_retry_delays(const struct submit_settings *settings, const json_t *retry,
                         int64_t *out_initial, int64_t *out_max);
/* Naming the codec asks for compression. */
bool submit_wants_compression(const json_t *job);
/* Naming where it goes asks for it. */
bool submit_wants_import(const json_t *job);
/* force_full asks for an export that later ones go on from as well: one that goes on from nothing.
 */
bool submit_wants_restore_point(const json_t *job);

#endif
