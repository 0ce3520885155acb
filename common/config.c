/* See config.h. */
#include "common/config.h"

#include <inttypes.h>
#include <string.h>

#include "common/autos.h"
#include "common/config_tables.h"
#include "common/parse.h"
#include "common/paths.h"
#include "common/yaml.h"
#include "common/words.h"

#define CONFIG_VALUE_BYTES_MAX 65536 /* after ${ENV} expansion */
#define CONFIG_LIST_MAX        256
#define CONFIG_HINT_DISTANCE   3 /* typos further away are not guessed at */

struct config_file {
    char *path;
    struct yaml_node *root;
};

/* ---- values ---- */

static void *field(void *config, const struct config_key *key)
{
    return (char *)config + key->offset;
}

static int set_string(const struct config_key *key, const char *text, void *config,
                      struct error *err)
{
    size_t length = strlen(text);
    char **slot = field(config, key);

    if ((key->flags & CONFIG_SECRET) != 0 && *slot != NULL && **slot != '\0')
        return error_set(err, ERR_INVALID, "%s: the same value is also given by a file", key->name);
    if (length < key->min || (key->max != 0 && length > key->max)) {
        return error_set(err, ERR_INVALID,
                         length == 0 ? "%s: must not be empty"
                                     : "%s: length is not from %" PRIu64 " to %" PRIu64,
                         key->name, key->min, key->max);
    }
    free(*slot);
    *slot = xstrdup(text);
    return 0;
}

static int set_file(const struct config_key *key, const char *path, void *config, struct error *err)
{
    char **slot = field(config, key);
    char *text = NULL;
    size_t size = 0;

    if (*slot != NULL && **slot != '\0')
        return error_set(err, ERR_INVALID, "%s: the same value is also given directly", key->name);
    if (file_read(path, CONFIG_VALUE_BYTES_MAX, &text, &size, err) < 0)
        return error_wrap(err, "%s", key->name);
    if (size > 0 && text[size - 1] == '\n')
        text[size - 1] = '\0';
    free(*slot);
    *slot = text;
    return 0;
}

/* An empty text is no item: as a directory or address it would mean something else entirely. */
static int list_add(const struct config_key *key, struct config_list *list, const char *text,
                    struct error *err)
{
    if (text[0] == '\0')
        return error_set(err, ERR_INVALID, "%s: an item is empty", key->name);
    if (list->count >= CONFIG_LIST_MAX)
        return error_set(err, ERR_INVALID, "%s: more than %d items", key->name, CONFIG_LIST_MAX);
    list->items = xreallocarray(list->items, list->count + 1, sizeof *list->items);
    list->items[list->count++] = xstrdup(text);
    return 0;
}

static int set_value(const struct config_key *key, const char *text, void *config,
                     struct error *err)
{
    uint64_t max = key->max == 0 ? UINT64_MAX : key->max;

    switch (key->type) {
    case CONFIG_STRING:
        return set_string(key, text, config, err);
    case CONFIG_FILE:
        return set_file(key, text, config, err);
    case CONFIG_BOOL:
        return parse_bool(key->name, text, field(config, key), err);
    case CONFIG_U32:
        return parse_u32(key->name, text, (uint32_t)key->min, (uint32_t)min_u64(max, UINT32_MAX),
                         field(config, key), err);
    case CONFIG_U64:
        return parse_u64(key->name, text, key->min, max, field(config, key), err);
    case CONFIG_SIZE:
        return parse_size_bytes(key->name, text, key->min, max, field(config, key), err);
    case CONFIG_DURATION_MS:
        return parse_duration_ms(key->name, text, (int64_t)key->min,
                                 (int64_t)min_u64(max, INT64_MAX), field(config, key), err);
    case CONFIG_STRING_LIST:
        return text[0] == '\0' ? 0 : list_add(key, field(config, key), text, err);
    }
    return error_set(err, ERR_INTERNAL, "%s: key type is unknown", key->name);
}

static size_t field_size(const struct config_key *key)
{
    switch (key->type) {
    case CONFIG_STRING:
    case CONFIG_FILE:
        return sizeof(char *);
    case CONFIG_BOOL:
        return sizeof(bool);
    case CONFIG_U32:
        return sizeof(uint32_t);
    case CONFIG_U64:
    case CONFIG_SIZE:
        return sizeof(uint64_t);
    case CONFIG_DURATION_MS:
        return sizeof(int64_t);
    case CONFIG_STRING_LIST:
        return sizeof(struct config_list);
    }
    return 0;
}

