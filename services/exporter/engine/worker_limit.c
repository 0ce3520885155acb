/* See worker_limit.h. */
#include "services/exporter/engine/worker_limit.h"

#include "common/autos.h"
#include "common/log.h"

void worker_limit_read(const struct export_config *config, struct worker_limit *out,
                       struct strbuf *problems)
{
    const struct config_list *lines = &config->bandwidth_profiles;

    *out = (struct worker_limit){.limit_mb = config->bandwidth_limit_mbps,
                                 .burst_mb = config->bandwidth_burst_mb};
    if (lines->count > RATE_PROFILES_MAX) {
        strbuf_addf(problems, "export.bandwidth_profiles: %zu lines, at most %d are allowed\n",
                    lines->count, RATE_PROFILES_MAX);
    }
    for (size_t i = 0; i < lines->count && i < RATE_PROFILES_MAX; i++) {
        struct error err = ERROR_NONE;
        if (rate_profile_parse(lines->items[i], &out->profiles[i], &err) < 0) {
            strbuf_addf(problems, "export.bandwidth_profiles: %s\n", err.message);
        } else {
            out->profile_count = i + 1;
        }
    }
}

void worker_limit_apply(struct worker_limit *limit, const struct tm *local,
                        const struct rate_settings *set, struct rate_limiter *limiter)
{
    const struct rate_profile *profile =
        rate_profile_find(limit->profiles, limit->profile_count, local);
    uint64_t mb = profile != NULL ? profile->mb : limit->limit_mb;
    struct rate_settings settings = {.rate = mb * MIB, .burst = limit->burst_mb * MIB};

    if (set != NULL)
        settings = *set;
    if (settings.rate == limit->applied.rate && settings.burst == limit->applied.burst)
        return;
    limit->applied = settings;
    rate_limiter_set(limiter, &settings);
    LOG(INFO, "bandwidth_limit", F_U64("mb_per_second", settings.rate / MIB),
        F_BOOL("profile", set == NULL && profile != NULL), F_BOOL("api", set != NULL));
}

static int load(const char *path, struct worker_limit *out, struct error *err)
{
    auto_config_file *file = NULL;
    struct export_config config = {0};
    auto_strbuf problems;

    strbuf_init(&problems, CONFIG_PROBLEMS_BYTES_MAX);
    if (config_file_load(path, &file, &problems, err) < 0 ||
        config_section(file, "export", &config, &problems, err) < 0)
        return -1;
    worker_limit_read(&config, out, &problems);
    config_section_release("export", &config);
    return problems.length == 0
               ? 0
               : error_set(err, ERR_INVALID, "configuration: %.400s", problems.data);
}

void worker_limit_reload(const char *path, struct worker_limit *limit)
{
    struct error err = ERROR_NONE;
    struct worker_limit next;

    if (load(path, &next, &err) < 0) {
        LOG(ERROR, "config_reload_failed", F_ERR(&err));
        return;
    }
    next.applied = limit->applied;
    *limit = next;
    LOG(INFO, "config_reloaded");
}
