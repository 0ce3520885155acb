/* See submit_bridge.h. */
#include <stdio.h>
#include <string.h>

#include "common/autos.h"
#include "common/id.h"
#include "common/json.h"
#include "common/libvirt_wish.h"
#include "common/paths.h"
#include "common/submit_bridge.h"

#define IMPORT_DISKS_MAX  64
#define IMPORT_MEMORY_MAX (64 * 1024 * 1024) /* MB */
#define IMPORT_VCPUS_MAX  1024
#define MANIFEST_NAME     "artifact-manifest.json"

static const char find_export_sql[] =
    "SELECT provider, vm_id, vm_name, path, volume, format FROM exports WHERE id = $1";

static const struct field import_fields[] = {
    {"vm_name", {"name", "domain"}, FIELD_TEXT, 1, 200, NULL},
    {"image_path", {"disk_path"}, FIELD_TEXT, 1, FIELD_TEXT_MAX, NULL},
    {"disks", {NULL}, FIELD_TEXT_LIST, 0, IMPORT_DISKS_MAX, NULL},
    {"manifest_path", {NULL}, FIELD_TEXT, 1, FIELD_TEXT_MAX, NULL},
    {"export_id", {NULL}, FIELD_TEXT, 1, 63, NULL},
    {"memory_mb", {"memory"}, FIELD_NUMBER, 1, IMPORT_MEMORY_MAX, NULL},
    {"vcpus", {"cpus"}, FIELD_NUMBER, 1, IMPORT_VCPUS_MAX, NULL},
    {"firmware", {NULL}, FIELD_TEXT, 1, 8, NULL},
    {"guest_fixed", {NULL}, FIELD_BOOL, 0, 0, NULL},
    LIBVIRT_WISH_FIELDS,
    {0},
};

struct import_context { /* borrowed */
    const struct submit_settings *settings;
    struct db *db;
    struct field_problem *problem;
};

/* Below exports, or what conversions made of them. */
static int confine(const struct import_context *c, const char *field, const char *path, char **out,
                   struct error *err)
{
    const struct config_list *bases = c->settings->bases;
    autofree char **items = xcalloc(bases->count + 1, sizeof *items);
    struct config_list all = {.items = items, .count = bases->count + 1};
    struct error why = ERROR_NONE;

    for (size_t i = 0; i < bases->count; i++)
        items[i] = bases->items[i];
    items[bases->count] = c->settings->hyper2kvm->output_dir;
    if (path_confine(&all, path, out, &why) == 0)
        return 0;
    return field_fail(c->problem, why.code == ERR_INVALID ? 400 : 422, field, err, why.code,
                      "'%s': %.400s", field, why.message);
}

static int take_disks(const struct import_context *c, struct bridge_request *request,
                      struct error *err)
{
    const char *image = field_text(request->definition, "image_path", NULL);
    const json_t *listed = json_object_get(request->definition, "disks");
    auto_json *one = image == NULL ? NULL : json_pack("[s]", image);
    const json_t *paths = one != NULL ? one : listed;
    const char *field = one != NULL ? "image_path" : "disks";
    const json_t *item;
    size_t i;

    if (one != NULL && listed != NULL) {
        return field_fail(c->problem, 400, "disks", err, ERR_INVALID,
                          "'disks' and 'image_path' both name images: give one");
    }
    if (paths == NULL || json_array_size(paths) == 0)
        return 0;
    request->disks = json_array();
    json_array_foreach(paths, i, item)
    {
        autofree char *path = NULL;
        if (confine(c, field, json_string_value(item), &path, err) < 0)
            return -1;
        (void)json_array_append_new(request->disks, json_string(path));
    }
    return 0;
}

static int take_export(const struct import_context *c, struct bridge_request *request,
                       struct error *err)
{
    const char *id = field_text(request->definition, "export_id", NULL);
    const char *named = field_text(request->definition, "manifest_path", NULL);
    autofree char *path = NULL;

    if (id != NULL && named != NULL) {
        return field_fail(c->problem, 400, "manifest_path", err, ERR_INVALID,
                          "'export_id' and 'manifest_path' both name an export: give one");
    }
    if (id == NULL && named == NULL)
        return 0;
    if (id == NULL)
        return confine(c, "manifest_path", named, &request->path, err);
    if (db_exec(c->db, find_export_sql, DB_PARAMS(id), &request->export, err) < 0)
        return -1;
    if (PQntuples(request->export) == 0) {
        return field_fail(c->problem, 404, "export_id", err, ERR_NOT_FOUND,
                          "export '%.64s' does not exist", id);
    }
    path = xasprintf("%s/" MANIFEST_NAME, db_text(request->export, 0, 3));
    return confine(c, "export_id", path, &request->path, err);
}

