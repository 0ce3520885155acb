/* What is done to jobs: submit, cancel, retry (rest-api.md 3.1, 3.2, 3.7). */
#include <openssl/sha.h>
#include <stdio.h>
#include <string.h>

#include "common/autos.h"
#include "common/job_store.h"
#include "common/json.h"
#include "common/submit_job.h"
#include "handlers.h"
#include "job_view.h"

#define IDEMPOTENCY_KEY_MAX 200 /* with "/<index>" it stays well below an index entry's limit */
#define ELEMENT_KEY_SIZE    (IDEMPOTENCY_KEY_MAX + 24)
#define CANCEL_IDS_MAX      1000
#define REASON_MAX          500

static const char created_sql[] =
    "SELECT status, " SQL_TIME("created_at") " FROM jobs WHERE id = $1";

/* ---- submit ---- */

struct submit_run { /* one request while it is worked on */
    struct submit_batch batch;
    struct submit_prepared *prepared; /* one for each element */
    const char *idempotency_key;      /* NULL: none */
    uint8_t hash[SHA256_DIGEST_LENGTH];
    json_t *job_ids;
    json_t *errors;
    bool existing; /* the last one was there already */
};

static void submit_run_free(struct submit_run *run)
{
    for (size_t i = 0; run->prepared != NULL && i < run->batch.count; i++)
        submit_request_free(run->prepared[i].request);
    free(run->prepared);
    json_decref(run->job_ids);
    json_decref(run->errors);
    free(run);
}
DEFINE_AUTO(submit_run, struct submit_run, submit_run_free)

struct submit_settings submit_settings_of(const struct gateway *gateway,
                                          const struct seal_key *exports_key)
{
    return (struct submit_settings){.bases = &gateway->bases,
                                    .hyper2kvm = &gateway->hyper2kvm,
                                    .libvirt = &gateway->libvirt,
                                    .retry = &gateway->retry,
                                    .exports_key = exports_key,
                                    .hooks = &gateway->hooks,
                                    .templates = &gateway->templates,
                                    .windows = &gateway->scheduler.maintenance_windows};
}

int submit_may(struct call *call, const struct submit_request *request,
               struct field_problem *problem, struct error *err)
{
    if (json_object_get(request->definition, "cleanup") != NULL &&
        !identity_may(&call->identity, "job.delete")) {
        return field_fail(problem, 403, "cleanup", err, ERR_DENIED,
                          "'cleanup' removes exports: permission 'job.delete' is missing");
    }
    if (field_bool(request->definition, "enable_cbt", false) &&
        !identity_may(&call->identity, "vm.operate")) {
        return field_fail(problem, 403, "enable_cbt", err, ERR_DENIED,
                          "'enable_cbt' edits the VM: permission 'vm.operate' is missing");
    }
    if (field_bool(json_object_get(request->definition, "options"), "shutdown_vm", false) &&
        !identity_may(&call->identity, "vm.operate")) {
        return field_fail(problem, 403, "options.shutdown_vm", err, ERR_DENIED,
                          "'shutdown_vm' stops the VM: permission 'vm.operate' is missing");
    }
    if (field_bool(json_object_get(request->definition, "options"), "remove_cdrom", false) &&
        !identity_may(&call->identity, "vm.operate")) {
        return field_fail(problem, 403, "options.remove_cdrom", err, ERR_DENIED,
                          "'remove_cdrom' edits the VM: permission 'vm.operate' is missing");
    }
    return 0;
}

/* Refused before the database is asked: what is missing there is not this caller's to know. */
static int check_permissions(struct call *call, const struct submit_settings *settings,
                             const json_t *element, struct field_problem *problem,
                             struct error *err)
{
    static const char *const fields[] = {"cleanup", "enable_cbt", "options", "pre_hooks"};
    auto_submit_request *request = NULL;
    bool any = false;

    if (json_object_get(element, "template") != NULL)
        return 0; /* what the template says is checked when it is known */
    for (size_t i = 0; i < ARRAY_LEN(fields); i++)
        any = any || json_object_get(element, fields[i]) != NULL;
    if (!any)
        return 0;
    if (submit_parse(settings, element, NULL, &request, problem, err) < 0)
        return -1;
    return submit_may(call, request, problem, err);
}

