/* See guest_tool.h. */
#include "guest_tool.h"

#include <fcntl.h>
#include <string.h>

#include "child.h"
#include "common/autos.h"

#define HELP_BYTES_MAX  ((size_t)(512 * KIB)) /* hyper2kvm's is about 1400 lines */
#define HELP_TIMEOUT_MS 30000
#define LOG_LINES_MAX   5000 /* of one run into the job's log; such programs print some hundred */

struct run {
    const struct guest_tool *tool;
    size_t lines;
};

int guest_tool_probe(const struct conversion *c, const char *const *argv, const char *needed,
                     bool *out_absent, struct error *err)
{
    const struct child_options options = {
        .argv = argv, .stopped = worker_task_stopped(c->task), .timeout_ms = HELP_TIMEOUT_MS};
    autofree char *help = NULL;
    int status = 0;

    *out_absent = false;
    if (child_output(&options, HELP_BYTES_MAX, &help, &status, err) < 0) {
        *out_absent = err->code == ERR_NOT_FOUND || err->code == ERR_DENIED;
        return -1;
    }
    if (status == 0 && strstr(help, needed) != NULL)
        return 0;
    *out_absent = true;
    return error_set(err, ERR_NOT_AVAILABLE, "'%s' does not know %s", argv[0], needed);
}

static void on_start(void *arg, pid_t pid)
{
    const struct run *run = arg;

    stage_note_child(run->tool->stage, pid);
}

static enum log_level level_of(const char *line)
{
    if (strstr(line, "ERROR") != NULL || strstr(line, "CRITICAL") != NULL ||
        strstr(line, ": error: ") != NULL)
        return LOG_LEVEL_ERROR;
    return strcasestr(line, "WARNING") != NULL ? LOG_LEVEL_WARN : LOG_LEVEL_INFO;
}

static void on_line(void *arg, const char *line)
{
    struct run *run = arg;
    const struct guest_tool *tool = run->tool;

    tool->line(tool->arg, line);
    run->lines++;
    if (run->lines <= LOG_LINES_MAX)
        worker_task_log(tool->c->task, level_of(line), "%s: %s", tool->name, line);
}

static void on_tick(void *arg)
{
    const struct run *run = arg;

    if (run->tool->tick != NULL)
        run->tool->tick(run->tool->arg);
}

/* KVM that is there but not for us makes the appliance hang; without the module nbd hyper2kvm
 * cannot open guests by itself. Who sets these variables for this service knows better. */
static void guest_access(const char *out[3])
{
    size_t n = 0;

    if (access("/dev/kvm", R_OK | W_OK) < 0)
        out[n++] = "LIBGUESTFS_BACKEND_SETTINGS=force_tcg";
    if (access("/dev/nbd0", F_OK) < 0)
        out[n++] = "HYPER2KVM_GUESTFS_BACKEND=libguestfs";
    out[n] = NULL;
}

int guest_tool_run(const struct guest_tool *tool, struct error *err)
{
    struct conversion *c = tool->c;
    struct run run = {.tool = tool};
    autofree char *tmp = xasprintf("%s=%s", tool->tmp, tool->stage->tmp);
    const char *const env[] = {"LIBGUESTFS_BACKEND=direct", "LC_ALL=C.UTF-8", tmp, NULL};
    const char *env_if[3];
    const struct child_options options = {
        .argv = tool->argv,
        .env = env,
        .env_if = env_if,
        .stopped = worker_task_stopped(c->task),
        .timeout_ms = c->timeout_ms,
        .silence_ms = c->bridge->hyper2kvm.stuck_after_ms,
        .started = on_start,
        .line = on_line,
        .tick = on_tick,
        .arg = &run,
    };
    int status = 0;

    guest_access(env_if);
    worker_task_log(c->task, LOG_LEVEL_INFO, "calling %s %s", tool->argv[0], tool->argv[1]);
    if (child_run(&options, &status, err) < 0)
        return -1;
    if (run.lines > LOG_LINES_MAX) {
        worker_task_log(c->task, LOG_LEVEL_WARN, "%s printed %zu more lines", tool->name,
                        run.lines - LOG_LINES_MAX);
    }
    if (status > 128)
        return error_set(err, ERR_INTERNAL, "%s was ended by signal %d", tool->name, status - 128);
    if (status != 0) {
        return error_set(err, ERR_INTERNAL, "%s ended with status %d; see the job log", tool->name,
                         status);
    }
    return 0;
}
