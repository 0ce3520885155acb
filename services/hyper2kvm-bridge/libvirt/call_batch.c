/* The same for many domains: each has a result of its own, and one that fails keeps no other back.
 */
#include <string.h>

#include "call.h"
#include "common/clock.h"
#include "common/json.h"
#include "delete.h"
#include "power.h"
#include "snapshot.h"

static bool flag(const struct hv_call *call, const char *name)
{
    return json_is_true(json_object_get(call->spec, name));
}

static int switch_one(struct hv_call *call, const char *name, size_t index, const char *action,
                      json_t *result, struct error *err)
{
    const struct power_wish wish = {.action = action,
                                    .paused = flag(call, "paused"),
                                    .force = flag(call, "force"),
                                    .index = index};
    auto_domain domain = NULL;

    if (call_find(call, name, &domain, err) < 0)
        return -1;
    return power_apply(call, domain, &wish, result, err);
}

static int snapshot_one(struct hv_call *call, const char *name, size_t index, const char *action,
                        json_t *result, struct error *err)
{
    const char *prefix = json_str(call->spec, "name_prefix");
    const struct snapshot_wish wish = {.name = "",
                                       .prefix = prefix[0] == '\0' ? "snap" : prefix,
                                       .description = json_str(call->spec, "description"),
                                       .disk_only = flag(call, "disk_only"),
                                       .atomic = flag(call, "atomic"),
                                       .index = index};
    auto_domain domain = NULL;

    (void)action;
    if (call_find(call, name, &domain, err) < 0)
        return -1;
    return snapshot_make(call, domain, &wish, result, err);
}

static int delete_one(struct hv_call *call, const char *name, size_t index, const char *action,
                      json_t *result, struct error *err)
{
    const struct delete_wish wish = {.name = name,
                                     .force = flag(call, "force"),
                                     .remove_storage = flag(call, "remove_storage"),
                                     .index = index};

    (void)action;
    if (delete_domain(call, &wish, result, err) < 0)
        return -1;
    if (json_array_size(json_object_get(result, "failed")) == 0)
        return 0;
    return error_set(err, ERR_INTERNAL, "the domain is removed, some of its volumes are not");
}

static const struct operation {
    const char *name;
    const char *action;       /* of a power call */
    const char *force_action; /* with force; NULL: the same */
    int (*run)(struct hv_call *call, const char *name, size_t index, const char *action,
               json_t *result, struct error *err);
} operations[] = {
    {"start", "start", NULL, switch_one},   {"stop", "shutdown", "destroy", switch_one},
    {"reboot", "reboot", NULL, switch_one}, {"pause", "pause", NULL, switch_one},
    {"resume", "resume", NULL, switch_one}, {"snapshot", NULL, NULL, snapshot_one},
    {"delete", NULL, NULL, delete_one},
};

static bool is_away(const struct error *why)
{
    return why->code == ERR_TIMEOUT || why->code == ERR_UNAVAILABLE;
}

/* -1 only when the task is not ours any more. */
static int run_all(struct hv_call *call, const struct operation *operation, json_t *results,
                   size_t *out_failed, struct error *err)
{
    const char *action = operation->force_action != NULL && flag(call, "force")
                             ? operation->force_action
                             : operation->action;
    const json_t *name;
    bool away = false;
    size_t i;

    json_array_foreach(json_object_get(call->spec, "domains"), i, name)
    {
        json_t *result = json_object();
        struct error why = ERROR_NONE;
        int rc;
        (void)json_array_append_new(results, result);
        if (away) {
            rc = error_set(&why, ERR_UNAVAILABLE, "not tried: libvirt went away before");
        } else {
            rc = operation->run(call, json_string_value(name), i, action, result, &why);
        }
        if (rc < 0 && worker_task_check(call->task, err) < 0)
            return -1;
        away = away || (rc < 0 && is_away(&why));
        (void)json_object_del(result, "status");
        json_set_text(result, "domain", json_string_value(name));
        json_put(result, "success", json_boolean(rc == 0));
        if (rc == 0)
            continue;
        ++*out_failed;
        json_set_text(result, "error", why.message);
        json_set_text(result, "code", error_code_name(why.code));
    }
    return 0;
}

static const struct operation *operation_of(const char *name)
{
    for (size_t i = 0; i < ARRAY_LEN(operations); i++) {
        if (strcmp(operations[i].name, name) == 0)
            return &operations[i];
    }
    return NULL;
}

int call_batch(struct hv_call *call, json_t *answer, struct error *err)
{
    const char *name = json_str(call->spec, "operation");
    const struct operation *operation = operation_of(name);
    int64_t started_ms = clock_mono_ms();
    json_t *results = json_array();
    size_t total;
    size_t failed = 0;

    json_put(answer, "results", results);
    if (operation == NULL)
        return error_set(err, ERR_INVALID, "there is no operation '%.32s'", name);
    if (run_all(call, operation, results, &failed, err) < 0)
        return -1;
    total = json_array_size(results);
    json_set_text(answer, "operation", name);
    json_put(answer, "total", json_integer((json_int_t)total));
    json_put(answer, "successful", json_integer((json_int_t)(total - failed)));
    json_put(answer, "failed", json_integer((json_int_t)failed));
    json_put(answer, "duration", json_real((double)(clock_mono_ms() - started_ms) / 1000.0));
    return 0;
}