static void zero_fields(const struct config_key *keys, void *config)
{
    for (const struct config_key *key = keys; key->name != NULL; key++)
        memset(field(config, key), 0, field_size(key));
}

/* The struct is zero; strings become "" at least. Defaults are ours, so they must parse. */
static void set_defaults(const struct config_key *keys, void *config)
{
    for (const struct config_key *key = keys; key->name != NULL; key++) {
        struct error err = ERROR_NONE;
        char **slot = field(config, key);
        int rv = 0;

        if (key->type == CONFIG_STRING) {
            free(*slot);
            *slot = xstrdup(key->default_text == NULL ? "" : key->default_text);
        } else if (key->type == CONFIG_FILE) {
            if (*slot == NULL)
                *slot = xstrdup("");
        } else if (key->default_text != NULL && key->default_text[0] != '\0') {
            rv = set_value(key, key->default_text, config, &err);
        }
        assert(rv == 0);
        (void)rv;
    }
}

static void list_release(struct config_list *list)
{
    for (size_t i = 0; i < list->count; i++)
        free(list->items[i]);
    free(list->items);
    *list = (struct config_list){0};
}

void config_release(const struct config_key *keys, void *config)
{
    for (const struct config_key *key = keys; key->name != NULL; key++) {
        char **slot = field(config, key);

        if (key->type == CONFIG_STRING_LIST) {
            list_release(field(config, key));
        } else if (key->type == CONFIG_STRING || key->type == CONFIG_FILE) {
            if (*slot != NULL && (key->flags & CONFIG_SECRET) != 0)
                explicit_bzero(*slot, strlen(*slot));
            free(*slot);
            *slot = NULL;
        }
    }
}

static const struct config_key *find_key(const struct config_key *keys, const char *name)
{
    for (const struct config_key *key = keys; key->name != NULL; key++) {
        if (strcmp(key->name, name) == 0)
            return key;
    }
    return NULL;
}

static bool is_text_key(const struct config_key *key)
{
    return key->type == CONFIG_STRING || key->type == CONFIG_FILE;
}

static int check_required(const struct config_key *keys, void *config, struct error *err)
{
    for (const struct config_key *key = keys; key->name != NULL; key++) {
        if ((key->flags & CONFIG_REQUIRED) != 0 && is_text_key(key) &&
            **(char **)field(config, key) == '\0')
            return error_set(err, ERR_INVALID, "%s: is required (%s)", key->name, key->help);
    }
    return 0;
}

/* ---- from JSON ---- */

static int set_json(const struct config_key *key, const json_t *value, void *config,
                    struct error *err)
{
    char number[32];
    size_t index;
    json_t *item;

    if (key->type == CONFIG_STRING_LIST && json_is_array(value)) {
        list_release(field(config, key));
        json_array_foreach((json_t *)(uintptr_t)value, index, item)
        {
            if (!json_is_string(item))
                return error_set(err, ERR_INVALID, "%s: must be a list of texts", key->name);
            if (list_add(key, field(config, key), json_string_value(item), err) < 0)
                return -1;
        }
        return 0;
    }
    if (json_is_string(value))
        return set_value(key, json_string_value(value), config, err);
    if (json_is_boolean(value) && key->type == CONFIG_BOOL)
        return set_value(key, json_is_true(value) ? "true" : "false", config, err);
    if (json_is_integer(value) && key->type != CONFIG_BOOL && !is_text_key(key)) {
        (void)snprintf(number, sizeof number, "%" JSON_INTEGER_FORMAT, json_integer_value(value));
        return set_value(key, number, config, err);
    }
    return error_set(err, ERR_INVALID, "%s: has the wrong type (%s)", key->name, key->help);
}

int config_from_json(const struct config_key *keys, const json_t *object, void *out,
                     struct error *err)
{
    const char *name;
    json_t *value;

    zero_fields(keys, out);
    set_defaults(keys, out);
    json_object_foreach((json_t *)(uintptr_t)object, name, value)
    {
        const struct config_key *key = find_key(keys, name);
        if (key == NULL) {
            (void)error_set(err, ERR_INVALID, "unknown setting '%.64s'", name);
            goto fail;
        }
        if (!json_is_null(value) && set_json(key, value, out, err) < 0)
            goto fail;
    }
    if (check_required(keys, out, err) == 0)
        return 0;
fail:
    config_release(keys, out);
    return -1;
}

/* ---- the file ---- */

