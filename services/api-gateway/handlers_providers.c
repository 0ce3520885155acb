/* Providers: what is configured, and whether it works (rest-api.md 2.4, 4.3). Secrets come in and
 * are sealed; none ever goes out. */
#include <stdio.h>
#include <string.h>

#include "common/json.h"
#include "control_task.h"
#include "handlers.h"
#include "common/provider_lookup.h"
#include "provider_settings.h"

#define PROVIDER_COLUMNS                                                            \
    "p.name, p.kind, p.enabled, p.origin, " SQL_TIME("p.created_at") ", " SQL_TIME( \
        "p.updated_at") ", p.settings, c.key_id, " SQL_TIME("c.updated_at")
enum {
    COL_NAME,
    COL_KIND,
    COL_ENABLED,
    COL_ORIGIN,
    COL_CREATED,
    COL_UPDATED,
    COL_SETTINGS,
    COL_KEY_ID,
    COL_SECRETS_UPDATED
};
#define PROVIDERS_FROM " FROM providers p LEFT JOIN credentials c ON c.provider = p.name"

static const char list_sql[] = "SELECT " PROVIDER_COLUMNS PROVIDERS_FROM " ORDER BY p.name";
static const char one_sql[] = "SELECT " PROVIDER_COLUMNS PROVIDERS_FROM " WHERE p.name = $1";
static const char lock_sql[] = "SELECT 1 FROM providers WHERE name = $1 FOR UPDATE";
static const char insert_sql[] =
    "INSERT INTO providers (name, kind, enabled, settings) VALUES ($1, $2, $3, $4)"
    " ON CONFLICT (name) DO NOTHING";
static const char update_sql[] =
    "UPDATE providers SET enabled = $2, settings = $3, updated_at = now() WHERE name = $1";
static const char secrets_sql[] =
    "INSERT INTO credentials (provider, audience, key_id, sealed) VALUES ($1, $2, $3, $4)"
    " ON CONFLICT (provider) DO UPDATE SET audience = $2, key_id = $3, sealed = $4,"
    " updated_at = now()";
static const char sealed_sql[] =
    "SELECT encode(sealed, 'hex') FROM credentials WHERE provider = $1";
static const char busy_sql[] = "SELECT count(*) FROM jobs WHERE provider = $1"
                               " AND status IN ('pending', 'running', 'paused', 'cancelling')";
static const char delete_sql[] = "DELETE FROM providers WHERE name = $1";

static json_t *provider_of(const PGresult *rows, int row)
{
    json_t *provider = json_object();
    auto_json *settings = cell_json(rows, row, COL_SETTINGS);
    json_t *credentials = json_null();

    (void)json_object_set_new(provider, "name", cell_text(rows, row, COL_NAME));
    (void)json_object_set_new(provider, "kind", cell_text(rows, row, COL_KIND));
    (void)json_object_set_new(provider, "enabled", json_boolean(db_bool(rows, row, COL_ENABLED)));
    (void)json_object_set_new(provider, "origin", cell_text(rows, row, COL_ORIGIN));
    (void)json_object_set_new(provider, "settings", json_mask_secrets(settings));
    if (!db_is_null(rows, row, COL_KEY_ID)) {
        credentials = json_object();
        (void)json_object_set_new(credentials, "key_id", cell_text(rows, row, COL_KEY_ID));
        (void)json_object_set_new(credentials, "updated_at",
                                  cell_text(rows, row, COL_SECRETS_UPDATED));
    }
    (void)json_object_set_new(provider, "credentials", credentials);
    (void)json_object_set_new(provider, "created_at", cell_text(rows, row, COL_CREATED));
    (void)json_object_set_new(provider, "updated_at", cell_text(rows, row, COL_UPDATED));
    return provider;
}

