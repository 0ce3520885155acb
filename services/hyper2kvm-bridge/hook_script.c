/* Scripts of hooks and workflows. See hook.h. */
#include "hook.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "child.h"
#include "common/autos.h"
#include "common/json.h"
#include "common/strbuf.h"

#define ENV_MAX        24
#define ARGS_MAX       64 /* as common/hooks.h */
#define LIMITS         3
#define ENV_BYTES_MAX  (64 * KIB)      /* of one variable */
#define LINES_MAX      1000            /* of a run, in the job's log */
#define LINE_TOTAL_MAX (256 * KIB)     /* bytes of them */
#define RECORD_STARTS  "script.starts" /* how often it was begun, by any bridge */
#define RECORD_CHILD   "script.child"  /* mark of the process (child.h) */

struct script {
    struct worker_task *task;
    const json_t *spec;
    const char *name; /* as it was asked for */
    char *file;
    char *env[ENV_MAX + 1];
    size_t env_count;
    char *limits[LIMITS];
    const char *argv[LIMITS + ARGS_MAX + 4];
    size_t lines; /* of its output that are in the log */
    size_t bytes;
    uint64_t dropped;
};

static void script_release(struct script *script)
{
    for (size_t i = 0; i < script->env_count; i++)
        free(script->env[i]);
    for (size_t i = 0; i < LIMITS; i++)
        free(script->limits[i]);
    free(script->file);
}

/* ---- what it gets ---- */

static void add_env(struct script *script, const char *name, const char *value)
{
    if (value[0] == '\0')
        return;
    assert(script->env_count < ENV_MAX);
    script->env[script->env_count++] = xasprintf("HYPERSDK_%s=%s", name, value);
}

/* One path per line. */
static void add_disks(struct script *script)
{
    const json_t *disk;
    size_t i;
    auto_strbuf sb;

    strbuf_init(&sb, ENV_BYTES_MAX);
    json_array_foreach(json_object_get(script->spec, "disks"), i, disk)
    {
        strbuf_addf(&sb, "%s%s", i == 0 ? "" : "\n",
                    json_is_string(disk) ? json_string_value(disk) : "");
    }
    if (!sb.overflowed)
        add_env(script, "DISKS", sb.data);
}

static void make_env(struct script *script, uint64_t start)
{
    static const struct {
        const char *name, *member;
    } facts[] = {{"JOB_ID", "job_id"},
                 {"VM_NAME", "vm_name"},
                 {"VM_PATH", "vm_path"},
                 {"PROVIDER", "provider"},
                 {"FORMAT", "format"},
                 {"OUTPUT_PATH", "output_path"},
                 {"EXPORT_PATH", "export_path"},
                 {"MANIFEST_PATH", "manifest_path"},
                 {"HOOK", "hook"},
                 {"WORKFLOW", "workflow"},
                 {"RUN_ID", "run_id"},
                 {"STEP", "step"}};
    char number[24];

    for (size_t i = 0; i < ARRAY_LEN(facts); i++)
        add_env(script, facts[i].name, json_str(script->spec, facts[i].member));
    add_disks(script);
    (void)snprintf(number, sizeof number, "%" PRIu64, start);
    add_env(script, "ATTEMPT", number);
}

/* By prlimit of util-linux, which sets them and becomes the script: a limit that is set from here
 * would come after its first steps. */
static int make_argv(struct script *script, const struct hooks_config *config, struct error *err)
{
    const json_t *args = json_object_get(script->spec, "args");
    const json_t *item;
    size_t n = 0;
    size_t i;

    if (json_array_size(args) > ARGS_MAX)
        return error_set(err, ERR_LIMIT, "more than %d arguments", ARGS_MAX);
    script->limits[0] = xasprintf("--as=%" PRIu64, config->memory_max);
    script->limits[1] = xasprintf("--nofile=%" PRIu32, config->files_max);
    script->limits[2] = xstrdup("--core=0");
    script->argv[n++] = "prlimit";
    for (i = 0; i < LIMITS; i++)
        script->argv[n++] = script->limits[i];
    script->argv[n++] = "--";
    script->argv[n++] = script->file;
    json_array_foreach(args, i, item)
    {
        if (!json_is_string(item))
            return error_set(err, ERR_INVALID, "argument %zu is no text", i + 1);
        script->argv[n++] = json_string_value(item);
    }
    return 0;
}

/* ---- while it runs ---- */

