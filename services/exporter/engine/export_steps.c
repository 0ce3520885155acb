/* Steps that the export goes on without, because the job says so (on_error: continue).
 *
 * Each is recorded, "<code> <message>": the attempt that finishes the export tells of it, and need
 * not be the one that it failed in. */
#include <string.h>

#include "common/json.h"
#include "services/exporter/engine/export_keys.h"
#include "services/exporter/engine/export_run.h"

static const struct {
    const char *type;
    const char *list; /* where a hook of that type stands */
    const char *key;
} steps[] = {
    [EXPORT_STEP_SHUTDOWN] = {"shutdown", "pre", EXPORT_KEY_FAILED "shutdown"},
    [EXPORT_STEP_SNAPSHOT] = {"snapshot", "pre", EXPORT_KEY_FAILED "snapshot"},
    [EXPORT_STEP_UPLOAD] = {"upload", "post", EXPORT_KEY_FAILED "upload"},
};

bool export_goes_on(const struct export_run *run, bool asked, const struct error *cause)
{
    if (!asked || cause->code == ERR_CANCELLED || worker_task_stop_reason(run->task) != WORKER_RUNS)
        return false;
    return !error_is_retryable(cause) ||
           worker_task_attempt(run->task) + 1 >= run->options.tries_max;
}

int export_step_failed(struct export_run *run, enum export_step step, const struct error *cause,
                       struct error *err)
{
    autofree char *value = xasprintf("%s %s", error_code_name(cause->code), cause->message);

    return worker_task_record_put(run->task, steps[step].key, value, err);
}

int export_step_done(struct export_run *run, enum export_step step, struct error *err)
{
    const char *value = worker_task_record_get(run->task, steps[step].key);

    return value == NULL || value[0] == '\0'
               ? 0
               : worker_task_record_put(run->task, steps[step].key, "", err);
}

/* The manifest was complete before the upload began: its warning is the result's alone. */
static void warn_of_upload(json_t *result, const char *message)
{
    autofree char *text = xasprintf("the export is not uploaded: %s", message);
    json_t *warnings = json_object_get(result, "warnings");
    json_t *holder = json_object(); /* json_set_text repairs what is not UTF-8 */

    json_set_text(holder, "w", text);
    if (json_is_array(warnings) && json_array_append(warnings, json_object_get(holder, "w")) < 0)
        abort(); /* out of memory */
    json_decref(holder);
}

void export_steps_result(const struct export_run *run, json_t *result)
{
    json_t *list = json_array();

    for (size_t i = 0; i < ARRAY_LEN(steps); i++) {
        const char *value = worker_task_record_get(run->task, steps[i].key);
        const char *blank = value == NULL ? NULL : strchr(value, ' ');
        autofree char *code = blank == NULL ? NULL : xstrndup(value, (size_t)(blank - value));
        json_t *item;
        if (code == NULL)
            continue;
        item = export_append(list);
        json_set_text(item, "when", steps[i].list);
        json_set_text(item, "type", steps[i].type);
        json_set_text(item, "error", blank + 1);
        json_set_text(item, "error_code", code);
        if (i == EXPORT_STEP_UPLOAD)
            warn_of_upload(result, blank + 1);
    }
    if (json_array_size(list) > 0)
        (void)json_object_set(result, "hooks_failed", list);
    json_decref(list);
}
