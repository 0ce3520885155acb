/* See control.h. */
#include "services/exporter/engine/control.h"

#include <string.h>

#include "common/autos.h"
#include "common/clock.h"
#include "common/json.h"

#define VM_ID_BYTES_MAX   512 /* as bus_check.c allows */
#define VM_JSON_BYTES_MAX ((size_t)(64 * KIB))

int exporter_task_session(struct worker_task *task, struct exporter *exporter,
                          struct exporter_session *out, struct error *err)
{
    struct exporter_settings settings = {.plain = worker_task_settings(task)};

    settings.sealed = worker_task_sealed(task, &settings.sealed_size);
    return exporter_session_open(exporter, &settings, worker_task_stopped(task), out, err);
}

/* ---- tags ---- */

struct tag_reader {
    struct worker_task *task;
    struct exporter_session *session;
    char unknown[ERROR_MESSAGE_MAX]; /* why the source tells no tags; "": it does */
};

/* Without them the listing goes on, and says so of each VM. A source that failed once is not asked
 * again: each of its many pages could wait for the same timeout. */
static int read_tags(struct tag_reader *reader, const struct vm *vms, size_t count,
                     struct vm_tags *out, struct error *err)
{
    const struct provider *provider = reader->session->exporter->provider;
    autofree const char **ids = xcalloc(count + 1, sizeof *ids);
    struct error why = ERROR_NONE;

    if (reader->unknown[0] != '\0')
        return 0;
    if (provider->vm_tags == NULL) {
        (void)snprintf(reader->unknown, sizeof reader->unknown, "of %s no tags are read",
                       provider->title);
        return 0;
    }
    for (size_t i = 0; i < count; i++)
        ids[i] = vms[i].id;
    if (count == 0 || provider->vm_tags(reader->session->session, ids, count, out, &why) == 0)
        return 0;
    if (why.code == ERR_CANCELLED) {
        *err = why;
        return -1;
    }
    (void)snprintf(reader->unknown, sizeof reader->unknown, "%s", why.message);
    worker_task_log(reader->task, why.code == ERR_NOT_AVAILABLE ? LOG_LEVEL_INFO : LOG_LEVEL_WARN,
                    "the tags of VMs are not known: %s", why.message);
    return 0;
}

/* vm_to_json of each VM, with its tags. Caller frees the references. */
static int describe(struct tag_reader *reader, const struct vm *vms, size_t count, json_t **out,
                    struct error *err)
{
    autofree struct vm_tags *tags = xcalloc(count + 1, sizeof *tags);
    int rc = read_tags(reader, vms, count, tags, err);

    for (size_t i = 0; i < count; i++) {
        if (rc == 0) {
            out[i] = vm_to_json(&vms[i], worker_task_provider(reader->task));
            vm_tags_to_json(&tags[i], reader->unknown[0] == '\0' ? NULL : reader->unknown, out[i]);
        }
        vm_tags_release(&tags[i]);
    }
    return rc;
}

/* ---- inventory ---- */

struct listing {
    struct tag_reader tags;
    size_t count;
};

/* Facts within the limits of the bus; one VM that is over them must not hide the others. */
static bool fits(struct worker_task *task, const struct vm *vm, const char *text)
{
    if (strlen(vm->id) <= VM_ID_BYTES_MAX && strlen(vm->name) <= BUS_TEXT_MAX &&
        strlen(vm->path) <= PATH_BYTES_MAX && strlen(text) <= VM_JSON_BYTES_MAX)
        return true;
    worker_task_log(task, LOG_LEVEL_WARN, "VM '%.64s' (%.64s) is left out: its facts are too long",
                    vm->name, vm->id);
    return false;
}

