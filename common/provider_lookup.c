/* See provider_lookup.h. */
#include "common/provider_lookup.h"

#include <stdio.h>

static const char one_sql[] = "SELECT kind, enabled FROM providers WHERE name = $1";
static const char names_sql[] = "SELECT name FROM providers ORDER BY name LIMIT 50";

static int unknown(struct db *db, const char *name, struct field_problem *problem,
                   struct error *err)
{
    auto_pgresult *rows = NULL;
    auto_strbuf names;

    strbuf_init(&names, 300); /* what an error message has room for */
    if (db_exec(db, names_sql, DB_NO_PARAMS, &rows, err) < 0)
        return -1;
    for (int i = 0; i < PQntuples(rows); i++)
        strbuf_addf(&names, "%s%s", i == 0 ? "" : ", ", db_text(rows, i, 0));
    return field_fail(problem, 422, "provider", err, ERR_INVALID,
                      "provider '%.63s' is not configured; configured: %s", name,
                      PQntuples(rows) == 0 ? "none" : names.data);
}

int provider_lookup(struct db *db, const char *name, bool must_be_enabled, struct provider_row *out,
                    struct field_problem *problem, struct error *err)
{
    auto_pgresult *rows = NULL;

    if (db_exec(db, one_sql, DB_PARAMS(name), &rows, err) < 0)
        return -1;
    if (PQntuples(rows) == 0)
        return unknown(db, name, problem, err);
    out->enabled = db_bool(rows, 0, 1);
    if (must_be_enabled && !out->enabled) {
        return field_fail(problem, 422, "provider", err, ERR_CONFLICT,
                          "provider '%.63s' is disabled", name);
    }
    (void)snprintf(out->kind, sizeof out->kind, "%s", db_text(rows, 0, 0));
    return 0;
}
