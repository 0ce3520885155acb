/* Templates of jobs. */
#include <string.h>

#include "command.h"
#include "common/json.h"
#include "common/paths.h"

#define PATH_TEMPLATES "/api/v1/templates"
#define PATH_PREFIX    PATH_TEMPLATES "/"

static int list(struct program *program, struct error *err)
{
    static const struct output_column columns[] = {
        {"NAME", "name"}, {"ORIGIN", "origin"}, {"BY", "created_by"}, {"UPDATED", "updated_at"}};
    auto_json *answer = NULL;

    if (command_words_max(program, 2, err) < 0 || api_check(program->api, err) < 0 ||
        api_get(program->api, PATH_TEMPLATES, &answer, err) < 0)
        return -1;
    return output_rows(program, json_object_get(answer, "templates"), columns, ARRAY_LEN(columns));
}

static int show(struct program *program, const char *name, struct error *err)
{
    autofree char *path = output_path(PATH_PREFIX, name, "");
    auto_json *answer = NULL;

    if (api_get(program->api, path, &answer, err) < 0)
        return -1;
    output_json(answer);
    return EXIT_DONE;
}

/* create: only when there is none of that name; update: also in its place. */
static int store(struct program *program, const char *name, bool replaces, struct error *err)
{
    autofree char *path = output_path(PATH_PREFIX, name, "");
    auto_json *template = NULL;
    auto_json *wrapped = json_object();
    auto_json *answer = NULL;
    struct api_request request = {.method = "PUT", .path = path};

    if (program->line->word_count < 4) {
        return error_set(err, ERR_INVALID, "'template %s' needs a name and a YAML or JSON file",
                         program->line->words[1]);
    }
    if (command_file(program->line->words[3], &template, err) < 0)
        return -1;
    request.body = template;
    if (!replaces) {
        json_set_text(wrapped, "name", name);
        (void)json_object_set(wrapped, "template", template);
        request = (struct api_request){.method = "POST", .path = PATH_TEMPLATES, .body = wrapped};
    }
    if (api_call(program->api, &request, &answer, err) < 0)
        return -1;
    return output_done(program, answer, "template-%s: %s", replaces ? "updated" : "created", name);
}

static int create(struct program *program, const char *name, struct error *err)
{
    return store(program, name, false, err);
}

static int update(struct program *program, const char *name, struct error *err)
{
    return store(program, name, true, err);
}

static int drop(struct program *program, const char *name, struct error *err)
{
    return command_delete(program, PATH_PREFIX, name,
                          &(struct deletion){"template", "Jobs made of it stay.", name}, err);
}

/* --set NAME=VALUE,...; --vm and --provider are short for the variables of that meaning. */
static int add_vars(const struct command_line *line, json_t *vars, struct error *err)
{
    const char *vm = flag_text(line, FLAG_VM);

    if (vm != NULL) {
        json_set_text(vars, "VMPath", vm);
        json_set_text(vars, "VMName", path_last(vm));
    }
    if (flag_given(line, FLAG_PROVIDER))
        json_set_text(vars, "Provider", flag_text(line, FLAG_PROVIDER));
    for (const char *p = flag_text(line, FLAG_SET); p != NULL && *p != '\0';) {
        size_t length = strcspn(p, ",");
        autofree char *item = xstrndup(p, length);
        char *equals = strchr(item, '=');
        if (equals == NULL || equals == item) {
            return error_set(err, ERR_INVALID,
                             "--set '%.80s' must be NAME=VALUE, several with commas between", item);
        }
        *equals = '\0';
        json_set_text(vars, item, equals + 1);
        p += length;
        p += *p == ',' ? 1 : 0;
    }
    return 0;
}

/* The job that the template would make; nothing is started. */
static int render(struct program *program, const char *name, struct error *err)
{
    autofree char *path = output_path(PATH_PREFIX, name, "/render");
    auto_json *body = json_object();
    auto_json *answer = NULL;
    json_t *vars = json_object();

    json_put(body, "vars", vars);
    if (add_vars(program->line, vars, err) < 0 ||
        api_call(program->api, &(struct api_request){.method = "POST", .path = path, .body = body},
                 &answer, err) < 0)
        return -1;
    output_json(answer);
    return EXIT_DONE;
}

int template_command(struct program *program, struct error *err)
{
    static const struct {
        const char *word;
        size_t words_max;
        int (*fn)(struct program *program, const char *name, struct error *err);
    } actions[] = {
        {"show", 3, show},   {"create", 4, create}, {"update", 4, update},
        {"delete", 3, drop}, {"render", 3, render},
    };
    const char *what = program->line->word_count > 1 ? program->line->words[1] : "list";

    if (strcmp(what, "list") == 0)
        return list(program, err);
    for (size_t i = 0; i < ARRAY_LEN(actions); i++) {
        const char *name;
        if (strcmp(what, actions[i].word) != 0)
            continue;
        name = command_argument(program, "a template's name", err);
        if (name == NULL || command_words_max(program, actions[i].words_max, err) < 0 ||
            api_check(program->api, err) < 0)
            return -1;
        return actions[i].fn(program, name, err);
    }
    return command_without_code(program, err);
}
