/* See vm_filter.h. */
#include "common/vm_filter.h"

#include <string.h>

#include "common/autos.h"
#include "common/json.h"

static const char KNOWN[] =
    "SELECT count(*), count(*) FILTER (WHERE v.vm->>'cluster' <> ''),"
    " min(v.name) FILTER (WHERE jsonb_typeof(v.vm->'tags') IS DISTINCT FROM 'object'),"
    " min(v.vm->>'tags_unknown') FROM inventory_vms v JOIN inventory_state s"
    " ON s.provider = v.provider AND s.generation = v.generation WHERE v.provider = $1";

/* ---- checks ---- */

struct checking {
    const char *prefix;
    struct field_problem *problem;
    struct error *err;
};

static int refuse(const struct checking *checking, const char *why)
{
    char field[FIELD_NAME_MAX];

    (void)snprintf(field, sizeof field, "%stags", checking->prefix);
    return field_fail(checking->problem, 400, field, checking->err, ERR_INVALID, "'%s' %s", field,
                      why);
}

static int check_name(const struct checking *checking, const json_t *name)
{
    if (!json_is_string(name) || json_string_length(name) == 0 ||
        json_string_length(name) > VM_FILTER_TAG_MAX)
        return refuse(checking, "must be names of tags, 1 to 512 bytes each");
    return 0;
}

static int check_names(const struct checking *checking, const json_t *names)
{
    const json_t *name;
    size_t i;

    if (json_array_size(names) > VM_FILTER_TAGS_MAX)
        return refuse(checking, "has more than 100 entries");
    json_array_foreach(names, i, name)
    {
        if (check_name(checking, name) < 0)
            return -1;
    }
    return 0;
}

static int check_categories(const struct checking *checking, const json_t *categories)
{
    const char *category;
    json_t *names;

    if (json_object_size(categories) > VM_FILTER_TAGS_MAX)
        return refuse(checking, "has more than 100 entries");
    json_object_foreach(json_unconst(categories), category, names)
    {
        if (json_is_array(names) && json_array_size(names) == 0)
            return refuse(checking, "has a category without a name");
        if (json_is_array(names) ? check_names(checking, names) < 0
                                 : check_name(checking, names) < 0)
            return -1;
    }
    return 0;
}

int vm_filter_check(json_t *filter, const char *prefix, struct field_problem *problem,
                    struct error *err)
{
    const struct checking checking = {prefix, problem, err};
    json_t *tags = json_object_get(filter, "tags");

    if (tags == NULL)
        return 0;
    if (json_is_string(tags)) {
        json_t *list = json_array(); /* "a,b": parameters of a GET come so */
        if (!json_array_add_split(list, json_string_value(tags), ',', false))
            abort(); /* a JSON text is UTF-8 */
        json_put(filter, "tags", list);
        tags = list;
    }
    if (json_is_array(tags)) {
        if (check_names(&checking, tags) < 0)
            return -1;
    } else if (!json_is_object(tags)) {
        return refuse(&checking, "must be a list of names, or an object of category to names");
    } else if (check_categories(&checking, tags) < 0) {
        return -1;
    }
    if (json_array_size(tags) + json_object_size(tags) == 0)
        (void)json_object_del(filter, "tags");
    return 0;
}

/* ---- the statement's parameter ---- */

static void add_wish(json_t *wishes, const char *category, json_t *names)
{
    json_t *wish = json_object();

    json_put(wish, "names", json_is_array(names) ? json_incref(names) : json_pack("[O]", names));
    if (category != NULL)
        json_set_text(wish, "category", category);
    (void)json_array_append_new(wishes, wish);
}

char *vm_filter_tags(const json_t *filter)
{
    json_t *tags = json_object_get(filter, "tags");
    auto_json *wishes = json_array();
    const char *category;
    json_t *names;
    size_t i;

    if (tags == NULL)
        return NULL;
    json_array_foreach(tags, i, names)
    {
        add_wish(wishes, NULL, names);
    }
    json_object_foreach(tags, category, names)
    {
        add_wish(wishes, category, names);
    }
    return json_text(wishes);
}

/* ---- is it known? ---- */

static int fail_unknown(const char *prefix, const char *name, const char *why,
                        struct field_problem *problem, struct error *err)
{
    char field[FIELD_NAME_MAX];

    (void)snprintf(field, sizeof field, "%s%s", prefix, name);
    return field_fail(problem, 422, field, err, ERR_NOT_AVAILABLE, "'%s': %s", field, why);
}

int vm_filter_known(struct db *db, const char *provider, const json_t *filter, const char *prefix,
                    struct field_problem *problem, struct error *err)
{
    bool tags = json_object_get(filter, "tags") != NULL;
    bool cluster = json_object_get(filter, "cluster") != NULL;
    auto_pgresult *rows = NULL;
    autofree char *why = NULL;
    const char *told;

    if (!tags && !cluster)
        return 0;
    if (db_exec(db, KNOWN, DB_PARAMS(provider), &rows, err) < 0)
        return -1;
    if (tags && !PQgetisnull(rows, 0, 2)) {
        told = db_text(rows, 0, 3);
        why = xasprintf("the inventory of provider '%s' does not know the tags of '%.128s': %s",
                        provider, db_text(rows, 0, 2),
                        told[0] == '\0' ? "it was read before tags were" : told);
        return fail_unknown(prefix, "tags", why, problem, err);
    }
    if (cluster && db_i64(rows, 0, 0) > 0 && db_i64(rows, 0, 1) == 0) {
        why = xasprintf("the inventory of provider '%s' knows no cluster of any VM: its hosts "
                        "stand alone, or the account may not read clusters",
                        provider);
        return fail_unknown(prefix, "cluster", why, problem, err);
    }
    return 0;
}