/* Of elements[0 .. count): permissions, then the database, then permissions of what templates say.
 */
static int prepare(struct call *call, const json_t *const *elements, size_t count,
                   struct submit_prepared *out, struct error *err)
{
    auto_seal_key *key = call->gateway->master == NULL
                             ? NULL
                             : seal_master_derive(call->gateway->master, SEAL_EXPORTS);
    struct submit_settings settings = submit_settings_of(call->gateway, key);
    autofree const json_t **allowed = xcalloc(count, sizeof(json_t *));

    for (size_t i = 0; i < count; i++) {
        struct submit_prepared *one = &out[i];
        if (check_permissions(call, &settings, elements[i], &one->problem, &one->error) == 0)
            allowed[i] = elements[i];
    }
    if (submit_prepare_all(&settings, call->db, allowed, count, out, err) < 0)
        return -1;
    for (size_t i = 0; i < count; i++) {
        struct submit_prepared *one = &out[i];
        if (one->request != NULL && submit_may(call, one->request, &one->problem, &one->error) < 0)
            submit_request_free(STEAL(one->request));
    }
    return 0;
}

int submit_element(struct call *call, const json_t *element, struct submit_request **out,
                   struct field_problem *problem, struct error *err)
{
    struct submit_prepared one = {0};
    int rc = prepare(call, &element, 1, &one, err);

    return submit_prepared_take(&one, rc, out, problem, err);
}

static void add_error(struct submit_run *run, size_t index, const struct field_problem *problem,
                      const struct error *why)
{
    json_t *item = json_object();

    json_set_i64(item, "index", (int64_t)index);
    if (problem->field[0] != '\0') {
        json_set_text(item, "field", problem->field);
    } else {
        (void)json_object_set_new(item, "field", json_null());
    }
    json_set_text(item, "error", why->message);
    json_set_text(item, "code", error_code_name(why->code));
    if (problem->candidate[0] != '\0')
        (void)json_object_set_new(item, "candidates", json_pack("[s]", problem->candidate));
    (void)json_array_append_new(run->errors, item);
}

/* Failures that are nobody's fault in the request end it as a whole. */
static bool is_ours(const struct error *err)
{
    return error_is_retryable(err) || err->code == ERR_INTERNAL;
}

/* All elements are looked at before anything is stored. */
static int prepare_all(struct call *call, struct submit_run *run, struct error *err)
{
    size_t count = run->batch.count;

    run->prepared = xcalloc(count, sizeof *run->prepared);
    for (size_t i = 0; i < count; i += JOB_STORE_SUBMIT_MAX) {
        if (prepare(call, &run->batch.elements[i], (size_t)min_u64(count - i, JOB_STORE_SUBMIT_MAX),
                    &run->prepared[i], err) < 0)
            return -1;
    }
    for (size_t i = 0; i < count; i++) {
        const struct submit_prepared *one = &run->prepared[i];
        if (one->request != NULL)
            continue;
        if (is_ours(&one->error) || run->batch.single) {
            *err = one->error;
            return run->batch.single && one->problem.status != 0
                       ? call_fail_field(call, &one->problem, err)
                       : -1;
        }
        add_error(run, i, &one->problem, &one->error);
    }
    return 0;
}

struct element { /* on its way into the store */
    size_t index;
    char key[ELEMENT_KEY_SIZE];
};

struct store_group { /* what is stored with one call: elements that were not refused */
    size_t count;
    size_t count_max;
    struct element *elements;
    struct submit_item *items;
    struct job_store_submitted *stored;
};

static void store_group_release(struct store_group *group)
{
    free(group->elements);
    free(group->items);
    free(group->stored);
}

static void add_to_group(const struct call *call, const struct submit_run *run, size_t i,
                         struct store_group *group)
{
    struct element *element = &group->elements[group->count];
    struct submit_item *item = &group->items[group->count++];