static void problem(struct strbuf *problems, const struct config_file *file, unsigned int line,
                    const char *section, const char *key, const char *what)
{
    strbuf_addf(problems, "%s:%u: %s%s%s: %s\n", file->path, line, section, key[0] ? "." : "", key,
                what);
}

struct hint {
    const char *name;
    size_t distance;
};

static void consider(struct hint *hint, const char *wrong, const char *known)
{
    size_t d = word_distance(wrong, known);

    if (d <= CONFIG_HINT_DISTANCE && (hint->name == NULL || d < hint->distance))
        *hint = (struct hint){known, d};
}

static void unknown_key(struct strbuf *problems, const struct config_file *file, unsigned int line,
                        const char *section, const char *key, struct hint hint)
{
    char what[160];

    if (hint.name != NULL) {
        (void)snprintf(what, sizeof what, "unknown key (did you mean '%.64s'?)", hint.name);
    } else {
        (void)snprintf(what, sizeof what, "unknown key (--help lists the known ones)");
    }
    problem(problems, file, line, section, key, what);
}

static void check_names(const struct config_file *file, const char *section,
                        const struct yaml_node *node, const char *const *names,
                        struct strbuf *problems)
{
    if (node->kind != YAML_MAP) {
        problem(problems, file, node->line, section, "", "must be a map of settings");
        return;
    }
    for (size_t i = 0; i < node->count; i++) {
        struct hint hint = {0};
        const char *const *name = names;
        for (; *name != NULL && strcmp(*name, node->keys[i]) != 0; name++)
            consider(&hint, node->keys[i], *name);
        if (*name == NULL)
            unknown_key(problems, file, node->items[i]->line, section, node->keys[i], hint);
    }
}

static void check_endpoints(const struct config_file *file, const struct yaml_node *list,
                            struct strbuf *problems)
{
    if (list->kind != YAML_LIST) {
        problem(problems, file, list->line, "webhooks", "endpoints", "must be a list");
        return;
    }
    for (size_t i = 0; i < list->count; i++)
        check_names(file, "webhooks.endpoints", list->items[i], config_endpoint_keys, problems);
}

static void check_table(const struct config_file *file, const struct config_table *table,
                        const struct yaml_node *node, struct strbuf *problems)
{
    if (node->kind == YAML_SCALAR && node->text[0] == '\0')
        return; /* "section:" with nothing below */
    if (node->kind != YAML_MAP) {
        problem(problems, file, node->line, table->section, "", "must be a map of settings");
        return;
    }
    for (size_t i = 0; i < node->count; i++) {
        struct hint hint = {0};
        if (table->free_member != NULL && strcmp(node->keys[i], table->free_member) == 0) {
            check_endpoints(file, node->items[i], problems);
            continue;
        }
        if (find_key(table->keys, node->keys[i]) != NULL)
            continue;
        for (const struct config_key *key = table->keys; key->name != NULL; key++)
            consider(&hint, node->keys[i], key->name);
        unknown_key(problems, file, node->items[i]->line, table->section, node->keys[i], hint);
    }
}

/* "providers" and "uploads": names of the user's choice, entries of known keys. */
static void check_entries(const struct config_file *file, const char *section,
                          const struct yaml_node *node, const char *const *names,
                          struct strbuf *problems)
{
    if (node->kind != YAML_MAP) {
        autofree char *what = xasprintf("must be a map of %s", section);
        problem(problems, file, node->line, section, "", what);
        return;
    }
    for (size_t i = 0; i < node->count; i++) {
        char entry[96];
        (void)snprintf(entry, sizeof entry, "%s.%.64s", section, node->keys[i]);
        check_names(file, entry, node->items[i], names, problems);
    }
}

static void check_roles(const struct config_file *file, const struct yaml_node *node,
                        struct strbuf *problems)
{
    if (node->kind != YAML_MAP) {
        problem(problems, file, node->line, "roles", "", "must be a map: role to permissions");
        return;
    }
    for (size_t i = 0; i < node->count; i++) {
        if (node->items[i]->kind != YAML_LIST) {
            problem(problems, file, node->items[i]->line, "roles", node->keys[i],
                    "must be a list of permissions");
        }
    }
}

