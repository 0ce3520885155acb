/* Counters that survive restarts, in table metric_totals: written in the transaction of the change
 * that they count, rendered by the metrics-exporter. Names and labels as Prometheus shows them.
 *
 * Histograms: a row <name>_bucket with the label "le" per bucket that was hit (not cumulative: one
 * observation changes one row), <name>_sum, <name>_count. The metrics-exporter adds them up. */
#ifndef COMMON_METRIC_TOTALS_H
#define COMMON_METRIC_TOTALS_H

#include <jansson.h>

#include "common/db.h"

/* Seconds of a job as texts of "le", rising; "+Inf" last. Never changed: rows of old bounds stay.
 */
extern const char *const metric_duration_bounds[];
extern const size_t metric_duration_bounds_count;

/* What one transaction adds; stored in one statement and in one order, so that two transactions do
 * not deadlock. */
struct metric_batch {
    json_t *items;
};
void metric_batch_init(struct metric_batch *batch);
void metric_batch_release(struct metric_batch *batch);
#define auto_metric_batch CLEANUP(metric_batch_release) struct metric_batch

/* labels: object of texts, borrowed; NULL: none. */
void metric_batch_add(struct metric_batch *batch, const char *name, const json_t *labels,
                      double value);
/* One duration into the histogram `name`. */
void metric_batch_observe(struct metric_batch *batch, const char *name, const json_t *labels,
                          double seconds);
/* Inside the caller's transaction. An empty batch is no statement. */
MUST_CHECK int metric_batch_store(struct db *db, const struct metric_batch *batch,
                                  struct error *err);

#endif
