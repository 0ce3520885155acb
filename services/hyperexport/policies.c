/* Backup policies and what became of their runs. */
#include <string.h>

#include "command.h"
#include "common/clock.h"
#include "common/json.h"

#define PATH_POLICIES "/api/v1/backup-policies"
#define PATH_PREFIX   PATH_POLICIES "/"
#define WATCH_MS      1000

int policy_find(struct program *program, const char *word, char **out, struct error *err)
{
    auto_json *answer = NULL;
    const json_t *policy;
    size_t i;

    if (api_get(program->api, PATH_POLICIES, &answer, err) < 0)
        return -1;
    *out = NULL;
    json_array_foreach(json_object_get(answer, "policies"), i, policy)
    {
        if (strcmp(json_str(policy, "name"), word) == 0 ||
            strcmp(json_str(policy, "id"), word) == 0) {
            *out = xstrdup(json_str(policy, "id"));
            return 0;
        }
    }
    return 0;
}

/* By name or by id; *out: the id. Caller frees. */
static int find(struct program *program, const char *word, char **out, struct error *err)
{
    if (api_check(program->api, err) < 0 || policy_find(program, word, out, err) < 0)
        return -1;
    return *out != NULL ? 0
                        : error_set(err, ERR_NOT_FOUND,
                                    "there is no backup policy '%.64s' (policy list)", word);
}

static int get(struct program *program, const char *id, json_t **out, struct error *err)
{
    autofree char *path = output_path(PATH_PREFIX, id, "");

    return api_get(program->api, path, out, err);
}

static int list(struct program *program, struct error *err)
{
    static const struct output_column columns[] = {{"ID", "id"},
                                                   {"NAME", "name"},
                                                   {"SCHEDULE", "schedule"},
                                                   {"TIMEZONE", "timezone"},
                                                   {"NEXT RUN", "next_run"},
                                                   {"BY", "created_by"}};
    auto_json *answer = NULL;

    if (command_words_max(program, 2, err) < 0 || api_check(program->api, err) < 0 ||
        api_get(program->api, PATH_POLICIES, &answer, err) < 0)
        return -1;
    return output_rows(program, json_object_get(answer, "policies"), columns, ARRAY_LEN(columns));
}

static int tell_stored(const struct program *program, const char *what, const json_t *policy)
{
    const char *why = json_str(policy, "matching_error");

    if (why[0] != '\0' && !program->json)
        output_error(why);
    return output_done(program, policy, "%s: %s\nmatching VMs: %llu\nnext run: %s", what,
                       json_str(policy, "id"), (unsigned long long)json_u64(policy, "matching_vms"),
                       json_str(policy, "next_run"));
}

static int create(struct program *program, struct error *err)
{
    const char *file = command_argument(program, "a YAML or JSON file", err);
    auto_json *body = NULL;
    auto_json *answer = NULL;

    if (file == NULL || command_words_max(program, 3, err) < 0 ||
        command_file(file, &body, err) < 0 || api_check(program->api, err) < 0 ||
        body_add_dependencies(program, body, err) < 0 ||
        api_call(program->api,
                 &(struct api_request){.method = "POST", .path = PATH_POLICIES, .body = body},
                 &answer, err) < 0)
        return -1;
    return tell_stored(program, "policy-created", answer);
}

/* ---- one that exists ---- */

static int show(struct program *program, const char *id, struct error *err)
{
    auto_json *policy = NULL;

    if (get(program, id, &policy, err) < 0)
        return -1;
    output_json(policy);
    return EXIT_DONE;
}

/* What the file names is changed, nothing else. */
static int update(struct program *program, const char *id, struct error *err)
{
    autofree char *path = output_path(PATH_PREFIX, id, "");
    auto_json *body = NULL;
    auto_json *answer = NULL;

    if (program->line->word_count < 4)
        return error_set(err, ERR_INVALID, "'policy update' needs a policy and a file");
    if (command_file(program->line->words[3], &body, err) < 0 ||
        body_add_dependencies(program, body, err) < 0 ||
        api_call(program->api, &(struct api_request){.method = "PUT", .path = path, .body = body},
                 &answer, err) < 0)
        return -1;
    return tell_stored(program, "policy-updated", answer);
}

static int drop(struct program *program, const char *id, struct error *err)
{
    return command_delete(program, PATH_PREFIX, id,
                          &(struct deletion){"backup policy", "Its jobs and exports stay.", id},
                          err);
}