    element->index = i;
    *item = (struct submit_item){
        .request = run->prepared[i].request,
        .origin = {.submitted_by = call->identity.username, .trace_id = call->trace_id}};
    if (run->idempotency_key == NULL)
        return;
    if (run->batch.single) {
        (void)snprintf(element->key, sizeof element->key, "%s", run->idempotency_key);
    } else {
        (void)snprintf(element->key, sizeof element->key, "%s/%zu", run->idempotency_key, i);
    }
    item->origin.idempotency_key = element->key;
    item->origin.idempotency_hash = run->hash;
}

/* Stores the next of the request, from *next on: the good ones into ids, the others into errors. */
static int store_group(struct call *call, struct submit_run *run, size_t *next,
                       struct store_group *group, json_t *ids, struct error *err)
{
    group->count = 0;
    for (; *next < run->batch.count && group->count < group->count_max; ++*next) {
        if (run->prepared[*next].request != NULL)
            add_to_group(call, run, *next, group);
    }
    if (submit_store_all(call->db, group->items, group->count, group->stored, err) < 0)
        return -1;
    for (size_t i = 0; i < group->count; i++) {
        const struct job_store_submitted *stored = &group->stored[i];
        if (stored->error.code == ERR_NONE) {
            (void)json_array_append_new(ids, json_string(stored->id));
            run->existing = stored->existing;
        } else if (run->batch.single) {
            *err = stored->error;
            return -1;
        } else {
            add_error(run, group->elements[i].index, &(struct field_problem){0}, &stored->error);
        }
    }
    return 0;
}

static int store_each(struct call *call, struct submit_run *run, json_t *ids, struct error *err)
{
    size_t count_max = (size_t)min_u64(run->batch.count, JOB_STORE_SUBMIT_MAX);
    CLEANUP(store_group_release)
    struct store_group group = {.count_max = count_max,
                                .elements = xcalloc(count_max, sizeof *group.elements),
                                .items = xcalloc(count_max, sizeof *group.items),
                                .stored = xcalloc(count_max, sizeof *group.stored)};

    for (size_t next = 0; next < run->batch.count;) {
        if (store_group(call, run, &next, &group, ids, err) < 0)
            return -1;
    }
    return 0;
}

/* All or nothing, in one transaction. */
static int store_atomic(struct call *call, struct submit_run *run, struct error *err)
{
    auto_json *ids = json_array();

    if (json_array_size(run->errors) > 0)
        return 0;
    if (db_begin(call->db, err) < 0)
        return -1;
    if (store_each(call, run, ids, err) < 0 || json_array_size(run->errors) > 0) {
        db_rollback(call->db);
        return err->code == ERR_NONE ? 0 : -1;
    }
    if (db_commit(call->db, err) < 0)
        return -1;
    (void)json_array_extend(run->job_ids, ids);
    return 0;
}

/* The facts of a single accepted job: pending for a new one, as it is now for a repeat. */
static int add_single(struct call *call, const char *id, bool existing, json_t *answer,
                      struct error *err)
{
    auto_pgresult *rows = NULL;

    if (db_exec(call->db, created_sql, DB_PARAMS(id), &rows, err) < 0)
        return -1;
    json_set_text(answer, "job_id", id);
    json_set_text(answer, "status",
                  existing && PQntuples(rows) == 1 ? job_status_shown(db_text(rows, 0, 0))
                                                   : "pending");
    if (PQntuples(rows) == 1)
        (void)json_object_set_new(answer, "created_at", cell_text(rows, 0, 1));
    return 0;
}

static unsigned int submit_status(const struct call *call, const struct submit_run *run)
{
    bool is_short = (call->route->flags & ROUTE_SHORT) != 0;

    if (run->batch.single)
        return is_short || run->existing ? 200 : 201;
    if (json_array_size(run->errors) == 0)
        return 200;
    return json_array_size(run->job_ids) == 0 ? 422 : 207;
}

