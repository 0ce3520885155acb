/* The bandwidth of a whole worker process: by its configuration (export.bandwidth_limit_mbps,
 * bandwidth_burst_mb and bandwidth_profiles, read again at SIGHUP), or by the API, which wins. */
#ifndef EXPORTER_WORKER_LIMIT_H
#define EXPORTER_WORKER_LIMIT_H

#include "common/config_schema.h"
#include "common/strbuf.h"
#include "services/exporter/engine/rate_limit.h"
#include "services/exporter/engine/rate_profile.h"

struct worker_limit {
    uint64_t limit_mb; /* per second, when no profile holds; 0: no limit */
    uint64_t burst_mb; /* 0: 2 x the rate */
    struct rate_profile profiles[RATE_PROFILES_MAX];
    size_t profile_count;
    struct rate_settings applied; /* by worker_limit_apply; none at first */
};

/* Problems, one a line, go to `problems`. */
void worker_limit_read(const struct export_config *config, struct worker_limit *out,
                       struct strbuf *problems);
/* Sets what holds at this local time, or `set` unless that is NULL; says so in the log when it is
 * news. One thread. */
void worker_limit_apply(struct worker_limit *limit, const struct tm *local,
                        const struct rate_settings *set, struct rate_limiter *limiter);
/* Reads the file again. What is wrong with it is logged, and `limit` stays as it was. */
void worker_limit_reload(const char *path, struct worker_limit *limit);

#endif
