/* A program as a child: no shell, own session, output by lines, ended with its whole group. */
#ifndef BRIDGE_CHILD_H
#define BRIDGE_CHILD_H

#include <stdatomic.h>
#include <sys/types.h>

#include "common/error.h"

#define CHILD_LINE_BYTES_MAX 2000  /* one job log line; longer ones are split */
#define CHILD_KILL_MS        10000 /* between SIGTERM and SIGKILL (hyper2kvm-contract 4.5) */

struct child_options {
    const char *const *argv;    /* NULL-terminated; argv[0] is looked up on PATH */
    const char *name;           /* in messages; NULL: argv[0] */
    const char *const *env;     /* NULL-terminated "NAME=value", instead of our own; may be NULL */
    const char *const *env_if;  /* likewise, but what our environment has stays; may be NULL */
    bool env_only;              /* env is all that it gets of an environment */
    const atomic_bool *stopped; /* may be NULL */
    int64_t timeout_ms;         /* whole run */
    int64_t silence_ms;         /* longest time without output; 0: no limit */
    uint64_t memory_max;        /* address space in bytes; 0: no limit */
    void (*started)(void *arg, pid_t pid);     /* pid is also its group; may be NULL */
    void (*line)(void *arg, const char *line); /* stdout and stderr; may be NULL */
    void (*tick)(void *arg);                   /* about every second; may be NULL */
    void *arg;
};

/* Waits for the end; calls back on this thread. *out_status: exit code, or 128 + signal.
 * However it ends, nothing of the child's group runs any more. ERR_NOT_FOUND: no such program.
 * ERR_CANCELLED, ERR_TIMEOUT: it was stopped. */
MUST_CHECK int child_run(const struct child_options *options, int *out_status, struct error *err);
/* Output of a short run as text (stdout and stderr), cut at size_max; options->line is not used. */
MUST_CHECK int child_output(const struct child_options *options, size_t size_max, char **out,
                            int *out_status, struct error *err);

/* A child that a process which is gone may have left running: text (caller frees) that says
 * which process of which boot `pid` is. */
char *child_mark(pid_t pid);
/* Kills the group of the child that the text names, if it is still that process and of this
 * machine; waits for its end. */
void child_end_marked(const char *mark);

#endif
