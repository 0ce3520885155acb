/* Section "providers" of the configuration into tables providers and credentials. */
#include <string.h>

#include "common/autos.h"
#include "common/json.h"
#include "common/log.h"
#include "config_sync.h"
#include "provider_settings.h"

#define SEALED_BYTES_MAX (SEAL_SECRET_BYTES_MAX + SEAL_OVERHEAD_BYTES)

static const char upsert_sql[] =
    "INSERT INTO providers AS p (name, kind, enabled, settings, origin)"
    " VALUES ($1, $2, $3, $4, 'config') ON CONFLICT (name) DO UPDATE"
    " SET kind = $2, enabled = $3, settings = $4, origin = 'config', updated_at = now()"
    " WHERE (p.kind, p.enabled, p.settings, p.origin) IS DISTINCT FROM"
    " ($2, $3::boolean, $4::jsonb, 'config')";
static const char sealed_sql[] = "SELECT sealed FROM credentials WHERE provider = $1";
static const char secrets_sql[] =
    "INSERT INTO credentials (provider, audience, key_id, sealed) VALUES ($1, $2, $3, $4)"
    " ON CONFLICT (provider) DO UPDATE SET audience = $2, key_id = $3, sealed = $4,"
    " updated_at = now()";
static const char no_secrets_sql[] = "DELETE FROM credentials WHERE provider = $1";
/* $1: the names that stay. A provider with unfinished jobs is only disabled: they need it. */
#define GONE \
    " WHERE p.origin = 'config' AND NOT p.name IN (SELECT jsonb_array_elements_text($1::jsonb))"
#define BUSY                                                  \
    " EXISTS (SELECT 1 FROM jobs j WHERE j.provider = p.name" \
    " AND j.status IN ('pending', 'running', 'paused', 'cancelling'))"
static const char disable_sql[] =
    "UPDATE providers p SET enabled = false, updated_at = now()" GONE " AND p.enabled AND" BUSY;
static const char delete_sql[] = "DELETE FROM providers p" GONE " AND NOT" BUSY;

void provider_config_check(const json_t *section, struct strbuf *problems)
{
    const char *name;
    json_t *settings;

    json_object_foreach(json_unconst(section), name, settings)
    {
        auto_provider_settings read = {0};
        struct field_problem problem = {0};
        struct error err = ERROR_NONE;
        if (!provider_name_is_right(name)) {
            strbuf_addf(problems, "providers.%.64s: a name has 1 to 63 of a-z, 0-9, '-', '_'\n",
                        name);
        } else if (provider_settings_read(name, settings, true, &read, &problem, &err) < 0) {
            strbuf_addf(problems, "providers.%s: %s\n", name, err.message);
        }
    }
}

/* Are the stored secrets these? The seal is different each time, so it has to be opened. */
static bool secrets_are(struct db *db, const struct seal_master *master, const char *name,
                        const struct provider_settings *settings)
{
    autofree char *audience = xasprintf("provider:%s", settings->kind);
    autofree char *wanted = json_text(settings->secrets);
    autofree uint8_t *sealed = xmalloc(SEALED_BYTES_MAX);
    auto_pgresult *rows = NULL;
    auto_secret *stored = NULL;
    struct error ignored = ERROR_NONE;
    size_t size = 0;
    size_t plain_size = 0;

    if (db_exec(db, sealed_sql, DB_PARAMS(name), &rows, &ignored) < 0 || PQntuples(rows) == 0 ||
        db_bytea(rows, 0, 0, sealed, SEALED_BYTES_MAX, &size, &ignored) < 0)
        return false;
    auto_seal_key *key = seal_master_derive(master, audience);
    if (seal_open(key, sealed, size, &stored, &plain_size, &ignored) < 0)
        return false;
    auto_json *before = json_loadb(stored, plain_size, 0, NULL);
    auto_json *after = json_loads(wanted, 0, NULL);
    explicit_bzero(wanted, strlen(wanted));
    return before != NULL && json_equal(before, after);
}

static int store_secrets(struct db *db, const struct seal_master *master, const char *name,
                         const struct provider_settings *settings, size_t *changed,
                         struct error *err)
{
    char key_id[SEAL_KEY_ID_SIZE];
    autofree char *audience = xasprintf("provider:%s", settings->kind);
    autofree char *sealed = NULL;
    auto_pgresult *rows = NULL;

    if (json_object_size(settings->secrets) == 0) {
        if (db_exec(db, no_secrets_sql, DB_PARAMS(name), &rows, err) < 0)
            return -1;
        *changed += db_affected(rows);
        return 0;
    }
    if (master == NULL) {
        return error_set(err, ERR_INVALID,
                         "providers.%s holds a secret, but secrets.master_key is not set", name);
    }
    if (secrets_are(db, master, name, settings))
        return 0;
    sealed = provider_secrets_seal(master, settings->kind, settings->secrets, key_id);
    *changed += 1;
    return db_exec(db, secrets_sql, DB_PARAMS(name, audience, key_id, sealed), NULL, err);
}

static int store(struct db *db, const struct seal_master *master, const char *name,
                 const json_t *input, size_t *changed, struct error *err)
{
    auto_provider_settings settings = {0};
    struct field_problem problem = {0};
    auto_pgresult *rows = NULL;
    autofree char *text = NULL;

    if (provider_settings_read(name, input, true, &settings, &problem, err) < 0)
        return error_wrap(err, "providers.%s", name);
    text = json_text(settings.settings);
    if (db_exec(db, upsert_sql,
                DB_PARAMS(name, settings.kind, settings.enabled ? "true" : "false", text), &rows,
                err) < 0)
        return -1;
    *changed += db_affected(rows);
    return store_secrets(db, master, name, &settings, changed, err);
}

int provider_config_sync(const json_t *section, const struct seal_master *master, struct db *db,
                         struct error *err)
{
    auto_json *names = json_array();
    auto_pgresult *disabled = NULL;
    auto_pgresult *deleted = NULL;
    autofree char *list = NULL;
    size_t changed = 0;
    size_t gone;
    const char *name;
    json_t *input;

    if (!json_is_object(section))
        return 0;
    json_object_foreach(json_unconst(section), name, input)
    {
        (void)json_array_append_new(names, json_string(name));
        if (store(db, master, name, input, &changed, err) < 0)
            return -1;
    }
    list = json_text(names);
    if (db_exec(db, disable_sql, DB_PARAMS(list), &disabled, err) < 0 ||
        db_exec(db, delete_sql, DB_PARAMS(list), &deleted, err) < 0)
        return -1;
    gone = db_affected(disabled) + db_affected(deleted);
    if (changed + gone > 0) {
        LOG(INFO, "providers_synced", F_U64("providers", json_array_size(names)),
            F_U64("changed", changed), F_U64("gone", gone));
    }
    return 0;
}
