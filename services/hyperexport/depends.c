/* What the runs of a schedule or policy wait for: --depends-on ID[:STATE[:TIMEOUT]],... */
#include <string.h>

#include "command.h"
#include "common/json.h"

#define JOB_PREFIX "job-"

/* A job by its id; own ids of jobs have no prefix. */
static int is_job(struct program *program, const char *word, bool *out, struct error *err)
{
    autofree char *path = output_path("/api/v1/jobs/", word, "");
    auto_json *job = NULL;

    *out = true;
    if (strncmp(word, JOB_PREFIX, strlen(JOB_PREFIX)) == 0)
        return 0;
    if (api_get(program->api, path, &job, err) == 0)
        return 0;
    if (err->code != ERR_NOT_FOUND)
        return -1;
    error_clear(err);
    *out = false;
    return 0;
}

/* Whose end is awaited: names of schedules first, then of policies, then ids. What is none of
 * them is refused by the server, as a schedule or policy. */
static int add_subject(struct program *program, json_t *one, const char *word, struct error *err)
{
    autofree char *id = NULL;
    bool job = false;

    if (schedule_find(program, word, &id, err) < 0)
        return -1;
    if (id == NULL && policy_find(program, word, &id, err) < 0)
        return -1;
    if (id == NULL && is_job(program, word, &job, err) < 0)
        return -1;
    json_set_text(one, job ? "job_id" : "schedule_id", id == NULL ? word : id);
    return 0;
}

static int add_one(struct program *program, json_t *list, const char *text, struct error *err)
{
    size_t length = strcspn(text, ":");
    const char *state = text[length] == ':' ? text + length + 1 : NULL;
    size_t state_length = state == NULL ? 0 : strcspn(state, ":");
    autofree char *word = xstrndup(text, length);
    auto_json *one = json_object();

    if (length == 0) {
        return error_set(err, ERR_INVALID,
                         "--depends-on '%.80s' must be ID[:STATE[:TIMEOUT]], for example "
                         "nightly:final:6h",
                         text);
    }
    if (add_subject(program, one, word, err) < 0)
        return -1;
    if (state_length > 0)
        json_put(one, "required_state", json_stringn(state, state_length));
    if (state != NULL && state[state_length] == ':')
        json_set_text(one, "timeout", state + state_length + 1);
    (void)json_array_append(list, one);
    return 0;
}

int body_add_dependencies(struct program *program, json_t *body, struct error *err)
{
    auto_json *words = json_array();
    auto_json *list = json_array();
    const json_t *word;
    size_t i;

    if (!flag_given(program->line, FLAG_DEPENDS_ON))
        return 0;
    if (!json_array_add_split(words, flag_text(program->line, FLAG_DEPENDS_ON), ',', true))
        return error_set(err, ERR_INVALID, "--depends-on is not UTF-8");
    json_array_foreach(words, i, word)
    {
        if (add_one(program, list, json_string_value(word), err) < 0)
            return -1;
    }
    (void)json_object_set(body, "depends_on", list);
    return 0;
}
