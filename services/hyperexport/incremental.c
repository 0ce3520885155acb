/* --incremental-info: what an incremental export would do; and what one did. */
#include <inttypes.h>
#include <string.h>

#include "command.h"
#include "common/clock.h"
#include "common/json.h"

#define INFO_WAIT_MS 600000 /* a snapshot of a busy VM takes minutes */
#define INFO_POLL_MS 500
#define ROWS_MAX     11

/* A number that may not be known before the disks are read. */
static const char *number(const json_t *info, const char *key, char *out, size_t size, bool bytes)
{
    const json_t *value = json_object_get(info, key);

    if (!json_is_integer(value)) {
        (void)snprintf(out, size, "unknown");
        return out;
    }
    if (bytes) {
        text_size((uint64_t)json_integer_value(value), out);
    } else {
        (void)snprintf(out, size, "%" JSON_INTEGER_FORMAT, json_integer_value(value));
    }
    return out;
}

/* ---- what an export did ---- */

/* "changed_extents, leaf_compare (2 disks)" */
void incremental_summary(const json_t *incremental, struct strbuf *out)
{
    static const char *const modes[] = {"changed_extents", "leaf_compare", "full"};
    const json_t *disks = json_object_get(incremental, "disks");
    const json_t *disk;
    char size[TEXT_NUMBER_SIZE];
    size_t i;

    for (size_t m = 0; m < ARRAY_LEN(modes); m++) {
        size_t count = 0;
        json_array_foreach(disks, i, disk)
        {
            count += strcmp(json_str(disk, "incremental_mode"), modes[m]) == 0;
        }
        if (count == 0)
            continue;
        strbuf_addf(out, "%s%s", out->length == 0 ? "" : ", ", modes[m]);
        if (json_array_size(disks) > 1)
            strbuf_addf(out, " (%zu disk%s)", count, count == 1 ? "" : "s");
    }
    if (out->length == 0)
        return;
    text_size(json_u64(incremental, "changed_bytes"), size);
    strbuf_addf(out, "; %s changed", size);
}

void incremental_pairs(const json_t *incremental, struct strbuf *out)
{
    const json_t *disk;
    size_t i;

    json_array_foreach(json_object_get(incremental, "disks"), i, disk)
    {
        autofree char *mode = xasprintf("disk.%zu.incremental_mode", i + 1);
        autofree char *reason = xasprintf("disk.%zu.incremental_reason", i + 1);
        output_pair(out, mode, json_str(disk, "incremental_mode"));
        if (json_str(disk, "incremental_reason")[0] != '\0')
            output_pair(out, reason, json_str(disk, "incremental_reason"));
        strbuf_addf(out, "disk.%zu.changed=%" PRIu64 "\n", i + 1, json_u64(disk, "changed_bytes"));
    }
}

/* ---- what one would do ---- */

static void show_quiet(const json_t *info)
{
    static const char *const texts[] = {"reason", "base_id", "base_time", "changed_reason"};
    static const char *const numbers[] = {"changed_bytes", "total_bytes", "saving_percent"};
    const json_t *disks = json_object_get(info, "disks");
    char text[TEXT_NUMBER_SIZE];
    const json_t *disk;
    size_t i;
    auto_strbuf out;

    strbuf_init(&out, TEXT_BYTES_MAX);
    output_pair(&out, "possible",
                json_is_true(json_object_get(info, "possible")) ? "true" : "false");
    for (i = 0; i < ARRAY_LEN(texts); i++)
        output_pair(&out, texts[i], json_str(info, texts[i]));
    for (i = 0; i < ARRAY_LEN(numbers); i++)
        output_pair(&out, numbers[i], number(info, numbers[i], text, sizeof text, false));
    json_array_foreach(disks, i, disk)
    {
        strbuf_addf(&out, "disk.%zu.changed=%s\n", i + 1,
                    number(disk, "changed_bytes", text, sizeof text, false));
    }
    output_text(&out);
}

