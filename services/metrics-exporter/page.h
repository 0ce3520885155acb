/* The content of /metrics, read from the database. */
#ifndef METRICS_EXPORTER_PAGE_H
#define METRICS_EXPORTER_PAGE_H

#include "common/db.h"
#include "common/strbuf.h"

MUST_CHECK int page_render(struct db *db, struct strbuf *out, struct error *err);

#endif
