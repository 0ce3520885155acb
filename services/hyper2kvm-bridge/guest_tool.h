/* A program that opens guests by libguestfs (hyper2kvm, virt-v2v) as a child over the work copies
 * of a stage: no shell, its output in the job's log, the whole group ended with it. */
#ifndef BRIDGE_GUEST_TOOL_H
#define BRIDGE_GUEST_TOOL_H

#include "stage.h"

struct guest_tool {
    struct conversion *c;
    const struct stage *stage;
    const char *name;        /* in the log and in errors */
    const char *const *argv; /* NULL-terminated */
    const char *tmp;         /* the variable that tells it where to put large temporary files */
    void (*line)(void *arg, const char *line); /* also called for lines that are not logged */
    void (*tick)(void *arg);                   /* about every second; may be NULL */
    void *arg;
};

/* ERR_INTERNAL: it ended with another status than 0; ERR_TIMEOUT, ERR_CANCELLED: it was ended. */
MUST_CHECK int guest_tool_run(const struct guest_tool *tool, struct error *err);
/* Is argv[0] there, and is `needed` among what it prints? -1 with *out_absent: it is not there, or
 * does not know `needed`. */
MUST_CHECK int guest_tool_probe(const struct conversion *c, const char *const *argv,
                                const char *needed, bool *out_absent, struct error *err);

#endif
