/* See cleanup_job.h. */
#include "common/cleanup_job.h"

#include <string.h>

#include "common/autos.h"
#include "common/job_store.h"
#include "common/json.h"

#define CLEANUP_PRIORITY 50

static const char FIND_VOLUME[] =
    "SELECT v->>'id' FROM workers w, jsonb_array_elements(w.volumes) v WHERE w.state = 'up'"
    " AND w.role = 'exporter' AND ($1 = v->>'path' OR starts_with($1, (v->>'path') || '/')) LIMIT "
    "1";

int cleanup_submit(struct db *db, const struct cleanup_request *request, char out_id[64],
                   struct error *err)
{
    const struct retry_config *retry = request->retry;
    const char *dir = json_str(request->spec, "dir");
    bool known = request->volume != NULL && request->volume[0] != '\0';
    const char *slash = strrchr(dir, '/');
    auto_pgresult *volume = NULL;
    bool existing = false;
    struct job_submission submission = {
        .name = "",
        .kind = "cleanup",
        .provider = "",
        .any_exporter = true,
        .vm_path = slash == NULL ? dir : slash + 1,
        .output_path = dir,
        .format = "",
        .definition = request->spec,
        .export_spec = request->spec,
        .priority = CLEANUP_PRIORITY,
        .max_attempts = retry->max_attempts,
        .retry_initial_ms = retry->initial_delay_ms,
        .retry_max_ms = retry->max_delay_ms,
        .submitted_by = request->submitted_by,
        .trace_id = request->trace_id,
        .schedule_id = request->schedule_id,
    };

    if (known) {
        submission.volume = request->volume;
    } else if (db_exec(db, FIND_VOLUME, DB_PARAMS(dir), &volume, err) < 0) {
        return -1;
    } else if (PQntuples(volume) == 1) {
        submission.volume = db_text(volume, 0, 0);
    }
    return job_store_submit(db, &submission, out_id, &existing, err);
}
