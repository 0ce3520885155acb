/* See may_fail.h. */
#include "common/may_fail.h"

#include <string.h>

#include "common/autos.h"
#include "common/json.h"

static const struct {
    const char *field;
    const char *step; /* the job's field without which it means nothing */
} steps[] = {{"snapshot_on_error", "snapshot"}, {"upload_on_error", "upload"}};

static bool is_wanted(const json_t *job, const char *step)
{
    const json_t *value = json_object_get(job, step);

    return value != NULL && !json_is_false(value);
}

static bool goes_on(const json_t *job, const char *field)
{
    return strcmp(field_text(job, field, "fail"), "continue") == 0;
}

int may_fail_check(const json_t *job, struct field_problem *problem, struct error *err)
{
    static const char *const words[] = {"fail", "continue", NULL};

    for (size_t i = 0; i < ARRAY_LEN(steps); i++) {
        const char *field = steps[i].field;
        if (!word_in(field_text(job, field, "fail"), words)) {
            return field_fail(problem, 400, field, err, ERR_INVALID,
                              "'%s' must be fail or continue", field);
        }
        if (goes_on(job, field) && !is_wanted(job, steps[i].step)) {
            return field_fail(problem, 400, field, err, ERR_INVALID,
                              "'%s' means nothing without '%s'", field, steps[i].step);
        }
    }
    if (goes_on(job, "upload_on_error") && field_bool(job, "stream_upload", false)) {
        return field_fail(
            problem, 422, "upload_on_error", err, ERR_NOT_AVAILABLE,
            "with 'stream_upload' nothing is left when the upload fails: leave it out "
            "or let the job fail");
    }
    return 0;
}

void may_fail_spec(const json_t *job, uint32_t tries, json_t *spec)
{
    for (size_t i = 0; i < ARRAY_LEN(steps); i++) {
        if (!goes_on(job, steps[i].field))
            continue;
        json_set_text(spec, steps[i].field, "continue");
        json_set_i64(spec, "tries_max", tries);
    }
}
