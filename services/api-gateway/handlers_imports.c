/* Images and exports that exist, into libvirt (rest-api.md section 8): jobs of kind "import". */
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "common/id.h"
#include "common/job_store.h"
#include "common/json.h"
#include "common/paths.h"
#include "handler_util.h"
#include "handlers.h"
#include "job_view.h"
#include "common/libvirt_wish.h"
#include "common/submit.h"

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

struct import_request {
    json_t *body;        /* canonical */
    json_t *spec;        /* of the task */
    json_t *disks;       /* confined paths; NULL: the manifest's */
    PGresult *export;    /* the catalogue's row, with export_id */
    char *manifest_path; /* confined; NULL: none */
    struct config_list bases;
};

static void import_request_release(struct import_request *request)
{
    json_decref(request->body);
    json_decref(request->spec);
    json_decref(request->disks);
    PQclear(request->export);
    free(request->manifest_path);
    free(request->bases.items); /* the texts are the gateway's */
}

/* Exports, and what conversions made of them. */
static void fill_bases(const struct gateway *gateway, struct config_list *out)
{
    out->items = xcalloc(gateway->bases.count + 1, sizeof *out->items);
    for (size_t i = 0; i < gateway->bases.count; i++)
        out->items[out->count++] = gateway->bases.items[i];
    out->items[out->count++] = gateway->hyper2kvm.output_dir;
}

static int confine(struct call *call, const struct import_request *request, const char *field,
                   const char *path, char **out, struct error *err)
{
    struct error why = ERROR_NONE;

    if (path_confine(&request->bases, path, out, &why) == 0)
        return 0;
    return call_fail(call, why.code == ERR_INVALID ? 400 : 422, json_pack("{s:s}", "field", field),
                     err, why.code, "'%s': %s", field, why.message);
}

static int take_disks(struct call *call, struct import_request *request, struct error *err)
{
    const char *image = field_text(request->body, "image_path", NULL);
    const json_t *listed = json_object_get(request->body, "disks");
    auto_json *one = image == NULL ? NULL : json_pack("[s]", image);
    const json_t *paths = one != NULL ? one : listed;
    const char *field = one != NULL ? "image_path" : "disks";
    const json_t *item;
    size_t i;

    if (one != NULL && listed != NULL) {
        return call_bad_field(call, "disks", err,
                              "'disks' and 'image_path' both name images: give one");
    }
    if (paths == NULL || json_array_size(paths) == 0)
        return 0;
    request->disks = json_array();
    json_array_foreach(paths, i, item)
    {
        autofree char *path = NULL;
        if (confine(call, request, field, json_string_value(item), &path, err) < 0)
            return -1;
        (void)json_array_append_new(request->disks, json_string(path));
    }
    return 0;
}

static int take_export(struct call *call, struct import_request *request, struct error *err)
{
    const char *id = field_text(request->body, "export_id", NULL);
    const char *named = field_text(request->body, "manifest_path", NULL);
    autofree char *path = NULL;

    if (id != NULL && named != NULL) {
        return call_bad_field(call, "manifest_path", err,
                              "'export_id' and 'manifest_path' both name an export: give one");
    }
    if (id == NULL && named == NULL)
        return 0;
    if (id == NULL)
        return confine(call, request, "manifest_path", named, &request->manifest_path, err);
    call_resource(call, "export", id);
    if (db_exec(call->db, find_export_sql, DB_PARAMS(id), &request->export, err) < 0)
        return -1;
    if (PQntuples(request->export) == 0)
        return error_set(err, ERR_NOT_FOUND, "export '%.64s' does not exist", id);
    path = xasprintf("%s/" MANIFEST_NAME, db_text(request->export, 0, 3));
    return confine(call, request, "export_id", path, &request->manifest_path, err);
}

