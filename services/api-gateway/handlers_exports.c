/* Exports that exist: the catalogue, and reading one back (rest-api.md 2.8). */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "common/crypt_file.h"
#include "common/job_store.h"
#include "common/json.h"
#include "common/paths.h"
#include "handler_util.h"
#include "handlers.h"
#include "common/submit.h"

#define EXPORT_COLUMNS                                                                           \
    "json_build_object('export_id', e.id, 'job_id', e.job_id, 'provider', e.provider, 'vm_id', " \
    "e.vm_id, 'vm_name', e.vm_name, 'path', e.path, 'volume', e.volume, 'format', e.format,"     \
    " 'base_id', e.base_id,"                                                                     \
    " 'total_size', e.total_size, 'created_at', " SQL_TIME("e.created_at") ")"

#define KEEP_MAX 64 /* a chain is never longer */

/* By creation, then by id: a cursor is "<microseconds>.<id>". */
static const char list_sql[] =
    "SELECT " EXPORT_COLUMNS ", (extract(epoch FROM e.created_at) * 1000000)::bigint || '.' || e.id"
    " FROM exports e WHERE ($1::text IS NULL OR e.provider = $1)"
    " AND ($2::text IS NULL OR e.vm_name = $2 OR e.vm_id = $2)"
    " AND ($3::bigint IS NULL OR (e.created_at, e.id) <"
    "  (to_timestamp(0) + $3::bigint * interval '1 microsecond', $4::text))"
    " ORDER BY e.created_at DESC, e.id DESC LIMIT $5::int OFFSET $6::int";
static const char count_sql[] =
    "SELECT count(*) FROM (SELECT 1 FROM exports e WHERE ($1::text IS NULL OR e.provider = $1)"
    " AND ($2::text IS NULL OR e.vm_name = $2 OR e.vm_id = $2) LIMIT 10001) counted";
static const char get_sql[] =
    "SELECT " EXPORT_COLUMNS ", e.manifest, coalesce((SELECT json_agg(json_build_object('disk_id',"
    " d.disk_id, 'file', d.file, 'size_bytes', d.size_bytes, 'capacity_bytes', d.capacity_bytes,"
    " 'sha256', d.sha256, 'root', d.root, 'change_id', d.change_id) ORDER BY d.file)"
    " FROM export_disks d WHERE d.export_id = e.id), '[]'::json) FROM exports e WHERE e.id = $1";
static const char find_sql[] = "SELECT id, provider, vm_name, path, volume, format FROM exports"
                               " WHERE id = $1 OR path = $2 ORDER BY created_at DESC LIMIT 1";

static const struct field list_fields[] = {
    {"provider", {NULL}, FIELD_TEXT, 1, 63, NULL},
    {"vm", {NULL}, FIELD_TEXT, 1, FIELD_TEXT_MAX, NULL},
    PAGE_FIELDS,
    {0},
};

/* ---- the catalogue ---- */

struct export_cursor {
    char micros[24]; /* "": from the start */
    char id[64];
};

static int read_cursor(struct call *call, const char *text, struct export_cursor *out,
                       struct error *err)
{
    const char *dot = text == NULL ? NULL : strchr(text, '.');
    size_t digits = text == NULL ? 0 : strspn(text, "0123456789");

    *out = (struct export_cursor){0};
    if (text == NULL)
        return 0;
    if (dot == NULL || digits == 0 || text + digits != dot || digits > 17 || dot[1] == '\0' ||
        strlen(dot + 1) >= sizeof out->id)
        return call_bad_field(call, "cursor", err, "'cursor' is not one of this list");
    (void)snprintf(out->micros, sizeof out->micros, "%.*s", (int)digits, text);
    (void)snprintf(out->id, sizeof out->id, "%s", dot + 1);
    return 0;
}

static void add_page(const PGresult *rows, uint32_t limit, json_t *answer)
{
    json_t *list = json_array();
    int count = PQntuples(rows);

    if (count > (int)limit) { /* one more than asked for: there is a next page */
        count = (int)limit;
        json_set_text(answer, "next_cursor", db_text(rows, count - 1, 1));
    }
    for (int i = 0; i < count; i++)
        (void)json_array_append_new(list, cell_json(rows, i, 0));
    (void)json_object_set_new(answer, "exports", list);
}

