/* What several handlers need: errors that name a field, cells as JSON, times, pages. */
#ifndef GATEWAY_HANDLER_UTIL_H
#define GATEWAY_HANDLER_UTIL_H

#include "common/job_store.h"
#include "common/fields.h"
#include "route.h"

#define PAGE_LIMIT_DEFAULT 100
#define PAGE_LIMIT_MAX     1000
#define PAGE_OFFSET_MAX    10000
#define PAGE_TOTAL_MAX     10000 /* exact up to here, above it "total_at_least" */

/* A timestamptz column as RFC 3339 UTC text. */
#define SQL_TIME(column) \
    "to_char(" column " AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.MS\"Z\"')"

/* Answers the refusal that a fields_... or submit_... function left in problem and err, with the
 * members "field" and "candidates". Returns -1. */
int call_fail_field(struct call *call, const struct field_problem *problem, struct error *err);
/* The body, or an empty object without one, under the table; what is wrong is answered. *out: new
 * reference. */
MUST_CHECK int call_fields(struct call *call, const struct field *table, json_t **out,
                           struct error *err);
/* 400 that names a field or parameter. */
int call_bad_field(struct call *call, const char *field, struct error *err, const char *format, ...)
    PRINTF_LIKE(4, 5);

/* A job of one task as this caller asks for it, with the configuration's retries; name, provider
 * and format "". Strings are borrowed from the call. */
struct job_submission call_submission(const struct call *call, const char *kind);
/* 202 {"job_id", "status": "pending", ..., "timestamp"} with the members of more_taken; wakes the
 * scheduler. */
void call_answer_accepted(struct call *call, const char *job_id, const char *location,
                          json_t *more_taken);
/* 202: the job was queued to work on the files below path; Location says where to ask. Wakes the
 * scheduler. */
void call_answer_job(struct call *call, const char *job_id, const char *path);

/* For routes with the permission "job.cancel.own": operators steer what they submitted, who has
 * job.cancel everything. ERR_NOT_FOUND, ERR_DENIED. */
MUST_CHECK int call_check_owner(struct call *call, const char *job_id, struct error *err);

/* Text of a cell, JSON null for SQL NULL. New reference. */
json_t *cell_text(const PGresult *rows, int row, int column);
/* The same, but JSON null for '' as well. */
json_t *cell_text_or_null(const PGresult *rows, int row, int column);
/* Value of a json(b) cell; JSON null for SQL NULL. New reference. */
json_t *cell_json(const PGresult *rows, int row, int column);
void json_set_now(json_t *object, const char *key);

/* RFC 3339 time or date, as PostgreSQL takes it afterwards. ERR_INVALID naming name. */
MUST_CHECK int check_time(const char *name, const char *text, struct error *err);

/* The parameters limit, offset and cursor: of the query string, or of a canonical body. */
struct page {
    uint32_t limit;
    uint32_t offset;
    const char *cursor; /* NULL: from the start; borrowed */
};
#define PAGE_FIELDS                                                 \
    {"limit", {NULL}, FIELD_NUMBER, 1, PAGE_LIMIT_MAX, NULL},       \
        {"offset", {NULL}, FIELD_NUMBER, 0, PAGE_OFFSET_MAX, NULL}, \
    {                                                               \
        "cursor", {NULL}, FIELD_TEXT, 1, 2048, NULL                 \
    }
void page_from(const json_t *canonical, uint32_t limit_default, struct page *out);
/* Query parameters as a body: texts, and numbers and booleans where the table says so, so that
 * GET and POST share one way. Parameters that the table does not know are left alone. */
MUST_CHECK int query_as_body(struct call *call, const struct field *table, json_t **out,
                             struct error *err);

#endif