int handle_provider_list(struct call *call, struct error *err)
{
    auto_pgresult *rows = NULL;
    json_t *answer;
    json_t *list;

    if (db_exec(call->db, list_sql, DB_NO_PARAMS, &rows, err) < 0)
        return -1;
    answer = json_object();
    list = json_array();
    for (int i = 0; i < PQntuples(rows); i++)
        (void)json_array_append_new(list, provider_of(rows, i));
    (void)json_object_set_new(answer, "providers", list);
    json_set_i64(answer, "total", PQntuples(rows));
    json_set_now(answer, "timestamp");
    call_answer_json(call, 200, answer);
    return 0;
}

static int load(struct call *call, const char *name, PGresult **out, struct error *err)
{
    auto_pgresult *rows = NULL;

    if (db_exec(call->db, one_sql, DB_PARAMS(name), &rows, err) < 0)
        return -1;
    if (PQntuples(rows) == 0)
        return error_set(err, ERR_NOT_FOUND, "provider '%.63s' does not exist", name);
    *out = STEAL(rows);
    return 0;
}

static int answer_provider(struct call *call, unsigned int status, const char *name,
                           struct error *err)
{
    auto_pgresult *rows = NULL;

    if (load(call, name, &rows, err) < 0)
        return -1;
    call_answer_json(call, status, provider_of(rows, 0));
    return 0;
}

int handle_provider_get(struct call *call, struct error *err)
{
    return answer_provider(call, 200, call_param(call, "name"), err);
}

/* The settings stand beside name, kind and enabled, or in a member "settings" (as answers show
 * them) or "config". One object of them all, without the name. New reference. */
static int flatten(struct call *call, const json_t *body, json_t **out, struct error *err)
{
    static const char *const nests[] = {"settings", "config"};
    auto_json *flat = json_object();
    const char *key;
    json_t *value;

    json_object_foreach(json_unconst(body), key, value)
    {
        if (strcmp(key, "name") != 0 &&
            !word_in(key, (const char *const[]){"settings", "config", "provider", NULL}))
            (void)json_object_set(flat, key, value);
    }
    for (size_t i = 0; i < ARRAY_LEN(nests); i++) {
        json_t *nested = json_object_get(body, nests[i]);
        if (nested == NULL || json_is_null(nested))
            continue;
        if (!json_is_object(nested))
            return call_bad_field(call, nests[i], err, "'%s' must be an object", nests[i]);
        json_object_foreach(nested, key, value)
        {
            const json_t *before = json_object_get(flat, key);
            if (before != NULL && !json_equal(before, value)) {
                return call_bad_field(call, key, err, "'%s' is given twice with different values",
                                      key);
            }
            (void)json_object_set(flat, key, value);
        }
    }
    *out = STEAL(flat);
    return 0;
}

/* Without a master key nothing can be sealed, and nothing secret is stored unsealed. */
static int check_master(struct call *call, const struct provider_settings *settings,
                        struct error *err)
{
    if (call->gateway->master != NULL || json_object_size(settings->secrets) == 0)
        return 0;
    return call_fail(
        call, 503, NULL, err, ERR_UNAVAILABLE,
        "secrets cannot be sealed: secrets.master_key is not set in the configuration");
}

static int read_body(struct call *call, const char *name, struct provider_settings *out,
                     struct error *err)
{
    auto_json *flat = NULL;
    struct field_problem problem = {0};

    if (flatten(call, call->body, &flat, err) < 0)
        return -1;
    if (provider_settings_read(name, flat, false, out, &problem, err) < 0)
        return call_fail_field(call, &problem, err);
    return check_master(call, out, err);
}

static int store_secrets(struct call *call, const char *name,
                         const struct provider_settings *settings, struct error *err)
{
    char key_id[SEAL_KEY_ID_SIZE];
    autofree char *audience = xasprintf("provider:%s", settings->kind);
    autofree char *sealed = NULL;

    if (json_object_size(settings->secrets) == 0)
        return 0;
    sealed =
        provider_secrets_seal(call->gateway->master, settings->kind, settings->secrets, key_id);
    return db_exec(call->db, secrets_sql, DB_PARAMS(name, audience, key_id, sealed), NULL, err);
}