static void check_section(const struct config_file *file, const char *name,
                          const struct yaml_node *node, struct strbuf *problems)
{
    struct hint hint = {0};

    for (size_t i = 0; i < config_tables_count; i++) {
        if (strcmp(config_tables[i].section, name) == 0) {
            check_table(file, &config_tables[i], node, problems);
            return;
        }
        consider(&hint, name, config_tables[i].section);
    }
    if (strcmp(name, "providers") == 0) {
        check_entries(file, name, node, config_provider_keys, problems);
    } else if (strcmp(name, "uploads") == 0) {
        check_entries(file, name, node, config_upload_keys, problems);
    } else if (strcmp(name, "roles") == 0) {
        check_roles(file, node, problems);
    } else {
        unknown_key(problems, file, node->line, name, "", hint);
    }
}

static int finish_problems(struct strbuf *mine, struct strbuf *problems, struct error *err)
{
    size_t line = strcspn(mine->data, "\n");

    if (mine->length == 0)
        return 0;
    if (problems != NULL)
        strbuf_add(problems, mine->data);
    return error_set(err, ERR_INVALID, "%.*s", (int)min_u64(line, 480), mine->data);
}

int config_file_load(const char *path, struct config_file **out, struct strbuf *problems,
                     struct error *err)
{
    auto_config_file *file = xcalloc(1, sizeof *file);
    auto_strbuf mine;
    struct error why = ERROR_NONE;
    autofree char *text = NULL;
    size_t size = 0;

    strbuf_init(&mine, CONFIG_PROBLEMS_BYTES_MAX);
    file->path = xstrdup(path == NULL ? CONFIG_PATH_DEFAULT : path);
    if (file_read(file->path, CONFIG_FILE_BYTES_MAX, &text, &size, &why) < 0) {
        if (path != NULL || why.code != ERR_NOT_FOUND) {
            strbuf_addf(&mine, "%s\n", why.message);
            return finish_problems(&mine, problems, err);
        }
        text = xstrdup("");
        size = 0;
    }
    if (yaml_parse(text, size, CONFIG_FILE_BYTES_MAX, &file->root, &why) < 0) {
        strbuf_addf(&mine, "%s: %s\n", file->path, why.message);
        return finish_problems(&mine, problems, err);
    }
    if (file->root->kind == YAML_MAP) {
        for (size_t i = 0; i < file->root->count; i++)
            check_section(file, file->root->keys[i], file->root->items[i], &mine);
    } else {
        problem(&mine, file, file->root->line, "file", "", "must be a map of sections");
    }
    if (finish_problems(&mine, problems, err) < 0)
        return -1;
    *out = STEAL(file);
    return 0;
}

void config_file_free(struct config_file *file)
{
    if (file == NULL)
        return;
    free(file->path);
    yaml_node_free(file->root);
    free(file);
}

/* ---- sections ---- */

/* ${NAME} from the environment; $${ is a literal ${. */
static int expand(const char *text, char **out, struct error *err)
{
    auto_strbuf sb;

    strbuf_init(&sb, CONFIG_VALUE_BYTES_MAX);
    while (*text != '\0') {
        const char *end;
        if (strncmp(text, "$${", 3) == 0) {
            strbuf_add(&sb, "${");
            text += 3;
        } else if (strncmp(text, "${", 2) == 0 && (end = strchr(text, '}')) != NULL) {
            autofree char *name = xstrndup(text + 2, (size_t)(end - text - 2));
            const char *value = secure_getenv(name);
            if (value == NULL)
                return error_set(err, ERR_INVALID, "environment variable '%.64s' is not set", name);
            strbuf_add(&sb, value);
            text = end + 1;
        } else {
            strbuf_addc(&sb, *text++);
        }
    }
    return strbuf_finish(&sb, out, err);
}

static int set_node(const struct config_key *key, const struct yaml_node *node, void *config,
                    struct error *err)
{
    autofree char *value = NULL;

    if (node->kind == YAML_LIST && key->type == CONFIG_STRING_LIST) {
        list_release(field(config, key));
        for (size_t i = 0; i < node->count; i++) {
            autofree char *item = NULL;
            if (node->items[i]->kind != YAML_SCALAR)
                return error_set(err, ERR_INVALID, "must be a list of texts");
            if (expand(node->items[i]->text, &item, err) < 0 ||
                list_add(key, field(config, key), item, err) < 0)
                return -1;
        }
        return 0;
    }
    if (node->kind != YAML_SCALAR)
        return error_set(err, ERR_INVALID, "must be a single value (%s)", key->help);
    if (expand(node->text, &value, err) < 0)
        return -1;
    if (key->type == CONFIG_STRING_LIST)
        list_release(field(config, key));
    return set_value(key, value, config, err);
}

