/* Lists of jobs: GET with parameters, POST with the same names in a body (rest-api.md 3.6). */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "common/json.h"
#include "common/parse.h"
#include "common/strbuf.h"
#include "handlers.h"
#include "job_view.h"

#define NUMBER_TEXT       24
#define IDS_MAX           1000
#define CURSOR_US_MAX     (UINT64_C(1) << 53) /* year 2255; exact as a double, too */
#define STATUSES_TEXT_MAX 128                 /* all seven need 63 bytes */

static const char *const shown_statuses[] = {
    "pending", "running", "completed", "failed", "cancelled", "paused", "cancelling", "all", NULL};
static const char *const sorts[] = {"-created_at", "created_at", NULL};

static const struct field query_fields[] = {
    {"job_ids", {"job_id", "id"}, FIELD_ANY, 0, 0, NULL},
    {"status", {NULL}, FIELD_ANY, 0, 0, NULL},
    {"all", {NULL}, FIELD_BOOL, 0, 0, NULL},
    {"archived", {NULL}, FIELD_BOOL, 0, 0, NULL},
    {"provider", {NULL}, FIELD_TEXT, 1, 63, NULL},
    {"vm", {"vm_path", "vm_name"}, FIELD_TEXT, 1, FIELD_TEXT_MAX, NULL},
    {"submitted_by", {NULL}, FIELD_TEXT, 1, 127, NULL},
    {"since", {NULL}, FIELD_TEXT, 1, 40, NULL},
    {"until", {NULL}, FIELD_TEXT, 1, 40, NULL},
    {"sort", {NULL}, FIELD_TEXT, 1, 32, NULL},
    {"schedule_id", {NULL}, FIELD_TEXT, 1, 63, NULL},
    PAGE_FIELDS,
    {0},
};
/* How the same names look in a query string. */
static const struct field parameter_fields[] = {
    {"job_ids", {"job_id", "id"}, FIELD_TEXT_LIST, 0, 0, NULL},
    {"status", {NULL}, FIELD_TEXT_LIST, 0, 0, NULL},
    {"all", {NULL}, FIELD_BOOL, 0, 0, NULL},
    {"archived", {NULL}, FIELD_BOOL, 0, 0, NULL},
    {"provider", {NULL}, FIELD_TEXT, 0, 0, NULL},
    {"vm", {"vm_path", "vm_name"}, FIELD_TEXT, 0, 0, NULL},
    {"submitted_by", {NULL}, FIELD_TEXT, 0, 0, NULL},
    {"since", {NULL}, FIELD_TEXT, 0, 0, NULL},
    {"until", {NULL}, FIELD_TEXT, 0, 0, NULL},
    {"sort", {NULL}, FIELD_TEXT, 0, 0, NULL},
    {"schedule_id", {NULL}, FIELD_TEXT, 0, 0, NULL},
    PAGE_FIELDS,
    {0},
};

/* Filters $1..$9: ids, statuses, provider, vm, submitted_by, since, until, kind, schedule. Each
 * call's plan is made for its parameters (db.h): a filter not given is no part of it, and a state
 * is known to it. So it sees which index answers, and that one state's jobs stand in jobs_status or
 * jobs_final in the order asked for; states that come out of a sub-select had it read the whole
 * table. */
#define IS_STATUS                                                       \
    "CASE WHEN $2::text[] IS NULL THEN true"                            \
    " WHEN cardinality($2::text[]) = 1 THEN j.status = ($2::text[])[1]" \
    " ELSE j.status = ANY ($2::text[]) END"
#define FROM_JOBS(table)                                                \
    " FROM " table " j WHERE ($1::jsonb IS NULL OR j.id = ANY (ARRAY("  \
    "SELECT jsonb_array_elements_text($1::jsonb))))"                    \
    " AND " IS_STATUS " AND ($3::text IS NULL OR j.provider = $3)"      \
    " AND ($4::text IS NULL OR j.vm_path = $4 OR j.vm_name = $4)"       \
    " AND ($5::text IS NULL OR j.submitted_by = $5)"                    \
    " AND ($6::timestamptz IS NULL OR j.created_at >= $6::timestamptz)" \
    " AND ($7::timestamptz IS NULL OR j.created_at < $7::timestamptz)"  \
    " AND ($8::text IS NULL OR j.kind = $8)"                            \
    " AND ($9::text IS NULL OR j.schedule_id = $9)"
/* In the order of seq, as the indexes of the other filters stand; a list of a time in that of
 * created_at, or all jobs on its other side would be passed over. $10, $11: where the page before
 * ended, the second in such a list only. */
