/* See import.h.
 *
 * Design notes
 * - Order: target record, images (each: record, create, send, record), domain (record, define),
 *   autostart, start. A lease that comes later finds by the records how far it came.
 * - A volume's name holds the job's id, so that what stands there under it is ours.
 * - Errors that may pass leave everything for the next attempt; when there is none, the scheduler
 *   queues a release. All others, and a cancel, are taken back at once. */
#include "import.h"

#include <errno.h>
#include <libvirt/virterror.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "common/autos.h"
#include "common/clock.h"
#include "common/id.h"
#include "common/json.h"
#include "common/paths.h"
#include "domain.h"
#include "plan.h"
#include "services/exporter/formats/domain_xml.h"
#include "services/exporter/targets/local.h"
#include "undo.h"
#include "volume.h"

#define NAMES_MAX     99 /* rename: <name>-2 ... */
#define LATE_CALLS_MS 2000
#define FILE_NAME_MAX 120 /* of the VM's name in a volume's: the job's id comes behind it */

struct import {
    struct worker_task *task;
    const char *job_id;
    struct import_plan plan;
    virConnectPtr connection;
    const char *type;
    char *paths[CONVERT_DISKS_MAX]; /* the images as libvirt sees them */
    json_t *volumes;                /* of the result */
    json_t *warnings;
    uint64_t bytes_total;
    uint64_t bytes_before; /* of images that are through */
    size_t current;        /* image that is sent */
    bool in_place;
    bool replaced;
};

static void import_release(struct import *import)
{
    hv_close(import->connection);
    plan_release(&import->plan);
    for (size_t i = 0; i < CONVERT_DISKS_MAX; i++)
        free(import->paths[i]);
    json_decref(import->volumes);
    json_decref(import->warnings);
}

/* ---- images ---- */

static int on_progress(void *arg, uint64_t done, struct error *err)
{
    struct import *import = arg;
    struct worker_disk_progress disk = {.state = "copying"};
    struct worker_progress progress = {
        .bytes_transferred = import->bytes_before + done,
        .bytes_done = import->bytes_before + done,
        .bytes_total = import->bytes_total,
        .limited_by = "",
        .disks = &disk,
        .disk_count = 1,
    };

    (void)snprintf(disk.id, sizeof disk.id, "disk-%zu", import->current);
    (void)snprintf(disk.file, sizeof disk.file, "%.250s",
                   strrchr(import->plan.images[import->current], '/') + 1);
    disk.bytes_done = done;
    disk.bytes_total = import->bytes_total;
    worker_task_progress(import->task, &progress);
    return worker_task_check(import->task, err) < 0 ? -1 : worker_task_may_write(import->task, err);
}

static char *volume_name(const struct import *import, size_t index)
{
    autofree char *vm = vm_file_name(import->plan.name);
    autofree char *short_vm = utf8_clean(vm, FILE_NAME_MAX);
    autofree char *job = vm_file_name(import->job_id);
    const json_t *disk = json_array_get(json_object_get(import->plan.manifest, "disks"), index);

    return xasprintf("%s-%s-disk%zu.%s", short_vm, job, index + 1, json_str(disk, "source_format"));
}

/* An unfinished one of ours goes; a stranger's of that name is a conflict. */
static int clear_name(struct import *import, virStoragePoolPtr pool, size_t index, const char *name,
                      bool ours, struct error *err)
{
    auto_volume old = NULL;
    int found = volume_find(pool, name, &old, err);

    if (found <= 0)
        return found;
    if (!ours) {
        return error_set(err, ERR_CONFLICT, "pool '%.128s' has a volume '%.200s' already",
                         import->plan.pool, name);
    }
    if (worker_task_may_write(import->task, err) < 0)
        return -1;
    worker_task_log(import->task, LOG_LEVEL_INFO, "image %zu is sent anew", index + 1);
    if (virStorageVolDelete(old, 0) < 0 && hv_error_number() != VIR_ERR_NO_STORAGE_VOL)
        return hv_error(err, "removing volume '%.200s'", name);
    return 0;
}