static int preview(struct program *program, const char *id, struct error *err)
{
    static const struct output_column columns[] = {
        {"ID", "id"}, {"PATH", "path"}, {"NAME", "name"}, {"POWER", "power_state"}};
    autofree char *path = output_path(PATH_PREFIX, id, "/preview");
    auto_json *answer = NULL;

    if (api_call(program->api, &(struct api_request){.method = "POST", .path = path}, &answer,
                 err) < 0)
        return -1;
    return output_rows(program, json_object_get(answer, "vms"), columns, ARRAY_LEN(columns));
}

static int runs(struct program *program, const char *id, struct error *err)
{
    auto_json *policy = NULL;

    if (get(program, id, &policy, err) < 0)
        return -1;
    return schedule_output_runs(program, json_object_get(policy, "runs"));
}

/* The newest run; NULL: it has had none. */
static const json_t *newest(const json_t *policy)
{
    return json_array_get(json_object_get(policy, "runs"), 0);
}

static int show_results(const struct program *program, const json_t *run)
{
    static const struct output_column columns[] = {{"VM", "vm_path"},
                                                   {"STATUS", "status"},
                                                   {"JOB", "job_id"},
                                                   {"PHASE", "phase"},
                                                   {"ERROR", "error"}};

    return output_rows(program, json_object_get(run, "results"), columns, ARRAY_LEN(columns));
}

static int results(struct program *program, const char *id, struct error *err)
{
    auto_json *policy = NULL;

    if (get(program, id, &policy, err) < 0)
        return -1;
    if (newest(policy) == NULL)
        return error_set(err, ERR_NOT_FOUND, "policy '%.64s' has not run yet", id);
    return show_results(program, newest(policy));
}

/* Until the run has ended; its result is the exit status. */
static int watch(struct program *program, const char *id, const char *run_id, struct error *err)
{
    api_set_cancelled(program->api, interrupt_flag());
    for (;;) {
        auto_json *policy = NULL;
        const json_t *run;
        const char *status;
        if (get(program, id, &policy, err) < 0)
            return -1;
        run = newest(policy);
        status = json_str(run, "status");
        if (strcmp(json_str(run, "run_id"), run_id) != 0) {
            return error_set(err, ERR_CONFLICT,
                             "another run has begun: 'policy runs %.64s' tells how this one ended",
                             id);
        }
        if (strcmp(status, "queued") != 0 && strcmp(status, "running") != 0) {
            (void)show_results(program, run);
            return strcmp(status, "ok") == 0 ? EXIT_DONE : EXIT_BATCH;
        }
        if (interrupt_exit_status() != 0)
            return error_set(err, ERR_CANCELLED, "stopped watching, the run goes on");
        clock_sleep_ms(WATCH_MS);
    }
}

static int start(struct program *program, const char *id, struct error *err)
{
    autofree char *path = output_path(PATH_PREFIX, id, "/run");
    auto_json *answer = NULL;

    if (api_call(program->api, &(struct api_request){.method = "POST", .path = path}, &answer,
                 err) < 0)
        return -1;
    if (flag_on(program->line, FLAG_WATCH))
        return watch(program, id, json_str(answer, "run_id"), err);
    return output_done(program, answer, "run-id: %s\njobs: %zu", json_str(answer, "run_id"),
                       json_array_size(json_object_get(answer, "job_ids")));
}

int policy_command(struct program *program, struct error *err)
{
    static const struct {
        const char *word;
        size_t words_max;
        int (*fn)(struct program *program, const char *id, struct error *err);
    } actions[] = {
        {"show", 3, show}, {"update", 4, update}, {"delete", 3, drop},     {"preview", 3, preview},
        {"run", 3, start}, {"runs", 3, runs},     {"results", 3, results},
    };
    const char *what = program->line->word_count > 1 ? program->line->words[1] : "list";

    if (strcmp(what, "list") == 0)
        return list(program, err);
    if (strcmp(what, "create") == 0)
        return create(program, err);
    for (size_t i = 0; i < ARRAY_LEN(actions); i++) {
        autofree char *id = NULL;
        const char *word;
        if (strcmp(what, actions[i].word) != 0)
            continue;
        word = command_argument(program, "a policy's name or id", err);
        if (word == NULL || command_words_max(program, actions[i].words_max, err) < 0 ||
            find(program, word, &id, err) < 0)
            return -1;
        return actions[i].fn(program, id, err);
    }
    return command_without_code(program, err);
}
