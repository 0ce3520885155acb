/* See shutdown_wish.h. */
#include "common/shutdown_wish.h"

#include "common/autos.h"
#include "common/json.h"

const char *const shutdown_policies[] = {"fail", "power_off", "continue", NULL};

static bool is_wanted(const json_t *options)
{
    return field_bool(options, "shutdown_vm", false);
}

int shutdown_wish_check(const json_t *options, struct field_problem *problem, struct error *err)
{
    static const char *const more[] = {"shutdown_timeout", "shutdown_on_error", "power_on_after"};

    for (size_t i = 0; i < ARRAY_LEN(more) && !is_wanted(options); i++) {
        const json_t *value = json_object_get(options, more[i]);
        autofree char *field = xasprintf("options.%s", more[i]);
        if (value != NULL && !json_is_false(value)) {
            return field_fail(problem, 400, field, err, ERR_INVALID,
                              "'%s' means nothing without 'options.shutdown_vm'", field);
        }
    }
    if (word_in(field_text(options, "shutdown_on_error", "fail"), shutdown_policies))
        return 0;
    return field_fail(problem, 400, "options.shutdown_on_error", err, ERR_INVALID,
                      "'options.shutdown_on_error' must be fail, power_off or continue");
}

json_t *shutdown_wish_spec(const json_t *options)
{
    json_t *spec;

    if (!is_wanted(options))
        return NULL;
    spec = json_object();
    json_set_i64(spec, "timeout_ms",
                 field_duration_ms(options, "shutdown_timeout", SHUTDOWN_TIMEOUT_MS));
    json_set_text(spec, "on_error", field_text(options, "shutdown_on_error", "fail"));
    json_put(spec, "power_on", json_boolean(field_bool(options, "power_on_after", false)));
    return spec;
}
