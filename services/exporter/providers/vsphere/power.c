/* See power.h. */
#include "services/exporter/providers/vsphere/power.h"

#include <inttypes.h>
#include <string.h>

#include "common/clock.h"
#include "services/exporter/providers/vsphere/task.h"

#define POLL_MS        500
#define INVALID_STATE  "InvalidPowerState" /* it is so already, or just becoming so */
#define FAULT_NO_TOOLS "ToolsUnavailable"

/* False: it cannot be told, err says why. */
static bool is_off(struct provider_session *session, const char *vm_id, bool *out,
                   struct error *err)
{
    enum vm_power power = VM_POWER_UNKNOWN;

    if (inventory_power(session, vm_id, &power, err) < 0)
        return false;
    *out = power == VM_POWER_OFF;
    return true;
}

/* PowerOnVM_Task or PowerOffVM_Task. */
static int switch_power(struct provider_session *session, const char *vm_id, const char *method,
                        struct error *err)
{
    auto_strbuf request = {0};

    if (session_login(session, err) < 0)
        return -1;
    strbuf_init(&request, SOAP_REQUEST_BYTES_MAX);
    soap_begin(&request, method, "VirtualMachine", vm_id);
    soap_end(&request, method);
    return task_run(session, method, &request, POWER_TASK_TIMEOUT_MS, NULL, err);
}

/* Somebody else may be quicker: what counts is what it is like then. */
static int switch_to(struct provider_session *session, const char *vm_id, bool on,
                     struct error *err)
{
    struct error look = ERROR_NONE;
    bool off = false;

    if (switch_power(session, vm_id, on ? "PowerOnVM_Task" : "PowerOffVM_Task", err) == 0)
        return 0;
    if (err->code == ERR_CANCELLED || !is_off(session, vm_id, &off, &look) || off == on)
        return -1;
    error_clear(err);
    return 0;
}

/* *out_why: "" when the guest was asked, else why it cannot be. */
static int ask_guest(struct provider_session *session, const char *vm_id, char *out_why,
                     size_t size, struct error *err)
{
    auto_strbuf request = {0};
    auto_soap_reply reply = {0};

    out_why[0] = '\0';
    if (session_login(session, err) < 0)
        return -1;
    strbuf_init(&request, SOAP_REQUEST_BYTES_MAX);
    soap_begin(&request, "ShutdownGuest", "VirtualMachine", vm_id);
    soap_end(&request, "ShutdownGuest");
    if (session_call(session, "ShutdownGuest", &request, 0, &reply, err) == 0)
        return 0;
    if (strcmp(reply.fault.type, INVALID_STATE) == 0) {
        error_clear(err);
        return 0;
    }
    if (reply.fault.type[0] == '\0' || err->code == ERR_DENIED || err->code == ERR_NOT_FOUND)
        return -1;
    (void)snprintf(out_why, size, "%s",
                   strcmp(reply.fault.type, FAULT_NO_TOOLS) == 0 ? "VMware Tools do not run in it"
                                                                 : err->message);
    error_clear(err);
    return 0;
}

/* *out: it is off within that time. */
static int wait_off(struct provider_session *session, const char *vm_id, int64_t timeout_ms,
                    bool *out, struct error *err)
{
    int64_t deadline = clock_mono_ms() + timeout_ms;

    *out = false;
    for (;;) {
        if (!is_off(session, vm_id, out, err))
            return -1;
        if (*out || clock_mono_ms() >= deadline)
            return 0;
        if (session_nap(session, POLL_MS, err) < 0)
            return -1;
    }
}

static int stop(struct provider_session *session, const char *vm_id,
                const struct shutdown_options *options, enum shutdown_end *out, struct error *err)
{
    char why[ERROR_MESSAGE_MAX];
    bool off = false;

    if (ask_guest(session, vm_id, why, sizeof why, err) < 0)
        return -1;
    if (why[0] == '\0') {
        if (wait_off(session, vm_id, options->timeout_ms, &off, err) < 0)
            return -1;
        *out = SHUTDOWN_BY_GUEST;
        if (off)
            return 0;
        (void)snprintf(why, sizeof why, "it did not do so within %" PRId64 " s",
                       options->timeout_ms / 1000);
    }
    *out = SHUTDOWN_HARD;
    if (options->hard)
        return switch_to(session, vm_id, false, err);
    /* not to be tried again by itself: nothing would be different */
    return error_set(err, ERR_CONFLICT, "the guest cannot be shut down: %.400s", why);
}

int power_shut_down(struct provider_session *session, const char *vm_id,
                    const struct shutdown_options *options, struct task_records *records,
                    enum shutdown_end *out, struct error *err)
{
    const char *recorded = records->get(records, PROVIDER_KEY_POWER_ON);
    enum vm_power power = VM_POWER_UNKNOWN;

    if (inventory_power(session, vm_id, &power, err) < 0)
        return -1;
    *out = SHUTDOWN_WAS_OFF;
    if (power != VM_POWER_ON)
        return 0; /* what a suspended one lacks is said when it is prepared */
    if (options->power_on_after && (recorded == NULL || strcmp(recorded, vm_id) != 0) &&
        records->put(records, PROVIDER_KEY_POWER_ON, vm_id, err) < 0)
        return -1;
    return stop(session, vm_id, options, out, err);
}

static int start(struct provider_session *session, const char *vm_id, struct error *err)
{
    bool off = false;

    if (!is_off(session, vm_id, &off, err)) {
        if (err->code != ERR_NOT_FOUND)
            return -1;
        error_clear(err); /* the VM is gone */
        return 0;
    }
    return off ? switch_to(session, vm_id, true, err) : 0;
}

int power_restore(struct provider_session *session, struct task_records *records, struct error *err)
{
    const char *vm_id = records->get(records, PROVIDER_KEY_POWER_ON);

    if (vm_id == NULL || vm_id[0] == '\0')
        return 0;
    if (start(session, vm_id, err) < 0)
        return error_wrap(err, "powering the VM on again");
    return records->put(records, PROVIDER_KEY_POWER_ON, "", err);
}