static const struct config_table *find_table(const char *section)
{
    for (size_t i = 0; i < config_tables_count; i++) {
        if (strcmp(config_tables[i].section, section) == 0)
            return &config_tables[i];
    }
    return NULL;
}

/* An error text that starts with the key's own name must not name it twice. */
static const char *without_name(const char *message, const char *name)
{
    size_t n = strlen(name);

    return strncmp(message, name, n) == 0 && strncmp(message + n, ": ", 2) == 0 ? message + n + 2
                                                                                : message;
}

int config_section(const struct config_file *file, const char *section, void *out,
                   struct strbuf *problems, struct error *err)
{
    const struct config_table *table = find_table(section);
    const struct yaml_node *node = yaml_member(file->root, section);
    struct error why = ERROR_NONE;
    auto_strbuf mine;

    assert(table != NULL);
    strbuf_init(&mine, CONFIG_PROBLEMS_BYTES_MAX);
    memset(out, 0, table->size);
    set_defaults(table->keys, out);
    for (size_t i = 0; node != NULL && node->kind == YAML_MAP && i < node->count; i++) {
        const struct config_key *key = find_key(table->keys, node->keys[i]);
        if (key == NULL || set_node(key, node->items[i], out, &why) == 0)
            continue;
        problem(&mine, file, node->items[i]->line, section, key->name,
                without_name(why.message, key->name));
        error_clear(&why);
    }
    if (check_required(table->keys, out, &why) < 0)
        problem(&mine, file, node == NULL ? 1 : node->line, section, "", why.message);
    if (finish_problems(&mine, problems, err) == 0)
        return 0;
    config_release(table->keys, out);
    memset(out, 0, table->size);
    return -1;
}

void config_section_release(const char *section, void *out)
{
    const struct config_table *table = find_table(section);

    assert(table != NULL);
    config_release(table->keys, out);
}

/* A copy of the tree with every scalar expanded. */
/* NOLINTNEXTLINE(misc-no-recursion): the parser stops at YAML_DEPTH_MAX */
static int expand_tree(const struct config_file *file, const char *section,
                       const struct yaml_node *node, json_t **out, struct error *err)
{
    json_t *json;

    if (node->kind == YAML_SCALAR) {
        autofree char *text = NULL;
        struct yaml_node copy = *node;
        if (expand(node->text, &text, err) < 0)
            return error_wrap(err, "%s:%u: %s", file->path, node->line, section);
        copy.text = text;
        *out = yaml_to_json(&copy);
        return 0;
    }
    json = node->kind == YAML_LIST ? json_array() : json_object();
    for (size_t i = 0; i < node->count; i++) {
        json_t *item = NULL;
        if (expand_tree(file, section, node->items[i], &item, err) < 0) {
            json_decref(json);
            return -1;
        }
        if (node->kind == YAML_LIST) {
            (void)json_array_append_new(json, item);
        } else {
            (void)json_object_set_new(json, node->keys[i], item);
        }
    }
    *out = json;
    return 0;
}

int config_section_json(const struct config_file *file, const char *section, json_t **out,
                        struct error *err)
{
    const struct yaml_node *node = yaml_member(file->root, section);

    if (node == NULL) {
        *out = json_null();
        return 0;
    }
    return expand_tree(file, section, node, out, err);
}

void config_help(struct strbuf *out)
{
    for (size_t i = 0; i < config_tables_count; i++) {
        strbuf_addf(out, "%s:\n", config_tables[i].section);
        for (const struct config_key *key = config_tables[i].keys; key->name != NULL; key++) {
            strbuf_addf(out, "  %-24s %s%s%s%s\n", key->name, key->help,
                        key->default_text != NULL && key->default_text[0] ? " [" : "",
                        key->default_text != NULL ? key->default_text : "",
                        key->default_text != NULL && key->default_text[0] ? "]" : "");
        }
    }
    strbuf_add(out, "webhooks.endpoints[]:\n  url, events[], headers{}, retry, timeout, secret, "
                    "secret_file\nproviders.<name>:\n  ");
    for (const char *const *name = config_provider_keys; *name != NULL; name++)
        strbuf_addf(out, "%s%s", *name, name[1] == NULL ? "\n" : ", ");
    strbuf_add(out, "uploads.<name>:\n  ");
    for (const char *const *name = config_upload_keys; *name != NULL; name++)
        strbuf_addf(out, "%s%s", *name, name[1] == NULL ? "\n" : ", ");
    strbuf_add(out, "roles.<name>:\n  [permission, ...]\n");
}
