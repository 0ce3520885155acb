/* Counters, gauges and histograms of this process, rendered as Prometheus text.
 * Thread-safe; registered once, never freed. Labels are given as one ready text:
 * `method="GET",status_code="200"` with values escaped by metric_label(). */
#ifndef COMMON_METRICS_H
#define COMMON_METRICS_H

#include "common/strbuf.h"

#define METRIC_SERIES_MAX 2000 /* more label combinations are a bug; further ones are dropped */

void metric_add(const char *name, const char *labels, double value);     /* counter */
void metric_set(const char *name, const char *labels, double value);     /* gauge */
void metric_observe(const char *name, const char *labels, double value); /* histogram, seconds */
/* Help text for name: said once, where the module starts. */
void metric_describe(const char *name, const char *help);
/* name="value" with escaping, appended after a comma when labels is not empty. */
void metric_label(struct strbuf *labels, const char *name, const char *value);
/* For those who render values of their own (metrics-exporter): the two comment lines of a family
 * (help may be NULL), and one sample. */
#define METRIC_VALUE_SIZE 32
void metric_value_text(double value, char out[METRIC_VALUE_SIZE]);
void metric_header_add(struct strbuf *out, const char *name, const char *type, const char *help);
void metric_sample_add(struct strbuf *out, const char *name, const char *labels, double value);
/* Everything, with process_* (RSS, CPU, fds, threads, start time) and hypersdk_build_info. */
void metrics_render(struct strbuf *out);

#endif
