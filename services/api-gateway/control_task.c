/* See control_task.h. */
#include "control_task.h"

#include <stdio.h>
#include <string.h>

#include "common/clock.h"
#include "common/json.h"
#include "handlers.h"

#define POLL_FIRST_MS 10 /* a parked worker answers in milliseconds */
#define POLL_LAST_MS  200

/* A task waiting behind exports must not wait: control tasks have slots of their own, and among
 * them those that a person waits for come first. */
static const char insert_sql[] =
    "INSERT INTO tasks (id, kind, class, role, provider_kind, provider, spec, volume, priority,"
    " rank, expires_at) VALUES ($1, $2, 'control', $7, $3, $4, $5, $6, 100, queue_rank(now(), 100),"
    " now() + interval '" CONTROL_KEEP_TEXT "')";
static const char under_way_sql[] =
    "SELECT id FROM tasks WHERE job_id IS NULL AND kind = $1 AND provider = $2 AND spec = $3"
    " AND state IN ('queued', 'leased') AND expires_at > now() ORDER BY seq DESC LIMIT 1";
static const char look_sql[] = "SELECT state, result, error, error_code FROM tasks WHERE id = $1";
static const char get_sql[] =
    "SELECT id, kind, provider, state, " SQL_TIME("created_at") ", " SQL_TIME(
        "expires_at") ", error, error_code, result FROM tasks WHERE id = $1 AND job_id IS NULL";

void control_task_release(struct control_task *task)
{
    json_decref(task->result);
}

bool control_task_is_over(const struct control_task *task)
{
    return strcmp(task->state, "done") == 0 || strcmp(task->state, "failed") == 0 ||
           strcmp(task->state, "cancelled") == 0;
}

static int look(struct call *call, struct control_task *task, struct error *err)
{
    auto_pgresult *rows = NULL;

    if (db_exec(call->db, look_sql, DB_PARAMS(task->id), &rows, err) < 0)
        return -1;
    if (PQntuples(rows) == 0)
        return error_set(err, ERR_NOT_FOUND, "task '%s' is gone", task->id);
    (void)snprintf(task->state, sizeof task->state, "%s", db_text(rows, 0, 0));
    if (!control_task_is_over(task))
        return 0;
    task->result = db_is_null(rows, 0, 1) ? NULL : cell_json(rows, 0, 1);
    (void)snprintf(task->error, sizeof task->error, "%s", db_text(rows, 0, 2));
    if (strcmp(task->state, "done") != 0)
        task->error_code = error_code_from_name(db_text(rows, 0, 3));
    return 0;
}

static int insert(struct call *call, const struct control_request *request,
                  struct control_task *out, struct error *err)
{
    autofree char *spec = json_text(request->spec);
    auto_pgresult *rows = NULL;

    if (request->share) {
        if (db_exec(call->db, under_way_sql, DB_PARAMS(request->kind, request->provider, spec),
                    &rows, err) < 0)
            return -1;
        if (PQntuples(rows) == 1) {
            (void)snprintf(out->id, sizeof out->id, "%s", db_text(rows, 0, 0));
            return 0;
        }
    }
    id_new("task", out->id);
    return db_exec(call->db, insert_sql,
                   DB_PARAMS(out->id, request->kind, request->provider_kind, request->provider,
                             spec, request->volume == NULL ? "" : request->volume,
                             request->bridge ? "bridge" : "exporter"),
                   NULL, err);
}

int control_task_run(struct call *call, const struct control_request *request,
                     struct control_task *out, struct error *err)
{
    int64_t deadline_ms = clock_mono_ms() + request->wait_ms;
    int64_t wait_ms = POLL_FIRST_MS;

    *out = (struct control_task){.state = "queued"};
    if (insert(call, request, out, err) < 0)
        return -1;
    gateway_poke(call->gateway, NULL);
    call_audit(call, "task", out->id);
    for (;;) {
        if (look(call, out, err) < 0)
            return -1;
        if (control_task_is_over(out) || clock_mono_ms() + wait_ms >= deadline_ms)
            return 0;
        if (service_wait(call->gateway->service, wait_ms))
            return 0; /* this gateway stops: the task goes on, its id is the answer */
        wait_ms = wait_ms * 2 < POLL_LAST_MS ? wait_ms * 2 : POLL_LAST_MS;
    }
}

int control_task_fail(struct call *call, const struct control_task *task, json_t *extra_taken,
                      struct error *err)
{
    const char *message = task->error[0] == '\0' ? "the task was given up" : task->error;
    unsigned int status = 500;

    switch (task->error_code) {
    case ERR_INVALID:
    case ERR_NOT_FOUND:
    case ERR_CONFLICT:
    case ERR_DENIED:
    case ERR_LIMIT:
    case ERR_NOT_AVAILABLE:
    case ERR_SOURCE_CHANGED:
        status = 422;
        break;
    case ERR_TIMEOUT:
    case ERR_UNAVAILABLE:
    case ERR_CANCELLED:
        status = 503;
        break;
    case ERR_NONE:
    case ERR_PROTOCOL:
    case ERR_CORRUPT:
    case ERR_INTERNAL:
        break;
    }
    return call_fail(call, status, extra_taken, err,
                     task->error_code == ERR_NONE ? ERR_INTERNAL : task->error_code, "%s", message);
}

void control_task_answer_later(struct call *call, const struct control_task *task)
{
    json_t *answer = json_object();
    autofree char *location = xasprintf("/api/v1/tasks/%s", task->id);

    json_set_text(answer, "task_id", task->id);
    json_set_text(answer, "status", strcmp(task->state, "queued") == 0 ? "pending" : "running");
    json_set_text(answer, "message",
                  strcmp(task->state, "queued") == 0
                      ? "no worker has taken the task yet; ask for it later"
                      : "a worker is at it; ask for the task later");
    json_set_now(answer, "timestamp");
    call_set_header(call, "Location", location);
    call_answer_json(call, 202, answer);
}

int handle_task_get(struct call *call, struct error *err)
{
    static const char *const keys[] = {"task_id", "kind",       "provider",
                                       "state",   "created_at", "expires_at"};
    const char *id = call_param(call, "id");
    auto_pgresult *rows = NULL;
    json_t *answer;

    if (db_exec(call->db, get_sql, DB_PARAMS(id), &rows, err) < 0)
        return -1;
    if (PQntuples(rows) == 0)
        return error_set(err, ERR_NOT_FOUND, "task '%.64s' does not exist", id);
    answer = json_object();
    for (int k = 0; k < (int)ARRAY_LEN(keys); k++)
        (void)json_object_set_new(answer, keys[k], cell_text(rows, 0, k));
    (void)json_object_set_new(answer, "error", cell_text_or_null(rows, 0, 6));
    (void)json_object_set_new(answer, "error_code", cell_text_or_null(rows, 0, 7));
    (void)json_object_set_new(answer, "result", cell_json(rows, 0, 8));
    call_answer_json(call, 200, answer);
    return 0;
}

int control_task_answer(struct call *call, const struct control_task *task, const char *name,
                        struct error *err)
{
    json_t *answer;

    if (!control_task_is_over(task)) {
        control_task_answer_later(call, task);
        return 0;
    }
    if (strcmp(task->state, "done") != 0)
        return control_task_fail(call, task, NULL, err);
    answer = json_deep_copy(json_object_get(task->result, name));
    if (answer == NULL)
        return error_set(err, ERR_PROTOCOL, "the worker's answer holds no %s", name);
    json_set_now(answer, "timestamp");
    call_answer_json(call, 200, answer);
    return 0;
}
