/* Jobs: list, get, cancel, retry, limit, logs, watch. */
#include <string.h>

#include "command.h"
#include "common/json.h"
#include "common/parse.h"
#include "progress.h"

#define LIST_COLUMNS 6

static const char *vm_of(const json_t *job)
{
    const char *name = json_str(job, "vm_name");

    return name[0] == '\0' ? json_str(job, "vm_path") : name;
}

static void show_quiet(const json_t *jobs)
{
    size_t i;
    const json_t *job;
    auto_strbuf out;

    strbuf_init(&out, API_BODY_BYTES_MAX);
    json_array_foreach(jobs, i, job)
    {
        text_add_clean(&out, json_str(job, "job_id"), true);
        strbuf_addc(&out, '\t');
        text_add_clean(&out, json_str(job, "status"), true);
        strbuf_addc(&out, '\t');
        text_add_clean(&out, vm_of(job), true);
        strbuf_addc(&out, '\n');
    }
    output_text(&out);
}

static void show_table(const struct program *program, const json_t *jobs)
{
    static const char *const heading[LIST_COLUMNS] = {"JOB",   "STATUS", "DONE",
                                                      "PHASE", "VM",     "CREATED"};
    size_t count = json_array_size(jobs);
    autofree const char **cells = xcalloc((count + 1) * LIST_COLUMNS, sizeof *cells);
    autofree char(*done)[TEXT_NUMBER_SIZE] = xcalloc(count + 1, sizeof *done);
    size_t i;
    const json_t *job;
    auto_strbuf out;

    memcpy(cells, heading, sizeof heading);
    json_array_foreach(jobs, i, job)
    {
        const char **row = &cells[(i + 1) * LIST_COLUMNS];
        const json_t *progress = json_object_get(job, "progress");
        double percentage = json_number_value(json_object_get(progress, "percentage"));
        (void)snprintf(done[i], TEXT_NUMBER_SIZE, "%.0f%%", percentage);
        row[0] = json_str(job, "job_id");
        row[1] = json_str(job, json_str(job, "substatus")[0] != '\0' ? "substatus" : "status");
        row[2] = done[i];
        row[3] = json_str(job, "phase");
        row[4] = vm_of(job);
        row[5] = json_str(job, "created_at");
    }
    strbuf_init(&out, API_BODY_BYTES_MAX);
    text_table(&out, cells, LIST_COLUMNS, count + 1, program->style.utf8);
    output_text(&out);
}

static int fetch_jobs(struct program *program, const char *status, json_t *jobs, struct error *err)
{
    const struct command_line *line = program->line;
    auto_strbuf path;

    strbuf_init(&path, API_URL_BYTES_MAX);
    strbuf_add(&path, "/api/v1/jobs");
    api_path_add(&path, "status", status == NULL || strcmp(status, "all") == 0 ? NULL : status);
    api_path_add(&path, "vm", flag_text(line, FLAG_VM));
    api_path_add(&path, "provider", flag_text(line, FLAG_PROVIDER));
    return api_list(program->api, &path, "jobs", command_limit(program), jobs, err);
}

int jobs_list(struct program *program, const char *status, struct error *err)
{
    auto_json *jobs = json_array();

    if (api_check(program->api, err) < 0 || fetch_jobs(program, status, jobs, err) < 0)
        return -1;
    if (program->json) {
        output_json(jobs);
    } else if (program->quiet) {
        show_quiet(jobs);
    } else {
        show_table(program, jobs);
    }
    return EXIT_DONE;
}

static int get(struct program *program, const char *job_id, struct error *err)
{
    static const char *const keys[] = {
        "job_id",     "status",     "substatus",   "phase",          "vm_name",    "vm_path",
        "provider",   "format",     "output_path", "pending_reason", "not_before", "error",
        "error_code", "created_at", "started_at",  "completed_at",   "worker_id"};
    struct text_row rows[ARRAY_LEN(keys) + 1];
    const char *limited_by;
    autofree char *path = output_path("/api/v1/jobs/", job_id, "");
    auto_json *job = NULL;
    size_t count = 0;
    auto_strbuf out = {0};

    if (api_check(program->api, err) < 0 || api_get(program->api, path, &job, err) < 0)
        return -1;
    if (program->json) {
        output_json(job);
        return EXIT_DONE;
    }
    strbuf_init(&out, TEXT_BYTES_MAX);
    for (size_t i = 0; i < ARRAY_LEN(keys); i++) {
        const char *value = json_str(job, keys[i]);
        if (value[0] == '\0')
            continue;
        if (program->quiet) {
            output_pair(&out, keys[i], value);
        } else {
            rows[count++] = (struct text_row){.label = keys[i], .value = value};
        }
    }
    limited_by = progress_limit(json_object_get(job, "progress"));
    if (limited_by[0] != '\0' && program->quiet) {
        output_pair(&out, "limited_by", limited_by);
    } else if (limited_by[0] != '\0') {
        rows[count++] = (struct text_row){.label = "limited_by", .value = limited_by};
    }
    if (!program->quiet)
        text_box(&out, "Job", false, rows, count, &program->style);
    output_text(&out);
    return EXIT_DONE;
}

