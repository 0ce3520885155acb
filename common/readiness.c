/* Named conditions whose AND is a process's readiness; see service_admin.h. */
#include "common/service_admin.h"

#include <string.h>

#include "common/log.h"

#define REASON_BYTES_MAX 256

struct condition {
    const char *name;
    bool ready;
    char reason[REASON_BYTES_MAX];
};

struct readiness {
    pthread_mutex_t mutex; /* guards all below */
    struct condition conditions[SERVICE_CONDITIONS_MAX];
    size_t count;
};

struct readiness *readiness_new(void)
{
    struct readiness *readiness = xcalloc(1, sizeof *readiness);

    (void)pthread_mutex_init(&readiness->mutex, NULL);
    return readiness;
}

static struct condition *condition_get(struct readiness *readiness, const char *name, bool *out_new)
{
    for (size_t i = 0; i < readiness->count; i++) {
        if (strcmp(readiness->conditions[i].name, name) == 0)
            return &readiness->conditions[i];
    }
    assert(readiness->count < SERVICE_CONDITIONS_MAX);
    *out_new = true;
    readiness->conditions[readiness->count].name = name;
    return &readiness->conditions[readiness->count++];
}

void readiness_set(struct readiness *readiness, const char *name, bool ready, const char *reason)
{
    LOCK_SCOPE(&readiness->mutex);
    bool changed = false;
    struct condition *condition = condition_get(readiness, name, &changed);

    changed = changed || condition->ready != ready;
    condition->ready = ready;
    condition->reason[0] = '\0';
    if (!ready && reason != NULL) {
        size_t n = strnlen(reason, REASON_BYTES_MAX - 1);
        memcpy(condition->reason, reason, n);
        condition->reason[n] = '\0';
    }
    if (!changed)
        return;
    if (ready) {
        LOG(INFO, "condition_ready", F_STR("condition", name));
    } else {
        LOG(WARN, "condition_not_ready", F_STR("condition", name),
            F_STR("reason", condition->reason));
    }
}

void readiness_render(struct readiness *readiness, bool stopping, struct strbuf *out,
                      bool *out_ready)
{
    LOCK_SCOPE(&readiness->mutex);
    bool ready = readiness->count > 0 && !stopping;
    const char *reason = stopping ? "stopping" : readiness->count == 0 ? "starting" : "";

    for (size_t i = 0; i < readiness->count; i++) {
        const struct condition *condition = &readiness->conditions[i];
        if (!condition->ready && ready) {
            ready = false;
            reason = condition->reason;
        }
    }
    strbuf_addf(out, "{\"ready\":%s,\"reason\":\"", ready ? "true" : "false");
    strbuf_add_json(out, reason);
    strbuf_add(out, "\",\"conditions\":{");
    for (size_t i = 0; i < readiness->count; i++) {
        const struct condition *condition = &readiness->conditions[i];
        strbuf_addf(out, "%s\"%s\":{\"ready\":%s,\"reason\":\"", i == 0 ? "" : ",", condition->name,
                    condition->ready ? "true" : "false");
        strbuf_add_json(out, condition->reason);
        strbuf_add(out, "\"}");
    }
    strbuf_add(out, "}}\n");
    *out_ready = ready;
}
