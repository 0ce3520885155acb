/* See policy.h. */
#include "common/policy.h"

#include <string.h>

#include "common/autos.h"
#include "common/id.h"
#include "common/json.h"
#include "common/provider_lookup.h"
#include "common/vm_filter.h"

/* A glob as a pattern of LIKE. */
#define LIKE_OF(x)                                                                          \
    "replace(replace(replace(replace(replace(" x ", E'\\\\', E'\\\\\\\\'), '%', E'\\\\%')," \
    " '_', E'\\\\_'), '*', '%'), '?', '_')"

static const struct field filter_fields[] = {
    {"provider", {NULL}, FIELD_TEXT, 1, PROVIDER_NAME_MAX, NULL},
    {"name", {NULL}, FIELD_TEXT, 1, 512, NULL},
    {"folder", {NULL}, FIELD_TEXT, 1, FIELD_TEXT_MAX, NULL},
    {"datacenter", {NULL}, FIELD_TEXT, 1, 512, NULL},
    {"power_state", {NULL}, FIELD_TEXT, 1, 32, NULL},
    {"exclude", {NULL}, FIELD_TEXT_LIST, 0, FIELD_LIST_MAX, NULL},
    VM_FILTER_FIELDS,
    {0},
};

/* $1 provider, $2 name, $3 folder, $4 datacenter, $5 power state, $6 exclude (JSON list),
 * $7 cluster, $8 tags. */
static const char VMS[] =
    "SELECT v.id, v.name, v.path, v.power_state FROM inventory_vms v JOIN inventory_state s"
    "  ON s.provider = v.provider AND s.generation = v.generation WHERE v.provider = $1"
    " AND ($2::text IS NULL OR v.name LIKE " LIKE_OF(
        "$2") ")"
              " AND ($3::text IS NULL OR CASE WHEN starts_with($3, '/')"
              "  THEN starts_with(v.path, rtrim($3, '/') || '/')"
              "  ELSE strpos(v.path, '/' || rtrim($3, '/') || '/') > 0 END)"
              " AND ($4::text IS NULL OR v.vm->>'datacenter' = $4)"
              " AND ($5::text IS NULL OR v.power_state = $5)"
              " AND NOT EXISTS (SELECT 1 FROM jsonb_array_elements_text(coalesce($6::jsonb, '[]')) "
              "x"
              "  WHERE v.name LIKE " LIKE_OF("x") ")" VM_FILTER_SQL(
                  "$7", "$8") " ORDER BY v.path, v.id LIMIT 1001";
static_assert(POLICY_VMS_MAX == 1000, "limit in the statement");

/* Tried: a worker that was asked has answered, or is silent for longer than a run should wait. */
static const char INVENTORY[] =
    "SELECT coalesce((SELECT completed_at > now() - make_interval(secs => $2::int)"
    "  FROM inventory_state WHERE provider = $1), false),"
    " EXISTS (SELECT 1 FROM tasks WHERE kind = 'inventory' AND provider = $1"
    "  AND created_at > now() - make_interval(secs => $2::int) AND (state IN ('done', 'failed',"
    "  'cancelled') OR created_at < now() - interval '40 seconds')),"
    " EXISTS (SELECT 1 FROM tasks WHERE kind = 'inventory' AND provider = $1"
    "  AND state IN ('queued', 'leased', 'finishing'))";

static const char ASK[] =
    "INSERT INTO tasks (id, kind, class, role, provider_kind, provider, spec, priority,"
    " expires_at) SELECT $1, 'inventory', 'control', 'exporter', kind, name, '{}', 90,"
    " now() + interval '15 minutes' FROM providers WHERE name = $2 AND enabled";

