/* See placeholders.h. */
#include "common/placeholders.h"

#include <ctype.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "common/autos.h"
#include "common/json.h"
#include "common/paths.h"
#include "common/strbuf.h"

#define NAME_BYTES_MAX 64 /* of a placeholder; names of variables are shorter */
#define OPEN           "{{"
#define CLOSE          "}}"
#define ENV            "Env."

static const char *const names[] = {"VMName", "VMPath", "Date", "Time", "JobID", "Provider", NULL};

enum place { PLACE_TEXT, PLACE_PATH, PLACE_URL };

struct walk {
    const json_t *vars;            /* NULL: only look */
    const struct config_list *env; /* when only looking */
    const char *wanted;            /* not NULL: is it used? */
    bool found;
    size_t total;
    struct field_problem *problem;
    struct error *err;
};

/* ---- values ---- */

static const char *env_value(const char *name)
{
    return secure_getenv(name);
}

json_t *placeholders_vars(const struct placeholder_facts *facts)
{
    json_t *vars = json_object();
    json_t *env = json_object();
    time_t now = (time_t)(facts->now_ms / 1000);
    struct tm tm;
    char text[16];

    if (facts->vm_name != NULL)
        json_set_text(vars, "VMName", facts->vm_name);
    if (facts->vm_path != NULL)
        json_set_text(vars, "VMPath", facts->vm_path);
    if (facts->job_id != NULL)
        json_set_text(vars, "JobID", facts->job_id);
    if (facts->provider != NULL)
        json_set_text(vars, "Provider", facts->provider);
    if (gmtime_r(&now, &tm) != NULL) {
        (void)strftime(text, sizeof text, "%Y-%m-%d", &tm);
        json_set_text(vars, "Date", text);
        (void)strftime(text, sizeof text, "%H%M%S", &tm);
        json_set_text(vars, "Time", text);
    }
    for (size_t i = 0; facts->env != NULL && i < facts->env->count; i++) {
        const char *value = env_value(facts->env->items[i]);
        if (value != NULL)
            json_set_text(env, facts->env->items[i], value);
    }
    json_put(vars, "Env", env);
    return vars;
}

static int check_value(const char *name, const json_t *value, struct field_problem *problem,
                       struct error *err)
{
    char field[FIELD_NAME_MAX];
    const char *text = json_string_value(value);
    bool clean = text != NULL && text[0] != '\0' && strlen(text) == json_string_length(value) &&
                 strlen(text) <= FIELD_TEXT_MAX;

    for (const char *p = text; clean && *p != '\0'; p++)
        clean = (unsigned char)*p >= 0x20 && *p != 0x7f;
    if (clean)
        return 0;
    (void)snprintf(field, sizeof field, "vars.%s", name);
    return field_fail(problem, 400, field, err, ERR_INVALID,
                      "'%s' must be a text of 1 to %d bytes without control characters", field,
                      FIELD_TEXT_MAX);
}

int placeholders_merge(json_t *vars, const json_t *given, struct field_problem *problem,
                       struct error *err)
{
    const char *name;
    json_t *value;

    json_object_foreach(json_unconst(given), name, value)
    {
        char field[FIELD_NAME_MAX];
        if (!word_in(name, names)) {
            (void)snprintf(field, sizeof field, "vars.%s", name);
            return field_fail(problem, 422, field, err, ERR_INVALID,
                              "'%.64s' is no placeholder that can be given: VMName, VMPath, Date, "
                              "Time, JobID and Provider are",
                              name);
        }
        if (check_value(name, value, problem, err) < 0)
            return -1;
        (void)json_object_set(vars, name, value);
    }
    return 0;
}

/* ---- one text ---- */

static bool ends_with(const char *text, const char *suffix)
{
    size_t a = strlen(text);
    size_t b = strlen(suffix);

    return a >= b && strcmp(text + a - b, suffix) == 0;
}

/* By the name of the member that holds the text. */
static enum place place_of(const char *member)
{
    static const char *const paths[] = {"output_path", "export_path", "output_dir",
                                        "output_name", "dir",         "destination",
                                        "upload",      "command",     NULL};

    if (word_in(member, paths))
        return PLACE_PATH;
    return strcmp(member, "url") == 0 || ends_with(member, "_url") ? PLACE_URL : PLACE_TEXT;
}

