/* The VM is shut down before it is read, when that is asked for. */
#include <inttypes.h>
#include <string.h>

#include "common/autos.h"
#include "common/clock.h"
#include "common/json.h"
#include "common/shutdown_wish.h"
#include "services/exporter/engine/export_run.h"

static const char *const keys[] = {"timeout_ms", "on_error", "power_on", NULL};

static int read_wish(const json_t *wish, struct shutdown_options *out, bool *out_goes_on,
                     struct error *err)
{
    const char *policy = "fail";
    uint64_t timeout_ms = 0;

    if (json_check_keys(wish, keys, err) < 0 ||
        json_get_u64(wish, "timeout_ms", 0, SHUTDOWN_TIMEOUT_MS_MAX, SHUTDOWN_TIMEOUT_MS,
                     &timeout_ms, err) < 0 ||
        json_get_string(wish, "on_error", "fail", &policy, err) < 0 ||
        json_get_bool(wish, "power_on", false, &out->power_on_after, err) < 0)
        return error_wrap(err, "shutdown");
    out->timeout_ms = (int64_t)timeout_ms;
    out->hard = strcmp(policy, "power_off") == 0;
    *out_goes_on = strcmp(policy, "continue") == 0;
    return 0;
}

static void tell(struct export_run *run, enum shutdown_end end, int64_t took_ms)
{
    static const char *const texts[] = {"the VM is off already", "the guest has shut down",
                                        "the guest did not shut down: the VM was powered off"};

    worker_task_log(run->task, end == SHUTDOWN_HARD ? LOG_LEVEL_WARN : LOG_LEVEL_INFO,
                    "%s (%" PRId64 " s)", texts[end], took_ms / 1000);
}

int export_shut_down(struct export_run *run, struct error *err)
{
    const struct provider *provider = run->exporter->provider;
    const json_t *wish = json_object_get(worker_task_spec(run->task), "shutdown");
    struct shutdown_options options = {0};
    enum shutdown_end end = SHUTDOWN_WAS_OFF;
    struct error cause;
    int64_t begin_ms = clock_mono_ms();
    bool goes_on = false;

    if (wish == NULL)
        return 0;
    if (read_wish(wish, &options, &goes_on, err) < 0)
        return -1;
    if (provider->shut_down == NULL) {
        return error_set(err, ERR_NOT_AVAILABLE,
                         "%s cannot shut a guest down: leave shutdown_vm out and do it yourself",
                         provider->title);
    }
    export_phase(run, "shutdown");
    worker_task_log(run->task, LOG_LEVEL_INFO,
                    "the guest is asked to shut down, for at most %" PRId64 " s",
                    options.timeout_ms / 1000);
    if (provider->shut_down(run->session.session, run->vm_id, &options, &run->records.base, &end,
                            err) == 0) {
        tell(run, end, clock_mono_ms() - begin_ms);
        return export_step_done(run, EXPORT_STEP_SHUTDOWN, err);
    }
    if (!goes_on || err->code == ERR_CANCELLED || error_is_retryable(err))
        return -1;
    cause = *err;
    error_clear(err);
    worker_task_log(run->task, LOG_LEVEL_WARN, "%s; the export goes on, as asked", cause.message);
    return export_step_failed(run, EXPORT_STEP_SHUTDOWN, &cause, err);
}
