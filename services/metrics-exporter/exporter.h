/* The metrics-exporter process: one page, /metrics at metrics.address, read from PostgreSQL at each
 * scrape (at most once a second, however many scrape). When the database does not answer the page
 * is 503 with the reason: Prometheus then shows the target as down instead of old figures. */
#ifndef METRICS_EXPORTER_EXPORTER_H
#define METRICS_EXPORTER_EXPORTER_H

#include "common/service.h"

int exporter_configure(const struct config_file *file, struct strbuf *problems, struct error *err);
int exporter_run(struct service *service, struct error *err);

#endif
