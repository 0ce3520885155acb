/* A program as a child: no shell, own session, output by lines, ended with its whole group. */
#ifndef BRIDGE_CHILD_H
#define BRIDGE_CHILD_H

#include <stdatomic.h>

#include "common/error.h"

#define CHILD_LINE_BYTES_MAX 2000  /* one job log line; longer ones are split */
#define CHILD_KILL_MS        10000 /* between SIGTERM and SIGKILL (hyper2kvm-contract 4.5) */
#define CHILD_ENV_MAX        256   /* variables, ours and the inherited ones */

struct child_options {
    const char *const *argv; /* NULL-terminated; argv[0] is looked up on PATH */
    const char *const *env;  /* NULL-terminated "NAME=value" added to (or replacing) our own */
    const atomic_bool *stopped;
    int64_t timeout_ms;                        /* whole run */
    int64_t silence_ms;                        /* longest time without output; 0: no limit */
    void (*line)(void *arg, const char *line); /* stdout and stderr; may be NULL */
    void (*tick)(void *arg);                   /* about every second; may be NULL */
    void *arg;
};

/* Waits for the end. *out_status: exit code, or 128 + signal. ERR_NOT_FOUND: no such program.
 * ERR_CANCELLED, ERR_TIMEOUT: stopped, and the whole group is gone. */
MUST_CHECK int child_run(const struct child_options *options, int *out_status, struct error *err);
/* Output of a short run as text (stdout and stderr), cut at size_max. */
MUST_CHECK int child_output(const char *const *argv, int64_t timeout_ms, size_t size_max,
                            char **out, int *out_status, struct error *err);

#endif
