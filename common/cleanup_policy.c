/* See cleanup_policy.h. */
#include "common/cleanup_policy.h"

#include "common/autos.h"
#include "common/json.h"
#include "common/paths.h"

int cleanup_policy_spec(const struct config_list *bases, const json_t *fields, const char *fallback,
                        json_t **out, struct error *err)
{
    static const char *const same[] = {"max_count", "max_size", "min_free",
                                       "per_vm",    "preserve", "dry_run"};
    auto_json *spec = json_object();
    autofree char *dir = NULL;

    if (path_confine(bases, field_text(fields, "dir", fallback), &dir, err) < 0)
        return -1;
    for (size_t i = 0; i < ARRAY_LEN(same); i++) {
        json_t *value = json_object_get(fields, same[i]);
        if (value != NULL)
            json_put(spec, same[i], json_incref(value));
    }
    json_put(spec, "max_age_ms", json_integer(field_duration_ms(fields, "max_age", 0)));
    json_set_text(spec, "dir", dir);
    *out = STEAL(spec);
    return 0;
}