/* Without a manifest somebody has to say what the machine is like. */
static int check_machine(const struct import_context *c, const struct bridge_request *request,
                         struct error *err)
{
    static const char *const needed[] = {"vm_name", "memory_mb", "vcpus"};
    static const char *const firmwares[] = {"bios", "uefi", NULL};
    const char *firmware = field_text(request->definition, "firmware", firmwares[0]);

    if (!word_in(firmware, firmwares)) {
        return field_fail(c->problem, 400, "firmware", err, ERR_INVALID,
                          "'firmware': '%s' is not bios or uefi", firmware);
    }
    if (request->path != NULL)
        return 0;
    if (request->disks == NULL) {
        return field_fail(c->problem, 400, "image_path", err, ERR_INVALID,
                          "'image_path', 'disks', 'manifest_path' or 'export_id' is missing");
    }
    for (size_t i = 0; i < ARRAY_LEN(needed); i++) {
        if (json_object_get(request->definition, needed[i]) == NULL) {
            return field_fail(c->problem, 400, needed[i], err, ERR_INVALID,
                              "'%s' is missing: it is needed without a manifest", needed[i]);
        }
    }
    return 0;
}

static void make_spec(const struct submit_settings *settings, struct bridge_request *request)
{
    static const char *const copied[] = {"vm_name", "memory_mb", "vcpus", "firmware",
                                         "guest_fixed"};

    request->spec = json_object();
    for (size_t i = 0; i < ARRAY_LEN(copied); i++) {
        json_t *value = json_object_get(request->definition, copied[i]);
        if (value != NULL)
            json_put(request->spec, copied[i], json_incref(value));
    }
    if (request->disks != NULL)
        json_put(request->spec, "disks", json_incref(request->disks));
    if (request->path != NULL)
        json_set_text(request->spec, "manifest_path", request->path);
    json_put(request->spec, "libvirt", libvirt_wish_spec(settings->libvirt, request->definition));
}

static const char *parent_of(const struct bridge_request *request)
{
    if (request->export != NULL)
        return db_text(request->export, 0, 3);
    if (request->path != NULL)
        return request->path;
    return json_string_value(json_array_get(request->disks, 0));
}

static void complete(const struct submit_settings *settings, struct bridge_request *request)
{
    struct job_submission *s = &request->submission;
    const PGresult *row = request->export;

    request->domain = field_text(request->definition, "vm_name", NULL);
    id_new("job", request->id);
    make_spec(settings, request);
    json_set_text(request->spec, "job_id", request->id);
    s->id = request->id;
    s->kind = "import";
    s->name = "";
    s->provider = "";
    s->format = "";
    s->vm_path = request->domain != NULL ? request->domain : "";
    s->output_path = parent_of(request);
    s->bridge = true;
    s->definition = request->definition;
    s->export_spec = request->spec;
    s->priority = SUBMIT_PRIORITY;
    s->max_attempts = settings->retry->max_attempts;
    s->retry_initial_ms = settings->retry->initial_delay_ms;
    s->retry_max_ms = settings->retry->max_delay_ms;
    if (row == NULL)
        return;
    s->provider = db_text(row, 0, 0);
    s->vm_path = db_text(row, 0, 1);
    s->format = db_text(row, 0, 5);
    s->volume = db_text(row, 0, 4);
    if (request->domain == NULL)
        request->domain = db_text(row, 0, 2);
}

int submit_import_prepare(const struct submit_settings *settings, struct db *db,
                          const json_t *element, struct bridge_request **out,
                          struct field_problem *problem, struct error *err)
{
    auto_bridge_request *request = xcalloc(1, sizeof *request);
    const struct import_context c = {settings, db, problem};

    if (fields_canonical(import_fields, "", element, &request->definition, problem, err) < 0 ||
        libvirt_wish_check(settings->libvirt, request->definition, "", problem, err) < 0 ||
        take_disks(&c, request, err) < 0 || take_export(&c, request, err) < 0 ||
        check_machine(&c, request, err) < 0)
        return -1;
    complete(settings, request);
    *out = STEAL(request);
    return 0;
}
