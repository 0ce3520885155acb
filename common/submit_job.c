/* See submit_job.h. */
#include "common/submit_job.h"

#include <stdio.h>

#include "common/autos.h"
#include "common/job_template.h"
#include "common/json.h"
#include "common/restore_points.h"

/* $1: a JSON array of {n, provider, vm}. */
static const char VM_NAMES[] =
    "SELECT x.n, (SELECT v.name FROM inventory_vms v JOIN inventory_state s"
    " ON s.provider = v.provider AND s.generation = v.generation"
    " WHERE v.provider = x.provider AND v.id = x.vm)"
    " FROM jsonb_to_recordset($1::jsonb) AS x(n int, provider text, vm text)";

/* ---- what the database knows ---- */

static json_t *vm_row(size_t n, const char *provider, const char *vm)
{
    json_t *row = json_object();

    json_set_i64(row, "n", (int64_t)n);
    json_set_text(row, "provider", provider);
    json_set_text(row, "vm", vm);
    return row;
}

static int find_names(struct db *db, const json_t *rows, PGresult **out, struct error *err)
{
    autofree char *text = json_text(rows);

    return db_exec(db, VM_NAMES, DB_PARAMS(text), out, err);
}

int submit_vm_name(struct db *db, const char *provider, const char *vm, char **out,
                   struct error *err)
{
    auto_json *rows = json_array();
    auto_pgresult *names = NULL;

    *out = NULL;
    (void)json_array_append_new(rows, vm_row(0, provider, vm));
    if (find_names(db, rows, &names, err) < 0)
        return -1;
    if (!db_is_null(names, 0, 1))
        *out = xstrdup(db_text(names, 0, 1));
    return 0;
}

/* ---- preparing ---- */

struct preparing { /* one call */
    const struct submit_settings *settings;
    struct db *db;
    const json_t *const *elements;
    json_t **expanded; /* NULL: the element as it is */
    size_t count;
    struct submit_prepared *out;
};

/* An answer about the element is kept with it; -1: the database failed, and nobody is at fault. */
static int refuse(struct submit_prepared *one, const struct error *why, struct error *err)
{
    submit_request_free(STEAL(one->request));
    one->error = *why;
    if (one->problem.status != 0 || !(error_is_retryable(why) || why->code == ERR_INTERNAL))
        return 0;
    *err = *why;
    return -1;
}

static int parse_one(const struct preparing *run, size_t i, const char *vm_name, struct error *err)
{
    struct submit_prepared *one = &run->out[i];
    const json_t *element = run->expanded[i] != NULL ? run->expanded[i] : run->elements[i];
    struct error why = ERROR_NONE;

    if (submit_parse(run->settings, element, vm_name, &one->request, &one->problem, &why) < 0)
        return refuse(one, &why, err);
    return 0;
}

static int parse_all(struct preparing *run, struct error *err)
{
    for (size_t i = 0; i < run->count; i++) {
        struct submit_prepared *one = &run->out[i];
        struct error why = ERROR_NONE;
        if (run->elements[i] == NULL)
            continue;
        *one = (struct submit_prepared){0};
        int rc = job_template_expand(run->db, run->settings->templates, run->elements[i],
                                     &run->expanded[i], &one->problem, &why) < 0
                     ? refuse(one, &why, err)
                     : parse_one(run, i, NULL, err);
        if (rc < 0)
            return -1;
    }
    return 0;
}

static bool is_open(const struct preparing *run, size_t i)
{
    return run->elements[i] != NULL && run->out[i].request != NULL;
}

struct known_provider { /* as it was found the first time */
    struct provider_row row;
    struct field_problem problem;
    struct error why; /* ERR_NONE: it is there */
};

static int find_provider(struct preparing *run, size_t i, struct known_provider *known,
                         struct error *err)
{
    struct submit_prepared *one = &run->out[i];
    const char *name = one->request->submission.provider;

    if (provider_lookup(run->db, name, true, &known->row, &known->problem, &known->why) < 0 &&
        known->problem.status == 0) {
        *err = known->why;
        return -1;
    }
    return 0;
}

/* Each name is looked up once. */
static int find_providers(struct preparing *run, struct error *err)
{
    autofree struct known_provider *known = xcalloc(run->count + 1, sizeof *known);
    auto_json *places = json_object();
    size_t found = 0;

    for (size_t i = 0; i < run->count; i++) {
        struct submit_prepared *one = &run->out[i];
        if (!is_open(run, i))
            continue;
        const char *name = one->request->submission.provider;
        const json_t *place = json_object_get(places, name);
        size_t at = place == NULL ? found : (size_t)json_integer_value(place);
        if (place == NULL) {
            if (find_provider(run, i, &known[found], err) < 0)
                return -1;
            json_set_i64(places, name, (int64_t)found++);
        }
        one->request->provider = known[at].row;
        if (known[at].why.code == ERR_NONE)
            continue;
        one->problem = known[at].problem;
        if (refuse(one, &known[at].why, err) < 0)
            return -1;
    }
    return 0;
}

