/* Prometheus text of table metric_totals (common/metric_totals.h): counters as they are, histograms
 * added up. Families that users were promised are there from the start, with 0. */
#ifndef METRICS_EXPORTER_TOTALS_H
#define METRICS_EXPORTER_TOTALS_H

#include "common/db.h"
#include "common/strbuf.h"

#define TOTALS_ROWS_MAX 20000 /* series; more is a bug of the writers, the rest is not shown */

struct totals; /* rows by family */

struct totals *totals_new(void);
void totals_free(struct totals *totals);
DEFINE_AUTO(totals, struct totals, totals_free)
#define auto_totals CLEANUP(totals_auto) struct totals

/* One row. labels: JSON object of texts. ERR_INVALID: malformed, nothing was added. */
MUST_CHECK int totals_add(struct totals *totals, const char *name, const char *labels, double value,
                          struct error *err);
/* Zeroes of promised counters that have no row: jobs by status and provider, deliveries by result,
 * exported VMs and bytes, the duration histogram. providers: names, may be empty. */
void totals_add_promised(struct totals *totals, char *const *providers, size_t count);
void totals_render(const struct totals *totals, struct strbuf *out);

#endif