static int create_volume(struct import *import, virStoragePoolPtr pool, size_t index,
                         const char *name, bool ours, struct error *err)
{
    const json_t *disk = json_array_get(json_object_get(import->plan.manifest, "disks"), index);
    const struct volume_source source = {.file = import->plan.images[index],
                                         .format = json_str(disk, "source_format"),
                                         .arg = import,
                                         .progress = on_progress};
    bool created = false;

    if (clear_name(import, pool, index, name, ours, err) < 0 ||
        record_volume_put(import->task, index, import->plan.pool, name, false, err) < 0 ||
        worker_task_may_write(import->task, err) < 0)
        return -1;
    if (volume_create(pool, name, &source, &created, err) < 0) {
        struct error ignored = ERROR_NONE;
        if (!created && err->code == ERR_CONFLICT && /* someone was quicker: it is not ours */
            record_volume_drop(import->task, index, &ignored) < 0)
            worker_task_log(import->task, LOG_LEVEL_WARN, "%s", ignored.message);
        return -1;
    }
    return record_volume_put(import->task, index, import->plan.pool, name, true, err);
}

static int add_volume(struct import *import, virStorageVolPtr volume, char **out_path,
                      struct error *err)
{
    if (volume_path(volume, out_path, err) < 0)
        return -1;
    (void)json_array_append_new(import->volumes,
                                json_pack("{s:s, s:s, s:s}", "pool", import->plan.pool, "name",
                                          virStorageVolGetName(volume), "path", *out_path));
    return 0;
}

static int place_volume(struct import *import, virStoragePoolPtr pool, size_t index,
                        struct error *err)
{
    struct made_volume made;
    bool ours = record_volume(import->task, index, &made);
    auto_json *owned = made.json;
    autofree char *name = volume_name(import, index);
    auto_volume volume = NULL;
    int found = ours && made.complete && strcmp(made.name, name) == 0
                    ? volume_find(pool, name, &volume, err)
                    : 0;

    import->current = index;
    if (found < 0)
        return -1;
    if (found == 0) {
        if (create_volume(import, pool, index, name, ours, err) < 0)
            return -1;
        found = volume_find(pool, name, &volume, err);
        if (found < 0)
            return -1;
        if (found == 0)
            return error_set(err, ERR_NOT_FOUND, "volume '%.200s' vanished", name);
    }
    return add_volume(import, volume, &import->paths[index], err);
}

static int place_in_pool(struct import *import, struct error *err)
{
    auto_pool pool = NULL;

    if (volume_pool(import->connection, import->plan.pool, &pool, err) < 0)
        return -1;
    for (size_t i = 0; i < import->plan.count; i++) {
        const struct volume_source source = {.file = import->plan.images[i]};
        uint64_t size = 0;
        if (volume_source_size(&source, &size, err) < 0)
            return -1;
        import->bytes_total += size;
    }
    for (size_t i = 0; i < import->plan.count; i++) {
        const struct volume_source source = {.file = import->plan.images[i]};
        uint64_t size = 0;
        if (place_volume(import, pool, i, err) < 0 || volume_source_size(&source, &size, err) < 0)
            return -1;
        import->bytes_before += size;
    }
    /* What format the images have is found out by looking again; nothing hangs on it. */
    (void)virStoragePoolRefresh(pool, 0);
    return 0;
}

/* The volumes that an earlier lease made. */
static int list_volumes(struct import *import, struct error *err)
{
    auto_pool pool = NULL;

    if (import->in_place)
        return 0;
    if (volume_pool(import->connection, import->plan.pool, &pool, err) < 0)
        return -1;
    for (size_t i = 0; i < import->plan.count; i++) {
        struct made_volume made;
        bool known = record_volume(import->task, i, &made);
        auto_json *owned = made.json;
        auto_volume volume = NULL;
        int found = known ? volume_find(pool, made.name, &volume, err) : 0;
        if (found < 0 || (found == 1 && add_volume(import, volume, &import->paths[i], err) < 0))
            return -1;
    }
    return 0;
}