static int insert(struct call *call, const char *name, const struct provider_settings *settings,
                  struct error *err)
{
    autofree char *text = json_text(settings->settings);
    auto_pgresult *rows = NULL;

    if (db_begin(call->db, err) < 0)
        return -1;
    if (db_exec(call->db, insert_sql,
                DB_PARAMS(name, settings->kind, settings->enabled ? "true" : "false", text), &rows,
                err) < 0)
        return -1;
    if (db_affected(rows) == 0) {
        return error_set(err, ERR_CONFLICT,
                         "provider '%s' exists already: PUT /api/v1/providers/%s changes it", name,
                         name);
    }
    return store_secrets(call, name, settings, err) < 0 ? -1 : db_commit(call->db, err);
}

int handle_provider_add(struct call *call, struct error *err)
{
    auto_provider_settings settings = {0};
    const char *name = json_str(call->body, "name");
    bool is_short = (call->route->flags & ROUTE_SHORT) != 0;
    int rc;

    if (json_object_get(call->body, "name") == NULL && json_is_object(call->body))
        name = json_str(call->body, "kind"); /* one of a kind needs no other name */
    if (!provider_name_is_right(name)) {
        return call_bad_field(call, "name", err,
                              "'name' must have 1 to 63 of a-z, 0-9, '-' and '_', and begin with a "
                              "letter or digit");
    }
    call_resource(call, "provider", name);
    if (read_body(call, name, &settings, err) < 0)
        return -1;
    rc = insert(call, name, &settings, err);
    db_rollback(call->db); /* nothing to do after a commit */
    if (rc < 0)
        return -1;
    if (!is_short) {
        autofree char *location = xasprintf("/api/v1/providers/%s", name);
        call_set_header(call, "Location", location);
    }
    return answer_provider(call, is_short ? 200 : 201, name, err);
}

/* Configuration's own providers change there only: the next start would undo it. */
static int check_origin(const PGresult *rows, const char *name, struct error *err)
{
    if (strcmp(db_text(rows, 0, COL_ORIGIN), "config") != 0)
        return 0;
    return error_set(err, ERR_CONFLICT,
                     "provider '%s' comes from the configuration file: change it there", name);
}

/* Without new secrets the stored ones stay, unless they would be shown to someone else then. */
static int check_secrets_stay(struct call *call, const PGresult *rows,
                              const struct provider_settings *settings, struct error *err)
{
    auto_json *before = cell_json(rows, 0, COL_SETTINGS);
    const char *changed;

    if (db_is_null(rows, 0, COL_KEY_ID) || json_object_size(settings->secrets) > 0)
        return 0;
    changed = provider_setting_needs_secret(before, settings->settings);
    if (changed == NULL)
        return 0;
    return call_fail(call, 422, json_pack("{s:s}", "field", changed), err, ERR_INVALID,
                     "'%s' decides who gets to see the stored password: send the password again",
                     changed);
}

static int update(struct call *call, const char *name, struct error *err)
{
    auto_provider_settings settings = {0};
    auto_pgresult *rows = NULL;
    autofree char *text = NULL;
    const json_t *renamed = json_object_get(call->body, "name");

    if (renamed != NULL && strcmp(json_str(call->body, "name"), name) != 0)
        return call_bad_field(call, "name", err, "'name': a provider cannot be renamed");
    if (db_begin(call->db, err) < 0 ||
        db_exec(call->db, lock_sql, DB_PARAMS(name), NULL, err) < 0 ||
        load(call, name, &rows, err) < 0 || check_origin(rows, name, err) < 0)
        return -1;
    if (json_object_get(call->body, "kind") == NULL) /* stays what it is */
        json_set_text(call->body, "kind", db_text(rows, 0, COL_KIND));
    if (read_body(call, name, &settings, err) < 0)
        return -1;
    if (strcmp(settings.kind, db_text(rows, 0, COL_KIND)) != 0)
        return call_bad_field(call, "kind", err, "'kind' of a provider cannot be changed");
    if (check_secrets_stay(call, rows, &settings, err) < 0)
        return -1;
    text = json_text(settings.settings);
    if (db_exec(call->db, update_sql, DB_PARAMS(name, settings.enabled ? "true" : "false", text),
                NULL, err) < 0 ||
        store_secrets(call, name, &settings, err) < 0)
        return -1;
    return db_commit(call->db, err);
}