#define IS_TIMED "$6::timestamptz IS NOT NULL OR $7::timestamptz IS NOT NULL"
#define BY_TIME  "CASE WHEN " IS_TIMED " THEN j.created_at END"
#define AFTER(is)                                                        \
    " AND ($10::bigint IS NULL OR CASE WHEN $11::bigint IS NULL THEN "   \
    "j.seq " is " $10 ELSE (j.created_at, j.seq) " is " (timestamptz "   \
    "'epoch' + $11::bigint * interval '1 microsecond', $10) END) ORDER " \
    "BY " BY_TIME
#define NEWEST AFTER("<") " DESC, j.seq DESC"
#define OLDEST AFTER(">") ", j.seq"
#define PAGE   " LIMIT $12::bigint OFFSET $13::bigint"
/* The newest, which the list has just read. */
#define COUNTED " ORDER BY " BY_TIME " DESC, j.seq DESC LIMIT 10001"
static_assert(PAGE_TOTAL_MAX == 10000, "LIMIT of COUNTED");
#define COLUMNS JOB_COLUMNS ", (extract(epoch FROM j.created_at) * 1000000)::bigint AS us"
#define STATEMENTS(table)                                                     \
    {                                                                         \
        "SELECT " COLUMNS FROM_JOBS(table) NEWEST PAGE,                       \
            "SELECT " COLUMNS FROM_JOBS(table) OLDEST PAGE,                   \
            "SELECT count(*) FROM (SELECT 1" FROM_JOBS(table) COUNTED ") few" \
    }
/* By user or time: the indexes for that hold jobs that have ended, so that the changes of a job
 * before cost nothing there; of the others, which are few, those of jobs_status are looked at. A
 * half that holds none of the states asked for is no part of the plan, or it would be passed over.
 */
#define ENDED                                                    \
    " AND j.status IN ('completed', 'failed', 'cancelled') AND " \
    "($2::text[] IS NULL OR $2::text[] && '{completed,failed,cancelled}')"
#define OTHER                                                              \
    " AND j.status IN ('pending', 'running', 'paused', 'cancelling') AND " \
    "($2::text[] IS NULL OR $2::text[] && '{pending,running,paused,cancelling}')"
#define BOTH(table, columns, order)                             \
    "((SELECT " columns FROM_JOBS(table)                        \
    ENDED order ") UNION ALL (SELECT " columns FROM_JOBS(table) \
    OTHER order "))"
#define FIRST       " LIMIT $12::bigint + $13::bigint"
#define MERGED(way) " u ORDER BY CASE WHEN " IS_TIMED " THEN u.us END" way ", u.seq" way PAGE
#define SPLIT_STATEMENTS(table)                                                                    \
    {                                                                                              \
        "SELECT * FROM " BOTH(table, COLUMNS, NEWEST FIRST) MERGED(" DESC"),                       \
            "SELECT * FROM " BOTH(table, COLUMNS, OLDEST FIRST) MERGED(""),                        \
            "SELECT count(*) FROM (SELECT 1 FROM " BOTH(table, "1", COUNTED) " u LIMIT 10001) few" \
    }

static const struct {
    const char *newest, *oldest, *count;
} statements[2][2] = {/* [archived][split] */
                      {STATEMENTS("jobs"), SPLIT_STATEMENTS("jobs")},
                      {STATEMENTS("archived_jobs"), SPLIT_STATEMENTS("archived_jobs")}};

struct job_query {
    json_t *canonical;
    json_t *ids;      /* array; NULL: any */
    json_t *statuses; /* array of stored states; NULL: any */
    bool oldest_first;
    const char *kind; /* NULL: any */
    struct page page;
    bool timed;               /* in the order of created_at */
    char cursor[NUMBER_TEXT]; /* "" = from the start */
    char cursor_us[NUMBER_TEXT];
};

static void job_query_release(struct job_query *query)
{
    json_decref(query->canonical);
    json_decref(query->ids);
    json_decref(query->statuses);
}

/* A text or a list of texts; *out NULL when absent. */
static int list_of(struct call *call, const json_t *canonical, const char *name, json_t **out,
                   struct error *err)
{
    json_t *value = json_object_get(canonical, name);
    json_t *item;
    size_t i;

    *out = NULL;
    if (value == NULL)
        return 0;
    if (json_is_string(value)) {
        *out = json_pack("[O]", value);
        return 0;
    }
    if (!json_is_array(value) || json_array_size(value) > IDS_MAX) {
        return call_bad_field(call, name, err, "'%s' must be a text or a list of at most %d texts",
                              name, IDS_MAX);
    }
    json_array_foreach(value, i, item)
    {
        /* PostgreSQL has no NUL in text */
        if (!json_is_string(item) || strlen(json_string_value(item)) != json_string_length(item))
            return call_bad_field(call, name, err, "'%s' must be a list of texts", name);
    }
    *out = json_incref(value);
    return 0;
}

