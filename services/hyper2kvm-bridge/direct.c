/* Direct call: hyper2kvm --manifest FILE as a child. Its exit status alone proves nothing
 * (hyper2kvm-contract.md sections 3 and 5), so the report and the files are looked at. */
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "child.h"
#include "common/autos.h"
#include "common/json.h"
#include "common/paths.h"
#include "stage.h"

#define HELP_BYTES_MAX   ((size_t)(512 * KIB)) /* about 1400 lines */
#define HELP_TIMEOUT_MS  30000
#define SILENCE_MS       600000 /* a broken KVM makes the appliance hang without a line */
#define REPORT_BYTES_MAX ((size_t)(4 * MIB))

struct call {
    struct conversion *c;
    const struct stage *stage;
    bool not_fixed; /* it said so itself */
};

static const char *program(const struct conversion *c)
{
    return c->bridge->hyper2kvm.path[0] != '\0' ? c->bridge->hyper2kvm.path : "hyper2kvm";
}

/* By what it offers, never by its version. */
static int check_program(const struct conversion *c, struct error *err)
{
    const char *argv[] = {program(c), "--help", NULL};
    autofree char *help = NULL;
    int status = 0;

    if (child_output(argv, HELP_TIMEOUT_MS, HELP_BYTES_MAX, &help, &status, err) < 0)
        return -1;
    if (status != 0 || strstr(help, "--manifest") == NULL)
        return error_set(err, ERR_NOT_FOUND,
                         "'%s' does not know --manifest: hyper2kvm 0.1.0 or later is needed",
                         argv[0]);
    return 0;
}

static void on_line(void *arg, const char *line)
{
    struct call *call = arg;

    if (strstr(line, "WARNING") != NULL &&
        (strstr(line, "Stage failed") != NULL || strstr(line, "Read-only file system") != NULL ||
         strstr(line, "read-only file system") != NULL))
        call->not_fixed = true;
    worker_task_log(call->c->task, LOG_LEVEL_INFO, "hyper2kvm: %s", line);
}

/* The size of what it writes against what there is to read. */
static void on_tick(void *arg)
{
    struct call *call = arg;
    struct worker_progress progress = {.limited_by = ""};

    for (size_t i = 0; i < call->stage->count; i++) {
        const json_t *disk = convert_disk(call->c, i);
        autofree char *done =
            xasprintf("%s/%s.%s", call->stage->out, json_str(disk, "id"), call->c->format);
        autofree char *part = xasprintf("%s.part", done);
        struct stat st;
        progress.bytes_total += json_u64(disk, "bytes");
        if (stat(done, &st) == 0 || stat(part, &st) == 0)
            progress.bytes_done += min_u64((uint64_t)st.st_size, json_u64(disk, "bytes"));
    }
    worker_task_progress(call->c->task, &progress);
}

static int check_report(struct call *call, const char *path, struct error *err)
{
    autofree char *text = NULL;
    auto_json *report = NULL;
    size_t size = 0;

    if (file_read(path, REPORT_BYTES_MAX, &text, &size, err) < 0 ||
        json_parse(text, size, REPORT_BYTES_MAX, &report, err) < 0)
        return error_wrap(err, "report of hyper2kvm");
    if (!json_is_true(json_object_get(json_object_get(report, "pipeline"), "success")))
        return error_set(err, ERR_INTERNAL, "hyper2kvm reports a failure; see the job log");
    if (json_array_size(json_object_get(report, "artifacts")) != call->stage->count)
        return error_set(err, ERR_INTERNAL, "hyper2kvm made %zu images of %zu disks",
                         json_array_size(json_object_get(report, "artifacts")), call->stage->count);
    return 0;
}

static int publish(struct call *call, struct error *err)
{
    struct conversion *c = call->c;
    char *images[CONVERT_DISKS_MAX] = {0};
    bool fixed = convert_stage(c, "fix") && !call->not_fixed;
    int rc;

    for (size_t i = 0; i < call->stage->count; i++)
        images[i] =
            xasprintf("%s/%s.%s", call->stage->out, json_str(convert_disk(c, i), "id"), c->format);
    rc = stage_publish(c, images, fixed, err);
    for (size_t i = 0; i < call->stage->count; i++)
        free(images[i]);
    if (rc == 0 && !fixed)
        convert_remark(c->not_done, call->not_fixed
                                        ? "converted, not fixed: hyper2kvm could not write to "
                                          "the guest's file system"
                                        : "guest not fixed: stage fix was switched off");
    return rc;
}

int direct_convert(struct conversion *c, struct error *err)
{
    static const char *const env[] = {"LIBGUESTFS_BACKEND=direct", "LC_ALL=C.UTF-8", NULL};
    auto_stage stage = {0};
    struct call call = {.c = c, .stage = &stage};
    autofree char *document = NULL;
    autofree char *report = NULL;
    auto_json *json = NULL;
    autofree char *text = NULL;
    int status = 0;

    if (check_program(c, err) < 0 || stage_open(c, &stage, err) < 0)
        return -1;
    json = stage_document(c, &stage);
    text = json_text(json);
    document = xasprintf("%s/manifest.json", stage.dir);
    report = xasprintf("%s/report.json", stage.out);
    if (file_write_atomic(document, text, strlen(text), 0640, err) < 0)
        return -1;
    const char *argv[] = {program(c), "--manifest", document, NULL};
    struct child_options options = {
        .argv = argv,
        .env = env,
        .stopped = worker_task_stopped(c->task),
        .timeout_ms = c->timeout_ms,
        .silence_ms = SILENCE_MS,
        .line = on_line,
        .tick = on_tick,
        .arg = &call,
    };
    worker_task_log(c->task, LOG_LEVEL_INFO, "calling %s --manifest", argv[0]);
    if (child_run(&options, &status, err) < 0)
        return -1;
    if (status != 0)
        return error_set(err, ERR_INTERNAL, "hyper2kvm ended with status %d; see the job log",
                         status);
    if (check_report(&call, report, err) < 0 || publish(&call, err) < 0)
        return -1;
    c->path_used = "direct";
    return 0;
}