static int answer_submit(struct call *call, struct submit_run *run, struct error *err)
{
    auto_json *answer = json_object();
    size_t accepted = json_array_size(run->job_ids);
    unsigned int status = submit_status(call, run);
    const char *id = json_string_value(json_array_get(run->job_ids, 0));

    if (accepted == 1 && add_single(call, id, run->existing, answer, err) < 0)
        return -1;
    if (status == 201) {
        autofree char *location = xasprintf("/api/v1/jobs/%s", id);
        call_set_header(call, "Location", location);
    }
    if (status == 422) { /* the one shape of errors, with what every element lacks */
        json_set_text(answer, "error", "no job was accepted");
        json_set_text(answer, "code", "invalid");
        json_set_text(answer, "request_id", call->request_id);
    }
    (void)json_object_set(answer, "job_ids", run->job_ids);
    json_set_i64(answer, "accepted", (int64_t)accepted);
    json_set_i64(answer, "rejected", (int64_t)(run->batch.count - accepted));
    (void)json_object_set(answer, "errors", run->errors);
    json_set_now(answer, "timestamp");
    if (accepted == 1)
        call_resource(call, "job", id);
    call_answer_json(call, status, STEAL(answer));
    return 0;
}

/* Same key and same body = same job; the body is compared in canonical form, and without secrets: a
 * plain hash over a passphrase would let others try passphrases against it. */
static int read_idempotency(struct call *call, struct submit_run *run, struct error *err)
{
    const char *key = call_header(call, "Idempotency-Key");
    auto_json *body = NULL;
    autofree char *text = NULL;

    if (key == NULL)
        return 0;
    if (key[0] == '\0' || strlen(key) > IDEMPOTENCY_KEY_MAX) {
        return call_bad_field(call, "Idempotency-Key", err,
                              "'Idempotency-Key' must have 1 to %d bytes", IDEMPOTENCY_KEY_MAX);
    }
    for (const char *p = key; *p != '\0'; p++) {
        if (*p < 0x21 || *p > 0x7e) {
            return call_bad_field(call, "Idempotency-Key", err,
                                  "'Idempotency-Key' must be printable ASCII without spaces");
        }
    }
    body = json_mask_secrets(call->body);
    text = json_dumps(body, JSON_COMPACT | JSON_SORT_KEYS);
    if (text == NULL)
        abort(); /* out of memory */
    (void)SHA256((const unsigned char *)text, strlen(text), run->hash);
    run->idempotency_key = key;
    return 0;
}

int handle_job_submit(struct call *call, struct error *err)
{
    CLEANUP(submit_run_auto) struct submit_run *run = xcalloc(1, sizeof *run);
    struct field_problem problem = {0};

    run->job_ids = json_array();
    run->errors = json_array();
    if (!identity_may(&call->identity, "vm.export"))
        return error_set(err, ERR_DENIED, "permission 'vm.export' is missing");
    if (call->body == NULL)
        return call_bad_field(call, "vm_path", err, "'vm_path' is missing");
    if (submit_split(call->body, &run->batch, &problem, err) < 0)
        return call_fail_field(call, &problem, err);
    if (read_idempotency(call, run, err) < 0 || prepare_all(call, run, err) < 0)
        return -1;
    if ((run->batch.atomic ? store_atomic(call, run, err)
                           : store_each(call, run, run->job_ids, err)) < 0)
        return -1;
    if (json_array_size(run->job_ids) > 0)
        gateway_poke(call->gateway, json_string_value(json_array_get(run->job_ids, 0)));
    return answer_submit(call, run, err);
}

/* ---- cancel, retry ---- */

static const struct field cancel_fields[] = {
    {"job_ids", {"job_id", "id"}, FIELD_ANY, 0, 0, NULL},
    {"reason", {NULL}, FIELD_TEXT, 0, REASON_MAX, NULL},
    {"discard", {NULL}, FIELD_BOOL, 0, 0, NULL},
    {0},
};

static int cancel_one(struct call *call, const char *job_id, const json_t *options,
                      struct error *err)
{
    if (call_check_owner(call, job_id, err) < 0)
        return -1;
    return job_store_cancel(call->db, job_id, call->identity.username,
                            field_text(options, "reason", ""),
                            field_bool(options, "discard", false), err);
}