static int list_exports(struct call *call, const json_t *query, json_t *answer, struct error *err)
{
    const char *provider = field_text(query, "provider", NULL);
    const char *vm = field_text(query, "vm", NULL);
    struct export_cursor cursor;
    struct page page;
    auto_pgresult *rows = NULL;
    auto_pgresult *total = NULL;
    char limit[16];
    char offset[16];

    page_from(query, PAGE_LIMIT_DEFAULT, &page);
    if (read_cursor(call, page.cursor, &cursor, err) < 0)
        return -1;
    (void)snprintf(limit, sizeof limit, "%" PRIu32, page.limit + 1);
    (void)snprintf(offset, sizeof offset, "%" PRIu32, page.offset);
    if (db_exec(call->db, list_sql,
                DB_PARAMS(provider, vm, cursor.micros[0] == '\0' ? NULL : cursor.micros, cursor.id,
                          limit, offset),
                &rows, err) < 0 ||
        db_exec(call->db, count_sql, DB_PARAMS(provider, vm), &total, err) < 0)
        return -1;
    add_page(rows, page.limit, answer);
    if (db_i64(total, 0, 0) > PAGE_TOTAL_MAX) {
        json_set_i64(answer, "total_at_least", PAGE_TOTAL_MAX);
    } else {
        json_set_i64(answer, "total", db_i64(total, 0, 0));
    }
    return 0;
}

int handle_export_list(struct call *call, struct error *err)
{
    static const char *const names[] = {"provider", "vm", "limit", "offset", "cursor", NULL};
    auto_json *parameters = NULL;
    auto_json *query = NULL;
    auto_json *answer = json_object();
    struct field_problem problem = {0};

    if (call_check_query(call, names, err) < 0 ||
        query_as_body(call, list_fields, &parameters, err) < 0)
        return -1;
    if (fields_canonical(list_fields, "", parameters, &query, &problem, err) < 0)
        return call_fail_field(call, &problem, err);
    if (list_exports(call, query, answer, err) < 0)
        return -1;
    json_set_now(answer, "timestamp");
    call_answer_json(call, 200, STEAL(answer));
    return 0;
}

int handle_export_get(struct call *call, struct error *err)
{
    const char *id = call_param(call, "id");
    auto_pgresult *rows = NULL;
    json_t *answer;

    call_resource(call, "export", id);
    if (db_exec(call->db, get_sql, DB_PARAMS(id), &rows, err) < 0)
        return -1;
    if (PQntuples(rows) == 0)
        return error_set(err, ERR_NOT_FOUND, "export '%.64s' does not exist", id);
    answer = cell_json(rows, 0, 0);
    (void)json_object_set_new(answer, "disks", cell_json(rows, 0, 2));
    (void)json_object_set_new(answer, "manifest", cell_json(rows, 0, 1));
    call_answer_json(call, 200, answer);
    return 0;
}

/* ---- verify ---- */

/* A job of one task that works on files that stand there; facts from the catalogue's row, if
 * there is one. Answers 202. */
static int submit_file_job(struct call *call, const char *kind, const char *path,
                           const PGresult *row, json_t *spec, struct error *err)
{
    bool known = row != NULL && PQntuples(row) == 1;
    const char *slash = strrchr(path, '/');
    auto_json *definition = json_mask_secrets(spec);
    char id[64];
    bool existing = false;
    struct job_submission submission = call_submission(call, kind);

    submission.vm_path = slash == NULL ? path : slash + 1;
    submission.output_path = path;
    submission.any_exporter = true;
    submission.definition = definition;
    submission.export_spec = spec;
    if (known) {
        submission.provider = db_text(row, 0, 1);
        submission.vm_path = db_text(row, 0, 2);
        submission.format = db_text(row, 0, 5);
        submission.volume = db_text(row, 0, 4);
    }
    if (job_store_submit(call->db, &submission, id, &existing, err) < 0)
        return -1;
    call_audit(call, "job", id);
    call_answer_job(call, id, path);
    return 0;
}

/* body: canonical, with the passphrase of an encrypted export or without. */
static int submit_verify(struct call *call, const json_t *body, const char *path,
                         const PGresult *row, struct error *err)
{
    auto_seal_key *key = call->gateway->master == NULL
                             ? NULL
                             : seal_master_derive(call->gateway->master, SEAL_EXPORTS);
    auto_json *spec = json_object();
    struct field_problem problem = {0};

    if (submit_seal_passphrase(key, body, "passphrase", spec, &problem, err) < 0)
        return call_fail_field(call, &problem, err);
    json_set_text(spec, "path", path);
    if (PQntuples(row) == 1) {
        json_set_text(spec, "export_id", db_text(row, 0, 0));
        call_resource(call, "export", db_text(row, 0, 0));
    }
    return submit_file_job(call, "verify", path, row, spec, err);
}

