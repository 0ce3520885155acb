/* Queries of the audit log (rest-api.md section 9). */
#include <stdio.h>
#include <string.h>

#include "common/json.h"
#include "handlers.h"
#include "identity_store.h"

#define TOTAL_EXACT_MAX 10000 /* counting further costs more than it tells */

#define AUDIT_FILTER                                                                 \
    " FROM audit.audit_log WHERE ($1::text IS NULL OR \"user\" = $1)"                \
    " AND ($2::text IS NULL OR action = $2) AND ($3::text IS NULL OR resource = $3)" \
    " AND ($4::text IS NULL OR result = $4) AND ($5::text IS NULL OR ip = $5)"       \
    " AND ($6::text IS NULL OR at >= $6::timestamptz)"                               \
    " AND ($7::text IS NULL OR at < $7::timestamptz)"

static const char *const filter_names[] = {"user", "action", "resource", "result",
                                           "ip",   "since",  "until"};
enum { FILTERS = ARRAY_LEN(filter_names), SINCE = 5, UNTIL = 6 };

/* A time that PostgreSQL cannot read is the caller's error, not ours. */
static int check_time(struct call *call, const char *name, const char *text, struct error *err)
{
    size_t length = text == NULL ? 0 : strlen(text);

    if (text == NULL)
        return 0;
    if (length < 10 || length > 40 || strspn(text, "0123456789") != 4 || text[4] != '-' ||
        strspn(text, "0123456789-:.TZ+ ") != length)
        return call_fail(call, 400, NULL, err, ERR_INVALID, "'%s' must be an RFC 3339 time", name);
    return 0;
}

/* 22xxx of a time like 2026-02-31 comes as an internal error. */
static int query(struct call *call, const char *sql, const char *const *params, size_t count,
                 PGresult **out, struct error *err)
{
    struct error why = ERROR_NONE;

    if (db_exec(call->db, sql, params, count, out, &why) == 0)
        return 0;
    if (why.code == ERR_INTERNAL && (params[SINCE] != NULL || params[UNTIL] != NULL))
        return error_set(err, ERR_INVALID, "'since' or 'until' is not a time that exists");
    *err = why;
    return -1;
}

static int count_rows(struct call *call, const char *const *filters, json_t *answer,
                      struct error *err)
{
    static const char sql[] = "SELECT count(*) FROM (SELECT 1" AUDIT_FILTER " LIMIT 10001) counted";
    auto_pgresult *rows = NULL;
    int64_t total;

    if (query(call, sql, filters, FILTERS, &rows, err) < 0)
        return -1;
    total = db_i64(rows, 0, 0);
    if (total > TOTAL_EXACT_MAX) {
        (void)json_object_set_new(answer, "total_at_least", json_integer(TOTAL_EXACT_MAX));
    } else {
        (void)json_object_set_new(answer, "total", json_integer(total));
    }
    return 0;
}

struct page {
    uint64_t limit;
    uint64_t offset;
    uint64_t cursor; /* 0 = from the newest */
};

/* Newest first; the page ends at the id that the next one starts below. */
static int read_page(struct call *call, const char *const *filters, const struct page *page,
                     json_t *answer, struct error *err)
{
    static const char sql[] =
        "SELECT id, json_build_object('id', id, 'timestamp', to_char(at, '" SQL_TIME "'), 'user',"
        " \"user\", 'action', action, 'resource', resource, 'result', result, 'ip', ip, 'details',"
        " details, 'request_id', request_id, 'method', method, 'path', path, 'status', status,"
        " 'duration_ms', duration_ms, 'user_agent', user_agent)" AUDIT_FILTER
        " AND ($8::bigint = 0 OR id < $8::bigint)"
        " ORDER BY id DESC LIMIT $9::bigint OFFSET $10::bigint";
    const char *params[FILTERS + 3];
    char numbers[3][24];
    auto_pgresult *rows = NULL;
    json_t *list = json_array();

    (void)json_object_set_new(answer, "logs", list);
    (void)snprintf(numbers[0], sizeof numbers[0], "%llu", (unsigned long long)page->cursor);
    (void)snprintf(numbers[1], sizeof numbers[1], "%llu", (unsigned long long)page->limit);
    (void)snprintf(numbers[2], sizeof numbers[2], "%llu", (unsigned long long)page->offset);
    memcpy(params, filters, FILTERS * sizeof *filters);
    for (size_t i = 0; i < 3; i++)
        params[FILTERS + i] = numbers[i];
    if (query(call, sql, params, FILTERS + 3, &rows, err) < 0)
        return -1;
    for (int i = 0; i < PQntuples(rows); i++) {
        json_t *row = NULL;
        if (json_parse(db_text(rows, i, 1), strlen(db_text(rows, i, 1)), MIB, &row, err) < 0)
            return -1;
        (void)json_array_append_new(list, row);
    }
    if ((uint64_t)PQntuples(rows) == page->limit)
        json_set_text(answer, "next_cursor", db_text(rows, PQntuples(rows) - 1, 0));
    return 0;
}

int handle_audit_logs(struct call *call, struct error *err)
{
    static const char *const names[] = {"user",  "action", "resource", "result", "ip", "since",
                                        "until", "limit",  "offset",   "cursor", NULL};
    const char *filters[FILTERS];
    struct page page = {.limit = 100};
    auto_json *answer = json_object();

    if (call_check_query(call, names, err) < 0 ||
        call_query_u64(call, "limit", 1, 1000, &page.limit, err) < 0 ||
        call_query_u64(call, "offset", 0, 10000, &page.offset, err) < 0 ||
        call_query_u64(call, "cursor", 1, INT64_MAX, &page.cursor, err) < 0)
        return -1;
    for (size_t i = 0; i < FILTERS; i++)
        filters[i] = call_query(call, filter_names[i]);
    if (check_time(call, "since", filters[SINCE], err) < 0 ||
        check_time(call, "until", filters[UNTIL], err) < 0 ||
        read_page(call, filters, &page, answer, err) < 0 ||
        count_rows(call, filters, answer, err) < 0)
        return -1;
    call_answer_json(call, 200, json_incref(answer));
    return 0;
}
