/* Workflows and their runs. */
#include <string.h>

#include "command.h"
#include "common/clock.h"
#include "common/json.h"

#define LIST_COLUMNS 4
#define STEP_COLUMNS 6
#define WATCH_MS     1000

static int create(struct program *program, const char *path, struct error *err)
{
    auto_json *body = NULL;
    auto_json *answer = NULL;

    if (command_file(path, &body, err) < 0)
        return -1;
    if (api_check(program->api, err) < 0 ||
        api_call(program->api,
                 &(struct api_request){.method = "POST", .path = "/api/v1/workflows", .body = body},
                 &answer, err) < 0)
        return -1;
    return output_done(program, answer, "workflow-id: %s", json_str(answer, "id"));
}

static void show_table(const struct program *program, const char *const *heading, size_t columns,
                       const char **cells, size_t rows)
{
    auto_strbuf out;

    memcpy(cells, heading, columns * sizeof *cells);
    strbuf_init(&out, API_BODY_BYTES_MAX);
    if (program->quiet) {
        for (size_t i = 1; i < rows; i++) {
            for (size_t k = 0; k < columns; k++) {
                if (k > 0)
                    strbuf_addc(&out, '\t');
                text_add_clean(&out, cells[i * columns + k], true);
            }
            strbuf_addc(&out, '\n');
        }
    } else {
        text_table(&out, cells, columns, rows, program->style.utf8);
    }
    output_text(&out);
}

static int list(struct program *program, struct error *err)
{
    static const char *const heading[LIST_COLUMNS] = {"WORKFLOW", "NAME", "CREATED", "LAST RUN"};
    auto_json *answer = NULL;
    autofree const char **cells = NULL;
    const json_t *items;
    const json_t *item;
    size_t i;

    if (api_check(program->api, err) < 0 ||
        api_get(program->api, "/api/v1/workflows", &answer, err) < 0)
        return -1;
    items = json_object_get(answer, "workflows");
    if (program->json) {
        output_json(items);
        return EXIT_DONE;
    }
    cells = xcalloc((json_array_size(items) + 1) * LIST_COLUMNS, sizeof *cells);
    json_array_foreach(items, i, item)
    {
        const char **row = &cells[(i + 1) * LIST_COLUMNS];
        row[0] = json_str(item, "id");
        row[1] = json_str(item, "name");
        row[2] = json_str(item, "created_at");
        row[3] = json_str(json_object_get(item, "last_run"), "status");
    }
    show_table(program, heading, LIST_COLUMNS, cells, json_array_size(items) + 1);
    return EXIT_DONE;
}

static void show_run(const struct program *program, const json_t *run)
{
    static const char *const heading[STEP_COLUMNS] = {"STEP", "TYPE",  "STATUS",
                                                      "JOBS", "ENDED", "ERROR"};
    const json_t *steps = json_object_get(run, "steps");
    size_t count = json_array_size(steps);
    autofree const char **cells = xcalloc((count + 1) * STEP_COLUMNS, sizeof *cells);
    autofree char(*done)[TEXT_NUMBER_SIZE] = xcalloc(count + 1, sizeof *done);
    const json_t *step;
    size_t i;

    if (program->json) {
        output_json(run);
        return;
    }
    (void)printf("run-id: %s\nworkflow: %s\nstatus: %s\n", json_str(run, "run_id"),
                 json_str(run, "workflow"), json_str(run, "status"));
    (void)fflush(stdout);
    json_array_foreach(steps, i, step)
    {
        const char **row = &cells[(i + 1) * STEP_COLUMNS];
        (void)snprintf(done[i], sizeof done[i], "%zu/%zu",
                       (size_t)json_u64(step, "items_completed"), (size_t)json_u64(step, "items"));
        row[0] = json_str(step, "id");
        row[1] = json_str(step, "type");
        row[2] = json_str(step, "status");
        row[3] = done[i];
        row[4] = json_str(step, "completed_at");
        row[5] = json_str(step, "error");
    }
    show_table(program, heading, STEP_COLUMNS, cells, count + 1);
}