int handle_export_verify(struct call *call, struct error *err)
{
    static const struct field fields[] = {
        {"passphrase", {NULL}, FIELD_TEXT, 1, CRYPT_PASSPHRASE_BYTES_MAX, NULL},
        {0},
    };
    const char *id = call_param(call, "id");
    auto_json *body = NULL;
    auto_pgresult *rows = NULL;

    call_resource(call, "export", id);
    if (call_fields(call, fields, &body, err) < 0)
        return -1;
    if (db_exec(call->db, find_sql, DB_PARAMS(id, NULL), &rows, err) < 0)
        return -1;
    if (PQntuples(rows) == 0)
        return error_set(err, ERR_NOT_FOUND, "export '%.64s' does not exist", id);
    return submit_verify(call, body, db_text(rows, 0, 3), rows, err);
}

int handle_export_verify_path(struct call *call, struct error *err)
{
    static const struct field fields[] = {
        {"path", {"export_path", "output_path", NULL}, FIELD_TEXT, 1, FIELD_TEXT_MAX, NULL},
        {"passphrase", {NULL}, FIELD_TEXT, 1, CRYPT_PASSPHRASE_BYTES_MAX, NULL},
        {0},
    };
    auto_json *body = NULL;
    auto_pgresult *rows = NULL;
    autofree char *path = NULL;
    struct error why = ERROR_NONE;

    if (call_fields(call, fields, &body, err) < 0)
        return -1;
    if (json_object_get(body, "path") == NULL)
        return call_bad_field(call, "path", err, "'path' is missing");
    if (path_confine(&call->gateway->bases, field_text(body, "path", ""), &path, &why) < 0) {
        return call_fail(call, why.code == ERR_INVALID ? 400 : 422,
                         json_pack("{s:s}", "field", "path"), err, why.code, "%s", why.message);
    }
    if (db_exec(call->db, find_sql, DB_PARAMS(NULL, path), &rows, err) < 0)
        return -1;
    return submit_verify(call, body, path, rows, err);
}

/* ---- restore points ---- */

/* A job on the chain that the export belongs to. keep: 0 for none. */
static int submit_chain_job(struct call *call, const char *kind, uint64_t keep, struct error *err)
{
    const char *id = call_param(call, "id");
    auto_pgresult *rows = NULL;
    auto_json *spec = json_object();

    call_resource(call, "export", id);
    if (db_exec(call->db, find_sql, DB_PARAMS(id, NULL), &rows, err) < 0)
        return -1;
    if (PQntuples(rows) == 0)
        return error_set(err, ERR_NOT_FOUND, "export '%.64s' does not exist", id);
    if (strcmp(db_text(rows, 0, 5), "qcow2") != 0) {
        return call_fail(call, 422, NULL, err, ERR_NOT_AVAILABLE,
                         "only exports of format qcow2 have restore points");
    }
    json_set_text(spec, "path", db_text(rows, 0, 3));
    json_set_text(spec, "export_id", id);
    if (keep > 0)
        json_set_i64(spec, "keep", (int64_t)keep);
    return submit_file_job(call, kind, db_text(rows, 0, 3), rows, spec, err);
}

int handle_export_check_chain(struct call *call, struct error *err)
{
    static const char *const no_names[] = {NULL};

    if (call->body != NULL && call_check_body(call, no_names, err) < 0)
        return -1;
    return submit_chain_job(call, "check_chain", 0, err);
}

int handle_export_flatten(struct call *call, struct error *err)
{
    static const char *const no_names[] = {NULL};

    if (call->body != NULL && call_check_body(call, no_names, err) < 0)
        return -1;
    return submit_chain_job(call, "flatten", 0, err);
}

int handle_export_prune(struct call *call, struct error *err)
{
    static const struct field fields[] = {{"keep", {NULL}, FIELD_NUMBER, 1, KEEP_MAX, NULL}, {0}};
    auto_json *body = NULL;

    if (call_fields(call, fields, &body, err) < 0)
        return -1;
    if (json_object_get(body, "keep") == NULL)
        return call_bad_field(call, "keep", err, "'keep' is missing: how many points stay");
    return submit_chain_job(call, "prune", field_number(body, "keep", 0), err);
}

/* ---- evidence ---- */

int handle_evidence_key(struct call *call, struct error *err)
{
    auto_seal_key *key = NULL;

    if (call->gateway->master == NULL) {
        return error_set(err, ERR_NOT_AVAILABLE,
                         "there is no evidence without secrets.master_key or master_key_file");
    }
    key = seal_master_derive(call->gateway->master, SEAL_EVIDENCE);
    call_answer_text(call, 200, "application/x-pem-file", seal_public_pem(key));
    return 0;
}
