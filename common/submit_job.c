/* See submit_job.h. */
#include "common/submit_job.h"

#include "common/autos.h"
#include "common/job_template.h"
#include "common/json.h"
#include "common/restore_points.h"

static const char VM_NAME[] = "SELECT v.name FROM inventory_vms v JOIN inventory_state s"
                              " ON s.provider = v.provider AND s.generation = v.generation"
                              " WHERE v.provider = $1 AND v.id = $2";

int submit_vm_name(struct db *db, const char *provider, const char *vm, char **out,
                   struct error *err)
{
    auto_pgresult *rows = NULL;

    *out = NULL;
    if (db_exec(db, VM_NAME, DB_PARAMS(provider, vm), &rows, err) < 0)
        return -1;
    if (PQntuples(rows) == 1)
        *out = xstrdup(db_text(rows, 0, 0));
    return 0;
}

int submit_prepare(const struct submit_settings *settings, struct db *db, const json_t *element,
                   struct submit_request **out, struct field_problem *problem, struct error *err)
{
    auto_submit_request *request = NULL;
    autofree char *vm_name = NULL;
    auto_json *expanded = NULL;
    struct provider_row provider;
    const struct job_submission *s;

    if (job_template_expand(db, settings->templates, element, &expanded, problem, err) < 0)
        return -1;
    if (expanded != NULL)
        element = expanded;
    if (submit_parse(settings, element, NULL, &request, problem, err) < 0)
        return -1;
    s = &request->submission;
    if (provider_lookup(db, s->provider, true, &provider, problem, err) < 0 ||
        submit_vm_name(db, s->provider, s->vm_path, &vm_name, err) < 0)
        return -1;
    if (vm_name != NULL) { /* the default directory has the VM's name, not its id */
        submit_request_free(STEAL(request));
        if (submit_parse(settings, element, vm_name, &request, problem, err) < 0)
            return -1;
    }
    request->provider = provider;
    *out = STEAL(request);
    return 0;
}

/* An increment is written beside what it stands on, so by a worker that reaches that. */
static int volume_of(struct db *db, const struct job_submission *s, char **out_volume,
                     struct error *err)
{
    auto_json *spec = json_deep_copy(s->export_spec);

    if (json_is_true(json_object_get(spec, "force_full")))
        (void)json_object_del(spec, "incremental");
    return restore_points_add(db, s->provider, spec, out_volume, err);
}

int submit_store(struct db *db, struct submit_request *request, const struct submit_origin *origin,
                 char out_id[64], bool *out_existing, struct error *err)
{
    struct job_submission *s = &request->submission;
    autofree char *volume = NULL;

    if (volume_of(db, s, &volume, err) < 0)
        return -1;
    s->volume = volume;
    s->provider_kind = request->provider.kind;
    s->submitted_by = origin->submitted_by;
    s->trace_id = origin->trace_id;
    s->schedule_id = origin->schedule_id;
    s->policy_id = origin->policy_id;
    s->workflow_run_id = origin->workflow_run_id;
    s->idempotency_key = origin->idempotency_key;
    s->idempotency_hash = origin->idempotency_hash;
    return job_store_submit(db, s, out_id, out_existing, err);
}
