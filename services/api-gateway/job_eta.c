/* See job_eta.h. */
#include "job_eta.h"

#include <string.h>

#include "common/autos.h"
#include "common/clock.h"
#include "common/json.h"

/* Jobs of the same VM and format first. Else the rate at which the provider's newest exports of
 * that format went, if the inventory knows the VM's used bytes. Both go by an index and read few
 * rows. */
static const char HISTORY[] =
    "WITH job AS (SELECT * FROM jobs WHERE id = $1),"
    " same AS (SELECT count(*) AS jobs, avg(d) AS seconds FROM (SELECT extract(epoch FROM"
    "   h.completed_at - h.started_at) AS d FROM jobs h JOIN job j ON h.vm_path = j.vm_path"
    "   AND h.provider = j.provider AND h.kind = j.kind AND h.format = j.format"
    "   WHERE h.status = 'completed' AND h.started_at IS NOT NULL ORDER BY h.seq DESC LIMIT 5) s),"
    " rate AS (SELECT count(*) AS jobs, sum(size) / nullif(sum(d), 0) AS bytes FROM (SELECT"
    "   (h.result->>'total_size')::numeric AS size, extract(epoch FROM h.completed_at -"
    "   h.started_at) AS d FROM (SELECT * FROM jobs r WHERE r.provider = (SELECT provider FROM job)"
    "    ORDER BY r.seq DESC LIMIT 500) h JOIN job j ON h.kind = j.kind AND h.format = j.format"
    "   WHERE h.status = 'completed' AND h.started_at IS NOT NULL"
    "    AND (h.result->>'total_size')::numeric > 0 LIMIT 20) r),"
    " vm AS (SELECT (v.vm->>'used_bytes')::numeric AS used FROM inventory_vms v JOIN"
    "   inventory_state s ON s.provider = v.provider AND s.generation = v.generation JOIN job j"
    "   ON v.provider = j.provider AND (v.id = j.vm_path OR v.path = j.vm_path"
    "   OR v.name = j.vm_path) WHERE j.kind = 'export' LIMIT 1)"
    " SELECT CASE WHEN same.jobs > 0 THEN 'vm' ELSE 'provider' END,"
    " CASE WHEN same.jobs > 0 THEN same.jobs ELSE rate.jobs END,"
    " round(CASE WHEN same.jobs > 0 THEN same.seconds ELSE (SELECT used FROM vm) / rate.bytes END)"
    "  ::bigint FROM same, rate";

static void set_or_null(json_t *object, const char *key, bool known, int64_t value)
{
    json_put(object, key, known ? json_integer(value) : json_null());
}

static void set_completion(json_t *eta, bool known, int64_t seconds)
{
    char at[CLOCK_RFC3339_SIZE];

    if (!known) {
        json_put(eta, "estimated_completion", json_null());
        return;
    }
    clock_rfc3339(clock_wall_ms() + seconds * 1000, at);
    json_set_text(eta, "estimated_completion", at);
}

/* A job that has not begun ends nobody knows when: only its length is known. One that takes longer
 * than the others did is not guessed at. */
static int from_history(struct db *db, const char *job_id, const json_t *progress, json_t *eta,
                        struct error *err)
{
    bool begun = json_is_string(json_object_get(progress, "started_at"));
    int64_t elapsed = (int64_t)json_u64(progress, "elapsed_seconds");
    auto_pgresult *rows = NULL;
    int64_t left;
    bool known;

    if (db_exec(db, HISTORY, DB_PARAMS(job_id), &rows, err) < 0)
        return -1;
    known = PQntuples(rows) == 1 && !db_is_null(rows, 0, 2);
    left = known ? db_i64(rows, 0, 2) - elapsed : 0;
    if (left < 0)
        known = false;
    json_set_text(eta, "basis", known ? "history" : "none");
    set_or_null(eta, "time_remaining_seconds", known, left);
    set_completion(eta, known && begun, left);
    if (!known)
        return 0;
    json_set_i64(eta, "expected_duration_seconds", db_i64(rows, 0, 2));
    json_put(
        eta, "similar",
        json_pack("{s:s, s:I}", "by", db_text(rows, 0, 0), "jobs", (json_int_t)db_i64(rows, 0, 1)));
    return 0;
}

int job_eta(struct db *db, const char *job_id, const json_t *progress, json_t **out,
            struct error *err)
{
    const json_t *seconds = json_object_get(progress, "eta_seconds");
    const json_t *total = json_object_get(progress, "total_bytes");
    const char *status = json_str(progress, "status");
    bool open = strcmp(status, "pending") == 0 || strcmp(status, "running") == 0;
    int64_t left = 0;
    auto_json *eta = json_object();

    set_or_null(eta, "time_remaining_seconds", json_is_integer(seconds),
                json_integer_value(seconds));
    set_completion(eta, json_is_integer(seconds), json_integer_value(seconds));
    json_set_text(eta, "basis", json_is_integer(seconds) ? "bytes" : "none");
    if (open && !json_is_integer(seconds) && from_history(db, job_id, progress, eta, err) < 0)
        return -1;
    (void)json_object_set(eta, "elapsed_seconds", json_object_get(progress, "elapsed_seconds"));
    (void)json_object_set(eta, "percent_complete", json_object_get(progress, "percentage"));
    (void)json_object_set(eta, "transfer_rate_mbps",
                          json_object_get(progress, "transfer_rate_mbps"));
    if (json_is_integer(total))
        left = (int64_t)(json_integer_value(total) - (json_int_t)json_u64(progress, "bytes_done"));
    set_or_null(eta, "bytes_remaining", json_is_integer(total), left < 0 ? 0 : left);
    *out = STEAL(eta);
    return 0;
}