/* An export whose images a domain uses must not be cleaned up. */
static int mark(struct import *import, size_t index, const char *dir, struct error *err)
{
    autofree char *path = xasprintf("%s/" LOCAL_DOMAIN_MARK, dir);
    autofree char *line = xasprintf("%s\n", import->job_id);

    if (record_mark_put(import->task, index, dir, err) < 0 ||
        worker_task_may_write(import->task, err) < 0)
        return -1;
    return file_write_atomic(path, line, strlen(line), 0640, err);
}

/* An incremental export may have the same file as its own (exporter, export_share.c). It links,
 * then looks for the mark; we mark, then look for the link. */
static int check_alone(const char *image, struct error *err)
{
    struct stat st;

    if (stat(image, &st) < 0)
        return error_set_errno(err, errno, "image '%.200s'", image);
    if (st.st_nlink == 1)
        return 0;
    return error_set(err, ERR_CONFLICT,
                     "'%.200s' is the file of another export as well, which a running domain would "
                     "change: name a storage pool, so that it gets a copy",
                     image);
}

static int place_here(struct import *import, struct error *err)
{
    bool warned = false;

    for (size_t i = 0; i < import->plan.count; i++) {
        const char *image = import->plan.images[i];
        autofree char *dir = path_parent(image);
        bool is_export = false;
        import->paths[i] = xstrdup(image);
        if (plan_is_export(dir, &is_export, err) < 0)
            return -1;
        if (!is_export)
            continue;
        if (mark(import, i, dir, err) < 0 || check_alone(image, err) < 0)
            return -1;
        if (!warned) {
            convert_remark(import->warnings,
                           "the domain uses the images of the export in '%s' itself: it changes "
                           "them, and the export can be verified no more (libvirt.pool: copies)",
                           dir);
        }
        warned = true;
    }
    return 0;
}

/* ---- the domain ---- */

static int is_ours(const struct import *import, virDomainPtr domain, bool *out, struct error *err)
{
    autofree char *origin = NULL;

    if (domain_origin_job(domain, &origin, err) < 0)
        return -1;
    *out = strcmp(origin, import->job_id) == 0;
    return 0;
}

/* 1: an earlier lease defined it. */
static int find_own(const struct import *import, virDomainPtr *out, struct error *err)
{
    const char *uuid = record_uuid(import->task);
    auto_domain domain = NULL;
    bool ours = false;
    int found = uuid[0] == '\0' ? 0 : domain_by_uuid(import->connection, uuid, &domain, err);

    if (found <= 0)
        return found;
    if (is_ours(import, domain, &ours, err) < 0)
        return -1;
    if (!ours)
        return 0;
    *out = STEAL(domain);
    return 1;
}

/* Only what an import of ours made, and only while it is off. */
static int check_replaceable(virDomainPtr domain, struct error *err)
{
    const char *name = virDomainGetName(domain);
    autofree char *origin = NULL;
    bool active = false;

    if (domain_origin_job(domain, &origin, err) < 0 || domain_is_active(domain, &active, err) < 0)
        return -1;
    if (origin[0] == '\0') {
        return error_set(err, ERR_CONFLICT,
                         "domain '%.128s' exists and was not imported by this suite: it is not "
                         "replaced",
                         name);
    }
    if (active) {
        return error_set(err, ERR_CONFLICT,
                         "domain '%.128s' exists and runs: it is not replaced, stop it first",
                         name);
    }
    if (virDomainHasManagedSaveImage(domain, 0) == 1) {
        return error_set(err, ERR_CONFLICT,
                         "domain '%.128s' exists and has a saved state: it is not replaced", name);
    }
    return 0;
}

/* <name>-2 ... */
static int free_name(struct import *import, struct error *err)
{
    for (size_t n = 2; n <= NAMES_MAX; n++) {
        autofree char *longer = xasprintf("%s-%zu", import->plan.name, n);
        auto_domain other = NULL;
        int found = domain_by_name(import->connection, longer, &other, err);
        if (found < 0)
            return -1;
        if (found == 0) {
            convert_remark(import->warnings, "domain '%s' exists: this one is '%s'",
                           import->plan.name, longer);
            free(import->plan.name);
            import->plan.name = STEAL(longer);
            return 0;
        }
    }
    return error_set(err, ERR_CONFLICT, "domain '%.128s' exists, and %d further names",
                     import->plan.name, NAMES_MAX);
}