int handle_provider_put(struct call *call, struct error *err)
{
    const char *name = call_param(call, "name");
    int rc;

    call_resource(call, "provider", name);
    if (!json_is_object(call->body))
        return call_bad_field(call, "settings", err, "the settings of a provider are missing");
    rc = update(call, name, err);
    db_rollback(call->db);
    if (rc < 0)
        return -1;
    gateway_poke(call->gateway, NULL); /* jobs may have waited for it to be enabled */
    return answer_provider(call, 200, name, err);
}

static int drop(struct call *call, const char *name, struct error *err)
{
    auto_pgresult *rows = NULL;
    auto_pgresult *busy = NULL;

    if (db_begin(call->db, err) < 0 ||
        db_exec(call->db, lock_sql, DB_PARAMS(name), NULL, err) < 0 ||
        load(call, name, &rows, err) < 0 || check_origin(rows, name, err) < 0 ||
        db_exec(call->db, busy_sql, DB_PARAMS(name), &busy, err) < 0)
        return -1;
    if (db_i64(busy, 0, 0) > 0) {
        return error_set(err, ERR_CONFLICT, "provider '%s' has %lld unfinished jobs", name,
                         (long long)db_i64(busy, 0, 0));
    }
    if (db_exec(call->db, delete_sql, DB_PARAMS(name), NULL, err) < 0)
        return -1;
    return db_commit(call->db, err);
}

int handle_provider_delete(struct call *call, struct error *err)
{
    const char *name = call_param(call, "name");
    json_t *answer;
    int rc;

    call_resource(call, "provider", name);
    rc = drop(call, name, err);
    db_rollback(call->db);
    if (rc < 0)
        return -1;
    answer = json_object();
    json_set_text(answer, "deleted", name);
    json_set_now(answer, "timestamp");
    call_answer_json(call, 200, answer);
    return 0;
}

/* ---- validate ---- */

/* The spec of the check with settings of the request laid over the stored ones. Only who may
 * change providers may do that, and the stored secrets go to nobody new. */
static int override_spec(struct call *call, const char *name, const PGresult *rows,
                         const json_t *config, json_t *spec, struct error *err)
{
    auto_provider_settings given = {0};
    auto_json *merged = cell_json(rows, 0, COL_SETTINGS);
    auto_json *named = json_copy(json_unconst(config));
    auto_pgresult *stored = NULL;
    autofree char *sealed = NULL;
    char key_id[SEAL_KEY_ID_SIZE];
    struct field_problem problem = {0};

    if (!identity_may(&call->identity, "settings.manage"))
        return error_set(err, ERR_DENIED, "permission 'settings.manage' is missing");
    if (json_object_get(named, "kind") == NULL)
        json_set_text(named, "kind", db_text(rows, 0, COL_KIND));
    if (provider_settings_read(name, named, false, &given, &problem, err) < 0)
        return call_fail_field(call, &problem, err);
    if (strcmp(given.kind, db_text(rows, 0, COL_KIND)) != 0)
        return call_bad_field(call, "config.kind", err, "'kind' of a provider cannot be changed");
    (void)json_object_update(merged, given.settings);
    json_decref(given.settings);
    given.settings = json_incref(merged);
    if (check_secrets_stay(call, rows, &given, err) < 0 || check_master(call, &given, err) < 0)
        return -1;
    if (json_object_size(given.secrets) > 0) {
        sealed = provider_secrets_seal(call->gateway->master, given.kind, given.secrets, key_id);
        json_set_text(spec, "sealed_secrets_hex", sealed + strlen("\\x"));
    } else if (!db_is_null(rows, 0, COL_KEY_ID)) {
        if (db_exec(call->db, sealed_sql, DB_PARAMS(name), &stored, err) < 0)
            return -1;
        json_set_text(spec, "sealed_secrets_hex", db_text(stored, 0, 0));
    }
    (void)json_object_del(merged, "export_limit"); /* the scheduler's */
    (void)json_object_set(spec, "settings", merged);
    return 0;
}

