/* The queue and its workers: show, pause, resume, drain. */
#include <inttypes.h>
#include <string.h>

#include "command.h"
#include "common/json.h"

#define COLUMNS 5

/* One row per provider: what waits, runs, is held. Numbers live in store. */
static void show_providers(struct strbuf *out, const struct program *program, const json_t *list)
{
    static const char *const keys[] = {"pending", "running", "paused", "cancelling"};
    size_t rows = json_array_size(list) + 1;
    autofree const char **cells = xcalloc(rows * COLUMNS, sizeof *cells);
    autofree char *store = xcalloc(rows * COLUMNS, 24);
    size_t i;
    const json_t *entry;

    cells[0] = "PROVIDER";
    cells[1] = "WAITING";
    cells[2] = "RUNNING";
    cells[3] = "PAUSED";
    cells[4] = "CANCELLING";
    json_array_foreach(list, i, entry)
    {
        const char **row = cells + (i + 1) * COLUMNS;
        row[0] = json_str(entry, "provider");
        for (size_t k = 0; k < ARRAY_LEN(keys); k++) {
            char *text = store + ((i + 1) * COLUMNS + k + 1) * 24;
            (void)snprintf(text, 24, "%" PRIu64, json_u64(entry, keys[k]));
            row[k + 1] = text;
        }
    }
    text_table(out, cells, COLUMNS, rows, program->style.utf8);
}

void queue_line(struct strbuf *out, const struct program *program, const json_t *queue)
{
    if (program->quiet) {
        strbuf_addf(out, "queue_paused=%s\n",
                    json_is_true(json_object_get(queue, "paused")) ? "true" : "false");
        return;
    }
    if (!json_is_true(json_object_get(queue, "paused")))
        return;
    strbuf_add(out, "Queue    paused by ");
    text_add_clean(out, json_str(queue, "paused_by"), program->style.utf8);
    strbuf_addf(out, " since %s", json_str(queue, "paused_since"));
    if (json_str(queue, "reason")[0] != '\0') {
        strbuf_add(out, ": ");
        text_add_clean(out, json_str(queue, "reason"), program->style.utf8);
    }
    strbuf_addc(out, '\n');
}

static void show(const struct program *program, const json_t *queue)
{
    auto_strbuf out;

    strbuf_init(&out, TEXT_BYTES_MAX);
    queue_line(&out, program, queue);
    if (program->quiet) {
        strbuf_addf(&out, "queue_depth=%" PRIu64 "\n", json_u64(queue, "queue_depth"));
    } else {
        if (!json_is_true(json_object_get(queue, "paused")))
            strbuf_add(&out, "Queue    open\n");
        strbuf_addf(&out, "Waiting  %" PRIu64 " tasks\n\n", json_u64(queue, "queue_depth"));
        show_providers(&out, program, json_object_get(queue, "providers"));
    }
    output_text(&out);
}

int queue_command(struct program *program, struct error *err)
{
    const struct command_line *line = program->line;
    const char *what = line->word_count > 1 ? line->words[1] : "show";
    bool pause = strcmp(what, "pause") == 0;
    bool resume = strcmp(what, "resume") == 0;
    struct api_request request = {.method = "GET", .path = "/api/v1/queue"};
    auto_json *body = json_object();
    auto_json *answer = NULL;

    if (!pause && !resume && strcmp(what, "show") != 0) {
        return command_without_code(program, err);
    }
    if (command_words_max(program, pause ? 3 : 2, err) < 0)
        return -1;
    if (pause || resume) {
        request =
            (struct api_request){.method = "POST",
                                 .path = pause ? "/api/v1/queue/pause" : "/api/v1/queue/resume",
                                 .body = body};
        if (line->word_count > 2)
            json_set_text(body, "reason", line->words[2]);
    }
    if (api_check(program->api, err) < 0 || api_call(program->api, &request, &answer, err) < 0)
        return -1;
    if (program->json) {
        output_json(answer);
    } else {
        show(program, answer);
    }
    return EXIT_DONE;
}

/* ---- workers ---- */

static int list(struct program *program, struct error *err)
{
    static const struct output_column columns[] = {{"INSTANCE", "instance"},
                                                   {"ROLE", "role"},
                                                   {"PROVIDER", "provider"},
                                                   {"HOST", "host"},
                                                   {"STATE", "state"}};
    auto_json *status = NULL;

    if (api_check(program->api, err) < 0 ||
        api_get(program->api, "/api/v1/status", &status, err) < 0)
        return -1;
    return output_rows(program, json_object_get(json_object_get(status, "workers"), "list"),
                       columns, ARRAY_LEN(columns));
}

int workers_command(struct program *program, struct error *err)
{
    const char *what = program->line->word_count > 1 ? program->line->words[1] : "list";
    bool drain = strcmp(what, "drain") == 0;
    const char *instance;
    auto_json *body = json_object();
    auto_json *answer = NULL;
    autofree char *path = NULL;

    if (strcmp(what, "list") == 0)
        return command_words_max(program, 2, err) < 0 ? -1 : list(program, err);
    if (!drain && strcmp(what, "resume") != 0) {
        return command_without_code(program, err);
    }
    instance = command_argument(program, "a worker's instance", err);
    if (instance == NULL || command_words_max(program, 3, err) < 0)
        return -1;
    path = output_path("/api/v1/workers/", instance, drain ? "/drain" : "/resume");
    if (api_check(program->api, err) < 0 ||
        api_call(program->api, &(struct api_request){.method = "POST", .path = path, .body = body},
                 &answer, err) < 0)
        return -1;
    return output_done(program, answer, "%s: %s (%" PRIu64 " running)",
                       drain ? "draining" : "resumed", instance, json_u64(answer, "running"));
}