/* 0 while the run is under way. */
static int run_result(const json_t *run, int *out)
{
    const char *status = json_str(run, "status");

    *out = strcmp(status, "completed") == 0 ? EXIT_DONE : EXIT_EXPORT;
    return strcmp(status, "completed") == 0 || strcmp(status, "failed") == 0 ||
           strcmp(status, "cancelled") == 0;
}

/* With --watch: until the run has ended, and its result is the exit status. */
static int status(struct program *program, const char *run_id, struct error *err)
{
    autofree char *path = output_path("/api/v1/workflows/runs/", run_id, "");
    auto_json *run = NULL;
    int result = EXIT_DONE;

    api_set_cancelled(program->api, interrupt_flag());
    for (;;) {
        json_decref(run);
        run = NULL;
        if (api_get(program->api, path, &run, err) < 0)
            return -1;
        if (!flag_on(program->line, FLAG_WATCH))
            break;
        if (run_result(run, &result))
            break;
        if (interrupt_exit_status() != 0)
            return error_set(err, ERR_CANCELLED, "stopped watching, the run goes on");
        clock_sleep_ms(WATCH_MS);
    }
    show_run(program, run);
    return result;
}

static int start(struct program *program, const char *id, struct error *err)
{
    autofree char *path = output_path("/api/v1/workflows/", id, "/run");
    auto_json *answer = NULL;

    if (api_call(program->api, &(struct api_request){.method = "POST", .path = path}, &answer,
                 err) < 0)
        return -1;
    if (flag_on(program->line, FLAG_WATCH))
        return status(program, json_str(answer, "run_id"), err);
    return output_done(program, answer, "run-id: %s", json_str(answer, "run_id"));
}

static int show(struct program *program, const char *id, struct error *err)
{
    autofree char *path = output_path("/api/v1/workflows/", id, "");
    auto_json *answer = NULL;

    if (api_get(program->api, path, &answer, err) < 0)
        return -1;
    output_json(answer);
    return EXIT_DONE;
}

static int drop(struct program *program, const char *id, struct error *err)
{
    return command_delete(program, "/api/v1/workflows/", id,
                          &(struct deletion){"workflow", "Its runs stay.", id}, err);
}

/* "cancel", "pause", "resume", "retry" */
static int steer(struct program *program, const char *run_id, const char *action, struct error *err)
{
    autofree char *suffix = xasprintf("/%s", action);
    autofree char *path = output_path("/api/v1/workflows/runs/", run_id, suffix);
    auto_json *answer = NULL;

    if (api_call(program->api, &(struct api_request){.method = "POST", .path = path}, &answer,
                 err) < 0)
        return -1;
    show_run(program, answer);
    return EXIT_DONE;
}

int workflow_command(struct program *program, struct error *err)
{
    static const struct {
        const char *word;
        const char *what;
        int (*fn)(struct program *program, const char *argument, struct error *err);
    } actions[] = {
        {"create", "a YAML or JSON file", create},
        {"show", "a workflow's id or name", show},
        {"delete", "a workflow's id or name", drop},
        {"run", "a workflow's id or name", start},
        {"status", "a run's id", status},
    };
    static const char *const steers[] = {"cancel", "pause", "resume", "retry"};
    const char *what = program->line->word_count > 1 ? program->line->words[1] : "list";
    const char *argument;

    if (strcmp(what, "list") == 0)
        return command_words_max(program, 2, err) < 0 ? -1 : list(program, err);
    for (size_t i = 0; i < ARRAY_LEN(actions); i++) {
        if (strcmp(what, actions[i].word) != 0)
            continue;
        argument = command_argument(program, actions[i].what, err);
        if (argument == NULL || command_words_max(program, 3, err) < 0 ||
            api_check(program->api, err) < 0)
            return -1;
        return actions[i].fn(program, argument, err);
    }
    for (size_t i = 0; i < ARRAY_LEN(steers); i++) {
        if (strcmp(what, steers[i]) != 0)
            continue;
        argument = command_argument(program, "a run's id", err);
        if (argument == NULL || command_words_max(program, 3, err) < 0 ||
            api_check(program->api, err) < 0)
            return -1;
        return steer(program, argument, what, err);
    }
    return command_without_code(program, err);
}