/* *out_replaces stays NULL unless one is to be replaced. */
static int settle_name(struct import *import, virDomainPtr *out_replaces, struct error *err)
{
    auto_domain other = NULL;
    bool ours = false;
    int found = domain_by_name(import->connection, import->plan.name, &other, err);

    if (found <= 0)
        return found;
    if (is_ours(import, other, &ours, err) < 0)
        return -1;
    if (ours)
        return 0; /* a call whose answer was lost defined it: it is defined again */
    switch (import->plan.clash) {
    case PLAN_FAIL:
        return error_set(err, ERR_CONFLICT,
                         "domain '%.128s' exists already: name another one (vm_name), or say "
                         "if_exists rename or replace",
                         import->plan.name);
    case PLAN_RENAME:
        return free_name(import, err);
    case PLAN_REPLACE:
        if (check_replaceable(other, err) < 0)
            return -1;
        *out_replaces = STEAL(other);
        return 0;
    }
    return 0;
}

/* The source's where that is free, for licences and cloud-init hang on it. */
static int choose_uuid(struct import *import, virDomainPtr replaces,
                       char out[VIR_UUID_STRING_BUFLEN], struct error *err)
{
    const char *source = json_str(json_object_get(import->plan.manifest, "vm"), "uuid");
    const char *recorded = record_uuid(import->task);
    auto_domain other = NULL;
    auto_domain earlier = NULL;
    bool ours = true;
    int found;

    if (replaces != NULL) {
        return virDomainGetUUIDString(replaces, out) == 0
                   ? 0
                   : hv_error(err, "domain '%.128s'", import->plan.name);
    }
    /* A define whose answer was lost may still come: with the same UUID it does no harm. */
    found = recorded[0] == '\0' ? 0 : domain_by_uuid(import->connection, recorded, &earlier, err);
    if (found < 0 || (found == 1 && is_ours(import, earlier, &ours, err) < 0))
        return -1;
    if (recorded[0] != '\0' && ours) {
        (void)snprintf(out, VIR_UUID_STRING_BUFLEN, "%s", recorded);
        return 0;
    }
    uuid_new(out);
    if (strlen(source) != UUID_SIZE - 1 || !domain_xml_is_uuid(source))
        return 0;
    found = domain_by_uuid(import->connection, source, &other, err);
    if (found < 0)
        return -1;
    if (found == 1) {
        convert_remark(import->warnings, "UUID %s of the source is domain '%s': a new one is used",
                       source, virDomainGetName(other));
        return 0;
    }
    (void)snprintf(out, VIR_UUID_STRING_BUFLEN, "%s", source);
    return 0;
}

static int remember_replaced(struct import *import, virDomainPtr replaces, struct error *err)
{
    char *xml;
    int rc;

    if (replaces == NULL)
        return record_replaced_put(import->task, "", err);
    xml = virDomainGetXMLDesc(replaces, VIR_DOMAIN_XML_SECURE | VIR_DOMAIN_XML_INACTIVE);
    if (xml == NULL)
        return hv_error(err, "definition of domain '%.128s'", import->plan.name);
    rc = record_replaced_put(import->task, xml, err);
    free(xml);
    import->replaced = true;
    return rc;
}

static int make_xml(struct import *import, const char *uuid, char **out, struct error *err)
{
    const struct import_plan *plan = &import->plan;
    const json_t *source = json_object_get(plan->manifest, "source");
    const struct domain_origin origin = {
        .job_id = import->job_id,
        .export_path = plan->export_path,
        .provider = json_str(source, "provider"),
        .vm_id = json_str(source, "vm_id"),
        .vm_name = json_str(source, "vm_name"),
    };
    const struct domain_options options = {
        .name = plan->name,
        .uuid = uuid,
        .type = import->type,
        .guest_fixed = plan->guest_fixed,
        .paths = (const char *const *)import->paths,
        .networks = plan->networks,
        .network_count = plan->network_count,
        .network_default = &plan->network_default,
        .origin = &origin,
    };

    return domain_xml_build(plan->manifest, &options, import->warnings, out, err);
}