/* Once each: a single one has a plan of its own. */
static void add_status(json_t *statuses, const char *status)
{
    json_t *known;
    size_t i;

    json_array_foreach(statuses, i, known)
    {
        if (strcmp(json_string_value(known), status) == 0)
            return;
    }
    (void)json_array_append_new(statuses, json_string(status));
}

/* States as the API names them become the stored ones: running covers paused and cancelling. */
static int read_statuses(struct call *call, struct job_query *query, struct error *err)
{
    json_t *named = NULL;
    json_t *item;
    size_t i;
    bool all = field_bool(query->canonical, "all", false);

    if (list_of(call, query->canonical, "status", &named, err) < 0)
        return -1;
    auto_json *owned = named;
    if (named == NULL || json_array_size(named) == 0)
        return 0;
    query->statuses = json_array();
    json_array_foreach(named, i, item)
    {
        const char *status = json_string_value(item);
        if (!word_in(status, shown_statuses))
            return call_bad_field(call, "status", err, "'status': '%s' is not known", status);
        if (strcmp(status, "all") == 0)
            all = true;
        add_status(query->statuses, status);
        if (strcmp(status, "running") == 0) {
            add_status(query->statuses, "paused");
            add_status(query->statuses, "cancelling");
        }
    }
    if (all) {
        json_decref(query->statuses);
        query->statuses = NULL;
    }
    return 0;
}

/* "d17"; of a list of a time "d17.1764288000000000": the last job's seq and created_at. */
static int read_cursor(struct job_query *query, struct error *err)
{
    autofree char *text = xstrdup(query->page.cursor);
    char *point = strchr(text, '.');
    uint64_t seq = 0;
    uint64_t us = 0;

    if (text[0] != (query->oldest_first ? 'a' : 'd') || (point != NULL) != query->timed)
        return error_set(err, ERR_INVALID, "another list");
    if (point != NULL)
        *point++ = '\0';
    if (parse_u64("cursor", text + 1, 0, INT64_MAX, &seq, err) < 0 ||
        (point != NULL && parse_u64("cursor", point, 0, CURSOR_US_MAX, &us, err) < 0))
        return -1;
    (void)snprintf(query->cursor, sizeof query->cursor, "%" PRIu64, seq);
    if (point != NULL)
        (void)snprintf(query->cursor_us, sizeof query->cursor_us, "%" PRIu64, us);
    return 0;
}

static int read_order(struct call *call, struct job_query *query, struct error *err)
{
    const char *sort = field_text(query->canonical, "sort", sorts[0]);
    struct error why = ERROR_NONE;

    if (!word_in(sort, sorts))
        return call_bad_field(call, "sort", err, "'sort' must be -created_at or created_at");
    query->oldest_first = sort[0] != '-';
    page_from(query->canonical, PAGE_LIMIT_DEFAULT, &query->page);
    query->timed = json_object_get(query->canonical, "since") != NULL ||
                   json_object_get(query->canonical, "until") != NULL;
    if (query->page.cursor != NULL && read_cursor(query, &why) < 0)
        return call_bad_field(call, "cursor", err, "'cursor' is not one of this list");
    return 0;
}

static int read_query(struct call *call, struct job_query *query, struct error *err)
{
    static const char *const times[] = {"since", "until"};
    auto_json *parameters = NULL;
    struct field_problem problem = {0};
    struct error why = ERROR_NONE;

    if (call->body == NULL && query_as_body(call, parameter_fields, &parameters, err) < 0)
        return -1;
    if (fields_canonical(query_fields, "", call->body != NULL ? call->body : parameters,
                         &query->canonical, &problem, err) < 0)
        return call_fail_field(call, &problem, err);
    for (size_t i = 0; i < ARRAY_LEN(times); i++) {
        const char *text = field_text(query->canonical, times[i], NULL);
        if (text != NULL && check_time(times[i], text, &why) < 0)
            return call_bad_field(call, times[i], err, "%s", why.message);
    }
    if (list_of(call, query->canonical, "job_ids", &query->ids, err) < 0 ||
        read_statuses(call, query, err) < 0)
        return -1;
    return read_order(call, query, err);
}

