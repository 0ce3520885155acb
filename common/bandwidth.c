/* See bandwidth.h. */
#include "common/bandwidth.h"

#include "common/json.h"

static uint64_t ceiling_mb(const json_t *job)
{
    uint64_t limit = field_number(job, "bandwidth_limit_mbps", 0);

    if (!field_bool(job, "adaptive_bandwidth", false))
        return limit;
    return field_number(job, "bandwidth_max_mbps", limit > 0 ? limit : BANDWIDTH_ADAPTIVE_MB_MAX);
}

static uint64_t floor_mb(const json_t *job)
{
    return field_bool(job, "adaptive_bandwidth", false) ? field_number(job, "bandwidth_min_mbps", 1)
                                                        : 0;
}

int bandwidth_check(const json_t *job, struct field_problem *problem, struct error *err)
{
    static const char *const adaptive_only[] = {"bandwidth_min_mbps", "bandwidth_max_mbps"};
    uint64_t limit = field_number(job, "bandwidth_limit_mbps", 0);

    for (size_t i = 0; i < ARRAY_LEN(adaptive_only); i++) {
        if (json_object_get(job, adaptive_only[i]) != NULL &&
            !field_bool(job, "adaptive_bandwidth", false)) {
            return field_fail(problem, 422, adaptive_only[i], err, ERR_INVALID,
                              "'%s' needs 'adaptive_bandwidth'", adaptive_only[i]);
        }
    }
    if (field_number(job, "bandwidth_burst_mb", 0) > 0 && ceiling_mb(job) == 0) {
        return field_fail(problem, 422, "bandwidth_burst_mb", err, ERR_INVALID,
                          "'bandwidth_burst_mb' needs a 'bandwidth_limit_mbps'");
    }
    if (limit > 0 && ceiling_mb(job) > limit) {
        return field_fail(problem, 422, "bandwidth_max_mbps", err, ERR_INVALID,
                          "'bandwidth_max_mbps' is over 'bandwidth_limit_mbps'");
    }
    if (floor_mb(job) > ceiling_mb(job)) {
        return field_fail(problem, 422, "bandwidth_min_mbps", err, ERR_INVALID,
                          "'bandwidth_min_mbps' is over the largest rate of %llu MB/s",
                          (unsigned long long)ceiling_mb(job));
    }
    return 0;
}

json_t *bandwidth_spec(const json_t *job)
{
    json_t *spec = json_object();

    json_set_i64(spec, "rate", (int64_t)(ceiling_mb(job) * MIB));
    json_set_i64(spec, "burst", (int64_t)(field_number(job, "bandwidth_burst_mb", 0) * MIB));
    json_set_i64(spec, "floor", (int64_t)(floor_mb(job) * MIB));
    return spec;
}

bool bandwidth_is_given(const json_t *job)
{
    return ceiling_mb(job) > 0;
}