static void on_started(void *arg, pid_t pid)
{
    struct script *script = arg;
    autofree char *mark = child_mark(pid);
    struct error err = ERROR_NONE;

    if (worker_task_record_put(script->task, RECORD_CHILD, mark, &err) < 0) {
        worker_task_log(script->task, LOG_LEVEL_WARN, "script %.200s is not recorded: %s",
                        script->name, err.message);
    }
}

static void on_line(void *arg, const char *line)
{
    struct script *script = arg;
    autofree char *text = NULL;

    if (script->lines >= LINES_MAX || script->bytes >= LINE_TOTAL_MAX) {
        if (script->dropped++ == 0) {
            worker_task_log(script->task, LOG_LEVEL_WARN,
                            "script %.200s prints more than %d lines or %llu bytes: the rest is "
                            "not kept",
                            script->name, LINES_MAX, (unsigned long long)LINE_TOTAL_MAX);
        }
        return;
    }
    text = utf8_clean(line, CHILD_LINE_BYTES_MAX);
    script->lines++;
    script->bytes += strlen(text);
    worker_task_log(script->task, LOG_LEVEL_INFO, "%.200s: %s", script->name, text);
}

/* Counts before it starts: a script that saw no number above 1 was never begun before. */
static int count_start(struct script *script, uint64_t *out, struct error *err)
{
    const char *before = worker_task_record_get(script->task, RECORD_STARTS);
    const char *child = worker_task_record_get(script->task, RECORD_CHILD);
    char number[24];

    if (child != NULL && child[0] != '\0')
        child_end_marked(child); /* of a bridge that died */
    *out = (before == NULL ? 0 : strtoull(before, NULL, 10)) + 1;
    (void)snprintf(number, sizeof number, "%" PRIu64, *out);
    return worker_task_record_put(script->task, RECORD_STARTS, number, err);
}

static json_t *result_of(const struct script *script, uint64_t start, int status)
{
    return json_pack("{s:{s:s,s:i,s:I,s:I,s:I}}", "script", "command", script->name, "exit_status",
                     status, "starts", (json_int_t)start, "lines", (json_int_t)script->lines,
                     "lines_dropped", (json_int_t)script->dropped);
}

static int run(struct script *script, const struct hooks_config *config, json_t **out_result,
               struct error *err)
{
    const uint64_t own_timeout = json_u64(script->spec, "timeout_ms");
    struct child_options options = {
        .argv = script->argv,
        .name = script->name,
        .env = (const char *const *)(uintptr_t)script->env,
        .env_only = true,
        .stopped = worker_task_stopped(script->task),
        .timeout_ms = own_timeout > 0 ? (int64_t)own_timeout : config->timeout_ms,
        .started = on_started,
        .line = on_line,
        .arg = script,
    };
    uint64_t start = 0;
    int status = 0;
    int rc;

    if (count_start(script, &start, err) < 0 || make_argv(script, config, err) < 0)
        return -1;
    make_env(script, start);
    worker_task_log(script->task, LOG_LEVEL_INFO, "script %.200s begins (start %" PRIu64 ")",
                    script->name, start);
    rc = child_run(&options, &status, err);
    *out_result = result_of(script, start, status);
    if (rc < 0)
        return -1;
    worker_task_log(script->task, status == 0 ? LOG_LEVEL_INFO : LOG_LEVEL_ERROR,
                    "script %.200s ended with exit status %d", script->name, status);
    if (status == 0)
        return 0;
    /* it may pass: how often it is tried again is the hook's to say */
    return error_set(err, ERR_UNAVAILABLE, "script '%.200s' ended with exit status %d",
                     script->name, status);
}

int hook_script_run(struct worker_task *task, void *arg, json_t **out_result, struct error *err)
{
    const struct bridge *bridge = arg;
    CLEANUP(script_release)
    struct script script = {.task = task, .spec = worker_task_spec(task)};

    script.name = json_str(script.spec, "command");
    worker_task_phase(task, "hook");
    if (bridge->hooks.scripts_dir[0] == '\0') {
        return error_set(err, ERR_NOT_AVAILABLE,
                         "scripts are not run here: hooks.scripts_dir of this bridge's "
                         "configuration is not set");
    }
    if (hook_script_file(bridge->hooks.scripts_dir, script.name, &script.file, err) < 0 ||
        worker_task_may_write(task, err) < 0)
        return -1;
    return run(&script, &bridge->hooks, out_result, err);
}