static int send_vms(void *arg, const struct vm *vms, size_t count, struct error *err)
{
    struct listing *listing = arg;
    struct worker_task *task = listing->tags.task;
    autofree struct worker_inventory_vm *items = xcalloc(count + 1, sizeof *items);
    autofree char **texts = xcalloc(count + 1, sizeof *texts);
    autofree json_t **facts = xcalloc(count + 1, sizeof *facts);
    size_t used = 0;
    int rc;

    if (describe(&listing->tags, vms, count, facts, err) < 0)
        return -1;
    for (size_t i = 0; i < count; i++) {
        texts[i] = json_text(facts[i]);
        json_decref(facts[i]);
        if (fits(task, &vms[i], texts[i])) {
            items[used++] = (struct worker_inventory_vm){vms[i].id, vms[i].name, vms[i].path,
                                                         vm_power_name(vms[i].power), texts[i]};
        }
    }
    rc = worker_task_inventory(task, items, used, false, err);
    for (size_t i = 0; i < count; i++)
        free(texts[i]);
    listing->count += used;
    return rc;
}

int exporter_run_inventory(struct worker_task *task, void *arg, json_t **out_result,
                           struct error *err)
{
    struct exporter *exporter = arg;
    auto_exporter_session session = {0};
    struct listing listing = {.tags = {.task = task, .session = &session}};

    if (exporter_task_session(task, exporter, &session, err) < 0 ||
        exporter->provider->vm_list(session.session, send_vms, &listing, err) < 0 ||
        worker_task_inventory(task, NULL, 0, true, err) < 0)
        return -1;
    *out_result = json_object();
    json_put(*out_result, "count", json_integer((json_int_t)listing.count));
    return 0;
}

/* ---- vm_info ---- */

int exporter_run_vm_info(struct worker_task *task, void *arg, json_t **out_result,
                         struct error *err)
{
    struct exporter *exporter = arg;
    auto_exporter_session session = {0};
    const char *identifier = NULL;
    autofree char *id = NULL;
    struct tag_reader tags = {.task = task, .session = &session};
    json_t *facts = NULL;
    auto_vm vm;

    vm_init(&vm);
    if (json_get_string(worker_task_spec(task), "vm", "", &identifier, err) < 0 ||
        exporter_task_session(task, exporter, &session, err) < 0 ||
        exporter_vm_find(&session, identifier, &id, err) < 0 ||
        exporter->provider->vm_get(session.session, id, &vm, err) < 0 ||
        describe(&tags, &vm, 1, &facts, err) < 0)
        return -1;
    *out_result = json_object();
    json_put(*out_result, "vm", facts);
    return 0;
}

/* ---- tracking ---- */

static json_t *tracking_json(const struct vm *vm, bool changed)
{
    json_t *json = json_object();
    json_t *disks = json_array();

    json_set_text(json, "vm_id", vm->id);
    json_set_text(json, "vm_name", vm->name);
    json_put(json, "cbt_enabled", json_boolean(vm->cbt_enabled));
    json_put(json, "changed", json_boolean(changed));
    for (size_t i = 0; i < vm->disk_count; i++) {
        json_t *disk = json_object();
        json_set_text(disk, "disk_id", vm->disks[i].id);
        json_set_text(disk, "label", vm->disks[i].label);
        json_put(disk, "tracked", json_boolean(vm->disks[i].change_id[0] != '\0'));
        json_set_text(disk, "change_id", vm->disks[i].change_id);
        if (json_array_append_new(disks, disk) < 0)
            abort(); /* out of memory */
    }
    json_put(json, "disks", disks);
    return json;
}

/* What the VM says afterwards is the answer. A failure leaves its snapshot to a release. */
static int set_tracking(struct worker_task *task, struct exporter_session *session,
                        const char *vm_id, bool on, bool *out_changed, struct error *err)
{
    const struct provider *provider = session->exporter->provider;
    struct tracking_options options = {.on = on, .job_id = worker_task_id(task)};
    struct exporter_records records;

    if (provider->set_tracking == NULL) {
        return error_set(err, ERR_NOT_AVAILABLE, "%s has no change tracking to switch",
                         provider->title);
    }
    exporter_records_init(&records, task);
    return provider->set_tracking(session->session, vm_id, &options, &records.base, out_changed,
                                  err);
}

int exporter_run_tracking(struct worker_task *task, void *arg, json_t **out_result,
                          struct error *err)
{
    struct exporter *exporter = arg;
    auto_exporter_session session = {0};
    const char *action = json_str(worker_task_spec(task), "action");
    bool enable = strcmp(action, "enable") == 0;
    bool changed = false;
    autofree char *id = NULL;
    auto_vm vm;

