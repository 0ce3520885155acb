/* Conversions as the API shows them: those of jobs of their own and those behind an export. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "common/autos.h"
#include "common/json.h"
#include "handlers.h"
#include "job_view.h"

#define CONVERSION_PREFIX "cnv-"
#define ACTIVE_MAX        1000 /* shown of those under way */

char *conversion_id(const char *job_id)
{
    return xasprintf(CONVERSION_PREFIX "%s", strncmp(job_id, "job-", 4) == 0 ? job_id + 4 : job_id);
}

#define CONVERSION_COLUMNS                                                                      \
    "t.job_id, coalesce(nullif(t.spec->>'source_path', ''), nullif(t.spec->>'manifest_path', "  \
    "''), t.spec->>'export_path', ''), t.state, t.result->'conversion', t.error, j.phase,"      \
    " j.progress->>'percentage', " SQL_TIME(                                                    \
        "t.created_at") ", CASE WHEN t.state IN ('done', "                                      \
                        "'failed', 'cancelled') THEN " SQL_TIME(                                \
                            "t.updated_at") " END,"                                             \
                                            " coalesce(t.spec->'hyper2kvm'->>'target_format', " \
                                            "''), t.seq, j.status"
static const char list_sql[] =
    "SELECT " CONVERSION_COLUMNS " FROM tasks t JOIN jobs j ON j.id = t.job_id"
    " WHERE t.kind = 'convert' AND ($1::bigint IS NULL OR t.seq < $1) ORDER BY t.seq DESC LIMIT $2";
static const char active_sql[] =
    "SELECT " CONVERSION_COLUMNS " FROM tasks t JOIN jobs j ON j.id = t.job_id"
    " WHERE t.kind = 'convert' AND (t.state IN ('queued', 'leased', 'finishing') OR"
    " (t.state = 'blocked' AND j.status IN ('pending', 'running', 'paused')))"
    " ORDER BY t.seq LIMIT $1";
static const char counts_sql[] =
    "SELECT t.state, count(*) FROM tasks t WHERE t.kind = 'convert' GROUP BY t.state";
static const char bridges_sql[] =
    "SELECT json_build_object('instance', w.instance, 'host', w.host, 'state', w.state, 'version',"
    " w.version, 'capabilities', w.capabilities, 'seen_at', " SQL_TIME(
        "w.seen_at") ")"
                     " FROM workers w WHERE w.role = 'bridge' AND w.state <> 'down' ORDER BY "
                     "w.instance";
static const char get_sql[] =
    "SELECT " CONVERSION_COLUMNS " FROM tasks t JOIN jobs j ON j.id = t.job_id"
    " WHERE t.kind = 'convert' AND t.job_id IN ($1, 'job-' || $1) ORDER BY t.seq DESC LIMIT 1";
enum column {
    AT_JOB,
    AT_SOURCE,
    AT_STATE,
    AT_RESULT,
    AT_ERROR,
    AT_PHASE,
    AT_PERCENTAGE,
    AT_STARTED,
    AT_COMPLETED,
    AT_FORMAT,
    AT_SEQ,
    AT_JOB_STATUS
};

static const char *status_of(const char *state, const char *job_status)
{
    static const struct {
        const char *state;
        const char *shown;
    } words[] = {{"blocked", "pending"},    {"queued", "pending"}, {"leased", "running"},
                 {"finishing", "running"},  {"done", "completed"}, {"failed", "failed"},
                 {"cancelled", "cancelled"}};

    /* behind an export that failed it never gets its turn */
    if (strcmp(state, "blocked") == 0 &&
        (strcmp(job_status, "failed") == 0 || strcmp(job_status, "cancelled") == 0))
        return "cancelled";
    for (size_t i = 0; i < ARRAY_LEN(words); i++) {
        if (strcmp(words[i].state, state) == 0)
            return words[i].shown;
    }
    return state;
}

static json_t *conversion_view(const PGresult *rows, int row)
{
    auto_json *result = cell_json(rows, row, AT_RESULT);
    json_t *files = json_object_get(result, "output_files");
    const char *state = db_text(rows, row, AT_STATE);
    bool running = strcmp(state, "leased") == 0;
    json_t *view = json_object();
    autofree char *id = conversion_id(db_text(rows, row, AT_JOB));
    double percentage = strtod(db_text(rows, row, AT_PERCENTAGE), NULL);

    json_set_text(view, "id", id);
    json_set_text(view, "job_id", db_text(rows, row, AT_JOB));
    json_set_text(view, "source", db_text(rows, row, AT_SOURCE));
    json_put(view, "output_files", files == NULL ? json_array() : json_incref(files));
    json_set_text(view, "format", db_text(rows, row, AT_FORMAT));
    json_set_text(view, "status", status_of(state, db_text(rows, row, AT_JOB_STATUS)));
    json_put(view, "percentage",
             json_real(strcmp(state, "done") == 0 ? 100
                       : running                  ? percentage
                                                  : 0));
    json_set_text(view, "stage", running ? db_text(rows, row, AT_PHASE) : "");
    json_put(view, "started_at", cell_text_or_null(rows, row, AT_STARTED));
    json_put(view, "completed_at", cell_text_or_null(rows, row, AT_COMPLETED));
    json_put(view, "error", cell_text_or_null(rows, row, AT_ERROR));
    json_set_text(view, "path_used", json_str(result, "path_used"));
    json_set_text(view, "domain_xml", json_str(result, "domain_xml"));
    json_set_text(view, "report_path", json_str(result, "report"));
    return view;
}