static void add_value(struct strbuf *sb, enum place place, const char *value)
{
    autofree char *part = NULL;

    if (place == PLACE_URL) {
        strbuf_add_url(sb, value);
        return;
    }
    if (place == PLACE_TEXT) {
        strbuf_add(sb, value);
        return;
    }
    part = vm_file_name(value);
    for (char *p = part; *p != '\0'; p++) {
        if (strchr("#%?\\@", *p) != NULL) /* these mean something in upload URLs */
            *p = '_';
    }
    strbuf_add(sb, part);
}

static bool is_name(const char *name)
{
    for (const char *p = name; *p != '\0'; p++) {
        if (!isalnum((unsigned char)*p) && *p != '_' && *p != '.')
            return false;
    }
    return name[0] != '\0';
}

/* "{{ .Name }}": *inout is behind "{{" and moves behind "}}". */
static int read_name(struct walk *walk, const char *field, const char **inout,
                     char out[NAME_BYTES_MAX + 1])
{
    const char *start = *inout;
    const char *end = strstr(start, CLOSE);
    size_t length;

    if (end == NULL) {
        return field_fail(walk->problem, 422, field, walk->err, ERR_INVALID,
                          "'%s': '{{' is not closed by '}}' in '{{%.40s'", field, start);
    }
    *inout = end + strlen(CLOSE);
    start += strspn(start, " ");
    while (end > start && end[-1] == ' ')
        end--;
    length = end > start ? (size_t)(end - start) : 0;
    if (length < 2 || length - 1 > NAME_BYTES_MAX || *start != '.') {
        return field_fail(walk->problem, 422, field, walk->err, ERR_INVALID,
                          "'%s': '{{%.*s}}' is no placeholder: write one like {{ .VMName }}", field,
                          (int)min_u64(length, NAME_BYTES_MAX), start);
    }
    (void)snprintf(out, NAME_BYTES_MAX + 1, "%.*s", (int)(length - 1), start + 1);
    if (!is_name(out)) {
        return field_fail(walk->problem, 422, field, walk->err, ERR_INVALID,
                          "'%s': '{{ .%s }}' is no placeholder: write one like {{ .VMName }}",
                          field, out);
    }
    return 0;
}

static int unknown_name(struct walk *walk, const char *field, const char *name)
{
    const char *near = nearest_word(name, names);

    return field_fail(walk->problem, 422, field, walk->err, ERR_INVALID,
                      "'%s': unknown placeholder '%s'%s%s%s", field, name,
                      near == NULL ? "" : ", did you mean '", near == NULL ? "" : near,
                      near == NULL ? "" : "'");
}

static bool in_list(const struct config_list *list, const char *word)
{
    for (size_t i = 0; list != NULL && i < list->count; i++) {
        if (strcmp(list->items[i], word) == 0)
            return true;
    }
    return false;
}

/* Looking only: is it a name that can have a value? */
static int check_name(struct walk *walk, const char *field, const char *name)
{
    if (walk->wanted != NULL) {
        walk->found = walk->found || strcmp(walk->wanted, name) == 0;
        return 0;
    }
    if (strncmp(name, ENV, strlen(ENV)) != 0)
        return word_in(name, names) ? 0 : unknown_name(walk, field, name);
    if (in_list(walk->env, name + strlen(ENV)))
        return 0;
    return field_fail(walk->problem, 422, field, walk->err, ERR_INVALID,
                      "'%s': placeholder '%s': templates.env of the configuration does not allow "
                      "this variable",
                      field, name);
}

static int add_named(struct walk *walk, const char *field, enum place place, const char *name,
                     struct strbuf *sb)
{
    bool env = strncmp(name, ENV, strlen(ENV)) == 0;
    const char *value = env ? json_str(json_object_get(walk->vars, "Env"), name + strlen(ENV))
                            : json_str(walk->vars, name);

    if (!env && !word_in(name, names))
        return unknown_name(walk, field, name);
    if (value[0] == '\0') {
        return field_fail(walk->problem, 422, field, walk->err, ERR_INVALID,
                          "'%s': placeholder '%s' has no value%s", field, name,
                          env ? ": it must be in templates.env of the configuration and set in "
                                "the service's environment"
                              : " here");
    }
    add_value(sb, env && place == PLACE_PATH ? PLACE_TEXT : place, value);
    return 0;
}

