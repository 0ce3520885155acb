/* State of the suite: processes, workers, queue, why jobs wait. */
#include <inttypes.h>
#include <string.h>

#include "command.h"
#include "common/json.h"

static void show_services(struct strbuf *out, const struct program *program, const json_t *services)
{
    const char *name;
    const json_t *state;

    json_object_foreach((json_t *)(uintptr_t)services, name, state)
    {
        if (!json_is_string(state))
            continue;
        if (program->quiet) {
            strbuf_addf(out, "service.%s=%s\n", name, json_string_value(state));
            continue;
        }
        strbuf_addf(out, "  %-20s %s\n", name, json_string_value(state));
    }
}

static void show_waiting(struct strbuf *out, const struct program *program, const json_t *pending)
{
    size_t i;
    const json_t *job;

    if (json_array_size(pending) > 0 && !program->quiet)
        strbuf_add(out, "\nWaiting jobs\n");
    json_array_foreach(pending, i, job)
    {
        const char *reason = json_str(job, "reason");
        if (reason[0] == '\0')
            reason = json_str(job, "pending_reason");
        if (program->quiet) {
            strbuf_addf(out, "pending.%s=", json_str(job, "job_id"));
        } else {
            strbuf_addf(out, "  %-20s ", json_str(job, "job_id"));
        }
        text_add_clean(out, reason, program->style.utf8);
        strbuf_addc(out, '\n');
    }
}

static void show_drained(struct strbuf *out, const struct program *program, const json_t *workers)
{
    size_t i;
    const json_t *worker;

    json_array_foreach(workers, i, worker)
    {
        if (json_str(worker, "drained_by")[0] == '\0')
            continue;
        if (program->quiet) {
            strbuf_addf(out, "worker.%s=%s\n", json_str(worker, "instance"),
                        json_str(worker, "state"));
        } else {
            strbuf_addf(out, "         %s is %s, by ", json_str(worker, "instance"),
                        json_str(worker, "state"));
            text_add_clean(out, json_str(worker, "drained_by"), program->style.utf8);
            strbuf_addc(out, '\n');
        }
    }
}

static void show(const struct program *program, const json_t *status)
{
    static const char *const counts[] = {"queue_depth",  "active_workers", "total_jobs",
                                         "pending_jobs", "running_jobs",   "completed_jobs",
                                         "failed_jobs",  "cancelled_jobs", "uptime_seconds"};
    const json_t *workers = json_object_get(status, "workers");
    auto_strbuf out;

    strbuf_init(&out, TEXT_BYTES_MAX);
    if (program->quiet) {
        output_pair(&out, "version", json_str(status, "version"));
        for (size_t i = 0; i < ARRAY_LEN(counts); i++)
            strbuf_addf(&out, "%s=%" PRIu64 "\n", counts[i], json_u64(status, counts[i]));
    } else {
        strbuf_addf(&out, "HyperSDK %s at %s\n\n", json_str(status, "version"),
                    api_url(program->api));
        strbuf_addf(&out,
                    "Jobs     %" PRIu64 " running, %" PRIu64 " waiting, %" PRIu64
                    " completed, %" PRIu64 " failed, %" PRIu64 " cancelled\n",
                    json_u64(status, "running_jobs"), json_u64(status, "pending_jobs"),
                    json_u64(status, "completed_jobs"), json_u64(status, "failed_jobs"),
                    json_u64(status, "cancelled_jobs"));
        strbuf_addf(&out, "Workers  %" PRIu64 " (%" PRIu64 " busy)\n", json_u64(workers, "total"),
                    json_u64(workers, "active"));
    }
    queue_line(&out, program, json_object_get(status, "queue"));
    show_drained(&out, program, json_object_get(workers, "list"));
    if (!program->quiet)
        strbuf_add(&out, "\nServices\n");
    show_services(&out, program, json_object_get(status, "services"));
    show_waiting(&out, program, json_object_get(status, "pending"));
    output_text(&out);
}

int status_command(struct program *program, struct error *err)
{
    auto_json *status = NULL;

    if (program->line->command->id == COMMAND_STATUS && command_words_max(program, 1, err) < 0)
        return -1;
    if (api_check(program->api, err) < 0 || api_get(program->api, "/status", &status, err) < 0)
        return -1;
    if (program->json) {
        output_json(status);
    } else {
        show(program, status);
    }
    return EXIT_DONE;
}
