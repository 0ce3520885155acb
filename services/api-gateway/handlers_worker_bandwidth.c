/* /api/v1/workers/{kind}/bandwidth: what all transfers of a worker process may take together. */
#include "common/bandwidth.h"
#include "common/json.h"
#include "common/worker_bandwidth.h"
#include "handler_util.h"
#include "handlers.h"
#include "provider_settings.h"

static const struct field limit_fields[] = {
    {"bandwidth_limit_mbps", {"bandwidth_limit"}, FIELD_NUMBER, 0, BANDWIDTH_MB_MAX, NULL},
    {"bandwidth_burst_mb", {"bandwidth_burst"}, FIELD_NUMBER, 0, BANDWIDTH_MB_MAX, NULL},
    {0},
};

static int kind_of(struct call *call, const char **out, struct error *err)
{
    *out = call_param(call, "kind");
    call_resource(call, "workers", *out);
    return word_in(*out, provider_kinds_known)
               ? 0
               : error_set(err, ERR_NOT_FOUND, "'%.64s' is no kind of provider", *out);
}

static int answer(struct call *call, const char *kind, struct error *err)
{
    struct worker_bandwidth value;
    json_t *json;

    if (worker_bandwidth_get(call->db, kind, &value, err) < 0)
        return -1;
    json = json_object();
    json_set_text(json, "kind", kind);
    json_set_text(json, "source", value.set ? "api" : "configuration");
    if (value.set) {
        json_set_i64(json, "bandwidth_limit_mbps", (int64_t)(value.rate / MIB));
        json_set_i64(json, "bandwidth_burst_mb", (int64_t)(value.burst / MIB));
    }
    json_set_now(json, "timestamp");
    call_answer_json(call, 200, json);
    return 0;
}

int handle_worker_bandwidth_get(struct call *call, struct error *err)
{
    const char *kind;

    return kind_of(call, &kind, err) < 0 ? -1 : answer(call, kind, err);
}

int handle_worker_bandwidth_put(struct call *call, struct error *err)
{
    struct worker_bandwidth value = {.set = true};
    struct field_problem problem = {0};
    auto_json *fields = NULL;
    const char *kind;

    if (kind_of(call, &kind, err) < 0)
        return -1;
    if (call_fields(call, limit_fields, &fields, err) < 0)
        return -1;
    if (json_object_get(fields, "bandwidth_limit_mbps") == NULL) {
        return call_bad_field(call, "bandwidth_limit_mbps", err,
                              "'bandwidth_limit_mbps' is missing (0: no limit)");
    }
    if (bandwidth_check(fields, &problem, err) < 0)
        return call_fail_field(call, &problem, err);
    value.rate = field_number(fields, "bandwidth_limit_mbps", 0) * MIB;
    value.burst = field_number(fields, "bandwidth_burst_mb", 0) * MIB;
    if (worker_bandwidth_put(call->db, kind, &value, err) < 0)
        return -1;
    return answer(call, kind, err);
}

int handle_worker_bandwidth_delete(struct call *call, struct error *err)
{
    const struct worker_bandwidth none = {0};
    const char *kind;

    if (kind_of(call, &kind, err) < 0 || worker_bandwidth_put(call->db, kind, &none, err) < 0)
        return -1;
    return answer(call, kind, err);
}