/* Facts of a check that could not even begin: settings or login are no good. */
static json_t *refused_check(const struct control_task *task)
{
    json_t *facts = json_object();

    (void)json_object_set_new(facts, "valid", json_false());
    (void)json_object_set_new(facts, "reachable", json_false());
    (void)json_object_set_new(facts, "authenticated", json_false());
    (void)json_object_set_new(facts, "latency_ms", json_null());
    json_set_text(facts, "version", "");
    (void)json_object_set_new(facts, "permissions_missing", json_array());
    json_set_text(facts, "error", task->error);
    return facts;
}

static int answer_check(struct call *call, const struct control_task *task, const char *name,
                        struct error *err)
{
    json_t *answer;

    if (!control_task_is_over(task)) {
        control_task_answer_later(call, task);
        return 0;
    }
    if (strcmp(task->state, "done") == 0 && json_is_object(task->result)) {
        answer = json_mask_secrets(task->result);
    } else if (task->error_code == ERR_INVALID || task->error_code == ERR_DENIED) {
        answer = refused_check(task);
    } else {
        return control_task_fail(call, task, NULL, err);
    }
    json_set_text(answer, "provider", name);
    json_set_now(answer, "timestamp");
    call_answer_json(call, 200, answer);
    return 0;
}

/* {name} of the path, or provider of the body (default vsphere), and the override. */
static int read_validate(struct call *call, const char **out_name, const json_t **out_config,
                         struct error *err)
{
    static const char *const keys[] = {"provider", "config", "settings", NULL};
    const char *name = call_param(call, "name");
    const json_t *config = json_object_get(call->body, "config");

    if (call->body != NULL && json_check_keys(call->body, keys, err) < 0)
        return -1;
    if (json_get_string(call->body, "provider", PROVIDER_DEFAULT, out_name, err) < 0)
        return -1;
    if (name[0] != '\0') {
        if (json_object_get(call->body, "provider") != NULL && strcmp(*out_name, name) != 0)
            return call_bad_field(call, "provider", err, "'provider': the path names another one");
        *out_name = name;
    }
    if (config == NULL)
        config = json_object_get(call->body, "settings");
    if (config != NULL && !json_is_null(config) && !json_is_object(config))
        return call_bad_field(call, "config", err, "'config' must be an object");
    *out_config = json_object_size(config) > 0 ? config : NULL;
    return 0;
}

int handle_provider_validate(struct call *call, struct error *err)
{
    const char *name = NULL;
    const json_t *config = NULL;
    auto_pgresult *rows = NULL;
    auto_json *spec = json_object();
    auto_control_task task = {0};
    struct provider_row row;
    struct field_problem problem = {0};

    if (read_validate(call, &name, &config, err) < 0)
        return -1;
    call_resource(call, "provider", name);
    if (provider_lookup(call->db, name, false, &row, &problem, err) < 0)
        return problem.status == 0 ? -1 : call_fail_field(call, &problem, err);
    if (load(call, name, &rows, err) < 0)
        return -1;
    if (config != NULL && override_spec(call, name, rows, config, spec, err) < 0)
        return -1;
    const struct control_request request = {.kind = "validate",
                                            .provider = name,
                                            .provider_kind = row.kind,
                                            .spec = spec,
                                            .wait_ms = CONTROL_WAIT_MS};
    if (control_task_run(call, &request, &task, err) < 0)
        return -1;
    return answer_check(call, &task, name, err);
}
