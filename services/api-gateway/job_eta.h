/* When a job will probably be done (rest-api.md 3.9): from its bytes, else from how long similar
 * exports took. */
#ifndef GATEWAY_JOB_ETA_H
#define GATEWAY_JOB_ETA_H

#include <jansson.h>

#include "common/db.h"

/* The object "eta" of a job that progress (progress_view) describes; the row is one of JOB_COLUMNS.
 * What nobody knows is null. New reference in *out. */
MUST_CHECK int job_eta(struct db *db, const char *job_id, const json_t *progress, json_t **out,
                       struct error *err);

#endif
