/* YAML under limits: depth, size, no aliases, no anchors, no tags, duplicate keys refused.
 * One tree with line numbers serves the configuration and request bodies. */
#ifndef COMMON_YAML_H
#define COMMON_YAML_H

#include <jansson.h>

#include "common/error.h"

#define YAML_DEPTH_MAX 8 /* the configuration's deepest section has 4 levels */
#define YAML_NODES_MAX 20000

enum yaml_kind { YAML_SCALAR, YAML_LIST, YAML_MAP };

struct yaml_node {
    enum yaml_kind kind;
    unsigned int line;        /* from 1 */
    char *text;               /* scalar */
    bool quoted;              /* scalar in quotes: always a string */
    char **keys;              /* map */
    struct yaml_node **items; /* map values or list items */
    size_t count;
};

/* ERR_INVALID: "line N: ...". An empty document is an empty map. */
MUST_CHECK int yaml_parse(const char *text, size_t size, size_t size_max, struct yaml_node **out,
                          struct error *err);
void yaml_node_free(struct yaml_node *node);
DEFINE_AUTO(yaml_node, struct yaml_node, yaml_node_free)
#define auto_yaml_node CLEANUP(yaml_node_auto) struct yaml_node
/* Member of a map, NULL if absent or node is NULL or no map. */
const struct yaml_node *yaml_member(const struct yaml_node *node, const char *key);
/* YAML 1.2 core types: unquoted true/false, integers, floats, null; else strings. New reference. */
json_t *yaml_to_json(const struct yaml_node *node);

#endif