int jobs_cancel(struct program *program, const char *job_id, struct error *err)
{
    auto_json *body = json_object();
    auto_json *answer = NULL;
    const char *why;

    if (api_check(program->api, err) < 0)
        return -1;
    (void)json_object_set_new(body, "job_ids", json_pack("[s]", job_id));
    if (api_call(program->api,
                 &(struct api_request){.method = "POST", .path = "/jobs/cancel", .body = body},
                 &answer, err) < 0)
        return -1;
    if (program->json)
        output_json(answer);
    why = json_str(json_object_get(answer, "errors"), job_id);
    if (json_array_size(json_object_get(answer, "failed")) > 0)
        return error_set(err, ERR_CONFLICT, "job %.64s was not cancelled: %.300s", job_id, why);
    if (!program->json)
        (void)printf("cancelled: %s\n", job_id);
    return EXIT_DONE;
}

static int retry(struct program *program, const char *job_id, struct error *err)
{
    autofree char *path = output_path("/api/v1/jobs/", job_id, "/retry");
    auto_json *body = json_object();
    auto_json *answer = NULL;

    if (api_check(program->api, err) < 0 ||
        api_call(program->api, &(struct api_request){.method = "POST", .path = path, .body = body},
                 &answer, err) < 0)
        return -1;
    return output_done(program, answer, "job-id: %s", json_str(answer, "job_id"));
}

/* "pause", "resume" */
static int steer(struct program *program, const char *job_id, const char *action, struct error *err)
{
    autofree char *suffix = xasprintf("/%s", action);
    autofree char *path = output_path("/api/v1/jobs/", job_id, suffix);
    auto_json *body = json_object();
    auto_json *answer = NULL;

    if (api_check(program->api, err) < 0 ||
        api_call(program->api, &(struct api_request){.method = "POST", .path = path, .body = body},
                 &answer, err) < 0)
        return -1;
    return output_done(program, answer, "%sd: %s", action, job_id);
}

static int drop(struct program *program, const char *job_id, struct error *err)
{
    autofree char *path = output_path("/api/v1/jobs/", job_id, "");
    autofree char *question =
        xasprintf("Delete the record of job '%s', with its history and log?", job_id);
    auto_json *answer = NULL;

    if (api_check(program->api, err) < 0)
        return -1;
    if (!output_confirm(program, question)) {
        return error_set(err, ERR_CANCELLED, "job '%.64s' was not deleted (--yes deletes it)",
                         job_id);
    }
    if (api_call(program->api, &(struct api_request){.method = "DELETE", .path = path}, &answer,
                 err) < 0)
        return -1;
    return output_done(program, answer, "deleted: %s", job_id);
}

static int limit(struct program *program, const char *job_id, struct error *err)
{
    const struct command_line *line = program->line;
    autofree char *path = output_path("/api/v1/jobs/", job_id, "/bandwidth");
    auto_json *body = json_object();
    auto_json *answer = NULL;
    uint32_t mb = 0;

    if (line->word_count < 4)
        return error_set(err, ERR_INVALID, "jobs limit: MB/s is missing (0: no limit)");
    if (parse_u32("MB/s", line->words[3], 0, LIMIT_MB_MAX, &mb, err) < 0)
        return -1;
    json_put(body, "bandwidth_limit_mbps", json_integer(mb));
    body_add_bandwidth(body, line);
    if (api_check(program->api, err) < 0 ||
        api_call(program->api, &(struct api_request){.method = "PUT", .path = path, .body = body},
                 &answer, err) < 0)
        return -1;
    return output_done(program, answer, "limited: %s", job_id);
}

static bool print_piece(void *arg, const char *data, size_t size)
{
    (void)arg;
    return write_all(STDOUT_FILENO, data, size) == 0;
}

static int logs(struct program *program, const char *job_id, struct error *err)
{
    bool follow = flag_on(program->line, FLAG_FOLLOW);
    autofree char *path = output_path("/api/v1/jobs/", job_id,
                                      follow ? "/logs?follow=true&tail=10000" : "/logs?tail=10000");
    auto_json *answer = NULL;

    if (api_check(program->api, err) < 0)
        return -1;
    if (program->json && !follow) {
        if (api_get(program->api, path, &answer, err) < 0)
            return -1;
        output_json(answer);
        return EXIT_DONE;
    }
    api_set_cancelled(program->api, interrupt_flag());
    if (api_stream(program->api, path, program->json ? "application/x-ndjson" : "text/plain",
                   print_piece, NULL, err) < 0) {
        if (interrupt_exit_status() == 0)
            return -1;
        error_clear(err);
        return interrupt_exit_status();
    }
    return EXIT_DONE;
}

int jobs_command(struct program *program, struct error *err)
{
    static const char *const one_job[] = {"get",   "cancel", "retry",  "logs",  "limit",
                                          "watch", "pause",  "resume", "delete"};
    const struct command_line *line = program->line;
    const char *what = line->word_count > 1 ? line->words[1] : "list";
    const char *job_id;

    if (strcmp(what, "list") == 0) {
        return command_words_max(program, 2, err) < 0
                   ? -1
                   : jobs_list(program, flag_text(line, FLAG_STATUS), err);
    }
    for (size_t i = 0; i < ARRAY_LEN(one_job); i++) {
        if (strcmp(what, one_job[i]) != 0)
            continue;
        job_id = command_argument(program, "a job id", err);
        if (job_id == NULL ||
            command_words_max(program, strcmp(what, "limit") == 0 ? 4 : 3, err) < 0)
            return -1;
        switch (i) {
        case 0:
            return get(program, job_id, err);
        case 1:
            return jobs_cancel(program, job_id, err);
        case 2:
            return retry(program, job_id, err);
        case 3:
            return logs(program, job_id, err);
        case 4:
            return limit(program, job_id, err);
        case 5:
            return follow_job(program, job_id, false, err);
        case 8:
            return drop(program, job_id, err);
        default:
            return steer(program, job_id, what, err);
        }
    }
    return command_without_code(program, err);
}