    vm_init(&vm);
    if (exporter_task_session(task, exporter, &session, err) < 0 ||
        exporter_vm_find(&session, json_str(worker_task_spec(task), "vm"), &id, err) < 0 ||
        (strcmp(action, "status") != 0 &&
         set_tracking(task, &session, id, enable, &changed, err) < 0) ||
        exporter->provider->vm_get(session.session, id, &vm, err) < 0)
        return -1;
    *out_result = json_object();
    json_put(*out_result, "tracking", tracking_json(&vm, changed));
    return 0;
}

/* ---- validate ---- */

static int override_session(struct worker_task *task, struct exporter *exporter,
                            const json_t *settings, struct exporter_session *out, struct error *err)
{
    uint8_t sealed[SEAL_SECRET_BYTES_MAX + SEAL_OVERHEAD_BYTES];
    const char *hex = NULL;
    size_t size;

    if (json_get_string(worker_task_spec(task), "sealed_secrets_hex", "", &hex, err) < 0)
        return -1;
    size = strlen(hex) / 2;
    if (size > sizeof sealed || !hex_decode(hex, sealed, size))
        return error_set(err, ERR_INVALID, "sealed_secrets_hex is not hex text");
    return exporter_session_open(exporter, &(struct exporter_settings){settings, sealed, size},
                                 worker_task_stopped(task), out, err);
}

static json_t *check_json(const char *provider, const struct provider_check *check, int64_t took_ms)
{
    json_t *json = json_object();

    json_set_text(json, "provider", provider);
    json_put(json, "valid", json_boolean(check->reachable && check->authenticated));
    json_put(json, "reachable", json_boolean(check->reachable));
    json_put(json, "authenticated", json_boolean(check->authenticated));
    json_put(json, "latency_ms", json_integer(took_ms));
    json_set_text(json, "version", check->version);
    json_set_text(json, "error", check->message);
    return json;
}

/* A setting that is wrong is an answer, not a failed task: the user asked whether it works. */
int exporter_run_validate(struct worker_task *task, void *arg, json_t **out_result,
                          struct error *err)
{
    struct exporter *exporter = arg;
    auto_exporter_session session = {0};
    struct provider_check check = {0};
    json_t *settings = NULL;
    int64_t start = clock_mono_ms();
    int rc;

    if (json_get_object(worker_task_spec(task), "settings", &settings, err) < 0)
        return -1;
    rc = settings != NULL ? override_session(task, exporter, settings, &session, err)
                          : exporter_task_session(task, exporter, &session, err);
    if (rc == 0) {
        if (exporter->provider->check(session.session, &check, err) < 0)
            return -1;
    } else if (err->code == ERR_INVALID) {
        (void)snprintf(check.message, sizeof check.message, "%s", err->message);
        error_clear(err);
    } else {
        return -1;
    }
    *out_result = check_json(worker_task_provider(task), &check, clock_mono_ms() - start);
    return 0;
}

/* ---- release ---- */

int exporter_run_release(struct worker_task *task, void *arg, json_t **out_result,
                         struct error *err)
{
    struct exporter *exporter = arg;
    auto_exporter_session session = {0};
    struct exporter_records records;
    bool keep = false;
    bool discard = false;

    exporter_records_init(&records, task);
    if (json_get_bool(worker_task_spec(task), "keep", false, &keep, err) < 0 ||
        json_get_bool(worker_task_spec(task), "discard", false, &discard, err) < 0 ||
        exporter_task_session(task, exporter, &session, err) < 0 ||
        worker_task_may_write(task, err) < 0 ||
        exporter->provider->release(session.session, &records.base, keep, err) < 0)
        return -1;
    if (discard && (exporter_abort_uploads(task, exporter, err) < 0 ||
                    exporter_discard_output(task, exporter, err) < 0))
        return -1;
    *out_result = json_object();
    json_put(*out_result, "released", json_true());
    return 0;
}
