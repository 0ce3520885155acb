/* See handler_util.h. */
#include "handler_util.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "common/clock.h"
#include "common/json.h"
#include "common/parse.h"
#include "common/submit.h"

#define QUERY_VALUES_MAX 1000 /* of one repeatable parameter */

int call_fail_field(struct call *call, const struct field_problem *problem, struct error *err)
{
    struct error cause = *err;
    json_t *extra = json_object();

    if (problem->field[0] != '\0')
        json_set_text(extra, "field", problem->field);
    if (problem->candidate[0] != '\0')
        (void)json_object_set_new(extra, "candidates", json_pack("[s]", problem->candidate));
    error_clear(err);
    return call_fail(call, problem->status == 0 ? 400 : problem->status, extra, err, cause.code,
                     "%s", cause.message);
}

int call_fields(struct call *call, const struct field *table, json_t **out, struct error *err)
{
    auto_json *empty = json_object();
    struct field_problem problem = {0};

    if (fields_canonical(table, "", call->body == NULL ? empty : call->body, out, &problem, err) <
        0)
        return call_fail_field(call, &problem, err);
    return 0;
}

int call_bad_field(struct call *call, const char *field, struct error *err, const char *format, ...)
{
    char message[ERROR_MESSAGE_MAX];
    json_t *extra = json_object();
    va_list args;

    va_start(args, format);
    (void)vsnprintf(message, sizeof message, format, args);
    va_end(args);
    json_set_text(extra, "field", field);
    return call_fail(call, 400, extra, err, ERR_INVALID, "%s", message);
}

json_t *cell_text(const PGresult *rows, int row, int column)
{
    json_t *value;

    if (db_is_null(rows, row, column))
        return json_null();
    value = json_string(db_text(rows, row, column));
    return value == NULL ? json_null() : value; /* the database holds UTF-8 only */
}

json_t *cell_text_or_null(const PGresult *rows, int row, int column)
{
    return db_text(rows, row, column)[0] == '\0' ? json_null() : cell_text(rows, row, column);
}

json_t *cell_json(const PGresult *rows, int row, int column)
{
    json_t *value = NULL;

    if (!db_is_null(rows, row, column))
        value = json_loads(db_text(rows, row, column), JSON_DECODE_ANY, NULL);
    return value == NULL ? json_null() : value;
}

void json_set_now(json_t *object, const char *key)
{
    char now[CLOCK_RFC3339_SIZE];

    clock_rfc3339_now(now);
    json_set_text(object, key, now);
}

int check_time(const char *name, const char *text, struct error *err)
{
    return parse_is_time(text, true)
               ? 0
               : error_set(err, ERR_INVALID, "'%s' must be a time like 2026-03-01T02:00:00Z", name);
}

void page_from(const json_t *canonical, uint32_t limit_default, struct page *out)
{
    out->limit = (uint32_t)field_number(canonical, "limit", limit_default);
    out->offset = (uint32_t)field_number(canonical, "offset", 0);
    out->cursor = field_text(canonical, "cursor", NULL);
}

static int value_of(struct call *call, const struct field *f, const char *name, json_t **out,
                    struct error *err)
{
    const char *values[QUERY_VALUES_MAX];
    size_t count = call_query_all(call, name, values, QUERY_VALUES_MAX);
    struct error why = ERROR_NONE;
    uint64_t number = 0;
    bool yes = false;

    *out = NULL;
    if (count == 0)
        return 0;
    if (f->type == FIELD_TEXT_LIST) {
        *out = json_array();
        for (size_t i = 0; i < count; i++) { /* status=a,b is status=a&status=b */
            if (!json_array_add_split(*out, values[i], ',', false))
                return call_bad_field(call, name, err, "'%s' is not UTF-8", name);
        }
        return 0;
    }
    if (f->type == FIELD_BOOL) {
        if (parse_bool(name, values[0][0] == '\0' ? "true" : values[0], &yes, &why) < 0)
            return call_bad_field(call, name, err, "%s", why.message);
        *out = json_boolean(yes);
        return 0;
    }
    if (f->type == FIELD_NUMBER) {
        if (parse_u64(name, values[0], f->min, f->max, &number, &why) < 0)
            return call_bad_field(call, name, err, "%s", why.message);
        *out = json_integer((json_int_t)number);
        return 0;
    }
    *out = json_string(values[0]);
    return *out == NULL ? call_bad_field(call, name, err, "'%s' is not UTF-8", name) : 0;
}

struct job_submission call_submission(const struct call *call, const char *kind)
{
    const struct retry_config *retry = &call->gateway->retry;

    return (struct job_submission){
        .kind = kind,
        .name = "",
        .provider = "",
        .format = "",
        .priority = SUBMIT_PRIORITY,
        .max_attempts = retry->max_attempts,
        .retry_initial_ms = retry->initial_delay_ms,
        .retry_max_ms = retry->max_delay_ms,
        .submitted_by = call->identity.username,
        .trace_id = call->trace_id,
    };
}

void call_answer_accepted(struct call *call, const char *job_id, const char *location,
                          json_t *more_taken)
{
    json_t *answer = json_object();

    gateway_poke(call->gateway, job_id);
    json_set_text(answer, "job_id", job_id);
    json_set_text(answer, "status", "pending");
    (void)json_object_update(answer, more_taken);
    json_decref(more_taken);
    json_set_now(answer, "timestamp");
    call_set_header(call, "Location", location);
    call_answer_json(call, 202, answer);
}

void call_answer_job(struct call *call, const char *job_id, const char *path)
{
    json_t *more = json_object();
    autofree char *location = xasprintf("/api/v1/jobs/%s", job_id);

    json_set_text(more, "path", path);
    call_answer_accepted(call, job_id, location, more);
}

int query_as_body(struct call *call, const struct field *table, json_t **out, struct error *err)
{
    json_t *body = json_object();

    for (const struct field *f = table; f->name != NULL; f++) {
        const char *names[FIELD_ALIASES_MAX + 1] = {f->name};
        size_t count = 1;
        for (size_t i = 0; i < FIELD_ALIASES_MAX && f->aliases[i] != NULL; i++)
            names[count++] = f->aliases[i];
        for (size_t i = 0; i < count; i++) {
            json_t *value = NULL;
            if (value_of(call, f, names[i], &value, err) < 0) {
                json_decref(body);
                return -1;
            }
            if (value != NULL)
                (void)json_object_set_new(body, names[i], value);
        }
    }
    *out = body;
    return 0;
}

int call_check_owner(struct call *call, const char *job_id, struct error *err)
{
    static const char owner_sql[] = "SELECT submitted_by FROM jobs WHERE id = $1";
    auto_pgresult *rows = NULL;

    if (db_exec(call->db, owner_sql, DB_PARAMS(job_id), &rows, err) < 0)
        return -1;
    if (PQntuples(rows) == 0)
        return error_set(err, ERR_NOT_FOUND, "job '%.64s' does not exist", job_id);
    if (identity_may(&call->identity, "job.cancel") ||
        strcmp(db_text(rows, 0, 0), call->identity.username) == 0)
        return 0;
    return error_set(
        err, ERR_DENIED,
        "permission 'job.cancel' is missing: job '%.64s' was submitted by another user", job_id);
}