int handle_conversion_list(struct call *call, struct error *err)
{
    static const char *const names[] = {"limit", "cursor", NULL};
    static const struct field fields[] = {PAGE_FIELDS, {0}};
    auto_json *parameters = NULL;
    auto_json *query = NULL;
    auto_json *result = json_object();
    auto_pgresult *rows = NULL;
    struct field_problem problem = {0};
    json_t *list = json_array();
    struct page page;
    char limit[16];
    int count;

    json_put(result, "conversions", list);
    if (call_check_query(call, names, err) < 0 || query_as_body(call, fields, &parameters, err) < 0)
        return -1;
    if (fields_canonical(fields, "", parameters, &query, &problem, err) < 0)
        return call_fail_field(call, &problem, err);
    page_from(query, PAGE_LIMIT_DEFAULT, &page);
    if (page.cursor != NULL && page.cursor[strspn(page.cursor, "0123456789")] != '\0')
        return call_bad_field(call, "cursor", err, "'cursor' is not one of this list");
    (void)snprintf(limit, sizeof limit, "%" PRIu32, page.limit + 1);
    if (db_exec(call->db, list_sql, DB_PARAMS(page.cursor, limit), &rows, err) < 0)
        return -1;
    count = PQntuples(rows);
    if (count > (int)page.limit) {
        count = (int)page.limit;
        json_set_text(result, "next_cursor", db_text(rows, count - 1, AT_SEQ));
    }
    for (int i = 0; i < count; i++)
        (void)json_array_append_new(list, conversion_view(rows, i));
    json_set_now(result, "timestamp");
    call_answer_json(call, 200, STEAL(result));
    return 0;
}

int handle_conversion_get(struct call *call, struct error *err)
{
    const char *param = call_param(call, "id");
    const char *id = param[0] != '\0' ? param : call_query(call, "id");
    auto_pgresult *rows = NULL;

    if (id == NULL || id[0] == '\0')
        return call_bad_field(call, "id", err, "'id' is missing");
    call_resource(call, "conversion", id);
    if (db_exec(call->db, get_sql,
                DB_PARAMS(strncmp(id, CONVERSION_PREFIX, strlen(CONVERSION_PREFIX)) == 0
                              ? id + strlen(CONVERSION_PREFIX)
                              : id),
                &rows, err) < 0)
        return -1;
    if (PQntuples(rows) == 0)
        return error_set(err, ERR_NOT_FOUND, "conversion '%.64s' does not exist", id);
    call_answer_json(call, 200, conversion_view(rows, 0));
    return 0;
}

/* ---- the bridges ---- */

static void add_counts(const PGresult *rows, json_t *answer)
{
    static const char *const names[] = {"pending", "running", "completed", "failed", "cancelled"};
    json_t *counts = json_object();

    for (size_t i = 0; i < ARRAY_LEN(names); i++)
        json_set_i64(counts, names[i], 0);
    for (int i = 0; i < PQntuples(rows); i++) {
        const char *name = status_of(db_text(rows, i, 0), "");
        json_int_t before = json_integer_value(json_object_get(counts, name));
        json_set_i64(counts, name, before + db_i64(rows, i, 1));
    }
    json_put(answer, "conversions", counts);
}

int handle_bridge_status(struct call *call, struct error *err)
{
    auto_json *result = json_object();
    auto_pgresult *bridges = NULL;
    auto_pgresult *counts = NULL;
    auto_pgresult *active = NULL;
    json_t *list = json_array();
    json_t *workers = json_array();
    char limit[16];

    json_put(result, "bridges", workers);
    json_put(result, "active", list);
    (void)snprintf(limit, sizeof limit, "%d", ACTIVE_MAX);
    if (db_exec(call->db, bridges_sql, DB_NO_PARAMS, &bridges, err) < 0 ||
        db_exec(call->db, counts_sql, DB_NO_PARAMS, &counts, err) < 0 ||
        db_exec(call->db, active_sql, DB_PARAMS(limit), &active, err) < 0)
        return -1;
    for (int i = 0; i < PQntuples(bridges); i++)
        (void)json_array_append_new(workers, cell_json(bridges, i, 0));
    for (int i = 0; i < PQntuples(active); i++)
        (void)json_array_append_new(list, conversion_view(active, i));
    add_counts(counts, result);
    json_set_now(result, "timestamp");
    call_answer_json(call, 200, STEAL(result));
    return 0;
}
