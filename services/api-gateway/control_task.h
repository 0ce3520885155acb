/* Short work for a worker that a request waits for: the gateway inserts a control task, wakes the
 * scheduler, and waits for the result row (architecture section 4, "Slots"). */
#ifndef GATEWAY_CONTROL_TASK_H
#define GATEWAY_CONTROL_TASK_H

#include "handler_util.h"

#define CONTROL_WAIT_MS   30000        /* afterwards 202 with the task */
#define CONTROL_KEEP_TEXT "15 minutes" /* how long the row can be asked for */

struct control_task {
    char id[ID_SIZE];
    char state[16]; /* "queued", "leased", "done", "failed", "cancelled" ... */
    json_t *result; /* NULL: none yet; owned */
    char error[ERROR_MESSAGE_MAX];
    enum error_code error_code; /* of a failed task */
};
void control_task_release(struct control_task *task);
#define auto_control_task CLEANUP(control_task_release) struct control_task

struct control_request {
    const char *kind; /* "inventory", "vm_info", "validate", "incremental_info", "tracking" */
    const char *provider;
    const char *provider_kind;
    json_t *spec; /* borrowed */
    int64_t wait_ms;
    const char *volume; /* only workers that reach it; NULL or "": any */
    bool bridge;        /* work of hyper2kvm-bridge; provider and provider_kind are "" */
    bool share;         /* a task of this kind and provider that is under way already will do */
};
/* Inserts (or joins) and waits up to wait_ms; *out says how far it came: done, failed, or still
 * under way. -1 only when the database fails. */
MUST_CHECK int control_task_run(struct call *call, const struct control_request *request,
                                struct control_task *out, struct error *err);
bool control_task_is_over(const struct control_task *task);
/* Turns a failed task into the answer's error: what the caller asked for cannot be done is 422,
 * a source that does not answer 503. extra (may be NULL, taken) as in call_fail. Returns -1. */
int control_task_fail(struct call *call, const struct control_task *task, json_t *extra_taken,
                      struct error *err);
/* The whole answer: member `name` of the result with a timestamp (200), control_task_fail, or 202.
 */
MUST_CHECK int control_task_answer(struct call *call, const struct control_task *task,
                                   const char *name, struct error *err);
/* 202 with the id to ask for at /api/v1/tasks/{id}. */
void control_task_answer_later(struct call *call, const struct control_task *task);

#endif