int handle_job_cancel(struct call *call, struct error *err)
{
    const char *job_id = call_param(call, "id");
    auto_json *options = NULL;
    json_t *answer;

    call_resource(call, "job", job_id);
    if (call_fields(call, cancel_fields, &options, err) < 0)
        return -1;
    if (json_object_get(options, "job_ids") != NULL)
        return call_bad_field(call, "job_ids", err, "'job_ids': the path names the job already");
    if (cancel_one(call, job_id, options, err) < 0)
        return -1;
    gateway_poke(call->gateway, job_id);
    answer = json_pack("{s:[s], s:[], s:{}}", "cancelled", job_id, "failed", "errors");
    json_set_text(answer, "job_id", job_id);
    json_set_now(answer, "timestamp");
    call_answer_json(call, 200, answer);
    return 0;
}

/* The ids of the body, or ?id= and ?job_id=. New reference, at least one text. */
static int cancel_ids(struct call *call, const json_t *options, json_t **out, struct error *err)
{
    static const char *const names[] = {"id", "job_id"};
    const json_t *given = json_object_get(options, "job_ids");
    auto_json *ids = json_array();
    const json_t *item;
    size_t i;

    if (json_is_string(given)) {
        (void)json_array_append_new(ids, json_string(json_string_value(given)));
    } else if (given != NULL && !json_is_array(given)) {
        return call_bad_field(call, "job_ids", err, "'job_ids' must be a list of texts");
    }
    json_array_foreach(given, i, item)
    {
        if (!json_is_string(item) || strlen(json_string_value(item)) != json_string_length(item))
            return call_bad_field(call, "job_ids", err, "'job_ids' must be a list of texts");
        (void)json_array_append_new(ids, json_string(json_string_value(item)));
    }
    for (size_t k = 0; k < ARRAY_LEN(names); k++) {
        const char *values[CANCEL_IDS_MAX];
        size_t count = call_query_all(call, names[k], values, CANCEL_IDS_MAX);
        for (size_t v = 0; v < count; v++)
            (void)json_array_append_new(ids, json_string(values[v]));
    }
    if (json_array_size(ids) == 0 || json_array_size(ids) > CANCEL_IDS_MAX) {
        return call_bad_field(call, "job_ids", err, "'job_ids' must name 1 to %d jobs",
                              CANCEL_IDS_MAX);
    }
    *out = STEAL(ids);
    return 0;
}

int handle_job_cancel_many(struct call *call, struct error *err)
{
    auto_json *options = NULL;
    auto_json *ids = NULL;
    auto_json *answer = json_pack("{s:[], s:[], s:{}}", "cancelled", "failed", "errors");
    size_t i;
    json_t *item;

    if (call_fields(call, cancel_fields, &options, err) < 0 ||
        cancel_ids(call, options, &ids, err) < 0)
        return -1;
    json_array_foreach(ids, i, item)
    {
        const char *id = json_string_value(item);
        struct error why = ERROR_NONE;
        if (cancel_one(call, id, options, &why) == 0) {
            (void)json_array_append(json_object_get(answer, "cancelled"), item);
            continue;
        }
        if (is_ours(&why)) {
            *err = why;
            return -1;
        }
        (void)json_array_append(json_object_get(answer, "failed"), item);
        json_set_text(json_object_get(answer, "errors"), id, why.message);
    }
    if (json_array_size(json_object_get(answer, "cancelled")) > 0)
        gateway_poke(call->gateway, NULL);
    if (json_array_size(ids) == 1)
        call_resource(call, "job", json_string_value(json_array_get(ids, 0)));
    json_set_now(answer, "timestamp");
    call_answer_json(call, 200, STEAL(answer));
    return 0;
}

int handle_job_retry(struct call *call, struct error *err)
{
    static const char *const no_keys[] = {NULL};
    const char *job_id = call_param(call, "id");
    json_t *answer;

    call_resource(call, "job", job_id);
    if (call->body != NULL && json_check_keys(call->body, no_keys, err) < 0)
        return -1;
    if (job_store_retry(call->db, job_id, call->identity.username, err) < 0)
        return -1;
    gateway_poke(call->gateway, job_id);
    answer = json_object();
    json_set_text(answer, "job_id", job_id);
    json_set_text(answer, "status", "pending");
    json_set_now(answer, "timestamp");
    call_answer_json(call, 202, answer);
    return 0;
}
