/* See yaml.h. libyaml's event parser, under our limits; recursion is bounded by YAML_DEPTH_MAX. */
#include "common/yaml.h"

#include <errno.h>
#include <math.h>
#include <string.h>
#include <yaml.h>

#include "common/autos.h"

struct reader {
    yaml_parser_t parser;
    size_t nodes;
    struct error *err;
};

static void event_cleanup(yaml_event_t *event)
{
    yaml_event_delete(event);
}
#define auto_event CLEANUP(event_cleanup) yaml_event_t

/* NOLINTNEXTLINE(misc-no-recursion): the parser stops at YAML_DEPTH_MAX */
void yaml_node_free(struct yaml_node *node)
{
    if (node == NULL)
        return;
    free(node->text);
    for (size_t i = 0; i < node->count; i++) {
        if (node->keys != NULL)
            free(node->keys[i]);
        yaml_node_free(node->items[i]);
    }
    free(node->keys);
    free(node->items);
    free(node);
}

static int next_event(struct reader *reader, yaml_event_t *event)
{
    memset(event, 0, sizeof *event);
    if (yaml_parser_parse(&reader->parser, event) != 0)
        return 0;
    return error_set(reader->err, ERR_INVALID, "line %zu: %s", reader->parser.problem_mark.line + 1,
                     reader->parser.problem == NULL ? "malformed YAML" : reader->parser.problem);
}

static int refuse(struct reader *reader, const yaml_event_t *event, const char *what)
{
    return error_set(reader->err, ERR_INVALID, "line %zu: %s", event->start_mark.line + 1, what);
}

static struct yaml_node *node_new(struct reader *reader, const yaml_event_t *event,
                                  enum yaml_kind kind)
{
    struct yaml_node *node = xcalloc(1, sizeof *node);

    reader->nodes++;
    node->kind = kind;
    node->line = (unsigned int)(event->start_mark.line + 1);
    return node;
}

/* Anchors and tags have no use in our files and are the door of alias bombs and type tricks. */
static int check_plain(struct reader *reader, const yaml_event_t *event, const yaml_char_t *anchor,
                       const yaml_char_t *tag)
{
    if (anchor != NULL)
        return refuse(reader, event, "anchors and aliases are not allowed");
    if (tag != NULL)
        return refuse(reader, event, "tags are not allowed");
    if (reader->nodes >= YAML_NODES_MAX)
        return refuse(reader, event, "too many values");
    return 0;
}

static int parse_node(struct reader *reader, yaml_event_t *event, unsigned int depth,
                      struct yaml_node **out);

static int parse_scalar(struct reader *reader, yaml_event_t *event, struct yaml_node **out)
{
    const char *text = (const char *)event->data.scalar.value;
    size_t length = event->data.scalar.length;

    if (check_plain(reader, event, event->data.scalar.anchor, event->data.scalar.tag) < 0)
        return -1;
    if (memchr(text, '\0', length) != NULL)
        return refuse(reader, event, "a value holds a NUL byte");
    *out = node_new(reader, event, YAML_SCALAR);
    (*out)->text = xstrndup(text, length);
    (*out)->quoted = event->data.scalar.style != YAML_PLAIN_SCALAR_STYLE;
    return 0;
}

static void append(struct yaml_node *node, char *key, struct yaml_node *item)
{
    node->items = xreallocarray(node->items, node->count + 1, sizeof *node->items);
    node->items[node->count] = item;
    if (node->kind == YAML_MAP) {
        node->keys = xreallocarray(node->keys, node->count + 1, sizeof *node->keys);
        node->keys[node->count] = key;
    }
    node->count++;
}

/* NOLINTNEXTLINE(misc-no-recursion): parse_node stops at YAML_DEPTH_MAX */
static int parse_list(struct reader *reader, const yaml_event_t *start, unsigned int depth,
                      struct yaml_node **out)
{
    auto_yaml_node *list = node_new(reader, start, YAML_LIST);

    for (;;) {
        auto_event event;
        struct yaml_node *item = NULL;
        if (next_event(reader, &event) < 0)
            return -1;
        if (event.type == YAML_SEQUENCE_END_EVENT)
            break;
        if (parse_node(reader, &event, depth + 1, &item) < 0)
            return -1;
        append(list, NULL, item);
    }
    *out = STEAL(list);
    return 0;
}

/* NOLINTNEXTLINE(misc-no-recursion): parse_node stops at YAML_DEPTH_MAX */
static int parse_map_entry(struct reader *reader, yaml_event_t *key_event, unsigned int depth,
                           struct yaml_node *map)
{
    auto_event event;
    autofree char *key = NULL;
    struct yaml_node *item = NULL;

    memset(&event, 0, sizeof event);
    if (key_event->type != YAML_SCALAR_EVENT)
        return refuse(reader, key_event, "a key is not a plain word");
    if (check_plain(reader, key_event, key_event->data.scalar.anchor, key_event->data.scalar.tag) <
        0)
        return -1;
    key = xstrdup((const char *)key_event->data.scalar.value);
    if (yaml_member(map, key) != NULL) {
        return error_set(reader->err, ERR_INVALID, "line %zu: key '%.64s' is given twice",
                         key_event->start_mark.line + 1, key);
    }
    if (next_event(reader, &event) < 0 || parse_node(reader, &event, depth + 1, &item) < 0)
        return -1;
    append(map, STEAL(key), item);
    return 0;
}