static int define(struct import *import, virDomainPtr *out, struct error *err)
{
    char uuid[VIR_UUID_STRING_BUFLEN];
    auto_domain replaces = NULL;
    autofree char *xml = NULL;

    if (settle_name(import, &replaces, err) < 0 || choose_uuid(import, replaces, uuid, err) < 0 ||
        make_xml(import, uuid, &xml, err) < 0 || remember_replaced(import, replaces, err) < 0 ||
        record_uuid_put(import->task, uuid, err) < 0 || worker_task_check(import->task, err) < 0 ||
        worker_task_may_write(import->task, err) < 0)
        return -1;
    *out = virDomainDefineXML(import->connection, xml);
    if (*out == NULL)
        return hv_error(err, "defining domain '%.128s'", import->plan.name);
    worker_task_log(import->task, LOG_LEVEL_INFO, "domain '%s' (%s) is defined",
                    virDomainGetName(*out), uuid);
    return 0;
}

static int define_alone(struct import *import, virDomainPtr *out, struct error *err)
{
    struct error ignored = ERROR_NONE;

    if (record_names_claim(import->task, import->plan.uri, err) < 0)
        return -1;
    if (define(import, out, err) < 0) {
        (void)!record_names_release(import->task, &ignored); /* with the lease, else */
        return -1;
    }
    return record_names_release(import->task, err);
}

static int bring_up(struct import *import, virDomainPtr domain, struct error *err)
{
    bool active = false;

    if (worker_task_check(import->task, err) < 0 || worker_task_may_write(import->task, err) < 0)
        return -1;
    /* also off: the one that was replaced may have had it */
    if (virDomainSetAutostart(domain, import->plan.autostart ? 1 : 0) < 0 && import->plan.autostart)
        return hv_error(err, "autostart of domain '%.128s'", virDomainGetName(domain));
    if (!import->plan.start)
        return 0;
    if (domain_is_active(domain, &active, err) < 0)
        return -1;
    if (active)
        return 0;
    if (virDomainCreate(domain) < 0)
        return hv_error(err, "starting domain '%.128s'", virDomainGetName(domain));
    worker_task_log(import->task, LOG_LEVEL_INFO, "domain '%s' is started",
                    virDomainGetName(domain));
    return 0;
}

/* ---- the task ---- */

static int open_target(struct import *import, const struct bridge *bridge, struct error *err)
{
    if (hv_open(import->plan.uri, bridge->libvirt.timeout_ms, &import->connection, err) < 0)
        return -1;
    return hv_domain_type(import->connection, import->plan.domain_type, &import->type, err);
}

static int make(struct import *import, virDomainPtr *out, struct error *err)
{
    auto_domain replaces = NULL; /* looked at again before it is replaced */
    int found = find_own(import, out, err);

    import->in_place = import->plan.pool[0] == '\0';
    if (found != 0)
        return found < 0 ? -1 : list_volumes(import, err);
    if (settle_name(import, &replaces, err) < 0 || /* before long copies are made in vain */
        record_target_put(import->task, import->plan.uri, import->job_id, err) < 0)
        return -1;
    if ((import->plan.pool[0] == '\0' ? place_here(import, err) : place_in_pool(import, err)) < 0)
        return -1;
    return define_alone(import, out, err);
}

static json_t *result_of(const struct import *import, json_t *facts_taken)
{
    const json_t *source = json_object_get(import->plan.manifest, "source");

    json_set_text(facts_taken, "uri", import->plan.uri);
    json_set_text(facts_taken, "type", import->type);
    json_put(facts_taken, "in_place", json_boolean(import->in_place));
    json_put(facts_taken, "replaced", json_boolean(import->replaced));
    json_put(facts_taken, "guest_fixed", json_boolean(import->plan.guest_fixed));
    json_put(facts_taken, "volumes", json_incref(import->volumes));
    json_put(facts_taken, "warnings", json_incref(import->warnings));
    json_set_text(facts_taken, "export_path", import->plan.export_path);
    json_put(facts_taken, "source",
             json_pack("{s:s, s:s, s:s}", "provider", json_str(source, "provider"), "vm_id",
                       json_str(source, "vm_id"), "vm_name", json_str(source, "vm_name")));
    return json_pack("{s:o}", "libvirt_domain", facts_taken);
}

