/* Direct call: hyper2kvm --manifest FILE as a child. Its exit status alone proves nothing
 * (hyper2kvm-contract.md sections 3 and 5), so the report and the files are looked at. */
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "common/autos.h"
#include "common/json.h"
#include "common/paths.h"
#include "guest_tool.h"

#define REPORT_BYTES_MAX ((size_t)(4 * MIB))
#define WORDS_MAX        8 /* of a command line */

struct program {
    const char *words[WORDS_MAX]; /* how it is called, without arguments */
    size_t count;
};

struct call {
    struct conversion *c;
    const struct stage *stage;
    bool not_fixed; /* it said so itself */
};

/* ---- is it there? ---- */

static void command_line(const struct program *program, const char *const *arguments,
                         const char *out[WORDS_MAX])
{
    size_t n = 0;

    for (size_t i = 0; i < program->count; i++)
        out[n++] = program->words[i];
    for (size_t i = 0; arguments[i] != NULL; i++)
        out[n++] = arguments[i];
    assert(n < WORDS_MAX);
    out[n] = NULL;
}

/* By what it offers, never by its version. -1 with *out_absent: it is not there, or too old. */
static int try_program(const struct conversion *c, const struct program *program, bool *out_absent,
                       struct error *err)
{
    static const char *const arguments[] = {"--help", NULL};
    const char *argv[WORDS_MAX];

    command_line(program, arguments, argv);
    if (guest_tool_probe(c, argv, "--manifest", out_absent, err) == 0)
        return 0;
    if (err->code == ERR_NOT_AVAILABLE)
        return error_wrap(err, "hyper2kvm 0.1.0 or later is needed");
    return -1;
}

/* The configured program, else the one on PATH, else the Python module. */
static int find_program(const struct conversion *c, struct program *out, bool *out_absent,
                        struct error *err)
{
    static const struct program usual = {{"hyper2kvm"}, 1};
    static const struct program module = {{"python3", "-m", "hyper2kvm"}, 3};
    const char *path = c->bridge->hyper2kvm.path;
    struct error second = ERROR_NONE;

    *out = path[0] != '\0' ? (struct program){{path}, 1} : usual;
    if (try_program(c, out, out_absent, err) == 0)
        return 0;
    if (path[0] != '\0' || !*out_absent)
        return -1;
    if (try_program(c, &module, out_absent, &second) < 0) {
        if (*out_absent)
            return -1; /* the words about the first one are the useful ones */
        *err = second;
        return -1;
    }
    error_clear(err);
    *out = module;
    return 0;
}

/* ---- while it runs ---- */

/* Its messages may span lines, so the words count wherever they stand. */
static void on_line(void *arg, const char *line)
{
    struct call *call = arg;

    if (strcasestr(line, "stage failed") != NULL ||
        strcasestr(line, "read-only file system") != NULL)
        call->not_fixed = true;
}

/* The size of what it writes against what there is to read. */
static void on_tick(void *arg)
{
    struct call *call = arg;
    struct worker_progress progress = {.limited_by = ""};

    for (size_t i = 0; i < call->stage->count; i++) {
        uint64_t bytes = json_u64(convert_disk(call->c, i), "bytes");
        autofree char *done = stage_image(call->c, call->stage, i);
        autofree char *part = xasprintf("%s.part", done);
        struct stat st;
        progress.bytes_total += bytes;
        if (stat(done, &st) == 0 || stat(part, &st) == 0)
            progress.bytes_done += min_u64((uint64_t)st.st_blocks * 512, bytes);
    }
    worker_task_progress(call->c->task, &progress);
}

static int run(struct call *call, const struct program *program, struct error *err)
{
    struct conversion *c = call->c;
    autofree char *document = xasprintf("%s/manifest.json", call->stage->dir);
    auto_json *json = stage_document(c, call->stage);
    autofree char *text = json_text(json);
    const char *const arguments[] = {"--manifest", document, NULL};
    const char *argv[WORDS_MAX];
    const struct guest_tool tool = {.c = c,
                                    .stage = call->stage,
                                    .name = "hyper2kvm",
                                    .argv = argv,
                                    .tmp = "TMPDIR",
                                    .line = on_line,
                                    .tick = on_tick,
                                    .arg = call};

    if (file_write_atomic(document, text, strlen(text), 0640, err) < 0)
        return -1;
    command_line(program, arguments, argv);
    return guest_tool_run(&tool, err);
}

/* ---- what it left ---- */

static int check_report(const struct call *call, const char *path, struct error *err)
{
    autofree char *text = NULL;
    auto_json *report = NULL;
    size_t wanted = convert_stage(call->c, "convert") ? call->stage->count : 0;
    size_t made;
    size_t size = 0;

    if (file_read(path, REPORT_BYTES_MAX, &text, &size, err) < 0 ||
        json_parse(text, size, REPORT_BYTES_MAX, &report, err) < 0)
        return error_wrap(err, "report of hyper2kvm");
    if (!json_is_true(json_object_get(json_object_get(report, "pipeline"), "success")))
        return error_set(err, ERR_INTERNAL, "hyper2kvm reports a failure; see the job log");
    made = json_array_size(json_object_get(report, "artifacts"));
    if (made != wanted) {
        return error_set(err, ERR_INTERNAL, "hyper2kvm made %zu images of %zu disks", made,
                         call->stage->count);
    }
    return 0;
}

static int finish(struct call *call, struct error *err)
{
    struct conversion *c = call->c;
    autofree char *report = stage_report(call->stage);
    char *images[CONVERT_DISKS_MAX] = {0};
    bool fixed = convert_stage(c, "fix") && !call->not_fixed;
    int rc;

    if (check_report(call, report, err) < 0 ||
        /* without that stage hyper2kvm changes its work copies only */
        (!convert_stage(c, "convert") && stage_copy_disks(c, call->stage, err) < 0))
        return -1;
    if (!fixed) {
        convert_remark(c->not_done, call->not_fixed
                                        ? "converted, not fixed: hyper2kvm could not write to "
                                          "the guest's file system"
                                        : "guest not fixed: stage fix was switched off");
    }
    for (size_t i = 0; i < call->stage->count; i++)
        images[i] = stage_image(c, call->stage, i);
    rc = publish_images(c, call->stage, images, fixed, report, err);
    for (size_t i = 0; i < call->stage->count; i++)
        free(images[i]);
    return rc;
}

int direct_convert(struct conversion *c, bool *out_next, struct error *err)
{
    auto_stage stage = {.lock = -1};
    struct call call = {.c = c, .stage = &stage};
    struct program program;

    if (find_program(c, &program, out_next, err) < 0)
        return -1;
    c->path_used = "direct";
    if (stage_open(c, &stage, err) < 0 || stage_fill(c, &stage, err) < 0 ||
        run(&call, &program, err) < 0)
        return -1;
    return finish(&call, err);
}
