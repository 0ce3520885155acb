/* See config_sync.h. */
#include "config_sync.h"

#include "common/autos.h"
#include "common/json.h"

/* Gateways that start together take turns; ends with the transaction. */
static const char lock_sql[] = "SELECT pg_advisory_xact_lock(hashtext('hypersdk.config_sync'))";

/* The sections as JSON; a problem when one cannot be read. */
static int sections(const struct config_file *file, json_t **out_providers, json_t **out_webhooks,
                    struct error *err)
{
    if (config_section_json(file, "providers", out_providers, err) < 0)
        return -1;
    return config_section_json(file, "webhooks", out_webhooks, err);
}

void config_sync_check(const struct config_file *file, struct strbuf *problems)
{
    auto_json *providers = NULL;
    auto_json *webhooks = NULL;
    struct error err = ERROR_NONE;

    if (sections(file, &providers, &webhooks, &err) < 0) {
        strbuf_addf(problems, "%s\n", err.message);
        return;
    }
    provider_config_check(providers, problems);
    webhook_config_check(webhooks, problems);
}

int config_sync(const struct config_file *file, const struct seal_master *master, struct db *db,
                struct error *err)
{
    auto_json *providers = NULL;
    auto_json *webhooks = NULL;

    if (sections(file, &providers, &webhooks, err) < 0 || db_begin(db, err) < 0)
        return -1;
    if (db_exec(db, lock_sql, DB_NO_PARAMS, NULL, err) < 0 ||
        provider_config_sync(providers, master, db, err) < 0 ||
        webhook_config_sync(webhooks, master, db, err) < 0 || db_commit(db, err) < 0) {
        db_rollback(db);
        return -1;
    }
    return 0;
}
