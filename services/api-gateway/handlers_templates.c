/* Templates of jobs (rest-api.md section 6): kept here, expanded when a job is submitted. */
#include <string.h>

#include "common/autos.h"
#include "common/clock.h"
#include "common/job_template.h"
#include "common/json.h"
#include "common/placeholders.h"
#include "handler_util.h"
#include "handlers.h"

#define VIEW                                                                                 \
    "jsonb_build_object('name', name, 'template', template, 'origin', origin, 'created_by'," \
    " created_by, 'created_at', " SQL_TIME("created_at") ", 'updated_at', " SQL_TIME(        \
        "updated_at") ")"

static const char list_sql[] = "SELECT " VIEW " FROM templates ORDER BY name LIMIT 1000";
static const char get_sql[] = "SELECT " VIEW " FROM templates WHERE name = $1";
static const char insert_sql[] = "INSERT INTO templates (name, template, created_by)"
                                 " VALUES ($1, $2::jsonb, $3) ON CONFLICT DO NOTHING RETURNING 1";
static const char put_sql[] =
    "INSERT INTO templates AS t (name, template, created_by) VALUES ($1, $2::jsonb, $3)"
    " ON CONFLICT (name) DO UPDATE SET template = $2::jsonb, updated_at = now()"
    " WHERE t.origin = 'api' RETURNING 1";
static const char delete_sql[] =
    "DELETE FROM templates WHERE name = $1 AND origin = 'api' RETURNING 1";

/* Those of files are changed there. */
static int not_ours(const char *name, struct error *err)
{
    return error_set(err, ERR_CONFLICT,
                     "template '%.64s' comes from a file of templates.dir: change it there", name);
}

static int view(struct call *call, const char *name, json_t **out, struct error *err)
{
    auto_pgresult *rows = NULL;

    call_resource(call, "template", name);
    if (db_exec(call->db, get_sql, DB_PARAMS(name), &rows, err) < 0)
        return -1;
    if (PQntuples(rows) == 0)
        return error_set(err, ERR_NOT_FOUND, "there is no template '%.64s'", name);
    *out = cell_json(rows, 0, 0);
    return 0;
}

static int answer_one(struct call *call, unsigned int status, const char *name, struct error *err)
{
    json_t *template = NULL;

    if (view(call, name, &template, err) < 0)
        return -1;
    call_answer_json(call, status, template);
    return 0;
}

int handle_template_list(struct call *call, struct error *err)
{
    auto_pgresult *rows = NULL;
    json_t *list;

    if (db_exec(call->db, list_sql, DB_NO_PARAMS, &rows, err) < 0)
        return -1;
    list = json_array();
    for (int i = 0; i < PQntuples(rows); i++)
        (void)json_array_append_new(list, cell_json(rows, i, 0));
    call_answer_json(call, 200, json_pack("{s:o}", "templates", list));
    return 0;
}

int handle_template_get(struct call *call, struct error *err)
{
    return answer_one(call, 200, call_param(call, "name"), err);
}

/* Its text for the table. */
static int read_template(struct call *call, const char *name, const json_t *template, char **out,
                         struct error *err)
{
    auto_json *canonical = NULL;
    struct field_problem problem = {0};

    if (!json_is_object(template))
        return call_bad_field(call, "template", err, "'template' must be an object of job fields");
    if (job_template_name_check(name, &problem, err) < 0 ||
        job_template_canonical(&call->gateway->templates, template, &canonical, &problem, err) < 0)
        return call_fail_field(call, &problem, err);
    *out = json_text(canonical);
    return 0;
}

/* {"name", "template"}, or the template itself when its name has no placeholders. */
int handle_template_create(struct call *call, struct error *err)
{
    const char *name = json_str(call->body, "name");
    const json_t *wrapped = json_object_get(call->body, "template");
    auto_pgresult *rows = NULL;
    autofree char *text = NULL;

    call_resource(call, "template", name);
    if (read_template(call, name, wrapped != NULL ? wrapped : call->body, &text, err) < 0 ||
        db_exec(call->db, insert_sql, DB_PARAMS(name, text, call->identity.username), &rows, err) <
            0)
        return -1;
    if (PQntuples(rows) == 0)
        return error_set(err, ERR_CONFLICT, "there is a template '%.64s' already", name);
    return answer_one(call, (call->route->flags & ROUTE_SHORT) != 0 ? 200 : 201, name, err);
}

/* The body is the template. */
int handle_template_put(struct call *call, struct error *err)
{
    const char *name = call_param(call, "name");
    auto_pgresult *rows = NULL;
    autofree char *text = NULL;

    call_resource(call, "template", name);
    if (read_template(call, name, call->body, &text, err) < 0 ||
        db_exec(call->db, put_sql, DB_PARAMS(name, text, call->identity.username), &rows, err) < 0)
        return -1;
    if (PQntuples(rows) == 0)
        return not_ours(name, err);
    return answer_one(call, 200, name, err);
}

int handle_template_delete(struct call *call, struct error *err)
{
    const char *name = call_param(call, "name");
    auto_pgresult *rows = NULL;
    auto_json *before = NULL;

    if (view(call, name, &before, err) < 0 ||
        db_exec(call->db, delete_sql, DB_PARAMS(name), &rows, err) < 0)
        return -1;
    if (PQntuples(rows) == 0)
        return not_ours(name, err);
    call_answer_json(call, 200, json_pack("{s:s}", "deleted", name));
    return 0;
}

int handle_template_render(struct call *call, struct error *err)
{
    static const struct field fields[] = {{"vars", {NULL}, FIELD_OBJECT, 0, 0, NULL}, {0}};
    auto_json *none = json_object();
    auto_json *body = NULL;
    auto_json *template = NULL;
    auto_json *vars = NULL;
    json_t *job = NULL;
    struct field_problem problem = {0};
    const char *name = call_param(call, "name");

    call_resource(call, "template", name);
    if (fields_canonical(fields, "", call->body == NULL ? none : call->body, &body, &problem, err) <
        0)
        return call_fail_field(call, &problem, err);
    if (job_template_load(call->db, name, &template, err) < 0)
        return -1;
    vars = placeholders_vars(&(struct placeholder_facts){.now_ms = clock_wall_ms(),
                                                         .env = &call->gateway->templates.env});
    if (placeholders_merge(vars, json_object_get(body, "vars"), &problem, err) < 0 ||
        placeholders_expand(template, vars, &job, &problem, err) < 0)
        return call_fail_field(call, &problem, err);
    call_answer_json(call, 200, job);
    return 0;
}