/* NOLINTNEXTLINE(misc-no-recursion): parse_node stops at YAML_DEPTH_MAX */
static int parse_map(struct reader *reader, const yaml_event_t *start, unsigned int depth,
                     struct yaml_node **out)
{
    auto_yaml_node *map = node_new(reader, start, YAML_MAP);

    for (;;) {
        auto_event event;
        if (next_event(reader, &event) < 0)
            return -1;
        if (event.type == YAML_MAPPING_END_EVENT)
            break;
        if (parse_map_entry(reader, &event, depth, map) < 0)
            return -1;
    }
    *out = STEAL(map);
    return 0;
}

/* NOLINTNEXTLINE(misc-no-recursion): YAML_DEPTH_MAX */
static int parse_node(struct reader *reader, yaml_event_t *event, unsigned int depth,
                      struct yaml_node **out)
{
    if (depth > YAML_DEPTH_MAX)
        return refuse(reader, event, "nested too deeply");
    if (event->type == YAML_SCALAR_EVENT)
        return parse_scalar(reader, event, out);
    if (event->type == YAML_SEQUENCE_START_EVENT) {
        if (check_plain(reader, event, event->data.sequence_start.anchor,
                        event->data.sequence_start.tag) < 0)
            return -1;
        return parse_list(reader, event, depth, out);
    }
    if (event->type == YAML_MAPPING_START_EVENT) {
        if (check_plain(reader, event, event->data.mapping_start.anchor,
                        event->data.mapping_start.tag) < 0)
            return -1;
        return parse_map(reader, event, depth, out);
    }
    return refuse(reader, event, "anchors and aliases are not allowed");
}

static int parse_document(struct reader *reader, struct yaml_node **out)
{
    auto_yaml_node *root = NULL;

    for (;;) {
        auto_event event;
        if (next_event(reader, &event) < 0)
            return -1;
        if (event.type == YAML_STREAM_END_EVENT)
            break;
        if (event.type == YAML_STREAM_START_EVENT || event.type == YAML_DOCUMENT_START_EVENT ||
            event.type == YAML_DOCUMENT_END_EVENT)
            continue;
        if (root != NULL)
            return refuse(reader, &event, "a second document");
        if (parse_node(reader, &event, 1, &root) < 0)
            return -1;
    }
    if (root == NULL) {
        root = xcalloc(1, sizeof *root);
        root->kind = YAML_MAP;
        root->line = 1;
    }
    *out = STEAL(root);
    return 0;
}

int yaml_parse(const char *text, size_t size, size_t size_max, struct yaml_node **out,
               struct error *err)
{
    struct reader reader = {.err = err};
    int rv;

    if (size > size_max)
        return error_set(err, ERR_LIMIT, "document of %zu bytes is over %zu", size, size_max);
    if (yaml_parser_initialize(&reader.parser) == 0)
        abort(); /* out of memory */
    yaml_parser_set_encoding(&reader.parser, YAML_UTF8_ENCODING);
    yaml_parser_set_input_string(&reader.parser, (const unsigned char *)text, size);
    rv = parse_document(&reader, out);
    yaml_parser_delete(&reader.parser);
    return rv;
}

const struct yaml_node *yaml_member(const struct yaml_node *node, const char *key)
{
    if (node == NULL || node->kind != YAML_MAP)
        return NULL;
    for (size_t i = 0; i < node->count; i++) {
        if (strcmp(node->keys[i], key) == 0)
            return node->items[i];
    }
    return NULL;
}

static json_t *number_to_json(const char *text)
{
    char *end = NULL;
    long long integer;
    double real;

    if (strspn(text, "+-0123456789.eE") != strlen(text) || strpbrk(text, "0123456789") == NULL)
        return NULL;
    errno = 0;
    integer = strtoll(text, &end, 10);
    if (*end == '\0' && errno == 0)
        return json_integer(integer);
    real = strtod(text, &end);
    return *end == '\0' && isfinite(real) ? json_real(real) : NULL;
}

static json_t *scalar_to_json(const struct yaml_node *node)
{
    const char *t = node->text;
    json_t *value = NULL;

    if (!node->quoted) {
        if (strcmp(t, "true") == 0 || strcmp(t, "True") == 0)
            return json_true();
        if (strcmp(t, "false") == 0 || strcmp(t, "False") == 0)
            return json_false();
        if (*t == '\0' || strcmp(t, "~") == 0 || strcmp(t, "null") == 0)
            return json_null();
        value = number_to_json(t);
    }
    return value != NULL ? value : json_string(t); /* the parser checked the UTF-8 */
}

/* NOLINTNEXTLINE(misc-no-recursion): the parser stops at YAML_DEPTH_MAX */
json_t *yaml_to_json(const struct yaml_node *node)
{
    json_t *json;

    if (node->kind == YAML_SCALAR)
        return scalar_to_json(node);
    json = node->kind == YAML_LIST ? json_array() : json_object();
    for (size_t i = 0; i < node->count; i++) {
        json_t *item = yaml_to_json(node->items[i]);
        if (node->kind == YAML_LIST) {
            (void)json_array_append_new(json, item);
        } else {
            (void)json_object_set_new(json, node->keys[i], item);
        }
    }
    return json;
}
