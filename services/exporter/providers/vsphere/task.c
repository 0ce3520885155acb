#include "services/exporter/providers/vsphere/task.h"

#include <string.h>

#include "common/clock.h"

#define POLL_MS_MIN INT64_C(50)
#define POLL_MS_MAX INT64_C(2000)

static const char *const task_paths[] = {"info", NULL};
const struct property_set task_set = {"Task", task_paths};

enum task_state { TASK_FAILED = -1, TASK_RUNNING, TASK_DONE, TASK_FORGOTTEN };

/* Looks once; on TASK_DONE *out_result is its result (caller frees) or "". */
static enum task_state task_look(struct provider_session *session, const char *task,
                                 const char *what, char **out_result, struct error *err)
{
    auto_soap_reply reply = {0};
    const xmlNode *object = NULL, *info;
    const char *state;

    if (property_get(session, &task_set, task, &reply, &object, err) < 0) {
        if (err->code != ERR_NOT_FOUND)
            return TASK_FAILED;
        error_clear(err);
        return TASK_FORGOTTEN;
    }
    info = property_value(object, "info");
    state = soap_text(info, "state");
    if (strcmp(state, "error") == 0) {
        const xmlNode *error = soap_child(info, "error");
        struct soap_fault fault;
        soap_fault_read(soap_child(error, "fault"), soap_text(error, "localizedMessage"), &fault);
        (void)soap_fault_error(&fault, what, err);
        /* The task has ended: looking again will not help, unlike with a lost answer. */
        return TASK_FAILED;
    }
    if (strcmp(state, "success") == 0) {
        *out_result = xstrdup(soap_text(info, "result"));
        return TASK_DONE;
    }
    if (strcmp(state, "running") == 0 || strcmp(state, "queued") == 0)
        return TASK_RUNNING;
    (void)error_set(err, ERR_PROTOCOL, "%s: task '%s' is in the unknown state '%.32s'", what, task,
                    state);
    return TASK_FAILED;
}

int task_wait(struct provider_session *session, const char *task, const char *what,
              int64_t timeout_ms, char **out_result, struct error *err)
{
    int64_t deadline = clock_mono_ms() + timeout_ms, pause = POLL_MS_MIN;
    autofree char *result = NULL;

    for (;;) {
        switch (task_look(session, task, what, &result, err)) {
        case TASK_FAILED:
            return -1;
        case TASK_FORGOTTEN:
            return error_set(err, ERR_UNAVAILABLE, "%s: vCenter has forgotten task '%s'", what,
                             task);
        case TASK_DONE:
            if (out_result != NULL)
                *out_result = STEAL(result);
            return 0;
        case TASK_RUNNING:
            break;
        }
        if (clock_mono_ms() >= deadline) {
            return error_set(err, ERR_TIMEOUT,
                             "%s: not done after %lld s; it still runs in vCenter", what,
                             (long long)(timeout_ms / 1000));
        }
        if (session_nap(session, pause, err) < 0)
            return -1;
        pause = pause * 2 > POLL_MS_MAX ? POLL_MS_MAX : pause * 2;
    }
}

int task_start(struct provider_session *session, const char *method, const struct strbuf *request,
               char **out_task, struct error *err)
{
    auto_soap_reply reply = {0};
    const char *task;

    if (session_call(session, method, request, 0, &reply, err) < 0)
        return -1;
    task = soap_text(reply.response, "returnval");
    if (!soap_id_is_sane(task))
        return error_set(err, ERR_PROTOCOL, "%s: the answer names no task", method);
    *out_task = xstrdup(task);
    return 0;
}

int task_run(struct provider_session *session, const char *method, const struct strbuf *request,
             int64_t timeout_ms, char **out_result, struct error *err)
{
    autofree char *task = NULL;

    if (task_start(session, method, request, &task, err) < 0)
        return -1;
    return task_wait(session, task, method, timeout_ms, out_result, err);
}