static void add_page(struct call *call, const struct job_query *query, const PGresult *rows,
                     json_t *answer)
{
    json_t *jobs = json_array();
    int count = PQntuples(rows);

    if (count > (int)query->page.limit) { /* one more than asked for: there is a next page */
        autofree char *cursor = NULL;
        count = (int)query->page.limit;
        cursor = xasprintf("%c%" PRId64 "%s%s", query->oldest_first ? 'a' : 'd',
                           db_i64(rows, count - 1, JOB_COLUMN_SEQ), query->timed ? "." : "",
                           query->timed ? db_text(rows, count - 1, PQnfields(rows) - 1) : "");
        json_set_text(answer, "next_cursor", cursor);
    }
    for (int i = 0; i < count; i++)
        (void)json_array_append_new(jobs, job_view(call->gateway, rows, i));
    (void)json_object_set_new(answer, "jobs", jobs);
}

static void add_total(int64_t total, json_t *answer)
{
    if (total > PAGE_TOTAL_MAX) {
        json_set_i64(answer, "total_at_least", PAGE_TOTAL_MAX);
    } else {
        json_set_i64(answer, "total", total);
    }
}

/* "{running,paused}": known words, so nothing needs quoting. NULL: any. */
static int statuses_text(const json_t *statuses, char **out, struct error *err)
{
    auto_strbuf sb = {0};
    json_t *status;
    size_t i;

    *out = NULL;
    if (statuses == NULL)
        return 0;
    strbuf_init(&sb, STATUSES_TEXT_MAX);
    strbuf_addc(&sb, '{');
    json_array_foreach(statuses, i, status)
    {
        strbuf_addf(&sb, "%s%s", i == 0 ? "" : ",", json_string_value(status));
    }
    strbuf_addc(&sb, '}');
    return strbuf_finish(&sb, out, err);
}

static int run_query(struct call *call, const struct job_query *query, json_t *answer,
                     struct error *err)
{
    bool archived = field_bool(query->canonical, "archived", false);
    autofree char *ids = query->ids == NULL ? NULL : json_text(query->ids);
    autofree char *statuses = NULL;
    auto_pgresult *rows = NULL;
    auto_pgresult *total = NULL;
    char limit[NUMBER_TEXT];
    char offset[NUMBER_TEXT];
    const json_t *c = query->canonical;
    bool split = query->timed || json_object_get(c, "submitted_by") != NULL;

    if (statuses_text(query->statuses, &statuses, err) < 0)
        return -1;
    (void)snprintf(limit, sizeof limit, "%" PRIu32, query->page.limit + 1);
    (void)snprintf(offset, sizeof offset, "%" PRIu32, query->page.offset);
    const char *params[] = {ids,
                            statuses,
                            field_text(c, "provider", NULL),
                            field_text(c, "vm", NULL),
                            field_text(c, "submitted_by", NULL),
                            field_text(c, "since", NULL),
                            field_text(c, "until", NULL),
                            query->kind,
                            field_text(c, "schedule_id", NULL),
                            query->cursor[0] == '\0' ? NULL : query->cursor,
                            query->cursor_us[0] == '\0' ? NULL : query->cursor_us,
                            limit,
                            offset};
    if (db_exec(call->db,
                query->oldest_first ? statements[archived][split].oldest
                                    : statements[archived][split].newest,
                params, ARRAY_LEN(params), &rows, err) < 0 ||
        db_exec(call->db, statements[archived][split].count, params, 9, &total, err) < 0)
        return -1;
    add_page(call, query, rows, answer);
    add_total(db_i64(total, 0, 0), answer);
    return 0;
}

/* One id asked for: its facts at top level as well, as the seed's clients read them. */
static int add_single(const struct job_query *query, json_t *answer, struct error *err)
{
    const json_t *job;

    if (query->ids == NULL || json_array_size(query->ids) != 1)
        return 0;
    job = json_array_get(json_object_get(answer, "jobs"), 0);
    if (job == NULL) {
        return error_set(err, ERR_NOT_FOUND, "job '%.64s' does not exist",
                         json_string_value(json_array_get(query->ids, 0)));
    }
    (void)json_object_set(answer, "job_id", json_object_get(job, "job_id"));
    (void)json_object_set(answer, "status", json_object_get(job, "status"));
    (void)json_object_set(answer, "percentage",
                          json_object_get(json_object_get(job, "progress"), "percentage"));
    return 0;
}

static int answer_query(struct call *call, const char *kind, struct error *err)
{
    CLEANUP(job_query_release) struct job_query query = {.kind = kind};
    auto_json *answer = json_object();

    if (read_query(call, &query, err) < 0 || run_query(call, &query, answer, err) < 0 ||
        add_single(&query, answer, err) < 0)
        return -1;
    json_set_now(answer, "timestamp");
    call_answer_json(call, 200, STEAL(answer));
    return 0;
}

int handle_job_query(struct call *call, struct error *err)
{
    return answer_query(call, NULL, err);
}

int handle_import_list(struct call *call, struct error *err)
{
    return answer_query(call, "import", err);
}