int policy_check(json_t *fields, struct field_problem *problem, struct error *err)
{
    static const char *const powers[] = {"poweredOn", "poweredOff", "suspended", NULL};
    json_t *filter = json_object_get(fields, "vm_filter");

    if (filter == NULL)
        return field_fail(problem, 400, "vm_filter", err, ERR_INVALID, "'vm_filter' is missing");
    if (fields_member(fields, "vm_filter", "vm_filter.", filter_fields, problem, err) < 0)
        return -1;
    filter = json_object_get(fields, "vm_filter");
    if (vm_filter_check(filter, "vm_filter.", problem, err) < 0)
        return -1;
    if (json_object_size(filter) == 0) {
        return field_fail(problem, 422, "vm_filter", err, ERR_INVALID,
                          "'vm_filter' is empty: \"name\": \"*\" takes all VMs");
    }
    if (!word_in(field_text(filter, "power_state", powers[0]), powers)) {
        return field_fail(problem, 400, "vm_filter.power_state", err, ERR_INVALID,
                          "'power_state' must be poweredOn, poweredOff or suspended");
    }
    return 0;
}

const char *policy_provider(const json_t *fields)
{
    return field_text(json_object_get(fields, "vm_filter"), "provider", PROVIDER_DEFAULT);
}

int policy_vms(struct db *db, const json_t *fields, PGresult **out, struct error *err)
{
    const json_t *filter = json_object_get(fields, "vm_filter");
    const json_t *exclude = json_object_get(filter, "exclude");
    autofree char *excluded = exclude == NULL ? NULL : json_text(exclude);
    autofree char *tags = vm_filter_tags(filter);
    struct field_problem ignored = {0};
    auto_pgresult *rows = NULL;

    if (vm_filter_known(db, policy_provider(fields), filter, "vm_filter.", &ignored, err) < 0)
        return -1;
    if (db_exec(db, VMS,
                DB_PARAMS(policy_provider(fields), field_text(filter, "name", NULL),
                          field_text(filter, "folder", NULL),
                          field_text(filter, "datacenter", NULL),
                          field_text(filter, "power_state", NULL), excluded,
                          field_text(filter, "cluster", NULL), tags),
                &rows, err) < 0)
        return -1;
    if (PQntuples(rows) > POLICY_VMS_MAX) {
        return error_set(err, ERR_LIMIT, "'vm_filter' takes more than %d VMs: make it narrower",
                         POLICY_VMS_MAX);
    }
    *out = STEAL(rows);
    return 0;
}

json_t *policy_element(const json_t *fields, const char *vm_path)
{
    const json_t *options = json_object_get(fields, "export_options");
    json_t *conversion = json_object_get(fields, "hyper2kvm_integration");
    json_t *element = options == NULL ? json_object() : json_deep_copy(options);

    json_set_text(element, "vm_path", vm_path);
    json_set_text(element, "provider", policy_provider(fields));
    if (conversion != NULL)
        (void)json_object_set(element, "hyper2kvm_integration", conversion);
    return element;
}

int policy_elements(struct db *db, const json_t *fields, json_t **out, struct error *err)
{
    auto_pgresult *rows = NULL;

    if (policy_vms(db, fields, &rows, err) < 0)
        return -1;
    if (PQntuples(rows) == 0) {
        return error_set(err, ERR_CONFLICT, "no VM in the inventory of provider '%.64s' matches",
                         policy_provider(fields));
    }
    *out = json_array();
    for (int i = 0; i < PQntuples(rows); i++)
        (void)json_array_append_new(*out, policy_element(fields, db_text(rows, i, 2)));
    return 0;
}

int policy_inventory_ready(struct db *db, const json_t *fields, bool *out, struct error *err)
{
    const char *provider = policy_provider(fields);
    autofree char *age = xasprintf("%d", POLICY_INVENTORY_AGE_S);
    auto_pgresult *rows = NULL;
    char id[ID_SIZE];

    if (db_exec(db, INVENTORY, DB_PARAMS(provider, age), &rows, err) < 0)
        return -1;
    *out = db_bool(rows, 0, 0) || db_bool(rows, 0, 1);
    if (*out || db_bool(rows, 0, 2))
        return 0;
    id_new("task", id);
    if (db_exec(db, ASK, DB_PARAMS(id, provider), NULL, err) < 0)
        return -1;
    return 0;
}