/* The default directory has the VM's name, not its id. */
static int name_all(struct preparing *run, struct error *err)
{
    auto_json *rows = json_array();
    auto_pgresult *names = NULL;

    for (size_t i = 0; i < run->count; i++) {
        if (is_open(run, i)) {
            const struct job_submission *s = &run->out[i].request->submission;
            (void)json_array_append_new(rows, vm_row(i, s->provider, s->vm_path));
        }
    }
    if (json_array_size(rows) == 0)
        return 0;
    if (find_names(run->db, rows, &names, err) < 0)
        return -1;
    for (int row = 0; row < PQntuples(names); row++) {
        size_t i = (size_t)db_i64(names, row, 0);
        if (db_is_null(names, row, 1))
            continue;
        struct provider_row provider = run->out[i].request->provider;
        submit_request_free(STEAL(run->out[i].request));
        if (parse_one(run, i, db_text(names, row, 1), err) < 0)
            return -1;
        if (run->out[i].request != NULL)
            run->out[i].request->provider = provider;
    }
    return 0;
}

int submit_prepare_all(const struct submit_settings *settings, struct db *db,
                       const json_t *const *elements, size_t count, struct submit_prepared *out,
                       struct error *err)
{
    autofree json_t **expanded = xcalloc(count + 1, sizeof(json_t *));
    struct preparing run = {settings, db, elements, expanded, count, out};
    int rc = 0;

    if (parse_all(&run, err) < 0 || find_providers(&run, err) < 0 || name_all(&run, err) < 0)
        rc = -1;
    for (size_t i = 0; i < count; i++)
        json_decref(expanded[i]);
    return rc;
}

int submit_prepared_take(struct submit_prepared *one, int rc, struct submit_request **out,
                         struct field_problem *problem, struct error *err)
{
    if (rc < 0) {
        submit_request_free(STEAL(one->request));
        return -1;
    }
    if (one->request == NULL) {
        *problem = one->problem;
        *err = one->error;
        return -1;
    }
    *out = STEAL(one->request);
    return 0;
}

int submit_prepare(const struct submit_settings *settings, struct db *db, const json_t *element,
                   struct submit_request **out, struct field_problem *problem, struct error *err)
{
    struct submit_prepared one = {0};
    int rc = submit_prepare_all(settings, db, &element, 1, &one, err);

    return submit_prepared_take(&one, rc, out, problem, err);
}

/* ---- storing ---- */

/* An increment is written beside what it stands on, so by a worker that reaches that. */
static int volume_of(struct db *db, const struct job_submission *s, char **out_volume,
                     struct error *err)
{
    auto_json *spec = json_deep_copy(s->export_spec);

    if (json_is_true(json_object_get(spec, "force_full")))
        (void)json_object_del(spec, "incremental");
    return restore_points_add(db, s->provider, spec, out_volume, err);
}

static struct job_submission submission_of(const struct submit_item *item)
{
    const struct submit_origin *origin = &item->origin;
    struct job_submission s = item->request->submission;

    s.volume = item->request->volume;
    s.provider_kind = item->request->provider.kind;
    s.submitted_by = origin->submitted_by;
    s.trace_id = origin->trace_id;
    s.schedule_id = origin->schedule_id;
    s.policy_id = origin->policy_id;
    s.workflow_run_id = origin->workflow_run_id;
    s.idempotency_key = origin->idempotency_key;
    s.idempotency_hash = origin->idempotency_hash;
    return s;
}

int submit_store_all(struct db *db, const struct submit_item *items, size_t count,
                     struct job_store_submitted *out, struct error *err)
{
    autofree struct job_submission *submissions = xcalloc(count + 1, sizeof *submissions);

    for (size_t i = 0; i < count; i++) {
        struct submit_request *request = items[i].request;
        free(STEAL(request->volume)); /* of an attempt before */
        if (volume_of(db, &request->submission, &request->volume, err) < 0)
            return -1;
        submissions[i] = submission_of(&items[i]);
    }
    return job_store_submit_all(db, submissions, count, out, err);
}

int submit_store(struct db *db, struct submit_request *request, const struct submit_origin *origin,
                 char out_id[64], bool *out_existing, struct error *err)
{
    const struct submit_item item = {request, *origin};
    struct job_store_submitted one;

    if (submit_store_all(db, &item, 1, &one, err) < 0)
        return -1;
    if (one.error.code != ERR_NONE) {
        *err = one.error;
        return -1;
    }
    (void)snprintf(out_id, sizeof one.id, "%s", one.id);
    *out_existing = one.existing;
    return 0;
}
