/* The skeleton of a process as a model: instead of common/service.c. Also the log, which becomes
 * the trace, and the threads of the scheduler that only show things. */
#include "common/service.h"

#include <string.h>

#include "common/log.h"
#include "common/worker_internal.h"
#include "services/scheduler/scheduler.h"
#include "tests/sim/world.h"

#define DRAIN_MS 20000

struct service {
    struct sim_proc *proc;
};

struct service *sim_service_new(struct sim_proc *proc)
{
    struct service *service = xcalloc(1, sizeof *service);

    service->proc = proc;
    return service;
}

const char *service_name(const struct service *service)
{
    return service->proc->name;
}

const char *service_instance(const struct service *service)
{
    return service->proc->instance;
}

bool service_stopping(const struct service *service)
{
    return service->proc->stopping;
}

bool service_wait(const struct service *service, int64_t ms)
{
    int64_t until_us = sim_now_us + ms * SIM_MS;

    while (!service->proc->stopping && sim_block(&service->proc->stopping, until_us))
        continue;
    return service->proc->stopping;
}

void service_set_ready(struct service *service, const char *condition, bool ready,
                       const char *reason)
{
    (void)service;
    (void)condition;
    (void)ready;
    (void)reason;
}

int64_t service_drain_ms(const struct service *service)
{
    (void)service;
    return DRAIN_MS;
}

struct stopped {
    struct sim_proc *proc;
    uint32_t incarnation;
};

static void end_drain(void *arg)
{
    struct stopped *stopped = arg;

    if (sim_is_alive(stopped->proc, stopped->incarnation))
        sim_proc_kill(stopped->proc);
    free(stopped);
}

void sim_terminate(struct sim_proc *proc)
{
    struct stopped *stopped = xcalloc(1, sizeof *stopped);

    *stopped = (struct stopped){proc, proc->incarnation};
    sim_trace("SIGTERM for %s", proc->instance);
    proc->stopping = true;
    sim_wake(&proc->stopping, true);
    sim_after(NULL, (DRAIN_MS + SERVICE_DRAIN_GRACE_MS) * SIM_MS, end_drain, stopped);
}

/* ---- the log becomes the trace ---- */

static void add_field(char *text, size_t size, const struct log_field *field)
{
    size_t used = strlen(text);

    if (field->kind == LOG_FIELD_STR) {
        (void)snprintf(text + used, size - used, " %s=%s", field->name,
                       field->str == NULL ? "" : field->str);
    } else {
        (void)snprintf(text + used, size - used, " %s=%llu", field->name,
                       (unsigned long long)field->u64);
    }
}

void __wrap_log_write(enum log_level level, const char *event, const struct log_field *fields,
                      size_t count);
void __wrap_log_write(enum log_level level, const char *event, const struct log_field *fields,
                      size_t count)
{
    char text[1024] = "";

    (void)level;
    if (!sim_tracing)
        return;
    for (size_t i = 0; i < count; i++) {
        struct log_field field = fields[i];
        if (field.kind == LOG_FIELD_I64)
            field.u64 = (uint64_t)field.i64;
        add_field(text, sizeof text, &field);
    }
    sim_trace("%s%s", event, text);
}

/* ---- not simulated: publishing to Redis (publish.c), volumes on real disks ---- */

void publish_wake(void)
{
}

void *publish_main(void *scheduler)
{
    (void)scheduler;
    return NULL;
}

/* Every second exporter reaches another volume; each reaches one. */
void worker_volumes_probe(const struct config_list *bases, struct worker_volumes *out)
{
    Hypersdk__V1__Volume *volume = xcalloc(1, sizeof *volume);

    (void)bases;
    hypersdk__v1__volume__init(volume);
    volume->id = xasprintf("vol-%d", sim_current()->number % 2);
    volume->path = xstrdup("/exports");
    out->items = xcalloc(1, sizeof(void *));
    out->items[0] = volume;
    out->count = 1;
}

void worker_volumes_release(struct worker_volumes *volumes)
{
    for (size_t i = 0; i < volumes->count; i++) {
        free(volumes->items[i]->id);
        free(volumes->items[i]->path);
        free(volumes->items[i]);
    }
    free(volumes->items);
}