static int work(struct import *import, const struct bridge *bridge, json_t **out_result,
                struct error *err)
{
    auto_domain domain = NULL;
    json_t *facts = NULL;

    if (plan_read(worker_task_spec(import->task), bridge, &import->plan, err) < 0 ||
        open_target(import, bridge, err) < 0 || make(import, &domain, err) < 0 ||
        bring_up(import, domain, err) < 0 || domain_facts(domain, &facts, err) < 0)
        return -1;
    *out_result = result_of(import, facts);
    return 0;
}

/* A lost lease, a pause and a drain leave everything to the next lease, a passing error to the next
 * attempt. */
static bool is_the_end(const struct worker_task *task, const struct error *err)
{
    enum worker_stop reason = worker_task_stop_reason(task);

    if (reason == WORKER_LOST || worker_task_hands_back(task))
        return false;
    return reason == WORKER_CANCELLED || !error_is_retryable(err);
}

static void take_back(struct import *import, struct error *err)
{
    struct error why = ERROR_NONE;

    if (import->connection == NULL || !is_the_end(import->task, err))
        return;
    if (import_undo(import->task, import->connection, import->job_id, &why) < 0) {
        /* the scheduler queues a release for what is left */
        worker_task_log(import->task, LOG_LEVEL_WARN, "not all could be taken back yet: %s",
                        why.message);
    }
}

int import_run(struct worker_task *task, void *arg, json_t **out_result, struct error *err)
{
    CLEANUP(import_release)
    struct import import = {
        .task = task,
        .job_id = worker_task_job_id(task),
        .volumes = json_array(),
        .warnings = json_array(),
    };
    const json_t *warning;
    size_t i;
    int rc;

    worker_task_phase(task, "importing");
    rc = work(&import, arg, out_result, err);
    json_array_foreach(import.warnings, i, warning)
    {
        worker_task_log(task, LOG_LEVEL_WARN, "%s", json_string_value(warning));
    }
    if (rc < 0)
        take_back(&import, err);
    return rc;
}

int import_release_run(struct worker_task *task, void *arg, json_t **out_result, struct error *err)
{
    const struct bridge *bridge = arg;
    auto_json *target = record_target(task);
    auto_connection connection = NULL;

    *out_result = json_pack("{s:b}", "released", 1);
    if (target == NULL)
        return 0; /* nothing was begun */
    if (hv_open(json_str(target, "uri"), bridge->libvirt.timeout_ms, &connection, err) < 0 ||
        import_undo(task, connection, json_str(target, "job"), err) < 0)
        return -1;
    /* A daemon that hung may be doing just now what it was told before we gave it up. */
    clock_sleep_ms(LATE_CALLS_MS);
    return import_undo(task, connection, json_str(target, "job"), err);
}

int import_check_config(const struct libvirt_config *config, struct strbuf *problems)
{
    size_t before = problems->length;

    if (strcmp(config->domain_type, "auto") != 0 && strcmp(config->domain_type, "kvm") != 0 &&
        strcmp(config->domain_type, "qemu") != 0) {
        strbuf_addf(problems, "libvirt.domain_type: '%.32s' is not auto, kvm or qemu\n",
                    config->domain_type);
    }
    for (size_t i = 0; i < config->networks.count; i++) {
        struct domain_network network;
        struct error why = ERROR_NONE;
        if (plan_network(config->networks.items[i], &network, &why) < 0)
            strbuf_addf(problems, "libvirt.networks: %s\n", why.message);
        free((char *)(uintptr_t)network.source);
        free((char *)(uintptr_t)network.target);
    }
    return problems->length == before ? 0 : -1;
}
