/* See page.h. Gauges are statements whose columns are labels, the last one the value. */
#include "page.h"

#include <string.h>

#include "common/log.h"
#include "common/metrics.h"
#include "common/service.h"
#include "totals.h"

#define LABELS_BYTES_MAX 2048
#define TEXT2(x)         #x
#define TEXT(x)          TEXT2(x)

static const char totals_sql[] =
    "SELECT name, labels, value FROM metric_totals ORDER BY name, labels"
    " LIMIT " TEXT(TOTALS_ROWS_MAX);

static const char providers_sql[] = "SELECT DISTINCT provider FROM inventory_state WHERE provider "
                                    "<> '' ORDER BY provider LIMIT 500";

struct gauge {
    const char *name;
    const char *help;
    const char *sql;
};

/* A row of zero stands for "none": a scaler must not take it for "unknown". */
static const struct gauge gauges[] = {
    {"hypersdk_active_jobs", "Jobs that run, are paused or being cancelled",
     "SELECT count(*) FROM jobs WHERE status IN ('running', 'paused', 'cancelling')"},
    {"hypersdk_queued_jobs", "Jobs that wait for a worker",
     "SELECT count(*) FROM jobs WHERE status = 'pending'"},
    {"hypersdk_queued_tasks", "Tasks that wait for a slot, by who can take them",
     "SELECT k.role, k.provider, k.class, count(t.id) FROM"
     " (SELECT w.role, w.provider, c.class FROM workers w,"
     "  (VALUES ('transfer'), ('control')) AS c(class)"
     "  UNION SELECT role, provider_kind, class FROM tasks WHERE state = 'queued')"
     " AS k(role, provider, class)"
     " LEFT JOIN tasks t ON t.state = 'queued' AND t.role = k.role"
     " AND t.provider_kind = k.provider AND t.class = k.class"
     " GROUP BY 1, 2, 3 ORDER BY 1, 2, 3"},
    {"hypersdk_workers", "Worker processes by state",
     "SELECT role, provider, state, count(*) FROM workers GROUP BY 1, 2, 3 ORDER BY 1, 2, 3"},
    {"hypersdk_worker_slots", "Slots of the workers that are up",
     "SELECT role, provider, 'transfer' AS class, sum(slots_transfer) FROM workers"
     " WHERE state = 'up' GROUP BY 1, 2 UNION ALL"
     " SELECT role, provider, 'control', sum(slots_control) FROM workers"
     " WHERE state = 'up' GROUP BY 1, 2 ORDER BY 1, 2, 3"},
    {"hypersdk_vms_discovered", "VMs of the newest complete inventory",
     "SELECT v.provider, v.power_state,"
     " CASE WHEN v.vm->>'guest_os' ILIKE '%windows%' THEN 'windows'"
     "      WHEN v.vm->>'guest_os' ~* '(linux|ubuntu|debian|centos|red "
     "?hat|rhel|suse|fedora|photon|"
     "alma|rocky)' THEN 'linux'"
     "      WHEN coalesce(v.vm->>'guest_os', '') = '' THEN 'unknown' ELSE 'other' END AS os_type,"
     " count(*) FROM inventory_vms v JOIN inventory_state s"
     " ON s.provider = v.provider AND s.generation = v.generation"
     " GROUP BY 1, 2, 3 ORDER BY 1, 2, 3"},
    {"hypersdk_inventory_age_seconds", "Time since the newest complete inventory",
     "SELECT provider, extract(epoch FROM now() - completed_at) FROM inventory_state ORDER BY 1"},
    {"hypersdk_webhook_deliveries_pending", "Webhook deliveries that are still to be made",
     "SELECT count(*) FROM deliveries WHERE state = 'pending'"},
    {"hypersdk_scheduler_leading", "1 while a scheduler holds the leadership",
     "SELECT count(*) FROM leader WHERE until > now()"},
};

static int render_gauge(struct db *db, const struct gauge *gauge, struct strbuf *out,
                        struct error *err)
{
    auto_pgresult *rows = NULL;
    int value;

    if (db_exec(db, gauge->sql, DB_NO_PARAMS, &rows, err) < 0)
        return error_wrap(err, "%s", gauge->name);
    value = PQnfields(rows) - 1;
    metric_header_add(out, gauge->name, "gauge", gauge->help);
    for (int row = 0; row < PQntuples(rows); row++) {
        auto_strbuf labels;
        strbuf_init(&labels, LABELS_BYTES_MAX);
        for (int column = 0; column < value; column++)
            metric_label(&labels, PQfname(rows, column), db_text(rows, row, column));
        if (!labels.overflowed) {
            metric_sample_add(out, gauge->name, labels.data,
                              strtod(db_text(rows, row, value), NULL));
        }
    }
    return 0;
}

static int add_rows(struct totals *totals, const PGresult *rows)
{
    for (int row = 0; row < PQntuples(rows); row++) {
        struct error err = ERROR_NONE;
        if (totals_add(totals, db_text(rows, row, 0), db_text(rows, row, 1),
                       strtod(db_text(rows, row, 2), NULL), &err) < 0)
            LOG(WARN, "metric_row_refused", F_ERR(&err));
    }
    return 0;
}

static int render_totals(struct db *db, struct strbuf *out, struct error *err)
{
    auto_totals *totals = totals_new();
    auto_pgresult *rows = NULL;
    auto_pgresult *names = NULL;
    autofree char **providers = NULL;
    size_t count;

    if (db_exec(db, totals_sql, DB_NO_PARAMS, &rows, err) < 0 ||
        db_exec(db, providers_sql, DB_NO_PARAMS, &names, err) < 0)
        return error_wrap(err, "metric totals");
    count = (size_t)PQntuples(names);
    providers = xcalloc(count, sizeof *providers);
    for (size_t i = 0; i < count; i++)
        providers[i] = PQgetvalue(names, (int)i, 0);
    if (add_rows(totals, rows) < 0)
        return -1;
    totals_add_promised(totals, providers, count);
    totals_render(totals, out);
    return 0;
}

int page_render(struct db *db, struct strbuf *out, struct error *err)
{
    if (render_totals(db, out, err) < 0)
        return -1;
    for (size_t i = 0; i < ARRAY_LEN(gauges); i++) {
        if (render_gauge(db, &gauges[i], out, err) < 0)
            return -1;
    }
    metric_header_add(out, "hypersdk_build_info", "gauge", "The version that runs");
    metric_sample_add(out, "hypersdk_build_info", "version=\"" HYPERSDK_VERSION "\"", 1);
    if (out->overflowed)
        return error_set(err, ERR_LIMIT, "the page is over %zu bytes", out->size_max);
    return 0;
}
