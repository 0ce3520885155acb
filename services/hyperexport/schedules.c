/* Schedules: --vm NAME --daemon-schedule "name:cron", and what is done to those that exist. */
#include <inttypes.h>
#include <string.h>

#include "command.h"
#include "common/json.h"

#define PATH_PREFIX "/api/v1/schedules/"

/* ---- create ---- */

/* "name:cron", split at the first colon. */
static int add_name(const struct command_line *line, json_t *body, struct error *err)
{
    const char *text = flag_text(line, FLAG_DAEMON_SCHEDULE);
    const char *colon = strchr(text, ':');

    if (colon == NULL || colon == text || colon[1] == '\0') {
        return error_set(err, ERR_INVALID,
                         "--daemon-schedule '%.80s' must be name:cron, for example "
                         "\"nightly:0 2 * * *\"",
                         text);
    }
    json_put(body, "name", json_stringn(text, (size_t)(colon - text)));
    json_set_text(body, "schedule", colon + 1);
    return 0;
}

int schedule_create(struct program *program, json_t *job_taken, struct error *err)
{
    static const struct {
        enum flag_id id;
        const char *name;
    } not_here[] = {{FLAG_RESUME, "resume"}, {FLAG_WATCH, "watch"}, {FLAG_DEADLINE, "deadline"}};
    const struct command_line *line = program->line;
    auto_json *body = json_object();
    auto_json *answer = NULL;
    auto_strbuf out;

    strbuf_init(&out, TEXT_BYTES_MAX);
    json_put(body, "job_template", job_taken);
    for (size_t i = 0; i < ARRAY_LEN(not_here); i++) {
        if (flag_given(line, not_here[i].id)) {
            return error_set(err, ERR_INVALID,
                             "--%s belongs to one export: leave it out with --daemon-schedule",
                             not_here[i].name);
        }
    }
    if (add_name(line, body, err) < 0)
        return -1;
    body_add_text(body, "timezone", line, FLAG_TIMEZONE);
    if (api_check(program->api, err) < 0 || body_add_dependencies(program, body, err) < 0 ||
        api_call(program->api,
                 &(struct api_request){.method = "POST", .path = "/api/v1/schedules", .body = body},
                 &answer, err) < 0)
        return -1;
    if (program->json) {
        output_json(json_object_get(answer, "schedule"));
        return EXIT_DONE;
    }
    strbuf_add(&out, "schedule-created: ");
    text_add_clean(&out, json_str(body, "name"), true);
    strbuf_addc(&out, '\n');
    if (!program->quiet) {
        strbuf_addf(&out, "next run: %s\n",
                    json_str(json_object_get(answer, "schedule"), "next_run"));
    }
    output_text(&out);
    return EXIT_DONE;
}

/* ---- those that exist ---- */

int schedule_find(struct program *program, const char *name, char **out, struct error *err)
{
    auto_json *page = NULL;
    auto_strbuf path;
    const char *id;

    strbuf_init(&path, API_URL_BYTES_MAX);
    strbuf_add(&path, "/api/v1/schedules?limit=1");
    api_path_add(&path, "name", name);
    if (api_get(program->api, path.data, &page, err) < 0)
        return -1;
    id = json_str(json_array_get(json_object_get(page, "schedules"), 0), "id");
    *out = id[0] == '\0' ? NULL : xstrdup(id);
    return 0;
}

/* By name or by id; *out: the id. Caller frees. */
static int find(struct program *program, char **out, struct error *err)
{
    const char *word = command_argument(program, "a schedule's name or id", err);

    if (word == NULL || command_words_max(program, 3, err) < 0 ||
        api_check(program->api, err) < 0 || schedule_find(program, word, out, err) < 0)
        return -1;
    if (*out == NULL)
        *out = xstrdup(word);
    return 0;
}

static int list(struct program *program, struct error *err)
{
    static const struct output_column columns[] = {{"ID", "id"},
                                                   {"NAME", "name"},
                                                   {"SCHEDULE", "schedule"},
                                                   {"TIMEZONE", "timezone"},
                                                   {"NEXT RUN", "next_run"},
                                                   {"LAST", "last_status"}};
    auto_json *rows = json_array();
    auto_strbuf path;

    strbuf_init(&path, API_URL_BYTES_MAX);
    strbuf_add(&path, "/api/v1/schedules");
    if (command_words_max(program, 2, err) < 0 || api_check(program->api, err) < 0 ||
        api_list(program->api, &path, "schedules", command_limit(program), rows, err) < 0)
        return -1;
    return output_rows(program, rows, columns, ARRAY_LEN(columns));
}

int schedule_output_runs(const struct program *program, const json_t *runs)
{
    static const struct output_column columns[] = {
        {"RUN", "run_id"},         {"STATUS", "status"},          {"DUE", "due_at"},
        {"STARTED", "started_at"}, {"COMPLETED", "completed_at"}, {"REASON", "reason"}};

    return output_rows(program, runs, columns, ARRAY_LEN(columns));
}

static int runs(struct program *program, const char *id, struct error *err)
{
    autofree char *url = output_path(PATH_PREFIX, id, "/runs");
    auto_json *rows = json_array();
    auto_strbuf path;

    strbuf_init(&path, API_URL_BYTES_MAX);
    strbuf_add(&path, url);
    if (api_list(program->api, &path, "runs", command_limit(program), rows, err) < 0)
        return -1;
    return schedule_output_runs(program, rows);
}

static int drop(struct program *program, const char *id, struct error *err)
{
    return command_delete(
        program, PATH_PREFIX, id,
        &(struct deletion){"schedule", "Its jobs and exports stay.", program->line->words[2]}, err);
}

/* enable, disable, trigger: what was typed is the route's last word. */
static int act(struct program *program, const char *id, struct error *err)
{
    autofree char *suffix = xasprintf("/%s", program->line->words[1]);
    autofree char *path = output_path(PATH_PREFIX, id, suffix);
    auto_json *body = json_object();
    auto_json *answer = NULL;
    const struct api_request request = {.method = "POST", .path = path, .body = body};
    const char *job_id;

    if (api_call(program->api, &request, &answer, err) < 0)
        return -1;
    job_id = json_str(answer, "job_id");
    return job_id[0] != '\0'
               ? output_done(program, answer, "job-id: %s", job_id)
               : output_done(program, answer, "%s: %s", json_str(answer, "message"), id);
}

static int show(struct program *program, const char *id, struct error *err)
{
    autofree char *path = output_path(PATH_PREFIX, id, "");
    auto_json *schedule = NULL;

    if (api_get(program->api, path, &schedule, err) < 0)
        return -1;
    output_json(schedule);
    return EXIT_DONE;
}

int schedule_command(struct program *program, struct error *err)
{
    static const struct {
        const char *word;
        int (*fn)(struct program *program, const char *id, struct error *err);
    } actions[] = {
        {"show", show},  {"runs", runs},   {"delete", drop},
        {"enable", act}, {"disable", act}, {"trigger", act},
    };
    const char *what = program->line->word_count > 1 ? program->line->words[1] : "list";

    if (strcmp(what, "list") == 0)
        return list(program, err);
    for (size_t i = 0; i < ARRAY_LEN(actions); i++) {
        autofree char *id = NULL;
        if (strcmp(what, actions[i].word) != 0)
            continue;
        return find(program, &id, err) < 0 ? -1 : actions[i].fn(program, id, err);
    }
    return command_without_code(program, err);
}