static int expand_text(struct walk *walk, const char *field, enum place place, const char *text,
                       json_t **out)
{
    autofree char *expanded = NULL;
    auto_strbuf sb;

    strbuf_init(&sb, PLACEHOLDER_TEXT_BYTES_MAX);
    for (const char *p = text; *p != '\0';) {
        char name[NAME_BYTES_MAX + 1];
        const char *open = strstr(p, OPEN);
        if (open == NULL) {
            strbuf_add(&sb, p);
            break;
        }
        strbuf_add_bytes(&sb, p, (size_t)(open - p));
        p = open + strlen(OPEN);
        if (read_name(walk, field, &p, name) < 0)
            return -1;
        if (walk->vars == NULL ? check_name(walk, field, name) < 0
                               : add_named(walk, field, place, name, &sb) < 0)
            return -1;
    }
    walk->total += sb.length;
    if (sb.overflowed || walk->total > PLACEHOLDER_TOTAL_BYTES_MAX) {
        return field_fail(walk->problem, 422, field, walk->err, ERR_LIMIT,
                          "'%s' makes the text longer than %d bytes, or all texts longer than %d",
                          field, PLACEHOLDER_TEXT_BYTES_MAX, PLACEHOLDER_TOTAL_BYTES_MAX);
    }
    if (strbuf_finish(&sb, &expanded, walk->err) < 0)
        return -1;
    *out = json_string(expanded);
    if (*out == NULL) {
        return field_fail(walk->problem, 422, field, walk->err, ERR_INVALID,
                          "'%s' becomes a text that is not UTF-8", field);
    }
    return 0;
}

/* ---- the document ---- */

/* NOLINTNEXTLINE(misc-no-recursion): depth */
static int expand(struct walk *walk, const char *field, const char *member, unsigned int depth,
                  const json_t *value, json_t **out)
{
    auto_json *made = NULL;
    const char *key;
    json_t *child;
    size_t index;
    char name[FIELD_NAME_MAX];

    if (depth > JSON_DEPTH_MAX) {
        return field_fail(walk->problem, 422, field, walk->err, ERR_LIMIT,
                          "'%s' is nested too deep", field);
    }
    if (json_is_string(value) && strlen(json_string_value(value)) == json_string_length(value))
        return expand_text(walk, field, place_of(member), json_string_value(value), out);
    if (json_is_object(value)) {
        made = json_object();
        json_object_foreach(json_unconst(value), key, child)
        {
            json_t *in = NULL;
            (void)snprintf(name, sizeof name, "%s%s%s", field, field[0] == '\0' ? "" : ".", key);
            if (expand(walk, name, key, depth + 1, child, &in) < 0)
                return -1;
            json_put(made, key, in);
        }
    } else if (json_is_array(value)) {
        made = json_array();
        json_array_foreach(json_unconst(value), index, child)
        {
            json_t *in = NULL;
            (void)snprintf(name, sizeof name, "%s[%zu]", field, index);
            if (expand(walk, name, member, depth + 1, child, &in) < 0)
                return -1;
            (void)json_array_append_new(made, in);
        }
    } else {
        made = json_incref(json_unconst(value));
    }
    *out = STEAL(made);
    return 0;
}

int placeholders_expand(const json_t *document, const json_t *vars, json_t **out,
                        struct field_problem *problem, struct error *err)
{
    struct walk walk = {.vars = vars, .problem = problem, .err = err};

    return expand(&walk, "", "", 0, document, out);
}

int placeholders_check(const json_t *document, const struct config_list *env,
                       struct field_problem *problem, struct error *err)
{
    struct walk walk = {.env = env, .problem = problem, .err = err};
    auto_json *unused = NULL;

    return expand(&walk, "", "", 0, document, &unused);
}

bool placeholders_uses(const json_t *document, const char *name)
{
    struct field_problem problem = {0};
    struct error err = ERROR_NONE;
    struct walk walk = {.wanted = name, .problem = &problem, .err = &err};
    auto_json *unused = NULL;

    (void)expand(&walk, "", "", 0, document, &unused);
    return walk.found;
}
