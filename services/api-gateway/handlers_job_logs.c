/* Logs of jobs as JSON or text; who follows one is handed over to the hub (rest-api.md 3.8). */
#include <stdio.h>

#include "common/json.h"
#include "common/parse.h"
#include "handlers.h"
#include "hub.h"
#include "job_view.h"

#define LOG_TAIL_DEFAULT 200
#define LOG_TAIL_MAX     10000
#define LOG_TEXT_MAX     (32 * MIB) /* LOG_TAIL_MAX lines of 2,000 bytes and their heads */
#define NUMBER_TEXT      24

/* The last lines, oldest first; $3: lines at or after it; $4: the levels that are shown. */
static const char logs_sql[] = "SELECT * FROM (SELECT " SQL_TIME(
    "l.at") ", l.level, l.phase, l.message, l.id FROM (SELECT * FROM job_logs WHERE job_id = $1 "
            "UNION ALL"
            "  SELECT (jsonb_populate_recordset(NULL::job_logs, a.logs)).* FROM archived_jobs a"
            "  WHERE a.id = $1) l WHERE ($3::timestamptz IS NULL OR l.at >= $3::timestamptz)"
            " AND ($4::jsonb IS NULL OR l.level = ANY (ARRAY(SELECT "
            "jsonb_array_elements_text($4::jsonb))))"
            " ORDER BY l.id DESC LIMIT $2) newest ORDER BY id";

struct log_query {
    uint32_t tail;
    const char *since; /* NULL: any time */
    const char *level; /* least level; NULL: all */
    bool follow;
};

static int read_log_query(struct call *call, struct log_query *out, struct error *err)
{
    static const char *const levels[] = {"debug", "info", "warn", "error", NULL};
    const char *tail = call_query(call, "tail");
    const char *follow = call_query(call, "follow");
    struct error why = ERROR_NONE;

    *out = (struct log_query){.tail = LOG_TAIL_DEFAULT};
    out->since = call_query(call, "since");
    out->level = call_query(call, "level");
    if (tail != NULL && parse_u32("tail", tail, 0, LOG_TAIL_MAX, &out->tail, &why) < 0)
        return call_bad_field(call, "tail", err, "%s", why.message);
    if (out->since != NULL && check_time("since", out->since, &why) < 0)
        return call_bad_field(call, "since", err, "%s", why.message);
    if (out->level != NULL && !word_in(out->level, levels))
        return call_bad_field(call, "level", err, "'level' must be debug, info, warn or error");
    if (follow != NULL &&
        parse_bool("follow", follow[0] == '\0' ? "true" : follow, &out->follow, &why) < 0)
        return call_bad_field(call, "follow", err, "%s", why.message);
    return 0;
}

/* The levels from least up, as a JSON list; NULL: all. Caller frees. */
static char *levels_from(const char *least)
{
    static const char *const names[] = {"debug", "info", "warn", "error"};
    auto_json *list = json_array();

    if (least == NULL)
        return NULL;
    for (size_t i = 0; i < ARRAY_LEN(names); i++) {
        if (log_level_passes(names[i], least))
            (void)json_array_append_new(list, json_string(names[i]));
    }
    return json_text(list);
}

static void answer_lines_text(struct call *call, const PGresult *rows)
{
    struct error err = ERROR_NONE;
    char *text = NULL;
    auto_strbuf lines;

    strbuf_init(&lines, LOG_TEXT_MAX);
    for (int i = 0; i < PQntuples(rows); i++) {
        log_line_text(&lines, db_text(rows, i, 0), db_text(rows, i, 1), db_text(rows, i, 2),
                      db_text(rows, i, 3));
    }
    if (strbuf_finish(&lines, &text, &err) < 0)
        text = xstrdup(""); /* cannot be: the limit is above LOG_TAIL_MAX of the longest lines */
    call_answer_text(call, 200, "text/plain; charset=utf-8", text);
}

static void answer_lines_json(struct call *call, const char *job_id, const PGresult *rows)
{
    static const char *const keys[] = {"timestamp", "level", "phase", "message"};
    json_t *answer = json_object();
    json_t *lines = json_array();

    for (int i = 0; i < PQntuples(rows); i++) {
        json_t *line = json_object();
        for (int k = 0; k < (int)ARRAY_LEN(keys); k++)
            (void)json_object_set_new(line, keys[k], cell_text(rows, i, k));
        (void)json_object_set_new(line, "fields", json_object());
        (void)json_array_append_new(lines, line);
    }
    json_set_text(answer, "job_id", job_id);
    json_set_i64(answer, "log_count", PQntuples(rows));
    (void)json_object_set_new(answer, "logs", lines);
    call_answer_json(call, 200, answer);
}

static int follow_logs(struct call *call, const char *job_id, const struct log_query *query,
                       struct error *err)
{
    struct log_follow_options options = {.job_id = job_id,
                                         .tail = query->tail,
                                         .since = query->since,
                                         .level = query->level,
                                         .format = LOG_STREAM_TEXT};

    if (call_accepts(call, "text/event-stream")) {
        options.format = LOG_STREAM_SSE;
    } else if (call_accepts(call, "application/x-ndjson") ||
               call_accepts(call, "application/json")) {
        options.format = LOG_STREAM_NDJSON;
    }
    return hub_follow_logs(call, &options, err);
}

int handle_job_logs(struct call *call, struct error *err)
{
    const char *job_id = call_param(call, "id");
    struct log_query query;
    auto_pgresult *job = NULL;
    auto_pgresult *rows = NULL;
    autofree char *levels = NULL;
    char tail[NUMBER_TEXT];

    if (read_log_query(call, &query, err) < 0 || job_load(call, job_id, &job, err) < 0)
        return -1;
    if (query.follow || call_accepts(call, "text/event-stream"))
        return follow_logs(call, job_id, &query, err);
    levels = levels_from(query.level);
    (void)snprintf(tail, sizeof tail, "%u", query.tail);
    if (db_exec(call->db, logs_sql, DB_PARAMS(job_id, tail, query.since, levels), &rows, err) < 0)
        return -1;
    if (call_accepts(call, "text/plain")) {
        answer_lines_text(call, rows);
    } else {
        answer_lines_json(call, job_id, rows);
    }
    return 0;
}