static void show_box(const struct program *program, const json_t *info)
{
    bool possible = json_is_true(json_object_get(info, "possible"));
    bool by_disk = strcmp(json_str(info, "mode"), "disk") == 0;
    size_t count = json_array_size(json_object_get(info, "chain"));
    struct text_row rows[ROWS_MAX];
    char texts[4][TEXT_NUMBER_SIZE];
    char chain[TEXT_NUMBER_SIZE];
    size_t n = 0;
    auto_strbuf out;

    (void)snprintf(chain, sizeof chain, "%zu", count);
    rows[n++] = (struct text_row){.label = "VM Name", .value = json_str(info, "vm_name")};
    rows[n++] = (struct text_row){.label = "Next export",
                                  .value = possible ? "incremental" : "full",
                                  .color = possible ? "32" : "33"};
    if (possible) {
        rows[n++] = (struct text_row){.label = by_disk ? "Compared with" : "Stands on",
                                      .value = json_str(info, "base_id")};
        rows[n++] = (struct text_row){.label = "Made at", .value = json_str(info, "base_time")};
        rows[n++] = (struct text_row){.label = "Restore points", .value = chain};
        rows[n++] = (struct text_row){
            .label = "Last change",
            .value = number(info, "last_changed_bytes", texts[0], sizeof texts[0], true)};
        rows[n++] = (struct text_row){
            .label = "Changed since",
            .value = number(info, "changed_bytes", texts[3], sizeof texts[3], true)};
        if (json_str(info, "changed_reason")[0] != '\0') {
            rows[n++] = (struct text_row){.label = "Not known, as",
                                          .value = json_str(info, "changed_reason")};
        }
    } else {
        rows[n++] = (struct text_row){.label = "Reason", .value = json_str(info, "reason")};
    }
    rows[n++] =
        (struct text_row){.label = "To be read",
                          .value = number(info, "read_bytes", texts[1], sizeof texts[1], true)};
    rows[n++] = (struct text_row){
        .label = "Capacity", .value = number(info, "total_bytes", texts[2], sizeof texts[2], true)};
    strbuf_init(&out, TEXT_BYTES_MAX);
    text_box(&out, "Incremental Export", true, rows, n, &program->style);
    output_text(&out);
}

/* The flags that decide where the export would go and what it would stand on. */
static json_t *body_of(const struct command_line *line)
{
    static const struct {
        const char *key;
        enum flag_id id;
    } texts[] = {{"vm_path", FLAG_VM},
                 {"provider", FLAG_PROVIDER},
                 {"output_path", FLAG_OUTPUT},
                 {"format", FLAG_FORMAT},
                 {"incremental_max_age", FLAG_INCREMENTAL_MAX_AGE}};
    json_t *body = json_object();

    for (size_t i = 0; i < ARRAY_LEN(texts); i++) {
        if (flag_given(line, texts[i].id))
            json_set_text(body, texts[i].key, flag_text(line, texts[i].id));
    }
    if (flag_on(line, FLAG_FORCE_FULL))
        json_put(body, "force_full", json_true());
    if (flag_on(line, FLAG_SNAPSHOT))
        json_put(body, "temporary_snapshot", json_true());
    return body;
}

/* After a 202: *info is the task, then the analysis in its result. Not asked for once more: that
 * would be another task, with a snapshot of its own. */
static int wait_task(struct program *program, json_t **info, struct error *err)
{
    autofree char *path = output_path("/api/v1/tasks/", json_str(*info, "task_id"), "");
    int64_t until = clock_mono_ms() + INFO_WAIT_MS;
    auto_json *task = NULL;
    json_t *analysis;

    while (clock_mono_ms() < until && !atomic_load(interrupt_flag())) {
        json_decref(STEAL(task));
        if (api_get(program->api, path, &task, err) < 0)
            return -1;
        if (json_str(task, "error")[0] != '\0') {
            return error_set(err, error_code_from_name(json_str(task, "error_code")), "%.400s",
                             json_str(task, "error"));
        }
        analysis = json_object_get(json_object_get(task, "result"), "analysis");
        if (analysis != NULL) {
            json_decref(*info);
            *info = json_incref(analysis);
            return 0;
        }
        clock_sleep_ms(INFO_POLL_MS);
    }
    return error_set(err, ERR_TIMEOUT, "no worker has looked at VM '%.128s' yet",
                     flag_text(program->line, FLAG_VM));
}

int incremental_info_command(struct program *program, struct error *err)
{
    auto_json *body = body_of(program->line);
    const struct api_request request = {
        .method = "POST", .path = "/incremental/analyze", .body = body};
    auto_json *info = NULL;

    if (api_check(program->api, err) < 0)
        return -1;
    if (api_call(program->api, &request, &info, err) < 0)
        return -1;
    if (json_object_get(info, "possible") == NULL && wait_task(program, &info, err) < 0)
        return -1;
    if (program->json) {
        output_json(info);
    } else if (program->quiet) {
        show_quiet(info);
    } else {
        show_box(program, info);
    }
    return EXIT_DONE;
}