/* Without a manifest somebody has to say what the machine is like. */
static int check_machine(struct call *call, const struct import_request *request, struct error *err)
{
    static const char *const needed[] = {"vm_name", "memory_mb", "vcpus"};
    static const char *const firmwares[] = {"bios", "uefi", NULL};
    const char *firmware = field_text(request->body, "firmware", firmwares[0]);

    if (!word_in(firmware, firmwares)) {
        return call_bad_field(call, "firmware", err, "'firmware': '%s' is not bios or uefi",
                              firmware);
    }
    if (request->manifest_path != NULL)
        return 0;
    if (request->disks == NULL) {
        return call_bad_field(call, "image_path", err,
                              "'image_path', 'disks', 'manifest_path' or 'export_id' is missing");
    }
    for (size_t i = 0; i < ARRAY_LEN(needed); i++) {
        if (json_object_get(request->body, needed[i]) == NULL) {
            return call_bad_field(call, needed[i], err,
                                  "'%s' is missing: it is needed without a manifest", needed[i]);
        }
    }
    return 0;
}

static void make_spec(struct call *call, struct import_request *request)
{
    static const char *const copied[] = {"vm_name", "memory_mb", "vcpus", "firmware",
                                         "guest_fixed"};

    request->spec = json_object();
    for (size_t i = 0; i < ARRAY_LEN(copied); i++) {
        json_t *value = json_object_get(request->body, copied[i]);
        if (value != NULL)
            json_put(request->spec, copied[i], json_incref(value));
    }
    if (request->disks != NULL)
        json_put(request->spec, "disks", json_incref(request->disks));
    if (request->manifest_path != NULL)
        json_set_text(request->spec, "manifest_path", request->manifest_path);
    json_put(request->spec, "libvirt", libvirt_wish_spec(&call->gateway->libvirt, request->body));
}

static const char *parent_of(const struct import_request *request)
{
    if (request->export != NULL)
        return db_text(request->export, 0, 3);
    if (request->manifest_path != NULL)
        return request->manifest_path;
    return json_string_value(json_array_get(request->disks, 0));
}

static void answer(struct call *call, const char *job_id, const char *domain)
{
    json_t *body = json_object();
    autofree char *location = xasprintf("/api/v1/jobs/%s", job_id);

    /* without a name here the manifest says it */
    json_put(body, "domain", domain == NULL ? json_null() : json_string(domain));
    call_answer_accepted(call, job_id, location, body);
}

static int submit(struct call *call, struct import_request *request, struct error *err)
{
    const PGresult *row = request->export;
    const char *domain = field_text(request->body, "vm_name", NULL);
    char made[ID_SIZE];
    char id[64];
    bool existing = false;
    struct job_submission submission = call_submission(call, "import");

    submission.id = made;
    submission.vm_path = domain != NULL ? domain : "";
    submission.output_path = parent_of(request);
    submission.bridge = true;
    submission.definition = request->body;
    submission.export_spec = request->spec;
    if (row != NULL) {
        submission.provider = db_text(row, 0, 0);
        submission.vm_path = db_text(row, 0, 1);
        submission.format = db_text(row, 0, 5);
        submission.volume = db_text(row, 0, 4);
    }
    if (domain == NULL && row != NULL)
        domain = db_text(row, 0, 2);
    id_new("job", made);
    json_set_text(request->spec, "job_id", made);
    if (job_store_submit(call->db, &submission, id, &existing, err) < 0)
        return -1;
    call_audit(call, "job", id);
    answer(call, id, domain);
    return 0;
}

int handle_import(struct call *call, struct error *err)
{
    CLEANUP(import_request_release) struct import_request request = {0};
    auto_json *empty = json_object();
    struct field_problem problem = {0};

    if (fields_canonical(import_fields, "", call->body == NULL ? empty : call->body, &request.body,
                         &problem, err) < 0 ||
        libvirt_wish_check(&call->gateway->libvirt, request.body, "", &problem, err) < 0)
        return call_fail_field(call, &problem, err);
    fill_bases(call->gateway, &request.bases);
    if (take_disks(call, &request, err) < 0 || take_export(call, &request, err) < 0 ||
        check_machine(call, &request, err) < 0)
        return -1;
    make_spec(call, &request);
    return submit(call, &request, err);
}
